"""Attention one head at a time and in it a block of queries at a time, for TPUs: a block's scores stay in fast memory.

In: queries `[B, N, heads, D]`, keys and values `[B, M, heads, D]`. Out: `[B, N, heads, D]`. All clips of a device are
taken at once, so that a loop never crosses the axis that devices share. The backward pass computes the scores again, from
each query's logarithm of the sum.

Source: Dao et al. 2022 (arXiv:2205.14135), algorithms 1 and 4, with whole rows of scores in a block.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from hybrid_video.models import rematerialization, target
from hybrid_video.models.blockwise_attention import bias, scaled

Array = jax.Array

# Scores of a device's block, all its clips together: 512 queries of 16 clips with 1,568 keys, 26 MB in 16 bits. Of 256 to
# 896 queries these take the fewest cycles on a v5e (the compiler's estimate).
_SCORES_AT_ONCE = 16 * 512 * 1568
# Queries lie along the lanes of a vector register: a block of another length would be moved first.
_LANES = 128


def _over_heads(head: Callable[..., tuple[Array, ...]], *arrays: Array) -> tuple[Array, ...]:
  """A function of one head after another.

  Results are written side by side into the channels, as linear maps read them: stacked by head, they were moved there.

  Args:
    head: of arrays `[B, N, ...]`, to arrays `[B, M, ...]`.
    *arrays: `[B, N, heads, ...]`.

  Returns:
    `[B, M, heads, ...]`.
  """
  heads = arrays[0].shape[2]

  def one(index: Array | int) -> tuple[Array, ...]:
    return head(*(lax.dynamic_index_in_dim(x, index, 2, keepdims=False) for x in arrays))

  def put(index: Array, results: list[Array]) -> list[Array]:
    news = (new.reshape(*new.shape[:2], -1) for new in one(index))
    return [
      lax.dynamic_update_slice_in_dim(result, new, index * new.shape[2], 2)
      for result, new in zip(results, news, strict=True)
    ]

  shapes = jax.eval_shape(one, 0)
  begun = [jnp.zeros((*x.shape[:2], heads * math.prod(x.shape[2:])), x.dtype) for x in shapes]
  done = lax.fori_loop(0, heads, put, begun)
  return tuple(
    x.reshape(*shape.shape[:2], heads, *shape.shape[2:])
    for x, shape in zip(done, shapes, strict=True)
  )


def _blocks(query: Array, keys: int) -> list[slice]:
  """Which queries are taken at once."""
  batch, count = query.shape[:2]
  clips = math.ceil(batch / max(1, target.device_count()))
  rows = _SCORES_AT_ONCE // (clips * keys) // _LANES * _LANES
  rows = max(rows, _LANES)
  return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def _product(equation: str, left: Array, right: Array) -> Array:
  wide = jnp.promote_types(left.dtype, jnp.float32)
  return jnp.einsum(equation, left, right, preferred_element_type=wide)


def _scores(query: Array, key: Array, hiding: Array | None) -> Array:
  scores = _product("bqd,bkd->bqk", query, key)
  return scores if hiding is None else scores + hiding[:, None]


@jax.custom_vjp
def attend(query: Array, key: Array, value: Array, visible: Array | None) -> Array:
  """See `attention.attend`; in the dtype of the queries."""
  return _forward(query, key, value, visible)[0]


def _forward(
  query: Array, key: Array, value: Array, visible: Array | None
) -> tuple[Array, tuple[Any, ...]]:
  blocks = _blocks(query, key.shape[1])
  hiding = bias(visible, query.dtype)

  def head(queries: Array, key: Array, value: Array) -> tuple[Array, Array]:
    # A column of ones sums the weights in the same product: sums along the lanes are slow.
    value = jnp.pad(value, ((0, 0), (0, 0), (0, 1)), constant_values=1)
    outputs, logarithms = [], []
    for block in blocks:
      scores = _scores(queries[:, block], key, hiding)
      largest = scores.max(-1, keepdims=True)
      shares = jnp.exp(scores - largest).astype(value.dtype)
      mixed = _product("bqk,bkd->bqd", shares, value)
      total = mixed[..., -1:]
      outputs.append((mixed[..., :-1] / total).astype(query.dtype))
      logarithms.append((largest + jnp.log(total))[..., 0])
    return jnp.concatenate(outputs, 1), jnp.concatenate(logarithms, 1)

  out, logarithms = rematerialization.saved(_over_heads(head, scaled(query), key, value))
  return out, (query, key, value, visible, out, logarithms)


def _backward(residuals: tuple[Any, ...], dout: Array) -> tuple[Array, Array, Array, None]:
  query, key, value, visible, out, logarithms = residuals
  blocks = _blocks(query, key.shape[1])
  wide = logarithms.dtype
  hiding = bias(visible, query.dtype)
  # Each query's sum of its weights' gradients, weighted: what softmax takes off all of them.
  taken_off = (dout.astype(wide) * out.astype(wide)).sum(-1)

  def head(
    queries: Array, key: Array, value: Array, douts: Array, logarithms: Array, taken_off: Array
  ) -> tuple[Array, Array, Array]:
    dqueries = []
    dkey, dvalue = jnp.zeros(key.shape, wide), jnp.zeros(value.shape, wide)
    for block in blocks:
      query, dout = queries[:, block], douts[:, block]
      shares = jnp.exp(_scores(query, key, hiding) - logarithms[:, block, None])
      dshares = _product("bqd,bkd->bqk", dout, value)
      dscores = (shares * (dshares - taken_off[:, block, None])).astype(query.dtype)
      dvalue = dvalue + _product("bqk,bqd->bkd", shares.astype(dout.dtype), dout)
      dkey = dkey + _product("bqk,bqd->bkd", dscores, query)
      dqueries.append(_product("bqk,bkd->bqd", dscores, key).astype(query.dtype))
    return jnp.concatenate(dqueries, 1), dkey.astype(key.dtype), dvalue.astype(value.dtype)

  dquery, dkey, dvalue = _over_heads(head, scaled(query), key, value, dout, logarithms, taken_off)
  return scaled(dquery), dkey, dvalue, None


attend.defvjp(_forward, _backward)
