"""A study's `study.json` to what its report shows: the answer, tables, comparisons, charts.

In: what `study.json` holds, and the histories of its runs. Out: values for `study_page.html.j2`, and
Markdown.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import re
from typing import Any

from hybrid_video import errors
from hybrid_video.report import charts, figures, markdown, pages, results, writers
from hybrid_video.report.run_report import load_json, percent

FILE = "study.json"
_LEVEL = 0.05
_FORMS = {"corrected": "corrected", "as_published": "as published"}
_AXES = {
  "gap_seconds": "gap between the two events (s)",
  "training_share": "share of the training videos (%)",
  "frames": "frames a clip",
}
OPTIMISTIC = (
  "As published: cross attention and latents frozen at random values, and the epoch chosen on the test "
  "list, so these accuracies are optimistic."
)


def load(workdir: pathlib.Path) -> dict[str, Any]:
  """What `study.json` holds.

  Raises:
    ReportError: it is missing or lacks something, or two rows have one name.
  """
  path = workdir / FILE
  study = load_json(path, "a gathered study")
  name = errors.printable(path)
  if missing := [
    key for key in ("title", "question", "table", "runs", "comparisons") if key not in study
  ]:
    raise results.ReportError(f"{name}: lacks {', '.join(missing)}. Run the study's command again.")
  keys = [(row["row"], row["form"]) for row in study["table"]]
  if twice := sorted({key[0] for key in keys if keys.count(key) > 1}):
    raise results.ReportError(f"{name}: two rows are called {errors.shown(twice)}. Rename one.")
  return study


def _mean(row: dict[str, Any], name: str = "video_top1") -> float | None:
  return (row.get("mean") or {}).get(name)


def _limits(row: dict[str, Any]) -> tuple[float | None, float | None]:
  low, high = (row.get("interval") or {}).get("video_top1") or (None, None)
  return low, high


def _axis_words(axis: str, value: float | str) -> str:
  if isinstance(value, str):
    return value
  words, values = _AXES.get(axis, axis.replace("_", " ")), f"{value:g}"
  unit = re.search(r" \((\S+)\)$", words)
  return f"{words[: unit.start()]} {values} {unit[1]}" if unit else f"{values} {words}"


def _chance(study: dict[str, Any]) -> float | None:
  """What a constant answer reaches, per cent, where that is the same for all rows."""
  shares = [100 * row["majority_class"] for row in study["table"] if row.get("majority_class")]
  return shares[0] if shares and max(shares) - min(shares) < 0.5 else None


def _series(row: dict[str, Any], x: str | None) -> dict[str, str]:
  """By axis what a row shares with those that differ from it along one axis alone, in words."""
  others = {
    axis: _axis_words(axis, value) for axis, value in row.get("axes", {}).items() if axis != x
  }
  return others or {"": row["label"]}


def _points(study: dict[str, Any], x: str | None = None) -> list[charts.Point]:
  """The measured numbers of each row, and the published ones, per cent."""
  points = []
  for row in study["table"]:
    at = _x(row, x) if x else 0.0
    label = ", ".join(_series(row, x).values()) if x in row.get("axes", {}) else row["label"]
    value = _mean(row)
    if at is None:
      continue
    if value is not None:
      low, high = (None if one is None else 100 * one for one in _limits(row))
      points.append(charts.Point(label, 100 * value, low, high, row["form"], at))
    published = row.get("published", {}).get("video_top1")
    # On another data set it is no mark to measure by.
    if study.get("published_elsewhere"):
      continue
    if published is not None and not any(
      p.kind == "published" and p.label == row["label"] for p in points
    ):
      points.append(charts.Point(row["label"], 100 * published, kind="published", x=at))
  return points


def _x(row: dict[str, Any], name: str) -> float | None:
  if name == "parameters":
    total = (row.get("parameters") or {}).get("total")
    value = None if total is None else total / 1e6
  elif name == "multiply_accumulates" or name == "peak_memory":
    value = None if row.get(name) is None else row[name] / 1e9
  elif name == "evaluation_clips_per_second":
    value = row.get(name)
  else:
    value = row.get("axes", {}).get(name)
  return float(value) if isinstance(value, int | float) and value else (0.0 if value == 0 else None)


def _interval_text(low: float | None, high: float | None) -> str:
  return "–" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f} %"


def _points_text(limits: Sequence[float | None] | None) -> str:
  low, high = limits or (None, None)
  return "–" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"


def table(study: dict[str, Any]) -> pages.Table:
  """Rows and forms with published and measured columns."""
  rows = []
  for row in study["table"]:
    sd, states = (row.get("sd") or {}).get("video_top1"), row.get("states", {})
    done = states.get("done", 0)
    runs = f"{done} of {sum(states.values())}" if states else "–"
    memory = row.get("peak_memory")
    total, cost = (row.get("parameters") or {}).get("total"), row.get("multiply_accumulates")
    rows.append(
      (
        row["label"],
        _FORMS.get(row["form"], row["form"]) + (" ⚠ optimistic" if row.get("as_published") else ""),
        percent(row.get("published", {}).get("video_top1")),
        percent(_mean(row)),
        _interval_text(*_limits(row)),
        "–" if sd is None else f"{100 * sd:.1f}",
        runs,
        "–" if total is None else f"{total:,}",
        "–" if cost is None else f"{cost / 1e9:,.3f}",
        "–" if memory is None else f"{memory / 1e9:,.2f}",
      )
    )
  elsewhere = study.get("published_elsewhere")
  heads = (
    "row",
    "form",
    f"published ({elsewhere})" if elsewhere else "published",
    "measured",
    "95 % interval",
    "sd (points)",
    "runs",
    "parameters",
    "GMACs",
    "peak memory (GB)",
  )
  # Nothing is said by a column that is empty.
  told = [i for i in range(len(heads)) if i < 2 or any(row[i] != "–" for row in rows)]
  return pages.Table(
    "Video top-1 of the test list, by row and form",
    tuple(heads[i] for i in told),
    [tuple(row[i] for i in told) for row in rows],
  )


def _pair_words(study: dict[str, Any], one: dict[str, Any]) -> tuple[str, str]:
  labels = {row["row"]: row["label"] for row in study["table"]}
  names = [labels.get(name, name) for name in one["rows"]]
  if {*one["forms"]} == {"corrected"}:
    return names[0], names[1]
  forms = [_FORMS.get(form, form) for form in one["forms"]]
  return f"{names[0]} ({forms[0]})", f"{names[1]} ({forms[1]})"


def comparisons(study: dict[str, Any]) -> pages.Table:
  """Paired tests of rows, the p values adjusted by Holm."""
  rows = []
  for one in study["comparisons"]:
    first, second = _pair_words(study, one)
    rows.append(
      (
        f"{second} against {first}",
        f"{100 * one['difference']:+.1f}",
        _points_text(one["interval"]),
        _points_text(one.get("interval_over_runs")),
        f"{one['p']:.4f}",
        f"{one['p_holm']:.4f}",
        "yes" if one["p_holm"] < _LEVEL else "no",
        f"{one['videos']:,}",
      )
    )
  heads = (
    "pair",
    "difference (points)",
    "95 % interval",
    "over runs too",
    "p",
    "p by Holm",
    "larger than chance",
    "videos",
  )
  return pages.Table("Differences on the same videos, paired tests", heads, rows)


def words_of(row: dict[str, Any]) -> str:
  """A row of the table and its form."""
  return f"{row['label']} ({_FORMS.get(row['form'], row['form'])})"


def best_row(study: dict[str, Any]) -> dict[str, Any] | None:
  """The row with the highest mean; none chosen on the test list, unless there is no other.

  Rows that others start from are no answers of their own: they may be of another data set.
  """
  begun_with = {row.get("starts_from") for row in study.get("rows", ())}
  measured = [
    row for row in study["table"] if _mean(row) is not None and row["row"] not in begun_with
  ]
  honest = [row for row in measured if not row.get("as_published")] or measured
  return max(honest, key=lambda row: _mean(row) or 0.0, default=None)


def answers(study: dict[str, Any]) -> list[str]:
  """The answer in sentences: the best row, and which differences are larger than chance."""
  best = best_row(study)
  if best is None:
    return ["No run is finished yet: there is no answer."]
  form = _FORMS.get(best["form"], best["form"])
  sentences = [
    f"Best measured, {form}: {best['label']} with {percent(_mean(best))} of test videos right "
    f"(95 % interval {_interval_text(*_limits(best))})."
  ]
  chance = _chance(study)
  if chance is not None:
    sentences.append(f"A constant answer, the most frequent class, is right on {chance:.1f} %.")
  found = study["comparisons"]
  if not found:
    sentences.append("There are no two rows to compare, so no difference is tested.")
    return sentences
  asked = [sentence for pair in study.get("asks", ()) if (sentence := _asked(study, pair))]
  larger = [one for one in found if one["p_holm"] < _LEVEL]
  sentences += [
    *asked,
    f"Of all {len(found)} differences {len(larger)} {'is' if len(larger) == 1 else 'are'} larger than "
    f"chance (paired test over groups, adjusted by Holm, {100 * _LEVEL:.0f} %).",
  ]
  if not asked:
    largest = sorted(larger, key=lambda one: -abs(one["difference"]))[:5]
    sentences += [_difference(study, one) for one in largest]
  return sentences


def _asked(study: dict[str, Any], pair: Sequence[str]) -> str | None:
  """What was found of a pair that the study's question is about, in the form that chooses nothing on the test list."""
  for one in study["comparisons"]:
    if {*one["rows"]} == {*pair} and {*one["forms"]} == {"corrected"}:
      return _difference(study, one if one["rows"][1] == pair[0] else _turned(one))
  return None


