"""Validation while training: when it is due, which checkpoint is best, and when to stop early.

In: numbers of the validation list, step by step. Out: a `Tracker`, which goes into every checkpoint.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, ClassVar, Self

import numpy as np

from hybrid_video import models
from hybrid_video.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class ValidationSettings(Settings):
  """What is evaluated while training, and what follows from it.

  Attributes:
    every_epochs: epochs from one validation to the next; 0 is never.
    every_steps: steps from one to the next, in place of epochs; 0 is by epochs.
    train_videos: videos of the training list, always the same, that are evaluated beside it.
    metric: of the validation list, that tells the best checkpoint: `video_top1`, `video_top5`,
      `clip_top1`, `clip_top5` or `loss`; "" is `video_top1`, or `loss` where there is none.
    probe_every_epochs: of pretraining: epochs from one linear probe to the next, a classifier on frozen
      features that is fitted to the training list's labels and judged by the validation list's; 0 is
      never.
    patience: validations without a better one after which training stops; 0 is never.
    on: the list that is validated on. "test" repeats published numbers whose best epoch was chosen on the
      test list; they are optimistic, and everything that is made of them says so.
  """

  PATH: ClassVar[str] = "validation"

  every_epochs: float = setting(1.0, at_least=0)
  every_steps: int = setting(0, at_least=0)
  train_videos: int = setting(100, at_least=0)
  metric: str = setting(
    "", choices=("", "video_top1", "video_top5", "clip_top1", "clip_top5", "loss")
  )
  probe_every_epochs: float = setting(0.0, at_least=0)
  patience: int = setting(0, at_least=0)
  on: str = setting("validation", choices=("validation", "test"))

  @property
  def is_on(self) -> bool:
    """Whether anything is validated while training, where there is a validation list."""
    return bool(self.every_epochs or self.every_steps)

  @property
  def is_on_test(self) -> bool:
    """Whether the test list is looked at while training."""
    return self.is_on and self.on == "test"

  def every(self, steps_per_epoch: float) -> int:
    """Steps from one validation to the next; 0 is never."""
    if self.every_steps:
      return self.every_steps
    return _in_steps(self.every_epochs, steps_per_epoch)

  def probes_every(self, steps_per_epoch: float) -> int:
    """Steps from one linear probe to the next; 0 is never."""
    return _in_steps(self.probe_every_epochs, steps_per_epoch)

  def metric_of(self, task: str) -> str:
    """The metric that tells the best checkpoint of a task."""
    return self.metric or ("video_top1" if task == models.CLASSIFICATION else "loss")


def _in_steps(epochs: float, steps_per_epoch: float) -> int:
  return max(1, round(epochs * steps_per_epoch)) if epochs else 0


@dataclasses.dataclass(frozen=True)
class Tracker:
  """The best validation so far.

  Attributes:
    metric: by which it is the best; of `loss` less is better, of all others more.
    best: its value, None before the first validation.
    step: where it was.
    since: validations after it.
  """

  metric: str
  best: float | None = None
  step: int | None = None
  since: int = 0

  def after(self, step: int, numbers: Mapping[str, float]) -> Self:
    """The tracker after a validation; the earlier of two as good stays the best.

    What is not finite is never the best.
    """
    value = float(numbers[self.metric])
    sign = -1 if self.metric == "loss" else 1
    is_better = self.best is None or sign * value > sign * self.best
    if math.isfinite(value) and is_better:
      return dataclasses.replace(self, best=value, step=step, since=0)
    return dataclasses.replace(self, since=self.since + 1)

  def to_json(self) -> dict[str, Any]:
    """The attributes by name."""
    return dataclasses.asdict(self)


def train_sample(video_ids: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Some videos of the training list, the same at every call, in the list's order.

  Args:
    video_ids: of the list, `[V]`.
    count: how many at most.
    seed: of the experiment.
  """
  if count >= len(video_ids):
    return video_ids
  chosen = np.random.default_rng(seed).permutation(len(video_ids))[:count]
  return video_ids[np.sort(chosen)]
