"""Factorised convolutions in the forms that XLA compiles well for a CPU.

Both are the plain convolution with zeros outside. Two things are slow there: 3-D convolutions, so
both run as 2-D ones; and the gradient by the kernel, so that is written as matrix products here.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array

# With more taps, as in the stem's 7x7, one product a tap costs more than XLA's own gradient.
_MOST_TAPS = 9


def _conv_2d(x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[int, int]) -> Array:
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=strides,
    padding=[(p, p) for p in padding],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _frames(x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[int, int]) -> Array:
  return _conv_2d(x, kernel, strides, padding)


def _frames_forward(
  x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[int, int]
) -> tuple[Array, tuple[Array, Array]]:
  return _conv_2d(x, kernel, strides, padding), (x, kernel)


def _frames_backward(
  strides: tuple[int, int], padding: tuple[int, int], kept: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  x, kernel = kept
  _, pull_x = jax.vjp(lambda x: _conv_2d(x, kernel, strides, padding), x)
  height, width, channels, out = kernel.shape
  if height * width > _MOST_TAPS:
    _, pull_kernel = jax.vjp(lambda kernel: _conv_2d(x, kernel, strides, padding), kernel)
    return (*pull_x(dy), *pull_kernel(dy))
  padded = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
  rows = [slice(i, i + strides[0] * (dy.shape[1] - 1) + 1, strides[0]) for i in range(height)]
  columns = [slice(j, j + strides[1] * (dy.shape[2] - 1) + 1, strides[1]) for j in range(width)]
  flat_dy = dy.reshape(-1, out)
  taps = [padded[:, r, c].reshape(-1, channels).T @ flat_dy for r in rows for c in columns]
  return (*pull_x(dy), jnp.stack(taps).reshape(kernel.shape))


_frames.defvjp(_frames_forward, _frames_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _columns(x: Array, kernel: Array, stride: int, padding: int) -> Array:
  return _conv_2d(x, kernel, (stride, 1), (padding, 0))


def _columns_forward(
  x: Array, kernel: Array, stride: int, padding: int
) -> tuple[Array, tuple[Array, Array]]:
  return _conv_2d(x, kernel, (stride, 1), (padding, 0)), (x, kernel)


def _columns_backward(
  stride: int, padding: int, kept: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  x, kernel = kept
  _, pull_x = jax.vjp(lambda x: _conv_2d(x, kernel, (stride, 1), (padding, 0)), x)
  taps, _, channels, out = kernel.shape
  frames, spread = x.shape[1], stride * (dy.shape[1] - 1) + 1
  zero = jnp.zeros((), dy.dtype)
  # Where tap k reads frame u, it feeds frame (u + padding - k) / stride of the output.
  shifted = [
    lax.pad(
      dy,
      zero,
      ((0, 0, 0), (k - padding, frames - spread - (k - padding), stride - 1), (0, 0, 0), (0, 0, 0)),
    )
    for k in range(taps)
  ]
  product = x.reshape(-1, channels).T @ jnp.concatenate(shifted, -1).reshape(-1, taps * out)
  by_tap = jnp.moveaxis(product.reshape(channels, taps, out), 1, 0)
  return (*pull_x(dy), by_tap.reshape(kernel.shape))


_columns.defvjp(_columns_forward, _columns_backward)


def spatial(x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[int, int]) -> Array:
  """Convolves every frame of `[B, T, H, W, C]` with `[1, kh, kw, C, D]`: `[B, T, H', W', D]`."""
  y = _frames(x.reshape(-1, *x.shape[2:]), kernel[0], strides, padding)
  return y.reshape(*x.shape[:2], *y.shape[1:])


def temporal(x: Array, kernel: Array, stride: int, padding: int) -> Array:
  """Convolves every pixel's history in `[B, T, H, W, C]` with `[k, 1, 1, C, D]`: `[B, T', ...]`."""
  batch, frames, height, width, channels = x.shape
  y = _columns(x.reshape(batch, frames, -1, channels), kernel[:, 0], stride, padding)
  return y.reshape(batch, -1, height, width, kernel.shape[-1])