def _turned(one: dict[str, Any]) -> dict[str, Any]:
  """A comparison the other way round."""

  def limits(values: Sequence[float | None] | None) -> list[float | None]:
    return [None if value is None else -value for value in reversed(values or ())]

  return {
    **one,
    "rows": one["rows"][::-1],
    "forms": one["forms"][::-1],
    "difference": -one["difference"],
    "interval": limits(one["interval"]),
    "interval_over_runs": limits(one.get("interval_over_runs")),
  }


def _difference(study: dict[str, Any], one: dict[str, Any]) -> str:
  """A comparison in words: the second row against the first."""
  first, second = _pair_words(study, one)
  over_runs = one.get("interval_over_runs")
  also = f"; over runs too {_points_text(over_runs)}" if over_runs else ""
  larger = "larger" if one["p_holm"] < _LEVEL else "not larger"
  return (
    f"{second} against {first}: {100 * one['difference']:+.1f} points (95 % interval "
    f"{_points_text(one['interval'])}{also}), p {one['p']:.4f}, by Holm {one['p_holm']:.4f}: {larger} than chance."
  )


def _notes(study: dict[str, Any]) -> list[str]:
  notes = [OPTIMISTIC] if any(row.get("as_published") for row in study["table"]) else []
  for row in study["table"]:
    failed = row.get("states", {}).get("failed", 0)
    name = words_of(row)
    if failed:
      notes.append(f"{name}: {failed} of its runs failed, and are in no number.")
    if row.get("missing_predictions"):
      notes.append(f"{name}: predictions of {row['missing_predictions']:,} videos are missing.")
  if study["comparisons"] and not any(
    one.get("interval_over_runs") for one in study["comparisons"]
  ):
    notes.append(
      "Each row is one run: intervals and tests speak of these trained models on other videos, not of "
      "what another seed would give."
    )
  waiting = sum(run.get("state") != "done" for run in study["runs"])
  if waiting:
    notes.append(f"{waiting} of {len(study['runs'])} runs are not finished.")
  return notes


