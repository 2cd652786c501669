"""R(2+1)D: a video ResNet whose 3-D convolutions are split into a spatial and a temporal one.

In: normalised clips `[B, T, H, W, 3]`. Out: a feature map `[B, T', H', W', C]` (the trunk, cut after
any of its blocks) or logits `[B, classes]` (the classifier, which is the study's baseline).

Source: Tran et al. 2018 (arXiv:1711.11248), in the form of torchvision's `r2plus1d_18`.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video.models.layers import Array, BatchNorm, Conv3D, DType, Linear, normal

BLOCKS_PER_STAGE = (2, 2, 2, 2)
STEM_MID_CHANNELS_AT_64 = 45
BASELINE_WIDTH = 64


def mid_channels(in_channels: int, out_channels: int) -> int:
  """Channels between the two halves that keep the parameter count of a full 3x3x3 convolution.

  Source: section 3.5 of arXiv:1711.11248, M = floor(27 in out / (9 in + 3 out)).
  """
  return (in_channels * out_channels * 27) // (in_channels * 9 + 3 * out_channels)


class Conv2Plus1D(nnx.Module):
  """A `[1, k, k]` convolution, BatchNorm, ReLU and a `[3, 1, 1]` convolution."""

  def __init__(
    self,
    in_channels: int,
    mid: int,
    out_channels: int,
    *,
    kernel: int = 3,
    spatial_stride: int = 1,
    temporal_stride: int = 1,
    dtype: DType,
    rng: np.random.Generator,
  ):
    self.spatial = Conv3D(
      in_channels,
      mid,
      (1, kernel, kernel),
      strides=(1, spatial_stride, spatial_stride),
      padding=(0, kernel // 2, kernel // 2),
      dtype=dtype,
      rng=rng,
    )
    self.norm = BatchNorm(mid, dtype=dtype)
    self.temporal = Conv3D(
      mid,
      out_channels,
      (3, 1, 1),
      strides=(temporal_stride, 1, 1),
      padding=(1, 0, 0),
      dtype=dtype,
      rng=rng,
    )

  def __call__(self, x: Array) -> Array:
    """`[B, T, H, W, in]` to `[B, T', H', W', out]`."""
    return self.temporal(jax.nn.relu(self.norm(self.spatial(x))))


class Stem(nnx.Module):
  """The first layer: 7x7 in space at stride 2, 3 in time; halves height and width."""

  def __init__(self, width: int, *, dtype: DType, rng: np.random.Generator):
    mid = max(1, round(STEM_MID_CHANNELS_AT_64 * width / BASELINE_WIDTH))
    self.conv = Conv2Plus1D(3, mid, width, kernel=7, spatial_stride=2, dtype=dtype, rng=rng)
    self.norm = BatchNorm(width, dtype=dtype)

  def __call__(self, clips: Array) -> Array:
    """`[B, T, H, W, 3]` to `[B, T, H/2, W/2, width]`."""
    return jax.nn.relu(self.norm(self.conv(clips)))


class Downsample(nnx.Module):
  """The shortcut of a block that changes shape: a 1x1x1 convolution and BatchNorm."""

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    dtype: DType,
    rng: np.random.Generator,
  ):
    self.conv = Conv3D(
      in_channels, out_channels, (1, 1, 1), strides=(stride,) * 3, dtype=dtype, rng=rng
    )
    self.norm = BatchNorm(out_channels, dtype=dtype)

  def __call__(self, x: Array) -> Array:
    """`[B, T, H, W, in]` to `[B, T/stride, H/stride, W/stride, out]`."""
    return self.norm(self.conv(x))


class Block(nnx.Module):
  """A residual block of two (2+1)-D convolutions."""

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    dtype: DType,
    rng: np.random.Generator,
  ):
    # torchvision computes the mid width once a block and uses it in both convolutions.
    mid = mid_channels(in_channels, out_channels)
    self.conv1 = Conv2Plus1D(
      in_channels,
      mid,
      out_channels,
      spatial_stride=stride,
      temporal_stride=stride,
      dtype=dtype,
      rng=rng,
    )
    self.norm1 = BatchNorm(out_channels, dtype=dtype)
    self.conv2 = Conv2Plus1D(out_channels, mid, out_channels, dtype=dtype, rng=rng)
    self.norm2 = BatchNorm(out_channels, dtype=dtype)
    self.changes_shape = stride != 1 or in_channels != out_channels
    if self.changes_shape:
      self.downsample = Downsample(in_channels, out_channels, stride, dtype=dtype, rng=rng)

  def __call__(self, x: Array) -> Array:
    """`[B, T, H, W, in]` to `[B, T/stride, H/stride, W/stride, out]`."""
    y = jax.nn.relu(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    return jax.nn.relu(y + (self.downsample(x) if self.changes_shape else x))


class Trunk(nnx.Module):
  """The stem and the first `blocks` of the eight residual blocks of R(2+1)D-18.

  Strides over (T, H, W) against the clip: 1, 2, 2 after the stem and the first two blocks, then
  twice that after each further pair: 8, 16, 16 in the end. Sizes round up.

  Attributes:
    out_channels: channels of the feature map, width x 1, 2, 4 or 8.
  """

  def __init__(self, blocks: int = 8, width: int = 64, *, dtype: DType, rng: np.random.Generator):
    total = sum(BLOCKS_PER_STAGE)
    if not 1 <= blocks <= total:
      raise ValueError(f"R(2+1)D-18 can be cut after 1 to {total} blocks, not after {blocks}.")
    if width < 1:
      raise ValueError(f"The network's width is at least 1 channel, not {width}.")
    self.stem = Stem(width, dtype=dtype, rng=rng)
    channels, left = width, blocks
    for stage, stage_blocks in enumerate(BLOCKS_PER_STAGE):
      layers = {}
      for i in range(min(left, stage_blocks)):
        out = width * 2**stage
        stride = 2 if stage > 0 and i == 0 else 1
        layers[str(i)] = Block(channels, out, stride, dtype=dtype, rng=rng)
        channels = out
      left -= len(layers)
      if layers:
        setattr(self, f"layer{stage + 1}", nnx.Dict(layers))
    self.out_channels = channels

  def blocks(self) -> list[Block]:
    """The residual blocks in the order in which a clip meets them."""
    stages = (getattr(self, f"layer{s + 1}", {}) for s in range(len(BLOCKS_PER_STAGE)))
    return [stage[str(i)] for stage in stages for i in range(len(stage))]

  def __call__(self, clips: Array) -> Array:
    """`[B, T, H, W, 3]` to the feature map `[B, T', H', W', out_channels]`."""
    x = self.stem(clips)
    for block in self.blocks():
      x = block(x)
    return x


class R2Plus1D(nnx.Module):
  """The baseline classifier: trunk, mean over time and space, dropout, linear head."""

  def __init__(
    self,
    num_classes: int,
    *,
    blocks: int = 8,
    width: int = 64,
    dropout: float = 0.0,
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    self.cnn = Trunk(blocks, width, dtype=dtype, rng=rng)
    self.dropout = nnx.Dropout(dropout)
    self.head = Linear(self.cnn.out_channels, num_classes, rng=rng)
    # torchvision starts the classifier at N(0, 0.01) and zero.
    self.head.kernel[...] = 0.01 * normal(rng, self.head.kernel.shape)
    self.head.bias[...] = jnp.zeros_like(self.head.bias[...])

  def __call__(self, clips: Array, rngs: nnx.Rngs | None = None) -> Array:
    """Clips `[B, T, H, W, 3]` (normalised) to float32 logits `[B, classes]`."""
    features = self.cnn(clips).astype(jnp.float32).mean((1, 2, 3))
    return self.head(self.dropout(features, rngs=rngs))
