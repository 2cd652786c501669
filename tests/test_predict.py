"""Using a trained model: predictions, Python, export, and the start of another run."""

import contextlib
import csv
import dataclasses
import errno
import json
import shutil
import threading
import tracemalloc
import typing

from conftest import REAL_CLIPS, moving_square, run_training
import jax
import numpy as np
import pytest

import hybrid_video
from hybrid_video import (
  checkpoint_description,
  checkpoints,
  configuration,
  evaluate,
  experiment,
  export,
  loading,
  models,
  predict,
  stopping,
  weights,
)
from hybrid_video.analysis import aggregation as aggregations
from hybrid_video.analysis.predictions import Predictions
from hybrid_video.checkpoints import CheckpointError
from hybrid_video.datasets import made_actions, preparation, splits
from hybrid_video.experiment import Experiment
from hybrid_video.report import line_files, results
from hybrid_video.sampling.plans import evaluation_views


@pytest.fixture(scope="module")
def records(finished):
  _, workdir, _ = finished
  saved = checkpoints.read(workdir).description
  return preparation.load_records(saved.experiment, workdir)


@pytest.fixture(scope="module")
def test_videos(records, made_folder):
  """The files of the test list, in the list's order."""
  names = records.names[splits.select(records, 1, "test")].tolist()
  files = {path.name: path for path in made_folder.rglob("*.avi")}
  return [files[name] for name in names]


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
  _, workdir, _ = finished
  return export.run(tmp_path_factory.mktemp("exported"), checkpoint=workdir)


def test_predicting_the_test_videos_gives_the_numbers_of_the_results(finished, test_videos):
  _, workdir, outcome = finished
  with np.load(workdir / "predictions.npz") as evaluated:
    names, labels = evaluated["names"].tolist(), evaluated["labels"]
    probabilities, views = evaluated["probabilities"], evaluated["view_videos"]
    view_probabilities = evaluated["view_probabilities"]
    classes = evaluated["class_names"].tolist()
  predictor = predict.Predictor(loading.read(workdir))
  predictions = list(predictor.predict(test_videos))
  assert [path.name for path in test_videos] == names
  assert list(predictor.class_names) == classes == outcome["classes"]
  assert [p.views for p in predictions] == np.bincount(views).tolist()
  np.testing.assert_array_equal([p.probabilities for p in predictions], probabilities)
  right = np.mean(
    [p.probabilities.argmax() == label for p, label in zip(predictions, labels, strict=True)]
  )
  assert right == outcome["test"]["video_top1"]
  for video in range(len(names)):
    of_views = view_probabilities[views == video]
    np.testing.assert_allclose(of_views.mean(0), probabilities[video], rtol=1e-6)


@pytest.mark.parametrize("aggregation", ["mean_logits", "majority_vote"])
def test_results_analysis_and_new_videos_follow_the_aggregation(
  finished, test_videos, tmp_path, aggregation
):
  import input_pipeline

  config, trained, _ = finished
  changed = config.copy_and_resolve_references()
  changed.evaluation.aggregation = aggregation
  changed.evaluation.clips, changed.evaluation.crops = 2, 3
  chosen = experiment.from_config(changed)
  outcome = evaluate.run(chosen, tmp_path, input_pipeline, checkpoint=trained)
  found = Predictions.read(tmp_path)
  assert np.bincount(found.view_videos).tolist() == [6] * len(found)
  assert found.aggregation == aggregation
  np.testing.assert_array_equal(found.scores(), found.probabilities)
  assert aggregations.WORDS[aggregation] in outcome["protocol"]
  numbers = outcome["analysis"]["numbers"]
  for name in ("video_top1", "video_top5", "clip_top1", "clip_top5", "videos"):
    value = numbers[name]["value"] if name in numbers else outcome["analysis"][name]
    assert value == pytest.approx(outcome["test"][name])
  assert json.loads((tmp_path / "results.json").read_text())["analysis"] == outcome["analysis"]
  assert found.tag_names == ("body", "camera", "people", "view", "quality")
  name = found.names[0]
  assert "_".join(found.tags[0]) in name
  saved = loading.read(trained)
  description = dataclasses.replace(saved.description, experiment=chosen)
  predictor = predict.Predictor(dataclasses.replace(saved, description=description))
  predicted = np.stack([p.probabilities for p in predictor.predict(test_videos)])
  np.testing.assert_allclose(predicted, found.probabilities, atol=1e-6)