def _file_name(axis: str) -> str:
  return "by_" + re.sub(r"\W", "_", axis)


def _against(study: dict[str, Any]) -> list[charts.Chart]:
  drawn, chance = [], _chance(study)
  for name, words, log in (
    ("parameters", "parameters (millions)", True),
    ("multiply_accumulates", "multiply-accumulates of a clip (billions)", True),
    ("evaluation_clips_per_second", "measured clips a second", True),
    ("peak_memory", "peak memory of a run (GB)", True),
  ):
    points = [point for point in _points(study, name) if point.kind != "published" and point.x > 0]
    if points:
      drawn.append(
        charts.against(
          f"by_{name}", f"Accuracy against {words}", points, words, log=log, chance=chance
        )
      )
  return drawn


def _curves_against_axes(study: dict[str, Any]) -> list[charts.Chart]:
  """Accuracy along each axis of the study's own, a curve for each of the rows' other values."""
  drawn = []
  for axis in dict.fromkeys(axis for row in study["table"] for axis in row.get("axes", {})):
    points = [point for point in _points(study, axis) if point.kind != "published"]
    xs: dict[str, set[float]] = {}
    for point in points:
      xs.setdefault(point.label, set()).add(point.x)
    # Of a row that stands alone, the table tells.
    points = [point for point in points if len(xs[point.label]) > 1]
    if not points:
      continue
    points, common = _without_common(study, axis, points)
    words = _AXES.get(axis, axis.replace("_", " "))
    caption = f"Accuracy against {words}{common}"
    drawn.append(
      charts.against(
        _file_name(axis), caption, points, words, log=True, joined=True, chance=_chance(study)
      )
    )
  return drawn


