"""Metric sums, their means, and the accuracies of videos against plain NumPy."""

import numpy as np
import pytest

from hybrid_video import metrics, scoring
from hybrid_video.tasks import classification


def test_sums_match_a_plain_computation():
  rng = np.random.default_rng(0)
  logits, labels = rng.standard_normal((50, 12)), rng.integers(0, 12, 50)
  mask = (rng.random(50) < 0.7).astype(np.float32)
  sums = metrics.sums(logits, labels, mask)
  counted = mask > 0
  chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  order = np.argsort(-logits, axis=1)
  hits = order == labels[:, None]
  assert float(sums["loss"]) == pytest.approx(
    -np.log(chances[np.arange(50), labels])[counted].sum(), rel=1e-5
  )
  assert int(sums["top1"]) == hits[counted, 0].sum()
  assert int(sums["top5"]) == hits[counted, :5].sum()
  assert int(sums["count"]) == counted.sum()


def test_soft_labels_give_the_mean_of_the_losses_they_mix_and_hits_of_the_own_label():
  rng = np.random.default_rng(3)
  logits = 3 * rng.standard_normal((40, 9))
  own, other = rng.integers(0, 9, (2, 40))
  mask = (rng.random(40) < 0.8).astype(np.float32)
  targets = 0.7 * np.eye(9)[own] + 0.3 * np.eye(9)[other]
  mixed = metrics.sums(logits, own, mask, targets)
  hard = metrics.sums(logits, own, mask)
  partners = metrics.sums(logits, other, mask)
  assert float(mixed["loss"]) == pytest.approx(
    0.7 * float(hard["loss"]) + 0.3 * float(partners["loss"]), rel=1e-5
  )
  for name in ("top1", "top5", "count"):
    assert int(mixed[name]) == int(hard[name])


def test_padding_never_counts_whatever_it_holds():
  logits = np.random.default_rng(0).standard_normal((4, 6))
  labels = np.array([0, 1, 2, 3])
  alone = metrics.means([metrics.sums(logits, labels, np.ones(4))])
  padded = np.concatenate([logits, np.full((3, 6), 1e4)])
  mask = np.array([1, 1, 1, 1, 0, 0, 0])
  together = metrics.sums(padded, np.concatenate([labels, [0, 0, 0]]), mask)
  assert metrics.means([together]) == pytest.approx(alone)


def test_means_of_unequal_batches_weigh_every_example_alike():
  rng = np.random.default_rng(1)
  logits, labels = rng.standard_normal((9, 6)), rng.integers(0, 6, 9)
  whole = metrics.means([metrics.sums(logits, labels, np.ones(9))])
  batches = [
    metrics.sums(logits[s], labels[s], np.ones(len(labels[s]))) for s in (slice(7), slice(7, 9))
  ]
  assert metrics.means(batches) == pytest.approx(whole)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_constant_or_broken_output_is_never_right(value):
  sums = metrics.sums(np.full((8, 8), value), np.arange(8), np.ones(8))
  assert int(sums["top1"]) == 0
  assert int(sums["top5"]) == 0


def test_no_example_at_all_is_an_error():
  with pytest.raises(ValueError, match="every row is padding"):
    metrics.means([metrics.sums(np.zeros((2, 3)), np.zeros(2, int), np.zeros(2))])


def _outputs(logits, size):
  padded = np.concatenate([logits, np.full((-len(logits) % size, logits.shape[1]), 9.0)])
  return [{"logits": padded[i : i + size]} for i in range(0, len(padded), size)]


@pytest.mark.parametrize("size", [1, 3, 5, 16])
def test_video_scores_are_mean_probabilities_whatever_the_batch(size):
  rng = np.random.default_rng(2)
  rows = np.repeat(np.arange(5), [1, 4, 2, 1, 3])
  labels = rng.integers(0, 7, 5)
  logits = rng.standard_normal((11, 7)) * 3
  outputs = scoring.gather(_outputs(logits, size), len(rows))
  result = classification.summarize(outputs, rows, labels, size)
  chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  expected = np.stack([chances[rows == v].mean(0) for v in range(5)])
  np.testing.assert_allclose(result.arrays["probabilities"], expected, rtol=1e-5)
  assert result.numbers["video_top1"] == pytest.approx((expected.argmax(1) == labels).mean())
  assert result.numbers["clip_top1"] == pytest.approx((logits.argmax(1) == labels[rows]).mean())
  assert (result.numbers["videos"], result.numbers["clips"]) == (5, 11)


def test_clips_that_never_came_are_an_error():
  with pytest.raises(ValueError, match="11 clips were planned and only 4"):
    scoring.gather([{"logits": np.zeros((4, 3))}], 11)
