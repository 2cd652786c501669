"""VideoMAE's masked pretraining: masks, the model that predicts masked patches, targets and loss.

In: clips `[B, T, H, W, 3]` normalized for the model, the same clips as pixels for the targets, and a
key for the masks. Out: the pixels predicted for masked patches and each clip's loss.

Source: Tong et al. 2022 (arXiv:2203.12602) and its code, github.com/MCG-NJU/VideoMAE.
"""

import math
import statistics

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video.models.layers import Array, DType, LayerNorm, Linear, xavier_uniform
from hybrid_video.models.model_error import ModelError
from hybrid_video.models.videomae import (
  PATCH_VALUES,
  Encoder,
  Size,
  initialized_linear,
  patches,
  sinusoid_positions,
  sized,
  through_blocks,
  transformer_blocks,
)

MASK_RATIO = 0.9


def _initial_mask_token(rng: np.random.Generator, width: int) -> np.ndarray:
  """Normal values with std 0.02 truncated at ±0.02, as the original draws them."""
  gauss = statistics.NormalDist()
  low, high = gauss.cdf(-1.0), gauss.cdf(1.0)
  draws = low + (high - low) * rng.random(width)
  return np.array([0.02 * gauss.inv_cdf(draw) for draw in draws], np.float32)


class Decoder(nnx.Module):
  """Predicts the pixels of masked patches from visible tokens, mask tokens and positions."""

  def __init__(
    self,
    size: Size,
    *,
    epsilon: float,
    norm_epsilon: float,
    remat: bool,
    dtype: DType,
    rng: np.random.Generator,
  ):
    width = size.decoder_width
    # The original initializes this one map by PyTorch's default; so does Linear.
    self.embed = Linear(size.width, width, use_bias=False, dtype=dtype, rng=rng)
    self.mask_token = nnx.Param(_initial_mask_token(rng, width))
    self.blocks = transformer_blocks(
      width,
      size.decoder_depth,
      size.decoder_heads,
      epsilon=epsilon,
      init=xavier_uniform,
      dtype=dtype,
      rng=rng,
    )
    self.norm = LayerNorm(width, norm_epsilon, dtype=dtype)
    self.head = initialized_linear(width, PATCH_VALUES, xavier_uniform, dtype=dtype, rng=rng)
    self.width = width
    self.remat = remat
    self.dtype = dtype

  def __call__(self, tokens: Array, visible: Array, masked: Array) -> Array:
    """Visible tokens `[B, V, D]` with indices `[B, V]`, `[B, M]` to float32 `[B, M, 1536]`."""
    count = visible.shape[1] + masked.shape[1]
    positions = jnp.asarray(sinusoid_positions(count, self.width), self.dtype)
    seen = self.embed(tokens) + positions[visible]
    queries = self.mask_token[...].astype(self.dtype) + positions[masked]
    x = jnp.concatenate([seen, queries], axis=1)
    x = through_blocks(self.blocks, x, remat=self.remat)
    return self.head(self.norm(x[:, visible.shape[1] :])).astype(jnp.float32)


