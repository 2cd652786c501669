"""VideoMAE: a plain vision transformer over space-time patches, and its masked pretraining.

In: clips `[B, T, H, W, 3]` normalised with ImageNet's mean and standard deviation. Out: logits
`[B, classes]` (the classifier), or the pixels predicted for masked patches (pretraining) with the
masks, targets and loss that belong to them.

Tokens are patches of 2 frames by 16 by 16 pixels, in the order (time, row, column); a patch is
flattened to 1,536 numbers in the order (frame, row, column, channel), here and in the targets.

Source: Tong et al. 2022 (arXiv:2203.12602) and its code, github.com/MCG-NJU/VideoMAE.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
import statistics

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video.models.attention import attend
from hybrid_video.models.layers import Array, DType, LayerNorm, Linear, normal, xavier_uniform

TUBE = 2  # frames a patch
PATCH = 16  # pixels a patch's side
PATCH_VALUES = TUBE * PATCH * PATCH * 3
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Initializer = Callable[[np.random.Generator, Sequence[int]], Array]


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
    ValueError: an unknown size, a count below 1, or a width that its heads do not divide.
  """
  if size not in SIZES:
    raise ValueError(f"There is no VideoMAE of size {size!r}. Known: {', '.join(SIZES)}.")
  given = {name: value for name, value in overrides.items() if value is not None}
  found = dataclasses.replace(SIZES[size], **given)
  for name, value in dataclasses.asdict(found).items():
    if value < 1:
      raise ValueError(f"{name}={value} of a VideoMAE is at least 1.")
  for part in ("", "decoder_"):
    width, heads = getattr(found, f"{part}width"), getattr(found, f"{part}heads")
    if width % heads:
      raise ValueError(
        f"{part}width={width} does not divide among {part}heads={heads}: choose a {part}width that "
        f"is a multiple of {heads}."
      )
  return found


def token_grid(frames: int, height: int, width: int) -> tuple[int, int, int]:
  """Patches along (time, height, width) of a clip of `frames` frames, `height` x `width` pixels.

  Raises:
    ValueError: a length that patches do not divide.
  """
  for name, length, patch, unit in (
    ("frames", frames, TUBE, "frames"),
    ("height", height, PATCH, "pixels"),
    ("width", width, PATCH, "pixels"),
  ):
    if length < patch or length % patch:
      raise ValueError(
        f"A clip's {name} of {length} is not a multiple of a patch's {patch} {unit}: sample or crop "
        f"the clip to {max(length // patch, 1) * patch}."
      )
  return frames // TUBE, height // PATCH, width // PATCH


def patches(clips: Array) -> Array:
  """Clips `[B, T, H, W, 3]` to their patches `[B, N, 1536]`.

  Raises:
    ValueError: clips of another shape, or a length that patches do not divide.
  """
  if clips.ndim != 5 or clips.shape[-1] != 3:
    raise ValueError(f"Clips of shape {clips.shape}; expected [B, T, H, W, 3].")
  slots, rows, columns = token_grid(*clips.shape[1:4])
  x = clips.reshape(-1, slots, TUBE, rows, PATCH, columns, PATCH, 3)
  return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, slots * rows * columns, PATCH_VALUES)


