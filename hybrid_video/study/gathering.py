"""A study's runs in one place: `study.json` for programs and `table.md` for people.

In: a study and its work directory. Out: these two files there. Runs that do not belong in one table are
refused by their names; runs that are missing or have failed are counted.
"""

from collections.abc import Sequence
import itertools
import logging
import re
from typing import Any

from etils import epath

from hybrid_video import errors, files
from hybrid_video.analysis import uncertainty
from hybrid_video.analysis.predictions import COMPARED, Predictions
from hybrid_video.report import results_file
from hybrid_video.study import states, table
from hybrid_video.study.settings import AS_PUBLISHED, Row, Run, Study

log = logging.getLogger("hybrid_video")

STUDY, TABLE = "study.json", "table.md"
_NUMBERS = ("test", "validation", "train")
# Settings that decide what a run is tested on.
_DATA = (
  "dataset", "data_dir", "made_films", "made_seed", "made_look", "made_gap_seconds", "test_share", "folds",
)  # fmt: skip


class MixedRunsError(errors.UserError):
  """Runs that cannot stand in one table; the message names them and what differs."""


def write(study: Study, workdir: epath.Path) -> dict[str, Any]:
  """Gathers the runs of all machines, and gives what `study.json` holds.

  Raises:
    MixedRunsError: finished runs of other protocols, splits or data than the others.
    PredictionsError: predictions of a finished run cannot be read.
  """
  gathered = gather(study, workdir)
  files.write_json(workdir / STUDY, gathered)
  files.write_text(workdir / TABLE, table.markdown(gathered))
  log.info("Gathered: %s and %s", workdir / STUDY, workdir / TABLE)
  return gathered


def gather(study: Study, workdir: epath.Path) -> dict[str, Any]:
  """What `study.json` holds; raises as `write`."""
  runs, answers = [], {}
  for run in study.runs:
    state = states.state_of(workdir, run)
    outcome = results_file.read(workdir / run.folder)
    if outcome and state != states.DONE:
      _refuse_other(run, outcome, workdir)
    done = (outcome or None) if state == states.DONE else None
    if done and run.has_accuracy:
      answers[run.folder] = Predictions.read(workdir / run.folder)
    runs.append(_described(run, state, done))
  _check_together(study, runs, answers)
  in_table = {run.row.name for run in study.runs if run.has_accuracy}
  rows = [
    _row(study, row, form, runs, answers)
    for row in study.rows
    for form in study.forms
    if form in row.forms and row.name in in_table
  ]
  return {
    "title": study.title,
    "question": study.question,
    "published_elsewhere": _published_elsewhere(study),
    "asks": [list(pair) for pair in study.asks],
    "seeds": study.seeds,
    "splits": study.splits,
    "forms": study.forms,
    "rows": [row.to_json() for row in study.rows],
    "runs": runs,
    "table": rows,
    "comparisons": _comparisons(study, answers),
  }


def _published_elsewhere(study: Study) -> str:
  """The data sets of published numbers that are others than those measured here, otherwise nothing."""
  measured = {run.experiment.dataset for run in study.runs}
  on = {row.published_on for row in study.rows} - {""}
  # Of a set under another layout, the name begins alike.
  return ", ".join(sorted(one for one in on if not all(name.startswith(one) for name in measured)))


def _refuse_other(run: Run, outcome: dict[str, Any], workdir: epath.Path) -> None:
  """Refuses results of another experiment, unless a run failed that was to replace them."""
  if (workdir / run.folder / states.FAILED).exists():
    return
  lines = states.differences(run, outcome)
  if lines:
    raise MixedRunsError(
      f"{run.folder}: its results are those of another experiment than the study's:\n"
      + "".join(f"  {line}\n" for line in lines)
      + "Run the study's command with the settings that made them, or remove that folder."
    )


