"""Rotation, shear and translation of clips, one movement for all frames.

In: uint8 `[T, H, W, 3]`. Out: the same shape and type.

A movement is the six numbers (a, b, c, d, e, f) of Pillow's `Image.transform`: the pixel at (x, y)
of the result comes from (a x + b y + c, d x + e y + f), in pixels from the top left corner.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
Movement = tuple[Array | float, ...]
FILL = 128


def rotation(degrees: Array | float, height: int, width: int) -> Movement:
  """About the middle of the frame, counter-clockwise."""
  angle = jnp.deg2rad(degrees)
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  x, y = width / 2, height / 2
  return (
    cosine,
    -sine,
    x - cosine * x + sine * y,
    sine,
    cosine,
    y - sine * x - cosine * y,
  )


def shear_x(factor: Array | float) -> Movement:
  """Row y moves to the left by `factor` times y."""
  return (1.0, factor, 0.0, 0.0, 1.0, 0.0)


def shear_y(factor: Array | float) -> Movement:
  """Column x moves up by `factor` times x."""
  return (1.0, 0.0, 0.0, factor, 1.0, 0.0)


def translation(x: Array | float, y: Array | float) -> Movement:
  """To the left by `x` and up by `y` pixels."""
  return (1.0, 0.0, x, 0.0, 1.0, y)


def move(clip: Array, movement: Movement, fill: int = FILL) -> Array:
  """Moves every frame alike, bilinear; pixels from outside the frame get the level `fill`.

  Source: Pillow's `Image.transform` with `AFFINE` and `BILINEAR`, whose edge pixels are repeated
  for half a pixel and whose levels are truncated.
  """
  frames, height, width, channels = clip.shape
  a, b, c, d, e, f = movement
  y, x = jnp.mgrid[:height, :width] + 0.5
  from_x, from_y = a * x + b * y + c, d * x + e * y + f
  inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
  left, top = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
  share_x, share_y = from_x - 0.5 - left, from_y - 0.5 - top
  # One row a pixel with all its frames and channels: a few thousand reads of neighbouring bytes
  # instead of half a million of single ones.
  rows = clip.transpose(1, 2, 0, 3).reshape(height * width, frames * channels)

  def corner(down: int, right: int) -> Array:
    at_y = jnp.clip(top + down, 0, height - 1).astype(jnp.int32)
    at_x = jnp.clip(left + right, 0, width - 1).astype(jnp.int32)
    return rows[(at_y * width + at_x).reshape(-1)].astype(jnp.float32)

  def between(first: Array, second: Array, share: Array) -> Array:
    return first + (second - first) * share.reshape(-1, 1)

  upper = between(corner(0, 0), corner(0, 1), share_x)
  lower = between(corner(1, 0), corner(1, 1), share_x)
  levels = between(upper, lower, share_y)
  moved = jnp.where(inside.reshape(-1, 1), levels, fill).astype(jnp.uint8)
  return moved.reshape(height, width, frames, channels).transpose(2, 0, 1, 3)
