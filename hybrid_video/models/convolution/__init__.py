"""Convolutions over time and space: one function, in the form that the backend does best.

In: feature maps `[B, T, H, W, C]` and kernels `[kt, kh, kw, C, D]`, which is how checkpoints keep
them. Out: feature maps. Every form computes the same function, with zeros outside; which one is taken
changes speed and the last bits, never a checkpoint.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

from hybrid_video.models.convolution import two_dimensional, winograd

Array = jax.Array
Triple = tuple[int, int, int]

DIRECT, POINTWISE = "direct", "pointwise"
TWO_DIMENSIONAL, WINOGRAD = "two_dimensional", "winograd"

# Winograd's mixed kernels are read once a chunk of tiles: more of them than this for every tile, and
# reading them costs more than the products saved (measured, with 64 to 921 channels).
_WEIGHTS_A_TILE = 160


def _is_spatial(kernel: Array, strides: Triple, padding: Triple) -> bool:
  return kernel.shape[0] == 1 and strides[0] == 1 and padding[0] == 0


def _is_temporal(kernel: Array, strides: Triple, padding: Triple) -> bool:
  return kernel.shape[1:3] == (1, 1) and strides[1:] == (1, 1) and padding[1:] == (0, 0)


def lowerings(kernel: Array, strides: Triple, padding: Triple) -> tuple[str, ...]:
  """The forms that a convolution can take."""
  found = [DIRECT]
  unit = strides == (1, 1, 1)
  if kernel.shape[:3] == (1, 1, 1) and padding == (0, 0, 0):
    return DIRECT, POINTWISE
  if _is_spatial(kernel, strides, padding):
    found.append(TWO_DIMENSIONAL)
    if kernel.shape[1:3] == (3, 3) and unit and padding == (0, 1, 1):
      found.append(WINOGRAD)
  elif _is_temporal(kernel, strides, padding):
    found.append(TWO_DIMENSIONAL)
    if kernel.shape[0] == 3 and unit and padding == (1, 0, 0):
      found.append(WINOGRAD)
  return tuple(found)


def choose(x: Array, kernel: Array, strides: Triple, padding: Triple, backend: str) -> str:
  """The form that a backend does best.

  TPUs and GPUs have kernels of their own for 3-D convolutions. On a CPU the factorised ones run in
  two dimensions, and by Winograd's algorithm where there are many pixels for few channels; not in
  bfloat16, whose eight bits do not bear the mixing, nor on several devices, whose shares of a batch
  its loop would gather.
  """
  if backend != "cpu":
    return DIRECT
  possible = lowerings(kernel, strides, padding)
  if POINTWISE in possible:
    return POINTWISE
  tiles = math.prod(x.shape[:-1]) / (winograd.ROWS.outputs * winograd.COLUMNS.outputs)
  if (
    WINOGRAD in possible
    and x.dtype in (jnp.float32, jnp.float64)
    and math.prod(kernel.shape[-2:]) <= _WEIGHTS_A_TILE * tiles
    and jax.device_count() == 1
  ):
    return WINOGRAD
  return TWO_DIMENSIONAL if TWO_DIMENSIONAL in possible else DIRECT


def convolve(
  x: Array, kernel: Array, strides: Triple, padding: Triple, lowering: str | None = None
) -> Array:
  """Convolves `[B, T, H, W, C]` with a kernel `[kt, kh, kw, C, D]`, zeros outside.

  Args:
    x: feature map `[B, T, H, W, C]`.
    kernel: `[kt, kh, kw, C, D]`.
    strides: steps along (T, H, W).
    padding: zeros on both sides of (T, H, W).
    lowering: one of `lowerings`; the default is what `choose` says for JAX's default backend.

  Returns:
    `[B, T', H', W', D]`.

  Raises:
    ValueError: a form that this convolution cannot take.
  """
  lowering = lowering or choose(x, kernel, strides, padding, jax.default_backend())
  possible = lowerings(kernel, strides, padding)
  if lowering not in possible:
    raise ValueError(
      f"A convolution by {kernel.shape[:3]} at strides {strides} and padding {padding} has no form "
      f"{lowering!r}: take one of {', '.join(possible)}."
    )
  if lowering == DIRECT:
    return lax.conv_general_dilated(
      x,
      kernel,
      window_strides=strides,
      padding=[(p, p) for p in padding],
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
  if lowering == POINTWISE:
    return x[:, :: strides[0], :: strides[1], :: strides[2]] @ kernel[0, 0, 0]
  batch, frames, height, width, channels = x.shape
  if _is_spatial(kernel, strides, padding):
    flat = x.reshape(-1, height, width, channels)
    if lowering == WINOGRAD:
      y = winograd.spatial(flat, kernel[0])
    else:
      y = two_dimensional.spatial(flat, kernel[0], strides[1:], padding[1:])
    return y.reshape(batch, frames, *y.shape[1:])
  pixels = x.reshape(batch, frames, -1, channels)
  if lowering == WINOGRAD:
    y = winograd.temporal(pixels, kernel[:, 0, 0])
  else:
    y = two_dimensional.temporal(pixels, kernel[:, 0, 0], strides[0], padding[0])
  return y.reshape(batch, -1, height, width, kernel.shape[-1])
