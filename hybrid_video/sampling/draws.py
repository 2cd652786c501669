"""Random numbers by position: (seed, purpose, index of the clip) to a number, nothing before it.

In: a seed and, for a batch, the clips' indices in the whole sequence of training. Out: integers, and
the order of an epoch. Inside `tf.data`, on vectors; the same on every machine and for any batch.
"""

import enum

import numpy as np
import tensorflow as tf


class Purpose(enum.IntEnum):
  """What is drawn; every purpose has a stream of numbers of its own."""

  WINDOW = 1
  TOP = 2
  LEFT = 3
  FLIP = 4
  CROP_HEIGHT = 5
  CROP_WIDTH = 6
  SEGMENT = 7
  AREA = 8
  ASPECT = 9
  ORDER = 10


# The cipher behind TensorFlow's shuffled indices is uneven for fewer things than some hundred.
_SORTED_BELOW = 512


def _mix(x: tf.Tensor) -> tf.Tensor:
  # The finaliser of SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
  # Generators", OOPSLA 2014.
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
    x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint64)))
    if factor is not None:
      x *= tf.constant(factor, tf.uint64)
  return x


def integers(
  seed: int, purpose: Purpose, clip_indices: tf.Tensor, below: tf.Tensor | int, count: int = 1
) -> tf.Tensor:
  """Whole numbers from 0 to `below` - 1, alike in probability (to one part in 2^31 / below).

  Args:
    seed: of the run.
    purpose: which stream.
    clip_indices: positions in the sequence, int64 `[B]`.
    below: up to 2^31, one for all or int64 `[B]`, or `[B, count]`.
    count: numbers a clip.

  Returns:
    int64 `[B]`, or `[B, count]` if count is above 1.
  """
  stream = np.random.SeedSequence([seed % 2**64, purpose]).generate_state(1, np.uint64)[0]
  golden = tf.constant(0x9E3779B97F4A7C15, tf.uint64)
  keys = _mix(tf.constant(stream, tf.uint64) + tf.cast(clip_indices, tf.uint64) * golden)
  if count > 1:
    keys = _mix(keys[:, None] + tf.constant(np.arange(1, count + 1, dtype=np.uint64)) * golden)
  upper = tf.cast(tf.bitwise.right_shift(keys, tf.constant(33, tf.uint64)), tf.int64)
  below = tf.cast(below, tf.int64)
  if count > 1 and below.shape.rank == 1:
    below = below[:, None]
  return tf.bitwise.right_shift(upper * below, tf.constant(31, tf.int64))


def shuffled(seed: int, clip_indices: tf.Tensor, count: int) -> tf.Tensor:
  """Which of `count` things comes at each position, every epoch a new order of all of them.

  Args:
    seed: of the run.
    clip_indices: positions in the sequence of all epochs, int64 `[B]`.
    count: things.

  Returns:
    int64 `[B]`, 0 to count - 1.
  """
  if count == 1:
    return tf.zeros_like(clip_indices)
  epochs, within = clip_indices // count, clip_indices % count
  if count <= _SORTED_BELOW:
    # Each thing draws a number an epoch, and they line up by it.
    numbers = integers(seed, Purpose.ORDER, epochs, 2**31, count)
    order = tf.argsort(tf.reshape(numbers, (-1, count)), axis=1, stable=True)
    return tf.cast(tf.gather(order, within, batch_dims=1), tf.int64)
  state = np.random.SeedSequence(seed % 2**64).generate_state(2, np.uint32).astype(np.int64)
  keys = tf.stack(
    [tf.fill(tf.shape(clip_indices), state[0]), tf.fill(tf.shape(clip_indices), state[1]), epochs],
    1,
  )
  return tf.raw_ops.RandomIndexShuffle(
    index=within,
    seed=keys,
    max_index=tf.fill(tf.shape(clip_indices), tf.constant(count - 1, tf.int64)),
    # With 4, the default, orders of some thousand things keep too much of their halves together.
    rounds=8,
  )