def sinusoid_positions(count: int, width: int) -> np.ndarray:
  """The fixed position table, float32 `[count, width]`: sines in even channels, cosines in odd.

  Positions are indices into the flattened tokens, so the table of a smaller clip is the beginning
  of a larger clip's and not a coarser sampling of it.

  Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
  """
  channels = np.arange(width)
  angles = np.arange(count)[:, None] / 10_000.0 ** (2 * (channels // 2) / width)
  return np.where(channels % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def normal_002(rng: np.random.Generator, shape: Sequence[int]) -> Array:
  """Normal values with std 0.02, `[in, out]`: what a classifier without pretraining starts from.

  The original's truncation, at ±2, is a hundred standard deviations out and left away.
  """
  return 0.02 * normal(rng, shape)


def _initial_mask_token(rng: np.random.Generator, width: int) -> Array:
  """Normal values with std 0.02 truncated at ±0.02, as the original draws them."""
  gauss = statistics.NormalDist()
  low, high = gauss.cdf(-1.0), gauss.cdf(1.0)
  draws = low + (high - low) * rng.random(width)
  return jnp.asarray([0.02 * gauss.inv_cdf(draw) for draw in draws], jnp.float32)


def _linear(
  fan_in: int,
  fan_out: int,
  init: Initializer,
  *,
  use_bias: bool = True,
  dtype: DType,
  rng: np.random.Generator,
) -> Linear:
  layer = Linear(fan_in, fan_out, use_bias=use_bias, dtype=dtype, rng=rng)
  layer.kernel[...] = init(rng, (fan_in, fan_out))
  if use_bias:
    layer.bias[...] = jnp.zeros_like(layer.bias[...])
  return layer


class Attention(nnx.Module):
  """Multi-head self attention whose queries and values have a bias and whose keys have none."""

  def __init__(
    self, width: int, heads: int, init: Initializer, *, dtype: DType, rng: np.random.Generator
  ):
    self.qkv = _linear(width, 3 * width, init, use_bias=False, dtype=dtype, rng=rng)
    self.q_bias = nnx.Param(jnp.zeros((width,)))
    self.v_bias = nnx.Param(jnp.zeros((width,)))
    self.proj = _linear(width, width, init, dtype=dtype, rng=rng)
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
    self.fc1 = _linear(width, 4 * width, init, dtype=dtype, rng=rng)
    self.fc2 = _linear(4 * width, width, init, dtype=dtype, rng=rng)

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
    x = x + self.drop_path(self.attn(self.norm1(x)), rngs=rngs)
    return x + self.drop_path(self.mlp(self.norm2(x)), rngs=rngs)


def _blocks(
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
  """

  def __init__(
    self,
    size: Size,
    *,
    frames: int,
    image_size: int,
    drop_path: float,
    final_norm: bool,
    epsilon: float,
    init: Initializer,
    dtype: DType,
    rng: np.random.Generator,
  ):
    self.grid = token_grid(frames, image_size, image_size)
    self.clip_shape = (frames, image_size, image_size, 3)
    # The original leaves its patch convolution with PyTorch's initial values; so does Linear.
    self.patch_embed = Linear(PATCH_VALUES, size.width, dtype=dtype, rng=rng)
    self.blocks = _blocks(
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
    self.dtype = dtype

  def __call__(
    self, clips: Array, visible: Array | None = None, rngs: nnx.Rngs | None = None
  ) -> Array:
    """Clips `[B, T, H, W, 3]` and the indices `[B, V]` of visible tokens to `[B, V, D]`.

    Without indices all tokens are visible. Only visible patches are read.

    Raises:
      ValueError: clips of another size than the encoder was built for.
    """
    if clips.shape[1:] != self.clip_shape:
      raise ValueError(
        f"Clips of shape [T, H, W, 3] = {list(clips.shape[1:])} came to a VideoMAE whose positions "
        f"belong to {list(self.clip_shape)}: build it with frames and image_size of the clips."
      )
    x = patches(clips.astype(self.dtype))
    positions = jnp.asarray(sinusoid_positions(x.shape[1], self.width), self.dtype)[None]
    if visible is not None:
      x = jnp.take_along_axis(x, visible[..., None], axis=1)
      positions = positions[0][visible]
    x = self.patch_embed(x) + positions
    for i in range(len(self.blocks)):
      x = self.blocks[str(i)](x, rngs)
    return self.norm(x) if self.final_norm else x


class Head(nnx.Module):
  """LayerNorm, dropout and a linear classifier over a clip's mean token, in float32."""

  def __init__(
    self,
    width: int,
    num_classes: int,
    *,
    dropout: float,
    epsilon: float,
    init_scale: float,
    rng: np.random.Generator,
  ):
    self.norm = LayerNorm(width, epsilon)
    self.dropout = nnx.Dropout(dropout)
    self.linear = _linear(width, num_classes, normal_002, dtype=jnp.float32, rng=rng)
    self.linear.kernel[...] = init_scale * self.linear.kernel[...]

  def __call__(self, pooled: Array, rngs: nnx.Rngs | None = None) -> Array:
    """`[B, D]` to float32 logits `[B, classes]`."""
    return self.linear(self.dropout(self.norm(pooled), rngs=rngs))


class VideoMAE(nnx.Module):
  """The classifier: encoder without a final norm, mean over tokens, head.

  Args:
    num_classes: classes the head tells apart.
    size: one of `SIZES`.
    frames: of a clip.
    image_size: height and width of a clip in pixels.
    width, depth, heads: channels, blocks and attention heads, in place of the preset's.
    drop_path: rate at which the last block's branches are dropped; earlier ones less.
    dropout: rate in front of the linear classifier.
    init_scale: factor on the classifier's initial kernel.
    layer_norm_epsilon: in the blocks.
    head_norm_epsilon: in the head.
    dtype: of the arithmetic before the head; parameters and the head stay float32.
    rng: source of the initial values.

  Raises:
    ValueError: an unknown size, or lengths that do not fit together; the message says which.
  """

  def __init__(
    self,
    num_classes: int,
    *,
    size: str = "base",
    frames: int = 16,
    image_size: int = 224,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    init_scale: float = 0.001,
    layer_norm_epsilon: float = 1e-6,
    head_norm_epsilon: float = 1e-6,
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    chosen = sized(size, width=width, depth=depth, heads=heads)
    self.attention = Encoder(
      chosen,
      frames=frames,
      image_size=image_size,
      drop_path=drop_path,
      final_norm=False,
      epsilon=layer_norm_epsilon,
      init=normal_002,
      dtype=dtype,
      rng=rng,
    )
    self.head = Head(
      chosen.width,
      num_classes,
      dropout=dropout,
      epsilon=head_norm_epsilon,
      init_scale=init_scale,
      rng=rng,
    )

  def __call__(self, clips: Array, rngs: nnx.Rngs | None = None) -> Array:
    """Clips `[B, T, H, W, 3]` (normalised) to float32 logits `[B, classes]`."""
    tokens = self.attention(clips, rngs=rngs)
    return self.head(tokens.astype(jnp.float32).mean(1), rngs)


class Decoder(nnx.Module):
  """Predicts the pixels of masked patches from visible tokens, mask tokens and positions."""

  def __init__(
    self,
    size: Size,
    *,
    epsilon: float,
    norm_epsilon: float,
    dtype: DType,
    rng: np.random.Generator,
  ):
    width = size.decoder_width
    # The original initialises this one map by PyTorch's default; so does Linear.
    self.embed = Linear(size.width, width, use_bias=False, dtype=dtype, rng=rng)
    self.mask_token = nnx.Param(_initial_mask_token(rng, width))
    self.blocks = _blocks(
      width,
      size.decoder_depth,
      size.decoder_heads,
      epsilon=epsilon,
      init=xavier_uniform,
      dtype=dtype,
      rng=rng,
    )
    self.norm = LayerNorm(width, norm_epsilon, dtype=dtype)
    self.head = _linear(width, PATCH_VALUES, xavier_uniform, dtype=dtype, rng=rng)
    self.width = width
    self.dtype = dtype

  def __call__(self, tokens: Array, visible: Array, masked: Array) -> Array:
    """Visible tokens `[B, V, D]` with indices `[B, V]`, `[B, M]` to float32 `[B, M, 1536]`."""
    count = visible.shape[1] + masked.shape[1]
    positions = jnp.asarray(sinusoid_positions(count, self.width), self.dtype)
    seen = self.embed(tokens) + positions[visible]
    queries = self.mask_token[...].astype(self.dtype) + positions[masked]
    x = jnp.concatenate([seen, queries], axis=1)
    for i in range(len(self.blocks)):
      x = self.blocks[str(i)](x)
    return self.head(self.norm(x[:, visible.shape[1] :])).astype(jnp.float32)


class VideoMAEForPreTraining(nnx.Module):
  """Masked autoencoder: an encoder of visible patches and a decoder of masked patches' pixels.

  The parameters under `attention` are the classifier's, and the norm that ends the encoder.

  Args:
    size: one of `SIZES`.
    frames: of a clip.
    image_size: height and width of a clip in pixels.
    width, depth, heads: the encoder's channels, blocks and attention heads, for the preset's.
    decoder_width, decoder_depth, decoder_heads: the decoder's.
    layer_norm_epsilon: in all blocks and at the encoder's end.
    decoder_norm_epsilon: at the decoder's end.
    dtype: of the arithmetic; parameters stay float32.
    rng: source of the initial values.

  Raises:
    ValueError: an unknown size, or lengths that do not fit together; the message says which.
  """

  def __init__(
    self,
    *,
    size: str = "base",
    frames: int = 16,
    image_size: int = 224,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
    decoder_heads: int | None = None,
    layer_norm_epsilon: float = 1e-6,
    decoder_norm_epsilon: float = 1e-6,
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    chosen = sized(
      size,
      width=width,
      depth=depth,
      heads=heads,
      decoder_width=decoder_width,
      decoder_depth=decoder_depth,
      decoder_heads=decoder_heads,
    )
    self.attention = Encoder(
      chosen,
      frames=frames,
      image_size=image_size,
      drop_path=0.0,
      final_norm=True,
      epsilon=layer_norm_epsilon,
      init=xavier_uniform,
      dtype=dtype,
      rng=rng,
    )
    self.decoder = Decoder(
      chosen,
      epsilon=layer_norm_epsilon,
      norm_epsilon=decoder_norm_epsilon,
      dtype=dtype,
      rng=rng,
    )

  def __call__(self, clips: Array, mask: Array, masked: int | None = None) -> Array:
    """Predicts the masked patches of clips.

    Args:
      clips: `[B, T, H, W, 3]`, normalised.
      mask: bool `[B, N]`, True where a token is masked; equally many in every clip.
      masked: how many those are; needed under `jax.jit`, where a mask cannot be counted.

    Returns:
      float32 `[B, masked, 1536]`, in the order of the masked tokens, to compare with
      `patch_targets`.

    Raises:
      ValueError: clips of another size, or a mask that does not fit (see `token_order`).
    """
    expected = (clips.shape[0], math.prod(self.attention.grid))
    if mask.shape != expected:
      raise ValueError(
        f"A mask of shape {mask.shape} came with clips that need {expected}; see `tube_mask`."
      )
    seen, hidden = token_order(mask, masked)
    return self.decoder(self.attention(clips, seen), seen, hidden)


def token_order(mask: Array | np.ndarray, masked: int | None = None) -> tuple[Array, Array]:
  """Indices of the visible tokens `[B, N - masked]` and of the masked ones `[B, masked]`, rising.

  Args:
    mask: bool `[B, N]`, True where a token is masked; equally many in every clip.
    masked: how many those are. It may be left away where `mask` is a concrete array. Under
      `jax.jit` nothing can compare it with the mask.

  Raises:
    ValueError: a concrete mask whose clips differ in count or disagree with `masked`; a mask under
      `jax.jit` without `masked`; no token left visible or none masked.
  """
  tokens = mask.shape[1]
  if not isinstance(mask, jax.core.Tracer):
    counts = np.unique(np.asarray(mask).sum(1)).tolist()
    if len(counts) != 1 or masked not in (None, counts[0]):
      wanted = "the same number in every clip" if masked is None else f"{masked} in every clip"
      raise ValueError(
        f"The mask hides {', '.join(map(str, counts))} tokens of its clips; expected {wanted}."
      )
    masked = counts[0]
  elif masked is None:
    raise ValueError(
      "Under jax.jit a mask's tokens cannot be counted: pass `masked`, which `masked_tokens` gives."
    )
  if not 0 < masked < tokens:
    raise ValueError(
      f"{masked} of {tokens} tokens are masked; at least one masked and one visible are needed."
    )
  order = jnp.argsort(jnp.asarray(mask), axis=1, stable=True)
  return order[:, : tokens - masked], order[:, tokens - masked :]


def _masked_cells(grid: tuple[int, int, int], ratio: float) -> int:
  cells = grid[1] * grid[2]
  count = int(ratio * cells)
  if not 0 < count < cells:
    raise ValueError(
      f"A mask ratio of {ratio} hides {count} of a grid's {grid[1]} x {grid[2]} cells; at least one "
      "must be hidden and one left: choose another ratio or a larger image."
    )
  return count


def masked_tokens(grid: tuple[int, int, int], ratio: float) -> int:
  """Tokens that `tube_mask` hides in each clip.

  Raises:
    ValueError: a ratio that hides none or all.
  """
  return grid[0] * _masked_cells(grid, ratio)


def tube_mask(key: Array, batch: int, grid: tuple[int, int, int], ratio: float = 0.9) -> Array:
  """Draws masks that hide the same cells of the picture at all times of a clip.

  Args:
    key: a `jax.random` key; every clip draws its own cells.
    batch: clips.
    grid: patches along (time, height, width), see `token_grid`.
    ratio: share of the cells hidden, rounded down to `int(ratio * rows * columns)` cells.

  Returns:
    bool `[batch, N]`, True where a token is masked.

  Raises:
    ValueError: a ratio that hides none or all.
  """
  cells = grid[1] * grid[2]
  hidden = jnp.broadcast_to(jnp.arange(cells) < _masked_cells(grid, ratio), (batch, cells))
  return jnp.tile(jax.random.permutation(key, hidden, axis=1, independent=True), (1, grid[0]))


def patch_targets(clips: Array, mask: Array, masked: int | None = None) -> Array:
  """What pretraining predicts: pixels of masked patches, normalised by patch and channel.

  Each channel of a patch, 512 pixels in [0, 1], loses its mean and is divided by its standard
  deviation (unbiased variance) plus 1e-6.

  Args:
    clips: `[B, T, H, W, 3]`, normalised with `IMAGENET_MEAN` and `IMAGENET_STD`.
    mask: bool `[B, N]`, True where a token is masked; equally many in every clip.
    masked: how many those are; needed under `jax.jit`.

  Returns:
    float32 `[B, masked, 1536]`.

  Raises:
    ValueError: lengths that patches do not divide, or a mask that does not fit (`token_order`).
  """
  pixels = clips.astype(jnp.float32) * jnp.asarray(IMAGENET_STD) + jnp.asarray(IMAGENET_MEAN)
  tokens = patches(pixels)
  if mask.shape != tokens.shape[:2]:
    raise ValueError(
      f"A mask of shape {mask.shape} came with clips that need {tokens.shape[:2]}; see `tube_mask`."
    )
  _, hidden = token_order(mask, masked)
  x = jnp.take_along_axis(tokens, hidden[..., None], axis=1)
  x = x.reshape(*x.shape[:2], -1, 3)
  centred = x - x.mean(2, keepdims=True)
  deviation = jnp.sqrt(jnp.square(centred).sum(2, keepdims=True) / (x.shape[2] - 1))
  return (centred / (deviation + 1e-6)).reshape(*x.shape[:2], -1)


def pretraining_loss(predictions: Array, targets: Array) -> Array:
  """Mean squared error over everything: `[B, M, 1536]` twice to a float32 scalar.

  Predicting zero costs 511/512 where no patch is flat: the variance is unbiased.

  Raises:
    ValueError: two different shapes.
  """
  if predictions.shape != targets.shape:
    raise ValueError(
      f"Predictions of shape {predictions.shape} and targets of shape {targets.shape} differ: both "
      "take the same mask."
    )
  return jnp.square(predictions.astype(jnp.float32) - targets.astype(jnp.float32)).mean()
