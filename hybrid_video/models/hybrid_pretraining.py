"""Masked pretraining of the hybrid: from what a mask leaves, the pixels of the patches that it hides.

In: clips `[B, T, H, W, 3]` normalized for the model, and a mask, see `masking`. Out: the pixels predicted for
masked patches.

A convolution reads across the edge of a mask, and after 8 blocks it has read all of the clip: masks behind the
CNN would hide nothing. So hidden pixels are taken away before the first convolution. Latents then read the
feature map's cells that lie over visible patches, and a decoder asks the latents for each hidden patch by its
position, as Perceiver IO does (Jaegle et al. 2021, arXiv:2107.14795, section 3.2).
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video.models import masking, perceiver, rematerialization, sparse
from hybrid_video.models.hybrid import Hybrid
from hybrid_video.models.layers import Array, DType, LayerNorm, Linear, truncated_normal_002
from hybrid_video.models.model_error import ModelError
from hybrid_video.models.videomae import sinusoid_positions, token_grid

HIDDEN = SPARSE, REPLACED = "sparse", "replaced"
_FRAMES, _SIZE = 16, 112


class PositionDecoder(nnx.Module):
  """Pixels of patches, asked for by position: a learned query and the place's sines attend to latents."""

  def __init__(
    self,
    latent_width: int,
    values: int,
    *,
    width: int,
    depth: int,
    heads: int,
    dtype: DType,
    rng: np.random.Generator,
  ):
    if width % heads:
      raise ModelError(
        f"decoder_width={width} does not divide among decoder_heads={heads}: choose a multiple of {heads}."
      )
    self.mask_token = nnx.Param(truncated_normal_002(rng, width))
    self.blocks = nnx.Dict(
      {
        str(i): perceiver.CrossBlock(
          width,
          latent_width,
          heads=heads,
          head_dim=width // heads,
          multiplier=4,
          dropout=0.0,
          dtype=dtype,
          rng=rng,
        )
        for i in range(depth)
      }
    )
    self.norm = LayerNorm(width, dtype=dtype)
    self.head = Linear(width, values, dtype=dtype, rng=rng)
    self.width = width
    self.dtype = dtype

  def __call__(self, latents: Array, places: Array, count: int) -> Array:
    """Latents `[B, N, D]` and indices `[B, Q]` of `count` patches to float32 `[B, Q, values]`."""
    table = jnp.asarray(sinusoid_positions(count, self.width), self.dtype)
    x = self.mask_token[...].astype(self.dtype) + table[places]
    for i in range(len(self.blocks)):
      x = self.blocks[str(i)](x, latents)
    return self.head(self.norm(x)).astype(jnp.float32)


