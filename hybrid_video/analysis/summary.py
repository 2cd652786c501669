"""All that is measured of one run, or of the runs of one row, as values for JSON.

In: `Predictions`. Out: nested dicts for `results.json`, tables and pages, each number with its protocol.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid_video.analysis import accuracy, calibration, uncertainty
from hybrid_video.analysis import aggregation as aggregations
from hybrid_video.analysis.predictions import Predictions

# What each number is, in words that follow its name.
_VIDEOS = "share of videos whose class is "
WORDS = {
  "video_top1": f"{_VIDEOS}the one with the highest score",
  "video_top5": f"{_VIDEOS}among the five highest scores",
  "clip_top1": "share of views whose video's class has the highest probability",
  "clip_top5": "share of views whose video's class is among the five highest probabilities",
  "mean_class_accuracy": "mean over classes of the share of their videos that are recognized",
  "expected_calibration_error": "mean distance between a video's highest score and the share of "
  f"right videos, over {calibration.BINS} bins of equal width",
  "majority_class": "share of videos of the most frequent class: what a constant answer reaches",
}


def summarize(
  predictions: Predictions,
  aggregation: str | None = None,
  *,
  resamples: int = uncertainty.RESAMPLES,
  seed: int = 0,
) -> dict[str, Any]:
  """Every number of one run.

  Args:
    predictions: of the run. What files of earlier versions lack is left out.
    aggregation: of views; None is the run's own.
    resamples, seed: of the bootstrap.

  Returns:
    `protocol` (a sentence that belongs to every number), `aggregation`, counts `videos`, `clips`,
    `groups`; `numbers`: by name {`value`, `words`, and `low`, `high`, `interval` (words) where there
    are groups}; `classes_without_videos`; `by_aggregation`: video top-1 by each aggregation;
    `per_class`, `by_tag`, `by_length`, `confused_pairs`, `reliability` (see `accuracy` and
    `calibration`).

  Raises:
    PredictionsError: the aggregation needs what the file lacks.
  """
  chosen = predictions.aggregation if aggregation is None else aggregation
  scores, labels, names = predictions.scores(chosen), predictions.labels, predictions.class_names
  right = accuracy.is_right(scores, labels)
  mean_class, empty = accuracy.mean_class(scores, labels, names)
  curve = calibration.reliability(scores, labels)
  values = {
    **_top(scores, labels, "video"),
    **_top(predictions.view_probabilities, labels[predictions.view_videos], "clip"),
    "mean_class_accuracy": mean_class,
    "expected_calibration_error": curve.error,
    "majority_class": float(np.bincount(labels).max() / len(labels)),
  }
  return {
    "protocol": predictions.describe(chosen),
    "aggregation": chosen,
    "videos": len(labels),
    "clips": len(predictions.view_videos),
    "groups": len(np.unique(predictions.groups)) if predictions.groups is not None else None,
    "numbers": _in_words(values, predictions, chosen, resamples, seed),
    "classes_without_videos": empty,
    "by_aggregation": _by_aggregation(predictions),
    "per_class": accuracy.by_class(scores, labels, names),
    "by_tag": accuracy.by_tag(predictions, right) if predictions.tags is not None else {},
    "by_length": accuracy.by_length(predictions, right) if predictions.seconds is not None else [],
    "confused_pairs": accuracy.confused_pairs(accuracy.confusion(scores, labels), names),
    "reliability": {
      name: getattr(curve, name).tolist()
      for name in ("low", "high", "videos", "confidence", "accuracy")
    },
  }


def _in_words(
  values: Mapping[str, float],
  predictions: Predictions,
  aggregation: str,
  resamples: int,
  seed: int,
) -> dict[str, dict[str, Any]]:
  """Each value with its words, and with its interval where the videos have groups."""
  numbers: dict[str, dict[str, Any]] = {
    name: {"value": value, "words": WORDS[name]} for name, value in values.items()
  }
  for name, k in (("video_top1", 1), ("video_top5", 5)) if predictions.groups is not None else ():
    found = uncertainty.interval(
      predictions, k=k, aggregation=aggregation, resamples=resamples, seed=seed
    )
    numbers[name] |= {"low": found.low, "high": found.high, "interval": found.words}
  return numbers


def summarize_runs(
  runs: Sequence[Predictions],
  aggregation: str | None = None,
  *,
  resamples: int = uncertainty.RESAMPLES,
  seed: int = 0,
) -> dict[str, Any]:
  """The numbers of several runs of one row: seeds, splits.

  Returns:
    `protocol` of the first run, `splits`, `runs` (how many), and `numbers`: by name {`values`, `mean`,
    `std` (n - 1), `words`}, and for `video_top1` and `video_top5` `pooled`, an
    `uncertainty.Interval` that draws groups jointly over all runs.

  Raises:
    PredictionsError: no groups in a file, or different protocols or data.
  """
  runs = list(runs)
  pooled = {
    name: uncertainty.interval(runs, k=k, aggregation=aggregation, resamples=resamples, seed=seed)
    for name, k in (("video_top1", 1), ("video_top5", 5))
  }
  # One resample is enough for what is read of each run.
  each = [summarize(run, aggregation, resamples=1)["numbers"] for run in runs]
  numbers: dict[str, dict[str, Any]] = {}
  for name in each[0]:
    found = uncertainty.spread([of_run[name]["value"] for of_run in each])
    numbers[name] = {
      **uncertainty.as_json(found),
      "words": f"{WORDS[name]}; mean and standard deviation (n - 1) over {len(runs)} runs",
    }
    if name in pooled:
      numbers[name]["pooled"] = uncertainty.as_json(pooled[name])
  return {
    "protocol": runs[0].describe(aggregation),
    "splits": sorted({run.protocol.get("split", 0) for run in runs}),
    "runs": len(runs),
    "numbers": numbers,
  }


def _top(scores: np.ndarray, labels: np.ndarray, what: str) -> dict[str, float]:
  return {f"{what}_top{k}": accuracy.top_k(scores, labels, k) for k in (1, 5)}


def _by_aggregation(predictions: Predictions) -> dict[str, float]:
  if predictions.aggregation == aggregations.WHOLE_VIDEO:
    known = [aggregations.WHOLE_VIDEO]
    return {name: accuracy.top_k(predictions.scores(), predictions.labels, 1) for name in known}
  known = [
    name
    for name in aggregations.AGGREGATIONS
    if name != aggregations.MEAN_LOGITS or predictions.view_logits is not None
  ]
  return {name: accuracy.top_k(predictions.scores(name), predictions.labels, 1) for name in known}
