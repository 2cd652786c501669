"""A plan as a page on the console.

In: a plan, as `plan.json` holds it. Out: lines of text.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hybrid_video import progress
from hybrid_video.planning.topologies import GIB

_KINDS = {
  "parameters": "parameters",
  "gradients": "gradients",
  "optimizer": "optimizer state",
  "averages": "moving averages",
  "statistics": "batch statistics",
  "batch": "clips and labels",
}


def size(number: float) -> str:
  """Bytes for people, in GiB, MiB or KiB."""
  for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
    if number >= unit / 10:
      return f"{number / unit:,.2f} {name}"
  return f"{number / 2**10:,.1f} KiB"


def count(number: float) -> str:
  """A large number for people, in millions, billions or trillions."""
  for unit, word in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
    if number >= unit:
      return f"{number / unit:,.2f} {word}"
  return f"{number:,.0f}"


def _table(title: str, rows: Iterable[Sequence[str]]) -> str:
  """Rows under a title: the first column to the left, the others to the right, notes after them."""
  rows = [tuple(row) for row in rows]
  columns = max(len(row) for row in rows)
  widths = [max((len(row[i]) for row in rows if len(row) > i), default=0) for i in range(columns)]
  lines = [title]
  for row in rows:
    cells = [
      cell.ljust(width) if i != 1 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=False))
    ]
    lines.append(f"  {'  '.join(cells)}".rstrip())
  return "\n".join(lines)


def before(plan: Mapping[str, Any]) -> str:
  """What is known before anything is compiled."""
  parameters, costs = plan["parameters"], plan["multiply_accumulates"]
  rows = [(part, f"{number:,}") for part, number in parameters.items() if number]
  if plan["trained_parameters"] != parameters["total"]:
    rows.append(("trained", f"{plan['trained_parameters']:,}"))
  title = f"{plan['model']}, {plan['classes']} classes, {plan['dtype']}"
  parts = [_table(f"Parameters of {title}", rows)]
  per_clip = (
    f"{plan['clip'][0]} frames of {plan['clip'][1]}x{plan['clip'][2]}, forward, loss included"
  )
  parts.append(
    _table(
      "Multiply-accumulates",
      [
        ("a clip", count(costs["clip"]), per_clip),
        ("a step", count(costs["step"]), f"batch {plan['batch_size']}, forward and backward"),
      ],
    )
  )
  of_kinds = [
    (_KINDS[kind], size(share), "" if share == whole else f"{size(whole)} over all devices")
    for kind, share, whole in (
      (kind, plan["device_bytes"][kind], plan["bytes"][kind]) for kind in _KINDS
    )
    if whole
  ]
  parts.append(_table(f"Bytes on each device of {plan['place']}", of_kinds))
  parts.append(_length(plan))
  return "\n\n".join(parts)


def _length(plan: Mapping[str, Any]) -> str:
  if plan["steps"] is None:
    note = f"epochs {plan['epochs']:g}; set --training_videos=N to know how many steps that is"
    return _table("Length", [("steps", "not known", note)])
  return _table(
    "Length",
    [
      ("training videos", f"{plan['training_videos']:,}", f"by {plan['length_source']}"),
      ("steps an epoch", f"{plan['steps_per_epoch']:,.2f}"),
      ("epochs", f"{plan['epochs']:g}"),
      ("steps", f"{plan['steps']:,}"),
    ],
  )


def after(plan: Mapping[str, Any]) -> str:
  """What the compiler and the measurement found."""
  parts = []
  if compiled := plan["compiled"]:
    parts.append(_memory(plan, compiled))
    parts.append(_work(plan, compiled))
  parts.append(verdict(plan))
  return "\n\n".join(parts)


def _memory(plan: Mapping[str, Any], compiled: Mapping[str, Any]) -> str:
  memory = compiled["memory"]
  rows = [
    ("state and batch", size(memory["arguments"])),
    ("results not in their place", size(memory["outputs"])),
    ("activations, gradients, temporary", size(memory["temporary"])),
    ("the program", size(memory["code"])),
    ("together", size(memory["total"]), f"{memory['total'] / 1e9:,.2f} GB"),
  ]
  if plan["topology"]:
    # Other compilers count no more than a part of it.
    rows.append(("at once, by the compiler", size(memory["peak"]), "without the program"))
  if plan["limit_bytes"]:
    rows.append((plan["limit_source"], size(plan["limit_bytes"])))
  title = f"Memory of a device, as compiled in {progress.duration(compiled['seconds'])}"
  return _table(title, rows)


def _work(plan: Mapping[str, Any], compiled: Mapping[str, Any]) -> str:
  rows: list[tuple[str, ...]] = []
  for kind, found in compiled["collectives"].items():
    rows.append((kind, size(found["bytes"]), f"{found['count']:,} a step"))
  if plan["devices"] > 1 and not compiled["collectives"]:
    rows.append(("collectives", "none"))
  rows.append(("clips from each host", size(plan["host_input_bytes"]), f"hosts: {plan['hosts']}"))
  time = plan["time"]
  if compiled["cycles"]:
    rows.append(("estimated cycles", count(compiled["cycles"])))
  if time["step_seconds"]:
    clips = plan["batch_size"] / time["step_seconds"]
    rows.append(("seconds a step", f"{time['step_seconds']:.4g}", f"{clips:,.0f} clips/s"))
    rate = plan["host_input_bytes"] / time["step_seconds"]
    rows.append(("clips from each host, a second", size(rate)))
  step = _table("A step", rows)
  if time["hours"] is None:
    return f"{step}\n\nHours: {time['basis']}."
  return f"{step}\n\nHours of training steps: {time['hours']:,.3g} ({time['basis']})"


def verdict(plan: Mapping[str, Any]) -> str:
  """Whether it fits, and what would."""
  lines = [plan["verdict"]]
  for tried in plan["tried"]:
    lines.append(f"  {' '.join(tried['flags'])}: {tried['outcome']}")
  if plan["suggestion"]:
    lines.append(f"Add to the command: {' '.join(plan['suggestion'])}")
  lines += plan["notes"]
  return "\n".join(lines)
