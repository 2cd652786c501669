"""Layers shared by the video networks: convolutions over time and space, BatchNorm, linear maps.

In: feature maps `[B, T, H, W, C]` or tokens `[B, N, D]`. Out: the same kind of array.
Parameters are float32; arithmetic runs in the `dtype` a layer is given, statistics in float32.
"""

from collections.abc import Sequence
import functools
import math
import statistics
from typing import Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hybrid_video.models import convolution, rematerialization, sparse, target
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


def resampled(table: Any, count: int, axis: int = 0) -> Any:
  """A table with `count` entries along an axis, linearly between its own; the first and last stay.

  Args:
    table: an array; its entries along the axis lie evenly over a clip.
    count: at least 1; a single entry is the first.
    axis: which.
  """
  length = table.shape[axis]
  if count == length:
    return table
  at = np.linspace(0.0, length - 1.0, count) if count > 1 else np.zeros(1)
  below = np.minimum(at.astype(int), max(length - 2, 0))
  share = (at - below).astype(np.float32)
  weights = np.zeros((count, length), np.float32)
  np.add.at(weights, (np.arange(count), below), 1.0 - share)
  np.add.at(weights, (np.arange(count), np.minimum(below + 1, length - 1)), share)
  return jnp.moveaxis(jnp.tensordot(weights, table, (1, axis)), 0, axis).astype(table.dtype)


def xavier_uniform(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
  """Uniform values in ±sqrt(6 / (in + out)), for a kernel `[in, out]`.

  Source: Glorot & Bengio 2010, equation 16.
  """
  bound = math.sqrt(6.0 / sum(shape))
  return np.float32(bound) * (2.0 * rng.random(tuple(shape), np.float32) - 1.0)


def truncated_normal_002(rng: np.random.Generator, width: int) -> np.ndarray:
  """Normal values with std 0.02 truncated at ±0.02, as the original draws them."""
  gauss = statistics.NormalDist()
  low, high = gauss.cdf(-1.0), gauss.cdf(1.0)
  draws = low + (high - low) * rng.random(width)
  return np.array([0.02 * gauss.inv_cdf(draw) for draw in draws], np.float32)


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

  def __call__(
    self,
    x: Map,
    norm: "BatchNorm | None" = None,
    *,
    activate: bool = False,
    filling: int = 0,
  ) -> Map:
    """`[B, T, H, W, in]` to `[B, T', H', W', out]`, normalized if there is a `norm`.

    Args:
      x: feature map. It may end in channels of zeros beyond the layer's own.
      norm: of the result.
      activate: whether a ReLU follows.
      filling: channels of zeros that the result ends in.
    """
    kernel, shift = self.kernel[...], None
    folds = convolution.folds_scale() and not sparse.is_on()
    if norm is not None and norm.is_fixed and folds:
      scale, shift = norm.fixed_scale_and_shift()
      kernel, norm = kernel * scale, None
    kernel = convolution.cast_kernel(kernel, self.dtype)
    if not isinstance(x, Folded):
      kernel = _filled(kernel, -2, x.shape[-1] - kernel.shape[-2])
    kernel = _filled(kernel, -1, filling)
    y = convolution.convolve(x.astype(self.dtype), kernel, self.strides, self.padding)
    y = rematerialization.saved(y)
    if norm is not None:
      return norm(y, activate=activate)
    if shift is not None:
      y = convolution.unfold(y) + _filled(shift.astype(self.dtype), 0, filling)
    return relu(y) if activate else y


def _filled(x: Array, axis: int, count: int) -> Array:
  """`x` with `count` zeros more at the end of an axis."""
  if not count:
    return x
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, count)
  return jnp.pad(x, widths)


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


def _apply(x: Array, scale: Array, shift: Array) -> Array:
  """`x * scale + shift` in the dtype of `x`, with `[C]` each; channels beyond these stay zeros."""
  extra = x.shape[-1] - len(scale)
  scale, shift = (_filled(value.astype(x.dtype), 0, extra) for value in (scale, shift))
  return x * scale + shift


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(
  x: Array, scale: Array, bias: Array, epsilon: float, activate: bool
) -> tuple[Array, Array, Array]:
  """Batch normalization by the batch's statistics, and a ReLU, with a gradient for GPUs.

  XLA's own gradient writes the masked cotangent to memory before it reads it twice, and adds it up
  in the map's dtype. This one masks where it reads, and adds up in float32.

  Returns:
    The map `[..., C]`, and the batch's mean and biased variance `[C]`, which have no gradient.
  """
  return _normalize_forward(x, scale, bias, epsilon, activate)[0]


