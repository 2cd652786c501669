"""A run's folder to what its report shows: numbers, charts and tables.

In: `results.json`, `predictions.npz`, `history.jsonl`. Out: values for `run_page.html.j2`, and Markdown.
"""

import hashlib
import json
import math
import pathlib
from typing import Any

import numpy as np

from hybrid_video import errors, origins
from hybrid_video.analysis import accuracy, summary
from hybrid_video.analysis.predictions import Predictions
from hybrid_video.report import charts, figures, markdown, pages, results, writers
from hybrid_video.report.results import ReportError

_CARDS = ("video_top1", "video_top5", "mean_class_accuracy", "expected_calibration_error")
_NAMES = {
  "video_top1": "video top-1",
  "video_top5": "video top-5",
  "clip_top1": "clip top-1",
  "clip_top5": "clip top-5",
  "mean_class_accuracy": "mean class accuracy",
  "expected_calibration_error": "expected calibration error",
  "majority_class": "always the largest class",
}


def load_json(path: pathlib.Path, purpose: str) -> dict[str, Any]:
  """A JSON object from a file.

  Raises:
    ReportError: there is none, or it is not whole.
  """
  try:
    value = json.loads(path.read_text())
  except OSError as error:
    raise ReportError(
      f"{errors.printable(path)}: cannot be read ({error.strerror or error}). A report needs {purpose}."
    ) from error
  except ValueError as error:
    raise ReportError(
      f"{errors.printable(path)}: is not JSON ({error}). Remove it and make it again."
    ) from error
  if not isinstance(value, dict):
    raise ReportError(f"{errors.printable(path)}: holds no JSON object. Make it again.")
  return value


def load(workdir: pathlib.Path) -> tuple[dict[str, Any], Predictions | None, writers.History]:
  """Results, predictions and history of a run; predictions are None for a task without classes.

  Raises:
    UserError: results are missing, or a file is damaged.
  """
  outcome = load_json(
    workdir / results.RESULTS, "a run that was evaluated; train it, or --mode=evaluate"
  )
  needed = ("test", "config", "classes", "protocol")
  if missing := [name for name in needed if name not in outcome]:
    raise ReportError(
      f"{errors.printable(workdir / results.RESULTS)}: lacks {', '.join(missing)}. Evaluate the run "
      "again with --mode=evaluate."
    )
  predictions = Predictions.read(workdir) if "video_top1" in outcome["test"] else None
  return outcome, predictions, writers.read_history(workdir)


def percent(value: float | None) -> str:
  """A share as per cent to one digit, or a dash."""
  return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _interval(entry: dict[str, Any]) -> str:
  if entry.get("low") is None or entry.get("high") is None:
    return "–"
  return f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f} %"


def numbers_table(found: dict[str, Any]) -> pages.Table:
  """The numbers of a run with their intervals."""
  rows = [
    (_NAMES.get(name, name), percent(entry["value"]), _interval(entry))
    for name, entry in found["numbers"].items()
  ]
  return pages.Table("Numbers of the test list", ("number", "value", "95 % interval"), rows)


def learning_curves(history: writers.History, outcome: dict[str, Any]) -> list[charts.Chart]:
  """Loss and accuracy of training and validation over epochs."""
  drawn = []
  groups = (
    ("train", "top1", "training clips", figures.BLUE, "-"),
    ("train_sample", "video_top1", "training videos", figures.BLUE, "--"),
    ("validation", "video_top1", "validation videos", figures.ORANGE, "-"),
  )
  is_classifier = "video_top1" in outcome["test"]
  for what in ("loss", "top1") if is_classifier else ("loss",):
    factor = 1 if what == "loss" else 100
    lines = []
    for group, metric, words, colour, style in groups:
      name = f"{group}/{'loss' if what == 'loss' else metric}"
      points = [(line["epoch"], factor * line[name]) for line in history if name in line]
      if points := [point for point in points if math.isfinite(point[1])]:
        lines.append(charts.Line(words, points, colour, style))
    if not lines:
      continue
    test = factor * outcome["test"]["loss" if what == "loss" else "video_top1"]
    ends = [line["epoch"] for line in history if line["step"] == outcome.get("step")]
    at = ends[0] if ends else max(x for line in lines for x, _ in line.points)
    caption = "Loss over epochs" if what == "loss" else "Accuracy over epochs"
    drawn.append(
      charts.curves(
        f"curve{what}",
        f"{caption}; the diamond is the test list, of the parameters that were tested",
        lines,
        ("epoch", "loss" if what == "loss" else "top-1 (%)"),
        limits=None if what == "loss" else (0, 102),
        mark=(at, test, "test videos"),
        level=None if what == "loss" else (100 / len(outcome["classes"]), "chance"),
      )
    )
  return drawn


def confusion(predictions: Predictions) -> dict[str, Any]:
  """Rows of true classes with test videos, columns of classes that are true or predicted."""
  counts = accuracy.confusion(predictions.scores(), predictions.labels)
  rows = np.flatnonzero(counts.sum(1)).tolist()
  columns = np.flatnonzero(counts.sum(1) + counts.sum(0)).tolist()
  names = predictions.class_names
  return {
    "columns": [names[i] for i in columns],
    "rows": [
      {
        "name": names[i],
        "cells": [
          (int(counts[i, j]), float(counts[i, j] / counts[i].sum()), i == j) for j in columns
        ],
      }
      for i in rows
    ],
  }


