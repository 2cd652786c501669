"""A listing to stored records: each video once, in parallel, continuing where a build stopped.

In: a `Listing`. Out: a folder of TFDS records (`tfds_builders` and `tfds.builder_from_directory` read
it), one record a video, with its frames as JPEG at the training scale and its codes in the official
splits; and its index, `Records`.

Videos are stored in record files of `SHARD_VIDEOS`. A record file counts when its index lies beside
it, which is written last; the folder counts as a data set when TFDS's metadata is there, which is
written after all record files. So an interrupted build loses nothing and is not taken for whole.

A video is known by the content of its file. What an earlier build has stored of the same content, in
whatever list, is taken from there: only what is new or has changed is decoded.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import errno
import hashlib
import logging
import os
import shutil
import time

from etils import epath
import numpy as np
import tensorflow as tf
import tqdm

from hybrid_video import errors, files, locks
from hybrid_video.datasets import file_identity, listing, record_files, tfds_metadata
from hybrid_video.datasets import records as stored
from hybrid_video.datasets.file_identity import Content
from hybrid_video.datasets.record_files import Decoder, Result, Shard, Source
from hybrid_video.datasets.stored_before import StoredBefore
from hybrid_video.datasets.tfds_metadata import SPLIT, VERSION
from hybrid_video.decoding.storing import DecodingLimits, StoredScale, file_digest

SHARD_VIDEOS = 64
_LEFTOVER_SECONDS = 24 * 60 * 60
# What file systems raise, Python's own and those that TensorFlow reads.
FILE_ERRORS = (OSError, tf.errors.OpError)

log = logging.getLogger("hybrid_video")

Index = Mapping[str, np.ndarray]


class MissingVideosError(errors.UserError):
  """Listed videos that are missing or cannot be decoded, and are not allowed to be."""


class StorageError(errors.UserError):
  """Records that cannot be written or read; the message says what to do."""


# Stores the videos of some record files of a listing, in order, and gives each file once it is whole.
StoreShards = Callable[[Sequence[Shard], listing.Listing, Decoder], Generator[Shard, None, None]]


def store_here(
  shards: Sequence[Shard], listed: listing.Listing, decoder: Decoder
) -> Generator[Shard, None, None]:
  """Stores record files on this machine, one by one, with a bar; see `StoreShards`.

  Its videos are decoded in parallel, by default in one process a core. Those that an earlier build has
  stored are taken from there.
  """
  total = sum(video.path is not None for video in listed.videos)
  found = sources_of(shards, decoder.scale)
  every = [source for shard in shards for source in found[shard.path]]
  with contextlib.closing(_with_bar(every, decoder, total)) as results:
    for shard in shards:
      record_files.write_shard(shard, results, listed)
      yield shard


def sources_of(shards: Sequence[Shard], scale: StoredScale) -> dict[str, list[Source]]:
  """For each record file, where the frames of its videos come from.

  Args:
    shards: of one records folder, at least one.
    scale: of the frames.
  """
  before = StoredBefore(_earlier_folders(os.path.dirname(shards[0].path), scale))
  return {
    shard.path: [
      (video.path, before.find(video.path, content))
      for video, content in zip(shard.videos, shard.contents, strict=True)
      if video.path is not None
    ]
    for shard in shards
  }


def build(
  listed: listing.Listing,
  records_dir: str,
  scale: StoredScale,
  *,
  allow_missing: bool = False,
  missing_allowed: Collection[str] = (),
  workers: int | None = None,
  limits: DecodingLimits | None = None,
  hash_whole_files: bool = False,
  store_shards: StoreShards = store_here,
) -> stored.Records:
  """Decodes and stores what is not stored yet, and gives the index.

  Args:
    listed: the videos.
    records_dir: folder of all records, on a local disk or a file system that both TensorFlow and
      `etils.epath` know, such as gs://; "" is TFDS's own, ~/tensorflow_datasets.
    scale: size and quality of stored frames.
    allow_missing: whether listed videos may be missing or broken.
    missing_allowed: names of those that may be.
    workers: decoding processes; the default is that of `store_shards`.
    store_shards: what stores record files, here or elsewhere. The records are the same.
    limits: what decoding a file may take.
    hash_whole_files: whether a file's content is told by all of its bytes, and not by its size, its
      time and its ends.

  Raises:
    MissingVideosError: videos are missing or broken and not allowed to be. Missing ones are reported
      before anything is decoded, broken ones after all others are stored.
    StorageError: the records cannot be written or read.
    RecordsError: no video could be stored.
  """
  source = str(listed.folder)
  _warn_of_ignored(listed)
  check_missing(_missing(listed), allow_missing, missing_allowed, source, "are missing")
  folder, shards = _layout(listed, records_dir, scale, _contents(listed, hash_whole_files))
  indices = _read_indices(folder, shards, hash_whole_files)

  def is_whole(index: Index) -> bool:
    # A broken file that is not allowed may be readable by now.
    return not _not_allowed(index["broken_names"], allow_missing, missing_allowed)

  def unfinished() -> list[Shard]:
    found = ((shard, indices[shard.path]) for shard in shards)
    return [shard for shard, index in found if index is None or not is_whole(index)]

  with contextlib.ExitStack() as held:
    if unfinished():
      with _explained(folder, "written"):
        held.enter_context(locks.hold(epath.Path(folder), "storing records", wait=True))
      # Another build may have stored them while this one waited.
      indices = _read_indices(folder, shards, hash_whole_files)
    if todo := unfinished():
      with _explained(folder, "written"):
        indices |= _store(folder, store_shards(todo, listed, Decoder(scale, workers, limits)))
    records = _merged(listed, folder, scale, indices)
  what = _reasons(records.broken)
  check_missing(records.broken, allow_missing, missing_allowed, source, what)
  return records


def _merged(
  listed: listing.Listing, folder: str, scale: StoredScale, indices: Mapping[str, Index | None]
) -> stored.Records:
  """The index of all record files, which are whole, with TFDS's metadata written beside them."""
  whole = {path: index for path, index in indices.items() if index is not None}
  records = stored.merge(
    whole,
    dataset=listed.dataset,
    folder=folder,
    class_names=listed.class_names,
    missing=_missing(listed),
    unlisted=listed.unlisted,
    jpeg_quality=scale.jpeg_quality,
    ignored=listed.ignored,
  )
  if not _info_path(folder).exists():
    with _explained(folder, "written"):
      described = tfds_metadata.features(listed, tfds_metadata.frame_size(records))
      tfds_metadata.write(records, described, [len(index["names"]) for index in whole.values()])
  return records


