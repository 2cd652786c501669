"""Convolutions over time and space: one function, in the form that the backend does best.

In: feature maps `[B, T, H, W, C]` and kernels `[kt, kh, kw, C, D]`, which is how checkpoints keep
them. Out: feature maps. Every form computes the same function, with zeros outside; which one is taken
changes speed and the last bits, never a checkpoint.
"""

import functools
import math
from typing import TypeAlias

import jax
from jax import lax
import jax.numpy as jnp

from hybrid_video.models import target
from hybrid_video.models.convolution import folded, space_to_depth, two_dimensional, winograd

Array = jax.Array
Map: TypeAlias = Array | folded.Folded
Triple = tuple[int, int, int]

DIRECT, POINTWISE, FOLDED = "direct", "pointwise", "folded"
TWO_DIMENSIONAL, WINOGRAD = "two_dimensional", "winograd"
SPACE_TO_DEPTH = "space_to_depth"
STACKED = "stacked"

# Lanes of a TPU's matrix unit: two pixels' channels have to fit.
_LANES = 128

# cuDNN's kernels for tensor cores read channels eight at a time.
_ALIGNED_CHANNELS = 8

# Winograd's mixed kernels are made and read once: more of them than this for every tile, and that
# costs more than the products saved (measured, with 64 to 1152 channels).
_WEIGHTS_A_TILE = 25_000
# With fewer channels than this the mixing costs what the products save, and it compiles for longer.
_LEAST_CHANNELS = 32


def _is_spatial(kernel: Array, strides: Triple, padding: Triple) -> bool:
  return kernel.shape[0] == 1 and strides[0] == 1 and padding[0] == 0


def _is_temporal(kernel: Array, strides: Triple, padding: Triple) -> bool:
  return kernel.shape[1:3] == (1, 1) and strides[1:] == (1, 1) and padding[1:] == (0, 0)


