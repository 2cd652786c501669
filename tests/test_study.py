"""Studies: runs are skipped, resumed, shared out, fail alone, and stand in one table or are refused."""

import dataclasses
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import threading
import time

from conftest import small_demo
import numpy as np
import pytest

from hybrid_video import evaluate, experiment, files, stopping
from hybrid_video.analysis.predictions import PredictionsError
from hybrid_video.settings import SettingError
from hybrid_video.study import (
  child,
  configured,
  gathering,
  overview,
  running,
  settings,
  states,
  table,
)
from hybrid_video.study.settings import Row
import input_pipeline

NAMES = [f"film{film}_{clip}" for film in range(6) for clip in range(4)]


def make(table, made_folder="videos", seeds=(0, 1), forms=("corrected",), asks=(), **chosen):
  """A small study on the made films."""
  config = small_demo(made_folder, "{workdir}/records")
  config.dataset = "hmdb51_layout"
  config.evaluate_shuffled = False
  # Of three training films one.
  config.validation_share = 0.5
  config.epochs = 2.0
  configured.use_study(
    config, "Small", "Which is better?", table, seeds=seeds, forms=forms, asks=asks
  )
  config.study.update(chosen)
  return configured.study_of(config)


ROWS = (
  Row("narrow", "narrow model", {"model.width": 8}, {"video_top1": 0.7}, "elsewhere"),
  Row("wide", "wide model", {"model.width": 16}),
)


def pretend(run, folder, names=NAMES, wrong=8, classes=("a", "b"), **changed):
  """What a finished run leaves, without training it."""
  folder.mkdir(parents=True, exist_ok=True)
  labels = np.arange(len(names)) % 2
  said = np.where(np.arange(len(names)) < wrong, 1 - labels, labels)
  np.savez(
    folder / "predictions.npz",
    names=np.array(names),
    class_names=np.array(classes),
    labels=labels,
    probabilities=np.eye(2)[said],
    view_probabilities=np.eye(2)[said],
    view_videos=np.arange(len(names)),
    groups=np.array([name.split("_")[0] for name in names]),
  )
  outcome = {
    "config": run.experiment.to_json(),
    "protocol": "one window; the parameters of step 7, the best",
    "selected_on_test": run.form == "as_published",
    "test": {"video_top1": float(np.mean(said == labels)), "loss": 0.5, "videos": len(names)},
    "validation": {"video_top1": 0.5},
    "parameters": {"cnn": 1, "attention": 2, "head": 3, "total": 1234567},
    "multiply_accumulates": 2_000_000_000,
    "evaluation_clips_per_second": 10.0,
    "step": 7,
    "seconds": 60.0,
  }
  files.write_json(folder / "results.json", {**outcome, **changed})


@pytest.fixture
def trained(monkeypatch):
  """Runs that end at once; a row that is named in it fails."""
  calls: list[str] = []

  def pretended(study, workdir, failing=(), in_use=()):
    by_folder = {workdir / run.folder: run for run in study.runs}

    def in_place_of_a_process(request, console, stop):
      folder = pathlib.Path(request["workdir"])
      run = by_folder[folder]
      calls.append(run.folder)
      if run.row.name in failing:
        console.write(b"a line\nError: There is no such thing. Make one.\n")
        return 1
      if run.row.name in in_use:
        console.write(b"Error: It is in use by process 1.\n")
        return child.IN_USE
      pretend(run, folder, wrong=8 if run.row.name == "narrow" else 2)
      return 0

    monkeypatch.setattr(running, "_child", in_place_of_a_process)
    return running.train(study, workdir, "input_pipeline", stopping.StopRequest())

  return pretended, calls


