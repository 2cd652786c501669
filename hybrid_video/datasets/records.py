"""Stored records and what is known of each without decoding it: the index, and frames by their number.

In: a folder that `builder` has written. Out: `Records`, which lists the videos and reads any frames
of any video without those before them.

What lies in the folder: TFDS's record files and metadata, and beside each record file its
`ShardIndex`, written when the record file was whole.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import io
import os
from typing import Any
import zipfile

from etils import epath
import google_crc32c
import numpy as np
import tensorflow as tf

from hybrid_video import errors, files
from hybrid_video.decoding import jpeg_stripes

# A TFRecord is: length (8 bytes), its checksum (4), the data, its checksum (4).
HEADER_BYTES, FOOTER_BYTES = 12, 4
INDEX_VERSION = 4
# An index file ends in the CRC-32C of what stands before.
_CHECK_BYTES = 4
# By video: what a listing says of it, what decoding showed, where its record lies, and which file it
# was made of (`file_identity.Content`, and the digest of all of it).
_VIDEO_COLUMNS = (
  "names", "labels", "groups", "tags", "split_codes", "fps", "num_frames", "height", "width",
  "header", "offset", "length", "shown_height", "shown_width", "notes", "file_size", "file_modified",
  "file_ends", "file_digest",
)  # fmt: skip
# By frame: where its entropy-coded data lies within its record, its bytes, and their CRC-32C.
_FRAME_COLUMNS = ("scan_at", "scan_bytes", "scan_crc")
_COLUMN_TYPES = {
  **dict.fromkeys(("names", "groups", "tags", "notes", "file_ends", "file_digest"), np.str_),
  **dict.fromkeys(("shown_height", "shown_width", "file_size", "file_modified"), np.int64),
  **dict.fromkeys(("labels", "split_codes", "num_frames", "height", "width"), np.int64),
  **dict.fromkeys(("header", "offset", "length"), np.int64),
  **dict.fromkeys(("scan_at", "scan_bytes"), np.int32),
  "scan_crc": np.uint32,
  "fps": np.float64,
}  # fmt: skip


class RecordsError(errors.UserError):
  """Stored records that cannot be used; the message names them and says what to do."""


@dataclasses.dataclass(frozen=True)
class Records:
  """The index of a stored data set: one row a video, in the order of storage.

  Attributes:
    dataset: the data set's name.
    folder: of the records.
    class_names: names by class id.
    names: video names, `[V]`.
    groups: videos of one group share people and scenery, `[V]`.
    tags: what else is known of each video, as JSON objects, `[V]`.
    labels: class ids, int64 `[V]`.
    split_codes: int64 `[V, S]`: 1 train, 2 test, 3 validation, 0 unused.
    fps: frames a second, float64 `[V]`.
    num_frames: int64 `[V]`.
    height, width: pixels of a video's stored frames, int64 `[V]`.
    shown_height, shown_width: pixels that a video's file asks to be seen at, int64 `[V]`.
    notes: what was adapted in decoding, by kind, as JSON objects, `[V]`; see `video_reader.Video`.
    file_size, file_modified, file_ends: of the video file, see `file_identity.Content`, `[V]`.
    file_digest: of all bytes of the video file, `[V]`.
    shards: paths of the record files.
    shard: record file of each video, `[V]`.
    offset, length: first byte and bytes of a record's data, `[V]`.
    headers: the different JPEG headers of frames.
    header_ids: which of `headers` each video's frames have, int64 `[V]`.
    first_frame: where a video's frames begin in the frame columns, `[V]`.
    scan_at, scan_bytes, scan_crc: of every frame: where its entropy-coded data lies within its
      record, how many bytes, and their CRC-32C, `[F]`.
    missing: listed videos that have no file.
    broken: listed videos that could not be decoded, with the reason.
    unlisted: video files that no list names.
    jpeg_quality: 1 to 95.
    ignored: other files among the videos that are not used, each with what it is.
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
  shown_height: np.ndarray
  shown_width: np.ndarray
  notes: np.ndarray
  file_size: np.ndarray
  file_modified: np.ndarray
  file_ends: np.ndarray
  file_digest: np.ndarray
  shards: tuple[str, ...]
  shard: np.ndarray
  offset: np.ndarray
  length: np.ndarray
  headers: tuple[jpeg_stripes.Header, ...]
  header_ids: np.ndarray
  first_frame: np.ndarray
  scan_at: np.ndarray
  scan_bytes: np.ndarray
  scan_crc: np.ndarray
  missing: tuple[str, ...]
  broken: dict[str, str]
  unlisted: tuple[str, ...]
  jpeg_quality: int
  ignored: tuple[tuple[str, str], ...] = ()

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
    return np.array([header.rows for header in self.headers], np.int64)[self.header_ids]

  @property
  def record_bytes(self) -> int:
    """Bytes of all records."""
    return self.bytes_of(np.arange(len(self)))

  def bytes_of(self, video_ids: np.ndarray) -> int:
    """Bytes of the records of some videos `[N]`."""
    return int(np.sum(self.length[video_ids] + HEADER_BYTES + FOOTER_BYTES))

  def header(self, video_id: int) -> jpeg_stripes.Header:
    """The JPEG header that the frames of a video share."""
    return self.headers[self.header_ids[video_id]]

  def read_stripe(self, video_id: int, frames: np.ndarray) -> bytes:
    """Reads frames of a video and lays them one below the other, see `jpeg_stripes`.

    For records on a local file system. Every frame is checked against the checksum that was taken
    when it was written.

    Args:
      video_id: the video.
      frames: indices of its frames, `[T]`.

    Returns:
      One JPEG.

    Raises:
      RecordsError: the record file is missing, or damaged.
      JpegError: the stripe would be higher than JPEG allows.
    """
    return jpeg_stripes.join(self.header(video_id), self._read_scans(video_id, frames))

  def read_frames(self, video_id: int, frames: np.ndarray) -> list[bytes]:
    """Reads frames of a video, each a JPEG of its own; otherwise as `read_stripe`."""
    header, end = self.header(video_id).data, jpeg_stripes.END
    return [header + scan + end for scan in self._read_scans(video_id, frames)]

  def _read_scans(self, video_id: int, frames: np.ndarray) -> list[bytes]:
    path = self.shards[self.shard[video_id]]
    rows = self.first_frame[video_id] + frames
    starts = (self.offset[video_id] + self.scan_at[rows]).tolist()
    sizes, checks = self.scan_bytes[rows].tolist(), self.scan_crc[rows].tolist()
    try:
      file = os.open(path, os.O_RDONLY)
      try:
        scans = [os.pread(file, size, start) for size, start in zip(sizes, starts, strict=True)]
      finally:
        os.close(file)
    except OSError as error:
      raise RecordsError(_unreadable(path, error)) from error
    if [google_crc32c.value(scan) for scan in scans] != checks:
      raise RecordsError(self.damaged(video_id))
    return scans

  def read_record(self, video_id: int) -> bytes:
    """Reads all that is stored of a video: a serialized `tf.train.Example`, checksum verified.

    Raises:
      RecordsError: the record file is missing, or damaged.
    """
    path = self.shards[self.shard[video_id]]
    try:
      data = read_record(path, int(self.offset[video_id]), int(self.length[video_id]))
    except (OSError, tf.errors.OpError) as error:
      raise RecordsError(_unreadable(path, error)) from error
    if data is None:
      raise RecordsError(self.damaged(video_id))
    return data

  def damaged(self, video_id: int) -> str:
    """The message for a video whose stored frames are not what was written."""
    return damaged(self.shards[self.shard[video_id]], f"the frames of {self.names[video_id]}")

  def record(self, video_id: tf.Tensor) -> tf.Tensor:
    """What `read_record` gives, in TensorFlow's operations alone.

    For any file system TensorFlow knows and for processes that do not hold this index.

    Args:
      video_id: a video, scalar.

    Returns:
      A string scalar.
    """
    path = tf.gather(tf.constant(self.shards), tf.gather(tf.constant(self.shard), video_id))
    start = tf.gather(tf.constant(self.offset), video_id) - HEADER_BYTES
    reader = tf.raw_ops.TFRecordDatasetV2(
      filenames=[path], compression_type="", buffer_size=0, byte_offsets=[start]
    )
    shape = {"output_types": [tf.string], "output_shapes": [()]}
    one = tf.raw_ops.TakeDataset(input_dataset=reader, count=1, **shape)
    return tf.raw_ops.DatasetToSingleElement(dataset=one, **shape)[0]

  def stripe(self, video_id: tf.Tensor, frames: tf.Tensor) -> tf.Tensor:
    """What `read_stripe` gives, in TensorFlow's operations alone, see `record`.

    The whole record is read, and its checksum verified.

    Args:
      video_id: a video, scalar.
      frames: indices of its frames, `[T]` with T known.

    Returns:
      One JPEG, a string scalar.
    """
    count = frames.shape[0]
    record = self.record(video_id)
    rows = tf.gather(tf.constant(self.first_frame), video_id) + frames
    starts = tf.unstack(tf.gather(tf.constant(self.scan_at), rows))
    sizes = tf.unstack(tf.gather(tf.constant(self.scan_bytes), rows))
    headers = tf.constant([header.stripe(count) for header in self.headers])
    pieces = [tf.gather(headers, tf.gather(tf.constant(self.header_ids), video_id))]
    for at, size, separator in zip(starts, sizes, jpeg_stripes.separators(count), strict=True):
      pieces += [tf.strings.substr(record, at, size), tf.constant(separator)]
    return tf.strings.join(pieces)


