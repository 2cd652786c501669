"""What an output comes from: attention weights as used, how they flow from head to tokens, Grad-CAM.

In: the part of a model that is explained, and what it reads. Out: `Map`s, arrays over time and space
with words that say what they are. The weights are taken out of the model's own forward pass; there is
no second one that could differ from it.

Source: Abnar & Zuidema 2020 (arXiv:2005.00928), Chefer et al. 2021 (arXiv:2103.15679), Selvaraju et
al. 2017 (arXiv:1610.02391).
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from hybrid_video.models import attention

Array = jax.Array
# Joins what passes an attention by, on the residual, and what goes through it.
Mixed = Callable[[Array, Array], Array]
SPACE_TIME = ("time", "height", "width")


@dataclasses.dataclass(frozen=True)
class Map:
  """One answer to where a model looks, for a batch of clips.

  Attributes:
    values: float32 `[B, ...]`, at least 0.
    axes: what its axes after the first are, such as `SPACE_TIME`.
    name: of the method.
    words: what a value is.
    source: who came up with it.
  """

  values: Array
  axes: tuple[str, ...]
  name: str
  words: str
  source: str

  @property
  def is_over_clips(self) -> bool:
    """Whether it has one value a place, `[B, T', H', W']`, so that it can be drawn on frames."""
    return self.axes == SPACE_TIME


jax.tree_util.register_dataclass(
  Map, data_fields=["values"], meta_fields=["axes", "name", "words", "source"]
)


@dataclasses.dataclass(frozen=True)
class Evidence:
  """One forward pass and the gradients of the chosen classes' logits.

  Attributes:
    inputs: what was read.
    logits: `[B, classes]`.
    weights: those of each attention in order, float32 `[B, heads, N, M]`; rows sum to 1.
    gradients: of the chosen logits by each of these.
    of_inputs: of the chosen logits by the inputs, in their shape.
  """

  inputs: Array
  logits: Array
  weights: tuple[Array, ...]
  gradients: tuple[Array, ...]
  of_inputs: Array

  def shares(self) -> tuple[list[Array], Mixed]:
    """For attention rollout: the weights, heads averaged, `[B, N, M]`; the residual weighs as much.

    Source: section 3 of arXiv:2005.00928, A = (W + I) / 2.
    """
    return [weights.mean(1) for weights in self.weights], lambda past, through: (past + through) / 2

  def shares_for_the_class(self) -> tuple[list[Array], Mixed]:
    """Only what raises the class's logit: weights times gradients above 0, heads averaged.

    Source: equations 5 and 6 of arXiv:2103.15679.
    """
    products = (
      weights * gradients for weights, gradients in zip(self.weights, self.gradients, strict=True)
    )
    return [jnp.maximum(product, 0).mean(1) for product in products], jnp.add


def explain(
  score: Callable[[Array], Array], inputs: Array, classes: Array | None = None
) -> Evidence:
  """Runs `score`, keeps the weights of every attention in it, and takes gradients by them.

  Args:
    score: inputs `[B, ...]` to logits `[B, classes]`, each clip for itself; it calls
      `attention.attend` for all of its attention, in no function of its own compilation.
    inputs: what it reads.
    classes: the class id that each clip is explained for, int `[B]`; None for the predicted ones.
  """

  def run(inputs: Array, offsets: Sequence[Array] | None) -> tuple[Array, tuple[Array, ...]]:
    seen: list[Array] = []

    def observe(weights: Array) -> Array:
      # Adding zeros changes no bit, and has the weights' gradient.
      used = weights if offsets is None else weights + offsets[len(seen)]
      seen.append(used)
      return used

    with attention.observed(observe):
      logits = score(inputs)
    return logits, tuple(seen)

  def chosen(inputs: Array, offsets: Sequence[Array]) -> tuple[Array, Any]:
    logits, weights = run(inputs, offsets)
    picked = logits.argmax(-1) if classes is None else classes
    return jnp.take_along_axis(logits, picked[:, None], axis=1).sum(), (logits, weights)

  shapes = jax.eval_shape(lambda inputs: run(inputs, None)[1], inputs)
  zeros = tuple(jnp.zeros(shape.shape, shape.dtype) for shape in shapes)
  gradients, (logits, weights) = jax.grad(chosen, (0, 1), has_aux=True)(inputs, zeros)
  return Evidence(inputs, logits, weights, gradients[1], gradients[0])


def from_themselves(batch: int, tokens: int) -> Array:
  """Where tokens come from, before any attention: `[B, M, M + 1]`, each from itself."""
  return jnp.broadcast_to(jnp.eye(tokens, tokens + 1), (batch, tokens, tokens + 1))


def from_learned_values(batch: int, count: int, tokens: int) -> Array:
  """The same of learned latents or a CLS token: `[B, count, M + 1]`, from no token of the clip."""
  return jnp.zeros((batch, count, tokens + 1)).at[..., -1].set(1.0)


def of_tokens(flow: Array, grid: tuple[int, ...]) -> Array:
  """What the head reads, `[B, M + 1]`, as shares of the tokens `[B, T', H', W']` that sum to 1."""
  shares = flow[:, :-1]
  total = shares.sum(-1, keepdims=True)
  # Nothing may speak for a class at all.
  return (shares / jnp.where(total > 0, total, 1.0)).reshape(-1, *grid)


def rollout(values: Array) -> Map:
  """Attention rollout as a `Map`, of shares `[B, T', H', W']`."""
  words = (
    "how much the head reads of each place, for whatever class: attention weights multiplied along "
    "all blocks, heads averaged, half of each block passed on by its residual"
  )
  return Map(
    values, SPACE_TIME, "attention rollout", words, "Abnar & Zuidema 2020, arXiv:2005.00928"
  )


def for_the_class(values: Array) -> Map:
  """Gradient-weighted attention as a `Map`, of shares `[B, T', H', W']`."""
  words = (
    "how much of the class's score comes through the attention to each place: weights times their "
    "gradients above 0, along all blocks"
  )
  name = "gradient-weighted attention"
  return Map(values, SPACE_TIME, name, words, "Chefer et al. 2021, arXiv:2103.15679")


def grad_cam(seen: Evidence) -> Map:
  """Grad-CAM over the feature map `[B, T', H', W', C]` that was read.

  Source: equations 1 and 2 of arXiv:1610.02391, with time as a third axis of space.
  """
  importance = seen.of_inputs.astype(jnp.float32).mean((1, 2, 3), keepdims=True)
  values = jnp.maximum((importance * seen.inputs.astype(jnp.float32)).sum(-1), 0)
  words = (
    "how much each place of the CNN's last feature map speaks for the class: its channels, weighted by "
    "the mean gradient of the class's score, where their sum is above 0"
  )
  return Map(values, SPACE_TIME, "Grad-CAM", words, "Selvaraju et al. 2017, arXiv:1610.02391")
