"""Intervals and tests over groups: against every resample, every exchange, and SciPy."""

import itertools

from analysis_files import make, some, write
import numpy as np
import pytest
from scipy import stats

from hybrid_video.analysis import accuracy, summary, uncertainty
from hybrid_video.analysis.predictions import Predictions, PredictionsError, ProtocolError


def run(tmp_path, name="run", **chosen):
  return Predictions.read(write(tmp_path / name, make(**chosen)))


def of(right, groups, name="x", split=1):
  """A run whose videos are right or wrong as said."""
  right = np.asarray(right, int)
  scores = np.eye(2)[right]
  return Predictions(
    path=name,
    names=np.array([f"v{i}" for i in range(len(right))]),
    class_names=("a", "b"),
    labels=np.ones(len(right), int),
    probabilities=scores,
    view_probabilities=scores,
    view_videos=np.arange(len(right)),
    groups=np.array([str(group) for group in groups]),
    protocol={"dataset": "d", "split": split},
  )


def test_the_interval_is_that_of_every_resample():
  right = [1, 0, 1, 1, 0, 0, 1, 1, 0, 1]
  groups = [0, 0, 1, 1, 1, 2, 2, 3, 4, 4]
  sums, counts = np.bincount(groups, right), np.bincount(groups)
  every = np.array(list(itertools.product(range(5), repeat=5)))
  exact = sums[every].sum(1) / counts[every].sum(1)
  found = uncertainty.interval(of(right, groups))
  assert (found.value, found.groups, found.videos) == (0.6, 5, 10)
  # What is drawn and what is enumerated agree where the distribution is cut.
  for limit, level in ((found.low, 0.025), (found.high, 0.975)):
    assert np.quantile(exact, level - 0.008) <= limit <= np.quantile(exact, level + 0.008)
  assert "few groups" in found.words


def test_the_interval_is_that_of_scipy_and_comes_again(tmp_path):
  made = run(tmp_path, videos=300, groups=40)
  right = accuracy.is_right(made.scores(), made.labels)
  ids = np.unique(made.groups, return_inverse=True)[1]
  data = np.bincount(ids, right), np.bincount(ids)
  expected = stats.bootstrap(
    data,
    lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
    paired=True,
    method="percentile",
    rng=0,
  ).confidence_interval
  found = uncertainty.interval(made)
  assert (found.low, found.high) == pytest.approx(expected, abs=0.01)
  assert found == uncertainty.interval(made) != uncertainty.interval(made, seed=1)


def test_clips_of_one_film_widen_the_interval():
  rng = np.random.default_rng(0)
  groups = np.repeat(np.arange(20), 10)
  right = (rng.random(20) < 0.6)[groups]
  over_groups = uncertainty.interval(of(right, groups))
  over_videos = uncertainty.interval(of(right, np.arange(200)))
  assert over_groups.value == over_videos.value
  assert over_groups.high - over_groups.low > 2.5 * (over_videos.high - over_videos.low)


def test_nineteen_of_twenty_intervals_hold_the_truth():
  rng, held = np.random.default_rng(0), 0
  for _ in range(200):
    chances = rng.beta(3, 1.5, 40)
    groups = np.repeat(np.arange(40), 5)
    found = uncertainty.interval(of(rng.random(200) < chances[groups], groups), resamples=400)
    held += found.low <= 3 / 4.5 <= found.high
  assert 0.89 <= held / 200 <= 0.99


def test_all_right_is_not_certain_and_one_group_says_nothing():
  found = uncertainty.interval(of(np.ones(60), np.arange(60) % 20))
  assert (found.value, found.high) == (1, 1)
  assert found.low == pytest.approx(0.025 ** (1 / 20))
  assert uncertainty.interval(of(np.zeros(60), np.arange(60) % 20)).high == pytest.approx(
    1 - 0.025 ** (1 / 20)
  )
  alone = uncertainty.interval(of([1, 0, 1], [0, 0, 0]))
  assert (alone.low, alone.high) == (None, None) and "one group alone" in alone.words


