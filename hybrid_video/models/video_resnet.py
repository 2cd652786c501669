"""Video ResNets: R(2+1)D, R3D and MC3, as a trunk that can be cut and as classifiers.

In: normalized clips `[B, T, H, W, 3]`. Out: a feature map `[B, T', H', W', C]` (the trunk, cut
after any of its blocks) or logits `[B, classes]` (the classifiers; R(2+1)D-18 is the study's
baseline).

Source: Tran et al. 2018 (arXiv:1711.11248), in the form of torchvision's video models; the 34-layer
network as IG-65M's weights need it (Ghadiyaram et al. 2019, arXiv:1905.00561), and the one of Hara et
al. as theirs do (arXiv:2004.04968, github.com/kenshohara/3D-ResNets-PyTorch).
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hybrid_video import errors
from hybrid_video.models import convolution, relevance, rematerialization, sparse
from hybrid_video.models.convolution import Map
from hybrid_video.models.convolution.folded import Folded
from hybrid_video.models.layers import (
  Array,
  BatchNorm,
  Conv3D,
  DType,
  Linear,
  add,
  normal,
  relu,
  widen,
)
from hybrid_video.models.model_error import ModelError

FACTORISED, FULL, SPATIAL = "factorised", "full", "spatial"
STEM_MID_CHANNELS_AT_64 = 45
FULL_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Architecture:
  """How one video ResNet differs from another.

  Attributes:
    blocks: residual blocks in each of the four stages.
    kinds: convolution of each stage: "factorised" is `[1, 3, 3]` then `[3, 1, 1]`, "full"
      `[3, 3, 3]`, "spatial" `[1, 3, 3]` (it never strides in time).
    mid_by_convolution: whether each factorised convolution has a mid width of its own; torchvision
      computes one a block and uses it for both.
    epsilon: of every BatchNorm.
    stem_taps: extent in time of the stem's kernel.
    wide_stem: whether a factorised stem has as many channels between its halves as `mid_channels`
      says; torchvision's has 45 for 64.
    stem_pool: whether a max pool, 3x3x3 at stride 2, follows the stem.
  """

  blocks: tuple[int, int, int, int]
  kinds: tuple[str, str, str, str]
  mid_by_convolution: bool = False
  epsilon: float = 1e-5
  stem_taps: int = 3
  wide_stem: bool = False
  stem_pool: bool = False

  @property
  def depth(self) -> int:
    """Residual blocks in all."""
    return sum(self.blocks)


ARCHITECTURES = {
  "r2plus1d_18": Architecture((2, 2, 2, 2), (FACTORISED,) * 4),
  "r3d_18": Architecture((2, 2, 2, 2), (FULL,) * 4),
  "mc3_18": Architecture((2, 2, 2, 2), (FULL, SPATIAL, SPATIAL, SPATIAL)),
  "r2plus1d_34": Architecture(
    (3, 4, 6, 3), (FACTORISED,) * 4, mid_by_convolution=True, epsilon=1e-3
  ),
  "r2plus1d_18_hara": Architecture(
    (2, 2, 2, 2),
    (FACTORISED,) * 4,
    mid_by_convolution=True,
    stem_taps=7,
    wide_stem=True,
    stem_pool=True,
  ),
}


@dataclasses.dataclass(frozen=True)
class Numerics:
  """How a trunk computes, which changes no parameter.

  Attributes:
    dtype: of the arithmetic; parameters and statistics stay float32.
    remat: what of each block is computed again in the backward pass, to save memory; one of
      `rematerialization.POLICIES`.
    freeze_statistics: whether BatchNorm keeps and uses its running statistics in training too.
  """

  dtype: DType = jnp.float32
  remat: str = rematerialization.NONE
  freeze_statistics: bool = False


def mid_channels(in_channels: int, out_channels: int, *, taps: int = 3, side: int = 3) -> int:
  """Channels between the two halves that keep the parameter count of a full convolution.

  Source: section 3.5 of arXiv:1711.11248, M = floor(t d^2 in out / (d^2 in + t out)), for a kernel of
  t `taps` in time and d pixels a `side`.
  """
  area = side**2
  return (taps * area * in_channels * out_channels) // (area * in_channels + taps * out_channels)


class _Norms:
  """Makes the BatchNorms of one network."""

  def __init__(self, architecture: Architecture, numerics: Numerics):
    self._options: dict[str, Any] = {
      "epsilon": architecture.epsilon,
      "frozen": numerics.freeze_statistics,
      "dtype": numerics.dtype,
    }

  def __call__(self, channels: int) -> BatchNorm:
    return BatchNorm(channels, **self._options)


class Conv2Plus1D(nnx.Module):
  """A `[1, k, k]` convolution, BatchNorm, ReLU and a `[taps, 1, 1]` convolution."""

  def __init__(
    self,
    in_channels: int,
    mid: int,
    out_channels: int,
    *,
    kernel: int = 3,
    taps: int = 3,
    spatial_stride: int = 1,
    temporal_stride: int = 1,
    norms: _Norms,
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
    self.norm = norms(mid)
    self.temporal = Conv3D(
      mid,
      out_channels,
      (taps, 1, 1),
      strides=(temporal_stride, 1, 1),
      padding=(taps // 2, 0, 0),
      dtype=dtype,
      rng=rng,
    )

  def __call__(self, x: Map, norm: BatchNorm, *, activate: bool = False) -> Map:
    """`[B, T, H, W, in]` to `[B, T', H', W', out]`, normalized by `norm`; then a ReLU if wanted."""
    # Only in evaluation: in training the backward pass needs the map between the two.
    if self.norm.use_running_average and not isinstance(x, Folded) and not sparse.is_on():
      x = x.astype(self.spatial.dtype)
      spatial, temporal = (
        conv.kernel[...].astype(x.dtype) for conv in (self.spatial, self.temporal)
      )
      strides = (self.temporal.strides[0], *self.spatial.strides[1:])
      if convolution.fuses(x, spatial, temporal, strides):
        scale, shift = (value.astype(x.dtype) for value in self.norm.fixed_scale_and_shift())
        y = convolution.fused(x, spatial, temporal, scale, shift)
        return norm(y, activate=activate)
    with jax.named_scope("spatial"):
      filling = convolution.filling(self.norm.channels)
      x = self.spatial(x, self.norm, activate=True, filling=filling)
    with jax.named_scope("temporal"):
      return self.temporal(x, norm, activate=activate)


def max_pool(x: Map) -> Array:
  """The largest of 3x3x3 at stride 2: `[B, T, H, W, C]` to `[B, T/2, H/2, W/2, C]`, rounded up."""
  window, strides = (1, 3, 3, 3, 1), (1, 2, 2, 2, 1)
  padding = [(n // 2, n // 2) for n in window]
  return lax.reduce_window(convolution.unfold(x), -jnp.inf, lax.max, window, strides, padding)


class Stem(nnx.Module):
  """The first layer: 7x7 in space at stride 2, 3 or 7 in time; halves height and width.

  With a max pool it halves all three again.
  """

  def __init__(
    self,
    architecture: Architecture,
    width: int,
    *,
    norms: _Norms,
    dtype: DType,
    rng: np.random.Generator,
  ):
    taps = architecture.stem_taps
    self.conv: Conv2Plus1D | Conv3D
    if architecture.kinds[0] == FACTORISED:
      mid = max(1, round(STEM_MID_CHANNELS_AT_64 * width / FULL_WIDTH))
      if architecture.wide_stem:
        mid = mid_channels(3, width, taps=taps, side=7)
      self.conv = Conv2Plus1D(
        3, mid, width, kernel=7, taps=taps, spatial_stride=2, norms=norms, dtype=dtype, rng=rng
      )
    else:
      self.conv = Conv3D(
        *(3, width, (taps, 7, 7)),
        strides=(1, 2, 2),
        padding=(taps // 2, 3, 3),
        dtype=dtype,
        rng=rng,
      )
    self.norm = norms(width)
    self.pools = architecture.stem_pool

  def __call__(self, clips: Array) -> Map:
    """`[B, T, H, W, 3]` to `[B, T, H/2, W/2, width]`, or to half of each with a pool."""
    x = self.conv(clips, self.norm, activate=True)
    if not self.pools:
      return x
    pooled = max_pool(x)
    return pooled * sparse.weights(pooled) if sparse.is_on() else pooled


class Downsample(nnx.Module):
  """The shortcut of a block that changes shape: a 1x1x1 convolution and BatchNorm."""

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    strides: tuple[int, int, int],
    *,
    norms: _Norms,
    dtype: DType,
    rng: np.random.Generator,
  ):
    self.conv = Conv3D(in_channels, out_channels, (1, 1, 1), strides=strides, dtype=dtype, rng=rng)
    self.norm = norms(out_channels)

  def __call__(self, x: Map) -> Map:
    """`[B, T, H, W, in]` to `[B, T', H', W', out]`."""
    return self.conv(x, self.norm)


class Block(nnx.Module):
  """A residual block of two convolutions of one kind."""

  def __init__(
    self,
    architecture: Architecture,
    kind: str,
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    norms: _Norms,
    dtype: DType,
    rng: np.random.Generator,
  ):
    temporal_stride = 1 if kind == SPATIAL else stride

    def convolution(channels: int, mid_of: int, first: bool) -> Conv2Plus1D | Conv3D:
      step, step_in_time = (stride, temporal_stride) if first else (1, 1)
      if kind == FACTORISED:
        return Conv2Plus1D(
          channels,
          mid_channels(mid_of, out_channels),
          out_channels,
          spatial_stride=step,
          temporal_stride=step_in_time,
          norms=norms,
          dtype=dtype,
          rng=rng,
        )
      taps = 1 if kind == SPATIAL else 3
      return Conv3D(
        channels,
        out_channels,
        (taps, 3, 3),
        strides=(step_in_time, step, step),
        padding=(taps // 2, 1, 1),
        dtype=dtype,
        rng=rng,
      )

    second_mid_of = out_channels if architecture.mid_by_convolution else in_channels
    self.conv1 = convolution(in_channels, in_channels, first=True)
    self.norm1 = norms(out_channels)
    self.conv2 = convolution(out_channels, second_mid_of, first=False)
    self.norm2 = norms(out_channels)
    self.changes_shape = stride != 1 or in_channels != out_channels
    if self.changes_shape:
      strides = (temporal_stride, stride, stride)
      self.downsample = Downsample(
        in_channels, out_channels, strides, norms=norms, dtype=dtype, rng=rng
      )

  def __call__(self, x: Map) -> Map:
    """`[B, T, H, W, in]` to `[B, T', H', W', out]`."""
    with jax.named_scope("conv1"):
      y = self.conv1(x, self.norm1, activate=True)
    with jax.named_scope("conv2"):
      y = self.conv2(y, self.norm2)
    if self.changes_shape:
      with jax.named_scope("downsample"):
        x = self.downsample(x)
    return relu(add(y, x))


def _block(block: Block, x: Map, seen: Array | None) -> Map:
  with sparse.only(seen):
    return block(x)


# What is seen is an argument: one program is kept for all calls of the same arguments.
_BLOCK: Any = rematerialization.under(_block)


class Trunk(nnx.Module):
  """The stem and the first `blocks` residual blocks of a video ResNet.

  Strides of R(2+1)D-18 over (T, H, W) against the clip: 1, 2, 2 after the stem and the first two
  blocks, then twice that after each further pair: 8, 16, 16 in the end. A stem with a pool doubles
  them all. Sizes round up.

  Attributes:
    out_channels: channels of the feature map, width x 1, 2, 4 or 8.
    temporal_halvings: how many times the trunk halves the number of frames.
    spatial_halvings: how many times it halves height and width.
  """

  def __init__(
    self,
    architecture: str = "r2plus1d_18",
    *,
    blocks: int | None = None,
    width: int = FULL_WIDTH,
    numerics: Numerics = Numerics(),
    rng: np.random.Generator,
  ):
    """Makes the layers.

    Args:
      architecture: one of `ARCHITECTURES`.
      blocks: residual blocks that are used, from the first; None is all.
      width: channels of the first stage; 64 is the published network.
      numerics: how it computes.
      rng: source of the initial values.

    Raises:
      ModelError: no such architecture, or a cut or width that it does not have.
    """
    if architecture not in ARCHITECTURES:
      near = errors.nearest(architecture, ARCHITECTURES, count=1, cutoff=0.0)
      raise ModelError(
        f"There is no video ResNet {architecture!r}.{near} Known: {', '.join(ARCHITECTURES)}."
      )
    plan = ARCHITECTURES[architecture]
    blocks = plan.depth if blocks is None else blocks
    if not 1 <= blocks <= plan.depth:
      raise ModelError(
        f"{architecture} can be cut after 1 to {plan.depth} blocks, not after {blocks}."
      )
    if width < 1:
      raise ModelError(f"The network's width is at least 1 channel, not {width}.")
    shared: dict[str, Any] = {
      "norms": _Norms(plan, numerics),
      "dtype": numerics.dtype,
      "rng": rng,
    }
    self.stem = Stem(plan, width, **shared)
    channels, left, halvings = width, blocks, int(plan.stem_pool)
    in_space = 1 + int(plan.stem_pool)
    for stage, (count, kind) in enumerate(zip(plan.blocks, plan.kinds, strict=True)):
      layers = {}
      for i in range(min(left, count)):
        out = width * 2**stage
        stride = 2 if stage > 0 and i == 0 else 1
        halvings += stride == 2 and kind != SPATIAL
        in_space += stride == 2
        layers[str(i)] = Block(plan, kind, channels, out, stride, **shared)
        channels = out
      left -= len(layers)
      if layers:
        setattr(self, f"layer{stage + 1}", nnx.Dict(layers))
    self.architecture = architecture
    self.out_channels = channels
    self.temporal_halvings = halvings
    self.spatial_halvings = in_space
    self.remat = rematerialization.policy(numerics.remat)

  def blocks(self) -> list[tuple[str, Block]]:
    """The residual blocks in the order in which a clip meets them, with names as "layer1.0"."""
    stages = {f"layer{stage}": getattr(self, f"layer{stage}", {}) for stage in range(1, 5)}
    return [
      (f"{name}.{i}", stage[str(i)]) for name, stage in stages.items() for i in range(len(stage))
    ]

  def frames_out(self, frames: int) -> int:
    """Frames of the feature map for a clip of `frames` frames."""
    for _ in range(self.temporal_halvings):
      frames = -(-frames // 2)
    return frames

  def __call__(self, clips: Array) -> Array:
    """`[B, T, H, W, 3]` to the feature map `[B, T', H', W', out_channels]`."""
    return self.outputs(clips)[-1]

  @property
  def strides(self) -> tuple[int, int, int]:
    """Frames, rows and columns of a clip that a cell of the feature map stands for."""
    return 2**self.temporal_halvings, 2**self.spatial_halvings, 2**self.spatial_halvings

  def outputs(self, clips: Array) -> list[Array]:
    """The outputs of the stem and of each block; the last one is the feature map.

    Raises:
      ModelError: not RGB clips `[B, T, H, W, 3]`, or clips without a frame or pixel.
    """
    if clips.ndim != 5 or clips.shape[-1] != 3 or 0 in clips.shape:
      raise ModelError(
        f"Clips of shape {tuple(clips.shape)}: expected [B, T, H, W, 3] with at least one frame "
        "and pixel."
      )
    # Profiles and the compiler's cost reports show these names.
    with jax.named_scope("stem"):
      x = self.stem(clips)
    maps = [x]
    for name, block in self.blocks():
      with jax.named_scope(name):
        x = _BLOCK[self.remat](block, x, sparse.current())
      maps.append(x)
    return [convolution.unfold(x) for x in maps]


class VideoResNet(nnx.Module):
  """A classifier: trunk, mean over time and space, dropout, linear head."""

  def __init__(
    self,
    num_classes: int,
    *,
    architecture: str = "r2plus1d_18",
    blocks: int | None = None,
    width: int = FULL_WIDTH,
    dropout: float = 0.0,
    remat: str = rematerialization.NONE,
    freeze_statistics: bool = False,
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    """See `Trunk` and `Numerics` for the options."""
    numerics = Numerics(dtype, remat, freeze_statistics)
    self.cnn = Trunk(architecture, blocks=blocks, width=width, numerics=numerics, rng=rng)
    self.dropout = nnx.Dropout(dropout)
    head_dtype = jnp.promote_types(dtype, jnp.float32)
    self.head = Linear(self.cnn.out_channels, num_classes, dtype=head_dtype, rng=rng)
    # torchvision starts the classifier at N(0, 0.01) and zero.
    self.head.kernel[...] = 0.01 * normal(rng, (self.cnn.out_channels, num_classes))
    self.head.bias[...] = np.zeros((num_classes,), np.float32)

  def __call__(self, clips: Array, rngs: nnx.Rngs | None = None) -> Array:
    """Clips `[B, T, H, W, 3]` (normalized) to float32 logits `[B, classes]`."""
    return self.from_features(self.cnn(clips), rngs)

  def from_features(self, features: Array, rngs: nnx.Rngs | None = None) -> Array:
    """The trunk's feature map `[B, T', H', W', C]` to float32 logits `[B, classes]`."""
    return self.head(self.dropout(widen(features).mean((1, 2, 3)), rngs=rngs))

  def maps(self, clips: Array, classes: Array | None) -> tuple[relevance.Map, ...]:
    """Where it looks in clips, for `classes` `[B]`, in evaluation mode; see `attribution.maps`."""
    features = self.cnn(clips)
    return (relevance.grad_cam(relevance.explain(self.from_features, features, classes)),)
