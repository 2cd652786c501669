"""Pixels on the device: mirroring and normalization, the same for every task.

In: uint8 clips `[B, T, H, W, 3]`. Out: the same, mirrored; or float32, normalized.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


def mirror(clips: Array, mirrored: Array) -> Array:
  """Clips `[B, T, H, W, 3]`, those where `mirrored` `[B]` is true with left and right exchanged."""
  return jnp.where(mirrored[:, None, None, None, None], clips[..., ::-1, :], clips)


def normalizer(mean: Sequence[float], std: Sequence[float]) -> Callable[[Array], Array]:
  """A function from uint8 `[..., 3]` to float32 of about zero mean and unit deviation.

  Args:
    mean, std: per channel, of pixels in 0 to 1.
  """

  def normalize(clips: Array) -> Array:
    return (clips.astype(jnp.float32) / 255.0 - jnp.array(mean)) / jnp.array(std)

  return normalize
