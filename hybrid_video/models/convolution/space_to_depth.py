"""A convolution at stride 2 over few channels, such as a stem's over RGB, for GPUs.

In: frames `[F, H, W, C]` and a kernel `[kh, kw, C, D]`. Out: frames `[F, H', W', D]`.
Tensor cores read channels several at a time, so three of them waste most of each read. The four
pixels of a block of two rows and two columns have four times as many, and a convolution over blocks
at stride 1 with a kernel half as wide computes the same.
"""

import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array


def _blocks(x: Array) -> Array:
  """`[..., 2 h, 2 w, C]` to `[..., h, w, 4 C]`."""
  *outer, height, width, channels = x.shape
  split = x.reshape(*outer, height // 2, 2, width // 2, 2, channels)
  return split.swapaxes(-4, -3).reshape(*outer, height // 2, width // 2, 4 * channels)


def spatial(x: Array, kernel: Array, padding: tuple[int, int], multiple: int) -> Array:
  """Convolves frames `[F, H, W, C]` with `[kh, kw, C, D]` at stride 2 in space, zeros outside.

  Args:
    x: frames `[F, H, W, C]`.
    kernel: `[kh, kw, C, D]`.
    padding: zeros on both sides of (H, W).
    multiple: the blocks' channels are filled up with zeros to a multiple of it.

  Returns:
    `[F, H', W', D]`.
  """
  none, zero = (0, 0, 0), jnp.zeros((), x.dtype)
  edges, more = [], []
  for size, width, pad in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True):
    out = (size + 2 * pad - width) // 2 + 1
    whole = 2 * (out - 1) + width + width % 2
    edges.append((pad, whole - size - pad, 0))
    more.append((0, width % 2, 0))
  frames = _blocks(lax.pad(x, zero, [none, *edges, none]))
  # The kernel's channels are in the order of the blocks': the pixel, then its channel.
  taps = kernel.transpose(3, 0, 1, 2)
  taps = _blocks(lax.pad(taps, zero, [none, *more, none])).transpose(1, 2, 3, 0)
  extra = -taps.shape[2] % multiple
  if extra:
    frames = jnp.pad(frames, ((0, 0), (0, 0), (0, 0), (0, extra)))
    taps = jnp.pad(taps, ((0, 0), (0, 0), (0, extra), (0, 0)))
  return lax.conv_general_dilated(
    frames, taps, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
