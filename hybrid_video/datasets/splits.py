"""The lists of a split (train, validation, test, unused), and every check on them.

In: for each video its class, its group and its codes in the official splits. Out: the video ids of
each list. The only place that assigns groups to lists by hash.
"""

from collections.abc import Iterable
import hashlib
import pathlib
from typing import Protocol

import numpy as np

from hybrid_video import errors
from hybrid_video.datasets import listing

# A video's code in an official split.
UNUSED, TRAIN, TEST, VALIDATION = 0, 1, 2, 3
# What users call the lists, in their own folders and columns.
LIST_CODES = {
  **dict.fromkeys(("train", "training"), TRAIN),
  **dict.fromkeys(("val", "valid", "validate", "validation"), VALIDATION),
  **dict.fromkeys(("test", "testing"), TEST),
}
LISTS = ("train", "validation", "test")


class SplitError(listing.ListingError):
  """A list of a split that cannot be used; the message says why and what to do."""


class RecordsLike(Protocol):
  """What the lists need to know of stored videos, one row a video; such as `records.Records`."""

  @property
  def dataset(self) -> str:
    """The data set's name."""

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names by class id."""

  @property
  def labels(self) -> np.ndarray:
    """Class ids, int64 `[V]`."""

  @property
  def groups(self) -> np.ndarray:
    """Group names, `[V]`."""

  @property
  def split_codes(self) -> np.ndarray:
    """`TRAIN`, `TEST`, `VALIDATION` or `UNUSED` in each official split, int64 `[V, S]`."""

  def __len__(self) -> int: ...


def group_fraction(name: str) -> float:
  """A group's place between 0 and 1 by the hash of its name: the same on every machine.

  Groups below a share form a list. So a larger share keeps the groups of a smaller one, and adding
  or removing videos never moves a group.
  """
  digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
  return int.from_bytes(digest[:8]) / 2**64


def with_code(records: RecordsLike, split: int, code: int) -> np.ndarray:
  """Ids of the videos that have a code in an official split.

  Args:
    records: the stored videos.
    split: 1 and so on.
    code: `TRAIN`, `TEST`, `VALIDATION` or `UNUSED`.

  Returns:
    Video ids, int64 `[N]`, ascending.

  Raises:
    SplitError: there is no such split.
  """
  num_splits = records.split_codes.shape[1]
  if not 1 <= split <= num_splits:
    known = f"are 1 to {num_splits}" if num_splits > 1 else "is 1 alone"
    raise SplitError(
      f"There is no split {split}: what {records.dataset} has {known}. Set --config.split."
    )
  return np.flatnonzero(records.split_codes[:, split - 1] == code)


def in_validation(groups: np.ndarray, share: float) -> np.ndarray:
  """Which videos of a training list belong to its validation list: whole groups, by their hash.

  Args:
    groups: the group of each video, `[N]`.
    share: of the groups, 0 to below 1.

  Returns:
    bool `[N]`.
  """
  # Not the hash that draws a folder's test list, which has taken the lowest groups already.
  held_out = {
    group: group_fraction(f"validation {group}") < share for group in np.unique(groups).tolist()
  }
  return np.array([held_out[group] for group in groups.tolist()], bool)


def in_training(groups: np.ndarray, share: float) -> np.ndarray:
  """Which videos of a training list are trained on: a share of whole groups, by their hash.

  Args:
    groups: the group of each video, `[N]`.
    share: of the groups, above 0 to 1.

  Returns:
    bool `[N]`.
  """
  # A hash of its own, as every other one has taken a part of the list already.
  taken = {
    group: group_fraction(f"training {group}") < share for group in np.unique(groups).tolist()
  }
  return np.array([taken[group] for group in groups.tolist()], bool)


def list_indices(
  records: RecordsLike, split: int, validation_share: float, training_share: float = 1.0
) -> dict[str, np.ndarray]:
  """Ids of the stored videos in each list of a split; a list may be empty.

  The validation list is the split's own, or is taken out of the official training list, see
  `in_validation`.

  Args:
    records: the stored videos.
    split: official split, 1 and so on.
    validation_share: of the groups of the training list, 0 to below 1.
    training_share: of its other groups; the rest is unused.

  Returns:
    Video ids, int64 `[N]`, ascending, for each of "train", "validation", "test" and "unused".

  Raises:
    SplitError: there is no such split, or it has a validation list and a share is asked for.
  """
  training = with_code(records, split, TRAIN)
  own = with_code(records, split, VALIDATION)
  if len(own) and validation_share:
    raise SplitError(
      f"Split {split} has a validation list of its own, of {len(own)} videos. Set "
      "--config.validation_share=0 to use it."
    )
  held_out = in_validation(records.groups[training], validation_share)
  remaining = training[~held_out]
  taken = in_training(records.groups[remaining], training_share)
  unused = np.concatenate([with_code(records, split, UNUSED), remaining[~taken]])
  return {
    "train": remaining[taken],
    "validation": own if len(own) else training[held_out],
    "test": with_code(records, split, TEST),
    "unused": np.sort(unused),
  }


def has_validation(records: RecordsLike, split: int, validation_share: float) -> bool:
  """Whether there is to be a validation list: the split's own, or a share of the training list.

  Raises:
    SplitError: there is no such split.
  """
  return validation_share > 0 or len(with_code(records, split, VALIDATION)) > 0


def select(
  records: RecordsLike,
  split: int,
  which: str,
  validation_share: float = 0.0,
  training_share: float = 1.0,
) -> np.ndarray:
  """Ids of the videos of one list, which is not empty.

  Args:
    records: the stored videos.
    split: official split, 1 and so on.
    which: "train", "validation" or "test".
    validation_share: of the groups of the official training list, 0 to below 1.
    training_share: of its other groups, those that are trained on.

  Returns:
    Video ids, int64 `[N]`, ascending.

  Raises:
    SplitError: there is no such list or split, the share is out of range or asked for beside a
      validation list, the list has no video, or a share leaves no training video of a class.
  """
  if which not in LISTS:
    raise SplitError(
      f"There is no list {which!r}: take one of {', '.join(LISTS)}.{errors.nearest(which, LISTS)}"
    )
  if not 0 <= validation_share < 1:
    raise SplitError(
      f"--config.validation_share is {validation_share}: expected 0 or more and less than 1."
    )
  if not 0 < training_share <= 1:
    raise SplitError(
      f"--config.training_share is {training_share}: expected above 0 and no more than 1."
    )
  lists = list_indices(records, split, validation_share)
  if which != "test" and validation_share:
    held_out, trained = (set(records.labels[lists[of]].tolist()) for of in ("validation", "train"))
    if untrained := held_out - trained:
      raise SplitError(
        f"A validation share of {validation_share:g} takes every training video of these classes: "
        f"{_class_names(records, untrained)}. Lower --config.validation_share."
      )
  if which == "train" and training_share < 1:
    of_all = set(records.labels[lists["train"]].tolist())
    lists = list_indices(records, split, validation_share, training_share)
    if untrained := of_all - set(records.labels[lists["train"]].tolist()):
      raise SplitError(
        f"A training share of {training_share:g} leaves no training video of these classes: "
        f"{_class_names(records, untrained)}. Raise --config.training_share."
      )
  if not len(lists[which]):
    raise SplitError(
      f"The {which} list of split {split} has no video among the {len(records)} that are stored. "
      "Choose another --config.split, or complete the data folder."
    )
  return lists[which]


def check_training_classes(records: RecordsLike, split: int) -> None:
  """Checks that every stored class which a split tests or validates is trained in it.

  Raises:
    SplitError: with the names of the classes that are not.
  """
  tested, validated, trained = (
    set(records.labels[with_code(records, split, code)].tolist())
    for code in (TEST, VALIDATION, TRAIN)
  )
  if untrained := (tested | validated) - trained:
    what = "test" if tested - trained else "validation"
    raise SplitError(
      f"Split {split} has {what} videos and no training video of these classes: "
      f"{_class_names(records, untrained)}. Complete the data folder, or set "
      "--config.allow_missing=True."
    )


def _class_names(records: RecordsLike, class_ids: Iterable[int]) -> str:
  return errors.shown(records.class_names[i] for i in sorted(class_ids))


def check_training(videos: Iterable[listing.Video], folder: pathlib.Path, advice: str) -> None:
  """Checks that every listed class which a split tests or validates is trained in it.

  Args:
    videos: with the codes of the same splits each.
    folder: where their lists were read, for messages.
    advice: what the user can do.

  Raises:
    SplitError: in some split a class has test or validation videos but none for training.
  """
  codes: dict[tuple[int, str], set[int]] = {}
  for video in videos:
    for split, code in enumerate(video.codes):
      codes.setdefault((split, video.label), set()).add(code)
  for code, what in ((TEST, "test"), (VALIDATION, "validation")):
    untrained = {label for (_, label), of in codes.items() if code in of and TRAIN not in of}
    if untrained:
      raise SplitError(
        f"{folder}: these classes have {what} videos but none for training: "
        f"{errors.shown(sorted(untrained))}. {advice}"
      )