def read_record(path: str, offset: int, length: int) -> bytes | None:
  """The data of a record; None where its checksum does not fit.

  Args:
    path: the record file.
    offset, length: as in `Records`.

  Raises:
    OSError, tf.errors.OpError: the file cannot be read.
  """
  with epath.Path(path).open("rb") as file:
    file.seek(offset)
    data = file.read(length + FOOTER_BYTES)
  return data[:length] if data[length:] == _masked_crc(data[:length]) else None


def damaged(path: str, what: str) -> str:
  """The message for a stored record whose checksum does not fit."""
  return (
    f"{path}: a stored record is damaged ({what}). Delete this file; the same command then decodes "
    "its videos again."
  )


def _unreadable(path: str, error: Exception) -> str:
  reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
  return (
    f"{path}: the stored record cannot be read ({reason}). If the file is gone, the same command "
    "stores it again."
  )


def _masked_crc(data: bytes) -> bytes:
  # Source: "TFRecords format details" of TensorFlow's guide to TFRecord.
  crc = google_crc32c.value(data)
  return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(FOOTER_BYTES, "little")


class ShardIndex:
  """What is known of one record file's videos, collected while it is written.

  It lies beside the record file under its name and `.index.npz`; a record file without one is not
  whole. The columns are those of `Records`.
  """

  def __init__(self) -> None:
    """Starts empty."""
    self.columns: dict[str, list] = {name: [] for name in _VIDEO_COLUMNS + _FRAME_COLUMNS}
    self.headers: list[bytes] = []
    self.broken: dict[str, str] = {}
    self._bytes = 0

  def add(self, serialized: bytes, frames: Sequence[bytes], **known: Any) -> None:
    """Adds a video whose record is the next in the file.

    Args:
      serialized: the record's data.
      frames: the JPEG frames in it, in order.
      **known: the remaining video columns.

    Raises:
      RecordsError: a frame is not in its record.
    """
    header = jpeg_stripes.parse(frames[0])
    if header.data not in self.headers:
      self.headers.append(header.data)
    at = 0
    for frame in frames:
      at = serialized.find(frame, at)
      if at < 0:
        raise RecordsError(f"{known['names']}: a frame is missing in its own record.")
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
    arrays = {name: np.array(values, _COLUMN_TYPES[name]) for name, values in self.columns.items()}
    arrays["header_bytes"] = np.frombuffer(b"".join(self.headers), np.uint8)
    arrays["header_bytes_lengths"] = np.array([len(header) for header in self.headers], np.int64)
    arrays["broken_names"] = np.array(list(self.broken), np.str_)
    arrays["broken_reasons"] = np.array(list(self.broken.values()), np.str_)
    arrays["about"] = np.array([str(INDEX_VERSION), digest, str(self._bytes)])
    write_shard_index(path, arrays)


