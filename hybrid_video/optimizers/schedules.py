"""The learning rate of each step, worked out on the host.

In: settings and the length of training. Out: a function from a step's number to its rate, which
enters the compiled step as a number, so that another length, schedule or rate is the same program.
"""

from collections.abc import Callable
import math

import numpy as np

from hybrid_video.optimizers.settings import OptimizerError, OptimizerSettings

# A step's number, from 0, to its learning rate.
Schedule = Callable[[int], np.float32]


def make_schedule(settings: OptimizerSettings, *, steps: int, steps_per_epoch: float) -> Schedule:
  """The learning rate at each step.

  A linear warm-up (Goyal et al., 2017), then the rate itself, half a cosine wave (Loshchilov and
  Hutter, 2017) or stairs; as PyTorch's `SequentialLR` of a `LinearLR` and a `ConstantLR`,
  `CosineAnnealingLR`, `StepLR` or `MultiStepLR` over steps. With `warmup_reaches_rate` the warm-up's last step
  and the one after it both have the rate, as in VideoMAE's reference.

  Args:
    settings: which schedule.
    steps: of the whole training.
    steps_per_epoch: not always a whole number.

  Returns:
    A function of the step's number, from 0, that gives float32 always: the compiled step would be
    another one for another type.

  Raises:
    OptimizerError: a warm-up as long as the training, or a milestone before its end.
  """
  warmup = settings.warmup_steps or round(settings.warmup_epochs * steps_per_epoch)
  _check_warmup(settings, warmup, steps, steps_per_epoch)
  left = steps - warmup
  every = settings.step_steps or max(1, round(settings.step_epochs * steps_per_epoch))
  milestones = _milestones(settings, warmup, steps_per_epoch)
  rate, final, factor = settings.learning_rate, settings.final_rate, settings.step_factor
  after: Callable[[int], float] = {
    "constant": lambda step: rate,
    "cosine": lambda step: final + (rate - final) * _half_wave((step - warmup) / left),
    "step": lambda step: rate * factor ** ((step - warmup) // every),
    "multi_step": lambda step: rate * factor ** sum(step >= passed for passed in milestones),
  }[settings.schedule]

  def schedule(step: int) -> np.float32:
    if step >= warmup:
      return np.float32(after(step))
    start = settings.warmup_start
    length = max(warmup - settings.warmup_reaches_rate, 1)
    return np.float32(rate * (start + (1.0 - start) * step / length))

  return schedule


def _half_wave(share: float) -> float:
  return 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


def _check_warmup(
  settings: OptimizerSettings, warmup: int, steps: int, steps_per_epoch: float
) -> None:
  if not warmup or warmup < steps:
    return
  epochs = steps / steps_per_epoch
  if settings.warmup_steps:
    raise OptimizerError(
      f"{settings.path('warmup_steps')} is {warmup}: it leaves nothing of a training of {steps} steps "
      f"(epochs: {epochs:.3g}). Set {settings.path('warmup_steps')}={steps // 10}, a tenth of it, or "
      f"--config.epochs above {warmup / steps_per_epoch:.3g}."
    )
  raise OptimizerError(
    f"--config.optimizer.warmup_epochs is {settings.warmup_epochs:g}: a warm-up of {warmup} steps "
    f"leaves nothing of a training of {steps} (epochs: {epochs:.3g}). Set "
    f"--config.optimizer.warmup_epochs={epochs / 10:.2g}, a tenth of it, or --config.epochs above "
    f"{settings.warmup_epochs:g}."
  )


def _milestones(settings: OptimizerSettings, warmup: int, steps_per_epoch: float) -> list[int]:
  """The steps at which "multi_step" lowers the rate."""
  if settings.schedule != "multi_step":
    return []
  in_steps = bool(settings.milestone_steps)
  given = settings.milestone_steps if in_steps else settings.milestone_epochs
  milestones = [round(at if in_steps else at * steps_per_epoch) for at in given]
  if milestones[0] <= warmup:
    name = "milestone_steps" if in_steps else "milestone_epochs"
    raise OptimizerError(
      f"{settings.path(name)} begins with {given[0]:g}, which is step {milestones[0]}: expected one "
      f"after the warm-up of {warmup} steps; milestones count from the start of training."
    )
  return milestones