class HybridForPreTraining(nnx.Module):
  """Masked autoencoder whose encoder is the hybrid's trunk and attention.

  The parameters under `cnn` and `attention` are those of a classifier of the same options.

  Args:
    cnn, cnn_blocks, cnn_width, patch, remat, cross_blocks, self_blocks, pool, use_cls, latents, width,
      cross_heads, self_heads, head_dim, multiplier, bands, max_freq, time_cells, tie_groups, latent_std: see
      `Hybrid`. The decoder reads the CLS token, if there is one, like a latent.
    frames: of a clip; 16 unless given.
    image_size: height and width of a clip in pixels; 112 unless given.
    mask_patch: frames, rows and columns of a patch that is hidden and predicted. Its sides are multiples
      of the trunk's stride in space.
    mask_ratio: share of the cells of the picture that a mask hides, see `masking.tube_mask`.
    targets: what is predicted, one of `masking.TARGETS`, see `masking.patch_targets`.
    hidden: what the trunk makes of hidden patches. "sparse": zeros after every convolution, which enter no
      statistic of BatchNorm, see `sparse`; "replaced": what it makes of zeros in their place.
    decoder_width, decoder_depth, decoder_heads: of the decoder's cross attention.
    dtype: of the arithmetic; parameters stay float32.
    rng: source of the initial values.

  Attributes:
    grid: patches along (time, height, width) of the clips that it takes.
    patch: frames, rows and columns of one.
    mask_ratio: for whoever draws the masks.
    targets: for whoever makes them.

  Raises:
    ModelError: options that do not fit together, or a ratio that masks nothing or everything.
  """

  def __init__(
    self,
    *,
    cnn: str = "r2plus1d_18",
    cnn_blocks: int = 8,
    cnn_width: int = 64,
    patch: tuple[int, int, int] = (2, 8, 8),
    remat: str = rematerialization.NONE,
    cross_blocks: int = 1,
    self_blocks: int = 1,
    pool: str = "cls",
    use_cls: bool | None = None,
    latents: int = 256,
    width: int = 512,
    cross_heads: int = 1,
    self_heads: int = 8,
    head_dim: int = 64,
    multiplier: int = 4,
    bands: int = 6,
    max_freq: float | tuple[float, float, float] | None = 10.0,
    time_cells: int = 0,
    tie_groups: bool = False,
    latent_std: float = 0.02,
    frames: int | None = None,
    image_size: int | None = None,
    mask_patch: tuple[int, int, int] = (2, 16, 16),
    mask_ratio: float = 0.75,
    targets: str = masking.NORMALIZED,
    hidden: str = SPARSE,
    decoder_width: int = 512,
    decoder_depth: int = 1,
    decoder_heads: int = 8,
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    encoder = Hybrid(
      1,
      cnn=cnn,
      cnn_blocks=cnn_blocks,
      cnn_width=cnn_width,
      patch=patch,
      remat=remat,
      cross_blocks=cross_blocks,
      self_blocks=self_blocks,
      pool=pool,
      use_cls=use_cls,
      latents=latents,
      width=width,
      cross_heads=cross_heads,
      self_heads=self_heads,
      head_dim=head_dim,
      multiplier=multiplier,
      bands=bands,
      max_freq=max_freq,
      time_cells=time_cells,
      tie_groups=tie_groups,
      latent_std=latent_std,
      dtype=dtype,
      rng=rng,
    )
    self.cnn, self.attention = encoder.cnn, encoder.attention
    self.decoder = PositionDecoder(
      width,
      3 * math.prod(mask_patch),
      width=decoder_width,
      depth=decoder_depth,
      heads=decoder_heads,
      dtype=dtype,
      rng=rng,
    )
    if hidden not in HIDDEN:
      raise ModelError(f"hidden={hidden!r} is none of {', '.join(HIDDEN)}.")
    self.clip_shape = (frames or _FRAMES, image_size or _SIZE, image_size or _SIZE, 3)
    self.grid = token_grid(*self.clip_shape[:3], mask_patch)
    self.patch, self.mask_ratio, self.hidden = mask_patch, mask_ratio, hidden
    self.targets = masking.checked_targets(targets)
    masking.masked_cells(self.grid, mask_ratio)
    _check_sides(mask_patch, self.cnn.strides)

  def __call__(self, clips: Array, visible: Array, masked: Array) -> Array:
    """Predicts the masked patches of clips.

    Args:
      clips: `[B, T, H, W, 3]`, normalized.
      visible: indices `[B, V]` of the patches that are read, from `masking.tube_mask`.
      masked: indices `[B, M]` of the others; V + M is the number of patches.

    Returns:
      float32 `[B, M, values]`, in the order of `masked`, to compare with `masking.patch_targets`.

    Raises:
      ModelError: clips of another size.
      ValueError: indices of another shape than the clips need.
    """
    masking.check(len(clips), self.grid, visible, masked)
    return self.decoder(self.encode(clips, visible), masked, math.prod(self.grid))

  def features(self, clips: Array) -> Array:
    """Whole clips `[B, T, H, W, 3]` (normalized) to the mean of their latents, float32 `[B, D]`."""
    return self.attention(self.cnn(clips)).astype(jnp.float32).mean(1)

  def encode(self, clips: Array, visible: Array) -> Array:
    """Clips and the indices `[B, V]` of the patches that are read to latents `[B, N, D]`.

    Raises:
      ModelError: clips of another size.
    """
    if clips.shape[1:] != self.clip_shape:
      raise ModelError(
        f"Clips of shape [T, H, W, 3] = {list(clips.shape[1:])} came to a model that is pretrained on "
        f"{list(self.clip_shape)}: build it with frames and image_size of the clips."
      )
    # A tube is seen or hidden at all times; the first time's patches are the cells of the picture.
    cells = visible[:, : visible.shape[1] // self.grid[0]]
    rows, columns = self.grid[1:]
    is_seen = jax.nn.one_hot(cells, rows * columns, dtype=clips.dtype).sum(1)
    seen = is_seen.reshape(-1, rows, columns)
    # What is hidden does not even come to the first convolution.
    clips = clips * sparse.spread(seen, clips)
    if self.hidden == SPARSE:
      with sparse.only(seen):
        features = self.cnn(clips)
    else:
      features = self.cnn(clips)
    tokens, positions = self._read(features, cells)
    return self.attention.attend(tokens, positions if len(self.attention.cross) else None)

  def _read(self, features: Array, cells: Array) -> tuple[Array, Array]:
    """The tokens `[B, M, C]` of a feature map that lie in cells `[B, K]`, and their positions `[B, M, P]`."""
    batch, slots, height, width, channels = features.shape
    rows, columns = self.grid[1:]
    places = np.arange(height * width).reshape(rows, height // rows, columns, width // columns)
    of_cells = places.transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    chosen = jnp.asarray(of_cells)[cells].reshape(batch, 1, -1)
    chosen = (chosen + height * width * jnp.arange(slots)[:, None]).reshape(batch, -1)
    tokens = features.reshape(batch, -1, channels)
    positions = self.attention.positions((slots, height, width))
    return jnp.take_along_axis(tokens, chosen[..., None], axis=1), jnp.asarray(positions)[chosen]


def _check_sides(mask_patch: tuple[int, int, int], strides: tuple[int, int, int]) -> None:
  if any(side % stride for side, stride in zip(mask_patch[1:], strides[1:], strict=True)):
    raise ModelError(
      f"mask_patch={mask_patch} is no multiple of the {strides[1]} x {strides[2]} pixels that a cell of the "
      "trunk's map stands for: choose a larger patch, or cut the trunk earlier (cnn_blocks)."
    )
