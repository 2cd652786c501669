"""Runs of main.py that are killed or told to stop, and started again.

In: a config and its settings. Out: exit codes and results. Each run is a copy of a process that has imported
everything, so that a start takes a second or two.
"""

from collections.abc import Mapping
import json
import os
import pathlib
import signal
import subprocess

from programs import Start
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


class Runs:
  """Starts `main.py` again and again."""

  def __init__(
    self,
    folder: pathlib.Path,
    start: Start,
    config: str,
    settings: Mapping[str, object],
    videos: pathlib.Path,
  ):
    self.folder = folder
    self._flags = [f"--config={config}", f"--config.data_dir={videos}"]
    self._flags.append(f"--config.records_dir={folder / 'records'}")
    self._flags += [f"--config.{setting}={value}" for setting, value in settings.items()]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    self._process = start("-c", _RUNS, env=environment, stdin=subprocess.PIPE)

  def run(
    self, name: str, seconds: float = -1, lines: int = 0, sent: int = signal.SIGKILL
  ) -> tuple[int, float, float]:
    """Starts or resumes a run, which is sent a signal after some seconds or lines of its history.

    Gives its exit code, -9 where it was killed, the seconds it took, and those after the signal.
    """
    log, workdir = self.folder / f"{name}.log", f"--workdir={self.folder / name}"
    arguments = [str(log), workdir, *self._flags]
    history = str(self.folder / name / "history.jsonl")
    order = json.dumps([arguments, seconds, history, lines, sent])
    print(order, file=self._process.stdin, flush=True)
    code, took, after = json.loads(self._process.stdout.readline())
    assert code in (0, -9, 128 + sent), log.read_text()
    return code, took, after

  def results(self, name: str) -> dict:
    return json.loads((self.folder / name / "results.json").read_text())


def assert_equal(runs: Runs, name: str, expected: dict, steps: int) -> None:
  """A run has the parameters, numbers, history and events of the one called "straight", of so many steps."""
  results = runs.results(name)
  for what in ("params_digest", "test", "test_raw", "step", "parameters_tested", "validation"):
    assert results.get(what) == expected.get(what), what
  history = writers.read_history(runs.folder / name)
  assert [line["step"] for line in history] == list(range(1, steps + 1))
  before = writers.read_history(runs.folder / "straight")
  timed = ("clips_per_second", "seconds_left", "waiting_share")
  for line, of_straight in zip(history, before, strict=True):
    for key in of_straight.keys() - set(timed):
      assert line[key] == of_straight[key], (line["step"], key)
  events = event_accumulator.EventAccumulator(
    str(runs.folder / name / "tensorboard"), size_guidance={event_accumulator.TENSORS: 0}
  )
  events.Reload()
  assert [event.step for event in events.Tensors("train/loss")] == list(range(1, steps + 1))
