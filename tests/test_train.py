"""Whole runs, small: from video files to results.json, interrupted, resumed and evaluated."""

import errno
import json
import os
import shutil

from conftest import (
  REAL_CLIPS,
  REAL_LISTS,
  programs_kept_in,
  run_training,
  small_demo,
  write_lists,
)
import jax
import numpy as np
from PIL import Image
import pytest

from hybrid_video import (
  checkpoints,
  compilation,
  evaluate,
  experiment,
  files,
  guards,
  resuming,
  sharding,
)
from hybrid_video.datasets import preparation
from hybrid_video.report import figures, results, writers
from hybrid_video.tasks import registry
import input_pipeline


def run_evaluation(config, workdir):
  return evaluate.run(experiment.from_config(config), workdir, input_pipeline)


def test_results_hold_what_was_run_and_what_came_out(finished):
  config, workdir, returned = finished
  written = json.loads((workdir / "results.json").read_text())
  assert written == json.loads(json.dumps(returned))
  assert written["config"]["model"]["name"] == "hybrid"
  assert (written["dataset"], written["split"]) == ("made_actions", 1)
  assert written["protocol"].startswith(
    "uniform windows, the fewest that cover each video: 8 frames evenly over 2 s"
  )
  assert "of stored frames of 38x50" in written["protocol"]
  assert "validation" not in written
  parts = written["parameters"]
  assert parts["total"] == parts["cnn"] + parts["attention"] + parts["head"] > 0
  test = written["test"]
  assert test["videos"] == 8 and test["clips"] >= 8
  for name in ("video_top1", "video_top5", "clip_top1", "shuffled_video_top1"):
    assert 0 <= test[name] <= 1
  assert test["loss"] > 0
  assert written["missing"] == {"count": 0, "allowed": False}
  assert len(written["params_digest"]) == 64
  assert written["step"] == 6
  assert written["parameters_tested"] == {"which": "last", "step": 6, "averaged": False}
  compiled = written["compilation"]
  assert compiled["programs"] > 0 and compiled["from_cache"] == 0
  assert 0 < compiled["seconds"] < written["seconds"]
  assert config.is_locked


def test_figures_are_pictures_with_something_on_them(finished):
  _, workdir, _ = finished
  for name in ("learning_curves", "confusion", "clips"):
    picture = np.asarray(Image.open(workdir / "figures" / f"{name}.png").convert("RGB"))
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 10


def test_a_figure_that_fails_is_named_and_takes_no_results_with_it(
  finished, tmp_path, monkeypatch, logged
):
  _, workdir, outcome = finished

  def fail(*_, **__):
    raise ZeroDivisionError("no room")

  monkeypatch.setattr(figures, "confusion_matrix", fail)
  evaluated = evaluate.run(None, tmp_path, input_pipeline, checkpoint=workdir)
  assert evaluated["test"] == outcome["test"]
  assert json.loads((tmp_path / "results.json").read_text())["test"] == outcome["test"]
  assert (tmp_path / "predictions.npz").is_file()
  confusion = tmp_path / "figures" / "confusion.png"
  assert f"Not made: {confusion}: ZeroDivisionError: no room" in logged.text
  assert logged.messages[-1] == (
    f"Not made: {confusion}. The same command makes them. All results stand."
  )
  drawn = {path.name for path in (tmp_path / "figures").iterdir()}
  assert drawn == {"clips.png", "learning_curves.png", "where_the_model_looks.png"}
  log_lines = (tmp_path / "log.txt").read_text().splitlines()
  assert log_lines[-1].endswith(f"WARNING: {logged.messages[-1]}")


def test_on_a_full_disk_what_can_be_written_is_and_the_same_command_makes_the_rest(
  finished, tmp_path, monkeypatch, logged
):
  _, workdir, outcome = finished
  original = files.write_json

  def full(path, value):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(files, "write_json", full)
    with pytest.raises(results.ReportError, match=r"Not made: .*results.json, .*The same command"):
      evaluate.run(None, tmp_path, input_pipeline, checkpoint=workdir)
  assert f"{tmp_path / 'results.json'}: cannot be written (No space left on device)" in logged.text
  assert "video top-1" in logged.text
  assert not (tmp_path / "results.json").exists()
  assert (tmp_path / "predictions.npz").is_file() and (tmp_path / "figures/clips.png").is_file()
  assert files.write_json is original
  evaluate.run(None, tmp_path, input_pipeline, checkpoint=workdir)
  assert json.loads((tmp_path / "results.json").read_text())["test"] == outcome["test"]


