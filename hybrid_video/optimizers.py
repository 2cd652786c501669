"""Optimisers and learning-rate schedules by name, from plain numbers.

In: settings and the length of training. Out: an optax transformation for a learning rate of one, and
the learning rate of each step, worked out on the host: it enters the compiled step as a number, so
that another length, schedule or rate is the same program.
"""

from collections.abc import Callable
import dataclasses
import difflib
import math
from typing import Any

import jax
import numpy as np
import optax

# A step's number, from 0, to its learning rate.
Schedule = Callable[[int], np.float32]


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
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

  name: str = "adam"
  learning_rate: float = 1e-3
  weight_decay: float = 0.0
  momentum: float = 0.9
  schedule: str = "cosine"
  warmup_epochs: float = 0.0
  step_epochs: float = 10.0
  step_factor: float = 0.1
  clip_norm: float = 0.0
  freeze: tuple[str, ...] = ()


def _trained_or_frozen(params: Any, freeze: tuple[str, ...]) -> Any:
  used: set[str] = set()

  def label(path: Any, _: Any) -> str:
    name = "/".join(key.key for key in path)
    matching = [part for part in freeze if name == part or name.startswith(part + "/")]
    used.update(matching)
    return "frozen" if matching else "trained"

  labels = jax.tree_util.tree_map_with_path(label, params)
  for part in freeze:
    if part not in used:
      names = ["/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(params)]
      starts = {"/".join(n.split("/")[:d]) for n in names for d in range(1, n.count("/") + 2)}
      near = difflib.get_close_matches(part, starts, n=1, cutoff=0.0)[0]
      raise ValueError(f"The model has no part {part!r} to freeze. Did you mean {near!r}?")
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
    ValueError: an unknown schedule, or a warm-up as long as the training.
  """
  warmup = round(settings.warmup_epochs * steps_per_epoch)
  if warmup and warmup >= steps:
    raise ValueError(f"A warm-up of {warmup} steps leaves nothing of a training of {steps}.")
  left = steps - warmup
  every = max(1, round(settings.step_epochs * steps_per_epoch))
  shapes: dict[str, Callable[[int], float]] = {
    "constant": lambda step: 1.0,
    "cosine": lambda step: 0.5 * (1.0 + math.cos(math.pi * min(step / left, 1.0))),
    "step": lambda step: settings.step_factor ** (step // every),
  }
  if settings.schedule not in shapes:
    raise ValueError(f"There is no schedule {settings.schedule!r}. Known: constant, cosine, step.")
  after = shapes[settings.schedule]

  def schedule(step: int) -> np.float32:
    share = step / warmup if step < warmup else after(step - warmup)
    return np.float32(settings.learning_rate * share)

  return schedule


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
  """The transformation that turns gradients into updates for a learning rate of one.

  The training step multiplies the updates by the learning rate; the momentum of "sgd" and the
  decoupled decay of "adamw" are added up before it, as they are in optax.

  Raises:
    ValueError: an unknown name; of `init`, a part to freeze that the model does not have.
  """
  parts = []
  if settings.clip_norm:
    parts.append(optax.clip_by_global_norm(settings.clip_norm))
  l2 = optax.add_decayed_weights(settings.weight_decay)
  if settings.name == "adam":
    parts += [l2, optax.adam(1.0)]
  elif settings.name == "sgd":
    parts += [l2, optax.sgd(1.0, momentum=settings.momentum)]
  elif settings.name == "adamw":
    parts.append(optax.adamw(1.0, weight_decay=settings.weight_decay))
  else:
    raise ValueError(f"There is no optimiser {settings.name!r}. Known: adam, adamw, sgd.")
  chain = optax.chain(*parts)
  if not settings.freeze:
    return chain
  return optax.multi_transform(
    {"trained": chain, "frozen": optax.set_to_zero()},
    lambda params: _trained_or_frozen(params, settings.freeze),
  )
