"""Random boxes for training: what is cut out of each clip's frames, inside `tf.data`.

In: settings, the clips' indices in the sequence of training, and their frames' sizes. Out: boxes
(top, left, height, width) in stored pixels.
"""

import functools

import numpy as np
import tensorflow as tf

from hybrid_video.sampling import draws
from hybrid_video.sampling.clip_settings import ClipSettings
from hybrid_video.sampling.draws import Purpose

# Tries of a random resized crop before it falls back to the largest centred one, as torchvision's.
_TRIES = 10
_UNIT = 2**31
# Where a multi-scale crop lies, in quarters of the spare room: corners and centre, edges, and the
# points half way between.
_POSITIONS = (
  *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
  *((2, 0), (2, 4), (4, 2), (0, 2)),
  *((1, 1), (1, 3), (3, 1), (3, 3)),
)


def random_boxes(
  settings: ClipSettings,
  seed: int,
  clip_indices: tf.Tensor,
  height: tf.Tensor,
  width: tf.Tensor,
) -> tf.Tensor:
  """The training crop of each clip.

  Args:
    settings: how it is cut.
    seed: of the run.
    clip_indices: in the whole sequence of training, int64 `[B]`.
    height, width: pixels of the clips' stored frames, int64 `[B]`.

  Returns:
    int64 `[B, 4]`: top, left, height, width.
  """
  boxes = {
    "random": _plain,
    "multi_scale": _multi_scale,
    "random_resized": _random_resized,
  }[settings.crop_mode]
  return tf.stack(boxes(settings, seed, clip_indices, height, width), axis=1)


_Box = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]


def _plain(
  settings: ClipSettings, seed: int, clip_indices: tf.Tensor, height: tf.Tensor, width: tf.Tensor
) -> _Box:
  side = tf.fill(tf.shape(clip_indices), tf.constant(settings.crop, tf.int64))
  top = draws.integers(seed, Purpose.TOP, clip_indices, height - settings.crop + 1)
  left = draws.integers(seed, Purpose.LEFT, clip_indices, width - settings.crop + 1)
  return top, left, side, side


def _multi_scale(
  settings: ClipSettings, seed: int, clip_indices: tf.Tensor, height: tf.Tensor, width: tf.Tensor
) -> _Box:
  shorter = tf.minimum(height, width)
  count = len(settings.scales)
  pairs = [(i, j) for i in range(count) for j in range(count) if abs(i - j) <= 1]
  pair = draws.integers(seed, Purpose.CROP_HEIGHT, clip_indices, len(pairs))
  scales = tf.constant(settings.scales, tf.float64)
  sides = []
  for axis in (0, 1):
    scale = tf.gather(scales, tf.gather(tf.constant([p[axis] for p in pairs]), pair))
    side = tf.cast(tf.cast(shorter, tf.float64) * scale, tf.int64)
    # A side that is nearly the model's needs no resizing: TSN takes the model's own.
    near = tf.abs(side - settings.crop) < 3
    sides.append(tf.minimum(tf.where(near, tf.cast(settings.crop, tf.int64), side), shorter))
  position = draws.integers(seed, Purpose.TOP, clip_indices, len(_POSITIONS))
  down = tf.gather(tf.constant([p[0] for p in _POSITIONS], tf.int64), position)
  right = tf.gather(tf.constant([p[1] for p in _POSITIONS], tf.int64), position)
  top, left = (height - sides[0]) // 4 * down, (width - sides[1]) // 4 * right
  return top, left, sides[0], sides[1]


def _random_resized(
  settings: ClipSettings, seed: int, clip_indices: tf.Tensor, height: tf.Tensor, width: tf.Tensor
) -> _Box:
  draw = functools.partial(draws.integers, seed)

  def uniform(purpose: Purpose, low: float, high: float) -> tf.Tensor:
    drawn = tf.cast(draw(purpose, clip_indices, _UNIT, _TRIES), tf.float64) / _UNIT
    return low + (high - low) * drawn

  tall, wide = (tf.cast(side, tf.float64)[:, None] for side in (height, width))
  area = tall * wide * uniform(Purpose.AREA, *settings.area)
  aspect = tf.exp(uniform(Purpose.ASPECT, *np.log(settings.aspect)))
  box_width = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int64)
  box_height = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int64)
  fits = (box_width > 0) & (box_width <= width[:, None])
  fits &= (box_height > 0) & (box_height <= height[:, None])
  first = tf.argmax(tf.cast(fits, tf.int32), axis=1)
  any_fits = tf.reduce_any(fits, axis=1)
  # Where none fits: the whole frame, cut to the nearest aspect ratio that is allowed.
  low, high = settings.aspect
  widest = tf.cast(tf.round(tall[:, 0] * high), tf.int64)
  tallest = tf.cast(tf.round(wide[:, 0] / low), tf.int64)
  box_width = tf.where(
    any_fits, tf.gather(box_width, first, batch_dims=1), tf.minimum(width, widest)
  )
  box_height = tf.where(
    any_fits, tf.gather(box_height, first, batch_dims=1), tf.minimum(height, tallest)
  )
  top = draw(Purpose.TOP, clip_indices, height - box_height + 1)
  left = draw(Purpose.LEFT, clip_indices, width - box_width + 1)
  top = tf.where(any_fits, top, (height - box_height) // 2)
  left = tf.where(any_fits, left, (width - box_width) // 2)
  return top, left, box_height, box_width
