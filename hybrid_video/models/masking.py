"""Masks over space-time patches, and what masked pretraining predicts: shared by all models that do so.

In: a key for masks; clips as pixels for targets. Out: indices of visible and of masked patches, in the order
(time, row, column); normalized pixels of masked patches; each clip's loss.

Source: Tong et al. 2022 (arXiv:2203.12602) and its code, github.com/MCG-NJU/VideoMAE.
"""

import math

import jax
import jax.numpy as jnp

from hybrid_video import errors
from hybrid_video.models.layers import Array
from hybrid_video.models.model_error import ModelError
from hybrid_video.models.patches import cut, join

MASK_RATIO = 0.9
TARGETS = NORMALIZED, PIXELS, MOTION = "normalized", "pixels", "motion"
# What pixels in 0 to 1 are shifted and scaled by where patches are not normalized.
GREY, CONTRAST = 0.5, 0.25


def masked_cells(grid: tuple[int, int, int], ratio: float) -> int:
  """How many cells of the picture a mask hides, `int(ratio * rows * columns)`.

  Args:
    grid: patches along (time, height, width).
    ratio: share of the cells.

  Raises:
    ModelError: a ratio that hides none or all.
  """
  cells = grid[1] * grid[2]
  count = int(ratio * cells) if 0.0 <= ratio <= 1.0 else -1
  if not 0 < count < cells:
    raise ModelError(
      f"A mask ratio of {ratio} does not split a grid of {grid[1]} x {grid[2]} cells: at least one "
      f"must be hidden and one left, so that the ratio lies from {1 / cells:.3g} to below 1. Choose "
      "another ratio or a larger image."
    )
  return count


def tube_mask(
  key: Array, batch: int, grid: tuple[int, int, int], ratio: float = MASK_RATIO
) -> tuple[Array, Array]:
  """Draws masks that hide the same cells of the picture at all times of a clip.

  Args:
    key: a `jax.random` key; every clip draws its own cells.
    batch: clips.
    grid: patches along (time, height, width), see `token_grid`.
    ratio: share of the cells hidden, rounded down to `int(ratio * rows * columns)` cells.

  Returns:
    Indices of the visible tokens `[batch, V]` and of the masked ones `[batch, M]`: int32, each
    ascending; V + M is the number of tokens.

  Raises:
    ModelError: a ratio that hides none or all.
  """
  slots, cells = grid[0], grid[1] * grid[2]
  hidden_cells = masked_cells(grid, ratio)
  hidden = jnp.broadcast_to(jnp.arange(cells) < hidden_cells, (batch, cells))
  hidden = jax.random.permutation(key, hidden, axis=1, independent=True)
  # A stable sort of one time's cells: the visible ones come first, and each kind ascends.
  order = jnp.argsort(hidden, axis=1, stable=True).astype(jnp.int32)
  starts = cells * jnp.arange(slots, dtype=jnp.int32)

  def at_all_times(of_cells: Array) -> Array:
    return (starts[:, None] + of_cells[:, None, :]).reshape(batch, -1)

  visible = cells - hidden_cells
  return at_all_times(order[:, :visible]), at_all_times(order[:, visible:])


def check(batch: int, grid: tuple[int, int, int], visible: jax.Array, masked: jax.Array) -> None:
  """Checks that a mask is one of a batch of clips.

  Args:
    batch: clips.
    grid: their patches along (time, height, width).
    visible, masked: indices of patches, see `tube_mask`.

  Raises:
    ValueError: indices of another shape than the clips need.
  """
  count = math.prod(grid)
  fits = (
    visible.ndim == masked.ndim == 2
    and visible.shape[0] == masked.shape[0] == batch
    and visible.shape[1] + masked.shape[1] == count
    and 0 not in (visible.shape[1], masked.shape[1])
  )
  if not fits:
    raise ValueError(
      f"Visible tokens {visible.shape} and masked tokens {masked.shape} came with {batch} clips that have "
      f"{count} tokens each, at least one of them visible and one masked; see `tube_mask`."
    )


def checked_targets(kind: str) -> str:
  """The kind of targets.

  Raises:
    ModelError: there is no such kind.
  """
  if kind not in TARGETS:
    raise ModelError(
      f"targets={kind!r} is none of {', '.join(TARGETS)}.{errors.nearest(kind, TARGETS)}"
    )
  return kind


