"""Optimizers and learning-rate schedules by name, from plain numbers.

In: settings and the length of training. Out: an optax transformation for a learning rate of one, and
the learning rate of each step, worked out on the host.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hybrid_video.optimizers import groups
from hybrid_video.optimizers.groups import part_rates_in_words as part_rates_in_words
from hybrid_video.optimizers.groups import rates as rates
from hybrid_video.optimizers.groups import trained as trained
from hybrid_video.optimizers.schedules import Schedule as Schedule
from hybrid_video.optimizers.schedules import make_schedule as make_schedule
from hybrid_video.optimizers.settings import OptimizerError as OptimizerError
from hybrid_video.optimizers.settings import OptimizerSettings as OptimizerSettings
from hybrid_video.optimizers.settings import PartRates as PartRates

# PyTorch's, of `clip_grad_norm_`.
_CLIP_EPS = 1e-6


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
  """The transformation that turns gradients into updates for a learning rate of one.

  The training step multiplies the updates by the learning rate; the momentum of "sgd" and the
  decoupled decay of "adamw" are added up before it, as in PyTorch. What an update multiplies last are
  the factors of layers and parts, so that they act as learning rates of their own do.

  Its state holds nothing for parameters that are not trained, and its structure depends on `name`,
  whether there is a `momentum`, and `freeze` alone.

  Returns:
    `init` of parameters (nested dicts), and `update` of gradients, state and parameters; updates of
    what is not trained are zeros.

  Raises:
    OptimizerError: of `init`, settings that do not fit the model, see `groups.trained` and
      `groups.rate_groups`.
  """
  rule = _rule(settings)

  def init(params: Any) -> Any:
    groups.rate_groups(settings, params)
    return rule.init(_selected(params, trained(params, settings.freeze)))

  def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    is_trained = trained(params, settings.freeze)
    updates, chosen = _selected(gradients, is_trained), _selected(params, is_trained)
    if settings.clip_norm:
      updates = _clipped(updates, settings.clip_norm)
    if settings.name != "adamw":
      updates = _with_decay(updates, chosen, settings)
    updates, state = rule.update(updates, state, chosen)
    if settings.name == "adamw":
      updates = _with_decay(updates, chosen, settings)
    of_all = _filled(updates, is_trained, gradients)
    factors = groups.rate_groups(settings, params)
    return jax.tree.map(lambda group, leaf: -group.factor * leaf, factors, of_all), state

  return optax.GradientTransformation(init, update)


def _rule(settings: OptimizerSettings) -> optax.GradientTransformation:
  """What is remembered from step to step, without decay and rate."""
  if settings.name == "sgd":
    if not settings.momentum:
      return optax.identity()
    return optax.trace(settings.momentum, nesterov=settings.nesterov)
  return optax.scale_by_adam(settings.beta1, settings.beta2, settings.eps)


def _clipped(gradients: Any, largest: float) -> Any:
  """Gradients whose global norm is at most `largest`, as PyTorch's `clip_grad_norm_`."""
  scale = jnp.minimum(1.0, largest / (optax.tree.norm(gradients) + _CLIP_EPS))
  return jax.tree.map(lambda gradient: scale * gradient, gradients)


def _with_decay(updates: Any, params: Any, settings: OptimizerSettings) -> Any:
  if not settings.weight_decay:
    return updates
  return jax.tree.map(
    lambda decays, update, value: update + settings.weight_decay * value if decays else update,
    groups.decays(params, settings.no_decay),
    updates,
    params,
  )


def _selected(tree: Any, labels: Any) -> Any:
  """The leaves of nested dicts that `labels` has True for, in dicts of those alone."""
  if not isinstance(labels, dict):
    return tree
  below = {name: label for name, label in labels.items() if any(jax.tree.leaves(label))}
  return {name: _selected(tree[name], label) for name, label in below.items()}


def _filled(selected: Any, labels: Any, like: Any) -> Any:
  """The way back: zeros for all other leaves of `like`."""
  if not isinstance(labels, dict):
    return selected if labels else jnp.zeros_like(like)
  return {
    name: _filled(selected.get(name, {}), label, like[name]) for name, label in labels.items()
  }
