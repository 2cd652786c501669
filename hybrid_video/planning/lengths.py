"""How many classes there are and videos to train on, without reading a video.

In: an experiment, and what the flags say. Out: a `Length`, with where it is from. The lists of an own
folder or of Kinetics are read where they are; HMDB51's and UCF101's official lists are known.
"""

import dataclasses
import os
import pathlib

import numpy as np

from hybrid_video import datasets, errors, paths
from hybrid_video.datasets import made_actions, made_events, made_videos, splits
from hybrid_video.experiment import Experiment

# Classes, and training videos of each official split. Sources: the official lists; for Kinetics-400
# Kay et al. 2017 (arXiv:1705.06950), whose list has lost videos since.
_KNOWN: dict[str, tuple[int, tuple[int, ...]]] = {
  "hmdb51": (51, (3570, 3570, 3570)),
  "ucf101": (101, (9537, 9586, 9624)),
  "kinetics": (400, (240_000,)),
}


class LengthError(errors.UserError):
  """A number of classes that cannot be known."""


@dataclasses.dataclass(frozen=True)
class Length:
  """What a plan needs to know of the data.

  Attributes:
    classes: how many.
    videos: to train on; None where nobody knows.
    source: where the numbers are from, in words.
  """

  classes: int
  videos: int | None
  source: str


def find(
  experiment: Experiment,
  classes: int | None,
  videos: int | None,
  workdir: os.PathLike | str | None = None,
) -> Length:
  """The length of an experiment's data.

  Args:
    experiment: which data set, where, and which lists.
    classes, videos: what the flags say, which goes before anything else.
    workdir: what "{workdir}" stands for in the folder of the data.

  Raises:
    LengthError: nothing says how many classes there are.
    UserError: a folder whose lists cannot be used.
  """
  if classes is not None and videos is not None:
    return Length(classes, videos, "the flags")
  found = _listed(experiment, workdir) or _known(experiment)
  if found is None and classes is None:
    raise LengthError(
      f"How many classes {experiment.dataset} has is not known without its lists. Set --classes=N, "
      "and --training_videos=N for the number of steps; or --config.data_dir to its folder."
    )
  if found is None:
    return Length(classes or 0, videos, "the flags")
  given = [f"--{name}" for name, of in (("classes", classes), ("training_videos", videos)) if of]
  source = " and ".join([*given, found.source])
  return Length(classes or found.classes, videos or found.videos, source)


def _known(experiment: Experiment) -> Length | None:
  dataset, share = experiment.dataset, experiment.validation_share
  if dataset in datasets.MADE:
    films = experiment.made_films - made_videos.test_films(experiment.made_films)
    of_made = made_actions.ACTIONS if dataset == "made_actions" else made_events.CLASSES
    count = len(of_made)
    of_splits: tuple[int, ...] = (films * count,)
    source = "made_films"
  elif dataset in _KNOWN:
    count, of_splits = _KNOWN[dataset]
    source = "Kinetics-400's published numbers" if dataset == "kinetics" else "the official lists"
  else:
    return None
  # Every split of made videos is as long, and Kinetics has but one.
  of_split = of_splits[experiment.split - 1 if experiment.split <= len(of_splits) else 0]
  if share:
    source += f", less a share of {share:g} for validation"
  if experiment.training_share < 1:
    source += f", a share of {experiment.training_share:g} of the rest"
  return Length(count, round(of_split * (1 - share) * experiment.training_share), source)


def _listed(experiment: Experiment, workdir: os.PathLike | str | None) -> Length | None:
  if experiment.dataset in ("hmdb51", "ucf101", *datasets.MADE) or not experiment.data_dir:
    return None
  folder = pathlib.Path(paths.within(experiment.data_dir, workdir or "")).expanduser()
  if not folder.is_dir():
    return None
  more_videos = paths.within(experiment.more_videos, workdir or "")
  listing = datasets.read_for(experiment, folder, more_videos)
  split = experiment.split - 1
  training = [
    video
    for video in listing.videos
    if split < len(video.codes) and video.codes[split] == splits.TRAIN
  ]
  groups = np.array([video.group for video in training])
  groups = groups[~splits.in_validation(groups, experiment.validation_share)]
  trained = splits.in_training(groups, experiment.training_share)
  return Length(len(listing.class_names), int(trained.sum()), f"the lists in {folder}")
