"""Stored records and what is known of each without decoding it: the index, and frames by their place.

In: a folder that `builder` has written. Out: `Records`, which lists the videos, selects lists, and
reads any frames of any video without those before them.

What lies in the folder: TFDS's record files and metadata, and beside each record file its
`ShardIndex`, written when the record file was whole.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import io
import os
from typing import Any
import uuid
import zipfile

import google_crc32c
import numpy as np
import tensorflow as tf

from hybrid_video.datasets import jpeg_stripes, listing

# Ends the name of a file that is being written.
PART = ".part"
# A TFRecord is: length (8 bytes), its checksum (4), the data, its checksum (4).
HEADER_BYTES, FOOTER_BYTES = 12, 4
INDEX_VERSION = 3
# An index file ends in the CRC-32C of what stands before.
_CHECK_BYTES = 4
# By video: what a listing says of it, what decoding told, and where its record lies.
_VIDEO_COLUMNS = (
  "names", "labels", "groups", "tags", "split_codes", "fps", "num_frames", "height", "width",
  "header", "offset", "length",
)  # fmt: skip
# By frame: where its entropy-coded data lies within its record, its bytes, and their CRC-32C.
_FRAME_COLUMNS = ("scan_at", "scan_bytes", "scan_crc")


class RecordsError(ValueError):
  """Stored records that cannot serve; the message names them and says what to do."""


@dataclasses.dataclass(frozen=True)
class Records:
  """The index of a stored data set: one row a video, in the order of storage.

  Attributes:
    dataset: the data set's name.
    folder: where the records lie.
    class_names: names by class id.
    names: video names, `[V]`.
    groups: videos of one group share people and scenery, `[V]`.
    tags: what else is known of each video, as JSON objects, `[V]`.
    labels: class ids, int64 `[V]`.
    split_codes: int64 `[V, S]`: 1 train, 2 test, 0 unused.
    fps: frames a second, float64 `[V]`.
    num_frames: int64 `[V]`.
    height, width: pixels of a video's stored frames, int64 `[V]`.
    shards: paths of the record files.
    shard: record file of each video, `[V]`.
    offset, length: first byte and bytes of a record's data, `[V]`.
    headers: the different JPEG headers of frames; `header` has each video's, `[V]`.
    header: see `headers`.
    first_frame: where a video's frames begin in the frame columns, `[V]`.
    scan_at, scan_bytes, scan_crc: of every frame: where its entropy-coded data lies within its
      record, how many bytes, and their CRC-32C, `[F]`.
    missing: listed videos that have no file.
    broken: listed videos that could not be decoded, with the reason.
    unlisted: video files that no list names.
    jpeg_quality: 1 to 95.
  """

  dataset: str
  folder: str
  class_names: tuple[str, ...]
  names: np.ndarray
  groups: np.ndarray
  tags: np.ndarray
  labels: np.ndarray
  split_codes: np.ndarray
  fps: np.ndarray
  num_frames: np.ndarray
  height: np.ndarray
  width: np.ndarray
  shards: tuple[str, ...]
  shard: np.ndarray
  offset: np.ndarray
  length: np.ndarray
  headers: tuple[jpeg_stripes.Header, ...]
  header: np.ndarray
  first_frame: np.ndarray
  scan_at: np.ndarray
  scan_bytes: np.ndarray
  scan_crc: np.ndarray
  missing: tuple[str, ...]
  broken: dict[str, str]
  unlisted: tuple[str, ...]
  jpeg_quality: int

  def __len__(self) -> int:
    return len(self.names)

  @property
  def num_splits(self) -> int:
    """Official splits."""
    return self.split_codes.shape[1]

  @property
  def is_local(self) -> bool:
    """Whether the records lie on a file system that Python reads."""
    return is_local(self.folder)

  @property
  def rows(self) -> np.ndarray:
    """Rows that a frame takes up in a stripe, by video: its height in whole JPEG blocks, `[V]`."""
    return np.array([header.rows for header in self.headers], np.int64)[self.header]

  @property
  def record_bytes(self) -> int:
    """Bytes of all records."""
    return int(np.sum(self.length + HEADER_BYTES + FOOTER_BYTES))

  def select(self, split: int, code: int) -> np.ndarray:
    """Places of the videos that have `code` in the official split 1, 2 and so on, in order.

    Raises:
      ValueError: there is no such split.
    """
    if not 1 <= split <= self.num_splits:
      known = f"are 1 to {self.num_splits}" if self.num_splits > 1 else "is 1 alone"
      raise ValueError(f"There is no split {split}: what {self.dataset} has {known}.")
    return np.flatnonzero(self.split_codes[:, split - 1] == code)

  def lists(self, split: int, validation_share: float) -> dict[str, np.ndarray]:
    """Places of the stored videos in each list of a split, ascending; a list may be empty.

    The validation list is carved out of the official training list, see `validation_groups`.

    Args:
      split: official split, 1 and so on.
      validation_share: of the groups of the training list, 0 to below 1.

    Returns:
      Places for each of "train", "validation", "test" and "unused".

    Raises:
      ValueError: there is no such split.
    """
    training = self.select(split, listing.TRAIN)
    carved = self.validation_groups(training, validation_share)
    return {
      "train": training[~carved],
      "validation": training[carved],
      "test": self.select(split, listing.TEST),
      "unused": self.select(split, listing.UNUSED),
    }

  def validation_groups(self, places: np.ndarray, share: float) -> np.ndarray:
    """Which videos' groups belong to a validation list: a stable hash of the group's name.

    More videos or another split never move a group.

    Args:
      places: videos of a training list.
      share: of the groups, 0 to below 1.

    Returns:
      bool, shaped like `places`.
    """
    chosen = {group: _hash_fraction(group) < share for group in np.unique(self.groups[places])}
    return np.array([chosen[group] for group in self.groups[places]], bool)

  def read_stripe(self, place: int, frames: np.ndarray) -> bytes:
    """Reads frames of a video and lays them one below the other, see `jpeg_stripes`.

    For records on a local file system. Every frame is held against the checksum taken when it was
    written.

    Args:
      place: the video.
      frames: its frames, `[T]`.

    Returns:
      One JPEG.

    Raises:
      RecordsError: the record file is missing, or damaged.
    """
    parts = [self.headers[self.header[place]].stripe(len(frames))]
    after = jpeg_stripes.separators(len(frames))
    for scan, separator in zip(self._read_scans(place, frames), after, strict=True):
      parts += (scan, separator)
    return b"".join(parts)

  def read_frames(self, place: int, frames: np.ndarray) -> list[bytes]:
    """Reads frames of a video, each a JPEG of its own; otherwise as `read_stripe`."""
    header, end = self.headers[self.header[place]].data, jpeg_stripes.END
    return [header + scan + end for scan in self._read_scans(place, frames)]

  def _read_scans(self, place: int, frames: np.ndarray) -> list[bytes]:
    path = self.shards[self.shard[place]]
    rows = self.first_frame[place] + frames
    starts = (self.offset[place] + self.scan_at[rows]).tolist()
    sizes, checks = self.scan_bytes[rows].tolist(), self.scan_crc[rows].tolist()
    try:
      file = os.open(path, os.O_RDONLY)
      try:
        scans = [os.pread(file, size, start) for size, start in zip(sizes, starts, strict=True)]
      finally:
        os.close(file)
    except OSError as error:
      raise RecordsError(
        f"{path}: the stored record cannot be read ({error.strerror}). If it is gone, the same "
        "command makes it anew."
      ) from error
    if [google_crc32c.value(scan) for scan in scans] != checks:
      raise RecordsError(self.damaged(place))
    return scans

  def damaged(self, place: int) -> str:
    """The message for a video whose stored frames are not what was written."""
    return damaged(self.shards[self.shard[place]], f"the frames of {self.names[place]}")

  def stripe(self, place: tf.Tensor, frames: tf.Tensor) -> tf.Tensor:
    """What `read_stripe` gives, in TensorFlow's operations alone.

    For any file system TensorFlow knows and for processes that do not hold this index. The whole
    record is read, and its checksum verified.

    Args:
      place: a video, scalar.
      frames: its frames, `[T]` with T known.

    Returns:
      One JPEG, a string scalar.
    """
    count = frames.shape[0]
    path = tf.gather(tf.constant(self.shards), tf.gather(tf.constant(self.shard), place))
    start = tf.gather(tf.constant(self.offset), place) - HEADER_BYTES
    reader = tf.raw_ops.TFRecordDatasetV2(
      filenames=[path], compression_type="", buffer_size=0, byte_offsets=[start]
    )
    shape = {"output_types": [tf.string], "output_shapes": [()]}
    one = tf.raw_ops.TakeDataset(input_dataset=reader, count=1, **shape)
    record = tf.raw_ops.DatasetToSingleElement(dataset=one, **shape)[0]
    rows = tf.gather(tf.constant(self.first_frame), place) + frames
    starts = tf.unstack(tf.gather(tf.constant(self.scan_at), rows))
    sizes = tf.unstack(tf.gather(tf.constant(self.scan_bytes), rows))
    headers = tf.constant([header.stripe(count) for header in self.headers])
    parts = [tf.gather(headers, tf.gather(tf.constant(self.header), place))]
    for at, size, separator in zip(starts, sizes, jpeg_stripes.separators(count), strict=True):
      parts += [tf.strings.substr(record, at, size), tf.constant(separator)]
    return tf.strings.join(parts)


def damaged(place: str, what: str) -> str:
  """The message for a stored record whose checksum does not fit."""
  return (
    f"{place}: a stored record is damaged ({what}). Delete this file; the same command then decodes "
    "its videos anew."
  )


def _hash_fraction(name: str) -> float:
  """A name's place between 0 and 1, the same on every machine."""
  return (
    int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64
  )


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[str]:
  """A file that appears at once or not at all: gives the name to write it under till it is whole.

  Several processes may write one file at once, each under a name of its own.
  """
  part = f"{path}.{uuid.uuid4().hex}{PART}"
  try:
    yield part
    tf.io.gfile.rename(part, path, overwrite=True)
  except BaseException:
    # On a full disk, what is of no use takes no room.
    with contextlib.suppress(OSError, tf.errors.OpError):
      tf.io.gfile.remove(part)
    raise


