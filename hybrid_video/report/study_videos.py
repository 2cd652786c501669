"""A study's videos on its page: what its best row confuses, its hardest videos, where each model looks.

In: what `study.json` holds, and the folders of its finished runs. Out: values for `study_page.html.j2`.
"""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from hybrid_video import errors
from hybrid_video.experiment import Experiment
from hybrid_video.pipeline import Pipeline
from hybrid_video.report import film_strips, looking, run_report, study_report
from hybrid_video.report.film_strips import Section, Tested

# Of each model; more would make the page too large to send.
_VIDEOS, _MODELS = 2, 10
# Of the best row, and of each other one.
_LATENTS, _FEW_LATENTS = 4, 2


def values(workdir: pathlib.Path, study: dict[str, Any], pipeline: Pipeline) -> dict[str, Any]:
  """What the template shows of runs: `confusion`, `confused_run`, `films` and `looks`.

  What cannot be shown is a section that says why.

  Args:
    workdir: of the study.
    study: what `study.json` holds.
    pipeline: makes the clips that models look at.
  """
  shown: dict[str, Any] = {"confusion": None, "confused_run": "", "films": [], "looks": []}
  best = study_report.best_row(study)
  run = None if best is None else _first_run(study, best)
  if best is None or run is None:
    return shown
  shown["confused_run"] = f"{study_report.words_of(best)}, split {run['split']}, seed {run['seed']}"
  try:
    outcome, predictions, _ = run_report.load(workdir / run["workdir"])
  except errors.UserError as error:
    shown["films"] = [Section("videos", "Videos", f"Not shown: {error}")]
    return shown
  if predictions is None:
    return shown
  shown["confusion"] = run_report.confusion(predictions)
  try:
    experiment = Experiment.from_json(outcome["config"])
    tested = Tested.open(workdir / run["workdir"], predictions, experiment)
  except errors.UserError as error:
    shown["films"] = [
      Section("videos", "Videos", f"Not shown, since the stored videos cannot be used: {error}")
    ]
    return shown
  shown["films"] = film_strips.hard_videos(tested)
  few = [str(predictions.names[row]) for row in looking.rows(tested, _VIDEOS)]
  shown["looks"] = _looks(workdir, study, few, pipeline)
  return shown


def _first_run(study: dict[str, Any], row: dict[str, Any]) -> dict[str, Any] | None:
  """The first finished run of a row in its form."""
  of_row = (run for run in study["runs"] if (run["row"], run["form"]) == (row["row"], row["form"]))
  return next((run for run in of_row if run.get("state") == "done"), None)


def _looks(
  workdir: pathlib.Path, study: dict[str, Any], videos: Sequence[str], pipeline: Pipeline
) -> list[Section]:
  """Where the first run of each model looks, in the same videos where it was tested on them."""
  made: list[Section] = []
  seen: set[str] = set()
  for row in study["table"]:
    run = _first_run(study, row)
    if run is None or len(seen) == _MODELS:
      continue
    title, name = study_report.words_of(row), f"look{len(seen)}x"
    try:
      outcome, predictions, _ = run_report.load(workdir / run["workdir"])
      trained = {key: outcome["config"].get(key) for key in ("model", "optimizer")}
      model = json.dumps(trained, sort_keys=True)
      if predictions is None or model in seen:
        continue
      seen.add(model)
      experiment = Experiment.from_json(outcome["config"])
      tested = Tested.open(workdir / run["workdir"], predictions, experiment)
    except errors.UserError as error:
      made.append(Section(name, title, f"Not shown: {error}"))
      continue
    names = predictions.names.tolist()
    rows = [names.index(video) for video in videos if video in names and video in tested.ids]
    rows = rows or looking.rows(tested, _VIDEOS)
    latents = _LATENTS if row is study_report.best_row(study) else _FEW_LATENTS
    made += looking.sections(tested, rows, pipeline, latents=latents, title=title, name=name)
  return made
