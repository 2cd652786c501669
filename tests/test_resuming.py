"""Going on with a run: which settings may be others, what is said, and where the clips go on."""

import dataclasses
import json

import numpy as np
import pytest

from hybrid_video import configuration, experiment, resuming, validation
from hybrid_video.meter import Length
from hybrid_video.validation import Tracker


def _experiment(**changes):
  config = configuration.default_config()
  for name, value in changes.items():
    group, _, last = name.replace("__", ".").rpartition(".")
    (config[group] if group else config)[last] = value
  return experiment.from_config(config)


TRACKER = Tracker("video_top1", 0.5, 20, 1)
PROGRESS = resuming.Progress(30, TRACKER, "digest", 100, {"loss": 1.5, "steps": 2.0})


def _check(saved, wanted, data="digest", videos=100):
  return resuming.check(saved, PROGRESS, 30, wanted, data, videos)


def test_progress_survives_json():
  text = json.dumps(PROGRESS.to_json(), allow_nan=False)
  assert resuming.Progress.from_json(json.loads(text)) == PROGRESS


HARMLESS = {
  "log_every_steps": 3,
  "data_dir": "elsewhere",
  "fsdp": 2,
  "validation__patience": 4,
  "evaluation__clips": 7,
  "model__remat": "blocks",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_leaves_every_update_what_it_is_may_change_and_is_said(name, caplog):
  with caplog.at_level("INFO", logger="hybrid_video"):
    assert _check(_experiment(), _experiment(**{name: HARMLESS[name]})) == PROGRESS
  assert f"--config.{name.replace('__', '.')}: " in caplog.text


def test_more_epochs_are_said_with_the_schedule(caplog):
  with caplog.at_level("INFO", logger="hybrid_video"):
    assert _check(_experiment(epochs=10.0), _experiment(epochs=20.0)) == PROGRESS
  assert "--config.epochs: 10.0 before, 20.0 now (cosine schedule, worked out for 20" in caplog.text


CHANGING = {
  "training_share": 0.5,
  "seed": 1,
  "batch_size": 16,
  "split": 2,
  "dataset": "ucf101",
  "micro_batches": 2,
  "optimizer__learning_rate": 0.5,
  "optimizer__schedule": "constant",
  "augmentation__mixup": 0.3,
  "clip__crop": 96,
  "stored__height": 200,
  "model__dtype": "bfloat16",
  "mean": (0.1, 0.2, 0.3),
}


@pytest.mark.parametrize("name", CHANGING)
def test_what_changes_the_meaning_is_listed_and_has_to_be_asked_for(name, caplog):
  path, before = f"--config.{name.replace('__', '.')}", _experiment()
  with pytest.raises(resuming.ResumeError, match="at step 30") as refused:
    _check(before, _experiment(**{name: CHANGING[name]}))
  assert f"{path}: " in str(refused.value)
  assert "--config.resume_changed=True" in str(refused.value)
  with caplog.at_level("WARNING", logger="hybrid_video"):
    _check(before, _experiment(**{name: CHANGING[name], "resume_changed": True}))
  assert f"Changed from step 30 on: {path}" in caplog.text


def test_other_videos_in_the_same_folder_are_noticed():
  with pytest.raises(resuming.ResumeError, match="training videos: 100 before, 99 now"):
    _check(_experiment(), _experiment(), "other", 99)
  with pytest.raises(resuming.ResumeError, match="not the same files, labels or frames"):
    _check(_experiment(), _experiment(), "other", 100)
  went_on = _check(_experiment(), _experiment(resume_changed=True), "other", 99)
  assert (went_on.data, went_on.videos) == ("other", 99)


def test_another_batch_size_goes_on_with_the_next_clip_and_trains_as_many():
  wanted = _experiment(batch_size=12, resume_changed=True)
  progress = _check(_experiment(batch_size=8), wanted)
  before = Length(100, 8, 6.0)
  after = Length(100, 12, 6.0, progress.offset)
  # Step 30 ends where it did: at clip 240 of 600.
  assert after.epoch(30) == before.epoch(30) == 2.4
  assert after.total_steps == 30 + (600 - 240) // 12
  assert after.epoch(after.total_steps) == 6
  # The schedule is that of a training of this batch size, from where it stands.
  assert 30 + after.shift == 240 // 12
  assert before.total_steps == 75 and before.shift == 0


def test_the_best_so_far_is_forgotten_where_validation_is_another():
  before = _experiment(validation_share=0.1)
  same = resuming.with_comparable_best(
    before, PROGRESS, _experiment(validation_share=0.1, epochs=7.0)
  )
  assert same == PROGRESS
  for change in ({"evaluation__clips": 3}, {"validation__metric": "loss"}):
    wanted = _experiment(validation_share=0.1, **change)
    progress = resuming.with_comparable_best(before, PROGRESS, wanted)
    assert progress.tracker == Tracker(wanted.validation.metric_of("classification"))
    assert dataclasses.replace(progress, tracker=TRACKER) == PROGRESS


def test_the_best_is_the_first_of_equals_and_of_a_loss_the_least():
  tracker = Tracker("video_top1")
  for step, value in [(10, 0.5), (20, 0.5), (30, 0.4), (40, 0.6), (50, 0.6)]:
    tracker = tracker.after(step, {"video_top1": value, "loss": 1.0})
  assert tracker == Tracker("video_top1", 0.6, 40, 1)
  loss = Tracker("loss").after(1, {"loss": 2.0}).after(2, {"loss": 1.0}).after(3, {"loss": 1.5})
  assert loss == Tracker("loss", 1.0, 2, 1)


def test_validation_comes_by_epochs_or_steps():
  settings = validation.ValidationSettings
  assert settings().every(12.4) == 12
  assert settings(every_epochs=0.01).every(12.4) == 1
  assert settings(every_steps=7).every(12.4) == 7
  assert not settings(every_epochs=0.0).is_on
  assert settings(every_epochs=0.0, every_steps=5).is_on


def test_the_sample_of_the_training_list_is_always_the_same():
  videos = np.arange(100, 200)
  chosen = validation.train_sample(videos, 10, seed=3)
  assert len(set(chosen.tolist())) == 10 and set(chosen) <= set(videos)
  np.testing.assert_array_equal(chosen, validation.train_sample(videos, 10, seed=3))
  assert np.all(np.diff(chosen) > 0)
  assert not np.array_equal(chosen, validation.train_sample(videos, 10, seed=4))
  assert validation.train_sample(videos, 100, seed=3) is videos