def test_tensorboard_and_history_have_the_training_curve(finished):
  from tensorboard.backend.event_processing import event_accumulator

  _, workdir, _ = finished
  history = writers.read_history(workdir)
  assert [line["step"] for line in history] == [2, 4, 6]
  events = event_accumulator.EventAccumulator(
    str(workdir / "tensorboard"), size_guidance={event_accumulator.TENSORS: 0}
  )
  events.Reload()
  assert {"train/loss", "train/top1", "epoch", "learning_rate", "clips_per_second"} <= set(
    events.Tags()["tensors"]
  )
  assert [event.step for event in events.Tensors("train/loss")] == [2, 4, 6]


def test_a_finished_run_only_evaluates_and_finds_the_same(finished, tmp_path, caplog):
  config, finished_dir, first = finished
  # What it finds is written anew, and other tests read what the run wrote.
  workdir = shutil.copytree(finished_dir, tmp_path / "run")
  with caplog.at_level("INFO", logger="hybrid_video"):
    again = run_training(config, workdir)
  assert "evaluating only" in caplog.text
  assert again["params_digest"] == first["params_digest"]
  assert again["test"] == first["test"]
  evaluated = run_evaluation(config, workdir)
  assert evaluated["test"] == first["test"]
  assert len(writers.read_history(workdir)) == 3


@pytest.fixture
def empty_cache(tmp_path):
  """A persistent cache of programs in a new folder, for this test alone."""
  with programs_kept_in(tmp_path / "programs"):
    yield tmp_path / "programs"


def test_a_run_of_another_length_rate_schedule_and_seed_compiles_nothing(
  finished, made_folder, tmp_path, empty_cache, caplog, monkeypatch
):
  _, workdir, _ = finished
  config = small_demo(made_folder, workdir / "records")
  config.epochs = 2.0
  config.evaluate_shuffled = False
  first = run_training(config, tmp_path / "first")["compilation"]
  assert first["programs"] > 0
  cached = {path.name for path in empty_cache.iterdir()}
  assert any("train_step" in name for name in cached)
  other = config.copy_and_resolve_references()
  other.epochs, other.seed = 1.0, 5
  # The seed would make other films; the run is to differ in training alone.
  records = preparation.load_records(experiment.from_config(config), workdir)
  monkeypatch.setattr(preparation, "load_records", lambda *_: records)
  other.optimizer.update(learning_rate=0.1, schedule="step", warmup_epochs=0.0)
  with caplog.at_level("INFO", logger="hybrid_video"):
    second = run_training(other, tmp_path / "second")["compilation"]
  assert second["programs"] == second["from_cache"] > 0
  assert {path.name for path in empty_cache.iterdir()} == cached
  assert "Compiled up to the first step: " in caplog.text
  assert f"{second['from_cache']} from the cache" in caplog.text


def test_every_list_and_order_is_evaluated_by_the_programs_of_the_first(finished):
  config, workdir, _ = finished
  config = config.copy_and_resolve_references()
  config.validation_share = 0.5
  chosen = experiment.from_config(config)
  records = preparation.load_records(chosen, workdir)
  mesh = sharding.make_mesh()
  task = registry.create(chosen, len(records.class_names), mesh)
  evaluator = evaluate.Evaluator(records, task, chosen, input_pipeline, mesh)
  params, batch_stats = task.initial_variables()
  state = {"params": params, "batch_stats": batch_stats}
  tested = evaluator.run(state, "test")
  with compilation.counted() as compiled:
    again = evaluator.run(state, "test")
    evaluator.run(state, "test", shuffled=True)
    sizes = {evaluator.run(state, which).numbers["clips"] for which in ("train", "validation")}
  assert compiled.programs == 0
  assert again.numbers == tested.numbers
  # Lists of several lengths, of which not all fill their last batch.
  assert len({*sizes, tested.numbers["clips"]}) > 1


