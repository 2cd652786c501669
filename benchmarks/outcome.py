"""What a benchmark found: a table and a plot for people, one JSON object for programs.

In: rows of plain values. Out: a Markdown table on the terminal, `benchmarks/results/NAME.json` and
`NAME.png`, and the JSON object as the last line.
"""

from collections.abc import Callable, Mapping, Sequence
import importlib.metadata
import json
import pathlib
import platform
from typing import Any

import matplotlib.axes
import matplotlib.figure

from hybrid_video.report.figures import BLUE, INK, MUTED, ORANGE, STYLE

__all__ = [
  "BLUE",
  "INK",
  "MUTED",
  "ORANGE",
  "keep",
  "kept",
  "plot",
  "processor",
  "table",
  "versions",
  "write",
]

RESULTS = pathlib.Path(__file__).parent / "results"
_PACKAGES = ("jax", "jaxlib", "flax", "torch", "torchvision", "transformers", "libtpu")


def processor() -> str:
  """The name of this machine's processor, as the system tells it, and its number of cores."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    count = sum(line.startswith("processor") for line in lines)
  except (OSError, StopIteration):
    return platform.processor() or platform.machine()
  return f"{name}, {count} cores"


def versions() -> dict[str, str]:
  """The versions of those packages, among what benchmarks compare, that are installed."""
  found = {}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _cell(value: Any) -> str:
  if value is None:
    return ""
  if isinstance(value, float):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
  return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows of the same keys as a Markdown table, its columns lined up."""
  names = list(rows[0])
  cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
  lines = [
    "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
    for row in cells
  ]
  lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
  return "\n".join(lines)


def plot(
  name: str,
  draw: Callable[[Sequence[matplotlib.axes.Axes]], None],
  panels: int = 1,
  height: float = 3.4,
) -> None:
  """Draws `benchmarks/results/NAME.png`.

  Args:
    name: of the benchmark.
    draw: fills the axes, one a panel, side by side.
    panels: how many.
    height: inches.
  """
  with matplotlib.rc_context(STYLE):
    figure = matplotlib.figure.Figure(figsize=(4.6 * panels, height), layout="constrained")
    draw(list(figure.subplots(1, panels, squeeze=False)[0]))
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.png", dpi=110)


def kept(name: str) -> dict[str, Any]:
  """What `keep` has put into `benchmarks/results/NAME.json`, by model."""
  path = RESULTS / f"{name}.json"
  return json.loads(path.read_text())["models"] if path.exists() else {}


def keep(name: str, found: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
  """Puts what was found of some models into `benchmarks/results/NAME.json`; those of others stay.

  Args:
    name: of the benchmark.
    found: by model.
    order: of the models in the file.

  Returns:
    What the file holds of all models.
  """
  known = {**kept(name), **found}
  every = {model: known[model] for model in order if model in known}
  RESULTS.mkdir(exist_ok=True)
  (RESULTS / f"{name}.json").write_text(json.dumps({"models": every}, indent=1) + "\n")
  return every


def write(name: str, outcome: dict[str, Any]) -> None:
  """Keeps the outcome as `benchmarks/results/NAME.json` and prints it as the last line.

  The machine's processor and the packages' versions are added under `machine` and `versions`.
  """
  whole = {**outcome, "machine": outcome.get("machine") or processor(), "versions": versions()}
  RESULTS.mkdir(exist_ok=True)
  (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
  print(json.dumps(whole))
