"""The splits of stored records as TFDS has them: the whole set, and its official lists.

In: the index of records. Out: what TFDS asks of splits (names, sizes, slices, sums of them), and for
each the ids of its videos.
"""

import dataclasses
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import splits as tfds_splits
from tensorflow_datasets.core.utils import shard_utils

from hybrid_video.datasets import splits

if TYPE_CHECKING:
  # It imports TensorFlow.
  from hybrid_video.datasets.records import Records

# The one stored split: every video once. ("all" is a reserved word of TFDS.)
WHOLE = "videos"
_LISTS = {
  "train": splits.TRAIN,
  "validation": splits.VALIDATION,
  "test": splits.TEST,
  "unused": splits.UNUSED,
}


@dataclasses.dataclass(eq=False, frozen=True, repr=False)
class VideoListInfo(tfds.core.SplitInfo):
  """A selection of the stored videos.

  Attributes:
    instructions: where in the record files its videos lie.
  """

  instructions: tuple[shard_utils.FileInstruction, ...] = ()

  @property
  def file_instructions(self) -> list[shard_utils.FileInstruction]:
    """Runs of consecutive records of the record files."""
    return list(self.instructions)


class OfficialLists(tfds.core.SplitDict):
  """Names of splits to what TFDS knows of them, and to their videos."""

  def __init__(self, records: "Records"):
    """Lists the splits of some records."""
    self._records = records
    first = np.searchsorted(records.shard, np.arange(len(records.shards)))
    # Of each video: which record of its record file it is.
    self._within_shard = np.arange(len(records)) - first[records.shard]
    self._video_ids = {WHOLE: np.arange(len(records))}
    for split in range(1, records.num_splits + 1):
      for name, code in _LISTS.items():
        video_ids = splits.with_code(records, split, code)
        # Few data sets have a validation list; the other three are always there, maybe empty.
        if code != splits.VALIDATION or len(video_ids):
          self._video_ids[f"split{split}_{name}"] = video_ids
    self._template = tfds.core.ShardedFileTemplate(
      data_dir=records.folder,
      template=f"{{DATASET}}-{WHOLE}.{{FILEFORMAT}}-{{SHARD_X_OF_Y}}",
      dataset_name=records.dataset,
      filetype_suffix="tfrecord",
    )
    super().__init__([self._describe(name, ids) for name, ids in self._video_ids.items()])

  def __getitem__(self, key: Any) -> tfds.core.SplitInfo:
    if str(key) in self:
      return super().__getitem__(str(key))
    return tfds_splits.SubSplitInfo(key, self._instructions(self.video_ids(key)))

  def video_ids(self, split: Any) -> np.ndarray:
    """The videos of a split, int64 `[N]`, in the order that it names.

    Args:
      split: a name, slices and sums of names, or any of TFDS's split objects.

    Raises:
      ValueError: there is no such split.
    """
    if isinstance(split, str):
      # To TFDS, "all" is the sum of all splits, and here lists repeat videos.
      split = re.sub(r"(^|\+)\s*all\s*(?=\+|$)", rf"\g<1>{WHOLE}", split)
    instructions = tfds_splits.AbstractSplit.from_spec(split).to_absolute(self)
    chosen = [self._video_ids[one.splitname][one.from_ : one.to] for one in instructions]
    return np.concatenate(chosen).astype(np.int64)

  @property
  def example_names(self) -> list[str]:
    """TFDS's ids of the videos: the record file and the record's number in it."""
    names = [os.path.basename(path) for path in self._records.shards]
    where = zip(self._records.shard.tolist(), self._within_shard.tolist(), strict=True)
    return [f"{names[shard]}__{within}" for shard, within in where]

  def _describe(self, name: str, video_ids: np.ndarray) -> VideoListInfo:
    records = self._records
    return VideoListInfo(
      name,
      np.bincount(records.shard[video_ids], minlength=len(records.shards)).tolist(),
      records.bytes_of(video_ids),
      self._template.replace(split=name),
      instructions=tuple(self._instructions(video_ids)),
    )

  def _instructions(self, video_ids: np.ndarray) -> list[shard_utils.FileInstruction]:
    shard = self._records.shard[video_ids]
    joined = (np.diff(video_ids) == 1) & (np.diff(shard) == 0)
    lengths = np.bincount(self._records.shard, minlength=len(self._records.shards)).tolist()
    return [
      shard_utils.FileInstruction(
        filename=self._records.shards[shard[run[0]]],
        skip=int(self._within_shard[video_ids[run[0]]]),
        take=len(run),
        examples_in_shard=lengths[shard[run[0]]],
      )
      for run in np.split(np.arange(len(video_ids)), np.flatnonzero(~joined) + 1)
      if len(run)
    ]