def lowerings(kernel: Array, strides: Triple, padding: Triple) -> tuple[str, ...]:
  """The forms that a convolution can take."""
  forms = [DIRECT]
  unit = strides == (1, 1, 1)
  if kernel.shape[:3] == (1, 1, 1) and padding == (0, 0, 0):
    return DIRECT, POINTWISE, TWO_DIMENSIONAL
  sizes = kernel.shape[:3]
  if (
    strides == (1, 2, 2)
    and all(size % 2 for size in sizes)
    and padding == tuple(size // 2 for size in sizes)
    and 2 * kernel.shape[-1] <= _LANES
  ):
    forms.append(FOLDED)
  if _is_spatial(kernel, strides, padding):
    forms.append(TWO_DIMENSIONAL)
    if strides[1:] == (2, 2):
      forms.append(SPACE_TO_DEPTH)
    if kernel.shape[1:3] == (3, 3) and unit and padding == (0, 1, 1):
      forms.append(WINOGRAD)
  elif _is_temporal(kernel, strides, padding):
    forms.append(TWO_DIMENSIONAL)
    if kernel.shape[0] == 3 and unit and padding == (1, 0, 0):
      forms.append(WINOGRAD)
  else:
    forms.append(STACKED)
  return tuple(forms)


def choose(x: Array, kernel: Array, strides: Triple, padding: Triple, platform: str) -> str:
  """The form that a platform ("cpu", "gpu", "tpu") does best.

  A TPU has instructions of its own for 3-D convolutions. It folds what leaves the stem, and all
  convolutions until the next stride in space keep the fold. Elsewhere the factorised ones run in two
  dimensions: on a GPU because XLA lays 3-D maps out with channels first, and cuDNN turns each of them
  round before and after its kernels; there RGB, too few channels to read, are gathered from four
  pixels. On a CPU they run by Winograd's algorithm where there are many pixels for the channels; not in
  bfloat16, whose eight bits are too few for the mixing, nor on several devices, because its loop
  would gather their shares of a batch. On both, what does not factorise takes the frames around a frame
  as its channels, and becomes a convolution in space.
  """
  possible = lowerings(kernel, strides, padding)
  if platform == "tpu" and FOLDED in possible and kernel.shape[-2] == 3:
    return FOLDED
  if platform not in ("cpu", "gpu"):
    return DIRECT
  if platform == "cpu" and POINTWISE in possible:
    return POINTWISE
  if STACKED in possible:
    return STACKED
  if platform == "gpu" and SPACE_TO_DEPTH in possible and kernel.shape[-2] == 3:
    return SPACE_TO_DEPTH
  exact = x.dtype in (jnp.float32, jnp.float64)
  if platform == "cpu" and WINOGRAD in possible and exact and target.device_count() == 1:
    tiles, products = winograd.tiles_and_products(x.shape, kernel.shape)
    if (
      min(kernel.shape[-2:]) >= _LEAST_CHANNELS
      and math.prod(kernel.shape[-2:]) <= _WEIGHTS_A_TILE * tiles
      and tiles * products < math.prod(x.shape[:-1]) * math.prod(kernel.shape[:-2])
    ):
      return WINOGRAD
  return TWO_DIMENSIONAL if TWO_DIMENSIONAL in possible else DIRECT


def convolve(
  x: Map, kernel: Array, strides: Triple, padding: Triple, lowering: str | None = None
) -> Map:
  """Convolves `[B, T, H, W, C]` with a kernel `[kt, kh, kw, C, D]`, zeros outside.

  Args:
    x: feature map `[B, T, H, W, C]`, plain or folded.
    kernel: `[kt, kh, kw, C, D]`.
    strides: steps along (T, H, W).
    padding: zeros on both sides of (T, H, W).
    lowering: one of `lowerings`; the default is what `choose` says for the `target`. A folded map
      has only one.

  Returns:
    `[B, T', H', W', D]`, folded if the lowering or the map was and the convolution keeps it.

  Raises:
    ValueError: a form that this convolution cannot take.
  """
  if isinstance(x, folded.Folded):
    return folded.convolve(x, kernel, strides, padding)
  lowering = lowering or choose(x, kernel, strides, padding, target.platform())
  possible = lowerings(kernel, strides, padding)
  if lowering not in possible:
    raise ValueError(
      f"A convolution by {kernel.shape[:3]} at strides {strides} and padding {padding} has no form "
      f"{lowering!r}: take one of {', '.join(possible)}."
    )
  if lowering == FOLDED:
    return folded.stem(x, kernel)
  if lowering == DIRECT:
    return lax.conv_general_dilated(
      x,
      kernel,
      window_strides=strides,
      padding=[(p, p) for p in padding],
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
  if lowering == STACKED:
    return _stacked(x, kernel, strides, padding, (target.platform(), target.device_count()))
  if lowering == POINTWISE:
    return x[:, :: strides[0], :: strides[1], :: strides[2]] @ kernel[0, 0, 0]
  if kernel.shape[:3] == (1, 1, 1):
    # No product of matrices on a GPU: XLA of jaxlib 0.11.2 crashes where it fuses the stride into one.
    x, strides = x[:, :: strides[0]], (1, *strides[1:])
  batch, frames, height, width, channels = x.shape
  if _is_spatial(kernel, strides, padding):
    flat = x.reshape(-1, height, width, channels)
    if lowering == WINOGRAD:
      y = winograd.spatial(flat, kernel[0])
    elif lowering == SPACE_TO_DEPTH:
      y = space_to_depth.spatial(flat, kernel[0], padding[1:], _ALIGNED_CHANNELS)
    else:
      y = two_dimensional.spatial(flat, kernel[0], strides[1:], padding[1:])
    return y.reshape(batch, frames, *y.shape[1:])
  pixels = x.reshape(batch, frames, -1, channels)
  if lowering == WINOGRAD:
    y = winograd.temporal(pixels, kernel[:, 0, 0])
  else:
    y = two_dimensional.temporal(pixels, kernel[:, 0, 0], strides[0], padding[0])
  return y.reshape(batch, -1, height, width, kernel.shape[-1])


@functools.partial(jax.checkpoint, static_argnums=(2, 3, 4))
def _stacked(
  x: Array, kernel: Array, strides: Triple, padding: Triple, traced_for: tuple[str, int]
) -> Array:
  """A whole 3-D convolution as one in space, of frames with the channels of those around them.

  They are gathered again in the backward pass: kept, they would be a map for each tap in time.

  Args:
    x, kernel, strides, padding: as in `convolve`.
    traced_for: platform and number of devices of the `target`. JAX keeps what it traced, by its arguments.
  """
  aligned = _ALIGNED_CHANNELS if traced_for[0] == "gpu" else 1
  frames, mixed = two_dimensional.stack(x, kernel, strides[0], padding[0], aligned)
  return unfold(convolve(frames, mixed, (1, *strides[1:]), (0, *padding[1:])))


def fuses(x: Array, spatial: Array, temporal: Array, strides: Triple) -> bool:
  """Whether the backend does better by `fused` than by one convolution after the other.

  Args:
    x: feature map `[B, T, H, W, C]`.
    spatial: kernel `[1, kh, kw, C, M]`, padded by half its size as the other one is.
    temporal: kernel `[kt, 1, 1, M, D]`.
    strides: of both together, along (T, H, W).
  """
  # Of the two, the one in space decides: forward, the one in time is the same in any form.
  return (
    strides == (1, 1, 1)
    and WINOGRAD in lowerings(temporal, strides, (1, 0, 0))
    and choose(x, spatial, strides, (0, 1, 1), target.platform()) == WINOGRAD
  )


def fused(x: Array, spatial: Array, temporal: Array, scale: Array, shift: Array) -> Array:
  """A convolution in space, scale, shift and ReLU, and one in time, all without leaving the cache.

  Args:
    x: feature map `[B, T, H, W, C]`.
    spatial: kernel `[1, 3, 3, C, M]`.
    temporal: kernel `[3, 1, 1, M, D]`.
    scale, shift: `[M]` each, multiplied and added before the ReLU.

  Returns:
    `[B, T, H, W, D]`.
  """
  return winograd.fused(x, spatial[0], temporal[:, 0, 0], scale, shift)


def unfold(x: Map) -> Array:
  """The plain map `[B, T, H, W, C]`."""
  return folded.unfold(x) if isinstance(x, folded.Folded) else x


def filling(channels: int) -> int:
  """Channels of zeros that bring a map between two convolutions to what the `target` reads best.

  R(2+1)D has 45, 230, 460 and 921 of them; a GPU's tensor cores want a multiple of eight.
  """
  return -channels % _ALIGNED_CHANNELS if target.platform() == "gpu" else 0


def folds_scale() -> bool:
  """Whether the `target` does better with the scale of a fixed BatchNorm within the kernel.

  What is left after the convolution, a shift and a ReLU, cuDNN's kernels do before they write.
  """
  return target.platform() == "gpu"


def cast_kernel(kernel: Array, dtype: jnp.dtype | type) -> Array:
  """A kernel `[kt, kh, kw, C, D]` in the type of the arithmetic.

  A TPU stores float32 `[1, 3, 3, 512, 921]` with an axis of one next to the channels, because 921 is
  no multiple of 8, and casts it from there at 20 bytes a cycle: without that axis it is quick.
  """
  odd = any(channels % 8 for channels in kernel.shape[3:])
  if target.platform() == "tpu" and kernel.dtype != dtype and odd and 1 in kernel.shape[:3]:
    squeezed = kernel.reshape([size for size in kernel.shape if size > 1])
    kernel = lax.optimization_barrier(squeezed).reshape(kernel.shape)
  return kernel.astype(dtype)
