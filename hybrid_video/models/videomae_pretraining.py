"""VideoMAE's masked pretraining: the model that predicts the pixels of masked patches.

In: clips `[B, T, H, W, 3]` normalized for the model, and a mask, see `masking`. Out: the pixels predicted for
masked patches.

Source: Tong et al. 2022 (arXiv:2203.12602) and its code, github.com/MCG-NJU/VideoMAE.
"""

import math

from flax import nnx
import jax.numpy as jnp
import numpy as np

from hybrid_video.models import masking, rematerialization
from hybrid_video.models.layers import (
  Array,
  DType,
  LayerNorm,
  Linear,
  truncated_normal_002,
  xavier_uniform,
)
from hybrid_video.models.videomae import (
  PATCH,
  Encoder,
  Size,
  initialized_linear,
  sinusoid_positions,
  sized,
  through_blocks,
  transformer_blocks,
)


class Decoder(nnx.Module):
  """Predicts the pixels of masked patches from visible tokens, mask tokens and positions."""

  def __init__(
    self,
    size: Size,
    values: int,
    *,
    epsilon: float,
    norm_epsilon: float,
    remat: str,
    dtype: DType,
    rng: np.random.Generator,
  ):
    width = size.decoder_width
    # The original initializes this one map by PyTorch's default; so does Linear.
    self.embed = Linear(size.width, width, use_bias=False, dtype=dtype, rng=rng)
    self.mask_token = nnx.Param(truncated_normal_002(rng, width))
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
    self.head = initialized_linear(width, values, xavier_uniform, dtype=dtype, rng=rng)
    self.width = width
    self.remat = rematerialization.policy(remat)
    self.dtype = dtype

  def __call__(self, tokens: Array, visible: Array, masked: Array) -> Array:
    """Visible tokens `[B, V, D]` with indices `[B, V]`, `[B, M]` to float32 `[B, M, values]`."""
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
    patch: frames, rows and columns of a patch.
    width, depth, heads: the encoder's channels, blocks and attention heads, for the preset's.
    decoder_width, decoder_depth, decoder_heads: the decoder's.
    mask_ratio: share of the cells of the picture that a mask hides, see `masking.tube_mask`.
    targets: what is predicted, one of `masking.TARGETS`, see `masking.patch_targets`.
    layer_norm_epsilon: in all blocks and at the encoder's end.
    decoder_norm_epsilon: at the decoder's end.
    remat: what of each block is computed again in the backward pass, to save memory; one of
      `rematerialization.POLICIES`.
    dtype: of the arithmetic; parameters stay float32.
    rng: source of the initial values.

  Attributes:
    grid: patches along (time, height, width) of the clips that it takes.
    patch: frames, rows and columns of one.
    mask_ratio: for whoever draws the masks.
    targets: for whoever makes them.

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
    patch: tuple[int, int, int] = PATCH,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
    decoder_heads: int | None = None,
    mask_ratio: float = masking.MASK_RATIO,
    targets: str = masking.NORMALIZED,
    layer_norm_epsilon: float = 1e-6,
    decoder_norm_epsilon: float = 1e-6,
    remat: str = rematerialization.NONE,
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
      patch=patch,
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
      3 * math.prod(patch),
      epsilon=layer_norm_epsilon,
      norm_epsilon=decoder_norm_epsilon,
      remat=remat,
      dtype=dtype,
      rng=rng,
    )
    self.grid = self.attention.grid
    self.patch = patch
    masking.masked_cells(self.grid, mask_ratio)
    self.mask_ratio, self.targets = mask_ratio, masking.checked_targets(targets)

  def __call__(self, clips: Array, visible: Array, masked: Array) -> Array:
    """Predicts the masked patches of clips.

    Args:
      clips: `[B, T, H, W, 3]`, normalized.
      visible: indices `[B, V]` of the tokens that the encoder reads, from `masking.tube_mask`.
      masked: indices `[B, M]` of the others; V + M is the number of tokens.

    Returns:
      float32 `[B, M, values]`, in the order of `masked`, to compare with `masking.patch_targets`.

    Raises:
      ModelError: clips of another size.
      ValueError: indices of another shape than the clips need.
    """
    masking.check(len(clips), self.grid, visible, masked)
    return self.decoder(self.attention(clips, visible), visible, masked)

  def features(self, clips: Array) -> Array:
    """Whole clips `[B, T, H, W, 3]` (normalized) to the mean of their tokens, float32 `[B, D]`."""
    return self.attention(clips).astype(jnp.float32).mean(1)
