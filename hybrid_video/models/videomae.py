"""VideoMAE: a plain vision transformer over space-time patches, as an encoder and as a classifier.

In: clips `[B, T, H, W, 3]` normalized with ImageNet's mean and standard deviation. Out: tokens
`[B, N, D]` (the encoder) or logits `[B, classes]` (the classifier). Its masked pretraining is in
`videomae_pretraining`.

Tokens are patches, of 2 frames by 16 by 16 pixels in the published models, in the order (time, row, column); a
patch is flattened to 1,536 numbers in the order (frame, row, column, channel), here and in the targets.

Source: Tong et al. 2022 (arXiv:2203.12602) and its code, github.com/MCG-NJU/VideoMAE.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video import errors
from hybrid_video.models import relevance, rematerialization, residual
from hybrid_video.models.attention import attend
from hybrid_video.models.layers import Array, DType, LayerNorm, Linear, normal, resampled
from hybrid_video.models.model_error import ModelError
from hybrid_video.models.patches import cut

# Frames, rows and columns of a patch of the published models.
PATCH = (2, 16, 16)
# Clips of the published models.
FRAMES = 16
IMAGE_SIZE = 224
# What the classifier reads.
POOLS = MEAN, FIRST = "mean", "first"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Initializer = Callable[[np.random.Generator, Sequence[int]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Size:
  """Channels, blocks and attention heads of an encoder and of the decoder that pretrains it."""

  width: int
  depth: int
  heads: int
  decoder_width: int
  decoder_depth: int
  decoder_heads: int


SIZES = {
  "small": Size(384, 12, 6, 192, 4, 3),
  "base": Size(768, 12, 12, 384, 4, 6),
  "large": Size(1024, 24, 16, 512, 12, 8),
  "huge": Size(1280, 32, 16, 640, 12, 8),
}


def sized(size: str, **overrides: int | None) -> Size:
  """The preset `size` with every override that is not None in its place.

  Raises:
    ModelError: an unknown size, a count below 1, or a width that its heads do not divide.
  """
  if size not in SIZES:
    raise ModelError(
      f"There is no VideoMAE of size {size!r}. Known: {', '.join(SIZES)}."
      f"{errors.nearest(size, SIZES)}"
    )
  given = {name: value for name, value in overrides.items() if value is not None}
  resized = dataclasses.replace(SIZES[size], **given)
  for name, value in dataclasses.asdict(resized).items():
    if value < 1:
      raise ModelError(f"{name}={value} of a VideoMAE is at least 1.")
  for part in ("", "decoder_"):
    width, heads = getattr(resized, f"{part}width"), getattr(resized, f"{part}heads")
    if width % heads:
      raise ModelError(
        f"{part}width={width} does not divide among {part}heads={heads}: choose a {part}width that "
        f"is a multiple of {heads}."
      )
  return resized


def token_grid(
  frames: int, height: int, width: int, patch: tuple[int, int, int] = PATCH
) -> tuple[int, int, int]:
  """Patches along (time, height, width) of a clip of `frames` frames, `height` x `width` pixels.

  Raises:
    ModelError: a length that patches do not divide, or no patch.
  """
  if len(patch) != 3 or min(patch) < 1:
    raise ModelError(f"patch={patch}: expected frames, rows and columns, each at least 1.")
  counts = []
  for name, length, size, unit in zip(
    ("frames", "height", "width"),
    (frames, height, width),
    patch,
    ("frames", "pixels", "pixels"),
    strict=True,
  ):
    if length < size or length % size:
      below = length // size * size
      fitting = f"{below} or {below + size}" if below else f"{size}, or a multiple of it"
      raise ModelError(
        f"A clip's {name} of {length} is not a multiple of a patch's {size} {unit}: sample or crop "
        f"the clip to {fitting}."
      )
    counts.append(length // size)
  slots, rows, columns = counts
  return slots, rows, columns


def patches(clips: Array, patch: tuple[int, int, int] = PATCH) -> Array:
  """Clips `[B, T, H, W, 3]` to their patches `[B, N, values]`, values as in `patches.cut`.

  Raises:
    ModelError: clips of another shape, or a length that patches do not divide.
  """
  if clips.ndim != 5 or clips.shape[-1] != 3:
    raise ModelError(f"Clips of shape {clips.shape}; expected [B, T, H, W, 3].")
  _, frames, height, width, _ = clips.shape
  slots, rows, columns = token_grid(frames, height, width, patch)
  return cut(clips, patch).reshape(-1, slots * rows * columns, 3 * math.prod(patch))


def sinusoid_positions(count: int, width: int) -> np.ndarray:
  """The fixed position table, float32 `[count, width]`: sines in even channels, cosines in odd.

  Positions are indices into the flattened tokens, so the table of a smaller clip is the beginning
  of a larger clip's and not a coarser sampling of it.

  Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
  """
  channels = np.arange(width)
  angles = np.arange(count)[:, None] / 10_000.0 ** (2 * (channels // 2) / width)
  return np.where(channels % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def normal_002(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
  """Normal values with std 0.02, `[in, out]`: what a classifier without pretraining starts from.

  The original's truncation, at ±2, is a hundred standard deviations out and left away.
  """
  return np.float32(0.02) * normal(rng, shape)


def initialized_linear(
  fan_in: int,
  fan_out: int,
  init: Initializer,
  *,
  use_bias: bool = True,
  dtype: DType,
  rng: np.random.Generator,
) -> Linear:
  """A linear map whose kernel `[in, out]` starts as `init` draws it, and whose bias at zero."""
  layer = Linear(fan_in, fan_out, use_bias=use_bias, dtype=dtype, rng=rng)
  layer.kernel = nnx.Param(init(rng, (fan_in, fan_out)))
  if use_bias:
    layer.bias = nnx.Param(np.zeros((fan_out,), np.float32))
  return layer


class Attention(nnx.Module):
  """Multi-head self attention whose queries and values have a bias and whose keys have none."""

  def __init__(
    self, width: int, heads: int, init: Initializer, *, dtype: DType, rng: np.random.Generator
  ):
    self.qkv = initialized_linear(width, 3 * width, init, use_bias=False, dtype=dtype, rng=rng)
    self.q_bias = nnx.Param(np.zeros((width,), np.float32))
    self.v_bias = nnx.Param(np.zeros((width,), np.float32))
    self.proj = initialized_linear(width, width, init, dtype=dtype, rng=rng)
    self.heads = heads

  def __call__(self, x: Array) -> Array:
    """`[B, N, D]` to `[B, N, D]`."""
    query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
    query = query + self.q_bias[...].astype(query.dtype)
    value = value + self.v_bias[...].astype(value.dtype)
    per_head = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
    out = attend(*(y.reshape(per_head) for y in (query, key, value)))
    return self.proj(out.reshape(x.shape))


class MLP(nnx.Module):
  """Two linear maps with the exact GELU between them; four times wider inside."""

  def __init__(self, width: int, init: Initializer, *, dtype: DType, rng: np.random.Generator):
    self.fc1 = initialized_linear(width, 4 * width, init, dtype=dtype, rng=rng)
    self.fc2 = initialized_linear(4 * width, width, init, dtype=dtype, rng=rng)

  def __call__(self, x: Array) -> Array:
    """`[B, N, D]` to `[B, N, D]`."""
    return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
  """Pre-norm self attention and MLP, each residual and each dropped for whole clips at a rate.

  Source of the dropping (stochastic depth): Huang et al. 2016 (arXiv:1603.09382).
  """

  def __init__(
    self,
    width: int,
    heads: int,
    *,
    drop_path: float,
    epsilon: float,
    init: Initializer,
    dtype: DType,
    rng: np.random.Generator,
  ):
    self.norm1 = LayerNorm(width, epsilon, dtype=dtype)
    self.attn = Attention(width, heads, init, dtype=dtype, rng=rng)
    self.norm2 = LayerNorm(width, epsilon, dtype=dtype)
    self.mlp = MLP(width, init, dtype=dtype, rng=rng)
    self.drop_path = nnx.Dropout(drop_path, broadcast_dims=(1, 2))

  def __call__(self, x: Array, rngs: nnx.Rngs | None = None) -> Array:
    """`[B, N, D]` to `[B, N, D]`."""
    x = residual.add(x, self.drop_path(self.attn(self.norm1(x)), rngs=rngs))
    return residual.add(x, self.drop_path(self.mlp(self.norm2(x)), rngs=rngs))


_BLOCK: Any = rematerialization.under(Block.__call__)


def through_blocks(
  blocks: nnx.Dict, x: Array, rngs: nnx.Rngs | None = None, *, remat: str = rematerialization.NONE
) -> Array:
  """Tokens through blocks by number, `[B, N, D]` to `[B, N, D]`.

  Args:
    blocks: as `transformer_blocks` makes them.
    x: tokens.
    rngs: of the dropping.
    remat: what of each block is computed again in the backward pass; one of `rematerialization.POLICIES`.
  """
  for i in range(len(blocks)):
    block = blocks[str(i)]
    x = _BLOCK[remat](block, x, rngs)
  return x


def transformer_blocks(
  width: int,
  depth: int,
  heads: int,
  *,
  drop_path: float = 0.0,
  epsilon: float,
  init: Initializer,
  dtype: DType,
  rng: np.random.Generator,
) -> nnx.Dict:
  """Blocks by number; the drop rate rises linearly from 0 at the first to `drop_path`."""
  rates = np.linspace(0.0, drop_path, depth)
  return nnx.Dict(
    {
      str(i): Block(
        width, heads, drop_path=float(rate), epsilon=epsilon, init=init, dtype=dtype, rng=rng
      )
      for i, rate in enumerate(rates)
    }
  )


class Encoder(nnx.Module):
  """Patch embedding, fixed positions and transformer blocks over all tokens or the visible ones.

  Attributes:
    grid: patches along (time, height, width) of the clips that it takes.
    patch: frames, rows and columns of one.
  """

  def __init__(
    self,
    size: Size,
    *,
    frames: int | None,
    image_size: int | None,
    patch: tuple[int, int, int],
    drop_path: float,
    final_norm: bool,
    epsilon: float,
    init: Initializer,
    remat: str,
    dtype: DType,
    rng: np.random.Generator,
  ):
    frames = FRAMES if frames is None else frames
    image_size = IMAGE_SIZE if image_size is None else image_size
    self.grid = token_grid(frames, image_size, image_size, patch)
    self.patch = patch
    self.clip_shape = (frames, image_size, image_size, 3)
    # The original leaves its patch convolution with PyTorch's initial values; so does Linear.
    self.patch_embed = Linear(3 * math.prod(patch), size.width, dtype=dtype, rng=rng)
    self.blocks = transformer_blocks(
      size.width,
      size.depth,
      size.heads,
      drop_path=drop_path,
      epsilon=epsilon,
      init=init,
      dtype=dtype,
      rng=rng,
    )
    if final_norm:
      self.norm = LayerNorm(size.width, epsilon, dtype=dtype)
    self.final_norm = final_norm
    self.width = size.width
    self.remat = rematerialization.policy(remat)
    self.dtype = dtype

  def __call__(
    self, clips: Array, visible: Array | None = None, rngs: nnx.Rngs | None = None
  ) -> Array:
    """Clips `[B, T, H, W, 3]` and the indices `[B, V]` of visible tokens to `[B, V, D]`.

    Without indices all tokens are visible. Only visible patches are read. Clips of other lengths than the
    encoder was built for have positions between those of its own.

    Raises:
      ModelError: lengths that patches do not divide.
    """
    x = patches(clips.astype(self.dtype), self.patch)
    positions = self._positions(clips)
    if visible is not None:
      x = jnp.take_along_axis(x, visible[..., None], axis=1)
      positions = positions[0][visible]
    x = self.patch_embed(x) + positions
    x = through_blocks(self.blocks, x, rngs, remat=self.remat)
    return self.norm(x) if self.final_norm else x

  def _positions(self, clips: Array) -> Array:
    """The table of the encoder's own grid, `[1, N, D]`, over that of the clips."""
    _, frames, height, width, _ = clips.shape
    grid = token_grid(frames, height, width, self.patch)
    table: Any = sinusoid_positions(math.prod(self.grid), self.width).reshape(*self.grid, -1)
    for axis, count in enumerate(grid):
      table = resampled(table, count, axis)
    return jnp.asarray(table, self.dtype).reshape(1, -1, self.width)


