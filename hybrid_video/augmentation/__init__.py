"""Augmentation of clips on the device, within the training step.

In: a batch as the input pipeline gives it, cropped and flipped, uint8 `[B, T, H, W, 3]`. Out:
normalised clips, and labels as shares where they are mixed or smoothed.

What happens to a clip follows from the step's key and the clip's row in the global batch alone, so
that neither the number of devices nor a resumed run changes it, and is the same for all its frames.
The order is timm's: RandAugment, colour jitter, normalisation, erasing, MixUp or CutMix.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from hybrid_video import sharding
from hybrid_video.augmentation import colour, erasing, mixing, randaugment

Array = jax.Array
# Clips, labels and a key in; normalised clips and labels as shares, or None for hard labels, out.
Augment = Callable[[Array, Array, Array], tuple[Array, Array | None]]


# Fields without an entry have no highest value.
_HIGHEST = {
  "label_smoothing": 1.0,
  "mix_probability": 1.0,
  "mix_switch": 1.0,
  "hue": 0.5,
  "jitter_probability": 1.0,
  "randaugment_magnitude": randaugment.MAX_MAGNITUDE,
  "randaugment_probability": 1.0,
  "erasing": 1.0,
  "erasing_min_area": 1.0,
  "erasing_max_area": 1.0,
  "erasing_aspect": 1.0,
}


class AugmentationError(ValueError):
  """A setting that cannot serve; the message names it, the value found and those expected."""


@dataclasses.dataclass(frozen=True)
class AugmentationSettings:
  """What is done to training clips. By default, nothing.

  Attributes:
    label_smoothing: the part of a label that is spread over all classes.
    mixup, cutmix: alpha of each one's Beta(alpha, alpha); 0 is off.
    mix_probability: of mixing a batch at all.
    mix_switch: probability of CutMix instead of MixUp where both are on.
    brightness, contrast, saturation: colour jitter's factors are drawn from 1 - strength (at least
      0) to 1 + strength; 0 is off.
    hue: jitter's turn is drawn from -hue to hue, as a share of the circle; 0 is off.
    jitter_probability: of colour jitter on a clip.
    randaugment_layers: operations drawn a clip; 0 is off.
    randaugment_magnitude, randaugment_std: how strong, 0 to 10, and the noise on it.
    randaugment_probability: of applying each operation drawn.
    erasing: probability of erasing a box of a clip; 0 is off.
    erasing_min_area, erasing_max_area: of the box, as a share of the frame.
    erasing_aspect: height by width is drawn from this to its inverse.
    erasing_noise: whether the box is filled with noise; if not, with the mean colour.

  Raises:
    AugmentationError: a value out of its range.
  """

  label_smoothing: float = 0.0
  mixup: float = 0.0
  cutmix: float = 0.0
  mix_probability: float = 1.0
  mix_switch: float = 0.5
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  jitter_probability: float = 1.0
  randaugment_layers: int = 0
  randaugment_magnitude: float = 7.0
  randaugment_std: float = 0.5
  randaugment_probability: float = 0.5
  erasing: float = 0.0
  erasing_min_area: float = 0.02
  erasing_max_area: float = 1 / 3
  erasing_aspect: float = 0.3
  erasing_noise: bool = True

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      if field.name == "erasing_noise":
        continue
      value, highest = getattr(self, field.name), _HIGHEST.get(field.name, math.inf)
      # Written so that NaN is refused too.
      if not 0 <= value <= highest or math.isinf(value):
        upwards = "0 or a larger finite number" if math.isinf(highest) else f"0 to {highest:g}"
        raise AugmentationError(
          f"--config.augmentation.{field.name} is {value}: it takes {upwards}."
        )
    if self.randaugment_layers != int(self.randaugment_layers):
      raise AugmentationError(
        f"--config.augmentation.randaugment_layers is {self.randaugment_layers}: it takes a whole "
        "number of operations."
      )
    if not 0 < self.erasing_min_area <= self.erasing_max_area:
      raise AugmentationError(
        f"--config.augmentation.erasing_min_area is {self.erasing_min_area}: it takes more than 0 "
        f"and no more than erasing_max_area, {self.erasing_max_area:g}."
      )
    if not self.erasing_aspect > 0:
      raise AugmentationError(
        f"--config.augmentation.erasing_aspect is {self.erasing_aspect}: it takes more than 0 and "
        "at most 1."
      )

  @property
  def jitters(self) -> bool:
    """Whether colour jitter is on."""
    strengths = (self.brightness, self.contrast, self.saturation, self.hue)
    return self.jitter_probability > 0 and any(strengths)

  @property
  def draws_operations(self) -> bool:
    """Whether RandAugment is on."""
    return self.randaugment_layers > 0 and self.randaugment_probability > 0

  @property
  def mixes(self) -> bool:
    """Whether MixUp or CutMix is on."""
    return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)


def jitter(clip: Array, key: Array, settings: AugmentationSettings) -> Array:
  """Colour jitter as torchvision's `ColorJitter`: those that are on, in random order.

  Args:
    clip: uint8 `[T, H, W, 3]`.
    key: of this clip.
    settings: which are on and how strong.

  Returns:
    uint8 `[T, H, W, 3]`.
  """
  ranges: list[tuple[Callable[[Array, Array], Array], float, float]] = [
    (adjust, max(0.0, 1.0 - strength), 1.0 + strength)
    for adjust, strength in (
      (colour.adjust_brightness, settings.brightness),
      (colour.adjust_contrast, settings.contrast),
      (colour.adjust_saturation, settings.saturation),
    )
    if strength
  ]
  if settings.hue:
    ranges.append((colour.adjust_hue, -settings.hue, settings.hue))
  branches = [adjust for adjust, _, _ in ranges]
  low = jnp.array([lowest for _, lowest, _ in ranges])
  high = jnp.array([highest for _, _, highest in ranges])
  whether, of_order, of_factors = jax.random.split(key, 3)
  order = jax.random.permutation(of_order, len(branches))
  factors = low + (high - low) * jax.random.uniform(of_factors, low.shape)

  def adjusted(clip: Array) -> Array:
    def turn(clip: Array, which: Array) -> tuple[Array, None]:
      return jax.lax.switch(which, branches, clip, factors[which]), None

    return jax.lax.scan(turn, clip, order)[0]

  applies = jax.random.bernoulli(whether, settings.jitter_probability)
  return jax.lax.cond(applies, adjusted, lambda clip: clip, clip)


def augment_clip(
  clip: Array, key: Array, settings: AugmentationSettings, normalise: Callable[[Array], Array]
) -> Array:
  """All that concerns a clip by itself.

  Args:
    clip: uint8 `[T, H, W, 3]`.
    key: of this clip.
    settings: what to do.
    normalise: uint8 clips to float32.

  Returns:
    float32 `[T, H, W, 3]`, normalised.
  """
  of_operations, of_jitter, of_erasing = jax.random.split(key, 3)
  if settings.draws_operations:
    drawn = randaugment.draw(
      of_operations,
      int(settings.randaugment_layers),
      settings.randaugment_magnitude,
      settings.randaugment_std,
      settings.randaugment_probability,
    )
    clip = randaugment.apply(clip, *drawn)
  if settings.jitters:
    clip = jitter(clip, of_jitter, settings)
  clip = normalise(clip)
  if settings.erasing:
    clip = erasing.erase(
      clip,
      of_erasing,
      probability=settings.erasing,
      area=(settings.erasing_min_area, settings.erasing_max_area),
      aspect=(settings.erasing_aspect, 1 / settings.erasing_aspect),
      noise=settings.erasing_noise,
    )
  return clip


def make_augment(
  settings: AugmentationSettings,
  *,
  mesh: Mesh,
  normalise: Callable[[Array], Array],
  num_classes: int,
) -> Augment | None:
  """Settings as a function for the training step.

  Args:
    settings: what to do.
    mesh: the batch is split along its "data" axis.
    normalise: uint8 clips `[..., H, W, 3]` to float32.
    num_classes: columns of labels as shares.

  Returns:
    A pure function of clips uint8 `[B, T, H, W, 3]`, labels `[B]` and the step's key, which gives
    normalised clips and labels as shares `[B, classes]`, or None for labels that stay hard. If all
    is off there is nothing to do, and no function either: None.
  """
  changes_clips = settings.draws_operations or settings.jitters or settings.erasing > 0
  softens = settings.mixes or settings.label_smoothing > 0
  if not changes_clips and not softens:
    return None
  split = PartitionSpec(sharding.DATA_AXIS)

  def each(clips: Array, rows: Array, key: Array) -> Array:
    # One clip at a time, so that an operation runs only on the clips that drew it.
    return jax.lax.map(
      lambda one: augment_clip(one[0], jax.random.fold_in(key, one[1]), settings, normalise),
      (clips, rows),
    )

  def augment(clips: Array, labels: Array, key: Array) -> tuple[Array, Array | None]:
    of_rows, of_mixing = jax.random.split(key)
    if changes_clips:
      # Left to itself, XLA would gather the batch on every device for a loop over its rows.
      local = jax.shard_map(
        each, mesh=mesh, in_specs=(split, split, PartitionSpec()), out_specs=split
      )
      clips = local(clips, jnp.arange(len(clips)), of_rows)
    else:
      clips = normalise(clips)
    if not softens:
      return clips, None
    own: Array | float = 1.0
    if settings.mixes:
      weights = mixing.draw_weights(
        of_mixing,
        *clips.shape[2:4],
        mixup=settings.mixup,
        cutmix=settings.cutmix,
        probability=settings.mix_probability,
        switch=settings.mix_switch,
      )
      clips = mixing.mix_clips(clips, weights)
      own = jnp.mean(weights)
    smoothing = settings.label_smoothing
    return clips, mixing.soft_labels(labels, num_classes, own=own, smoothing=smoothing)

  return augment
