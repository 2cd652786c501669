"""Decoding in parallel: the order, who is blamed, and that no process is left."""

import ast
from collections.abc import Callable
import errno
import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

from conftest import REAL_CLIPS, REAL_LISTS
import pytest

from hybrid_video.decoding import storing, worker_pool

GOLF, BOW, WAVE = REAL_LISTS
SCALE = storing.StoredScale(24, 32)
LIMITS = storing.DecodingLimits(stall_seconds=1.5)
ROOT = pathlib.Path(__file__).parents[1]


def test_parallel_decoding_keeps_the_order_and_names_broken_files(tmp_path):
  broken = tmp_path / "broken.avi"
  broken.write_bytes(b"")
  paths = [REAL_CLIPS / WAVE, broken, REAL_CLIPS / GOLF]
  alone = list(worker_pool.store_videos(paths, SCALE, workers=1))
  together = list(worker_pool.store_videos(paths, SCALE, workers=2))
  assert together == alone
  assert [index for index, _ in together] == [0, 1, 2]
  assert "empty" in together[1][1]


@pytest.mark.parametrize("settings", [{"workers": 0}, {"workers": -1}])
def test_invalid_settings_are_refused_before_any_work(settings):
  with pytest.raises(ValueError, match="expected"):
    worker_pool.store_videos([], SCALE, **settings)


def test_no_videos_need_no_process():
  assert list(worker_pool.store_videos([], SCALE)) == []


def scripted(
  path: str, scale: storing.StoredScale, progress: Callable[[], None]
) -> storing.StoredVideo:
  """Does in a decoding process what the file's name says."""
  name = pathlib.Path(path).name
  if name.startswith("sleep"):
    time.sleep(600)
  if name.startswith("spin"):
    while True:
      pass
  if name.startswith("slow"):
    # Longer than the limit in all, on the processor and off it, and never without a step.
    for _ in range(6):
      progress()
      computed = time.process_time()
      while time.process_time() - computed < 0.4:
        pass
  if name.startswith("nap"):
    time.sleep(2.5)
  if name.startswith("exit"):
    os._exit(139)
  if name.startswith("segv"):
    os.kill(os.getpid(), signal.SIGSEGV)
  if name.startswith("once"):
    try:
      pathlib.Path(path).touch(exist_ok=False)
    except FileExistsError:
      pass
    else:
      os._exit(1)
  if name.startswith("hungry"):
    held = []
    while True:
      held.append(bytes(2**28))
  if name.startswith("bug"):
    raise KeyError("deep")
  modules = [key for key in ("jax", "tensorflow", "flax") if key in sys.modules]
  return storing.StoredVideo([name.encode(), *(m.encode() for m in modules)], 1.0, 1, 1)


@pytest.mark.parametrize("workers", [1, 3])
def test_only_the_guilty_video_is_blamed(tmp_path, workers):
  bad = {
    "spin": "no further frame in 1.5 s of its decoder",
    "exit": r"crashed twice (exit code 139)",
    "segv": "crashed twice (SIGSEGV)",
    "hungry": "GiB of memory",
    "bug": "KeyError",
  }
  names = list(itertools.chain.from_iterable((f"good{b}", b, f"fine{b}") for b in bad))
  # Time that passes is no time of the decoder's.
  names += ["slow", "nap"]
  paths = [tmp_path / name for name in names]
  results = list(worker_pool.store_videos(paths, SCALE, workers, limits=LIMITS, store=scripted))
  assert [index for index, _ in results] == list(range(len(names)))
  for name, (_, result) in zip(names, results, strict=True):
    if name in bad:
      assert isinstance(result, str)
      assert bad[name] in result and str(tmp_path / name) in result
    else:
      assert not isinstance(result, str), result
      assert result.frames == [name.encode()]


def test_a_crash_that_does_not_repeat_costs_nothing(tmp_path):
  paths = [tmp_path / "good", tmp_path / "once", tmp_path / "fine"]
  results = [r for _, r in worker_pool.store_videos(paths, SCALE, 1, store=scripted)]
  assert [r if isinstance(r, str) else r.frames for r in results] == [
    [b"good"],
    [b"once"],
    [b"fine"],
  ]


def testdecoding_processes_start_without_jax_and_tensorflow(tmp_path):
  # The stored frames name the heavy modules that the process has loaded, besides the file.
  [(_, result)] = worker_pool.store_videos([tmp_path / "x"], SCALE, 1, store=scripted)
  assert result.frames == [b"x"]


