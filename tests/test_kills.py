"""Runs that are killed at random moments and started again end as one that never was.

Each run is a copy of a process that has imported everything, so that a start takes a second or two.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import time

from programs import Start, starting
import pytest
from tensorboard.backend.event_processing import event_accumulator

from hybrid_video.report import writers

# For each line of arguments, main.py in a copy of this process, killed after so many seconds, -1 never, or
# once its history has so many lines.
_RUNS = """
import json, os, pathlib, runpy, signal, sys, time, warnings
import input_pipeline
import hybrid_video.command, hybrid_video.train

for line in sys.stdin:
  arguments, seconds, history, lines, sent = json.loads(line)
  with warnings.catch_warnings(action="ignore"):  # No thread of its own runs yet.
    child = os.fork()
  if not child:
    output = os.open(arguments[0], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
      os.dup2(output, number)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
      signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["main.py", *arguments[1:]]
    runpy.run_path("main.py", run_name="__main__")
    break
  began, status, sent_at = time.monotonic(), (0, 0), None
  history = pathlib.Path(history)
  while not status[0]:
    is_time = 0 <= seconds < time.monotonic() - began
    is_there = lines and history.exists() and history.read_bytes().count(10) >= lines
    if sent_at is None and (is_time or is_there):
      os.kill(child, sent)
      sent_at = time.monotonic()
    time.sleep(0.01)
    status = os.waitpid(child, os.WNOHANG)
  now = time.monotonic()
  code = os.waitstatus_to_exitcode(status[1])
  print(json.dumps([code, now - began, now - (sent_at or now)]), flush=True)
"""

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


class Runs:
  """Starts `main.py` again and again."""

  def __init__(
    self, folder: pathlib.Path, start: Start, videos: pathlib.Path, records: pathlib.Path
  ):
    self.folder = folder
    self._data = [f"--config.data_dir={videos}", f"--config.records_dir={records}"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    self._process = start("-c", _RUNS, env=environment, stdin=subprocess.PIPE)

  def run(
    self, name: str, seconds: float = -1, lines: int = 0, sent: int = signal.SIGKILL
  ) -> tuple[int, float, float]:
    """Starts or resumes a run, which is sent a signal after some seconds or lines of its history.

    Gives its exit code, -9 where it was killed, the seconds it took, and those after the signal.
    """
    flags = [f"--config.{setting}={value}" for setting, value in SETTINGS.items()]
    log, workdir = self.folder / f"{name}.log", f"--workdir={self.folder / name}"
    arguments = [str(log), "--config=configs/demo.py", workdir, *self._data, *flags]
    history = str(self.folder / name / "history.jsonl")
    order = json.dumps([arguments, seconds, history, lines, sent])
    print(order, file=self._process.stdin, flush=True)
    code, took, after = json.loads(self._process.stdout.readline())
    assert code in (0, -9, 128 + sent), log.read_text()
    return code, took, after

  def results(self, name: str) -> dict:
    return json.loads((self.folder / name / "results.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, made_folder):
  folder = tmp_path_factory.mktemp("kills")
  with starting() as start:
    yield Runs(folder, start, made_folder, folder / "records")


@pytest.fixture(scope="module")
def straight(runs):
  """A run that is never stopped: what it found, and how long one takes that has nothing to compile."""
  code, seconds, _ = runs.run("straight")
  assert code == 0
  results = runs.results("straight")
  return results, seconds - results["compilation"]["seconds"]


def _assert_equal(runs, name, expected):
  results = runs.results(name)
  for what in ("params_digest", "test", "test_raw", "step", "parameters_tested", "validation"):
    assert results[what] == expected[what], what
  history = writers.read_history(runs.folder / name)
  steps = [line["step"] for line in history]
  assert steps == sorted(set(steps)) == list(range(1, 25))
  before = writers.read_history(runs.folder / "straight")
  timed = ("clips_per_second", "seconds_left", "waiting_share")
  for line, of_straight in zip(history, before, strict=True):
    for key in of_straight.keys() - set(timed):
      assert line[key] == of_straight[key], (line["step"], key)
  events = event_accumulator.EventAccumulator(
    str(runs.folder / name / "tensorboard"), size_guidance={event_accumulator.TENSORS: 0}
  )
  events.Reload()
  assert [event.step for event in events.Tensors("train/loss")] == steps


def test_a_run_that_is_killed_three_times_ends_as_one_that_never_was(runs, straight):
  expected, seconds = straight
  rng = random.Random(0)
  killed = 0
  while killed < 3:
    code, _, _ = runs.run("killed", rng.uniform(0.3, 1) * seconds)
    if code == 0:
      # It came to its end first: once more, from the beginning.
      (runs.folder / "killed").rename(runs.folder / f"ended_{time.monotonic()}")
    else:
      killed += 1
  assert runs.run("killed")[0] == 0
  _assert_equal(runs, "killed", expected)


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
  _assert_equal(runs, "stopped", expected)


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
    _assert_equal(runs, name, expected)
  assert killed == 50
