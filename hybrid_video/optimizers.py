"""Optimisers and learning-rate schedules by name, from plain numbers.

In: settings and the length of training. Out: an optax transformation and its schedule.
"""

import dataclasses
import difflib
from typing import Any

import jax
import optax


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


def make_schedule(
  settings: OptimizerSettings, *, steps: int, steps_per_epoch: float
) -> optax.Schedule:
  """The learning rate at each step.

  Raises:
    ValueError: an unknown schedule, or a warm-up as long as the training.
  """
  warmup = round(settings.warmup_epochs * steps_per_epoch)
  if warmup and warmup >= steps:
    raise ValueError(f"A warm-up of {warmup} steps leaves nothing of a training of {steps}.")
  rate, left = settings.learning_rate, steps - warmup
  if settings.schedule == "constant":
    after = optax.constant_schedule(rate)
  elif settings.schedule == "cosine":
    after = optax.cosine_decay_schedule(rate, left)
  elif settings.schedule == "step":
    every = max(1, round(settings.step_epochs * steps_per_epoch))
    after = optax.exponential_decay(rate, every, settings.step_factor, staircase=True)
  else:
    raise ValueError(f"There is no schedule {settings.schedule!r}. Known: constant, cosine, step.")
  if not warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def make_optimizer(
  settings: OptimizerSettings, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """The transformation that turns gradients into updates.

  Raises:
    ValueError: an unknown name.
  """
  parts = []
  if settings.clip_norm:
    parts.append(optax.clip_by_global_norm(settings.clip_norm))
  l2 = optax.add_decayed_weights(settings.weight_decay)
  if settings.name == "adam":
    parts += [l2, optax.adam(schedule)]
  elif settings.name == "sgd":
    parts += [l2, optax.sgd(schedule, momentum=settings.momentum)]
  elif settings.name == "adamw":
    parts.append(optax.adamw(schedule, weight_decay=settings.weight_decay))
  else:
    raise ValueError(f"There is no optimiser {settings.name!r}. Known: adam, adamw, sgd.")
  chain = optax.chain(*parts)
  if not settings.freeze:
    return chain
  return optax.multi_transform(
    {"trained": chain, "frozen": optax.set_to_zero()},
    lambda params: _trained_or_frozen(params, settings.freeze),
  )