def _tables(found: dict[str, Any], seen: dict[str, list[str]]) -> dict[str, Any]:
  def of(caption: str, what: str, entries: list[dict[str, Any]], name: Any) -> pages.Table:
    rows = [
      (name(e), f"{e['videos']:,}", f"{e['right']:,}", percent(e["accuracy"])) for e in entries
    ]
    bars = [e["accuracy"] or 0.0 for e in entries]
    return pages.Table(caption, (what, "videos", "right", "accuracy"), rows, bars)

  accuracy_of = {e["class"]: percent(e["accuracy"]) for e in found["per_class"]}
  seen_before = [
    (name, ", ".join(theirs), accuracy_of.get(name, "–")) for name, theirs in seen.items()
  ]
  groups = [
    of(f"By tag: {tag}", tag, entries, lambda e: e["value"] or "none")
    for tag, entries in found["by_tag"].items()
  ]
  if found["by_length"]:
    groups.append(
      of(
        "By length of the video",
        "seconds",
        found["by_length"],
        lambda e: f"{e['from']:.2f} to {e['to']:.2f}",
      )
    )
  pairs = [
    (f"{e['true']} as {e['predicted']}", f"{e['videos']:,}", percent(e["share"]))
    for e in found["confused_pairs"]
  ]
  return {
    "classes": of("Accuracy by class", "class", found["per_class"], lambda e: e["class"]),
    "groups": groups,
    "seen_before": pages.Table(
      "Classes that it was trained on before, in the set it started from",
      ("class", "its name there", "accuracy"),
      seen_before,
    ),
    "pairs": pages.Table("Most confused pairs", ("true as predicted", "videos", "share"), pairs),
  }


def config_digest(outcome: dict[str, Any]) -> str:
  """SHA-256 of the config, keys sorted, 12 digits."""
  text = json.dumps(outcome["config"], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _cards(outcome: dict[str, Any], found: dict[str, Any] | None) -> list[pages.Card]:
  if found is None:
    return [pages.Card("loss", f"{outcome['test']['loss']:.4g}", "test list")]
  cards = [
    pages.Card(
      _NAMES[name],
      percent(found["numbers"][name]["value"]),
      f"95 %: {_interval(found['numbers'][name])}"
      if "low" in found["numbers"][name]
      else "of the test list",
    )
    for name in _CARDS
  ]
  total = outcome.get("parameters", {}).get("total")
  if total is not None:
    cards.append(pages.Card("parameters", f"{total:,}", outcome["config"]["model"]["name"]))
  return cards


def values(
  workdir: pathlib.Path, outcome: dict[str, Any], predictions: Predictions | None, history: Any
) -> dict[str, Any]:
  """What the template shows but for pictures of videos."""
  found = None if predictions is None else summary.summarize(predictions)
  notes = []
  if outcome.get("selected_on_test"):
    notes.append(
      "As published: the epoch was chosen on the test list, so its accuracy is optimistic."
    )
  if found and found["classes_without_videos"]:
    empty = found["classes_without_videos"]
    notes.append(
      f"{len(empty)} of {len(outcome['classes'])} classes without test videos: "
      f"{errors.shown(empty)}. They count in no mean."
    )
  if found and found["groups"] is None:
    notes.append(
      "The predictions are of an earlier version and lack groups: there are no intervals. "
      "--mode=evaluate writes them anew."
    )
  if started := outcome.get("started_from"):
    notes.append(origins.in_words(started, len(outcome["classes"])))
  if not history:
    notes.append("There is no history.jsonl: the report has no learning curves.")
  config = outcome["config"]
  return {
    "title": f"{config['model']['name']} on {outcome.get('dataset', config.get('dataset'))}",
    "folder": str(workdir.name),
    "outcome": outcome,
    "digest": config_digest(outcome),
    "protocol": outcome["protocol"]
    if found is None or found["groups"] is None
    else found["protocol"],
    "cards": _cards(outcome, found),
    "notes": notes,
    "numbers": None if found is None else numbers_table(found),
    "curves": learning_curves(history, outcome),
    "confusion": None if predictions is None else confusion(predictions),
    "tables": None if found is None else _tables(found, (started or {}).get("shared", {})),
    "calibration": None
    if found is None
    else charts.reliability(
      "calibration",
      f"How often predictions are right, by confidence; expected calibration error "
      f"{percent(found['numbers']['expected_calibration_error']['value'])}",
      found["reliability"],
    ),
  }


def markdown_of(shown: dict[str, Any]) -> str:
  """The numbers as a Markdown table, with the protocol below."""
  lines = [f"**{markdown.escape(shown['title'])}**", ""]
  if shown["numbers"] is not None:
    lines += markdown.table(shown["numbers"].heads, shown["numbers"].rows)
  else:
    lines += markdown.table(
      ("number", "value"), [("loss", f"{shown['outcome']['test']['loss']:.4g}")]
    )
  if started := shown["outcome"].get("started_from"):
    words = origins.in_words(started, len(shown["outcome"]["classes"]))
    lines += ["", markdown.escape(words)]
  return "\n".join([*lines, "", markdown.escape(shown["protocol"]) + ".", ""])
