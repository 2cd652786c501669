"""How sure a number is: intervals over groups of videos, a paired test, several runs of one row.

In: predictions of one run or several. Out: 95 % intervals, p values, means and standard deviations, as
frozen values whose `words` say what they are.

Clips of one film, person or day are not independent of each other, so whole groups are drawn again and
whole groups exchange signs. Sources: Field and Welsh: Bootstrapping clustered data, J. R. Stat. Soc. B
69 (2007), the randomized cluster bootstrap; Phipson and Smyth: Permutation p-values should never be
zero, Stat. Appl. Genet. Mol. Biol. 9 (2010).
"""

from collections.abc import Collection, Iterator, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
from scipy import stats

from hybrid_video import errors
from hybrid_video.analysis import accuracy
from hybrid_video.analysis.predictions import (
  Predictions,
  PredictionsError,
  ProtocolError,
  check_same_protocol,
)

LEVEL = 0.95
RESAMPLES = 9999
# Below it, resampled groups say little: the interval is rough, and said to be.
_FEW_GROUPS = 10
# Resamples at a time, so that any number of groups fits in memory.
_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Interval:
  """A number and where it lies at 95 %.

  Attributes:
    value: the number.
    low, high: limits, or None where nothing can be said of them.
    groups, videos, runs: what it rests on.
    words: how the limits come about.
  """

  value: float
  low: float | None
  high: float | None
  groups: int
  videos: int
  runs: int
  words: str


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One row against another on the same videos.

  Attributes:
    difference: the first one's accuracy minus the second's; its interval draws groups alone, so it
      speaks of these trained models.
    over_runs: the same where runs are drawn too, so that it speaks of the recipes; None where a row
      has a single run.
    p_value: two-sided, of no difference between these trained models.
    exact: whether every exchange of signs was counted, or some drawn.
    only_first, only_second: videos left out, since the other row lacks them.
    words: all of it.
  """

  difference: Interval
  over_runs: Interval | None
  p_value: float
  exact: bool
  only_first: int
  only_second: int
  words: str


@dataclasses.dataclass(frozen=True)
class Spread:
  """One number of several runs.

  Attributes:
    values: of each run.
    mean: of these.
    std: standard deviation with n - 1 (`ddof=1`); None for one run.
  """

  values: tuple[float, ...]
  mean: float
  std: float | None


def spread(values: Sequence[float]) -> Spread:
  """The mean and standard deviation of a number over runs."""
  numbers = [float(value) for value in values]
  std = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
  return Spread(tuple(numbers), float(np.mean(numbers)), std)


@dataclasses.dataclass(frozen=True)
class _Part:
  """The runs of one row on one split: `right` `[R, G]` and `videos` `[G]`, summed over each group."""

  right: np.ndarray
  videos: np.ndarray


def interval(
  runs: Predictions | Sequence[Predictions],
  *,
  k: int = 1,
  aggregation: str | None = None,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Interval:
  """Top-k video accuracy with the percentiles of a bootstrap over groups.

  Several runs are drawn with the same groups: what a group's videos share, they share in all runs.
  Runs on the same videos are averaged; lists of different videos, such as splits, are pooled. Where all
  videos are right, or all wrong, no resample differs, and the limits are the exact binomial's with
  each group as one trial.

  Args:
    runs: one, or those of one row: seeds, splits.
    k: of top-k.
    aggregation: of views, see `Predictions.scores`.
    resamples: of the bootstrap.
    seed: of its random numbers.

  Raises:
    PredictionsError: no groups in a file, or the runs are of different protocols or data.
  """
  runs = _as_runs(runs)
  check_same_protocol(runs, ("split",), "one row")
  _check_same_videos(runs)
  right = [_right(run, k, aggregation) for run in runs]
  parts = _parts(runs, right, _group_ids(runs))
  words = "95 % interval of a bootstrap over groups"
  return _interval([parts], parts, words, resamples, seed, draw_runs=False)


def compare(
  first: Predictions | Sequence[Predictions],
  second: Predictions | Sequence[Predictions],
  *,
  k: int = 1,
  aggregation: str | None = None,
  may_differ: Collection[str] = (),
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Comparison:
  """Whether two rows differ on the same videos: difference, interval and a test over groups.

  The test exchanges the two rows for whole groups at a time. With runs of several seeds, a video
  counts with the share of runs that get it right. A row's videos that the other lacks are left out
  and counted.

  Args:
    first, second: one run each, or the runs of each row, on the same splits.
    k: of top-k.
    aggregation: of views, see `Predictions.scores`; None is each run's own.
    may_differ: names of `predictions.COMPARED` that the comparison is about, such as "aggregation".
    resamples: of bootstrap and test; the test is exact where there are no more exchanges than that.
    seed: of their random numbers.

  Raises:
    PredictionsError: no groups in a file, different protocols, splits, data or classes, or no video
      in common.
  """
  rows = (_as_runs(first), _as_runs(second))
  may_differ = {*may_differ} | ({"aggregation"} if aggregation else set())
  check_same_protocol([*rows[0], *rows[1]], {*may_differ, "split"}, "one comparison")
  _check_same_splits(*rows)
  _check_same_videos([*rows[0], *rows[1]])
  common, left_out = _common(*rows)
  ids = _group_ids([*rows[0], *rows[1]])
  parts = [_parts(row, [_right(run, k, aggregation) for run in row], ids, common) for row in rows]
  p_value, exact = _sign_flips(parts[0], parts[1], resamples, seed)
  words = "95 % interval of a bootstrap over groups, for the models as trained"
  difference = _interval(parts, parts[0], words, resamples, seed, draw_runs=False)
  over_runs = None
  if min(part.right.shape[0] for parts_of_row in parts for part in parts_of_row) > 1:
    words = "95 % interval of a bootstrap over groups and runs, for the recipes"
    over_runs = _interval(parts, parts[0], words, resamples, seed, draw_runs=True)
  kind = "every exchange counted" if exact else f"{resamples} exchanges drawn"
  missing = f"; left out, since the other lacks them: {left_out[0]} and {left_out[1]} videos"
  return Comparison(
    difference,
    over_runs,
    p_value,
    exact,
    *left_out,
    f"difference of top-{k} accuracy on the same {difference.videos} videos in {difference.groups} "
    f"groups; two-sided test that exchanges signs of whole groups, {kind}"
    + (missing if any(left_out) else ""),
  )


def holm(p_values: Sequence[float]) -> list[float]:
  """P values adjusted for their number, in their order.

  Source: Holm: A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6 (1979).
  """
  order = np.argsort(p_values, kind="stable")
  adjusted = np.empty(len(order))
  factors = np.arange(len(order), 0, -1)
  adjusted[order] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values)[order]), 1)
  return adjusted.tolist()


def as_json(value: Interval | Comparison | Spread) -> dict[str, Any]:
  """Nested dicts, numbers and texts."""
  return dataclasses.asdict(value)


def _as_runs(runs: Predictions | Sequence[Predictions]) -> list[Predictions]:
  found = [runs] if isinstance(runs, Predictions) else list(runs)
  if not found:
    raise PredictionsError("No run is given: expected the predictions of one or more.")
  return found


def _right(run: Predictions, k: int, aggregation: str | None) -> np.ndarray:
  return accuracy.is_right(run.scores(aggregation), run.labels, k)


def _split(run: Predictions) -> int:
  return run.protocol.get("split", 0)


def _check_same_splits(first: Sequence[Predictions], second: Sequence[Predictions]) -> None:
  one, two = (sorted({_split(run) for run in row}) for row in (first, second))
  if one != two:
    raise ProtocolError(
      f"{_paths(first)} and {_paths(second)} cannot stand in one comparison: the first are of "
      f"splits {one}, the second of splits {two}. Compare runs of the same splits."
    )


def _paths(runs: Sequence[Predictions]) -> str:
  return errors.shown(run.path for run in runs)


def _check_same_videos(runs: Sequence[Predictions]) -> None:
  """Checks that videos of one name are the same in all runs: class, file and group.

  Raises:
    ProtocolError: names the two files and a video.
  """
  known: dict[str, tuple[tuple[Any, ...], Predictions]] = {}
  for run in runs:
    groups = run.need("groups", "an interval over groups")
    identities = groups if run.identities is None else run.identities
    about = zip(run.labels.tolist(), groups.tolist(), identities.tolist(), strict=True)
    for name, value in zip(run.names.tolist(), about, strict=True):
      before, of = known.setdefault(name, (value, run))
      if before != value:
        raise ProtocolError(
          f"{errors.printable(of.path)} and {errors.printable(run.path)} are of different data: "
          f"{errors.printable(name)} has another class, file or group in each. Evaluate both on one "
          "data set."
        )


def _common(
  first: Sequence[Predictions], second: Sequence[Predictions]
) -> tuple[dict[int, list[str]], tuple[int, int]]:
  """The videos of each split that every run has, and how many more each row's runs have."""
  common: dict[int, list[str]] = {}
  extra = [0, 0]
  for split in sorted({_split(run) for run in first}):
    names = [{*run.names.tolist()} for run in (*first, *second) if _split(run) == split]
    shared = set.intersection(*names)
    common[split] = sorted(shared)
    for which, row in enumerate((first, second)):
      of_row = [{*run.names.tolist()} for run in row if _split(run) == split]
      extra[which] += len(set.union(*of_row) - shared)
  if not any(common.values()):
    raise ProtocolError(
      f"{_paths(first)} and {_paths(second)} have no video in common. Compare runs of one data set."
    )
  return {split: names for split, names in common.items() if names}, (extra[0], extra[1])


