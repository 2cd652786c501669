"""Numbers of a study's runs from their predictions: intervals over groups, and tests of two rows.

In: `predictions.npz` of runs. Out: accuracies, 95 % intervals, p-values. Videos of one group, such as the
clips of a film, are not independent: groups are drawn, and change sides, as a whole.
"""

from collections.abc import Sequence
import dataclasses
import io

from etils import epath
import numpy as np

from hybrid_video import errors

DRAWS = 2000


class PredictionsError(errors.UserError):
  """Predictions that cannot be used; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Answers:
  """Which videos of the test list a run has right.

  Attributes:
    classes: by class id.
    labels: of the videos, by name.
    groups: of the videos, by name.
    right: by name.
  """

  classes: tuple[str, ...]
  labels: dict[str, int]
  groups: dict[str, str]
  right: dict[str, bool]


def read(path: epath.Path) -> Answers:
  """A run's answers.

  Raises:
    PredictionsError: the file is missing or damaged.
  """
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
      names = [str(name) for name in stored["names"]]
      labels, scores = stored["labels"].astype(int), stored["probabilities"]
      groups = stored["groups"] if "groups" in stored.files else stored["names"]
      classes = tuple(map(str, stored["class_names"]))
  except (OSError, ValueError, KeyError) as error:
    raise PredictionsError(
      f"{errors.printable(path)}: cannot be read ({error}). Remove results.json beside it; the study's "
      "command makes both again."
    ) from error
  true = np.take_along_axis(scores, labels[:, None], 1)
  # As everywhere: a score that is shared is not right by accident.
  right = (scores >= true).sum(1) == 1
  return Answers(
    classes,
    dict(zip(names, labels.tolist(), strict=True)),
    dict(zip(names, map(str, groups), strict=True)),
    dict(zip(names, right.tolist(), strict=True)),
  )


def _by_group(values: dict[str, float], groups: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
  """Sums of values and numbers of videos, for each group."""
  names = sorted({groups[video] for video in values})
  rows = {name: row for row, name in enumerate(names)}
  sums, counts = np.zeros(len(names)), np.zeros(len(names))
  for video, value in values.items():
    sums[rows[groups[video]]] += value
    counts[rows[groups[video]]] += 1
  return sums, counts


def interval(values: dict[str, float], groups: dict[str, str]) -> tuple[float, float]:
  """A 95 % bootstrap interval (percentiles) of the mean over videos; groups are drawn.

  Args:
    values: of the videos, such as the share of runs that have it right.
    groups: of the videos.
  """
  sums, counts = _by_group(values, groups)
  drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
  means = sums[drawn].sum(1) / counts[drawn].sum(1)
  low, high = np.percentile(means, (2.5, 97.5))
  return float(low), float(high)


def paired_p(differences: dict[str, float], groups: dict[str, str]) -> float:
  """Two-sided p-value of a mean difference of zero: whole groups change sign at random.

  Args:
    differences: of two rows, by video.
    groups: of the videos.
  """
  sums, _ = _by_group(differences, groups)
  rng = np.random.default_rng(0)
  signs = rng.choice((-1.0, 1.0), (DRAWS * 5, len(sums)))
  seen = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12
  return float((1 + seen.sum()) / (1 + len(seen)))


def holm(p_values: Sequence[float]) -> list[float]:
  """p-values adjusted for their number (Holm 1979), in their order."""
  adjusted, largest = [0.0] * len(p_values), 0.0
  for rank, at in enumerate(np.argsort(p_values, kind="stable").tolist()):
    largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
    adjusted[at] = largest
  return adjusted