@pytest.mark.parametrize("seed", range(6))
def test_the_test_counts_every_exchange_of_groups(seed):
  rng = np.random.default_rng(seed)
  groups = rng.integers(0, 9, 40)
  one, two = rng.random(40) < 0.7, rng.random(40) < 0.45
  found = uncertainty.compare(of(one, groups), of(two, groups))
  differences = np.bincount(groups, one * 1.0 - two)
  totals = [
    abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
    for signs in itertools.product((1, -1), repeat=len(differences))
  ]
  expected = np.mean(np.array(totals) >= abs(differences.sum()))
  assert found.exact and found.p_value == pytest.approx(expected)
  assert found.difference.value == pytest.approx(one.mean() - two.mean())
  back = uncertainty.compare(of(two, groups), of(one, groups))
  assert back.p_value == found.p_value
  assert back.difference.low == pytest.approx(-found.difference.high, abs=0.03)


def test_drawn_exchanges_come_to_what_all_of_them_give():
  rng = np.random.default_rng(1)
  groups = np.arange(48) % 12
  one, two = rng.random(48) < 0.7, rng.random(48) < 0.5
  exact = uncertainty.compare(of(one, groups), of(two, groups))
  drawn = uncertainty.compare(of(one, groups), of(two, groups), resamples=1000)
  assert exact.exact and not drawn.exact
  assert drawn.p_value == pytest.approx(exact.p_value, abs=0.05)
  far = uncertainty.compare(of(np.ones(60), range(60)), of(np.zeros(60), range(60)), resamples=99)
  assert far.p_value == 1 / 100


def test_a_row_against_itself_is_no_difference():
  right, groups = [1, 0, 1, 0], [0, 0, 1, 1]
  same = uncertainty.compare(of(right, groups), of(right, groups))
  assert (same.p_value, same.difference.value, same.difference.low) == (1, 0, 0)


def test_without_a_difference_p_is_below_5_percent_5_percent_of_the_time():
  rng, low = np.random.default_rng(3), 0
  groups = np.repeat(np.arange(9), 4)
  for _ in range(200):
    # Films in which one of two equal models happens to be good.
    one, two = (rng.random(36) < rng.beta(1, 1, 9)[groups] for _ in range(2))
    low += uncertainty.compare(of(one, groups), of(two, groups), resamples=600).p_value <= 0.05
  assert low / 200 <= 0.09


def test_seeds_are_averaged_by_video_and_runs_are_drawn_too():
  rng = np.random.default_rng(5)
  groups = np.arange(60) % 12
  # The seeds of a row differ much: what they say of the recipe is unsure.
  first = [of(rng.random(60) < chance, groups) for chance in (0.9, 0.5, 0.9)]
  second = [of(rng.random(60) < chance, groups) for chance in (0.5, 0.9)]
  found = uncertainty.compare(first, second)
  right = [
    np.mean([accuracy.is_right(r.scores(), r.labels).mean() for r in row])
    for row in (first, second)
  ]
  assert found.difference.value == pytest.approx(right[0] - right[1])
  assert found.over_runs.value == found.difference.value
  width = found.difference.high - found.difference.low
  assert found.over_runs.high - found.over_runs.low > 1.3 * width
  assert uncertainty.compare(first[:1], second).over_runs is None
  pooled = uncertainty.interval(first)
  assert pooled.value == pytest.approx(right[0])
  assert (pooled.runs, pooled.videos, pooled.groups) == (3, 60, 12)


def test_splits_are_pooled_and_compared_split_by_split():
  groups = [0, 0, 1, 1, 2, 2]
  first = [of([1, 1, 1, 0, 1, 1], groups), of([1, 0, 1, 1, 0, 1], groups, split=2)]
  second = [of([0, 1, 1, 0, 0, 1], groups), of([1, 0, 0, 1, 0, 1], groups, split=2)]
  assert uncertainty.interval(first).value == pytest.approx(9 / 12)
  found = uncertainty.compare(first, second)
  assert found.difference.value == pytest.approx(3 / 12)
  assert found.difference.videos == 12
  with pytest.raises(ProtocolError, match=r"splits \[1, 2\], the second of splits \[1\]"):
    uncertainty.compare(first, second[:1])