def test_predictions_are_files_that_people_and_programs_read(
  finished, test_videos, tmp_path, logged
):
  _, workdir, outcome = finished
  folder = tmp_path / "mine"
  (folder / "deep er").mkdir(parents=True)
  shutil.copy(test_videos[0], folder / "a.avi")
  shutil.copy(test_videos[1], folder / "deep er" / 'b, "quoted".avi')
  (folder / "notes.txt").write_text("not a video")
  broken = tmp_path / "broken.avi"
  broken.write_bytes(test_videos[2].read_bytes()[:3000])
  place = tmp_path / "predictions"
  outcome_of_run = predict.run(place, [folder, broken], checkpoint=workdir)
  assert outcome_of_run == predict.Outcome(predicted=2, broken=1)
  with (place / "predictions.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == [
    "video",
    *[f"top{rank}{what}" for rank in (1, 2, 3, 4, 5) for what in ("", "_probability")],
  ]
  assert [row["video"] for row in rows] == [
    str(folder / "a.avi"),
    str(folder / "deep er" / 'b, "quoted".avi'),
    str(broken),
  ]
  assert rows[2]["top1"] == ""
  lines = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
  for row, line in zip(rows[:2], lines[:2], strict=True):
    shares = line["probabilities"]
    assert list(shares) == outcome["classes"] and sum(shares.values()) == pytest.approx(1)
    best = sorted(shares, key=shares.get, reverse=True)[:5]
    assert [row[f"top{rank}"] for rank in (1, 2, 3, 4, 5)] == best
    assert float(row["top1_probability"]) == shares[best[0]]
    assert line["views"] >= 1
  assert str(broken) in lines[2]["error"] and "probabilities" not in lines[2]
  assert f"{100 * lines[0]['probabilities'][rows[0]['top1']]:.1f} %" in logged.text
  assert f"Not predicted: {lines[2]['error']}" in logged.text
  assert "1 of 3 videos could not be predicted" in logged.text


def test_videos_in_a_folder_are_known_by_content_and_the_rest_is_logged(tmp_path, logged):
  folder = tmp_path / "mine"
  folder.mkdir()
  made_actions.write_avi(folder / "b.avi", moving_square(3), 25)
  shutil.copy(folder / "b.avi", folder / "a")
  for name in ("c.MTS", "d.xyz", "e.txt", "Thumbs.db"):
    (folder / name).touch()
  assert [path.name for path in predict.find_videos([folder])] == ["a", "b.avi", "c.MTS"]
  assert "2 file(s) that are no videos" in logged.text
  assert f"{folder / 'd.xyz'}: cannot be opened as a video: the file is empty" in logged.text


@pytest.mark.parametrize("batch_size", [4, 12, 64])
def test_the_batch_size_changes_no_prediction(finished, test_videos, batch_size):
  _, workdir, _ = finished
  saved = loading.read(workdir)
  usual = list(predict.Predictor(saved).predict(test_videos[:3]))
  other = list(predict.Predictor(saved, batch_size).predict(test_videos[:3]))
  for a, b in zip(usual, other, strict=True):
    assert (a.video, a.views) == (b.video, b.views)
    np.testing.assert_allclose(a.probabilities, b.probabilities, rtol=1e-4)


def test_nothing_to_predict_is_a_clear_error(finished, tmp_path):
  _, workdir, _ = finished
  for named, message in (
    ([tmp_path / "none.avi"], "no such file or folder"),
    ([tmp_path], "empty"),
    ([], "No video is named"),
  ):
    with pytest.raises(
      predict.PredictionError if named != [tmp_path] else ValueError, match=message
    ):
      predict.run(tmp_path / "out", named, checkpoint=workdir)
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder" / "a.txt").write_text("a")
  with pytest.raises(predict.PredictionError, match="no video file in this folder"):
    predict.run(tmp_path / "out", [tmp_path / "folder"], checkpoint=workdir)
  with pytest.raises(CheckpointError, match="Train first"):
    predict.run(tmp_path / "out", [REAL_CLIPS])


def test_a_model_is_loaded_ready_for_clips(finished, records, test_videos):
  _, workdir, outcome = finished
  trained = hybrid_video.load(workdir)
  assert list(trained.class_names) == outcome["classes"]
  assert trained.step == outcome["step"]
  assert isinstance(trained.experiment, Experiment)
  clips = trained.preprocess(test_videos[0])
  views = evaluation_views(
    records, splits.select(records, 1, "test")[:1], trained.experiment.evaluation
  )
  assert clips.shape == (len(views), 8, 24, 24, 3) and clips.dtype == np.float32
  shares = np.asarray(jax.nn.softmax(trained.model(clips))).mean(0)
  with np.load(workdir / "predictions.npz") as evaluated:
    np.testing.assert_allclose(shares, evaluated["probabilities"][0], rtol=1e-4, atol=1e-6)