def test_finished_runs_are_skipped_and_a_failed_one_costs_no_other(tmp_path, trained, logged):
  train, calls = trained
  study = make(ROWS)
  assert train(study, tmp_path, failing=("narrow",)) == 1
  assert len(calls) == 4
  failed = tmp_path / "runs/corrected/narrow/split1_seed0/failed.json"
  assert json.loads(failed.read_text())["error"] == "There is no such thing. Make one."
  assert "2 of 4 runs failed: runs/corrected/narrow/split1_seed0" in logged.text
  assert re.search(r"wide +corrected +2 +0 +0 +0 +91\.7 %", logged.text)
  assert re.search(r"narrow +corrected +0 +0 +2 +0 +–", logged.text)
  calls.clear()
  assert train(study, tmp_path) == 0
  assert calls == [f"runs/corrected/narrow/split1_seed{seed}" for seed in (0, 1)]
  assert not failed.exists()
  # Other settings are another experiment.
  calls.clear()
  assert train(make((ROWS[0], Row("wide", "wide model", {"model.width": 24}))), tmp_path) == 0
  assert calls == [f"runs/corrected/wide/split1_seed{seed}" for seed in (0, 1)]


def test_runs_train_at_once_on_cores_of_their_own(tmp_path, monkeypatch, logged):
  cores = sorted(os.sched_getaffinity(0))
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(5)})
  both, given = threading.Barrier(2), []
  study = make(ROWS, at_once=2)
  by_folder = {str(tmp_path / run.folder): run for run in study.runs}

  def in_place_of_a_process(request, console, stop):
    given.append(request["cores"])
    # One after the other, the first would wait for the second in vain.
    both.wait(60)
    pretend(by_folder[request["workdir"]], pathlib.Path(request["workdir"]))
    return 0

  monkeypatch.setattr(running, "_child", in_place_of_a_process)
  assert running.train(study, tmp_path, "input_pipeline", stopping.StopRequest()) == 0
  assert sorted(given) == [(0, 1)] * 2 + [(2, 3, 4)] * 2
  assert "2 runs train at once" in logged.text
  # What is left takes half the time: two runs of a minute each.
  left = {run.folder: states.LEFT for run in study.runs} | {study.runs[0].folder: states.DONE}
  left[study.runs[1].folder] = states.RUNNING
  told = overview.text(study, tmp_path, left, at_once=2)
  assert re.search(r"wide +corrected +0 +1 +0 +1", told)
  assert told.endswith("2 of 4 runs are done or run elsewhere, about 1m00s left.")
  gathered = json.loads((tmp_path / "study.json").read_text())
  assert [run["state"] for run in gathered["runs"]] == [states.DONE] * 4
  # As many runs as cores, and never two beside an accelerator.
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*cores[:1]})
  assert running._shares(4) == [(cores[0],)]
  monkeypatch.delenv("JAX_PLATFORMS")
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(5)})
  monkeypatch.setattr(running, "_ACCELERATORS", ("null",))
  assert running._shares(4) == [tuple(range(5))]
  with pytest.raises(SettingError, match=r"study\.at_once is 0: expected 1 or more"):
    make(ROWS, at_once=0)


PRETRAINING = Row("before", "pretraining", {
  "model.name": "hybrid_pretraining", "model.mask_patch": (2, 8, 8), "clip.crop": 32,
})  # fmt: skip
AFTER = Row("after", "pretrained", {"model.width": 16}, starts_from="before")


def test_what_rows_start_from_is_trained_before_them(tmp_path, monkeypatch, logged):
  study = make((AFTER, ROWS[0], PRETRAINING), seeds=(0,), asks=[("after", "narrow")])
  by_folder = {str(tmp_path / run.folder): run for run in study.runs}
  begun = []

  def in_place_of_a_process(request, console, stop):
    run = by_folder[request["workdir"]]
    begun.append(run.row.name)
    if run.row.name == "after":
      assert request["experiment"]["init_from"] == str(
        tmp_path / "runs/corrected/before/split1_seed0"
      )
      pretend(run, tmp_path / run.folder, config=request["experiment"])
    elif run.has_accuracy:
      pretend(run, tmp_path / run.folder)
    else:
      pretend(run, tmp_path / run.folder, test={"loss": 0.9, "videos": 3})
    return 0

  monkeypatch.setattr(running, "_child", in_place_of_a_process)
  assert running.train(study, tmp_path, "input_pipeline", stopping.StopRequest()) == 0
  assert sorted(begun[:2]) == ["before", "narrow"] and begun[2:] == ["after"]
  # What only pretrains has no accuracy, and is in no table.
  gathered = json.loads((tmp_path / "study.json").read_text())
  assert [row["row"] for row in gathered["table"]] == ["after", "narrow"]
  assert [run["state"] for run in gathered["runs"]] == [states.DONE] * 3
  # In another place the runs are still those that were asked for.
  begun.clear()
  shutil.copytree(tmp_path / "runs", tmp_path / "moved" / "runs")
  assert running.train(study, tmp_path / "moved", "input_pipeline", stopping.StopRequest()) == 0
  assert not begun


