"""Convolutions with three taps by Winograd's minimal filtering, for a CPU.

F(m, 3) gives m neighbouring outputs of a three-tap filter for m + 2 products instead of 3 m: the
inputs of a tile are mixed (B'), multiplied tap by tap with the mixed kernel (G), and mixed again (A').
In space F(2, 3) over rows is nested with F(4, 3) over columns, 3 products an output instead of 9; in
time F(4, 3) takes 1.5 instead of 3. Tiles go through a loop, few enough at a time to stay in cache.

Source: Lavin & Gray 2015 (arXiv:1509.09308); the points 0, 1, -1, 1/2, -2 of F(4, 3) are those that
Barabasz et al. 2018 (arXiv:1803.10986) found to round least.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_TAPS = 3
# Of a chunk, so that its mixed tiles lie in a core's cache: measured, with 64 to 288 channels. The
# gradients mix three maps.
_TILES_AT_ONCE = 1568
_TILES_AT_ONCE_BACKWARD = 784
_PIXELS_AT_ONCE = 392


@dataclasses.dataclass(frozen=True)
class Transforms:
  """The three matrices of F(m, 3), with n = m + 2.

  Attributes:
    input: B', `[n, n]`.
    kernel: G, `[n, 3]`.
    output: A', `[m, n]`.
  """

  input: np.ndarray
  kernel: np.ndarray
  output: np.ndarray

  @property
  def outputs(self) -> int:
    """How many outputs a tile has: m."""
    return len(self.output)

  @property
  def products(self) -> int:
    """How many products a tile takes: n."""
    return len(self.input)


def cook_toom(points: Sequence[float]) -> Transforms:
  """F(m, 3) by interpolation at m + 1 finite points and at infinity.

  Source: Cook & Toom's construction, transposed, as in section 4 of arXiv:1803.10986.
  """
  products = len(points) + 1
  outputs = products + 1 - _TAPS
  finite = np.asarray(points, np.float64)
  scale = [np.prod(p - np.delete(finite, i)) for i, p in enumerate(finite)]
  kernel = np.zeros((products, _TAPS))
  kernel[:-1] = finite[:, None] ** np.arange(_TAPS) / np.asarray(scale)[:, None]
  kernel[-1, -1] = 1
  output = np.zeros((outputs, products))
  output[:, :-1] = finite ** np.arange(outputs)[:, None]
  output[-1, -1] = 1
  mixing = np.zeros((products, products))
  for i in range(products - 1):
    # np.poly gives the highest power first.
    mixing[i, :-1] = np.poly(np.delete(finite, i))[::-1]
  mixing[-1] = np.poly(finite)[::-1]
  return Transforms(mixing, kernel, output)


ROWS = cook_toom((0.0, 1.0, -1.0))
COLUMNS = FRAMES = cook_toom((0.0, 1.0, -1.0, 0.5, -2.0))


def _mix(weights: np.ndarray, values: Sequence[Array]) -> Array:
  # lax's own operations: jnp's cost a fifth of the whole step's tracing, there are so many.
  terms = [
    value if weight == 1 else lax.mul(value, weight.astype(value.dtype))
    for weight, value in zip(weights, values, strict=True)
    if weight
  ]
  return functools.reduce(lax.add, terms)


def _phases(x: Array, axis: int, step: int, count: int, tiles: int) -> list[Array]:
  """For each of `count` positions in a tile, that position of every tile: x[k], x[k + step], ..."""
  return [lax.slice_in_dim(x, k, k + step * (tiles - 1) + 1, step, axis=axis) for k in range(count)]


def _interleave(phases: Sequence[Array], axis: int) -> Array:
  shape = list(phases[0].shape)
  shape[axis] *= len(phases)
  return jnp.stack(phases, axis + 1).reshape(shape)


def _mix_inputs(x: Array, axis: int, by: Transforms) -> list[Array]:
  """The n mixed values of every tile along an axis of `m tiles + 2` positions."""
  tiles = (x.shape[axis] - 2) // by.outputs
  phases = _phases(x, axis, by.outputs, by.products, tiles)
  return [_mix(row, phases) for row in by.input]


def _mix_inputs_adjoint(mixed: Sequence[Array], axis: int, by: Transforms) -> Array:
  """The adjoint of `_mix_inputs`: where tiles overlap, both contributions are added."""
  inputs = [_mix(column, mixed) for column in by.input.T]

  def padded(x: Array, before: int, after: int) -> Array:
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (before, after, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), widths)

  phases = [padded(x, 0, 1) for x in inputs[: by.outputs]]
  for k, overlap in enumerate(inputs[by.outputs :]):
    phases[k] = phases[k] + padded(overlap, 1, 0)
  whole = _interleave(phases, axis)
  return lax.slice_in_dim(whole, 0, by.outputs * mixed[0].shape[axis] + 2, axis=axis)


def _mix_outputs(products: Sequence[Array], axis: int, by: Transforms) -> Array:
  return _interleave([_mix(row, products) for row in by.output], axis)


def _mix_outputs_adjoint(dy: Array, axis: int, by: Transforms) -> list[Array]:
  tiles = dy.shape[axis] // by.outputs
  phases = _phases(dy, axis, by.outputs, by.outputs, tiles)
  return [_mix(column, phases) for column in by.output.T]


def _flat(x: Array) -> Array:
  return x.reshape(-1, x.shape[-1])


def _padding(size: int, by: Transforms) -> tuple[int, int, int]:
  """Zeros before and after an axis, so that tiles cover it, and how many those are."""
  tiles = math.ceil(size / by.outputs)
  return 1, by.outputs * tiles - size + 1, tiles


def _mix_taps(taps: Sequence[Array], by: Transforms) -> list[Array]:
  """The n mixed taps of three, as separate arrays: a loop would copy a slice in every round."""
  return [_mix(row, taps) for row in by.kernel]


def _mix_taps_adjoint(mixed: Sequence[Array], by: Transforms) -> Array:
  return jnp.stack([_mix(column, mixed) for column in by.kernel.T])


def _mix_spatial_kernel(kernel: Array) -> list[list[Array]]:
  return [_mix_taps(list(row), COLUMNS) for row in _mix_taps(list(kernel), ROWS)]


def tiles_and_products(shape: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
  """How many tiles a convolution takes, and how many products with a mixed tap each of them.

  Args:
    shape: of the map, `[B, T, H, W, C]`.
    kernel: sizes `[1, 3, 3, C, D]` or `[3, 1, 1, C, D]`.
  """
  batch, frames, height, width, _ = shape
  if kernel[0] == 1:
    tiles = math.ceil(height / ROWS.outputs) * math.ceil(width / COLUMNS.outputs)
    return batch * frames * tiles, ROWS.products * COLUMNS.products
  return batch * math.ceil(frames / FRAMES.outputs) * height * width, FRAMES.products


def _largest_divisor(number: int, most: int) -> int:
  return max(k for k in range(1, max(1, min(number, most)) + 1) if number % k == 0)


# Space: frames [F, H, W, C], kernel [3, 3, C, D]. Jitted, and so traced once for all layers of one shape.


def _spatial_chunks(x: Array, tiles_at_once: int) -> tuple[int, int]:
  """How many chunks the frames are taken in, and how many frames each of them has."""
  frames, height, width, _ = x.shape
  tiles = math.ceil(height / ROWS.outputs) * math.ceil(width / COLUMNS.outputs)
  chunk = _largest_divisor(frames, tiles_at_once // tiles)
  return frames // chunk, chunk


def _pad_frames(x: Array, before: int) -> Array:
  """Zeros around each frame so that tiles cover it; `before` (1 or 0) is whether on all sides."""
  margins = []
  for size, by in zip(x.shape[1:3], (ROWS, COLUMNS), strict=True):
    low, high, _ = _padding(size, by)
    margins.append((low, high) if before else (0, high - 1))
  return jnp.pad(x, ((0, 0), *margins, (0, 0)))


def _mix_frames(padded: Array) -> list[list[Array]]:
  """The mixed values of all tiles of `[F, 2 r + 2, 4 c + 2, C]`, `[F, r, c, C]` each."""
  return [_mix_inputs(row, 2, COLUMNS) for row in _mix_inputs(padded, 1, ROWS)]


def _convolve_tiles(padded: Array, mixed_kernel: Sequence[Sequence[Array]]) -> Array:
  """`[F, 2 r + 2, 4 c + 2, C]` to `[F, 2 r, 4 c, D]`."""
  mixed = _mix_frames(padded)
  shape = (*mixed[0][0].shape[:3], mixed_kernel[0][0].shape[-1])
  products = [
    [(_flat(mixed[a][b]) @ mixed_kernel[a][b]).reshape(shape) for a in range(ROWS.products)]
    for b in range(COLUMNS.products)
  ]
  by_row = [[_mix(row, column) for column in products] for row in ROWS.output]
  rows = [_mix_outputs(columns, 2, COLUMNS) for columns in by_row]
  return _interleave(rows, 1)


@jax.custom_vjp
@jax.jit
def spatial(x: Array, kernel: Array) -> Array:
  """Convolves frames `[F, H, W, C]` with `[3, 3, C, D]` at stride 1, zeros outside: `[F, H, W, D]`."""
  mixed_kernel = _mix_spatial_kernel(kernel)
  split = _spatial_chunks(x, _TILES_AT_ONCE)

  def convolve(frames: Array) -> Array:
    y = _convolve_tiles(_pad_frames(frames, 1), mixed_kernel)
    return y[:, : x.shape[1], : x.shape[2]]

  y = lax.map(convolve, x.reshape(*split, *x.shape[1:]))
  return y.reshape(*x.shape[:3], kernel.shape[-1])


def _spatial_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return spatial(x, kernel), (x, kernel)


@jax.jit
def _spatial_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
  x, kernel = residuals
  height, width = x.shape[1:3]
  mixed_kernel = _mix_spatial_kernel(kernel)
  split = _spatial_chunks(x, _TILES_AT_ONCE_BACKWARD)
  each = [(a, b) for a in range(ROWS.products) for b in range(COLUMNS.products)]

  def step(sums: list[Array], chunk: tuple[Array, Array]) -> tuple[list[Array], Array]:
    frames, dy = chunk
    by_row = _mix_outputs_adjoint(_pad_frames(dy, 0), 1, ROWS)
    of_products = [_mix_outputs_adjoint(row, 2, COLUMNS) for row in by_row]
    shape = (*of_products[0][0].shape[:3], x.shape[-1])
    of_mixed = [
      [
        (_flat(of_products[a][b]) @ mixed_kernel[a][b].T).reshape(shape)
        for b in range(COLUMNS.products)
      ]
      for a in range(ROWS.products)
    ]
    of_rows = [_mix_inputs_adjoint(row, 2, COLUMNS) for row in of_mixed]
    dx = _mix_inputs_adjoint(of_rows, 1, ROWS)[:, 1 : height + 1, 1 : width + 1]
    mixed = _mix_frames(_pad_frames(frames, 1))
    sums = [
      total + _flat(mixed[a][b]).T @ _flat(of_products[a][b])
      for total, (a, b) in zip(sums, each, strict=True)
    ]
    return sums, dx

  zeros = [jnp.zeros(kernel.shape[2:], x.dtype) for _ in each]
  chunks = (x.reshape(*split, *x.shape[1:]), dy.reshape(*split, *dy.shape[1:]))
  sums, dx = lax.scan(step, zeros, chunks)
  n = COLUMNS.products
  of_rows = [_mix_taps_adjoint(sums[n * a : n * (a + 1)], COLUMNS) for a in range(ROWS.products)]
  return dx.reshape(x.shape), _mix_taps_adjoint(of_rows, ROWS)


spatial.defvjp(_spatial_forward, _spatial_backward)


# Time: pixels' histories [B, T, P, C], kernel [3, C, D].


@jax.custom_vjp
def temporal(x: Array, kernel: Array) -> Array:
  """Convolves pixels' histories `[B, T, P, C]` with `[3, C, D]` at stride 1, zeros outside.

  Only its gradients are Winograd's: forward, a plain convolution is faster.
  """
  return lax.conv_general_dilated(
    x, kernel[:, None], (1, 1), ((1, 1), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _temporal_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return temporal(x, kernel), (x, kernel)


@jax.jit
def _temporal_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
  x, kernel = residuals
  batch, frames, pixels, channels = x.shape
  mixed_taps = _mix_taps(list(kernel), FRAMES)
  strip = _largest_divisor(pixels, _PIXELS_AT_ONCE)
  strips = pixels // strip
  before, after, tiles = _padding(frames, FRAMES)

  def at(i: Array) -> tuple[Array | int, ...]:
    return i // strips, 0, i % strips * strip, 0

  def take(whole: Array, i: Array) -> Array:
    return lax.dynamic_slice(whole, at(i), (1, frames, strip, whole.shape[-1]))[0]

  def step(i: Array, carry: tuple[list[Array], Array]) -> tuple[list[Array], Array]:
    sums, dx = carry
    covered = jnp.pad(take(dy, i), ((0, after - 1), (0, 0), (0, 0)))
    of_products = [_flat(product) for product in _mix_outputs_adjoint(covered, 0, FRAMES)]
    of_mixed = [
      (product @ matrix.T).reshape(tiles, strip, channels)
      for product, matrix in zip(of_products, mixed_taps, strict=True)
    ]
    of_strip = _mix_inputs_adjoint(of_mixed, 0, FRAMES)[1 : frames + 1]
    mixed = _mix_inputs(jnp.pad(take(x, i), ((before, after), (0, 0), (0, 0))), 0, FRAMES)
    sums = [total + _flat(a).T @ b for total, a, b in zip(sums, mixed, of_products, strict=True)]
    return sums, lax.dynamic_update_slice(dx, of_strip[None], at(i))

  zeros = [jnp.zeros(kernel.shape[1:], x.dtype)] * FRAMES.products
  sums, dx = lax.fori_loop(0, batch * strips, step, (zeros, jnp.zeros_like(x)))
  return dx, _mix_taps_adjoint(sums, FRAMES)


temporal.defvjp(_temporal_forward, _temporal_backward)


# Both at once: maps [B, T, H, W, C], kernels [3, 3, C, M] and [3, M, D].


def _bands(shape: Sequence[int]) -> tuple[int, int]:
  """How many clips, and how many rows of them, a chunk of `[B, T, H, W, C]` has."""
  batch, frames, height, width, _ = shape
  rows = math.ceil(height / ROWS.outputs)
  tiles = frames * rows * math.ceil(width / COLUMNS.outputs)
  if tiles <= _TILES_AT_ONCE:
    return _largest_divisor(batch, _TILES_AT_ONCE // tiles), ROWS.outputs * rows
  bands = min(rows, math.ceil(tiles / _TILES_AT_ONCE))
  return 1, ROWS.outputs * math.ceil(rows / bands)


@jax.custom_vjp
def fused(
  x: Array, spatial_kernel: Array, temporal_kernel: Array, scale: Array, shift: Array
) -> Array:
  """A convolution in space, scale, shift and ReLU, and a convolution in time, at stride 1.

  The map between the two never leaves the cache.

  Args:
    x: `[B, T, H, W, C]`.
    spatial_kernel: `[3, 3, C, M]`.
    temporal_kernel: `[3, M, D]`.
    scale, shift: `[M]` each, multiplied and added before the ReLU.

  Returns:
    `[B, T, H, W, D]`.
  """
  batch, frames, height, width, channels = x.shape
  mixed_kernel = _mix_spatial_kernel(spatial_kernel)
  clips, rows = _bands(x.shape)
  bands = math.ceil(height / rows)
  left, right, _ = _padding(width, COLUMNS)
  none = (0, 0)
  padded = jnp.pad(x, (none, none, (1, bands * rows - height + 1), none, none))

  def at(i: Array) -> tuple[Array | int, ...]:
    return i // bands * clips, 0, i % bands * rows, 0, 0

  def step(i: Array, y: Array) -> Array:
    band = lax.dynamic_slice(padded, at(i), (clips, frames, rows + 2, width, channels))
    band = band.reshape(-1, *band.shape[2:])
    # Copied into the cache, where all mixing reads it.
    band = lax.optimization_barrier(jnp.pad(band, (none, none, (left, right), none)))
    between = _convolve_tiles(band, mixed_kernel)[:, :, :width]
    between = jax.nn.relu(between * scale + shift)
    out = temporal(between.reshape(clips, frames, rows * width, -1), temporal_kernel)
    return lax.dynamic_update_slice(y, out.reshape(clips, frames, rows, width, -1), at(i))

  y = jnp.zeros((batch, frames, bands * rows, width, temporal_kernel.shape[-1]), x.dtype)
  return lax.fori_loop(0, batch // clips * bands, step, y)[:, :, :height]


def _one_after_the_other(
  x: Array, spatial_kernel: Array, temporal_kernel: Array, scale: Array, shift: Array
) -> Array:
  batch, frames, height, width, _ = x.shape
  between = spatial(x.reshape(-1, *x.shape[2:]), spatial_kernel)
  pixels = jax.nn.relu(between * scale + shift).reshape(batch, frames, height * width, -1)
  return temporal(pixels, temporal_kernel).reshape(batch, frames, height, width, -1)


def _fused_forward(*arguments: Array) -> tuple[Array, tuple[Array, ...]]:
  return fused(*arguments), arguments


def _fused_backward(arguments: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
  return jax.vjp(_one_after_the_other, *arguments)[1](dy)


fused.defvjp(_fused_forward, _fused_backward)
