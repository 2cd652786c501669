"""Folders that one process holds: others are told at once or wait, and the dead hold nothing."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

from conftest import without_permissions
import pytest

from hybrid_video import errors, locks

ROOT = pathlib.Path(__file__).parent.parent
_HOLD = (
  "import sys, pathlib, time\n"
  "from hybrid_video import locks\n"
  "with locks.hold(pathlib.Path(sys.argv[1]), 'train'):\n"
  "  print('held', flush=True)\n"
  "  time.sleep(60)\n"
)


@contextlib.contextmanager
def holder(folder: pathlib.Path, code: str = _HOLD):
  """A process that holds a folder."""
  process = subprocess.Popen(
    [sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  try:
    assert process.stdout.readline() == "held\n"
    yield process
  finally:
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_at_once_who_has_the_work_directory(tmp_path):
  workdir = tmp_path / "run"
  with holder(workdir) as first:
    begun = time.monotonic()
    with pytest.raises(locks.InUseError) as error, locks.of_work_directory(workdir, "train"):
      pass
    assert time.monotonic() - begun < 2
    year = time.strftime("%Y")
    expected = rf"in use by process {first.pid} on {socket.gethostname()} since {year}-\d\d-\d\d "
    assert error.match(expected + r"\d\d:\d\d \(train\)\. Wait for it, stop it, or name another")
    assert isinstance(error.value, errors.UserError)
    assert json.loads((workdir / locks.NAME).read_text())["purpose"] == "train"


def test_a_killed_process_leaves_a_file_that_locks_nothing(tmp_path):
  with holder(tmp_path) as first:
    first.kill()
    first.wait()
    assert (tmp_path / locks.NAME).is_file()
    with locks.hold(tmp_path, "train"):
      assert json.loads((tmp_path / locks.NAME).read_text())["pid"] == os.getpid()
  assert not list(tmp_path.iterdir())


def test_a_file_left_behind_on_another_machine_locks_nothing(tmp_path):
  left = {
    "pid": 1,
    "host": "elsewhere",
    "pids": "",
    "since": "2020-01-01 00:00",
    "purpose": "train",
  }
  for text in (json.dumps(left), "", "{", "[1]"):
    (tmp_path / locks.NAME).write_text(text)
    with locks.hold(tmp_path, "train"):
      pass
    assert not (tmp_path / locks.NAME).exists()


def test_a_folder_that_was_made_for_a_lock_alone_goes_with_it(tmp_path):
  with locks.hold(tmp_path / "new", "predict"):
    assert (tmp_path / "new" / locks.NAME).is_file()
  assert not (tmp_path / "new").exists()
  with locks.hold(tmp_path / "used", "predict"):
    (tmp_path / "used" / "results.json").write_text("{}")
  assert [path.name for path in (tmp_path / "used").iterdir()] == ["results.json"]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_children_do_not_hold_what_their_parent_held(start, tmp_path):
  code = (
    "import multiprocessing, pathlib, sys, time\n"
    "from hybrid_video import locks\n"
    "if __name__ == '__main__':\n"
    f"  context = multiprocessing.get_context({start!r})\n"
    "  with locks.hold(pathlib.Path(sys.argv[1]), 'train'):\n"
    "    child = context.Process(target=time.sleep, args=(30,))\n"
    "    child.start()\n"
    "    time.sleep(0.5)\n"
    "    print('held', flush=True)\n"
    "    print(child.pid, flush=True)\n"
    "    time.sleep(60)\n"
  )
  with holder(tmp_path, code) as parent:
    child = int(parent.stdout.readline())
    with pytest.raises(locks.InUseError), locks.hold(tmp_path, "train"):
      pass
    parent.kill()
    parent.wait()
    try:
      os.kill(child, 0)
      with locks.hold(tmp_path, "train"):
        pass
    finally:
      os.kill(child, signal.SIGKILL)


# As builders do: wait, look, and do what is left.
_COUNT = (
  "import sys, pathlib, time\n"
  "from hybrid_video import locks\n"
  "folder = pathlib.Path(sys.argv[1])\n"
  "for _ in range(10):\n"
  "  with locks.hold(folder, 'store', wait=True):\n"
  "    path = folder / 'count'\n"
  "    number = int(path.read_text()) if path.exists() else 0\n"
  "    time.sleep(0.005)\n"
  "    path.write_text(str(number + 1))\n"
  "  time.sleep(0.02)\n"
)


def test_those_who_wait_get_it_one_after_another(tmp_path):
  command = [sys.executable, "-c", _COUNT, str(tmp_path)]
  processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
  try:
    assert [process.wait(60) for process in processes] == [0, 0, 0]
  finally:
    for process in processes:
      process.kill()
  assert (tmp_path / "count").read_text() == "30"
  assert sorted(path.name for path in tmp_path.iterdir()) == ["count"]


def test_who_is_waited_for_is_said_once(tmp_path, logged):
  with holder(tmp_path) as first:
    code = f"import os, time; time.sleep(1); os.kill({first.pid}, 9)"
    killer = subprocess.Popen([sys.executable, "-c", code])
    with locks.hold(tmp_path, "store", wait=True):
      pass
    killer.wait()
  (line,) = {record.getMessage() for record in logged.records}
  assert f"in use by process {first.pid}" in line and line.endswith("; waiting for it.")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
  with tempfile.TemporaryDirectory() as text:
    closed = pathlib.Path(text)
    closed.chmod(0o555)
    for folder in (closed, closed / "new"):
      match = rf"^{folder}: .*Permission denied.*another --workdir"
      with (
        without_permissions(),
        pytest.raises(locks.FolderError, match=match),
        locks.of_work_directory(folder, "train"),
      ):
        pass
    closed.chmod(0o755)
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(locks.FolderError, match=r"file/run: .*Not a directory"),
    locks.of_work_directory(tmp_path / "file" / "run", "train"),
  ):
    pass


def test_an_error_in_the_block_is_not_taken_for_one_of_the_folder(tmp_path):
  with pytest.raises(FileNotFoundError), locks.of_work_directory(tmp_path, "train"):
    raise FileNotFoundError("something else")


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, logged):
  def refuse(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(locks.fcntl, "flock", refuse)
  with locks.hold(tmp_path, "train"):
    pass
  assert "has no locks" in logged.text