def patch_targets(
  pixels: Array,
  masked: Array,
  patch: tuple[int, int, int] = (2, 16, 16),
  *,
  kind: str = NORMALIZED,
) -> Array:
  """What pretraining predicts of masked patches, one of `TARGETS`.

  - normalized: each channel of a patch, in 0 to 1, loses its mean and is divided by its standard deviation
    (unbiased variance) plus 1e-6, as in VideoMAE. Of a flat patch only noise is left.
  - pixels: as they are, shifted and scaled alike.
  - motion: less the mean over the clip's time at their place, scaled alike; what stands still is zero. In the
    sense of MotionMAE (Yang et al. 2022, arXiv:2210.04154), which predicts differences of frames.

  Args:
    pixels: clips `[B, T, H, W, 3]`: uint8, or floats in 0 to 1; not normalized ones.
    masked: indices `[B, M]` of the masked patches.
    patch: frames, rows and columns of one.
    kind: one of `TARGETS`.

  Returns:
    float32 `[B, M, values]`, values in the order (frame, row, column, channel).

  Raises:
    ModelError: lengths that patches do not divide.
    ValueError: pixels of another type, or indices of other clips.
  """
  if pixels.dtype != jnp.uint8 and not jnp.issubdtype(pixels.dtype, jnp.floating):
    raise ValueError(f"Pixels of type {pixels.dtype}: uint8 or floats in 0 to 1 expected.")
  if any(length % size for length, size in zip(pixels.shape[1:4], patch, strict=True)):
    raise ModelError(
      f"Clips of {tuple(pixels.shape[1:4])} (frames, height, width) are not multiples of their patches, "
      f"{patch}: sample or crop them to lengths that are."
    )
  of_clips = _less_their_mean(pixels) if kind == MOTION else pixels
  tokens = cut(of_clips, patch)
  tokens = tokens.reshape(len(pixels), -1, tokens.shape[-1])
  if masked.ndim != 2 or masked.shape[0] != tokens.shape[0]:
    raise ValueError(f"Masked tokens {masked.shape} came with {tokens.shape[0]} clips.")
  x = jnp.take_along_axis(tokens, masked[..., None], axis=1)
  if kind == MOTION:
    return x / CONTRAST
  x = _from_0_to_1(x)
  if kind == PIXELS:
    return (x - GREY) / CONTRAST
  x = x.reshape(*x.shape[:2], -1, 3)
  centred = x - x.mean(2, keepdims=True)
  deviation = jnp.sqrt(jnp.square(centred).sum(2, keepdims=True) / (x.shape[2] - 1))
  return (centred / (deviation + 1e-6)).reshape(*x.shape[:2], -1)


def _from_0_to_1(pixels: Array) -> Array:
  return pixels.astype(jnp.float32) / (255.0 if pixels.dtype == jnp.uint8 else 1.0)


def _less_their_mean(pixels: Array) -> Array:
  """Clips `[B, T, H, W, 3]` less their mean over time."""
  x = _from_0_to_1(pixels)
  return x - x.mean(1, keepdims=True)


def clip_losses(predictions: Array, targets: Array) -> Array:
  """Each clip's mean squared error: `[B, M, values]` twice to float32 `[B]`.

  A caller weighs and sums them over the clips that count, and divides once by how many those are.
  Predicting zero costs 511/512 where patches of 512 pixels are not flat: the variance is unbiased.

  Raises:
    ValueError: two different shapes.
  """
  if predictions.shape != targets.shape:
    raise ValueError(
      f"Predictions of shape {predictions.shape} and targets of shape {targets.shape} differ: both "
      "take the same mask."
    )
  difference = predictions.astype(jnp.float32) - targets.astype(jnp.float32)
  return jnp.square(difference).mean((1, 2))


def reconstruct(
  pixels: Array,
  predictions: Array,
  masked: Array,
  patch: tuple[int, int, int],
  *,
  kind: str = NORMALIZED,
) -> tuple[Array, Array]:
  """What a model saw of clips, and what it makes of the rest.

  Normalized predictions do not say a patch's mean and deviation: these are the hidden patch's own, as in
  VideoMAE's figures. Motion is drawn around grey, which stands for the mean over time.

  Args:
    pixels: clips `[B, T, H, W, 3]`, uint8.
    predictions: `[B, M, values]` of the masked patches.
    masked: their indices `[B, M]`.
    patch: frames, rows and columns of one.
    kind: what the predictions are, one of `TARGETS`.

  Returns:
    Clips uint8 `[B, T, H, W, 3]` with hidden patches in grey, and with predictions in their place.
  """
  grid = cut(pixels.astype(jnp.float32) / 255.0, patch)
  tokens = grid.reshape(len(pixels), -1, grid.shape[-1])
  hidden = jnp.take_along_axis(tokens, masked[..., None], axis=1)
  hidden = hidden.reshape(*hidden.shape[:2], -1, 3)
  drawn = predictions.reshape(hidden.shape)
  if kind == NORMALIZED:
    drawn = drawn * hidden.std(2, keepdims=True, ddof=1) + hidden.mean(2, keepdims=True)
  else:
    drawn = drawn * CONTRAST + GREY

  def with_patches(values: Array) -> Array:
    rows = jnp.arange(len(pixels))[:, None]
    filled = tokens.at[rows, masked].set(values.reshape(predictions.shape))
    clips = join(filled.reshape(grid.shape), patch)
    return (255.0 * jnp.clip(clips, 0.0, 1.0)).round().astype(jnp.uint8)

  return with_patches(jnp.full_like(drawn, 0.5)), with_patches(drawn)
