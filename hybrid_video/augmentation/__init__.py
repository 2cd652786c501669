"""Augmentation of clips on the device, within the training step.

In: a batch as the input pipeline gives it, cropped and flipped, uint8 `[B, T, H, W, 3]`. Out:
normalized clips, and labels as shares where they are mixed or smoothed.

What happens to a clip follows from the step's key and the clip's row in the global batch alone, so
that neither the number of devices nor a resumed run changes it, and is the same for all its frames.
The order is timm's: RandAugment, colour jitter, normalization, erasing, MixUp or CutMix.
"""

from collections.abc import Callable
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from hybrid_video import sharding
from hybrid_video.augmentation import colour, erasing, mixing, randaugment
from hybrid_video.settings import SettingError, Settings, setting

Array = jax.Array
# Clips, labels and a key in; normalized clips and labels as shares, or None for hard labels, out.
Augment = Callable[[Array, Array, Array], tuple[Array, Array | None]]


@dataclasses.dataclass(frozen=True)
class AugmentationSettings(Settings):
  """What is done to training clips. By default, nothing.

  Attributes:
    label_smoothing: the share of a label that is spread over all classes.
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
    SettingError: a value out of its range.
  """

  PATH: ClassVar[str] = "augmentation"

  label_smoothing: float = setting(0.0, at_least=0, at_most=1)
  mixup: float = setting(0.0, at_least=0)
  cutmix: float = setting(0.0, at_least=0)
  mix_probability: float = setting(1.0, at_least=0, at_most=1)
  mix_switch: float = setting(0.5, at_least=0, at_most=1)
  brightness: float = setting(0.0, at_least=0)
  contrast: float = setting(0.0, at_least=0)
  saturation: float = setting(0.0, at_least=0)
  hue: float = setting(0.0, at_least=0, at_most=0.5)
  jitter_probability: float = setting(1.0, at_least=0, at_most=1)
  randaugment_layers: int = setting(0, at_least=0)
  randaugment_magnitude: float = setting(7.0, at_least=0, at_most=randaugment.MAX_MAGNITUDE)
  randaugment_std: float = setting(0.5, at_least=0)
  randaugment_probability: float = setting(0.5, at_least=0, at_most=1)
  erasing: float = setting(0.0, at_least=0, at_most=1)
  erasing_min_area: float = setting(0.02, above=0, at_most=1)
  erasing_max_area: float = setting(1 / 3, above=0, at_most=1)
  erasing_aspect: float = setting(0.3, above=0, at_most=1)
  erasing_noise: bool = setting(True)

  def validate(self) -> None:
    """Checks that the areas ascend."""
    if self.erasing_min_area > self.erasing_max_area:
      raise SettingError(
        f"{self.path('erasing_min_area')} is {self.erasing_min_area:g}: expected no more than "
        f"erasing_max_area, {self.erasing_max_area:g}."
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
  clip: Array, key: Array, settings: AugmentationSettings, normalize: Callable[[Array], Array]
) -> Array:
  """Everything that is done to one clip alone.

  Args:
    clip: uint8 `[T, H, W, 3]`.
    key: of this clip.
    settings: what to do.
    normalize: uint8 clips to float32.

  Returns:
    float32 `[T, H, W, 3]`, normalized.
  """
  of_operations, of_jitter, of_erasing = jax.random.split(key, 3)
  if settings.draws_operations:
    drawn = randaugment.draw(
      of_operations,
      settings.randaugment_layers,
      settings.randaugment_magnitude,
      settings.randaugment_std,
      settings.randaugment_probability,
    )
    clip = randaugment.apply(clip, *drawn)
  if settings.jitters:
    clip = jitter(clip, of_jitter, settings)
  clip = normalize(clip)
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


def _mix(settings: AugmentationSettings, clips: Array, key: Array) -> tuple[Array, Array]:
  """A batch float32 `[B, T, H, W, 3]` mixed with its reverse, and each label's own share."""
  weights = mixing.draw_weights(
    key,
    *clips.shape[2:4],
    mixup=settings.mixup,
    cutmix=settings.cutmix,
    probability=settings.mix_probability,
    switch=settings.mix_switch,
  )
  return mixing.mix_clips(clips, weights), jnp.mean(weights)


def make_augment(
  settings: AugmentationSettings,
  *,
  mesh: Mesh,
  normalize: Callable[[Array], Array],
  num_classes: int,
) -> Augment | None:
  """Settings as a function for the training step.

  Args:
    settings: what to do.
    mesh: the batch is split along its axes.
    normalize: uint8 clips `[..., H, W, 3]` to float32.
    num_classes: columns of labels as shares.

  Returns:
    A pure function of clips uint8 `[B, T, H, W, 3]`, labels `[B]` and the step's key, which gives
    normalized clips and labels as shares `[B, classes]`, or None for labels that stay hard. If all
    is off there is nothing to do, and no function either: None.
  """
  changes_clips = settings.draws_operations or settings.jitters or settings.erasing > 0
  softens = settings.mixes or settings.label_smoothing > 0
  if not changes_clips and not softens:
    return None
  split = PartitionSpec(sharding.BATCH_AXES)

  def each(clips: Array, rows: Array, key: Array) -> Array:
    # One clip at a time, so that an operation runs only on the clips that drew it.
    return jax.lax.map(
      lambda one: augment_clip(one[0], jax.random.fold_in(key, one[1]), settings, normalize),
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
      clips = normalize(clips)
    if not softens:
      return clips, None
    own: Array | float = 1.0
    if settings.mixes:
      clips, own = _mix(settings, clips, of_mixing)
    smoothing = settings.label_smoothing
    return clips, mixing.soft_labels(labels, num_classes, own=own, smoothing=smoothing)

  return augment