def test_what_a_decoding_process_imports_is_light():
  code = (
    "import sys, hybrid_video.decoding.worker_pool\n"
    "heavy = {'jax', 'flax', 'tensorflow', 'tensorflow_datasets', 'etils', 'ml_collections'}\n"
    "print(heavy & set(sys.modules))\n"
    "print(sorted(name for name in sys.modules if name.startswith('hybrid_video.')))\n"
  )
  ended = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    check=True,
  )
  heavy, own = ended.stdout.splitlines()
  assert heavy == "set()"
  names = ("decoding", "errors", "settings")
  assert all(name.split(".")[1] in names for name in ast.literal_eval(own))


def decoding_processes(parent: int) -> list[int]:
  processes = []
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      status = (entry / "stat").read_text().rpartition(")")[2].split()
      command = (entry / "cmdline").read_text()
    except OSError:
      continue
    if int(status[1]) == parent and "spawn_main" in command and status[0] != "Z":
      processes.append(int(entry.name))
  return processes


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_that_cannot_be_started_are_an_error_that_leaves_none(monkeypatch):
  start = multiprocessing.context.SpawnProcess.start
  starts = []

  def second_fails(process):
    starts.append(process)
    if len(starts) == 2:
      raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    start(process)

  monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", second_fails)
  with pytest.raises(worker_pool.WorkerError, match=r"cannot be started .*unavailable"):
    list(worker_pool.store_videos(["a", "b", "c"], SCALE, 3, store=scripted))
  assert len(starts) == 2
  assert decoding_processes(os.getpid()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_leaving_early_leaves_no_process(tmp_path):
  paths = [tmp_path / "good", *(tmp_path / f"sleep{i}" for i in range(8))]
  results = worker_pool.store_videos(paths, SCALE, 2, store=scripted)
  assert next(results)[0] == 0
  assert len(decoding_processes(os.getpid())) == 2
  started = time.monotonic()
  results.close()
  assert decoding_processes(os.getpid()) == []
  assert time.monotonic() - started < 2


_PROGRAM = """
from hybrid_video.decoding import storing, worker_pool
import test_worker_pool

if __name__ == "__main__":
  paths = ["good", "sleep0", "sleep1", "sleep2"]
  scale = storing.StoredScale()
  for index, _ in worker_pool.store_videos(paths, scale, 2, store=test_worker_pool.scripted):
    print("got", index, flush=True)
"""


@pytest.fixture
def decoding_program(tmp_path, start_program):
  """A program that decodes without end in two processes: the program, and their numbers."""
  path = tmp_path / "program.py"
  path.write_text(_PROGRAM)
  program = start_program(path, stderr=subprocess.PIPE)
  assert program.stdout.readline() == "got 0\n"
  children = decoding_processes(program.pid)
  assert len(children) == 2
  return program, children


def are_gone(processes, seconds: float) -> bool:
  until = time.monotonic() + seconds
  while left := [p for p in processes if pathlib.Path(f"/proc/{p}").exists()]:
    if time.monotonic() > until:
      return False
    time.sleep(0.02)
  return not left


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_ends_a_program_and_its_processes(decoding_program):
  program, children = decoding_program
  # As a terminal does it: to the whole group.
  os.killpg(program.pid, signal.SIGINT)
  _, errors = program.communicate(timeout=10)
  assert errors.count("KeyboardInterrupt") == 1
  assert are_gone(children, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_outlives_a_program_that_is_killed(decoding_program):
  program, children = decoding_program
  program.kill()
  # They are in the middle of a file that takes ten minutes, or still importing.
  assert are_gone(children, 20)


def test_a_program_without_a_main_guard_gets_an_error_that_says_so(tmp_path):
  program = tmp_path / "program.py"
  program.write_text(
    "from hybrid_video.decoding import storing, worker_pool\n"
    "print(list(worker_pool.store_videos(['x'], storing.StoredScale(), 1)))\n"
  )
  ended = subprocess.run(
    [sys.executable, program],
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    timeout=60,
  )
  assert ended.returncode != 0
  assert "before it was given a file" in ended.stderr


def test_the_command_line_startsdecoding_processes_without_jax_and_tensorflow():
  # A spawned process imports the parent's main module again.
  ended = subprocess.run(
    [
      sys.executable,
      "-c",
      "import main, sys; print([m for m in ('jax', 'tensorflow') if m in sys.modules])",
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=60,
  )
  assert ended.stdout == "[]\n"
