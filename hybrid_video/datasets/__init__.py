"""Video files to stored records: data sets' lists, the builder, and the index of records.

In: a folder of a known data set. Out: its `listing.Listing` (`read`), then records. Importing this
package registers the data sets with TensorFlow Datasets, where that is installed, and does not import
TensorFlow: only `records`, `builder`, `beam_build`, `service` and `service_client` do.
"""

from collections.abc import Callable
import dataclasses
import importlib.util
import os
import pathlib
from typing import TYPE_CHECKING, Any

from hybrid_video import errors
from hybrid_video.datasets import folder as own_folder
from hybrid_video.datasets import hmdb51, kinetics, listing, ucf101, unlabelled

if TYPE_CHECKING:
  from hybrid_video.experiment import Experiment

# What `--config.dataset` may name, and what reads its folder.
READERS: dict[str, Callable[..., listing.Listing]] = {
  "hmdb51": lambda folder: hmdb51.read(folder, official=True),
  "hmdb51_layout": lambda folder: hmdb51.read(folder, official=False),
  "made_actions": lambda folder: hmdb51.read(folder, official=False),
  "made_events": lambda folder: hmdb51.read(folder, official=False),
  "ucf101": lambda folder: ucf101.read(folder, official=True),
  "kinetics": kinetics.read,
  "folder": own_folder.read,
}
MADE = ("made_actions", "made_events")
_LISTED_BY_PATH = ("kinetics", "folder")


def check_name(dataset: str) -> None:
  """Checks that there is a data set of this name.

  Raises:
    ListingError: there is none; with the nearest names.
  """
  if dataset not in READERS:
    raise listing.ListingError(
      f"There is no data set {dataset!r}.{errors.nearest(dataset, READERS)} Known: "
      f"{', '.join(READERS)}."
    )


def read(
  dataset: str,
  folder: os.PathLike | str,
  *,
  test_share: float = 0.2,
  folds: int = 0,
  replace_prefix: str = "",
  needs_classes: bool = True,
  more_videos: os.PathLike | str = "",
) -> listing.Listing:
  """Reads the folder of a data set, whose archives are unpacked first.

  Args:
    dataset: one of `READERS`.
    folder: what `--config.data_dir` names.
    test_share: of the groups of a `folder`, the share for the test; other data sets have official
      lists.
    folds: of a `folder`, see its `read`.
    replace_prefix: of `kinetics` and `folder`: OLD=NEW, what listed paths begin with and what that is
      here.
    needs_classes: of a `folder`, see its `read`.
    more_videos: another folder, see `unlabelled.joined`; "" is none.

  Raises:
    ListingError: there is no such data set (the message has the nearest), it has no paths in its
      lists and a prefix is to be replaced, or its folder cannot be used.
  """
  check_name(dataset)
  if replace_prefix and dataset not in _LISTED_BY_PATH:
    raise listing.ListingError(
      f"--config.replace_prefix is {replace_prefix!r}, and the lists of {dataset} have no paths. Leave "
      f"it out; it is for {' and '.join(_LISTED_BY_PATH)}."
    )
  path = pathlib.Path(folder)
  if dataset not in MADE:
    # Its libraries are of no use to a process that only knows names.
    from hybrid_video.datasets import archives

    path = archives.unpacked(path)
  options: dict[str, Any] = {}
  if dataset == "folder":
    options = {"test_share": test_share, "folds": folds, "needs_classes": needs_classes}
  if dataset in _LISTED_BY_PATH:
    options["replace_prefix"] = replace_prefix
  listed = dataclasses.replace(READERS[dataset](path, **options), dataset=dataset)
  return unlabelled.joined(listed, pathlib.Path(more_videos)) if more_videos else listed


def read_for(
  experiment: "Experiment", folder: os.PathLike | str, more_videos: os.PathLike | str
) -> listing.Listing:
  """Reads the data set of an experiment from its folders, see `read`."""
  return read(
    experiment.dataset,
    folder,
    test_share=experiment.test_share,
    folds=experiment.folds,
    needs_classes=experiment.task != "pretraining",
    replace_prefix=experiment.replace_prefix,
    more_videos=more_videos,
  )


if importlib.util.find_spec("tensorflow_datasets"):
  # For `tfds.load("hmdb51", ...)`.
  from hybrid_video.datasets import tfds_builders as tfds_builders
