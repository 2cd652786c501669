"""Feature maps with pairs of neighbouring columns folded into channels, for TPUs.

In: clips `[B, T, H, W, 3]` or folded maps. Out: folded maps, or plain ones.
A TPU's matrix unit pads channels to 128, so 64 of them waste half of it and half of the memory's
traffic; a pair of pixels fills it. Two neighbouring outputs of a 3-wide convolution need four inputs:
exactly two pairs, if the input's pairs start one column off the output's. So the alignment alternates
from one such convolution to the next, and a residual block of two ends as it began.

Kernels are the plain ones, `[kt, kh, kw, C, D]`; they are folded in the graph, and automatic
differentiation unfolds their gradients.
"""

from collections.abc import Callable
import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array
Triple = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Fold:
  """Which columns the pairs of a folded map hold.

  Attributes:
    width: real columns.
    shift: 0 if the pairs are columns (0, 1), (2, 3), ...; 1 if they are (-1, 0), (1, 2), ...
  """

  width: int
  shift: int = 0

  @property
  def pairs(self) -> int:
    """Pairs that hold the columns."""
    return -(-(self.shift + self.width) // 2)

  @property
  def shifted(self) -> "Fold":
    """The same columns in the other alignment."""
    return Fold(self.width, 1 - self.shift)

  @property
  def has_phantoms(self) -> bool:
    """Whether some pair holds a column that does not exist: -1, or `width`."""
    return self.shift == 1 or self.width % 2 == 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Folded:
  """A feature map `[B, T, H, W, C]` in pairs of columns. The values of phantoms mean nothing.

  Attributes:
    pairs: `[B, T, H, pairs, 2 C]`.
    layout: which columns they are.
  """

  pairs: Array
  layout: Fold = dataclasses.field(metadata={"static": True})

  @property
  def dtype(self) -> jnp.dtype:
    """Of the values."""
    return self.pairs.dtype

  @property
  def pixels(self) -> int:
    """Pixels of the map without phantoms: B T H W."""
    batch, frames, height = self.pairs.shape[:3]
    return batch * frames * height * self.layout.width

  def map(self, function: Callable[[Array], Array]) -> "Folded":
    """The map with every value passed through an elementwise function."""
    return Folded(function(self.pairs), self.layout)

  def astype(self, dtype: jnp.dtype | type) -> "Folded":
    """The map in another type."""
    return self.map(lambda x: x.astype(dtype))


def unfold(x: Folded) -> Array:
  """The plain map `[B, T, H, W, C]`."""
  *outer, pairs, channels = x.pairs.shape
  columns = x.pairs.reshape(*outer, 2 * pairs, channels // 2)
  return columns[..., x.layout.shift : x.layout.shift + x.layout.width, :]


def clear_phantoms(x: Folded) -> Array:
  """The pairs `[B, T, H, pairs, 2 C]`, zeros in the phantoms."""
  if not x.layout.has_phantoms:
    return x.pairs
  shape = x.pairs.shape[-2:]
  second = lax.broadcasted_iota(jnp.int32, shape, 1) >= shape[1] // 2
  column = 2 * lax.broadcasted_iota(jnp.int32, shape, 0) + second - x.layout.shift
  real = (column >= 0) & (column < x.layout.width)
  return jnp.where(real, x.pairs, jnp.zeros((), x.dtype))


def total(values: Array) -> Array:
  """Sums over all positions of pairs `[B, T, H, pairs, 2 C]`, whose phantoms are zeros: `[C]`."""
  return values.sum(range(values.ndim - 1)).reshape(2, -1).sum(0)


def scale_and_shift(x: Folded, scale: Array, shift: Array) -> Folded:
  """`x * scale + shift`, with `[C]` each."""
  return Folded(x.pairs * jnp.tile(scale, 2) + jnp.tile(shift, 2), x.layout)


def _convolve(x: Array, kernel: Array, strides: Triple, padding: list[tuple[int, int]]) -> Array:
  return lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
  )


def _pair_outputs(kernel: Array, stride: int) -> Array:
  """`[kt, kh, kw, C, D]` to `[kt, kh, kw + stride, C, 2 D]`: two neighbouring outputs at once."""
  none = (0, 0)
  both = [jnp.pad(kernel, (none, none, (left, stride - left), none, none)) for left in (0, stride)]
  return jnp.concatenate(both, -1)


def _pair_inputs(kernel: Array) -> Array:
  """`[kt, kh, 2 n, C, D]` to `[kt, kh, n, 2 C, D]`: columns of the window taken in pairs."""
  kt, kh, kw, channels, out = kernel.shape
  return kernel.reshape(kt, kh, kw // 2, 2 * channels, out)


def stem(clips: Array, kernel: Array) -> Folded:
  """Convolves a plain map with `[kt, kh, kw, C, D]`, odd sizes, at stride 2 in space, into pairs."""
  kt, kh, kw = kernel.shape[:3]
  layout = Fold(-(-clips.shape[3] // 2))
  left = kw // 2
  right = 4 * (layout.pairs - 1) + kw + 2 - clips.shape[3] - left
  padding = [(kt // 2, kt // 2), (kh // 2, kh // 2), (left, right)]
  batch, frames = clips.shape[:2]
  if kt == 1:
    # Frames as the batch fill the lanes, which 3 channels cannot.
    clips = clips.reshape(batch * frames, 1, *clips.shape[2:])
  y = _convolve(clips, _pair_outputs(kernel, 2), (1, 2, 4), padding)
  return Folded(y.reshape(batch, frames, *y.shape[2:]), layout)


def _across_columns(x: Folded, kernel: Array) -> Folded:
  """By `[kt, kh, 3, C, D]` at stride 1; the alignment changes."""
  kt, kh = kernel.shape[:2]
  layout = x.layout.shifted
  left = layout.shift
  padding = [
    (kt // 2, kt // 2),
    (kh // 2, kh // 2),
    (left, layout.pairs - x.layout.pairs + 1 - left),
  ]
  y = _convolve(clear_phantoms(x), _pair_inputs(_pair_outputs(kernel, 1)), (1, 1, 1), padding)
  return Folded(y, layout)


def _within_columns(x: Folded, kernel: Array) -> Folded:
  """By `[kt, kh, 1, C, D]` at stride 1: a block-diagonal kernel."""
  kt, kh, _, channels, _ = kernel.shape
  none = (0, 0)
  halves = [(0, channels), (channels, 0)]
  both = [jnp.pad(kernel, (none, none, none, half, none)) for half in halves]
  padding = [(kt // 2, kt // 2), (kh // 2, kh // 2), none]
  return Folded(_convolve(x.pairs, jnp.concatenate(both, -1), (1, 1, 1), padding), x.layout)


def _out_of_the_fold(x: Folded, kernel: Array, stride: int) -> Array:
  """By `[kt, kh, 3 or 1, C, D]` at stride 2 in space, pairs starting at column 0: a plain map."""
  kt, kh, kw = kernel.shape[:3]
  none = (0, 0)
  # Output w takes columns 2 w - 1 to 2 w + 1: the second of one pair and the whole of the next.
  left = kw // 2
  kernel = jnp.pad(kernel, (none, none, (left, 1 - left), none, none))
  padding = [(kt // 2, kt // 2), (kh // 2, kh // 2), (left, 0)]
  return _convolve(clear_phantoms(x), _pair_inputs(kernel), (stride, 2, 1), padding)


def convolve(x: Folded, kernel: Array, strides: Triple, padding: Triple) -> Folded | Array:
  """Convolves a folded map with `[kt, kh, kw, C, D]`, zeros outside.

  Returns:
    a folded map where the stride in space is 1, else a plain one.

  Raises:
    ValueError: a convolution that the fold does not cover: other than "same" padding of odd sizes,
      wider than 3 columns, or of other strides.
  """
  widths = kernel.shape[:3]
  if padding == tuple(k // 2 for k in widths) and all(k % 2 for k in widths) and widths[2] <= 3:
    if strides == (1, 1, 1):
      return _across_columns(x, kernel) if widths[2] == 3 else _within_columns(x, kernel)
    if strides[1:] == (2, 2) and x.layout.shift == 0:
      return _out_of_the_fold(x, kernel, strides[0])
  raise ValueError(
    f"A map in {x.layout} cannot be convolved by {widths} at strides {strides} and padding "
    f"{padding}: unfold it first."
  )
