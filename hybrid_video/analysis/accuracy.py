"""Scores and labels to accuracies: over all, by class, by tag, by length, and what is confused.

Where the true class shares a score with another, the other one comes first, here as in training: a
constant output is never right by accident. Then scikit-learn counts.
"""

from collections.abc import Sequence
import itertools
from typing import Any

import numpy as np
from sklearn import metrics

from hybrid_video.analysis.predictions import Predictions


def against(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """The scores, the true class's lowered by the smallest step, so that ties count against it.

  Args:
    scores: `[N, K]`.
    labels: class ids `[N]`.

  Returns:
    float64 `[N, K]`.
  """
  lowered, rows = np.array(scores, np.float64), np.arange(len(labels))
  lowered[rows, labels] = np.nextafter(lowered[rows, labels], -np.inf)
  return lowered


def predicted(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """The class with the highest score, int64 `[N]`; of equal ones, not the true one."""
  return against(scores, labels).argmax(-1)


def is_right(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
  """Whether the true class is among the `k` highest scores, bool `[N]`."""
  true = scores[np.arange(len(labels)), labels]
  others = np.arange(scores.shape[1]) != labels[:, None]
  return ((scores >= true[:, None]) & others).sum(-1) < k


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
  """The share of rows whose true class is among the `k` highest scores; 1 with `k` or fewer classes."""
  classes = scores.shape[1]
  if k >= classes:
    return 1.0
  if classes == 2:
    return float(metrics.accuracy_score(labels, predicted(scores, labels)))
  ids = np.arange(classes)
  return float(metrics.top_k_accuracy_score(labels, against(scores, labels), k=k, labels=ids))


def by_class(
  scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, Any]]:
  """For each class: `class`, `videos`, `right` and `accuracy`, which is None where it has no video.

  A class's accuracy is its recall: the share of its videos that are recognized.
  """
  ids = range(len(class_names))
  best = predicted(scores, labels)
  # What a class without videos would have, which is not read.
  recalls = metrics.recall_score(labels, best, labels=ids, average=None, zero_division=0.0)
  counts = np.bincount(labels, minlength=len(ids)).tolist()
  right = np.bincount(labels[best == labels], minlength=len(ids)).tolist()
  return [
    {
      "class": class_names[i],
      "videos": counts[i],
      "right": right[i],
      "accuracy": float(recalls[i]) if counts[i] else None,
    }
    for i in ids
  ]


def mean_class(
  scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> tuple[float, list[str]]:
  """The mean of the accuracies of classes that have videos, and the names of those without."""
  rows = by_class(scores, labels, class_names)
  known = [row["accuracy"] for row in rows if row["videos"]]
  return float(np.mean(known)), [row["class"] for row in rows if not row["videos"]]


def confusion(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Counts int64 `[true class, predicted class]`."""
  ids = np.arange(scores.shape[1])
  return metrics.confusion_matrix(labels, predicted(scores, labels), labels=ids)


def confused_pairs(
  counts: np.ndarray, class_names: Sequence[str], most: int = 10
) -> list[dict[str, Any]]:
  """The pairs that are confused most: `true`, `predicted`, `videos`, and their `share` of the true class.

  Args:
    counts: of `confusion`.
    class_names: by class id.
    most: pairs to give; fewer where fewer are confused. Equal numbers are in the order of class ids.
  """
  wrong = np.array(counts)
  np.fill_diagonal(wrong, 0)
  order = np.argsort(-wrong, axis=None, kind="stable")[:most]
  pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
  return [
    {
      "true": class_names[true],
      "predicted": class_names[other],
      "videos": int(wrong[true, other]),
      "share": float(wrong[true, other] / counts[true].sum()),
    }
    for true, other in pairs
    if wrong[true, other]
  ]


def by_tag(predictions: Predictions, right: np.ndarray) -> dict[str, list[dict[str, Any]]]:
  """For each tag of the data set its values: `value`, `videos`, `right`, `accuracy`.

  HMDB51's are body (the visible part: h head, u upper body, l lower body, f full body), camera (cm
  moves, nm does not), people (np1 and so on, how many), view (fr front, ba back, le left, ri right)
  and quality (goo, med, bad). Videos without a tag have the value "".

  Args:
    predictions: with tags.
    right: of each video, bool `[V]`.

  Raises:
    PredictionsError: the file has no tags, since an earlier version wrote it.
  """
  tags = predictions.need("tags", "accuracy by tag")
  return {
    name: [
      {"value": str(value), **_counted(right[tags[:, column] == value])}
      for value in np.unique(tags[:, column])
    ]
    for column, name in enumerate(predictions.tag_names)
  }


def by_length(
  predictions: Predictions, right: np.ndarray, edges: Sequence[float] | None = None
) -> list[dict[str, Any]]:
  """Accuracy by length of the video: `from`, `to` (seconds, the last one included), `videos`, ...

  Args:
    predictions: with lengths.
    right: of each video, bool `[V]`.
    edges: of the bins, seconds, ascending; videos outside them are left out. None is the quartiles of
      these videos.

  Raises:
    PredictionsError: the file has no lengths, since an earlier version wrote it.
  """
  seconds = predictions.need("seconds", "accuracy by length")
  limits = np.quantile(seconds, np.linspace(0, 1, 5)) if edges is None else np.asarray(edges, float)
  limits = np.unique(limits)
  if len(limits) == 1:
    limits = np.repeat(limits, 2)
  bins = []
  for i, (low, high) in enumerate(itertools.pairwise(limits)):
    below = seconds <= high if i == len(limits) - 2 else seconds < high
    bins.append(
      {"from": float(low), "to": float(high), **_counted(right[(seconds >= low) & below])}
    )
  return bins


def _counted(right: np.ndarray) -> dict[str, Any]:
  count = int(right.sum())
  return {
    "videos": len(right),
    "right": count,
    "accuracy": count / len(right) if len(right) else None,
  }
