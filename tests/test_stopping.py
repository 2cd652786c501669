"""Signals and notices that ask a run to stop: noted in the loop, at once elsewhere."""

import os
import re
import signal
import subprocess
import time

import metadata_server
import pytest

from hybrid_video import stopping
from hybrid_video.stopping import Stopped, StopRequest

SIGNALS = [
  (signal.SIGTERM, 143),
  (signal.SIGUSR1, 143),
  (signal.SIGINT, 130),
  (signal.SIGHUP, 129),
]


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
  """No machine of Google's, and no signal ignored by whoever started the tests."""
  monkeypatch.setattr(stopping.google_metadata, "is_here", lambda: False)
  before = {number: signal.getsignal(number) for number, _ in SIGNALS}
  for number, _ in SIGNALS:
    signal.signal(number, signal.SIG_DFL)
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def send(number: int) -> None:
  os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_within_the_loop_is_noted_with_its_exit_code(number, code):
  with pytest.raises(Stopped) as raised, StopRequest() as stop, stop.held():
    assert stop.requested is None
    send(number)
    send(number if number != signal.SIGINT else signal.SIGTERM)
    name = signal.Signals(number).name
    assert (stop.requested, stop.code) == (name, code)
    raise stop.stopped(7)
  assert (raised.value.code, raised.value.step) == (code, 7)
  line = f"Stopped by {name} at step 7, saved; the same command goes on from here."
  assert str(raised.value) == line


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_elsewhere_stops_at_once_and_passes_what_goes_on_after_errors(number, code):
  with pytest.raises(Stopped) as raised, StopRequest():
    try:
      send(number)
      time.sleep(5)
    except Exception:
      pytest.fail("what catches errors caught it")
  assert (raised.value.code, raised.value.step) == (code, None)


def test_a_request_that_the_loop_leaves_unanswered_stops_after_it():
  with pytest.raises(Stopped, match="Stopped by SIGTERM;"), StopRequest() as stop:
    with stop.held():
      send(signal.SIGTERM)
    pytest.fail("went on")


def test_handlers_are_those_of_before_afterwards():
  def mine(*_):
    pass

  signal.signal(signal.SIGTERM, mine)
  wakeup = signal.set_wakeup_fd(-1)
  with StopRequest():
    assert signal.getsignal(signal.SIGTERM) != mine
  assert signal.getsignal(signal.SIGTERM) == mine
  assert signal.set_wakeup_fd(wakeup) == -1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_was_ignored_at_the_start_stays_ignored(number):
  signal.signal(number, signal.SIG_IGN)
  with StopRequest() as stop:
    send(number)
    time.sleep(0.05)
    assert stop.requested is None


def test_a_second_ctrl_c_ends_the_loop_at_once():
  with pytest.raises(KeyboardInterrupt), StopRequest() as stop, stop.held():
    send(signal.SIGINT)
    assert stop.requested == "SIGINT"
    send(signal.SIGINT)
    time.sleep(5)


def test_another_process_asked_to_stop_stops_this_one_as_terminated():
  stopped = StopRequest().stopped(3)
  assert stopped.code == 143
  assert "a request to another process at step 3" in str(stopped)


@pytest.mark.parametrize(
  ("key", "before", "after"),
  [
    ("instance/preempted", "FALSE", "TRUE"),
    ("instance/maintenance-event", "NONE", "TERMINATE_ON_HOST_MAINTENANCE"),
  ],
)
def test_a_notice_of_the_machines_end_is_a_request(key, before, after, monkeypatch):
  monkeypatch.undo()
  monkeypatch.setattr(stopping, "_POLL_SECONDS", 0.05)
  values = {"instance/maintenance-event": "MIGRATE_ON_HOST_MAINTENANCE", key: before}
  with metadata_server.serving(values) as address:
    monkeypatch.setenv("GCE_METADATA_HOST", address)
    with pytest.raises(Stopped) as raised, StopRequest() as stop:
      with stop.held():
        time.sleep(0.3)
        assert stop.requested is None
        values[key] = after
        until = time.monotonic() + 5
        while stop.requested is None:
          assert time.monotonic() < until
          time.sleep(0.01)
      pytest.fail("went on")
  assert (raised.value.reason, raised.value.code) == ("a preemption notice", 143)
  monkeypatch.undo()


