"""Stored records and what is known of each without decoding it: the index.

In: a prepared TFDS builder. Out: `Records`, which lists the videos, selects the official lists,
and fetches any record by its place without reading those before it.
"""

import dataclasses
import io
import os
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

# The one TFDS split: every video once. ("all" is a reserved word there.)
SPLIT = "videos"
# A TFRecord is: length (8 bytes), its checksum (4), the data, its checksum (4).
_HEADER_BYTES, _FOOTER_BYTES = 12, 4
_INDEX_VERSION = 1
# What is read of a record, as TFDS writes it. Parsed here and not by the builder's own features,
# which walk over the frames one by one even where none of them is to be decoded.
_FEATURES = {
  "name": tf.io.FixedLenFeature((), tf.string),
  "film": tf.io.FixedLenFeature((), tf.string),
  "label": tf.io.FixedLenFeature((), tf.int64),
  "split_codes": tf.io.FixedLenFeature((3,), tf.int64),
  "fps": tf.io.FixedLenFeature((), tf.float32),
  "num_frames": tf.io.FixedLenFeature((), tf.int64),
  "video": tf.io.FixedLenSequenceFeature((), tf.string, allow_missing=True),
}


class RecordsError(ValueError):
  """Stored records that cannot serve; the message names them and says what to do."""


@dataclasses.dataclass(frozen=True)
class Records:
  """The index of a stored data set: one row a video, in the order of storage.

  Attributes:
    class_names: names by class id.
    names: file names, `[V]`.
    films: groups that share people and scenery, `[V]`.
    labels: class ids, int64 `[V]`.
    split_codes: int64 `[V, 3]`: 1 train, 2 test, 0 unused.
    fps: frames a second, float32 `[V]`.
    num_frames: int64 `[V]`.
    shards: paths of the record files, with the bytes each has.
    shard, offset, length: where a record lies: file number, first byte and bytes of its data.
    frame_size: height and width of the stored frames, in pixels.
    missing: listed videos that have no file.
    broken: listed videos that could not be decoded, with the reason.
  """

  class_names: tuple[str, ...]
  names: np.ndarray
  films: np.ndarray
  labels: np.ndarray
  split_codes: np.ndarray
  fps: np.ndarray
  num_frames: np.ndarray
  shards: dict[str, int]
  shard: np.ndarray
  offset: np.ndarray
  length: np.ndarray
  frame_size: tuple[int, int]
  missing: tuple[str, ...]
  broken: dict[str, str]

  def __len__(self) -> int:
    return len(self.names)

  def select(self, split: int, code: int) -> np.ndarray:
    """Places of the videos that have `code` in the official split 1, 2 or 3, in order."""
    splits = self.split_codes.shape[1]
    if not 1 <= split <= splits:
      raise ValueError(f"There is no split {split}: the official splits are 1 to {splits}.")
    return np.flatnonzero(self.split_codes[:, split - 1] == code)

  def fetch(self, place: tf.Tensor) -> dict[str, Any]:
    """Reads and parses one record, frames left as JPEG; for use inside `tf.data`.

    Args:
      place: scalar integer, the video's row in this index.

    Returns:
      The features by name; `video` is a string tensor `[num_frames]`.
    """
    paths = tf.constant(list(self.shards))
    sizes = tf.constant(list(self.shards.values()), tf.int64)
    shard = tf.gather(tf.constant(self.shard), place)
    offset = tf.gather(tf.constant(self.offset), place)
    length = tf.gather(tf.constant(self.length), place)
    # A file of fixed-length records with a header and a footer: its one record is ours, and only
    # its bytes are read. Works on every file system TensorFlow knows.
    one = tf.data.FixedLengthRecordDataset(
      tf.gather(paths, shard),
      record_bytes=length,
      header_bytes=offset,
      footer_bytes=tf.gather(sizes, shard) - offset - length,
      buffer_size=length,
    )
    serialized = one.get_single_element()
    return tf.io.parse_single_example(serialized, _FEATURES)


def _scan(builder: tfds.core.DatasetBuilder, paths: list[str]) -> dict[str, np.ndarray]:
  columns: dict[str, list] = {}
  wanted = [name for name in _FEATURES if name != "video"]
  for shard, path in enumerate(paths):
    offset = 0
    for record in tf.data.TFRecordDataset(path):
      example = tf.io.parse_single_example(record, _FEATURES)
      length = len(record.numpy())
      row = {name: example[name].numpy() for name in wanted}
      row |= {"shard": shard, "offset": offset + _HEADER_BYTES, "length": length}
      row["name"], row["film"] = row["name"].decode(), row["film"].decode()
      for name, value in row.items():
        columns.setdefault(name, []).append(value)
      offset += _HEADER_BYTES + length + _FOOTER_BYTES
  return {name: np.array(values) for name, values in columns.items()}


def index(builder: tfds.core.DatasetBuilder) -> Records:
  """Lists what a prepared builder has stored.

  The first call reads every record once, checksums included, and keeps the result beside them.

  Raises:
    RecordsError: nothing is stored, or a record file is damaged.
  """
  paths = sorted(str(path) for path in builder.info.splits[SPLIT].filepaths)
  shards = {path: tf.io.gfile.stat(path).length for path in paths}
  kept = os.path.join(str(builder.data_dir), "index.npz")
  columns = None
  fingerprint = np.array([_INDEX_VERSION, *shards.values()], np.int64)
  if tf.io.gfile.exists(kept):
    with tf.io.gfile.GFile(kept, "rb") as file:
      found = np.load(io.BytesIO(file.read()), allow_pickle=False)
      if np.array_equal(found["fingerprint"], fingerprint):
        columns = dict(found)
  if columns is None:
    try:
      columns = _scan(builder, paths)
    except tf.errors.DataLossError as error:
      raise RecordsError(
        f"{builder.data_dir}: a stored record is damaged ({error.message}). Delete this folder; "
        "the next run builds it anew."
      ) from error
    if not columns:
      raise RecordsError(
        f"{builder.data_dir}: no video is stored. Delete this folder and look at data_dir."
      )
    part = f"{kept}.part"
    packed = io.BytesIO()
    np.savez(packed, **{"fingerprint": fingerprint, **columns})  # type: ignore[arg-type]
    with tf.io.gfile.GFile(part, "wb") as file:
      file.write(packed.getvalue())
    tf.io.gfile.rename(part, kept, overwrite=True)
  metadata = builder.info.metadata or {}
  return Records(
    class_names=tuple(builder.info.features["label"].names),
    names=columns["name"],
    films=columns["film"],
    labels=columns["label"],
    split_codes=columns["split_codes"],
    fps=columns["fps"],
    num_frames=columns["num_frames"],
    shards=shards,
    shard=columns["shard"],
    offset=columns["offset"],
    length=columns["length"],
    frame_size=builder.info.features["video"].shape[1:3],
    missing=tuple(metadata.get("missing", ())),
    broken=dict(metadata.get("broken", {})),
  )
