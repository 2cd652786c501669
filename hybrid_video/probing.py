"""What pretraining has learnt so far, told by labels that it does not see: a linear probe, nearest videos.

In: what makes features, parameters, and the lists of an experiment. Out: the probe's accuracy; features of videos.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from hybrid_video import models, validation
from hybrid_video.analysis import probe
from hybrid_video.datasets.folder import UNLABELLED
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment

# Of a longer list, so many videos are enough to tell one epoch from another.
MOST_VIDEOS = 2000


# (variables, videos `[V]`, what is called after each batch) to float32 `[V, D]`, such as `evaluate.Evaluator.features`.
Features = Callable[[Mapping[str, Any], np.ndarray, Callable[[], None] | None], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Probe:
  """Videos whose features are compared.

  Attributes:
    features: makes them.
    records: the stored videos, for their labels.
    trained: ids of the videos that a classifier is fitted to, `[V]`.
  """

  features: Features
  records: Records
  trained: np.ndarray

  @classmethod
  def of(
    cls, features: Features, records: Records, experiment: Experiment, video_ids: np.ndarray
  ) -> "Probe | None":
    """The probe of a training; None where it has classes of its own, or the data has no two.

    Args:
      features: of the run.
      records: its stored videos.
      experiment: every setting.
      video_ids: the training list, `[V]`.
    """
    with_label = _with_label(records, video_ids)
    if experiment.task == models.CLASSIFICATION or len(np.unique(records.labels[with_label])) < 2:
      return None
    trained = validation.train_sample(with_label, MOST_VIDEOS, experiment.seed)
    return cls(features, records, trained)

  def accuracy(
    self,
    variables: Mapping[str, Any],
    video_ids: np.ndarray,
    check: Callable[[], None] | None = None,
  ) -> float:
    """The share of videos `[V]` that a linear classifier on frozen features recognizes."""
    with_label = _with_label(self.records, video_ids)
    fitted, tested = (
      self.features(variables, videos, check) for videos in (self.trained, with_label)
    )
    labels = self.records.labels
    return probe.linear(fitted, labels[self.trained], tested, labels[with_label])


def _with_label(records: Records, video_ids: np.ndarray) -> np.ndarray:
  """Those of the videos `[V]` that have a class."""
  if UNLABELLED not in records.class_names:
    return video_ids
  return video_ids[records.labels[video_ids] != records.class_names.index(UNLABELLED)]