def _described(run: Run, state: str, outcome: dict[str, Any] | None) -> dict[str, Any]:
  described: dict[str, Any] = {
    "row": run.row.name,
    "form": run.form,
    "split": run.split,
    "seed": run.seed,
    "state": state,
    "workdir": run.folder,
  }
  if outcome is None:
    return described
  return described | {
    "results": {name: outcome[name] for name in _NUMBERS if name in outcome},
    "parameters": outcome["parameters"],
    "multiply_accumulates": outcome.get("multiply_accumulates"),
    "evaluation_clips_per_second": outcome.get("evaluation_clips_per_second"),
    "protocol": outcome["protocol"],
    "majority_class": _majority_class(outcome),
    "peak_memory": outcome.get("peak_memory"),
    "selected_on_test": outcome.get("selected_on_test", False),
    "tested_step": outcome["step"],
    "seconds": outcome["seconds"],
  }


def _majority_class(outcome: dict[str, Any]) -> float | None:
  """The share of test videos that a constant answer gets right; None where the analysis is missing."""
  number = outcome.get("analysis", {}).get("numbers", {}).get("majority_class")
  return None if number is None else number["value"]


def _labels(predictions: Predictions) -> dict[str, int]:
  return dict(zip(predictions.names.tolist(), predictions.labels.tolist(), strict=True))


def _words(protocol: str) -> str:
  """A protocol without what training has found."""
  return re.sub(r"step \d+", "a step", protocol)


def _test_key(run: Run) -> tuple[Any, ...]:
  values = run.experiment.to_json()
  return (run.split, *(values.get(name) for name in _DATA))


def _check_together(
  study: Study, runs: Sequence[dict[str, Any]], answers: dict[str, Predictions]
) -> None:
  """Checks that runs that are asked for the same tests were given the same.

  Raises:
    MixedRunsError: see `write`.
  """
  protocols: dict[Any, tuple[str, str]] = {}
  tested: dict[Any, tuple[str, Predictions]] = {}
  for run, described in zip(study.runs, runs, strict=True):
    if run.folder not in answers:
      continue
    experiment = run.experiment
    key = (run.form, experiment.evaluation, experiment.stored, experiment.training_share)
    words = _words(described["protocol"])
    other, first = protocols.setdefault(key, (run.folder, words))
    if words != first:
      raise MixedRunsError(
        f"{other} and {run.folder} were evaluated by different protocols, and cannot stand in one table:\n"
        f"  {first}\n  {words}\nRemove the folder that is wrong; the study's command makes it again."
      )
    ours = answers[run.folder]
    other, theirs = tested.setdefault(_test_key(run), (run.folder, ours))
    our_labels, their_labels = _labels(ours), _labels(theirs)
    common = our_labels.keys() & their_labels.keys()
    same = ours.class_names == theirs.class_names and common
    if not same or any(our_labels[video] != their_labels[video] for video in common):
      raise MixedRunsError(
        f"{other} and {run.folder} were tested on different data (classes, labels, or no common video), and "
        "cannot stand in one table. Remove the folder that is wrong; the study's command makes it again."
      )


def _row(
  study: Study,
  row: Row,
  form: str,
  runs: Sequence[dict[str, Any]],
  answers: dict[str, Predictions],
) -> dict[str, Any]:
  """A row of the table in one form: means over its runs, and what is missing."""
  own = [one for one in runs if one["row"] == row.name and one["form"] == form]
  done = [one for one in own if one["workdir"] in answers]
  described: dict[str, Any] = {
    "row": row.name,
    "label": row.label,
    "form": form,
    "as_published": form == AS_PUBLISHED,
    "states": {state: sum(one["state"] == state for one in own) for state in states.STATES},
    "published": dict(row.published),
    "source": row.source,
    "axes": dict(row.axes),
    "missing_predictions": 0,
  }
  if not done:
    return described
  tests = [one["results"]["test"] for one in done]
  of_split = _by_split([one for one in study.runs if one.folder in answers], answers)
  described |= {
    "parameters": done[0]["parameters"],
    "multiply_accumulates": done[0]["multiply_accumulates"],
    "evaluation_clips_per_second": _mean([one["evaluation_clips_per_second"] for one in done]),
    "majority_class": _mean([one["majority_class"] for one in done]),
    "peak_memory": _mean([(one["peak_memory"] or {}).get("bytes") for one in done]),
    "protocol": _words(done[0]["protocol"]),
    "mean": {name: _mean([test.get(name) for test in tests]) for name in tests[0]},
    "sd": {name: _sd([test.get(name) for test in tests]) for name in tests[0]},
    "missing_predictions": sum(
      len(of_split[_test_key(run)] - set(answers[run.folder].names.tolist()))
      for run in study.runs
      if run.row is row and run.form == form and run.folder in answers
    ),
  }
  found = uncertainty.interval(_predictions(study, row, form, answers))
  return described | {
    "interval": {"video_top1": _limits(found)},
    "interval_words": found.words,
  }