def test_what_starts_from_a_failed_run_fails_and_waits_for_another_machines(
  tmp_path, monkeypatch, logged
):
  study = make((PRETRAINING, AFTER), seeds=(0,))
  monkeypatch.setattr(running, "_child", lambda request, console, stop: 1)
  assert running.train(study, tmp_path, "input_pipeline", stopping.StopRequest()) == 1
  failed = json.loads((tmp_path / "runs/corrected/after/split1_seed0/failed.json").read_text())
  assert "starts from runs/corrected/before/split1_seed0, which failed" in failed["error"]
  # The second machine has the run that starts from the first's.
  part = make((PRETRAINING, AFTER), seeds=(0,), part="2/2")
  assert running.train(part, tmp_path / "shared", "input_pipeline", stopping.StopRequest()) == 0
  assert "another machine has not trained yet" in logged.text
  for first in ("nothing", "after"):
    with pytest.raises(SettingError, match=f"'after' starts from '{first}'"):
      make((PRETRAINING, dataclasses.replace(AFTER, starts_from=first)))


def test_a_request_to_stop_lets_no_other_run_begin(tmp_path, monkeypatch):
  stop = stopping.StopRequest()
  begun = []

  def in_place_of_a_process(request, console, stop):
    begun.append(request["workdir"])
    stop.requested = "SIGTERM"
    return stopping.TERMINATED

  monkeypatch.setattr(running, "_child", in_place_of_a_process)
  with pytest.raises(stopping.Stopped):
    running.train(make(ROWS), tmp_path, "input_pipeline", stop)
  assert begun == [str(tmp_path / "runs/corrected/narrow/split1_seed0")]


def test_a_run_of_another_machine_is_left_alone(tmp_path, trained, logged):
  train, _ = trained
  assert train(make(ROWS), tmp_path, in_use=("wide",)) == 0
  assert "It is in use by process 1." in logged.text
  assert not list(tmp_path.rglob("failed.json"))


def test_parts_share_all_runs_out_and_the_whole_gathers_them(tmp_path, trained):
  train, calls = trained
  parts = [make(ROWS, part=f"{number}/3") for number in (1, 2, 3)]
  for study in parts:
    assert train(study, tmp_path) == 0
  whole = make(ROWS)
  assert sorted(calls) == sorted(run.folder for run in whole.runs)
  assert not (tmp_path / "study.json").exists()
  calls.clear()
  assert train(whole, tmp_path) == 0
  assert not calls
  gathered = json.loads((tmp_path / "study.json").read_text())
  assert [run["state"] for run in gathered["runs"]] == ["done"] * 4
  (comparison,) = gathered["comparisons"]
  assert comparison["difference"] == pytest.approx(6 / 24)
  assert comparison["interval"][0] <= 0.25 <= comparison["interval"][1]
  for part in ("0/3", "4/3", "2", "a/b"):
    with pytest.raises(SettingError, match=r"study\.part"):
      make(ROWS, part=part)


def test_the_table_has_published_and_measured_numbers_and_marks_the_optimistic(tmp_path, trained):
  train, _ = trained
  train(make(ROWS, forms=settings.FORMS), tmp_path)
  text = (tmp_path / "table.md").read_text()
  rows = [line for line in text.splitlines() if line.startswith("| narrow model |")]
  assert rows[0].startswith("| narrow model | as published † | 70.0 % | 66.7 % |")
  assert rows[1].startswith("| narrow model | corrected | 70.0 % | 66.7 % |")
  assert "| 2 of 2 | 1,234,567 | 2.000 G | 10.0 |" in rows[0]
  assert "the best epoch chosen on the test list, which is optimistic" in text
  # A row in its two forms, and two rows in one form, each once.
  assert len([line for line in text.splitlines() if line.startswith("| wide model – ")]) == 2
  assert "| narrow model | corrected – as published † |" in text