def _group_ids(runs: Sequence[Predictions]) -> dict[str, int]:
  names = {name for run in runs for name in run.need("groups", "an interval over groups").tolist()}
  return {name: i for i, name in enumerate(sorted(names))}


def _parts(
  runs: Sequence[Predictions],
  right: Sequence[np.ndarray],
  ids: dict[str, int],
  common: dict[int, list[str]] | None = None,
) -> list[_Part]:
  """Sums over groups; runs on the same videos of one split are together.

  Args:
    runs: of one row.
    right: of each run's videos, bool `[V]`.
    ids: a column for each group's name.
    common: the videos of each split that count; None is every video.
  """
  sums: dict[Any, list[tuple[np.ndarray, np.ndarray]]] = {}
  for run, of_run in zip(runs, right, strict=True):
    rows = np.arange(len(run))
    key: Any = (_split(run), frozenset(run.names.tolist()))
    if common is not None:
      key = _split(run)
      row_of = {name: row for row, name in enumerate(run.names.tolist())}
      rows = np.array([row_of[name] for name in common.get(key, ())], np.int64)
      if not len(rows):
        continue
    groups = run.need("groups", "an interval over groups")[rows].tolist()
    columns = np.array([ids[group] for group in groups])
    counted = np.bincount(columns, minlength=len(ids))
    sums.setdefault(key, []).append(
      (np.bincount(columns, of_run[rows], minlength=len(ids)), counted)
    )
  return [
    _Part(np.stack([one for one, _ in of_split]), of_split[0][1]) for of_split in sums.values()
  ]