def _missing(listed: listing.Listing) -> list[str]:
  return [video.name for video in listed.videos if video.path is None]


def _warn_of_ignored(listed: listing.Listing) -> None:
  if listed.ignored:
    shown = errors.shown(f"{name}: {reason}" for name, reason in listed.ignored)
    log.warning("%s: %d file(s) are not used: %s", listed.folder, len(listed.ignored), shown)


def _not_allowed(
  names: Iterable[str], allow_missing: bool, missing_allowed: Collection[str]
) -> list[str]:
  return [] if allow_missing else [name for name in names if name not in set(missing_allowed)]


def check_missing(
  names: Collection[str],
  allow_missing: bool,
  missing_allowed: Collection[str],
  folder: str,
  what: str,
) -> None:
  """Checks that missing or broken videos are allowed to be.

  Args:
    names: listed videos that are missing or broken.
    allow_missing: whether any may be.
    missing_allowed: names of those that may be.
    folder: where the user can complete them.
    what: what is wrong with them, for the message.

  Raises:
    MissingVideosError: with their number, the first of their names, and how to allow them.
  """
  names = _not_allowed(names, allow_missing, missing_allowed)
  if names:
    raise MissingVideosError(
      f"{len(names)} listed videos {what}: {errors.shown(names)}. Complete {folder}. Or go on "
      "without them: without all of them by --config.allow_missing=True, without these alone by "
      "naming them in --config.missing_allowed."
    )