def index_path(path: str) -> str:
  """Where the index of a record file lies."""
  return f"{path}.index.npz"


def write_shard_index(path: str, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a record file's index, whole or not at all.

  Args:
    path: the record file.
    arrays: as `read_shard_index` gives them.
  """
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)  # type: ignore[arg-type]
  packed = buffer.getvalue()
  with files.whole_file(index_path(path)) as part:
    part.write_bytes(packed + google_crc32c.value(packed).to_bytes(_CHECK_BYTES))


def read_shard_index(path: str, digest: str | None = None) -> Mapping[str, np.ndarray] | None:
  """The index of a record file, or None if the file is not whole or is to hold something else.

  Args:
    path: the record file.
    digest: of what it is to hold; None takes whatever it holds.
  """
  record_file, index_file = epath.Path(path), epath.Path(index_path(path))
  if not record_file.exists() or not index_file.exists():
    return None
  data = index_file.read_bytes()
  packed, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
  if google_crc32c.value(packed).to_bytes(_CHECK_BYTES) != check:
    return None
  try:
    index = dict(np.load(io.BytesIO(packed), allow_pickle=False))
    version, stored_digest, size = index["about"].tolist()
  except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
    return None
  whole = (version, size) == (str(INDEX_VERSION), str(files.size(record_file)))
  return index if whole and digest in (None, stored_digest) else None


def merge(
  shards: Mapping[str, Mapping[str, np.ndarray]],
  *,
  dataset: str,
  folder: str,
  class_names: Sequence[str],
  missing: Sequence[str],
  unlisted: Sequence[str],
  jpeg_quality: int,
  ignored: Iterable[Sequence[str]] = (),
) -> Records:
  """The index of a data set from those of its record files.

  Args:
    shards: record file to its index, in order.
    dataset, folder, class_names, missing, unlisted, jpeg_quality, ignored: see `Records`.

  Raises:
    RecordsError: no video is stored.
  """
  columns: dict[str, list[np.ndarray]] = {name: [] for name in _VIDEO_COLUMNS + _FRAME_COLUMNS}
  headers: list[bytes] = []
  shard_of: list[np.ndarray] = []
  broken: dict[str, str] = {}
  for number, index in enumerate(shards.values()):
    names, reasons = index["broken_names"].tolist(), index["broken_reasons"].tolist()
    broken |= dict(zip(names, reasons, strict=True))
    count = len(index["names"])
    if not count:
      continue
    own = _headers_of(index)
    headers += [data for data in own if data not in headers]
    renumbered = np.array([headers.index(data) for data in own], np.int64)
    for name in columns:
      columns[name].append(renumbered[index[name]] if name == "header" else index[name])
    shard_of.append(np.full(count, number, np.int64))
  if not shard_of:
    first = next(iter(broken.values()), "nothing is listed")
    raise RecordsError(f"{folder}: no video is stored; the first that failed: {first}")
  joined = {name: np.concatenate(values) for name, values in columns.items()}
  return Records(
    dataset=dataset,
    folder=folder,
    class_names=tuple(class_names),
    shards=tuple(shards),
    shard=np.concatenate(shard_of),
    headers=tuple(jpeg_stripes.parse(data) for data in headers),
    header_ids=joined.pop("header"),
    first_frame=np.cumsum(joined["num_frames"]) - joined["num_frames"],
    missing=tuple(missing),
    broken=broken,
    unlisted=tuple(unlisted),
    jpeg_quality=jpeg_quality,
    ignored=tuple((name, reason) for name, reason in ignored),
    **joined,
  )


def _headers_of(index: Mapping[str, np.ndarray]) -> list[bytes]:
  """The different JPEG headers of a record file's frames."""
  sizes = index["header_bytes_lengths"].tolist()
  ends = np.cumsum(sizes).tolist()
  data = index["header_bytes"].tobytes()
  return [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def is_local(path: str) -> bool:
  """Whether a path lies on a file system that Python reads."""
  return "://" not in path
