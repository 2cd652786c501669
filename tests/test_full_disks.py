"""Saving where there is no room or no permission: what was saved is whole, and the run goes on later."""

import os
import pathlib
import subprocess
import sys
import tempfile

from conftest import small_file_system
import pytest
from test_checkpoints import _description, check_equal, like, on_disk, small_state

from hybrid_video import checkpoints

ROOT = pathlib.Path(__file__).parent.parent

# A process of its own: limits and mounts hold for all of one.
_PROCESS = """
import os, pathlib, resource, sys
import conftest
from test_checkpoints import _description, small_state
from hybrid_video import checkpoints

what, workdir = sys.argv[1], pathlib.Path(sys.argv[2])
filling = workdir / "filling"

def hinder():
  if what == "large":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
  elif what == "full":
    with open(filling, "wb", buffering=0) as file:
      try:
        while file.write(bytes(2**14)):
          pass
      except OSError:
        pass
  else:
    os.chmod(workdir / "checkpoints", 0o500)
    if os.geteuid() == 0:
      os.chown(workdir / "checkpoints", 65534, 65534)
      os.seteuid(65534)

def free():
  if what == "large":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
  elif what == "full":
    filling.unlink()
  else:
    os.seteuid(os.getuid())
    os.chmod(workdir / "checkpoints", 0o700)

saved = checkpoints.Checkpoints(workdir, _description(), keep=2)
saved.save(1, small_state(1), {})
saved.wait()
hinder()
for end in ("wait", "save", "close"):
  try:
    saved.save(2, small_state(2), {})
    saved.save(3, small_state(3), {}) if end == "save" else getattr(saved, end)()
    print("no error")
  except checkpoints.CheckpointError as error:
    print(end, error)
  print("left", sorted(os.listdir(workdir / "checkpoints")), saved.latest_step())
  if end == "close":
    break
free()
"""


def run(what, workdir):
  environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
  done = subprocess.run(
    [sys.executable, "-c", _PROCESS, what, str(workdir)],
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done


def check(done, workdir, reason):
  lines = done.stdout.splitlines()
  assert len(lines) == 6, done.stdout
  for end, line, left in zip(("wait", "save", "close"), lines[::2], lines[1::2], strict=True):
    assert line.startswith(f"{end} The checkpoint of step 2 cannot be saved in {workdir}")
    assert reason in line
    assert "the same command goes on from step 1, whose checkpoint is whole" in line
    assert left == "left ['1'] 1"
  # No pages of orbax's beside the line.
  assert "Traceback" not in done.stderr, done.stderr
  # The same command goes on.
  with checkpoints.Checkpoints(workdir, _description(), keep=2) as saved:
    restored, _ = saved.restore(like(small_state(1)))
    check_equal(small_state(1), restored)
    saved.save(2, small_state(2), {})
  assert on_disk(workdir) == ["1", "2"]
  check_equal(small_state(2)["params"], checkpoints.read(workdir).params)


@pytest.mark.parametrize(
  ("what", "reason"), [("large", "File too large"), ("forbidden", "Permission denied")]
)
def test_a_save_that_fails_says_why_and_leaves_nothing(what, reason):
  # pytest's own folders are closed to the user without rights that one of the processes becomes.
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder)
    workdir.chmod(0o755)
    check(run(what, workdir), workdir, reason)


@pytest.fixture
def small_disk(tmp_path):
  """A file system of its own with room for one checkpoint and a half."""
  with small_file_system(tmp_path / "disk", "600k"):
    yield tmp_path / "disk"


def test_a_full_disk_leaves_the_last_checkpoint_whole(small_disk):
  check(run("full", small_disk), small_disk, "No space left on device")
