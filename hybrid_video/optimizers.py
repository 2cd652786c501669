"""Optimizers and learning-rate schedules by name, from plain numbers.

In: settings and the length of training. Out: an optax transformation for a learning rate of one, and
the learning rate of each step, worked out on the host: it enters the compiled step as a number, so
that another length, schedule or rate is the same program.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any, ClassVar

import jax
import numpy as np
import optax

from hybrid_video import errors
from hybrid_video.settings import Settings, setting

# A step's number, from 0, to its learning rate.
Schedule = Callable[[int], np.float32]


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(Settings):
  """How parameters are updated.

  Attributes:
    name: "adam" or "sgd" (weight decay as L2, added to the gradient), or "adamw" (decoupled).
    learning_rate: at its highest.
    weight_decay: on every parameter.
    momentum: of "sgd".
    schedule: "constant", "cosine" (to zero) or "step".
    warmup_epochs: linear from zero.
    step_epochs, step_factor: "step" multiplies by the factor each time so many epochs have passed.
    clip_norm: gradients of a larger global norm are scaled down to it; 0 is never.
    freeze: parts that are not trained, by the beginning of their path, such as `cnn` or
      `cnn/layer1`.
  """

  PATH: ClassVar[str] = "optimizer"

  name: str = setting("adam", choices=("adam", "adamw", "sgd"))
  learning_rate: float = setting(1e-3, at_least=0)
  weight_decay: float = setting(0.0, at_least=0)
  momentum: float = setting(0.9, at_least=0, below=1)
  schedule: str = setting("cosine", choices=("constant", "cosine", "step"))
  warmup_epochs: float = setting(0.0, at_least=0)
  step_epochs: float = setting(10.0, above=0)
  step_factor: float = setting(0.1, above=0)
  clip_norm: float = setting(0.0, at_least=0)
  freeze: tuple[str, ...] = setting(())


class OptimizerError(errors.UserError):
  """Optimizer settings that do not fit the model or the length of training."""


def trained(params: Any, freeze: tuple[str, ...]) -> Any:
  """Which parameters are trained: a tree of bools like `params`.

  Args:
    params: nested dicts of arrays or of their shapes.
    freeze: the beginnings of the paths of those that are not.

  Raises:
    OptimizerError: a part that the model does not have; the message has the nearest.
  """
  used: set[str] = set()

  def is_trained(path: Any, _: Any) -> bool:
    name = "/".join(key.key for key in path)
    matching = [part for part in freeze if name == part or name.startswith(part + "/")]
    used.update(matching)
    return not matching

  labels = jax.tree_util.tree_map_with_path(is_trained, params)
  for part in freeze:
    if part not in used:
      names = ["/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(params)]
      starts = {"/".join(n.split("/")[:d]) for n in names for d in range(1, n.count("/") + 2)}
      near = errors.nearest(part, starts, count=1, cutoff=0.0)
      raise OptimizerError(
        f"--config.optimizer.freeze names {part!r}, a part that the model does not have.{near}"
      )
  return labels


def make_schedule(settings: OptimizerSettings, *, steps: int, steps_per_epoch: float) -> Schedule:
  """The learning rate at each step.

  A linear warm-up (Goyal et al., 2017), then the rate itself, half a cosine wave (Loshchilov and
  Hutter, 2017) or stairs; as optax's `linear_schedule`, `cosine_decay_schedule` and staircase
  `exponential_decay` joined, without a program for each of their operations.

  Args:
    settings: which schedule.
    steps: of the whole training.
    steps_per_epoch: not always a whole number.

  Returns:
    A function of the step's number, from 0, that gives float32 always: the compiled step would be
    another one for another type.

  Raises:
    OptimizerError: a warm-up as long as the training.
  """
  warmup = round(settings.warmup_epochs * steps_per_epoch)
  if warmup and warmup >= steps:
    epochs = steps / steps_per_epoch
    raise OptimizerError(
      f"--config.optimizer.warmup_epochs is {settings.warmup_epochs:g}: a warm-up of {warmup} steps "
      f"leaves nothing of a training of {steps} (epochs: {epochs:.3g}). Set "
      f"--config.optimizer.warmup_epochs={epochs / 10:.2g}, a tenth of it, or --config.epochs above "
      f"{settings.warmup_epochs:g}."
    )
  left = steps - warmup
  every = max(1, round(settings.step_epochs * steps_per_epoch))
  after: Callable[[int], float] = {
    "constant": lambda step: 1.0,
    "cosine": lambda step: 0.5 * (1.0 + math.cos(math.pi * min(step / left, 1.0))),
    "step": lambda step: settings.step_factor ** (step // every),
  }[settings.schedule]

  def schedule(step: int) -> np.float32:
    share = step / warmup if step < warmup else after(step - warmup)
    return np.float32(settings.learning_rate * share)

  return schedule


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
  """The transformation that turns gradients into updates for a learning rate of one.

  The training step multiplies the updates by the learning rate; the momentum of "sgd" and the
  decoupled decay of "adamw" are added up before it, as they are in optax.

  Raises:
    OptimizerError: of `init`, a part to freeze that the model does not have.
  """
  transforms = []
  if settings.clip_norm:
    transforms.append(optax.clip_by_global_norm(settings.clip_norm))
  l2 = optax.add_decayed_weights(settings.weight_decay)
  if settings.name == "adam":
    transforms += [l2, optax.adam(1.0)]
  elif settings.name == "sgd":
    transforms += [l2, optax.sgd(1.0, momentum=settings.momentum)]
  else:
    transforms.append(optax.adamw(1.0, weight_decay=settings.weight_decay))
  chain = optax.chain(*transforms)
  if not settings.freeze:
    return chain
  return optax.multi_transform(
    {True: chain, False: optax.set_to_zero()},
    lambda params: trained(params, settings.freeze),
  )