# Measured on an x86-64 processor.
GOLDEN_LOSSES = (
  2.295816, 2.269653, 1.984828, 2.521287, 2.307297, 2.108580, 2.204182, 2.146134, 2.171662, 2.151556,
)  # fmt: skip


def test_with_everything_on_a_resumed_run_has_the_losses_of_one_that_was_not_stopped(
  finished, made_folder, tmp_path, monkeypatch, logged
):
  _, workdir, _ = finished
  config = small_demo(made_folder, workdir / "records")
  config.validation_share = 0.5
  config.model.latent_std, config.optimizer.part_rates.attention = 1.0, 1.0
  config.clip.flip = True
  config.clip.crop_mode = "random_resized"
  config.evaluate_shuffled = False
  config.log_every_steps = 1
  config.epochs, config.micro_batches, config.ema_decay = 5.0, 2, 0.8
  config.validation.train_videos = 4
  config.augmentation.update(
    mixup=0.8, cutmix=1.0, label_smoothing=0.1, randaugment_layers=2, erasing=0.5, hue=0.1
  )
  original = writers.HistoryWriter.write_scalars

  def stop_before_the_fifth(self, step, scalars):
    if step == 5:
      raise KeyboardInterrupt
    original(self, step, scalars)

  with monkeypatch.context() as patch:
    patch.setattr(writers.HistoryWriter, "write_scalars", stop_before_the_fifth)
    with pytest.raises(KeyboardInterrupt):
      run_training(config, tmp_path)
  # The step is saved, and what was to be written of it is written by the resumed run.
  assert "Saved step 5" in logged.text
  assert [line["step"] for line in writers.read_history(tmp_path)] == [1, 2, 3, 4]
  assert not (tmp_path / "results.json").exists()
  results = run_training(config, tmp_path)
  history = writers.read_history(tmp_path)
  assert [line["step"] for line in history] == list(range(1, 11))
  losses = [line["train/loss"] for line in history]
  np.testing.assert_allclose(losses, GOLDEN_LOSSES, rtol=2e-3)
  validated = [line for line in history if "validation/loss" in line]
  assert [line["step"] for line in validated] == [2, 4, 6, 8, 10]
  # One of the three training films is held out, and validated as it is evaluated in the end.
  assert results["validation"]["videos"] == 8
  assert results["validation"]["loss"] == validated[-1]["validation/loss"]
  assert results["parameters_tested"] == {"which": "last", "step": 10, "averaged": True}
  assert results["test_raw"]["loss"] != results["test"]["loss"]
  assert "moving averages of the parameters after the last step" in results["protocol"]


def test_another_models_work_directory_is_refused(finished):
  config, workdir, _ = finished
  other = config.copy_and_resolve_references()
  other.model.width = 32
  with pytest.raises(checkpoints.CheckpointError, match=r"model\.width: 16 there, 32"):
    run_training(other, workdir)


def test_evaluating_without_a_checkpoint_says_to_train_first(made_folder, tmp_path):
  config = small_demo(made_folder, tmp_path / "records")
  with pytest.raises(checkpoints.CheckpointError, match="Train first"):
    run_evaluation(config, tmp_path / "new")


def test_an_update_that_is_not_finite_ends_the_run_before_it_and_says_where_it_began(
  finished, made_folder, tmp_path
):
  _, workdir, _ = finished
  config = small_demo(made_folder, workdir / "records")
  # The first step of a warm-up is at a rate of zero.
  config.optimizer.update(learning_rate=1e30, clip_norm=0.0, warmup_epochs=1.0, name="sgd")
  with pytest.raises(guards.TrainingError, match=r"The update of step \d is not finite") as failed:
    run_training(config, tmp_path)
  assert "Lower --config.optimizer.learning_rate" in str(failed.value)
  assert "Its clips are of" in str(failed.value)
  step = int(str(failed.value).split("step ")[1].split()[0])
  saved = checkpoints.read(tmp_path)
  assert saved.step == step - 1
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved.params))
  # Other settings go on from there only if they are asked for.
  config.optimizer.learning_rate = 1e-3
  with pytest.raises(resuming.ResumeError, match=r"optimizer\.learning_rate: 1e"):
    run_training(config, tmp_path)
  config.resume_changed = True
  assert np.isfinite(run_training(config, tmp_path)["test"]["loss"])


