"""MixUp, CutMix and label smoothing: clips and labels of a batch with those of the batch reversed.

In: normalized clips `[B, T, H, W, 3]` and class ids `[B]`. Out: mixed clips, labels as shares.
Sources: https://arxiv.org/abs/1710.09412, https://arxiv.org/abs/1905.04899; both in one batch as
timm has them, with one draw a batch.
"""

import jax
import jax.numpy as jnp

from hybrid_video.augmentation import erasing

Array = jax.Array


def draw_weights(
  key: Array,
  height: int,
  width: int,
  *,
  mixup: float,
  cutmix: float,
  probability: float,
  switch: float,
) -> Array:
  """The weight of its own clip in each pixel; the rest is the partner's.

  Args:
    key: of this step.
    height, width: of the frames, in pixels.
    mixup, cutmix: alpha of each one's Beta(alpha, alpha); 0 is never.
    probability: of mixing at all.
    switch: of CutMix instead of MixUp where both are on.

  Returns:
    float32 `[H, W]`: the same number everywhere for MixUp, 0 in a box and 1 outside for CutMix.
  """
  whether, which, of_mixup, of_cutmix, of_top, of_left = jax.random.split(key, 6)
  ones = jnp.ones((height, width))
  mixed = boxed = ones
  if mixup:
    mixed = ones * jax.random.beta(of_mixup, mixup, mixup)
  if cutmix:
    side = jnp.sqrt(1.0 - jax.random.beta(of_cutmix, cutmix, cutmix))
    half_tall = (height * side).astype(jnp.int32) // 2
    half_wide = (width * side).astype(jnp.int32) // 2
    top = jax.random.randint(of_top, (), 0, height) - half_tall
    left = jax.random.randint(of_left, (), 0, width) - half_wide
    box = erasing.in_box(height, width, (top, left, 2 * half_tall, 2 * half_wide))
    boxed = jnp.where(box, 0.0, 1.0)
  share = switch if mixup and cutmix else float(bool(cutmix))
  weights = jnp.where(jax.random.bernoulli(which, share), boxed, mixed)
  return jnp.where(jax.random.bernoulli(whether, probability), weights, ones)


def mix_clips(clips: Array, weights: Array) -> Array:
  """Clips `[B, T, H, W, 3]` and their partners, by `[H, W]` weights of a clip's own pixels."""
  weights = weights[:, :, None]
  return weights * clips + (1.0 - weights) * clips[::-1]


def soft_labels(labels: Array, num_classes: int, *, own: Array | float, smoothing: float) -> Array:
  """Class ids `[B]` to shares float32 `[B, classes]` that add up to 1.

  Args:
    labels: class ids.
    num_classes: columns.
    own: the share of a clip's own label; the rest goes to its partner's.
    smoothing: the share that is spread evenly over all classes.
  """
  hard = jax.nn.one_hot(labels, num_classes)
  mixed = own * hard + (1.0 - own) * hard[::-1]
  return (1.0 - smoothing) * mixed + smoothing / num_classes