def _reasons(broken: Mapping[str, str]) -> str:
  first = "\n  ".join(list(broken.values())[:3])
  more = "\n  ..." if len(broken) > 3 else ""
  return f"cannot be used:\n  {first}{more}\nThese are"


# Where records lie.


def _contents(listed: listing.Listing, whole: bool) -> dict[str, Content]:
  """The content of each video's file, by the video's name.

  Raises:
    ContentError: a file has gone since it was listed.
  """
  available = {video.name: video.path for video in listed.videos if video.path}
  contents = file_identity.contents_of(list(available.values()), whole=whole)
  return dict(zip(available, contents, strict=True))


def _entry(video: listing.Video, content: Content | None) -> bytes:
  """What tells a video from another: all that is listed of it, and its file's content."""
  file = content and (content.size, content.digest)
  known = (video.name, video.label, video.group, video.codes, sorted(video.tags.items()), file)
  return repr(known).encode("utf-8", "surrogateescape")


def _digest(entries: Iterable[bytes], scale: StoredScale) -> str:
  """Tells other lists, other files and other scales apart."""
  digest = hashlib.sha256(f"{VERSION} {scale.name}".encode())
  for entry in entries:
    digest.update(entry)
  return digest.hexdigest()


def records_folder(listed: listing.Listing, records_dir: str, scale: StoredScale) -> str:
  """Where the records of a listing lie: `RECORDS_DIR/DATASET/SCALE-DIGEST/VERSION`.

  The name holds a digest of the lists and of the files' names and contents, so that records made of
  other files are never taken for these.

  Args:
    listed: the videos.
    records_dir: folder of all records.
    scale: size and quality of stored frames.
  """
  return _layout(listed, records_dir, scale, _contents(listed, whole=False))[0]


def records_root(records_dir: str) -> str:
  """The folder of all records; "" is TFDS's own."""
  # Not a pathlib path: records may lie on gs:// or another remote file system.
  return os.path.expanduser(records_dir or "~/tensorflow_datasets")


def _scales_folder(dataset: str, records_dir: str) -> str:
  return os.path.join(records_root(records_dir), dataset)