def test_missing_videos_are_left_out_and_counted(tmp_path):
  arrays = make(videos=30, seed=1)
  first = Predictions.read(write(tmp_path / "a", some(arrays, np.arange(3, 30))))
  second = Predictions.read(write(tmp_path / "b", some(make(videos=30, seed=2), np.arange(28))))
  found = uncertainty.compare(first, second)
  assert (found.only_first, found.only_second, found.difference.videos) == (2, 3, 25)
  assert "left out, since the other lacks them: 2 and 3 videos" in found.words
  both = [
    accuracy.is_right(one.scores(), one.labels)[np.isin(one.names, other.names)].mean()
    for one, other in ((first, second), (second, first))
  ]
  assert found.difference.value == pytest.approx(both[0] - both[1])
  third = Predictions.read(write(tmp_path / "c", some(arrays, np.arange(3))))
  with pytest.raises(ProtocolError, match="no video in common"):
    uncertainty.compare(first, third)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"split": 2}, r"splits \[1\], the second of splits \[2\]"),
    ({"dataset": "ucf101"}, "dataset is 'hmdb51' there and 'ucf101' here"),
    ({"views": "10 windows"}, "views is '2 windows' there and '10 windows' here"),
    ({"selection": "the best"}, "selection is"),
    ({"aggregation": "majority_vote"}, "aggregation is"),
  ],
)
def test_other_protocols_are_refused_by_name(tmp_path, changes, message):
  first, second = run(tmp_path, "one"), run(tmp_path, "two", **changes)
  with pytest.raises(ProtocolError, match=message) as caught:
    uncertainty.compare(first, second)
  assert "one/predictions.npz" in str(caught.value) and "two/predictions.npz" in str(caught.value)
  if "split" not in changes:
    assert uncertainty.compare(first, second, may_differ=tuple(changes)).p_value == 1


def test_other_data_are_refused_by_name(tmp_path):
  first, arrays = run(tmp_path), make()
  for name in ("identities", "groups", "labels"):
    other = np.roll(arrays[name], 1)
    second = Predictions.read(write(tmp_path / name, {**arrays, name: other}))
    with pytest.raises(ProtocolError, match="different data: video 0 has another class"):
      uncertainty.compare(first, second)
  classes = {**arrays, "class_names": arrays["class_names"][::-1]}
  with pytest.raises(ProtocolError, match="other classes"):
    uncertainty.compare(first, Predictions.read(write(tmp_path / "classes", classes)))
  del arrays["groups"]
  with pytest.raises(PredictionsError, match="no groups, which an interval over groups needs"):
    uncertainty.interval(Predictions.read(write(tmp_path / "old", arrays)))


def test_holm_rejects_what_the_closed_test_rejects():
  rng = np.random.default_rng(0)
  for _ in range(20):
    p_values = rng.random(4) ** 3
    expected = [
      max(
        min(1, len(subset) * min(p_values[list(subset)]))
        for size in range(1, 5)
        for subset in itertools.combinations(range(4), size)
        if i in subset
      )
      for i in range(4)
    ]
    assert uncertainty.holm(p_values) == pytest.approx(expected)
  assert uncertainty.holm([]) == []


def test_runs_have_mean_and_standard_deviation(tmp_path):
  runs = [run(tmp_path, str(seed), videos=60, seed=seed) for seed in range(3)]
  found = summary.summarize_runs(runs, resamples=99)
  values = [accuracy.top_k(one.scores(), one.labels, 1) for one in runs]
  top1 = found["numbers"]["video_top1"]
  assert top1["values"] == pytest.approx(values)
  assert top1["std"] == pytest.approx(np.std(values, ddof=1))
  assert top1["pooled"]["value"] == pytest.approx(top1["mean"])
  assert uncertainty.spread([0.5]).std is None