def _without_common(
  study: dict[str, Any], x: str, points: list[charts.Point]
) -> tuple[list[charts.Point], str]:
  """Points whose labels lack what all of them share, and that in words."""
  rows = {", ".join(_series(row, x).values()): _series(row, x) for row in study["table"]}
  series = {point.label: rows[point.label] for point in points if point.label in rows}
  first = next(iter(series.values()), {})
  common = {
    axis: words
    for axis, words in first.items()
    if len(series) > 1 and all(other.get(axis) == words for other in series.values())
  }
  labels = {
    label: ", ".join(words for axis, words in own.items() if axis not in common) or label
    for label, own in series.items()
  }
  shortened = [
    dataclasses.replace(point, label=labels.get(point.label, point.label)) for point in points
  ]
  return shortened, "".join(f", {words}" for words in common.values())


def _curves(study: dict[str, Any], workdir: pathlib.Path) -> list[charts.Chart]:
  """Validation and training accuracy of each row and form, a chart each, of its first finished run."""
  drawn = []
  for i, row in enumerate(study["table"]):
    runs = [r for r in study["runs"] if (r["row"], r["form"]) == (row["row"], row["form"])]
    history: Sequence[dict[str, float]] = []
    for run in runs:
      history = writers.read_history(workdir / run["workdir"])
      if history:
        break
    lines = [
      charts.Line(words, points, colour)
      for name, words, colour in (
        ("train/top1", "training clips", figures.BLUE),
        ("validation/video_top1", "validation videos", figures.ORANGE),
      )
      if (points := [(line["epoch"], 100 * line[name]) for line in history if name in line])
    ]
    if lines:
      form = _FORMS.get(row["form"], row["form"])
      caption = f"{row['label']}, {form}, split {run['split']}, seed {run['seed']}"
      drawn.append(
        charts.curves(f"row{i}", caption, lines, ("epoch", "top-1 (%)"), limits=(0, 102))
      )
  return drawn


def values(workdir: pathlib.Path, study: dict[str, Any]) -> dict[str, Any]:
  """What the template shows."""
  points = _points(study)
  by_axis = _curves_against_axes(study)
  main = by_axis.pop(0) if by_axis else None
  if points and main is None:
    caption = "Accuracy on the test list with 95 % intervals, by row and form"
    if any(point.kind == "as_published" for point in points):
      caption += (
        "; as published is optimistic: frozen cross attention, epoch chosen on the test list"
      )
    main = charts.intervals("accuracy", caption, points, chance=_chance(study))
  links = [
    (
      f"{run['row']}, {_FORMS.get(run['form'], run['form'])}, split {run['split']}, seed {run['seed']}",
      run.get("state", ""),
      f"{run['workdir']}/report.html"
      if (workdir / run["workdir"] / "report.html").exists()
      else "",
    )
    for run in study["runs"]
  ]
  protocols = sorted({row["protocol"] for row in study["table"] if row.get("protocol")})
  sources = sorted({row["source"] for row in study["table"] if row.get("source")})
  return {
    "study": study,
    "answers": answers(study),
    "notes": _notes(study),
    "main": main,
    "table": table(study),
    "comparisons": comparisons(study),
    "against": [*by_axis, *_against(study)],
    "curves": _curves(study, workdir),
    "runs": links,
    "protocols": protocols,
    "sources": sources,
  }


def markdown_of(shown: dict[str, Any]) -> str:
  """Title, answer and the two tables."""
  study = shown["study"]
  lines = [f"**{markdown.escape(study['title'])}**: {markdown.escape(study['question'])}", ""]
  lines += [f"- {markdown.escape(sentence)}" for sentence in (*shown["answers"], *shown["notes"])]
  lines += ["", *markdown.table(shown["table"].heads, shown["table"].rows)]
  if shown["comparisons"].rows:
    lines += ["", *markdown.table(shown["comparisons"].heads, shown["comparisons"].rows)]
  lines += ["", *(f"{markdown.escape(protocol)}." for protocol in shown["protocols"]), ""]
  return "\n".join(lines)