class ShardIndex:
  """What is known of one record file's videos, collected while it is written.

  Kept beside the record file under its name and `.index.npz`; a record file without one is not
  whole. The columns are those of `Records`.
  """

  def __init__(self) -> None:
    """Starts empty."""
    self.columns: dict[str, list] = {name: [] for name in _VIDEO_COLUMNS + _FRAME_COLUMNS}
    self.headers: list[bytes] = []
    self.broken: dict[str, str] = {}
    self._bytes = 0

  def add(self, serialized: bytes, frames: Sequence[bytes], **known: Any) -> None:
    """Notes a video whose record is the next in the file.

    Args:
      serialized: the record's data.
      frames: the JPEG frames in it, in order.
      **known: the remaining video columns.

    Raises:
      RecordsError: a frame is not found in its record.
    """
    header = jpeg_stripes.parse(frames[0])
    if header.data not in self.headers:
      self.headers.append(header.data)
    at = 0
    for frame in frames:
      at = serialized.find(frame, at)
      if at < 0:
        raise RecordsError(f"{known['names']}: a frame is not found in its own record.")
      scan = jpeg_stripes.scan_of(frame, header)
      self.columns["scan_at"].append(at + len(header.data))
      self.columns["scan_bytes"].append(len(scan))
      self.columns["scan_crc"].append(google_crc32c.value(scan))
      at += len(frame)
    known["header"] = self.headers.index(header.data)
    known["num_frames"] = len(frames)
    known["height"], known["width"] = header.height, header.width
    known["offset"] = self._bytes + HEADER_BYTES
    known["length"] = len(serialized)
    for name in _VIDEO_COLUMNS:
      self.columns[name].append(known[name])
    self._bytes += HEADER_BYTES + len(serialized) + FOOTER_BYTES

  def write(self, path: str, digest: str) -> None:
    """Writes the index of a whole record file; it appears at once or not at all.

    Args:
      path: the record file.
      digest: of what the record file is to hold.
    """
    types = {"scan_at": np.int32, "scan_bytes": np.int32, "scan_crc": np.uint32, "fps": np.float64}
    integers = (
      "labels",
      "split_codes",
      "num_frames",
      "height",
      "width",
      "header",
      "offset",
      "length",
    )
    types |= dict.fromkeys(integers, np.int64)
    arrays = {
      name: np.array(values, types[name]) if name in types else np.array(values, np.str_)
      for name, values in self.columns.items()
    }
    arrays["header_bytes"] = np.frombuffer(b"".join(self.headers), np.uint8)
    arrays["header_bytes_lengths"] = np.array([len(header) for header in self.headers], np.int64)
    arrays["broken_names"] = np.array(list(self.broken), np.str_)
    arrays["broken_reasons"] = np.array(list(self.broken.values()), np.str_)
    arrays["about"] = np.array([str(INDEX_VERSION), digest, str(self._bytes)])
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    packed = buffer.getvalue()
    with whole_file(f"{path}.index.npz") as part, tf.io.gfile.GFile(part, "wb") as file:
      file.write(packed + google_crc32c.value(packed).to_bytes(_CHECK_BYTES))