def _resampled(
  rows: Sequence[Sequence[_Part]], resamples: int, seed: int, draw_runs: bool
) -> Iterator[np.ndarray]:
  """Accuracies (of two rows: differences) with groups drawn with replacement, `[B]` at a time.

  NumPy draws, since `scipy.stats.bootstrap` draws along one axis and runs are one more; for groups
  alone it gives the same.
  """
  rng = np.random.default_rng(seed)
  columns = np.flatnonzero(sum(part.videos for part in rows[0]))
  share = np.full(len(columns), 1 / len(columns))
  for start in range(0, resamples, _BATCH):
    count = min(_BATCH, resamples - start)
    weights = rng.multinomial(len(columns), share, size=count).astype(np.float64)
    total = sum(weights @ part.videos[columns] for part in rows[0])
    right = np.zeros(count)
    for sign, parts in zip((1, -1), rows, strict=False):
      for part in parts:
        runs = len(part.right)
        of_runs = np.full((count, runs), 1 / runs)
        if draw_runs:
          of_runs = rng.multinomial(runs, of_runs[0], size=count) / runs
        right += sign * ((weights @ part.right[:, columns].T) * of_runs).sum(-1)
    yield right / total


def _interval(
  rows: Sequence[Sequence[_Part]],
  counted: Sequence[_Part],
  words: str,
  resamples: int,
  seed: int,
  *,
  draw_runs: bool,
) -> Interval:
  videos = int(sum(part.videos.sum() for part in counted))
  groups = int(np.count_nonzero(sum(part.videos for part in counted)))
  runs = max(sum(len(part.right) for part in parts) for parts in rows)
  right = [sum(part.right.mean(0).sum() for part in parts) for parts in rows]
  value = float((right[0] - (right[1] if len(rows) > 1 else 0)) / videos)
  low: float | None
  high: float | None
  if groups < 2:
    return Interval(value, None, None, groups, videos, runs, "one group alone: no interval")
  if len(rows) == 1 and value in (0, 1):
    exact = stats.binomtest(groups * int(value), groups).proportion_ci(LEVEL)
    low, high = float(exact.low), float(exact.high)
    words = "95 % interval of the exact binomial with each group as one trial"
  else:
    drawn = np.concatenate(list(_resampled(rows, resamples, seed, draw_runs)))
    limits = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = (float(limit) for limit in np.quantile(drawn, limits))
  words = f"{words} ({groups} groups, {videos} videos)"
  if groups < _FEW_GROUPS:
    words += "; rough, since there are so few groups"
  return Interval(value, low, high, groups, videos, runs, words)


def _sign_flips(
  first: Sequence[_Part], second: Sequence[_Part], resamples: int, seed: int
) -> tuple[float, bool]:
  """The two-sided p value of exchanging signs of groups, and whether all exchanges were counted."""
  # In whole numbers, so that equal sums are equal.
  scale = math.lcm(*(len(part.right) for part in (*first, *second)))
  one, two = (
    sum(part.right.sum(0) * (scale // len(part.right)) for part in parts)
    for parts in (first, second)
  )
  differences = np.rint(one - two)
  # A group without a difference is the same under both signs.
  differences = differences[differences != 0]
  if len(differences) < 2:
    return 1.0, True
  done = stats.permutation_test(
    (differences,),
    lambda of_groups, axis: np.abs(of_groups.sum(axis)),
    permutation_type="samples",
    alternative="greater",
    vectorized=True,
    n_resamples=resamples,
    batch=_BATCH,
    rng=np.random.default_rng(seed),
  )
  return float(done.pvalue), 2 ** len(differences) <= resamples
