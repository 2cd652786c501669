"""Videos whose frames are stored already, in records of an earlier build: what need not be decoded.

In: the folders of a data set's records at one scale. Out: stored videos by the content of their files,
whatever they are called and wherever they are listed now.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import os
import pathlib

from etils import epath
import numpy as np
import tensorflow as tf

from hybrid_video.datasets import records as stored
from hybrid_video.datasets.file_identity import Content
from hybrid_video.decoding.storing import StoredVideo, file_digest

_COLUMNS = (
  *("names", "offset", "length", "fps", "height", "width", "shown_height", "shown_width", "notes"),
  *("file_size", "file_modified", "file_ends", "file_digest"),
)
_INDEX_ENDING = stored.index_path("")
_ERRORS = (OSError, tf.errors.OpError)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a video's frames are stored.

  Attributes:
    path: of the record file.
    index: of the record file.
    row: of the video.
  """

  path: str
  index: Mapping[str, np.ndarray]
  row: int

  @property
  def modified(self) -> int:
    """When the video's file was written, in nanoseconds."""
    return int(self.index["file_modified"][self.row])

  @property
  def file_digest(self) -> str:
    """Of all bytes of the video's file."""
    return str(self.index["file_digest"][self.row])

  def read(self) -> StoredVideo | None:
    """The stored video; None where its record is gone or damaged."""
    columns, row = self.index, self.row
    try:
      data = stored.read_record(self.path, int(columns["offset"][row]), int(columns["length"][row]))
    except _ERRORS:
      return None
    if data is None:
      return None
    features = tf.train.Example.FromString(data).features.feature
    # A record file may have been written anew since its index was read.
    if features["name"].bytes_list.value[:] != [str(columns["names"][row]).encode()]:
      return None
    return StoredVideo(
      list(features["video"].bytes_list.value),
      float(columns["fps"][row]),
      int(columns["height"][row]),
      int(columns["width"][row]),
      (int(columns["shown_height"][row]), int(columns["shown_width"][row])),
      json.loads(str(columns["notes"][row])),
      self.file_digest,
    )


class StoredBefore:
  """Finds stored videos by the content of their files."""

  def __init__(self, folders: Iterable[str]):
    """Reads the indices of all whole record files in some folders."""
    self._places: dict[tuple[int, str], list[Place]] = {}
    for folder in folders:
      if not epath.Path(folder).exists():
        continue
      for name in sorted(path.name for path in epath.Path(folder).iterdir()):
        if name.endswith(_INDEX_ENDING):
          record_file = os.path.join(folder, name.removesuffix(_INDEX_ENDING))
          index = stored.read_shard_index(record_file)
          if index is not None:
            self._add(record_file, index)

  def _add(self, path: str, index: Mapping[str, np.ndarray]) -> None:
    # Without the columns of frames, which are most of it.
    index = {name: index[name] for name in _COLUMNS}
    sizes, ends = index["file_size"].tolist(), index["file_ends"].tolist()
    for row, key in enumerate(zip(sizes, ends, strict=True)):
      self._places.setdefault(key, []).append(Place(path, index, row))

  def find(self, path: pathlib.Path, content: Content) -> Place | None:
    """Where the video of a file is stored, if all of its bytes are known to be the same.

    A file that was written at another time than the one that was stored is read to the end.
    """
    places = self._places.get((content.size, content.digest), [])
    for place in places:
      if place.modified == content.modified:
        return place
    if not places:
      return None
    try:
      digest = file_digest(path)
    except OSError:
      return None
    return next((place for place in places if place.file_digest == digest), None)
