"""Colour operations on clips, as Pillow does them on each frame's 8-bit pixels.

In: uint8 `[..., H, W, 3]`, red, green, blue. Out: the same shape and type. Frames are independent;
strengths are scalars and may be traced.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
_LEVELS = 256


def blend(degenerate: Array, clip: Array, factor: Array | float) -> Array:
  """`degenerate` at factor 0, `clip` at 1, beyond it above 1; cut off to whole levels in 0 to 255.

  Source: Pillow's `Image.blend`, which truncates.
  """
  low = jnp.asarray(degenerate, jnp.float32)
  mixed = low + jnp.asarray(factor, jnp.float32) * (clip.astype(jnp.float32) - low)
  return jnp.clip(mixed, 0.0, _LEVELS - 1.0).astype(jnp.uint8)


def luma(clip: Array) -> Array:
  """Grey levels int32 `[..., H, W, 1]`: ITU-R 601-2 in 16-bit fixed point, as Pillow's mode "L"."""
  weights = jnp.array([19595, 38470, 7471], jnp.int32)
  total = jnp.sum(clip.astype(jnp.int32) * weights, axis=-1, keepdims=True)
  return (total + 0x8000) >> 16


def adjust_brightness(clip: Array, factor: Array | float) -> Array:
  """Black at 0, unchanged at 1 (Pillow's `ImageEnhance.Brightness`)."""
  return blend(jnp.zeros((), jnp.uint8), clip, factor)


def adjust_contrast(clip: Array, factor: Array | float) -> Array:
  """Each frame's mean grey at 0, unchanged at 1 (Pillow's `ImageEnhance.Contrast`)."""
  pixels = clip.shape[-3] * clip.shape[-2]
  total = jnp.sum(luma(clip), axis=(-3, -2), keepdims=True)
  return blend((2 * total + pixels) // (2 * pixels), clip, factor)


def adjust_saturation(clip: Array, factor: Array | float) -> Array:
  """Grey at 0, unchanged at 1 (Pillow's `ImageEnhance.Color`)."""
  return blend(luma(clip), clip, factor)


def adjust_hue(clip: Array, turn: Array | float) -> Array:
  """Turns hues by a share of the circle, -0.5 to 0.5; value and saturation stay.

  Source: the HSV cone in floating point as in torchvision's `adjust_hue`, rounded once to levels.
  """
  red, green, blue = jnp.moveaxis(clip.astype(jnp.float32), -1, 0)
  value = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
  divisor = jnp.where(chroma == 0, 1.0, chroma)
  sixths = jnp.where(
    value == red,
    (green - blue) / divisor,
    jnp.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
  )
  position = jnp.array([5.0, 3.0, 1.0]) + sixths[..., None] + 6.0 * turn
  position = jnp.mod(position, 6.0)
  share = jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)
  return jnp.round(value[..., None] - chroma[..., None] * share).astype(jnp.uint8)


def adjust_sharpness(clip: Array, factor: Array | float) -> Array:
  """Smoothed at 0, unchanged at 1, sharpened above (Pillow's `ImageEnhance.Sharpness`).

  The smoothing is Pillow's `SMOOTH`: 3x3 of ones with 5 in the middle, over 13; a frame's outermost
  pixels stay as they are.
  """
  height, width = clip.shape[-3:-1]
  if height < 3 or width < 3:
    return clip
  levels = jnp.asarray(clip, jnp.int32)
  rows = levels[..., :-2, :, :] + levels[..., 1:-1, :, :] + levels[..., 2:, :, :]
  around = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
  inner = (2 * (around + 4 * levels[..., 1:-1, 1:-1, :]) + 13) // 26
  smooth = levels.at[..., 1:-1, 1:-1, :].set(inner)
  return blend(smooth, clip, factor)


def autocontrast(clip: Array) -> Array:
  """Stretches every channel of every frame to 0 to 255 (Pillow's `ImageOps.autocontrast`)."""
  levels = clip.astype(jnp.int32)
  low = jnp.min(levels, axis=(-3, -2), keepdims=True)
  high = jnp.max(levels, axis=(-3, -2), keepdims=True)
  spread = jnp.maximum(high - low, 1)
  return jnp.where(high > low, (levels - low) * 255 // spread, levels).astype(jnp.uint8)


def _equalize_frame(frame: Array) -> Array:
  height, width, channels = frame.shape
  levels = frame.reshape(-1, channels)
  # A histogram and a look-up as products of one-hot half bytes: exact in any precision, and on
  # accelerators without the scatter and gather of single numbers, which are slow there.
  upper = jax.nn.one_hot(levels >> 4, 16)
  lower = jax.nn.one_hot(levels & 15, 16)
  counts = jnp.einsum("nch,ncl->chl", upper, lower).astype(jnp.int32).reshape(channels, _LEVELS)
  seen = jnp.cumsum(counts, axis=-1)
  last = jnp.max(jnp.where(counts > 0, jnp.arange(_LEVELS), 0), axis=-1, keepdims=True)
  step = (height * width - jnp.take_along_axis(counts, last, axis=-1)) // 255
  table = jnp.minimum((step // 2 + seen - counts) // jnp.maximum(step, 1), 255)
  table = jnp.where(step > 0, table, jnp.arange(_LEVELS))
  halves = table.astype(jnp.float32).reshape(channels, 16, 16)
  equalized = jnp.sum(jnp.einsum("nch,chl->ncl", upper, halves) * lower, axis=-1)
  return equalized.astype(jnp.uint8).reshape(frame.shape)


def equalize(clip: Array) -> Array:
  """Evens out the histogram of every channel of every frame (Pillow's `ImageOps.equalize`)."""
  frames = clip.reshape(-1, *clip.shape[-3:])
  return jax.lax.map(_equalize_frame, frames).reshape(clip.shape)


def invert(clip: Array) -> Array:
  """The negative."""
  return 255 - clip


def posterize(clip: Array, bits: Array | int) -> Array:
  """Keeps the highest `bits`, 0 to 8, of every level."""
  mask = (0xFF << (8 - jnp.asarray(bits, jnp.int32))) & 0xFF
  return clip & mask.astype(jnp.uint8)


def solarize(clip: Array, threshold: Array | int) -> Array:
  """Inverts levels from `threshold`, 0 to 256, upwards."""
  return jnp.where(clip.astype(jnp.int32) < threshold, clip, 255 - clip)


def solarize_add(clip: Array, amount: Array | int, threshold: int = 128) -> Array:
  """Adds `amount`, 0 to 128, to levels below `threshold`."""
  levels = clip.astype(jnp.int32)
  return jnp.where(levels < threshold, jnp.minimum(levels + amount, 255), levels).astype(jnp.uint8)