class VideoMAEForPreTraining(nnx.Module):
  """Masked autoencoder: an encoder of visible patches and a decoder of masked patches' pixels.

  The parameters under `attention` are the classifier's, and the norm that ends the encoder.

  Args:
    size: one of `SIZES`.
    frames: of a clip; 16 unless given.
    image_size: height and width of a clip in pixels; 224 unless given.
    width, depth, heads: the encoder's channels, blocks and attention heads, for the preset's.
    decoder_width, decoder_depth, decoder_heads: the decoder's.
    mask_ratio: share of the cells of the picture that a mask hides, see `tube_mask`; an
      attribute for whoever draws the masks.
    layer_norm_epsilon: in all blocks and at the encoder's end.
    decoder_norm_epsilon: at the decoder's end.
    remat: whether each block's activations are computed again in the backward pass, to save memory.
    dtype: of the arithmetic; parameters stay float32.
    rng: source of the initial values.

  Raises:
    ModelError: an unknown size, lengths that do not fit together, or a ratio that masks nothing or
      everything; the message says which.
  """

  def __init__(
    self,
    *,
    size: str = "base",
    frames: int | None = None,
    image_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
    decoder_heads: int | None = None,
    mask_ratio: float = MASK_RATIO,
    layer_norm_epsilon: float = 1e-6,
    decoder_norm_epsilon: float = 1e-6,
    remat: bool = False,
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    preset = sized(
      size,
      width=width,
      depth=depth,
      heads=heads,
      decoder_width=decoder_width,
      decoder_depth=decoder_depth,
      decoder_heads=decoder_heads,
    )
    self.attention = Encoder(
      preset,
      frames=frames,
      image_size=image_size,
      drop_path=0.0,
      final_norm=True,
      epsilon=layer_norm_epsilon,
      init=xavier_uniform,
      remat=remat,
      dtype=dtype,
      rng=rng,
    )
    self.decoder = Decoder(
      preset,
      epsilon=layer_norm_epsilon,
      norm_epsilon=decoder_norm_epsilon,
      remat=remat,
      dtype=dtype,
      rng=rng,
    )
    _masked_cells(self.attention.grid, mask_ratio)
    self.mask_ratio = mask_ratio

  def __call__(self, clips: Array, visible: Array, masked: Array) -> Array:
    """Predicts the masked patches of clips.

    Args:
      clips: `[B, T, H, W, 3]`, normalized.
      visible: indices `[B, V]` of the tokens that the encoder reads, from `tube_mask`.
      masked: indices `[B, M]` of the others; V + M is the number of tokens.

    Returns:
      float32 `[B, M, 1536]`, in the order of `masked`, to compare with `patch_targets`.

    Raises:
      ModelError: clips of another size.
      ValueError: indices of another shape than the clips need.
    """
    batch, tokens = clips.shape[0], math.prod(self.attention.grid)
    fits = (
      visible.ndim == masked.ndim == 2
      and visible.shape[0] == masked.shape[0] == batch
      and visible.shape[1] + masked.shape[1] == tokens
      and 0 not in (visible.shape[1], masked.shape[1])
    )
    if not fits:
      raise ValueError(
        f"Visible tokens {visible.shape} and masked tokens {masked.shape} came with {batch} clips "
        f"that have {tokens} tokens each, at least one of them visible and one masked; see "
        "`tube_mask`."
      )
    return self.decoder(self.attention(clips, visible), visible, masked)


def _masked_cells(grid: tuple[int, int, int], ratio: float) -> int:
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
  hidden_cells = _masked_cells(grid, ratio)
  hidden = jnp.broadcast_to(jnp.arange(cells) < hidden_cells, (batch, cells))
  hidden = jax.random.permutation(key, hidden, axis=1, independent=True)
  # A stable sort of one time's cells: the visible ones come first, and each kind ascends.
  order = jnp.argsort(hidden, axis=1, stable=True).astype(jnp.int32)
  starts = cells * jnp.arange(slots, dtype=jnp.int32)

  def at_all_times(of_cells: Array) -> Array:
    return (starts[:, None] + of_cells[:, None, :]).reshape(batch, -1)

  visible = cells - hidden_cells
  return at_all_times(order[:, :visible]), at_all_times(order[:, visible:])


def patch_targets(pixels: Array, masked: Array) -> Array:
  """What pretraining predicts: pixels of masked patches, normalized by patch and channel.

  Each channel of a patch, 512 pixels in 0 to 1, loses its mean and is divided by its standard
  deviation (unbiased variance) plus 1e-6.

  Args:
    pixels: clips `[B, T, H, W, 3]`: uint8, or floats in 0 to 1; not normalized ones.
    masked: indices `[B, M]` of the masked tokens.

  Returns:
    float32 `[B, M, 1536]`.

  Raises:
    ModelError: lengths that patches do not divide.
    ValueError: pixels of another type, or indices of other clips.
  """
  if pixels.dtype != jnp.uint8 and not jnp.issubdtype(pixels.dtype, jnp.floating):
    raise ValueError(f"Pixels of type {pixels.dtype}: uint8 or floats in 0 to 1 expected.")
  tokens = patches(pixels)
  if masked.ndim != 2 or masked.shape[0] != tokens.shape[0]:
    raise ValueError(f"Masked tokens {masked.shape} came with {tokens.shape[0]} clips.")
  x = jnp.take_along_axis(tokens, masked[..., None], axis=1)
  x = x.astype(jnp.float32) / (255.0 if pixels.dtype == jnp.uint8 else 1.0)
  x = x.reshape(*x.shape[:2], -1, 3)
  centred = x - x.mean(2, keepdims=True)
  deviation = jnp.sqrt(jnp.square(centred).sum(2, keepdims=True) / (x.shape[2] - 1))
  return (centred / (deviation + 1e-6)).reshape(*x.shape[:2], -1)


def clip_losses(predictions: Array, targets: Array) -> Array:
  """Each clip's mean squared error: `[B, M, 1536]` twice to float32 `[B]`.

  A caller weighs and sums them over the clips that count, and divides once by how many those are.
  Predicting zero costs 511/512 where no patch is flat: the variance is unbiased.

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
