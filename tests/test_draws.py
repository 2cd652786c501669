"""Random numbers by clip index: uniform, independent by purpose, and always the same."""

import numpy as np
import pytest
import tensorflow as tf

from hybrid_video.sampling import draws
from hybrid_video.sampling.draws import Purpose

GOLDEN = {
  "window": [31, 615, 174, 929, 679],
  "flip": [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1],
  "aspect": [[431030333, 1038348628, 596958381], [355892019, 1093650911, 576323762]],
  "order": [8, 2, 6, 4, 1, 9, 7, 0, 3, 5, 2, 7, 9, 1, 5, 4, 0, 3, 6, 8],
  "long_order": [796, 3397, 3302, 1283, 1173, 622, 3196, 95],
}
CLIP_INDICES = tf.range(40_000, dtype=tf.int64)


def _drawn(purpose, below, *, seed=0, clip_indices=CLIP_INDICES, count=1):
  return draws.integers(seed, purpose, clip_indices, below, count).numpy()


@pytest.mark.parametrize("below", [2, 7, 100])
@pytest.mark.parametrize("purpose", list(Purpose))
def test_every_number_is_as_likely_as_every_other(purpose, below):
  counts = np.bincount(_drawn(purpose, below), minlength=below)
  assert len(counts) == below
  expected = len(CLIP_INDICES) / below
  chi_squared = ((counts - expected) ** 2 / expected).sum()
  # Six standard deviations of a chi-squared of below - 1 degrees of freedom.
  assert chi_squared < below - 1 + 6 * (2 * (below - 1)) ** 0.5


def test_neighbouring_indices_are_independent():
  drawn = _drawn(Purpose.FLIP, 2)
  pairs = np.bincount(2 * drawn[:-1] + drawn[1:], minlength=4) / (len(drawn) - 1)
  np.testing.assert_allclose(pairs, 0.25, atol=0.015)


def test_purposes_and_seeds_have_streams_of_their_own():
  streams = [_drawn(purpose, 2**31) for purpose in Purpose]
  streams += [_drawn(Purpose.WINDOW, 2**31, seed=seed) for seed in (1, 2, 2**40, -1)]
  # The same numbers would also show shifted, if streams were sections of one sequence.
  together = np.corrcoef(np.stack(streams + [np.roll(s, 1) for s in streams]))
  assert np.abs(together - np.eye(len(together))).max() < 0.03
  shared = [len(np.intersect1d(a, b)) for i, a in enumerate(streams) for b in streams[:i]]
  assert max(shared) < 20


def test_several_numbers_for_one_clip_are_independent():
  drawn = _drawn(Purpose.AREA, 2**31, count=10)
  assert drawn.shape == (len(CLIP_INDICES), 10)
  together = np.corrcoef(np.concatenate([drawn.T, [_drawn(Purpose.AREA, 2**31)]]))
  assert np.abs(together - np.eye(11)).max() < 0.03
  assert len(np.unique(drawn)) > 0.999 * drawn.size


def test_bounds_may_differ_between_clips_and_between_numbers():
  below = tf.constant([1, 2, 5, 2**31], tf.int64)
  drawn = _drawn(Purpose.TOP, tf.tile(below, [10_000]))
  assert drawn.reshape(-1, 4).max(0)[:3].tolist() == [0, 1, 4]
  assert drawn.min() == 0
  assert 2**31 - 2**20 < drawn.max() < 2**31
  wide = _drawn(Purpose.SEGMENT, tf.tile(below, [10_000]), count=3).reshape(-1, 4, 3)
  assert wide.max((0, 2))[:3].tolist() == [0, 1, 4]
  each = tf.tile(tf.constant([[3, 9]], tf.int64), [len(CLIP_INDICES), 1])
  assert _drawn(Purpose.SEGMENT, each, count=2).max(0).tolist() == [2, 8]


def test_a_number_depends_on_its_clip_index_alone():
  some = tf.constant([39_999, 7, 7, 123], tf.int64)
  whole = _drawn(Purpose.LEFT, 1000)
  np.testing.assert_array_equal(_drawn(Purpose.LEFT, 1000, clip_indices=some), whole[some.numpy()])


@pytest.mark.parametrize("count", [1, 2, 3, 10, 257, 3570])
def test_every_epoch_is_a_permutation(count):
  clip_indices = tf.range(3 * count, dtype=tf.int64)
  epochs = draws.shuffled(5, clip_indices, count).numpy().reshape(3, count)
  for epoch in epochs:
    assert sorted(epoch.tolist()) == list(range(count))
  if count >= 10:
    other = draws.shuffled(6, clip_indices, count).numpy().reshape(3, count)
    orders = [order.tolist() for order in (*epochs, *other)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize(
  ("count", "epochs", "sections"), [(3570, 100, 17), (20, 2000, 20), (500, 40, 10)]
)
def test_orders_of_an_epoch_are_uniform(count, epochs, sections):
  clip_indices = tf.range(count * epochs, dtype=tf.int64)
  order = draws.shuffled(0, clip_indices, count).numpy().reshape(epochs, count)
  # Which section of the list comes in which section of the epoch.
  cells = np.arange(count) // (count // sections) * sections + order // (count // sections)
  seen = np.bincount(cells.ravel(), minlength=sections**2)
  expected, freedom = count * epochs / sections**2, (sections - 1) ** 2
  assert ((seen - expected) ** 2 / expected).sum() < freedom + 6 * (2 * freedom) ** 0.5
  # How much of the list's first half comes in the epoch's: hypergeometric, variance about count / 16.
  overlap = (order[:, : count // 2] < count // 2).sum(1)
  assert abs(overlap.mean() - count / 4) < 6 * (count / 16 / epochs) ** 0.5
  assert 0.4 < overlap.var() / (count / 16) < 1.7


def test_the_numbers_are_those_of_every_version_so_far():
  # A run's whole sequence follows from these: where they change, old runs cannot be repeated.
  clip_indices = tf.constant([0, 1, 2, 3, 1_000_000], tf.int64)
  assert _drawn(Purpose.WINDOW, 1000, clip_indices=clip_indices).tolist() == GOLDEN["window"]
  assert _drawn(Purpose.FLIP, 2, clip_indices=CLIP_INDICES[:16], seed=42).tolist() == GOLDEN["flip"]
  several = _drawn(Purpose.ASPECT, 2**31, clip_indices=clip_indices[:2], count=3)
  assert several.tolist() == GOLDEN["aspect"]
  order = draws.shuffled(7, tf.range(20, dtype=tf.int64), 10).numpy().tolist()
  assert order == GOLDEN["order"]
  long_order = draws.shuffled(7, tf.range(4000, 4008, dtype=tf.int64), 3570).numpy().tolist()
  assert long_order == GOLDEN["long_order"]
