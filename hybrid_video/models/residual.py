"""The sum that ends a residual branch.

In: an array and what a branch adds to it, of one shape. Out: their sum.
"""

import jax
from jax import lax
import jax.numpy as jnp

from hybrid_video.models import target

Array = jax.Array


def add(x: Array, branch: Array) -> Array:
  """`x + branch`, for blocks that follow each other.

  Forward and backward, a block reads the sum of what all blocks on one side of it add. XLA:CPU would fuse that whole
  sum into each of its readers and compute it there again: an eighth of VideoMAE-S's training step.
  """
  total = x + branch
  if target.platform() != "cpu":
    return total
  # Nothing is fused across a condition. Both ways give `total`, which the compiler does not see.
  return lax.cond(
    jnp.isnan(total.ravel()[0]),
    lambda total: total + jnp.where(jnp.isnan(total), jnp.nan, 0.0).astype(total.dtype),
    lambda total: total,
    total,
  )
