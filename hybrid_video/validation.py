"""Validation while training: when it is due, which checkpoint is best, and when to stop early.

In: numbers of the validation list, step by step. Out: a `Tracker`, which goes into every checkpoint.
"""

import dataclasses
from typing import ClassVar

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
    patience: validations without a better one after which training stops; 0 is never.
  """

  PATH: ClassVar[str] = "validation"

  every_epochs: float = setting(1.0, at_least=0)
  every_steps: int = setting(0, at_least=0)
  train_videos: int = setting(100, at_least=0)
  metric: str = setting(
    "", choices=("", "video_top1", "video_top5", "clip_top1", "clip_top5", "loss")
  )
  patience: int = setting(0, at_least=0)

  @property
  def is_on(self) -> bool:
    """Whether anything is validated while training, where there is a validation list."""
    return bool(self.every_epochs or self.every_steps)