def test_an_exported_file_serves_like_the_work_directory(finished, exported, test_videos):
  _, workdir, _ = finished
  whole, file = hybrid_video.load(workdir), hybrid_video.load(exported)
  assert (file.class_names, file.step) == (whole.class_names, whole.step)
  assert file.experiment.to_json() == whole.experiment.to_json()
  clips = whole.preprocess(test_videos[0])
  np.testing.assert_array_equal(file.model(clips), whole.model(clips))
  a, b = (
    next(predict.Predictor(loading.read(source)).predict(test_videos[:1]))
    for source in (workdir, exported)
  )
  np.testing.assert_array_equal(a.probabilities, b.probabilities)


def test_a_file_without_a_description_says_what_it_is_for(finished, exported, tmp_path):
  import safetensors.numpy

  bare = tmp_path / "bare.safetensors"
  safetensors.numpy.save_file(safetensors.numpy.load_file(exported), bare)
  with pytest.raises(CheckpointError, match=r"--mode=export wrote.*--config\.init_from"):
    hybrid_video.load(bare)


def _variables(path):
  saved = loading.read(path)
  return {
    jax.tree_util.keystr(p): leaf
    for p, leaf in jax.tree_util.tree_leaves_with_path((saved.params, saved.batch_stats))
  }


@pytest.mark.parametrize("kind", ["work directory", "checkpoint", "exported file"])
def test_another_run_starts_from_a_trained_model(finished, exported, tmp_path, kind, logged):
  config, workdir, outcome = finished
  source = {
    "work directory": workdir,
    "checkpoint": workdir / "checkpoints" / str(outcome["step"]),
    "exported file": exported,
  }[kind]
  other = config.copy_and_resolve_references()
  other.init_from = str(source)
  other.optimizer.learning_rate = other.optimizer.warmup_epochs = 0.0
  other.epochs = 0.1
  other.evaluate_shuffled = False
  other.clip.flip = True
  started = run_training(other, tmp_path)
  assert started["step"] == 1
  # With a rate of 0, only BatchNorm's running statistics move.
  before, after = _variables(workdir), _variables(tmp_path)
  assert before.keys() == after.keys()
  same = {name for name in before if np.array_equal(before[name], after[name])}
  assert {name for name in before if name.startswith("[0]")} <= same
  assert started["params_digest"] == outcome["params_digest"]


def test_a_head_of_other_classes_starts_fresh_when_a_run_starts_from_another(finished):
  _, workdir, _ = finished
  saved = loading.read(workdir)
  options = saved.description.experiment.model_options
  model = models.create("hybrid", num_classes=3, seed=5, **options)
  fresh = models.split(model)[1]
  ported = weights.load_trees(
    model, saved.params, saved.batch_stats, source="a run", replace_head=True
  )
  _, params, _ = models.split(model)
  assert "head" in ported.fresh
  np.testing.assert_array_equal(
    params["head"]["linear"]["kernel"], fresh["head"]["linear"]["kernel"]
  )
  np.testing.assert_array_equal(
    params["attention"]["latents"], saved.params["attention"]["latents"]
  )
  with pytest.raises(ValueError, match="head"):
    weights.load_trees(model, saved.params, saved.batch_stats, source="a run", replace_head=False)


def test_a_pretraining_model_has_no_classes_to_predict():
  config = configuration.default_config()
  configuration.use_model(
    config,
    "videomae_small_pretraining",
    width=16,
    depth=1,
    heads=2,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=2,
  )
  config.clip.crop = 32
  config.model.mask_ratio = 0.5
  description = checkpoints.Description(experiment.from_config(config), ("a",))
  params, batch_stats = models.split(loading.build(description))[1:]
  saved = checkpoints.SavedModel(description, params, batch_stats, 3, "runs/pretraining")
  advice = r"pretrained without labels.*:finetune,model=videomae_small .*init_from=runs/pretraining"
  with pytest.raises(predict.PredictionError, match=advice):
    predict.Predictor(saved)
  # Nor is it evaluated as a classifier; its own loss is.
  checkpoint_description.check_same_task(description, description.experiment, saved.source)
  classifier = experiment.from_config(configuration.default_config())
  with pytest.raises(checkpoints.CheckpointError, match=advice):
    checkpoint_description.check_same_task(description, classifier, saved.source)
  of_classifier = checkpoints.Description(classifier, ("a", "b"))
  with pytest.raises(
    checkpoints.CheckpointError, match="r2plus1d_18, which was trained for classification"
  ):
    checkpoint_description.check_same_task(of_classifier, description.experiment, "runs/own")


class _Saved:
  source, words = "a model", "step 1"


class _FakePredictor:
  """Predictions without a model, as many as there are videos; some of them end the run."""

  class_names = tuple(f"class {i}" for i in range(400))
  ends: typing.ClassVar[dict[int, BaseException]] = {}

  def __init__(self, saved):
    pass

  def predict(self, videos):
    for i, video in enumerate(videos):
      if i in self.ends:
        raise self.ends[i]
      shares = np.full(400, 0.5 / 399, np.float32)
      shares[i % 400] = 0.5
      yield predict.Prediction(str(video), shares, 1)


