"""A gathered study as Markdown, for a paper or a README.

In: what `study.json` holds. Out: text.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MARK = "†"


def markdown(gathered: Mapping[str, Any]) -> str:
  """The tables: rows with published and measured numbers apart, then differences and how sure they are."""
  parts = [f"# {gathered['title']}", gathered["question"], _rows(gathered)]
  if any(row["as_published"] for row in gathered["table"]):
    parts.append(
      f"{_MARK} As published, on purpose: cross attention and latents at random values, the source's "
      "normalization, majority vote over clips, and **the best epoch chosen on the test list, which is "
      "optimistic**."
    )
  parts += [*_missing(gathered), _protocols(gathered), _comparisons(gathered)]
  return "\n\n".join(part for part in parts if part) + "\n"


def _rows(gathered: Mapping[str, Any]) -> str:
  elsewhere = gathered.get("published_elsewhere")
  published = f"published top-1 ({elsewhere})" if elsewhere else "published top-1"
  lines = [
    f"| row | form | {published} | measured top-1 | 95 % interval | sd of runs | runs | parameters "
    "| multiply-accumulates | clips/s |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for row in gathered["table"]:
    mark = f" {_MARK}" if row["as_published"] else ""
    interval = row.get("interval", {}).get("video_top1")
    parameters, products = row.get("parameters"), row.get("multiply_accumulates")
    speed = row.get("evaluation_clips_per_second")
    cells = [
      row["label"],
      row["form"].replace("_", " ") + mark,
      _percent(row["published"].get("video_top1")),
      _percent(row.get("mean", {}).get("video_top1")),
      _between(interval, _percent),
      _percent(row.get("sd", {}).get("video_top1")),
      f"{row['states']['done']} of {sum(row['states'].values())}",
      f"{parameters['total']:,}" if parameters else "–",
      f"{products / 1e9:.3f} G" if products else "–",
      f"{speed:.1f}" if speed else "–",
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _between(limits: Sequence[float | None] | None, written: Callable[[float | None], str]) -> str:
  """An interval; of one group alone, or of no run, there is none."""
  if not limits or None in limits:
    return "–"
  return f"{written(limits[0])} to {written(limits[1])}"


def _points(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:+.1f}"


def _percent(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:.1f} %"


def _missing(gathered: Mapping[str, Any]) -> list[str]:
  lines = []
  for row in gathered["table"]:
    what = f"{row['label']}, {row['form'].replace('_', ' ')}"
    undone = {state: n for state, n in row["states"].items() if n and state != "done"}
    if undone:
      lines.append(f"- {what}: " + ", ".join(f"{n} {state}" for state, n in undone.items()))
    if row["missing_predictions"]:
      lines.append(f"- {what}: no predictions for {row['missing_predictions']} videos of its runs")
  return ["Not in the numbers:", "\n".join(lines)] if lines else []


def _protocols(gathered: Mapping[str, Any]) -> str:
  found = dict.fromkeys(
    (row["form"].replace("_", " "), row["protocol"])
    for row in gathered["table"]
    if "protocol" in row
  )
  lines = [f"- {form}: {protocol}." for form, protocol in found]
  if not lines:
    return ""
  words = "Intervals: bootstrap over groups. Published numbers are others' measurements."
  return f"How it was measured. {words}\n\n" + "\n".join(lines)


def _comparisons(gathered: Mapping[str, Any]) -> str:
  found = gathered["comparisons"]
  if not found:
    return "There are no two rows to compare." if len(gathered["table"]) == 1 else ""
  labels = {row["row"]: row["label"] for row in gathered["table"]}
  lines = [
    "| compared | form | difference of top-1 | 95 % interval | over runs too | p | p (Holm) | videos |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for one in found:
    first, second = (labels[name] for name in one["rows"])
    forms = [form.replace("_", " ") for form in one["forms"]]
    marks = f" {_MARK}" if "as published" in forms else ""
    compared = f"{second} – {first}" if first != second else first
    form = forms[0] if forms[0] == forms[1] else f"{forms[1]} – {forms[0]}"
    limits, over_runs = (_between(one[of], _points) for of in ("interval", "interval_over_runs"))
    lines.append(
      f"| {compared} | {form}{marks} | {_points(one['difference'])} | {limits} | {over_runs} | "
      f"{one['p']:.4f} | {one['p_holm']:.4f} | {one['videos']} |"
    )
  words = (
    "Differences in percentage points, paired by video; groups as a whole. Interval and p speak of these "
    "trained models; the interval over runs too, of the recipes: it draws seeds as well as groups."
  )
  return words + "\n\n" + "\n".join(lines)