def _by_split(runs: Sequence[Run], answers: dict[str, Predictions]) -> dict[Any, set[str]]:
  """All videos that any run of the same tests has."""
  videos: dict[Any, set[str]] = {}
  for run in runs:
    videos.setdefault(_test_key(run), set()).update(answers[run.folder].names.tolist())
  return videos


def _predictions(
  study: Study, row: Row, form: str, answers: dict[str, Predictions]
) -> list[Predictions]:
  """Those of a row's finished runs in one form."""
  return [
    answers[run.folder]
    for run in study.runs
    if run.row is row and run.form == form and run.folder in answers
  ]


def _comparisons(study: Study, answers: dict[str, Predictions]) -> list[dict[str, Any]]:
  """Paired tests: of two rows in one form, and of two forms of one row, where tests are the same."""
  of_data = {
    (run.row.name, run.form): _test_key(run)[1:] for run in study.runs if run.folder in answers
  }
  candidates = [
    (row, form) for form in study.forms for row in study.rows if (row.name, form) in of_data
  ]
  found: list[dict[str, Any]] = []
  for (one, form), (two, other_form) in itertools.combinations(candidates, 2):
    same_data = of_data[one.name, form] == of_data[two.name, other_form]
    if not same_data or (one is not two and form != other_form):
      continue
    first = _predictions(study, one, form, answers)
    second = _predictions(study, two, other_form, answers)
    # Splits that only one of them has come to are not compared.
    splits = {run.protocol.get("split", 0) for run in first} & {
      run.protocol.get("split", 0) for run in second
    }
    if not splits:
      continue
    first, second = (
      [run for run in runs if run.protocol.get("split", 0) in splits] for runs in (first, second)
    )
    # That the runs of one form were judged alike is checked; rows may differ in their clips, and
    # forms in everything but the data.
    compared = uncertainty.compare(second, first, may_differ=_may_differ(form == other_form))
    found.append(
      {
        "rows": [one.name, two.name],
        "forms": [form, other_form],
        "videos": compared.difference.videos,
        "groups": compared.difference.groups,
        "videos_of_one_alone": compared.only_first + compared.only_second,
        "difference": compared.difference.value,
        "interval": _limits(compared.difference),
        "interval_over_runs": _limits(compared.over_runs) if compared.over_runs else None,
        "p": compared.p_value,
        "words": compared.words,
      }
    )
  adjusted = uncertainty.holm([one_found["p"] for one_found in found])
  for one_found, p_value in zip(found, adjusted, strict=True):
    one_found["p_holm"] = p_value
  return found


def _limits(interval: uncertainty.Interval) -> list[float | None]:
  return [interval.low, interval.high]


def _may_differ(same_form: bool) -> tuple[str, ...]:
  differing = ("views", "selection") if same_form else ("views", "selection", "aggregation")
  assert set(differing) <= set(COMPARED)
  return differing


def _known(values: Sequence[float | None]) -> list[float]:
  return [value for value in values if value is not None]


def _mean(values: Sequence[float | None]) -> float | None:
  known = _known(values)
  return uncertainty.spread(known).mean if known else None


def _sd(values: Sequence[float | None]) -> float | None:
  """Of a sample; one value has none."""
  known = _known(values)
  return uncertainty.spread(known).std if known else None