def _normalize_forward(
  x: Array, scale: Array, bias: Array, epsilon: float, activate: bool
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
  mean, var, _ = _moments(x)
  mean, var = mean[: len(scale)], var[: len(scale)]
  inverse = lax.rsqrt(var + epsilon)
  y = _apply(x, scale * inverse, bias - mean * scale * inverse)
  y = jax.nn.relu(y) if activate else y
  return (y, mean, var), (x, scale, bias, mean, inverse)


def _normalize_backward(
  epsilon: float,
  activate: bool,
  residuals: tuple[Array, ...],
  cotangents: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
  x, scale, bias, mean, inverse = residuals
  count = math.prod(x.shape[:-1])
  own, extra = len(scale), x.shape[-1] - len(scale)

  def masked_and_centred(x: Array, dy: Array) -> tuple[Array, Array]:
    if activate:
      y = _apply(x, scale * inverse, bias - mean * scale * inverse)
      dy = jnp.where(y > 0, dy, jnp.zeros((), dy.dtype))
    return widen(dy), widen(x) - _filled(mean, 0, extra)

  dy, centred = masked_and_centred(x, cotangents[0])
  axes = tuple(range(x.ndim - 1))
  dbias, dot = dy.sum(axes)[:own], (dy * centred).sum(axes)[:own]
  # Of the same inputs, but not the same values to the compiler: it would keep them in memory.
  x, cotangent, dbias, dot = lax.optimization_barrier((x, cotangents[0], dbias, dot))
  dy, centred = masked_and_centred(x, cotangent)
  slope, mean_dy = jnp.square(inverse) * dot / count, dbias / count
  dx = _filled(scale * inverse, 0, extra) * (
    dy - _filled(mean_dy, 0, extra) - centred * _filled(slope, 0, extra)
  )
  return dx.astype(x.dtype), dot * inverse, dbias


_normalize.defvjp(_normalize_forward, _normalize_backward)


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
    self.channels = channels
    self.epsilon = epsilon
    self.momentum = momentum
    self.frozen = frozen
    self.dtype = dtype
    self.use_running_average = False

  @property
  def is_fixed(self) -> bool:
    """Whether it uses the running statistics instead of the batch's: frozen, or in `model.eval()`."""
    return self.use_running_average or self.frozen

  def _scale_and_shift(self, mean: Array, var: Array) -> tuple[Array, Array]:
    scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
    return scale, self.bias[...] - mean * scale

  def fixed_scale_and_shift(self) -> tuple[Array, Array]:
    """`[C]` each, float32: with the running statistics, the layer is `x * scale + shift`."""
    return self._scale_and_shift(self.mean[...], self.var[...])

  def _update(self, mean: Array, var: Array, count: int | Array) -> None:
    """Takes a batch's mean and biased variance `[C]`, of `count` positions, into the running ones."""
    others = max(count - 1, 1) if isinstance(count, int) else jnp.maximum(count - 1, 1)
    unbiased = var * (count / others)
    # Not `[...] =`, which would write into the host array that a fresh model holds.
    self.mean.set_value(self.momentum * self.mean[...] + (1 - self.momentum) * mean)
    self.var.set_value(self.momentum * self.var[...] + (1 - self.momentum) * unbiased)

  def _of_what_is_seen(self, x: Array) -> Array:
    """The layer on a map `[B, T, H, W, C]` of which a part is hidden: zeros there, which no statistic has."""
    own = x[..., : self.channels]
    if self.is_fixed:
      scale, shift = self.fixed_scale_and_shift()
    else:
      mean, var, count = sparse.moments(widen(own))
      self._update(mean, var, count)
      scale, shift = self._scale_and_shift(mean, var)
    return _apply(x.astype(self.dtype), scale, shift) * sparse.weights(x).astype(self.dtype)

  def __call__(self, x: Map, *, activate: bool = False) -> Map:
    """Normalizes `[..., C]`; updates the running statistics unless frozen or in `model.eval()`.

    Args:
      x: feature map. A plain one that ends in channels of zeros beyond the layer's own keeps them.
      activate: whether a ReLU follows.
    """
    if sparse.is_on():
      seen = self._of_what_is_seen(convolution.unfold(x))
      return relu(seen) if activate else seen
    if self.is_fixed:
      scale, shift = self.fixed_scale_and_shift()
    elif target.platform() == "gpu" and not isinstance(x, Folded):
      y, mean, var = _normalize(
        x.astype(self.dtype), self.scale[...], self.bias[...], self.epsilon, activate
      )
      self._update(mean, var, math.prod(x.shape[:-1]))
      return y
    else:
      mean, var, count = _moments(x)
      self._update(mean, var, count)
      scale, shift = self._scale_and_shift(mean, var)
    x = x.astype(self.dtype)
    normalized: Map
    if isinstance(x, Folded):
      normalized = folded.scale_and_shift(x, scale.astype(self.dtype), shift.astype(self.dtype))
    else:
      normalized = _apply(x, scale, shift)
    return relu(normalized) if activate else normalized


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


@jax.custom_vjp
def _matmul(x: Array, kernel: Array) -> Array:
  """`[..., in]` times `[in, out]`, whose gradients suit CPUs.

  The product that gives the kernel's gradient turns one of its operands over, which XLA:CPU writes to memory, and has
  the outputs' gradient turned over, however wide. This one takes the narrower.
  """
  return x @ kernel


def _matmul_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
  x, kernel = residuals
  fan_in, fan_out = kernel.shape
  rows, drows = x.reshape(-1, fan_in), dy.reshape(-1, fan_out)
  over_rows = (((0,), (0,)), ((), ()))
  if fan_in <= fan_out:
    dkernel = lax.dot_general(rows, drows, over_rows)
  else:
    dkernel = lax.dot_general(drows, rows, over_rows).T
  return dy @ kernel.T, dkernel


_matmul.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _matmul_backward)


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
    return self.in_parts(x, 1)[0]

  def in_parts(self, x: Array, parts: int) -> list[Array]:
    """`[..., in]` to equal parts of the outputs, `[..., out / parts]` each.

    Each is a product of its own, so that neither all of them nor the gradients of all are put together.
    """
    matmul = _matmul if target.platform() == "cpu" and x.ndim > 2 else jnp.matmul
    x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
    outputs = [
      rematerialization.saved(matmul(x, part)) for part in jnp.split(kernel, parts, axis=1)
    ]
    if not self.use_bias:
      return outputs
    biases = jnp.split(self.bias[...].astype(self.dtype), parts)
    return [output + bias for output, bias in zip(outputs, biases, strict=True)]