def test_pairs_that_are_asked_about_and_foreign_numbers_are_told(tmp_path):
  published = Row("narrow", "narrow model", {"model.width": 8}, {"video_top1": 0.7}, "x", "ucf101")
  asks = [("wide", "narrow"), ("wide", "third")]
  study = make((published, ROWS[1], Row("third", "third", {"model.width": 24})), asks=asks)
  gathered = gathering.gather(study, tmp_path)
  assert gathered["asks"] == [["wide", "narrow"], ["wide", "third"]]
  assert gathered["published_elsewhere"] == "ucf101"
  assert "published top-1 (ucf101)" in table.markdown(gathered)
  assert not gathering.gather(make(ROWS), tmp_path)["published_elsewhere"]
  # Of rows that are left out, nothing is asked.
  fewer = make((published, *study.rows[1:]), asks=asks, rows=("narrow", "wide"))
  assert fewer.asks == (("wide", "narrow"),)
  with pytest.raises(SettingError, match=r"asks about a row 'wid' .* Did you mean wide"):
    make(ROWS, asks=[("wid", "narrow")])


def test_a_study_of_one_row_and_of_nothing_is_gathered(tmp_path, trained):
  train, _ = trained
  assert train(make(ROWS[:1], seeds=(0,)), tmp_path) == 0
  gathered = json.loads((tmp_path / "study.json").read_text())
  assert gathered["comparisons"] == [] and gathered["table"][0]["sd"]["video_top1"] is None
  assert "There are no two rows to compare." in (tmp_path / "table.md").read_text()
  empty = table.markdown(gathering.gather(make(ROWS), tmp_path / "empty"))
  assert "- wide model, corrected: 2 left" in empty


def test_runs_that_do_not_belong_together_are_refused_by_their_names(tmp_path):
  study = make(ROWS, seeds=(0,))
  first, second = study.runs
  pretend(first, tmp_path / first.folder)

  def refused(message, **how):
    pretend(second, tmp_path / second.folder, **how)
    with pytest.raises(gathering.MixedRunsError, match=message) as error:
      gathering.gather(study, tmp_path)
    assert second.folder in str(error.value)

  refused("different protocols", protocol="three crops; the parameters of step 7, the best")
  refused("different data", classes=("a", "c"))
  refused("different data", names=[f"other_{i}" for i in range(24)])
  refused("different data", names=NAMES[1:])
  other = {**second.experiment.to_json(), "split": 2}
  refused("split: 2 there, 1 asked for", config=other)
  # The step that was best may differ.
  pretend(
    second, tmp_path / second.folder, protocol="one window; the parameters of step 9, the best"
  )
  gathering.gather(study, tmp_path)


def test_missing_predictions_are_counted_and_left_out_of_the_comparison(tmp_path):
  study = make(ROWS, seeds=(0,))
  first, second = study.runs
  pretend(first, tmp_path / first.folder)
  pretend(second, tmp_path / second.folder, names=NAMES[:20])
  gathered = gathering.gather(study, tmp_path)
  assert [row["missing_predictions"] for row in gathered["table"]] == [0, 4]
  assert gathered["comparisons"][0]["videos"] == 20
  assert gathered["comparisons"][0]["videos_of_one_alone"] == 4
  assert "no predictions for 4 videos" in table.markdown(gathered)
  (tmp_path / second.folder / "predictions.npz").write_bytes(b"no zip")
  with pytest.raises(PredictionsError, match=r"predictions\.npz: cannot be read"):
    gathering.gather(study, tmp_path)


