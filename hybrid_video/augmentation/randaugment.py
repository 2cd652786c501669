"""RandAugment: a few operations drawn from fifteen, the same for all frames of a clip.

In: one clip uint8 `[T, H, W, 3]` and a key. Out: a clip of the same shape and type.

Operations and their ranges are those of timm's "increasing" set ("rand-m7-n4-mstd0.5-inc1" with its
defaults), as VideoMAE's fine-tuning has them: https://arxiv.org/abs/1909.13719 with magnitudes that
always do more when they are larger. Frames move bilinearly and uncovered areas turn grey, 128.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hybrid_video.augmentation import colour, geometry

Array = jax.Array
MAX_MAGNITUDE = 10.0


def _rotate(clip: Array, share: Array, sign: Array) -> Array:
  return geometry.move(clip, geometry.rotation(30.0 * share * sign, *clip.shape[1:3]))


def _posterize(clip: Array, share: Array, sign: Array) -> Array:
  return colour.posterize(clip, 4 - jnp.floor(4 * share).astype(jnp.int32))


def _solarize(clip: Array, share: Array, sign: Array) -> Array:
  return colour.solarize(clip, 256 - jnp.floor(256 * share).astype(jnp.int32))


def _solarize_add(clip: Array, share: Array, sign: Array) -> Array:
  return colour.solarize_add(clip, jnp.floor(110 * share).astype(jnp.int32))


def _enhance(adjust: Callable[[Array, Array], Array]) -> Callable[[Array, Array, Array], Array]:
  return lambda clip, share, sign: adjust(clip, 1.0 + 0.9 * share * sign)


# Each takes a clip, the magnitude as a share of the largest, and a sign, -1 or 1.
OPERATIONS: dict[str, Callable[[Array, Array, Array], Array]] = {
  "AutoContrast": lambda clip, share, sign: colour.autocontrast(clip),
  "Equalize": lambda clip, share, sign: colour.equalize(clip),
  "Invert": lambda clip, share, sign: colour.invert(clip),
  "Rotate": _rotate,
  "Posterize": _posterize,
  "Solarize": _solarize,
  "SolarizeAdd": _solarize_add,
  "Color": _enhance(colour.adjust_saturation),
  "Contrast": _enhance(colour.adjust_contrast),
  "Brightness": _enhance(colour.adjust_brightness),
  "Sharpness": _enhance(colour.adjust_sharpness),
  "ShearX": lambda clip, share, sign: geometry.move(clip, geometry.shear_x(0.3 * share * sign)),
  "ShearY": lambda clip, share, sign: geometry.move(clip, geometry.shear_y(0.3 * share * sign)),
  "TranslateX": lambda clip, share, sign: geometry.move(
    clip, geometry.translation(0.45 * share * sign * clip.shape[2], 0.0)
  ),
  "TranslateY": lambda clip, share, sign: geometry.move(
    clip, geometry.translation(0.0, 0.45 * share * sign * clip.shape[1])
  ),
}


def draw(
  key: Array, layers: int, magnitude: float, std: float, probability: float
) -> tuple[Array, Array, Array]:
  """Draws the operations of one clip.

  Args:
    key: of this clip.
    layers: operations drawn, with replacement.
    magnitude: 0 to 10.
    std: of the Gaussian noise on it, drawn for every layer.
    probability: of applying each operation.

  Returns:
    For every layer, `[layers]`: the operation's index in `OPERATIONS` or -1 for none, the magnitude
    as a share of the largest (0 to 1), and the sign (-1 or 1).
  """
  which, whether, how_much, sign = jax.random.split(key, 4)
  indices = jax.random.randint(which, (layers,), 0, len(OPERATIONS))
  indices = jnp.where(jax.random.bernoulli(whether, probability, (layers,)), indices, -1)
  magnitudes = magnitude + std * jax.random.normal(how_much, (layers,))
  shares = jnp.clip(magnitudes / MAX_MAGNITUDE, 0.0, 1.0)
  return indices, shares, jax.random.rademacher(sign, (layers,), jnp.float32)


def apply(clip: Array, indices: Array, shares: Array, signs: Array) -> Array:
  """Applies what `draw` gave, one layer after the other."""
  branches = [lambda clip, share, sign: clip, *OPERATIONS.values()]

  def layer(clip: Array, drawn: tuple[Array, Array, Array]) -> tuple[Array, None]:
    index, share, sign = drawn
    return jax.lax.switch(index + 1, branches, clip, share, sign), None

  return jax.lax.scan(layer, clip, (indices, shares, signs))[0]