def test_training_stops_early_and_the_best_parameters_are_tested(
  finished, made_folder, tmp_path, logged
):
  _, workdir, _ = finished
  config = small_demo(made_folder, workdir / "records")
  config.validation_share, config.test_parameters = 0.5, "best"
  config.epochs, config.evaluate_shuffled = 50.0, False
  # At this rate nothing gets better for long.
  config.optimizer.update(learning_rate=0.3, warmup_epochs=0.0, schedule="constant")
  config.validation.update(metric="loss", patience=2, train_videos=0)
  results = run_training(config, tmp_path)
  validated = [line for line in writers.read_history(tmp_path) if "validation/loss" in line]
  losses = [line["validation/loss"] for line in validated]
  best = int(np.argmin(losses))
  assert len(losses) == best + 3 < 50
  assert results["parameters_tested"]["step"] == validated[best]["step"]
  assert results["validation"]["loss"] == losses[best]
  assert f"the parameters of step {results['step']}, the best by loss" in results["protocol"]
  assert checkpoints.read(tmp_path).step == results["step"]
  # Asked again, it does not train on.
  again = run_training(config, tmp_path)
  assert "evaluating only" in logged.text
  assert (again["test"], again["params_digest"]) == (results["test"], results["params_digest"])


def test_a_finished_run_goes_on_when_it_is_asked_for_more_epochs(finished, tmp_path, logged):
  config, workdir, outcome = finished
  config = config.copy_and_resolve_references()
  shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
  config.epochs = 3.0
  results = run_training(config, tmp_path)
  assert (outcome["step"], results["step"]) == (6, 9)
  assert "--config.epochs: 2.0 before, 3.0 now (cosine schedule" in logged.text
  assert results["params_digest"] != outcome["params_digest"]


@pytest.mark.slow
def test_a_narrow_model_learns_real_clips_by_heart(tmp_path):
  folder = tmp_path / "hmdb51"
  # Two real clips to learn and one to be tested on, as split 3 of the official lists has them.
  write_lists(folder, REAL_LISTS)
  for name in REAL_LISTS:
    (folder / name).symlink_to(REAL_CLIPS / name)
  config = small_demo(folder, tmp_path / "records")
  config.dataset = "hmdb51_layout"
  config.split = 3
  # No training video of golf: that is refused, unless asked for.
  with pytest.raises(ValueError, match="no training video of these classes: golf"):
    run_training(config, tmp_path / "refused")
  config.allow_missing = True
  config.epochs = 80.0
  config.batch_size = 4
  config.eval_batch_size = 4
  config.checkpoint_every_epochs = 80.0
  config.evaluate_shuffled = False
  config.evaluate_train = True
  outcome = run_training(config, tmp_path / "run")
  assert outcome["train"]["videos"] == 2
  assert outcome["train"]["video_top1"] == 1.0
  assert outcome["train"]["clip_top1"] == 1.0
  assert outcome["test"]["videos"] == 1
  assert outcome["classes"] == ["golf", "shoot_bow", "wave"]


def test_a_digest_tells_parameters_apart():
  params = {"b": {"w": np.arange(3.0)}, "a": np.zeros(2)}
  same = {"a": np.zeros(2), "b": {"w": np.arange(3.0)}}
  assert results.params_digest(params) == results.params_digest(same)
  for other in (
    {"a": np.zeros(2), "b": {"w": np.arange(3.0).astype(np.float32)}},
    {"a": np.zeros(2), "b": {"w": np.array([0.0, 1.0, 2.5])}},
    {"a": np.zeros(2), "b": {"v": np.arange(3.0)}},
    {"a": np.zeros((1, 2)), "b": {"w": np.arange(3.0)}},
  ):
    assert results.params_digest(other) != results.params_digest(params)
