"""Random erasing: a box of noise, or of zeros, at the same position in all frames of a clip.

In: a normalized clip float32 `[T, H, W, 3]` and a key. Out: a clip of the same shape and type.
Source: https://arxiv.org/abs/1708.04896 in timm's form, with VideoMAE's box through all frames.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
_TRIES = 10


def draw_box(
  key: Array,
  height: int,
  width: int,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> tuple[Array, Array, Array, Array]:
  """A box within a frame: the first of ten that is lower and narrower than the frame.

  Args:
    key: of this clip.
    height, width: of the frame, in pixels.
    area: least and largest share of the frame, uniform.
    aspect: least and largest height by width, uniform in its logarithm.

  Returns:
    Scalars, in pixels: top, left, height and width, the last two 0 if none of the ten fits.
  """
  of_area, of_aspect, of_top, of_left = jax.random.split(key, 4)
  pixels = height * width * jax.random.uniform(of_area, (_TRIES,), minval=area[0], maxval=area[1])
  low, high = jnp.log(jnp.array(aspect))
  ratio = jnp.exp(jax.random.uniform(of_aspect, (_TRIES,), minval=low, maxval=high))
  heights = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
  fits = (heights < height) & (widths < width)
  first = jnp.argmax(fits)
  tall = jnp.where(fits[first], heights[first], 0)
  wide = jnp.where(fits[first], widths[first], 0)
  top = jax.random.randint(of_top, (), 0, height - tall + 1)
  left = jax.random.randint(of_left, (), 0, width - wide + 1)
  return top, left, tall, wide


def in_box(height: int, width: int, box: tuple[Array, Array, Array, Array]) -> Array:
  """Whether each pixel, bool `[H, W]`, lies in a box of (top, left, height, width)."""
  top, left, tall, wide = box
  y, x = jnp.arange(height)[:, None], jnp.arange(width)
  return (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)


def erase(
  clip: Array,
  key: Array,
  *,
  probability: float,
  area: tuple[float, float],
  aspect: tuple[float, float],
  noise: bool,
) -> Array:
  """Erases a box with the given probability.

  The box is filled with normal noise, fresh in every pixel, channel and frame, or with zero, which
  is the mean colour.
  """
  whether, where, what = jax.random.split(key, 3)
  height, width = clip.shape[1:3]

  def erased(clip: Array) -> Array:
    box = in_box(height, width, draw_box(where, height, width, area, aspect))
    filling = jax.random.normal(what, clip.shape, clip.dtype) if noise else jnp.zeros_like(clip)
    return jnp.where(box[:, :, None], filling, clip)

  return jax.lax.cond(jax.random.bernoulli(whether, probability), erased, lambda clip: clip, clip)
