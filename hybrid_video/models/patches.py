"""Clips to patches: blocks of frames and pixels, each flattened to one token.

In: clips `[B, T, H, W, C]`. Out: a map of tokens `[B, T', H', W', values]`.
"""

import math

from flax import nnx
from jax import lax
import jax.numpy as jnp

from hybrid_video.models import target
from hybrid_video.models.layers import Array, DType
from hybrid_video.models.model_error import ModelError

# Values of a patch, up to which a product gathers them: its work grows with them.
_MOST_GATHERED = 2048


def cut(clips: Array, patch: tuple[int, int, int]) -> Array:
  """Clips `[B, T, H, W, C]` to `[B, T', H', W', values]`, values in the order (frame, row, column, channel).

  Args:
    clips: lengths that are multiples of the patch's.
    patch: frames, rows and columns.
  """
  values = clips.shape[-1] * math.prod(patch)
  is_exact = clips.dtype == jnp.uint8 or jnp.issubdtype(clips.dtype, jnp.floating)
  is_gathered = target.platform() == "tpu" and values <= _MOST_GATHERED and is_exact
  return (_gathered if is_gathered else _moved)(clips, patch)


def _moved(clips: Array, patch: tuple[int, int, int]) -> Array:
  batch, *sizes, channels = clips.shape
  slots, rows, columns = (size // length for size, length in zip(sizes, patch, strict=True))
  x = clips.reshape(batch, slots, patch[0], rows, patch[1], columns, patch[2], channels)
  x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
  return x.reshape(batch, slots, rows, columns, -1)


def _gathered(clips: Array, patch: tuple[int, int, int]) -> Array:
  """The same by a convolution whose kernel holds one 1 for each value, exactly.

  A TPU moves a few pixels at a time far slower than its matrix unit multiplies them: 3.1 M cycles for 16 clips of
  16x224x224 on a v5e in place of 11 M (the compiler's estimate).
  """
  batch, time, height, width, channels = clips.shape
  frames, rows, columns = patch
  # The frames of a patch are channels.
  x = clips.reshape(batch, time // frames, frames, height, width, channels)
  x = x.transpose(0, 1, 3, 4, 2, 5).reshape(-1, height, width, frames * channels)
  count = channels * math.prod(patch)
  number = jnp.arange(count).reshape(*patch, channels).transpose(1, 2, 0, 3)
  number = number.reshape(rows, columns, frames * channels)
  # Whole numbers up to 256 are exact in 16 bits.
  dtype = clips.dtype if jnp.issubdtype(clips.dtype, jnp.floating) else jnp.bfloat16
  y = lax.conv_general_dilated(
    x.astype(dtype),
    (number[..., None] == jnp.arange(count)).astype(dtype),
    (rows, columns),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=lax.Precision.HIGHEST,
  )
  grid = (batch, time // frames, height // rows, width // columns, count)
  return y.reshape(grid).astype(clips.dtype)


def join(grid: Array, patch: tuple[int, int, int]) -> Array:
  """The way back of `cut`: `[B, T', H', W', values]` to clips `[B, T, H, W, C]`."""
  batch, slots, rows, columns, _ = grid.shape
  x = grid.reshape(batch, slots, rows, columns, *patch, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
  return x.reshape(batch, slots * patch[0], rows * patch[1], columns * patch[2], -1)


class Patches(nnx.Module):
  """What stands in the CNN's place where there is none: patches of pixels as tokens, nothing learned.

  Attributes:
    out_channels: values of a token.
    strides: frames, rows and columns of a clip that a token stands for.
  """

  def __init__(self, patch: tuple[int, int, int], *, dtype: DType):
    """Makes no parameters.

    Args:
      patch: frames, rows and columns; 2 x 8 x 8 are those of the Perceiver on video (Jaegle et al. 2021,
        arXiv:2103.03206, section 4.2).
      dtype: of the tokens.

    Raises:
      ModelError: a length below 1.
    """
    if len(patch) != 3 or min(patch) < 1:
      raise ModelError(f"patch={patch}: expected frames, rows and columns, each at least 1.")
    self.strides = self.patch = patch
    self.out_channels = 3 * patch[0] * patch[1] * patch[2]
    self.dtype = dtype

  def __call__(self, clips: Array) -> Array:
    """Clips `[B, T, H, W, 3]` to tokens `[B, T', H', W', out_channels]`.

    Raises:
      ModelError: lengths that the patch does not divide.
    """
    sizes = clips.shape[1:4]
    if any(size % length for size, length in zip(sizes, self.patch, strict=True)):
      raise ModelError(
        f"A clip of {sizes} (frames, height, width) is not a multiple of its patches of {self.patch}: "
        "choose clip.frames and clip.crop, or model.patch, that fit."
      )
    return cut(jnp.asarray(clips, self.dtype), self.patch)
