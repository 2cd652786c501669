"""Layers shared by the video networks: convolutions over time and space, BatchNorm, linear maps.

In: feature maps `[B, T, H, W, C]` or tokens `[B, N, D]`. Out: the same kind of array.
Parameters are float32; arithmetic runs in the `dtype` a layer is given, statistics in float32.
"""

from collections.abc import Sequence
import math

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hybrid_video.models import convolution
from hybrid_video.models.convolution import Map, folded
from hybrid_video.models.convolution.folded import Folded

Array = jax.Array
DType = jnp.dtype | type


# Initial values are NumPy's: the same numbers on every backend, nothing to compile, and nothing on a
# device before the sharding of the whole state is known.


def normal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
  """Standard normal values, float32."""
  return rng.standard_normal(tuple(shape), np.float32)


def kaiming_normal_fan_out(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
  """Normal values with std sqrt(2 / fan_out), for a kernel `[kt, kh, kw, in, out]` before a ReLU.

  Source: He et al. 2015 (arXiv:1502.01852), the `fan_out` form torchvision's video ResNets use.
  """
  fan_out = shape[-1] * math.prod(shape[:-2])
  return np.float32(math.sqrt(2.0 / fan_out)) * normal(rng, shape)


def uniform_fan_in(rng: np.random.Generator, shape: Sequence[int], fan_in: int) -> np.ndarray:
  """Uniform values in ±1/sqrt(fan_in): what PyTorch gives a Linear layer's weight and bias."""
  bound = 1.0 / math.sqrt(fan_in)
  return np.float32(bound) * (2.0 * rng.random(tuple(shape), np.float32) - 1.0)


def xavier_uniform(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
  """Uniform values in ±sqrt(6 / (in + out)), for a kernel `[in, out]`.

  Source: Glorot & Bengio 2010, equation 16.
  """
  bound = math.sqrt(6.0 / sum(shape))
  return np.float32(bound) * (2.0 * rng.random(tuple(shape), np.float32) - 1.0)


class Conv3D(nnx.Module):
  """A bias-free convolution over (time, height, width); kernel `[kt, kh, kw, in, out]`."""

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, int, int],
    *,
    strides: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    shape = (*kernel_size, in_channels, out_channels)
    self.kernel = nnx.Param(kaiming_normal_fan_out(rng, shape))
    self.strides = strides
    self.padding = padding
    self.dtype = dtype

  def __call__(self, x: Map) -> Map:
    """`[B, T, H, W, in]` to `[B, T', H', W', out]`."""
    kernel = convolution.cast_kernel(self.kernel[...], self.dtype)
    return convolution.convolve(x.astype(self.dtype), kernel, self.strides, self.padding)


def widen(x: Array) -> Array:
  """At least float32: what statistics, and everything after the last block, are computed in."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def relu(x: Map) -> Map:
  """max(x, 0)."""
  return x.map(jax.nn.relu) if isinstance(x, Folded) else jax.nn.relu(x)


def add(x: Map, y: Map) -> Map:
  """The sum of two plain maps, or of two folded ones of one layout."""
  return jax.tree.map(jnp.add, x, y)


def _moments(x: Map) -> tuple[Array, Array, int]:
  """Mean and biased variance over all positions `[C]`, at least float32, and their number."""
  if isinstance(x, Folded):
    count, wide, total = x.pixels, widen(folded.clear_phantoms(x)), folded.total
  else:
    count, wide = math.prod(x.shape[:-1]), widen(x)

    def total(values: Array) -> Array:
      return values.sum(range(values.ndim - 1))

  mean = total(wide) / count
  return mean, jnp.maximum(total(jnp.square(wide)) / count - jnp.square(mean), 0.0), count


class BatchNorm(nnx.Module):
  """Batch normalization over every axis but the last, with PyTorch's meaning of the statistics.

  In training the batch's biased variance normalizes, and its unbiased variance enters the running
  one (flax's own layer keeps the biased one there). Under `jax.jit` over a sharded batch the
  statistics are those of the whole global batch, not of one device's share.

  Source: Ioffe & Szegedy 2015 (arXiv:1502.03167); `momentum` is the weight of the old value.
  """

  def __init__(
    self,
    channels: int,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    frozen: bool = False,
    dtype: DType = jnp.float32,
  ):
    self.scale = nnx.Param(np.ones((channels,), np.float32))
    self.bias = nnx.Param(np.zeros((channels,), np.float32))
    self.mean = nnx.BatchStat(np.zeros((channels,), np.float32))
    self.var = nnx.BatchStat(np.ones((channels,), np.float32))
    self.epsilon = epsilon
    self.momentum = momentum
    self.frozen = frozen
    self.dtype = dtype
    self.use_running_average = False

  def _scale_and_shift(self, mean: Array, var: Array) -> tuple[Array, Array]:
    scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
    return scale.astype(self.dtype), (self.bias[...] - mean * scale).astype(self.dtype)

  def fixed_scale_and_shift(self) -> tuple[Array, Array]:
    """`[C]` each: with the running statistics, the layer is `x * scale + shift`."""
    return self._scale_and_shift(self.mean[...], self.var[...])

  def __call__(self, x: Map) -> Map:
    """Normalizes `[..., C]`; updates the running statistics unless frozen or in `model.eval()`."""
    if self.use_running_average or self.frozen:
      scale, shift = self.fixed_scale_and_shift()
    else:
      mean, var, count = _moments(x)
      unbiased = var * (count / max(count - 1, 1))
      # Not `[...] =`, which would write into the host array that a fresh model holds.
      self.mean.set_value(self.momentum * self.mean[...] + (1 - self.momentum) * mean)
      self.var.set_value(self.momentum * self.var[...] + (1 - self.momentum) * unbiased)
      scale, shift = self._scale_and_shift(mean, var)
    x = x.astype(self.dtype)
    return folded.scale_and_shift(x, scale, shift) if isinstance(x, Folded) else x * scale + shift


class LayerNorm(nnx.Module):
  """Layer normalization over the last axis, computed in float32."""

  def __init__(self, features: int, epsilon: float = 1e-5, *, dtype: DType = jnp.float32):
    self.scale = nnx.Param(np.ones((features,), np.float32))
    self.bias = nnx.Param(np.zeros((features,), np.float32))
    self.epsilon = epsilon
    self.dtype = dtype

  def __call__(self, x: Array) -> Array:
    """Normalizes `[..., D]`."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    var = jnp.square(centred).mean(-1, keepdims=True)
    y = centred * lax.rsqrt(var + self.epsilon) * self.scale[...] + self.bias[...]
    return y.astype(self.dtype)


class Linear(nnx.Module):
  """`y = x W + b` over the last axis; kernel `[in, out]`, PyTorch's default initial values."""

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    use_bias: bool = True,
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    shape = (in_features, out_features)
    self.kernel = nnx.Param(uniform_fan_in(rng, shape, in_features))
    if use_bias:
      self.bias = nnx.Param(uniform_fan_in(rng, (out_features,), in_features))
    self.use_bias = use_bias
    self.dtype = dtype

  def __call__(self, x: Array) -> Array:
    """`[..., in]` to `[..., out]`."""
    y = x.astype(self.dtype) @ self.kernel[...].astype(self.dtype)
    return y + self.bias[...].astype(self.dtype) if self.use_bias else y
