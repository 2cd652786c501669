"""Runs that are killed at random moments and started again end as one that never was.

Each run is a copy of a process that has imported everything, so that a start takes a second or two.
"""

import random
import re
import signal
import time

from killed_runs import Runs, assert_equal
from programs import starting
import pytest

# Everything that has a state of its own: MixUp, dropout, averages, accumulation, validation, mid-epoch saves.
SETTINGS = {
  "made_films": 4,
  "stored.height": 38,
  "stored.width": 50,
  "clip.crop": 24,
  "clip.frames": 4,
  "model.cnn_blocks": 1,
  "model.cnn_width": 2,
  "model.latents": 4,
  "model.width": 8,
  "model.self_heads": 1,
  "model.head_dim": 8,
  "model.dropout": 0.1,
  "batch_size": 6,
  "micro_batches": 2,
  "eval_batch_size": 32,
  "ema_decay": 0.9,
  "augmentation.mixup": 0.8,
  "augmentation.label_smoothing": 0.1,
  "validation_share": 0.5,
  "validation.every_steps": 5,
  "test_parameters": "best",
  "epochs": 9.0,
  "log_every_steps": 1,
  "checkpoint_every_steps": 2,
  "evaluate_shuffled": False,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, made_folder):
  folder = tmp_path_factory.mktemp("kills")
  with starting() as start:
    yield Runs(folder, start, "configs/demo.py", SETTINGS, made_folder)


@pytest.fixture(scope="module")
def straight(runs):
  """A run that is never stopped: what it found, and how long one takes that has nothing to compile."""
  code, seconds, _ = runs.run("straight")
  assert code == 0
  results = runs.results("straight")
  return results, seconds - results["compilation"]["seconds"]


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_as_one_that_never_was(runs, straight):
  expected, _ = straight
  rng = random.Random(0)
  for first, last in ((1, 8), (9, 16), (17, 23)):
    assert runs.run("killed", lines=rng.randint(first, last))[0] == -signal.SIGKILL
  assert runs.run("killed")[0] == 0
  assert_equal(runs, "killed", expected, steps=24)


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_its_step_and_ends_as_one_that_never_was(runs, straight):
  expected, _ = straight
  for step, sent in ((4, signal.SIGTERM), (10, signal.SIGINT), (16, signal.SIGHUP)):
    code, _, after = runs.run("stopped", lines=step, sent=sent)
    # Told while a step or a validation compiles, it waits for that; the bound is against hanging.
    assert (code, after < 60) == (128 + sent, True)
    # Not a step is lost.
    said = (runs.folder / "stopped.log").read_text().splitlines()[-1]
    saved = re.fullmatch(rf"Stopped by {sent.name} at step (\d+), saved; .*", said)
    assert saved and int(saved[1]) >= step
    folders = (runs.folder / "stopped" / "checkpoints").iterdir()
    assert max(int(path.name) for path in folders if path.name.isdecimal()) == int(saved[1])
  assert runs.run("stopped")[0] == 0
  assert_equal(runs, "stopped", expected, steps=24)


@pytest.mark.slow
def test_fifty_runs_that_are_killed_end_as_one_that_never_was(runs, straight):
  expected, seconds = straight
  rng = random.Random(1)
  killed = 0
  for number in range(50):
    name = f"killed_{number}"
    while runs.run(name, rng.uniform(0, 1) * seconds)[0] == 0:
      (runs.folder / name).rename(runs.folder / f"ended_{time.monotonic()}")
    killed += 1
    assert runs.run(name)[0] == 0
    assert_equal(runs, name, expected, steps=24)
  assert killed == 50
