"""The Perceiver's building blocks: Fourier positions, cross attention into latents, self attention.

In: tokens `[B, M, C]`. Out: latents `[B, N, D]`.

Source: Jaegle et al. 2021 (arXiv:2103.03206), in the form of the PyPI package perceiver-pytorch:
pre-norm, bias-free queries, keys and values, GEGLU feed-forward with the exact GELU.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video.models import residual
from hybrid_video.models.attention import attend
from hybrid_video.models.layers import Array, DType, LayerNorm, Linear
from hybrid_video.models.model_error import ModelError


def fourier_channels(bands: int, axes: int = 3) -> int:
  """Channels that `fourier_positions` gives: a sine and a cosine a band, and the coordinate."""
  return axes * (2 * bands + 1)


def fourier_positions(
  sizes: tuple[int, ...],
  bands: int,
  max_freq: float | Sequence[float] | None,
  first_span: int = 0,
) -> np.ndarray:
  """Fourier features of every cell of a grid, row-major.

  Each axis runs from -1 to 1 (a single cell lies at -1); `bands` frequencies lie evenly between
  1 and max_freq / 2. Channels an axis: sines, cosines, the coordinate.

  Args:
    sizes: cells along each axis, for a video (T', H', W').
    bands: frequencies an axis.
    max_freq: twice the highest frequency, in cycles over an axis: the cells that resolve it. One
      for all axes, or one an axis; None takes each axis's own number of cells, at least 2.
    first_span: cells of the first axis from -1 to 1, whatever its number: cells beyond lie beyond 1. 0 is
      the axis's own.

  Returns:
    float32 `[prod(sizes), len(sizes) * (2 * bands + 1)]`.

  Raises:
    ModelError: `max_freq` does not have one value for each axis.
  """
  if max_freq is None:
    resolved: list[float] = [max(size, 2) for size in sizes]
  elif isinstance(max_freq, Sequence):
    resolved = list(max_freq)
  else:
    resolved = [max_freq] * len(sizes)
  if len(resolved) != len(sizes):
    raise ModelError(
      f"max_freq={max_freq} has {len(resolved)} values for a grid of {len(sizes)} axes: give one "
      "number, one for each axis, or None for the grid's own."
    )
  scales = np.pi * np.stack([np.linspace(1.0, freq / 2, bands) for freq in resolved])
  coordinates = [np.linspace(-1.0, 1.0, size) for size in sizes]
  if first_span:
    coordinates[0] = 2.0 * np.arange(sizes[0]) / max(first_span - 1, 1) - 1.0
  grid = np.stack(np.meshgrid(*coordinates, indexing="ij"), axis=-1)[..., None]
  angles = grid * scales
  features = np.concatenate([np.sin(angles), np.cos(angles), grid], axis=-1)
  return features.reshape(int(np.prod(sizes)), -1).astype(np.float32)


class Reading(NamedTuple):
  """What queries have read so far of a context that comes in parts; float32, H heads of d channels.

  Attributes:
    largest: the largest score of each query so far, `[B, H, N, 1]`.
    total: the sum of the shares, relative to it, `[B, H, N, 1]`.
    values: the values, weighted alike, `[B, H, N, d]`.
  """

  largest: Array
  total: Array
  values: Array


class Attention(nnx.Module):
  """Multi-head attention of queries `[B, N, D]` to a context `[B, M, C]`."""

  def __init__(
    self,
    width: int,
    context_width: int,
    heads: int,
    head_dim: int,
    *,
    dtype: DType,
    rng: np.random.Generator,
  ):
    inner = heads * head_dim
    self.to_q = Linear(width, inner, use_bias=False, dtype=dtype, rng=rng)
    self.to_kv = Linear(context_width, 2 * inner, use_bias=False, dtype=dtype, rng=rng)
    self.to_out = Linear(inner, width, dtype=dtype, rng=rng)
    self.heads = heads
    self.head_dim = head_dim

  def __call__(self, x: Array, context: Array) -> Array:
    """`[B, N, D]` and `[B, M, C]` to `[B, N, D]`."""

    def split(y: Array) -> Array:
      return y.reshape(*y.shape[:2], self.heads, self.head_dim)

    key, value = jnp.split(self.to_kv(context), 2, axis=-1)
    out = attend(split(self.to_q(x)), split(key), split(value))
    return self.to_out(out.reshape(*out.shape[:2], -1))

  def nothing_read(self, x: Array) -> Reading:
    """What queries `[B, N, D]` have read of nothing."""
    shape = (x.shape[0], self.heads, x.shape[1])
    zeros = jnp.zeros((*shape, self.head_dim), jnp.float32)
    return Reading(jnp.full((*shape, 1), -jnp.inf), jnp.zeros((*shape, 1)), zeros)

  def read(self, so_far: Reading, x: Array, context: Array) -> Reading:
    """Queries `[B, N, D]` read one part more of their context, `[B, M, C]`; the parts' order changes nothing.

    Source: the online softmax of Milakov and Gimelshein 2018, arXiv:1805.02867.
    """

    def split(y: Array) -> Array:
      return y.reshape(*y.shape[:2], self.heads, self.head_dim).astype(jnp.float32)

    key, value = jnp.split(self.to_kv(context), 2, axis=-1)
    scores = jnp.einsum("bnhd,bmhd->bhnm", split(self.to_q(x)), split(key))
    scores /= math.sqrt(self.head_dim)
    largest = jnp.maximum(so_far.largest, scores.max(-1, keepdims=True))
    shares, kept = jnp.exp(scores - largest), jnp.exp(so_far.largest - largest)
    return Reading(
      largest,
      kept * so_far.total + shares.sum(-1, keepdims=True),
      kept * so_far.values + jnp.einsum("bhnm,bmhd->bhnd", shares, split(value)),
    )

  def what_was_read(self, reading: Reading, dtype: DType) -> Array:
    """What `__call__` gives for all parts at once, `[B, N, D]`."""
    out = (reading.values / reading.total).transpose(0, 2, 1, 3)
    return self.to_out(out.reshape(*out.shape[:2], -1).astype(dtype))


class FeedForward(nnx.Module):
  """Pre-norm GEGLU: half of the widened features gates the other half."""

  def __init__(self, width: int, multiplier: int, *, dtype: DType, rng: np.random.Generator):
    self.norm = LayerNorm(width, dtype=dtype)
    self.expand = Linear(width, 2 * multiplier * width, dtype=dtype, rng=rng)
    self.contract = Linear(multiplier * width, width, dtype=dtype, rng=rng)

  def __call__(self, x: Array) -> Array:
    """`[B, N, D]` to `[B, N, D]`."""
    value, gate = self.expand.in_parts(self.norm(x), 2)
    return self.contract(value * jax.nn.gelu(gate, approximate=False))


class CrossBlock(nnx.Module):
  """Latents attend to tokens, then a feed-forward; both residual."""

  def __init__(
    self,
    width: int,
    token_width: int,
    *,
    heads: int,
    head_dim: int,
    multiplier: int,
    dropout: float,
    dtype: DType,
    rng: np.random.Generator,
  ):
    self.norm = LayerNorm(width, dtype=dtype)
    self.norm_tokens = LayerNorm(token_width, dtype=dtype)
    self.attention = Attention(width, token_width, heads, head_dim, dtype=dtype, rng=rng)
    self.feed_forward = FeedForward(width, multiplier, dtype=dtype, rng=rng)
    self.dropout = nnx.Dropout(dropout)

  def __call__(self, latents: Array, tokens: Array, rngs: nnx.Rngs | None = None) -> Array:
    """Latents `[B, N, D]` and tokens `[B, M, C]` to latents `[B, N, D]`."""
    attended = self.attention(self.norm(latents), self.norm_tokens(tokens))
    latents = residual.add(latents, self.dropout(attended, rngs=rngs))
    return residual.add(latents, self.dropout(self.feed_forward(latents), rngs=rngs))

  def read(self, so_far: Reading, latents: Array, tokens: Array) -> Reading:
    """Latents read one part more of their tokens, see `Attention.read`."""
    return self.attention.read(so_far, self.norm(latents), self.norm_tokens(tokens))

  def after_reading(self, latents: Array, reading: Reading) -> Array:
    """What `__call__` gives, without dropout, for all that was read."""
    latents = latents + self.attention.what_was_read(reading, latents.dtype)
    return latents + self.feed_forward(latents)


class SelfBlock(nnx.Module):
  """Tokens attend to each other, then a feed-forward; both residual."""

  def __init__(
    self,
    width: int,
    *,
    heads: int,
    head_dim: int,
    multiplier: int,
    dropout: float,
    dtype: DType,
    rng: np.random.Generator,
  ):
    self.norm = LayerNorm(width, dtype=dtype)
    self.attention = Attention(width, width, heads, head_dim, dtype=dtype, rng=rng)
    self.feed_forward = FeedForward(width, multiplier, dtype=dtype, rng=rng)
    self.dropout = nnx.Dropout(dropout)

  def __call__(self, x: Array, rngs: nnx.Rngs | None = None) -> Array:
    """`[B, N, D]` to `[B, N, D]`."""
    normed = self.norm(x)
    x = residual.add(x, self.dropout(self.attention(normed, normed), rngs=rngs))
    return residual.add(x, self.dropout(self.feed_forward(x), rngs=rngs))
