"""Convolutions over time and space as 2-D ones, for CPUs and GPUs, where XLA's 3-D convolutions are slow.

On a CPU XLA's gradient by the kernel is slow too, so that is written as matrix products here.
"""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from hybrid_video.models import target

Array = jax.Array

# Output pixels whose columns are laid out at once: more fall out of the cache, fewer are products too
# small for the cores (measured, with 3 to 512 channels).
_PIXELS_AT_ONCE = 12544


def _convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[int, int]) -> Array:
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=strides,
    padding=[(p, p) for p in padding],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _frames_at_once(frames: int, pixels: int) -> int:
  if target.device_count() > 1:
    # A loop over frames would bring a sharded batch to every device.
    return frames
  most = max(1, min(frames, _PIXELS_AT_ONCE // pixels))
  return max(k for k in range(1, most + 1) if frames % k == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _spatial(x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[int, int]) -> Array:
  return _convolve(x, kernel, strides, padding)


def _spatial_forward(
  x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[int, int]
) -> tuple[Array, tuple[Array, Array]]:
  return _convolve(x, kernel, strides, padding), (x, kernel)


def _spatial_backward(
  strides: tuple[int, int], padding: tuple[int, int], residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  x, kernel = residuals
  _, pull_x = jax.vjp(lambda x: _convolve(x, kernel, strides, padding), x)
  height, width, channels, out = kernel.shape
  rows, columns = (
    [slice(k, k + stride * (size - 1) + 1, stride) for k in range(taps)]
    for stride, size, taps in zip(strides, dy.shape[1:3], (height, width), strict=True)
  )
  count = _frames_at_once(len(dy), math.prod(dy.shape[1:3]))
  padded = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))

  def step(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
    frames, dy = chunk
    side_by_side = jnp.concatenate([frames[:, :, column] for column in columns], -1)
    flat = dy.reshape(-1, out)
    of_rows = [side_by_side[:, row].reshape(-1, width * channels).T @ flat for row in rows]
    return total + jnp.stack(of_rows), None

  x_chunks, dy_chunks = (a.reshape(-1, count, *a.shape[1:]) for a in (padded, dy))
  start = jnp.zeros((height, width * channels, out), dy.dtype)
  dkernel, _ = lax.scan(step, start, (x_chunks, dy_chunks))
  return (*pull_x(dy), dkernel.reshape(kernel.shape))


_spatial.defvjp(_spatial_forward, _spatial_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _temporal(x: Array, kernel: Array, stride: int, padding: int) -> Array:
  return _convolve(x, kernel[:, None], (stride, 1), (padding, 0))


def _temporal_forward(
  x: Array, kernel: Array, stride: int, padding: int
) -> tuple[Array, tuple[Array, Array]]:
  return _temporal(x, kernel, stride, padding), (x, kernel)


def _temporal_backward(
  stride: int, padding: int, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  x, kernel = residuals
  _, pull_x = jax.vjp(lambda x: _convolve(x, kernel[:, None], (stride, 1), (padding, 0)), x)
  padded = jnp.pad(x, ((0, 0), (padding, padding), (0, 0), (0, 0)))
  flat = dy.reshape(-1, dy.shape[-1])
  reach = stride * (dy.shape[1] - 1) + 1
  taps = [padded[:, k : k + reach : stride] for k in range(len(kernel))]
  dkernel = jnp.stack([tap.reshape(-1, tap.shape[-1]).T @ flat for tap in taps])
  return (*pull_x(dy), dkernel)


_temporal.defvjp(_temporal_forward, _temporal_backward)


def spatial(x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[int, int]) -> Array:
  """Convolves frames `[F, H, W, C]` with `[kh, kw, C, D]`, zeros outside: `[F, H', W', D]`."""
  if target.platform() == "gpu":
    return _convolve(x, kernel, strides, padding)
  return _spatial(x, kernel, strides, padding)


def temporal(x: Array, kernel: Array, stride: int, padding: int) -> Array:
  """Convolves pixels' histories `[B, T, P, C]` with `[k, C, D]`, zeros outside: `[B, T', P, D]`."""
  if target.platform() == "gpu":
    return _convolve(x, kernel[:, None], (stride, 1), (padding, 0))
  return _temporal(x, kernel, stride, padding)


def stack(x: Array, kernel: Array, stride: int, padding: int, aligned: int) -> tuple[Array, Array]:
  """A map and a kernel whose convolution in space alone is the whole 3-D one.

  Each frame has the channels of those that the kernel sees around it beside its own, filled up with zeros to a
  multiple of `aligned`.

  Args:
    x: feature map `[B, T, H, W, C]`.
    kernel: `[kt, kh, kw, C, D]`.
    stride, padding: in time.
    aligned: what the channels become a multiple of.

  Returns:
    The map `[B, T', H, W, kt C]` and the kernel `[1, kh, kw, kt C, D]`.
  """
  taps, *sides, channels, out = kernel.shape
  padded = jnp.pad(x, ((0, 0), (padding, padding), (0, 0), (0, 0), (0, 0)))
  reach = padded.shape[1] - taps + 1
  frames = jnp.concatenate([padded[:, k : k + reach : stride] for k in range(taps)], -1)
  mixed = kernel.transpose(1, 2, 0, 3, 4).reshape(1, *sides, taps * channels, out)
  if filling := -(taps * channels) % aligned:
    frames = jnp.pad(frames, ((0, 0),) * 4 + ((0, filling),))
    mixed = jnp.pad(mixed, ((0, 0),) * 3 + ((0, filling), (0, 0)))
  return frames, mixed
