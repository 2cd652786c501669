"""Attention a block of queries at a time, for CPUs: the scores of a block stay in the cache.

In: queries `[B, N, heads, D]`, keys and values `[B, M, heads, D]`. Out: `[B, N, heads, D]`. The backward pass computes
the scores again, from each query's logarithm of the sum, so no array of all scores exists at any time.

Source: Dao et al. 2022 (arXiv:2205.14135), algorithms 1 and 4, with whole rows of scores in a block.
"""

import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from hybrid_video.models import rematerialization

Array = jax.Array

# Scores of a block: smaller ones make products too small for the cores, larger ones leave the cache (measured on
# two cores with heads of 64 channels).
_SCORES_AT_ONCE = 784 * 1568
_HIDDEN = -1e30


class _Heads(NamedTuple):
  """Rows of one head of one clip, with all heads of all clips in front, H.

  Attributes:
    query: `[H, blocks, rows, D]`, scaled by 1 / sqrt(D); rows beyond the last query are zeros.
    key, value: `[H, M, D]`.
    bias: `[H, M]`, 0 or `_HIDDEN`; None where all keys are visible.
  """

  query: Array
  key: Array
  value: Array
  bias: Array | None


def _rows(x: Array) -> Array:
  """`[B, N, heads, D]` to `[B heads, N, D]`."""
  return x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[3])


def _in_blocks(x: Array, keys: int) -> Array:
  """`[H, N, D]` to `[H, blocks, rows, D]`, filled up with zeros."""
  count = x.shape[1]
  blocks = math.ceil(count * keys / max(_SCORES_AT_ONCE, keys))
  rows = math.ceil(count / blocks)
  x = jnp.pad(x, ((0, 0), (0, blocks * rows - count), (0, 0)))
  return x.reshape(x.shape[0], blocks, rows, x.shape[-1])


def _back(x: Array, like: Array) -> Array:
  """`[H, blocks, rows, D]` or `[H, N, D]` to the shape and dtype of `like`, `[B, N, heads, D]`."""
  batch, count, heads, channels = like.shape
  x = x.reshape(batch, heads, -1, channels)[:, :, :count]
  return x.transpose(0, 2, 1, 3).astype(like.dtype)


def _scores(query: Array, key: Array, bias: Array | None) -> Array:
  """Of one block, `[rows, M]`, at least float32."""
  wide = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.matmul(query, key.T, preferred_element_type=wide)
  return scores if bias is None else scores + bias


def scaled(query: Array) -> Array:
  """Times 1 / sqrt(D)."""
  return query * jnp.asarray(1.0 / math.sqrt(query.shape[-1]), query.dtype)


def bias(visible: Array | None, dtype: Any) -> Array | None:
  """What hides keys when it is added to scores, `[B, M]`, at least float32; None where all are visible."""
  if visible is None:
    return None
  return jnp.where(visible, 0.0, _HIDDEN).astype(jnp.promote_types(dtype, jnp.float32))


def _heads(query: Array, key: Array, value: Array, visible: Array | None) -> _Heads:
  hiding = bias(visible, query.dtype)
  if hiding is not None:
    hiding = jnp.repeat(hiding, query.shape[2], axis=0)
  return _Heads(_in_blocks(_rows(scaled(query)), key.shape[1]), _rows(key), _rows(value), hiding)


@jax.custom_vjp
def attend(query: Array, key: Array, value: Array, visible: Array | None) -> Array:
  """See `attention.attend`; in the dtype of the queries."""
  return _forward(query, key, value, visible)[0]


def _forward(
  query: Array, key: Array, value: Array, visible: Array | None
) -> tuple[Array, tuple[Any, ...]]:
  def head(of: _Heads) -> tuple[Array, Array]:
    def block(query: Array) -> tuple[Array, Array]:
      scores = _scores(query, of.key, of.bias)
      largest = scores.max(-1, keepdims=True)
      shares = jnp.exp(scores - largest)
      total = shares.sum(-1, keepdims=True)
      mixed = jnp.matmul(
        shares.astype(of.value.dtype), of.value, preferred_element_type=scores.dtype
      )
      return mixed / total, largest + jnp.log(total)

    return lax.map(block, of.query)

  out, logarithms = lax.map(head, _heads(query, key, value, visible))
  out, logarithms = rematerialization.saved((_back(out, query), logarithms))
  return out, (query, key, value, visible, out, logarithms)


def _backward(residuals: tuple[Any, ...], dout: Array) -> tuple[Array, Array, Array, None]:
  query, key, value, visible, out, logarithms = residuals
  heads = _heads(query, key, value, visible)
  keys = key.shape[1]
  dout_rows = _in_blocks(_rows(dout), keys)
  wide = logarithms.dtype
  # Each query's sum of its weights' gradients, weighted: what softmax takes off all of them.
  taken_off = (dout.astype(wide) * out.astype(wide)).sum(-1, keepdims=True)
  taken_off = _in_blocks(_rows(taken_off), keys)

  def head(given: tuple[_Heads, Array, Array, Array]) -> tuple[Array, Array, Array]:
    of, *of_queries = given

    def block(
      so_far: tuple[Array, Array], given: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], Array]:
      query, dout, logarithm, taken_off = given
      shares = jnp.exp(_scores(query, of.key, of.bias) - logarithm)
      narrow = shares.astype(dout.dtype)
      dshares = jnp.matmul(dout, of.value.T, preferred_element_type=wide)
      dscores = (shares * (dshares - taken_off)).astype(query.dtype)
      dkey, dvalue = so_far
      dvalue = dvalue + jnp.matmul(narrow.T, dout, preferred_element_type=wide)
      dkey = dkey + jnp.matmul(dscores.T, query, preferred_element_type=wide)
      return (dkey, dvalue), jnp.matmul(dscores, of.key, preferred_element_type=wide)

    start = jnp.zeros(of.key.shape, wide), jnp.zeros(of.value.shape, wide)
    (dkey, dvalue), dquery = lax.scan(block, start, (of.query, *of_queries))
    return dquery, dkey, dvalue

  dquery, dkey, dvalue = lax.map(head, (heads, dout_rows, logarithms, taken_off))
  scale = 1.0 / math.sqrt(query.shape[-1])
  return _back(dquery * scale, query), _back(dkey, key), _back(dvalue, value), None


attend.defvjp(_forward, _backward)