def test_rows_and_choices_that_cannot_be_are_refused():
  with pytest.raises(SettingError, match="Two rows of the study have the name 'Narrow'"):
    make((*ROWS, Row("Narrow", "another")))
  with pytest.raises(SettingError, match="name is that of its folder"):
    make((Row("../up", "x"),))
  with pytest.raises(SettingError, match=r"row 'x' sets 'model\.widht'.*model\.width"):
    make((Row("x", "x", {"model.widht": 1}),))
  with pytest.raises(SettingError, match="row 'x'"):
    make((Row("x", "x", {"model.width": "many"}),))
  with pytest.raises(SettingError, match=r"no such row\. Did you mean wide"):
    make(ROWS, rows=("wid",))
  with pytest.raises(SettingError, match="expected as_published or corrected"):
    make(ROWS, forms=("publishd",))
  with pytest.raises(SettingError, match=r"study\.seeds"):
    make(ROWS, seeds=(1, 1))
  assert [row.name for row in make(ROWS, rows=("wide,narrow",)).rows] == ["narrow", "wide"]
  assert pickle.loads(pickle.dumps(ROWS[0])) == ROWS[0]


def test_each_form_has_its_four_things():
  published, corrected = (
    run.experiment for run in make(ROWS[:1], seeds=(3,), forms=settings.FORMS).runs
  )
  assert published.optimizer.freeze == ("attention/latents", "attention/cross")
  assert (published.mean[0], published.std[0]) == (0.45, 0.225)
  assert published.selects_on_test and published.validation_share == 0
  assert not corrected.optimizer.freeze and not corrected.selects_on_test
  assert corrected.mean[0] == 0.43216 and corrected.validation_share == 0.5
  assert {one.test_parameters for one in (published, corrected)} == {"best"}
  assert {one.seed for one in (published, corrected)} == {3}
  assert published.evaluation.aggregation == "majority_vote"
  assert corrected.evaluation.aggregation == "mean_probabilities"


def test_the_best_epoch_of_the_test_list_is_marked_on_everything(made_folder, tmp_path):
  study = make(ROWS[1:], made_folder, seeds=(0,), forms=("as_published",))
  (run,) = study.runs
  from hybrid_video import train

  made = experiment.Experiment.from_json(running.placed(run, tmp_path))
  outcome = train.run(made, tmp_path / "run", input_pipeline)
  assert outcome["selected_on_test"]
  assert outcome["protocol"].endswith("the best epoch was chosen on the test list: optimistic")
  assert "validation" not in outcome
  again = evaluate.run(None, tmp_path / "run", input_pipeline)
  assert "optimistic" in again["protocol"]
  assert outcome["multiply_accumulates"] > 0


@pytest.mark.slow
def test_a_study_is_stopped_resumed_and_goes_on_after_a_failing_row(
  made_folder, tmp_path, start_program
):
  config = tmp_path / "study.py"
  config.write_text(
    "from test_study import ROWS, small_demo, experiment, Row\n"
    "def get_config():\n"
    f"  config = small_demo({str(made_folder)!r}, '{{workdir}}/records')\n"
    "  config.dataset, config.evaluate_shuffled = 'hmdb51_layout', False\n"
    "  config.validation_share, config.epochs = 0.5, 30.0\n"
    "  rows = (*ROWS, Row('broken', 'broken', {'test_share': 0.3, 'data_dir': '/nowhere'}))\n"
    "  configured.use_study(config, 'Small', 'Which?', rows, seeds=(0,), forms=('corrected',))\n"
    "  return config.lock()\n"
  )
  arguments = ["main.py", f"--config={config}", f"--workdir={tmp_path / 'study'}"]
  process = start_program(*arguments)
  history = tmp_path / "study/runs/corrected/narrow/split1_seed0/history.jsonl"
  while not history.exists():
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.2)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == stopping.TERMINATED, output
  assert not list(tmp_path.rglob("failed.json")) and not list(tmp_path.rglob("results.json"))
  process = start_program(*arguments)
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 1, output
  assert "1 of 3 runs failed: runs/corrected/broken" in output
  assert "Error" not in (history.parent / "console.txt").read_text()
  gathered = json.loads((tmp_path / "study/study.json").read_text())
  assert [run["state"] for run in gathered["runs"]] == [states.DONE, states.DONE, states.FAILURE]
  assert len(list((tmp_path / "study").glob("records/*"))) == 1