class Head(nnx.Module):
  """LayerNorm, dropout and a linear classifier over one token of a clip, in float32."""

  def __init__(
    self,
    width: int,
    num_classes: int,
    *,
    has_norm: bool,
    dropout: float,
    epsilon: float,
    init_scale: float,
    rng: np.random.Generator,
  ):
    if has_norm:
      self.norm = LayerNorm(width, epsilon)
    self.has_norm = has_norm
    self.dropout = nnx.Dropout(dropout)
    self.linear = initialized_linear(width, num_classes, normal_002, dtype=jnp.float32, rng=rng)
    self.linear.kernel = nnx.Param(np.float32(init_scale) * self.linear.kernel[...])

  def __call__(self, pooled: Array, rngs: nnx.Rngs | None = None) -> Array:
    """`[B, D]` to float32 logits `[B, classes]`."""
    if self.has_norm:
      pooled = self.norm(pooled)
    return self.linear(self.dropout(pooled, rngs=rngs))


class VideoMAE(nnx.Module):
  """The classifier: an encoder and a head over the mean of its tokens, or over the first of them.

  The mean is normalized in the head. Before the first token is read all are normalized, at the
  encoder's end: the published networks differ so (`use_mean_pooling` there).

  Args:
    num_classes: classes the head tells apart.
    size: one of `SIZES`.
    frames: of a clip; 16 unless given.
    image_size: height and width of a clip in pixels; 224 unless given.
    patch: frames, rows and columns of a patch; the published weights' are 2 x 16 x 16.
    width, depth, heads: channels, blocks and attention heads, in place of the preset's.
    pool: what the head reads: "mean" of the tokens, or the "first".
    drop_path: rate at which the last block's branches are dropped; earlier ones less.
    dropout: rate in front of the linear classifier.
    init_scale: factor on the classifier's initial kernel.
    layer_norm_epsilon: in the blocks.
    head_norm_epsilon: in the head.
    remat: what of each block is computed again in the backward pass, to save memory; one of
      `rematerialization.POLICIES`.
    dtype: of the arithmetic before the head; parameters and the head stay float32.
    rng: source of the initial values.

  Raises:
    ModelError: an unknown size or pool, or lengths that do not fit together; the message says which.
  """

  def __init__(
    self,
    num_classes: int,
    *,
    size: str = "base",
    frames: int | None = None,
    image_size: int | None = None,
    patch: tuple[int, int, int] = PATCH,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    pool: str = MEAN,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    init_scale: float = 0.001,
    layer_norm_epsilon: float = 1e-6,
    head_norm_epsilon: float = 1e-6,
    remat: str = rematerialization.NONE,
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    if pool not in POOLS:
      raise ModelError(f"pool={pool!r} of a VideoMAE is none of {', '.join(POOLS)}.")
    preset = sized(size, width=width, depth=depth, heads=heads)
    self.attention = Encoder(
      preset,
      frames=frames,
      image_size=image_size,
      patch=patch,
      drop_path=drop_path,
      final_norm=pool == FIRST,
      epsilon=layer_norm_epsilon,
      init=normal_002,
      remat=remat,
      dtype=dtype,
      rng=rng,
    )
    self.head = Head(
      preset.width,
      num_classes,
      has_norm=pool == MEAN,
      dropout=dropout,
      epsilon=head_norm_epsilon,
      init_scale=init_scale,
      rng=rng,
    )
    self.pool = pool

  def __call__(self, clips: Array, rngs: nnx.Rngs | None = None) -> Array:
    """Clips `[B, T, H, W, 3]` (normalized) to float32 logits `[B, classes]`."""
    tokens = self.attention(clips, rngs=rngs).astype(jnp.float32)
    return self.head(self._pooled(tokens), rngs)

  def _pooled(self, tokens: Array) -> Array:
    return tokens.mean(1) if self.pool == MEAN else tokens[:, 0]

  def maps(self, clips: Array, classes: Array | None) -> tuple[relevance.Map, ...]:
    """Where it looks in clips, for `classes` `[B]`, in evaluation mode; see `attribution.maps`."""
    seen = relevance.explain(self, clips, classes)
    found = []
    _, frames, height, width, _ = clips.shape
    grid = token_grid(frames, height, width, self.attention.patch)
    for shares, mixed in (seen.shares(), seen.shares_for_the_class()):
      flow = relevance.from_themselves(len(clips), math.prod(grid))
      for share in shares:
        flow = mixed(flow, share @ flow)
      found.append(relevance.of_tokens(self._pooled(flow), grid))
    return relevance.rollout(found[0]), relevance.for_the_class(found[1])
