"""A listing to stored records, each video once, in parallel and going on where it stopped.

In: a `Listing`. Out: a folder of TFDS records (`tfds.builder_from_directory` reads it), one record a
video, with its frames as JPEG at the training scale and its codes in the official splits; and its
index, `Records`.

Videos are stored in record files of `SHARD_VIDEOS`. A record file counts when its index lies beside
it, which is written last; the folder counts as a data set when TFDS's metadata is there, which is
written after all record files. So what was interrupted is neither lost nor taken for whole.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import os
import shutil
import time
from typing import Any

from absl import logging as absl_logging
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
import tqdm

from hybrid_video.datasets import hmdb51, kinetics, listing, records, ucf101, video_files

log = logging.getLogger("hybrid_video")

# The one TFDS split: every video once. ("all" is a reserved word there.)
SPLIT = "videos"
VERSION = "2.0.0"
SHARD_VIDEOS = 64
_LEFTOVER_SECONDS = 24 * 60 * 60
_PUBLISHED = {"hmdb51": hmdb51, "ucf101": ucf101, "kinetics": kinetics}


class MissingVideosError(ValueError):
  """Listed videos that are not there or cannot be decoded, without leave to go on."""


class StorageError(ValueError):
  """Records that cannot be written; the message says what to do."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Holds back what TFDS prints for notebooks."""
  verbosity = absl_logging.get_verbosity()
  absl_logging.set_verbosity(absl_logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    absl_logging.set_verbosity(verbosity)


def _refused(names: Iterable[str], allow_missing: bool, allowed: Collection[str]) -> list[str]:
  return [] if allow_missing else [name for name in names if name not in set(allowed)]


def check_missing(
  names: Collection[str], allow_missing: bool, allowed: Collection[str], where: str, what: str
) -> None:
  """Refuses missing videos that nobody allowed.

  Args:
    names: listed videos that are missing or broken.
    allow_missing: whether any may be.
    allowed: names of those that may be.
    where: what to complete.
    what: what is the matter with them, for the message.

  Raises:
    MissingVideosError: with their number, the first of their names, and how to allow them.
  """
  refused = _refused(names, allow_missing, allowed)
  if refused:
    raise MissingVideosError(
      f"{len(refused)} listed videos {what}: {listing.shown(refused)}. Complete {where}; or go on "
      "without them, all of them by --config.allow_missing=True, these alone by naming them in "
      "--config.missing_allowed."
    )


def features(listed: listing.Listing, scale: video_files.StoredScale) -> tfds.features.FeaturesDict:
  """What TFDS is told of a record."""
  shape = (None, scale.height, scale.width, 3) if scale.width else (None, None, None, 3)
  return tfds.features.FeaturesDict(
    {
      "name": tfds.features.Text(),
      "label": tfds.features.ClassLabel(names=list(listed.class_names)),
      "group": tfds.features.Text(doc="Videos of one group share people and scenery."),
      "tags": tfds.features.Text(doc="What else is known of the video, a JSON object."),
      "split_codes": tfds.features.Tensor(shape=(listed.num_splits,), dtype=np.int64),
      "fps": tfds.features.Scalar(dtype=np.float64),
      "video": tfds.features.Video(shape=shape, encoding_format="jpeg"),
    }
  )


def _entry(video: listing.Video) -> bytes:
  """What tells a video from another: all that is listed of it, and its file's size."""
  size = video.path.stat().st_size if video.path else None
  known = (video.name, video.label, video.group, video.codes, sorted(video.tags.items()), size)
  return repr(known).encode("utf-8", "surrogateescape")


def _digest(entries: Iterable[bytes], scale: video_files.StoredScale) -> str:
  """Tells other lists, other files and other scales apart."""
  digest = hashlib.sha256(f"{VERSION} {scale.name}".encode())
  for entry in entries:
    digest.update(entry)
  return digest.hexdigest()


def records_folder(
  listed: listing.Listing,
  records_dir: str,
  scale: video_files.StoredScale,
  entries: Iterable[bytes] | None = None,
) -> str:
  """Where the records of a listing lie: `RECORDS_DIR/DATASET/SCALE-DIGEST/VERSION`.

  The name holds a digest of the lists and of the files' names and sizes, so that records made of
  other files are never taken for these.

  Args:
    listed: the videos.
    records_dir: folder of all records.
    scale: size and quality of stored frames.
    entries: of the videos, where they are known already, so that no file is looked at again.
  """
  # Not a pathlib path: records may lie on gs:// or another file system TFDS reads.
  place = os.path.expanduser(records_dir or "~/tensorflow_datasets")
  name = f"{scale.name}-{_digest(map(_entry, listed.videos) if entries is None else entries, scale)[:12]}"
  return os.path.join(place, listed.dataset, name, VERSION)


def _explain(error: Exception, folder: str, what: str) -> StorageError:
  free = ""
  if records.is_local(folder):
    with contextlib.suppress(OSError):
      free = f" ({shutil.disk_usage(folder).free / 2**30:.1f} GiB free there)"
  reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
  return StorageError(
    f"{folder}: the records cannot be {what}: {reason}{free}. Make room or mend the rights there, or "
    "name another place in --config.records_dir. What is whole stays; the same command goes on from "
    "there."
  )


def _remove_leftovers(folder: str) -> None:
  """Removes what builds left that were killed while they wrote; of others, nothing is that old."""
  for name in tf.io.gfile.listdir(folder):
    path = os.path.join(folder, name)
    with contextlib.suppress(tf.errors.NotFoundError):
      if name.endswith(records.PART):
        age = time.time() - tf.io.gfile.stat(path).mtime_nsec / 1e9
        if age > _LEFTOVER_SECONDS:
          tf.io.gfile.remove(path)


def _write_shard(
  path: str,
  digest: str,
  videos: Sequence[listing.Video],
  stored: Iterator[tuple[int, video_files.StoredVideo | str]],
  listed: listing.Listing,
  described: tfds.features.FeaturesDict,
  progress: tqdm.tqdm,
  broken_before: int,
) -> int:
  """Writes one record file and then its index; gives how many broken videos the run met so far."""
  index = records.ShardIndex()
  # Two runs may build at once: both come to the same files, each by its own.
  with records.whole_file(path) as part, tf.io.TFRecordWriter(part) as writer:
    for video in videos:
      _, found = next(stored)
      progress.update()
      if isinstance(found, str):
        index.broken[video.name] = found
        progress.set_postfix(broken=broken_before + len(index.broken))
        continue
      label, tags = listed.class_names.index(video.label), json.dumps(dict(video.tags))
      example: dict[str, Any] = {
        "name": _text(video.name),
        "label": label,
        "group": _text(video.group),
        "tags": tags,
        "split_codes": list(video.codes),
        "fps": found.fps,
        "video": found.frames,
      }
      encoded = tf.train.Example.FromString(
        described.serialize_example(described.encode_example(example))
      )
      # Otherwise the order of features is another in every process.
      serialized = encoded.SerializeToString(deterministic=True)
      writer.write(serialized)
      index.add(
        serialized,
        found.frames,
        names=_text(video.name),
        labels=label,
        groups=_text(video.group),
        tags=tags,
        split_codes=video.codes,
        fps=found.fps,
      )
  index.write(path, digest)
  return broken_before + len(index.broken)


def _text(name: str) -> str:
  # A file name may hold bytes that are not UTF-8; what is stored is text.
  return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def build(
  listed: listing.Listing,
  records_dir: str,
  scale: video_files.StoredScale,
  *,
  allow_missing: bool = False,
  missing_allowed: Collection[str] = (),
  workers: int | None = None,
) -> records.Records:
  """Decodes and stores what is not stored yet, and gives the index.

  Args:
    listed: the videos.
    records_dir: folder of all records, on any file system TensorFlow knows; "" is TFDS's own,
      ~/tensorflow_datasets.
    scale: size and quality of stored frames.
    allow_missing: whether listed videos may be missing or broken.
    missing_allowed: names of those that may be.
    workers: decoding processes; the default is one a core.

  Raises:
    MissingVideosError: videos are missing or broken and not allowed to be. Missing ones are told
      before anything is decoded, broken ones after all others are stored.
    StorageError: the records cannot be written.
    RecordsError: no video could be stored.
  """
  missing = [video.name for video in listed.videos if video.path is None]
  check_missing(missing, allow_missing, missing_allowed, str(listed.folder), "are missing")
  there = [video for video in listed.videos if video.path is not None]
  entries = {video.name: _entry(video) for video in listed.videos}
  folder = records_folder(listed, records_dir, scale, entries.values())
  count = -(-len(there) // SHARD_VIDEOS)
  groups = [there[i * SHARD_VIDEOS : (i + 1) * SHARD_VIDEOS] for i in range(count)]
  paths = [
    os.path.join(folder, f"{listed.dataset}-{SPLIT}.tfrecord-{i:05d}-of-{count:05d}")
    for i in range(count)
  ]
  digests = [_digest([entries[video.name] for video in group], scale) for group in groups]
  refused = functools.partial(_refused, allow_missing=allow_missing, allowed=missing_allowed)
  try:
    shards = {
      path: records.read_shard_index(path, digest)
      for path, digest in zip(paths, digests, strict=True)
    }
  except (OSError, tf.errors.OpError) as error:
    raise _explain(error, folder, "read") from error
  # A broken file that is refused may have been mended since, at the same size.
  todo = [
    i
    for i, path in enumerate(paths)
    if not (known := shards[path]) or refused(known["broken_names"])
  ]
  finished = os.path.join(folder, "dataset_info.json")
  if todo:
    described = features(listed, scale)
    waiting = [video for i in todo for video in groups[i]]
    try:
      tf.io.gfile.makedirs(folder)
      _remove_leftovers(folder)
      with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(finished)
      stored = video_files.store_videos([v.path for v in waiting if v.path], scale, workers)
      with (
        contextlib.closing(stored),
        tqdm.tqdm(
          total=len(there),
          initial=len(there) - len(waiting),
          unit=" videos",
          desc="Decoding videos",
          dynamic_ncols=True,
        ) as progress,
      ):
        broken = 0
        for i in todo:
          broken = _write_shard(
            paths[i], digests[i], groups[i], stored, listed, described, progress, broken
          )
          shards[paths[i]] = records.read_shard_index(paths[i], digests[i])
          if shards[paths[i]] is None:
            raise OSError(errno.EIO, f"what was written to {paths[i]} reads otherwise")
    except (OSError, tf.errors.OpError) as error:
      raise _explain(error, folder, "written") from error
  whole = {path: index for path, index in shards.items() if index is not None}
  found = records.merge(listed, folder, whole, scale.jpeg_quality)
  if not tf.io.gfile.exists(finished):
    try:
      _write_metadata(found, listed, features(listed, scale), whole)
    except (OSError, tf.errors.OpError) as error:
      raise _explain(error, folder, "written") from error
  check_missing(found.broken, allow_missing, missing_allowed, str(listed.folder), _reasons(found))
  return found


def _reasons(found: records.Records) -> str:
  first = "\n  ".join(list(found.broken.values())[:3])
  more = "\n  ..." if len(found.broken) > 3 else ""
  return f"cannot be used:\n  {first}{more}\nThese are"


def _write_metadata(
  found: records.Records,
  listed: listing.Listing,
  described: tfds.features.FeaturesDict,
  shards: dict[str, Any],
) -> None:
  published = _PUBLISHED.get(listed.dataset)
  template = tfds.core.ShardedFileTemplate(
    data_dir=found.folder, dataset_name=listed.dataset, split=SPLIT, filetype_suffix="tfrecord"
  )
  lengths = [len(index["names"]) for index in shards.values()]
  with _quiet():
    tfds.folder_dataset.write_metadata(
      data_dir=found.folder,
      features=described,
      split_infos=[tfds.core.SplitInfo(SPLIT, lengths, found.record_bytes, template)],
      version=VERSION,
      filename_template=template,
      check_data=False,
      description=f"{listed.dataset}: every listed video once, frames as JPEG.",
      homepage=published.HOMEPAGE if published else "",
      citation=published.CITATION if published else "",
      supervised_keys=("video", "label"),
      metadata=tfds.core.MetadataDict(
        missing=list(found.missing), broken=found.broken, unlisted=list(found.unlisted)
      ),
    )