@pytest.fixture
def no_model(monkeypatch):
  monkeypatch.setattr(predict, "Predictor", _FakePredictor)
  monkeypatch.setattr(predict.loading, "read", lambda _: _Saved)
  monkeypatch.setattr(predict, "find_videos", lambda named: list(named))


@pytest.mark.parametrize("end", [KeyboardInterrupt(), stopping.Stopped("SIGTERM", 143)])
def test_what_was_predicted_before_a_run_was_stopped_is_there(
  no_model, tmp_path, monkeypatch, end, logged
):
  monkeypatch.setattr(_FakePredictor, "ends", {3: end})
  with pytest.raises(type(end)):
    predict.run(tmp_path, ["a", "b", "c", "d", "e"])
  lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
  with (tmp_path / "predictions.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [line["video"] for line in lines] == [row["video"] for row in rows] == ["a", "b", "c"]
  assert [row["top1"] for row in rows] == ["class 0", "class 1", "class 2"]
  assert "Predictions of 3 of 5 videos" in logged.text and "Replacing" not in logged.text
  assert (tmp_path / "log.txt").read_text().rstrip().endswith(f"Stopped: {type(end).__name__}")
  monkeypatch.setattr(_FakePredictor, "ends", {})
  assert predict.run(tmp_path, ["d", "e"]) == predict.Outcome(predicted=2, broken=0)
  lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
  assert [line["video"] for line in lines] == ["d", "e"]
  assert f"Replacing what an earlier run predicted: {tmp_path}" in logged.text


def test_a_video_s_line_is_in_the_file_before_the_next_one_is_predicted(
  no_model, tmp_path, monkeypatch
):
  def predict_and_look(self, videos):
    for number, video in enumerate(videos):
      assert (tmp_path / "predictions.jsonl").read_text().count("\n") == number
      yield predict.Prediction(video, np.full(400, 0.0025, np.float32), 1)

  monkeypatch.setattr(_FakePredictor, "predict", predict_and_look)
  predict.run(tmp_path, ["a", "b", "c"])
  assert (tmp_path / "predictions.csv").read_text().count("\n") == 4


def test_many_videos_take_no_more_memory_than_few(no_model, tmp_path):
  peaks = []
  for count in (20, 150):
    videos = [f"{i}.avi" for i in range(count)]
    tracemalloc.start()
    predict.run(tmp_path, videos)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  # 130 predictions more are 210 kB as arrays and 2 MB as text.
  assert peaks[1] - peaks[0] < 100_000


def test_a_full_disk_while_predicting_is_one_clear_error_and_the_lines_stand(
  no_model, tmp_path, monkeypatch
):
  original, written = line_files.LineFile.write, []

  def full(self, lines):
    if self._path.name == "predictions.jsonl" and len(written) == 2:
      raise OSError(errno.ENOSPC, "No space left on device")
    written.append(lines)
    original(self, lines)

  monkeypatch.setattr(line_files.LineFile, "write", full)
  monkeypatch.setattr(predict.log_file, "attached", lambda _: contextlib.nullcontext())
  with pytest.raises(
    results.WorkdirError, match=r"predictions\.jsonl: cannot be written \(No space"
  ):
    predict.run(tmp_path, ["a", "b", "c"])
  assert (tmp_path / "predictions.jsonl").read_text().count("\n") == 2


def test_several_processes_lines_are_joined_in_the_order_of_the_videos(tmp_path, monkeypatch):
  processes, shared, here = 3, {}, threading.local()
  barrier = threading.Barrier(processes)

  def share_all(value):
    shared[here.index] = value
    barrier.wait(timeout=30)
    values = [shared[index] for index in range(processes)]
    barrier.wait(timeout=30)
    return values

  monkeypatch.setattr(predict.hosts, "share_all", share_all)
  monkeypatch.setattr(predict.jax, "process_index", lambda: here.index)
  monkeypatch.setattr(predict, "_SHARED_LINES", 2)
  whole = tmp_path / "predictions.jsonl"
  videos = [f"video {i}" for i in range(11)]
  paths = [whole, *(tmp_path / f"predictions.{i}.jsonl" for i in (1, 2))]

  def run(index):
    here.index = index
    own = videos[index::processes]
    paths[index].write_text("".join(f"{video}\n" for video in own))
    barrier.wait(timeout=30)
    predict._join_processes(paths[index], len(own), whole)

  threads = [threading.Thread(target=run, args=(index,)) for index in range(processes)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert whole.read_text().splitlines() == videos
  assert list(tmp_path.iterdir()) == [whole]