def _layout(
  listed: listing.Listing, records_dir: str, scale: StoredScale, contents: Mapping[str, Content]
) -> tuple[str, list[Shard]]:
  """The folder of the records and the record files in it.

  Raises:
    StorageError: the folder is on a file system that is not known.
  """
  entries = {video.name: _entry(video, contents.get(video.name)) for video in listed.videos}
  # Records hold class ids, which are the names' places in this order.
  known = [repr(listed.class_names).encode("utf-8", "surrogateescape"), *entries.values()]
  name = f"{scale.name}-{_digest(known, scale)[:12]}"
  folder = os.path.join(_scales_folder(listed.dataset, records_dir), name, VERSION)
  try:
    epath.Path(folder)
  except KeyError as error:
    raise StorageError(
      f"{folder}: this kind of file system is not known. Set --config.records_dir to a local folder "
      "or one on gs://."
    ) from error
  available = [video for video in listed.videos if video.path]
  count = -(-len(available) // SHARD_VIDEOS)
  shards = []
  for i in range(count):
    videos = available[i * SHARD_VIDEOS : (i + 1) * SHARD_VIDEOS]
    name = f"{listed.dataset}-{SPLIT}.tfrecord-{i:05d}-of-{count:05d}"
    digest = _digest([entries[video.name] for video in videos], scale)
    of_files = [contents[video.name] for video in videos]
    shards.append(Shard(os.path.join(folder, name), videos, of_files, digest))
  return folder, shards


def _earlier_folders(folder: str, scale: StoredScale) -> list[str]:
  """The folders of a data set's records at one scale, the one that is to be written among them."""
  dataset = os.path.dirname(os.path.dirname(folder))
  if not epath.Path(dataset).exists():
    return []
  names = sorted(path.name for path in epath.Path(dataset).iterdir())
  at_scale = [name for name in names if name.startswith(f"{scale.name}-")]
  return [os.path.join(dataset, name, VERSION) for name in at_scale]


def _current(shard: Shard, index: Index) -> Index | None:
  """A record file's index, or None if a video's file is another than it was made of.

  Sizes and ends of the files are the same. A file that was written since is read to the end; if it is
  the same, its new time is noted.
  """
  rows = {name: row for row, name in enumerate(index["names"].tolist())}
  modified = index["file_modified"].copy()
  for video, content in zip(shard.videos, shard.contents, strict=True):
    row = rows.get(listing.text(video.name))
    if row is None or content.modified == modified[row]:
      continue
    assert video.path is not None
    if file_digest(video.path) != index["file_digest"][row]:
      return None
    modified[row] = content.modified
  if np.array_equal(modified, index["file_modified"]):
    return index
  renewed = {**index, "file_modified": modified}
  # Records that may only be read stay as they are.
  with contextlib.suppress(*FILE_ERRORS):
    stored.write_shard_index(shard.path, renewed)
  return renewed


def _info_path(folder: str) -> epath.Path:
  """TFDS's own description, written last."""
  return epath.Path(folder) / "dataset_info.json"


def _read_indices(
  folder: str, shards: Sequence[Shard], hash_whole_files: bool
) -> dict[str, Index | None]:
  """The indices of record files, None where one is not whole or was made of other files."""
  paths, digests = [shard.path for shard in shards], [shard.digest for shard in shards]
  # Kinetics has thousands, and a remote file system takes a while to answer for each.
  with _explained(folder, "read"), futures.ThreadPoolExecutor(16) as pool:
    indices = dict(zip(paths, pool.map(stored.read_shard_index, paths, digests), strict=True))
  if hash_whole_files:
    return indices
  return {shard.path: (index := indices[shard.path]) and _current(shard, index) for shard in shards}


@contextlib.contextmanager
def _explained(folder: str, what: str) -> Iterator[None]:
  """Turns errors of the file system into a `StorageError` that says what to do."""
  try:
    yield
  except FILE_ERRORS as error:
    free = ""
    if stored.is_local(folder):
      with contextlib.suppress(OSError):
        free = f" ({shutil.disk_usage(folder).free / 2**30:.1f} GiB free there)"
    reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    raise StorageError(
      f"{folder}: the records cannot be {what}: {reason}{free}. Free some space or fix the "
      "permissions there, or set --config.records_dir to another folder. What is whole stays; the "
      "same command continues from there."
    ) from error


# Storing.


def _store(folder: str, stored_shards: Generator[Shard, None, None]) -> dict[str, Index]:
  """Has some record files written, and gives their indices."""
  epath.Path(folder).mkdir(parents=True, exist_ok=True)
  _remove_leftovers(folder)
  _info_path(folder).unlink(missing_ok=True)
  indices = {}
  with contextlib.closing(stored_shards):
    for shard in stored_shards:
      index = stored.read_shard_index(shard.path, shard.digest)
      if index is None:
        raise OSError(errno.EIO, f"{shard.path} reads otherwise than it was written")
      indices[shard.path] = index
  return indices


def _remove_leftovers(folder: str) -> None:
  """Removes what killed builds left half written; no other file of that name is that old."""
  for path in epath.Path(folder).iterdir():
    if path.name.endswith(files.PART):
      # Another build may have finished it meanwhile.
      with contextlib.suppress(FileNotFoundError, tf.errors.NotFoundError):
        if time.time() - files.modified(path) > _LEFTOVER_SECONDS:
          path.unlink(missing_ok=True)


def _with_bar(
  sources: Sequence[Source], decoder: Decoder, total: int
) -> Generator[Result, None, None]:
  """The videos of files, see `record_files.results`, with a bar that counts them."""
  broken = 0
  with (
    contextlib.closing(record_files.results(sources, decoder)) as results,
    tqdm.tqdm(
      total=total,
      initial=total - len(sources),
      unit=" videos",
      desc="Decoding videos",
      dynamic_ncols=True,
    ) as progress,
  ):
    for result in results:
      progress.update()
      if isinstance(result, str):
        broken += 1
        progress.set_postfix(broken=broken)
      yield result