_UNBREAKABLE = """
import ctypes
from hybrid_video import stopping
stopping.GRACE_SECONDS = 0.5
lock = (ctypes.c_char * 64)()
libc = ctypes.CDLL(None)
with stopping.StopRequest(lambda *told: print(*told, flush=True)):
  print("in", flush=True)
  # A deadlock with itself, in native code.
  libc.pthread_mutex_lock(lock)
  libc.pthread_mutex_lock(lock)
"""


def test_native_code_that_does_not_end_is_left_after_a_while(start_program):
  process = start_program("-c", _UNBREAKABLE, stderr=subprocess.PIPE)
  assert process.stdout.readline() == "in\n"
  # It is in there soon after its line.
  time.sleep(0.5)
  process.send_signal(signal.SIGTERM)
  told, message = process.communicate(timeout=20)
  assert process.returncode == 143
  assert told == "was stopped by SIGTERM 143\n"
  assert message == "Stopped by SIGTERM; the same command goes on from what is saved.\n"


def _wait_for_a_video(process, folder):
  """Until a program has begun to write one somewhere in a folder."""
  until = time.monotonic() + 60
  while not list(folder.rglob("*.avi*")):
    assert time.monotonic() < until and process.poll() is None
    time.sleep(0.05)


def test_a_command_that_is_still_making_its_data_stops_and_leaves_no_process(
  start_program, tmp_path
):
  process = start_program(
    "main.py",
    "--config=configs/demo.py",
    f"--workdir={tmp_path / 'run'}",
    "--config.made_films=5000",
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
  )
  _wait_for_a_video(process, tmp_path / "run")
  began = time.monotonic()
  process.send_signal(signal.SIGTERM)
  _, message = process.communicate(timeout=20)
  assert time.monotonic() - began < 10
  assert process.returncode == 143
  assert re.search(r"Stopped by SIGTERM; .*\n$", message), message
  assert "Traceback" not in message
  # Nothing that it started is left.
  with pytest.raises(ProcessLookupError):
    for _ in range(100):
      os.killpg(process.pid, 0)
      time.sleep(0.05)


_MAKING_WITH_A_POOL_THAT_SEES_ITS_PROCESSES_DIE = """
from concurrent import futures
import pathlib, sys, time
from hybrid_video import stopping
from hybrid_video.datasets import made_actions

class SlowToShutDown(futures.ProcessPoolExecutor):
  def shutdown(self, *arguments, **options):
    time.sleep(0.5)
    super().shutdown(*arguments, **options)

if __name__ == "__main__":
  futures.ProcessPoolExecutor = SlowToShutDown
  try:
    with stopping.StopRequest():
      made_actions.make(pathlib.Path(sys.argv[1]), films=100, workers=2)
  except stopping.Stopped as stopped:
    print(stopped)
"""


def test_data_in_the_making_stops_without_a_word_from_its_pool(start_program, tmp_path):
  # The pool notices that its processes are gone before it is told to shut down.
  program = tmp_path / "program.py"
  program.write_text(_MAKING_WITH_A_POOL_THAT_SEES_ITS_PROCESSES_DIE)
  process = start_program(str(program), str(tmp_path / "set"), stderr=subprocess.STDOUT)
  _wait_for_a_video(process, tmp_path)
  process.send_signal(signal.SIGTERM)
  said, _ = process.communicate(timeout=20)
  assert said.endswith("Stopped by SIGTERM; the same command goes on from what is saved.\n"), said
  assert "Traceback" not in said
  assert os.listdir(tmp_path) == ["program.py"]
