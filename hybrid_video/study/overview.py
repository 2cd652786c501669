"""Where a study stands, as a table on the console: rows by state, accuracy so far, time left.

In: the states of runs and what finished ones left. Out: text.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath
import numpy as np

from hybrid_video import progress
from hybrid_video.report import results_file
from hybrid_video.study.settings import Run, Study

_STATES = ("done", "running", "failed", "left")
# A longer table is shortened to the rows that are begun and not done.
_MOST_ROWS = 16


def text(study: Study, workdir: epath.Path, states: Mapping[str, str], *, at_once: int = 1) -> str:
  """The table, a line for each row and form, and how much is left.

  Args:
    study: the whole.
    workdir: of the study.
    states: of this machine's runs by their folders.
    at_once: how many runs train at the same time.
  """
  outcomes = {
    folder: results_file.read(workdir / folder)
    for folder, state in states.items()
    if state == "done"
  }
  by_row: dict[tuple[str, str], list[Run]] = {}
  for run in study.own_runs:
    by_row.setdefault((run.row.name, run.form), []).append(run)
  lines, hidden = [], 0
  for (name, form), runs in by_row.items():
    of_runs = [states[run.folder] for run in runs]
    if len(by_row) > _MOST_ROWS and len({*of_runs}) == 1 and of_runs[0] != "failed":
      hidden += 1
      continue
    scores = [_score(outcomes.get(run.folder)) for run in runs]
    known = [score for score in scores if score is not None]
    accuracy = f"{100 * np.mean(known):6.1f} %" if known else "       –"
    counts = "".join(f"{of_runs.count(state):>8}" for state in _STATES)
    lines.append(f"{name:<{_width(by_row)}}  {form:<12}{counts}  {accuracy}")
  head = (
    f"{'row':<{_width(by_row)}}  {'form':<12}{''.join(f'{s:>8}' for s in _STATES)}  top-1 so far"
  )
  if hidden:
    lines.append(f"({hidden} rows that are done or not begun are left out)")
  return "\n".join([head, *lines, _left(study, states, outcomes, at_once)])


def _width(by_row: Mapping[tuple[str, str], Any]) -> int:
  return max(len(name) for name, _ in by_row)


def _score(outcome: dict[str, Any] | None) -> float | None:
  return None if outcome is None else outcome["test"].get("video_top1")


def _left(
  study: Study,
  states: Mapping[str, str],
  outcomes: Mapping[str, dict[str, Any] | None],
  at_once: int,
) -> str:
  """How many runs are left, and for how long: by the runs of the same row, else by all of them."""
  left = [run for run in study.own_runs if states[run.folder] in ("left", "failed")]
  took: dict[str, list[float]] = {}
  for run in study.own_runs:
    if outcome := outcomes.get(run.folder):
      took.setdefault(run.row.name, []).append(outcome["seconds"])
  counted = f"{len(states) - len(left)} of {len(states)} runs are done or run elsewhere"
  if not left:
    return f"{counted}."
  if not took:
    return f"{counted}; time left is not known before one is done."
  overall = float(np.mean([seconds for of_row in took.values() for seconds in of_row]))
  seconds = sum(float(np.mean(took.get(run.row.name, [overall]))) for run in left)
  seconds /= min(at_once, len(left))
  return f"{counted}, about {progress.duration(seconds)} left."