def read_shard_index(path: str, digest: str) -> Mapping[str, np.ndarray] | None:
  """The index of a record file, or None if the file is not whole or is to hold something else."""
  if not tf.io.gfile.exists(path) or not tf.io.gfile.exists(f"{path}.index.npz"):
    return None
  with tf.io.gfile.GFile(f"{path}.index.npz", "rb") as file:
    data = file.read()
  packed, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
  if google_crc32c.value(packed).to_bytes(_CHECK_BYTES) != check:
    return None
  try:
    found = dict(np.load(io.BytesIO(packed), allow_pickle=False))
    about = found["about"].tolist()
  except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
    return None
  whole = about == [str(INDEX_VERSION), digest, str(tf.io.gfile.stat(path).length)]
  return found if whole else None


def merge(
  listed: listing.Listing,
  folder: str,
  shards: Mapping[str, Mapping[str, np.ndarray]],
  jpeg_quality: int,
) -> Records:
  """The index of a data set from those of its record files.

  Args:
    listed: what the data set lists.
    folder: where the records lie.
    shards: record file to its index, in order.
    jpeg_quality: of the stored frames.

  Raises:
    RecordsError: no video is stored.
  """
  columns: dict[str, list[np.ndarray]] = {name: [] for name in _VIDEO_COLUMNS + _FRAME_COLUMNS}
  headers: list[bytes] = []
  shard_of: list[np.ndarray] = []
  broken: dict[str, str] = {}
  for number, found in enumerate(shards.values()):
    broken |= dict(
      zip(found["broken_names"].tolist(), found["broken_reasons"].tolist(), strict=True)
    )
    count = len(found["names"])
    if not count:
      continue
    sizes = found["header_bytes_lengths"]
    ends = np.cumsum(sizes)
    own = [found["header_bytes"][e - n : e].tobytes() for e, n in zip(ends, sizes, strict=True)]
    headers += [data for data in own if data not in headers]
    renumbered = np.array([headers.index(data) for data in own], np.int64)
    for name in columns:
      columns[name].append(renumbered[found[name]] if name == "header" else found[name])
    shard_of.append(np.full(count, number, np.int64))
  if not shard_of:
    first = next(iter(broken.values()), "nothing is listed")
    raise RecordsError(f"{folder}: no video is stored; the first that failed: {first}")
  joined = {name: np.concatenate(values) for name, values in columns.items()}
  ends = np.cumsum(joined["num_frames"])
  return Records(
    dataset=listed.dataset,
    folder=folder,
    class_names=listed.class_names,
    shards=tuple(shards),
    shard=np.concatenate(shard_of),
    headers=tuple(jpeg_stripes.parse(data) for data in headers),
    first_frame=ends - joined["num_frames"],
    missing=tuple(video.name for video in listed.videos if video.path is None),
    broken=broken,
    unlisted=listed.unlisted,
    jpeg_quality=jpeg_quality,
    **joined,
  )


def is_local(path: str) -> bool:
  """Whether a path lies on a file system that Python reads."""
  return "://" not in path
