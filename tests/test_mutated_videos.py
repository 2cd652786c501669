import itertools
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import av
from conftest import REAL_CLIPS, REAL_LISTS
import numpy as np
import pytest

from hybrid_video.datasets import made_actions, video_files

SCALE = video_files.StoredScale(24, 32)
ROOT = pathlib.Path(__file__).parents[1]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
  """A video file after one to three accidents: bytes changed, cut, swapped, doubled, zeroed."""
  mutated = bytearray(data)
  for _ in range(rng.integers(1, 4)):
    # Half of the accidents hit the headers.
    end = len(mutated) if rng.random() < 0.5 else min(len(mutated), 1024)
    at = int(rng.integers(end))
    size = int(rng.integers(1, 600))
    match rng.integers(6):
      case 0:
        for place in rng.integers(0, end, rng.integers(1, 12)):
          mutated[place] ^= 1 << int(rng.integers(8))
      case 1:
        mutated[at : at + 4] = rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]).tobytes()[:4]
      case 2:
        other = int(rng.integers(len(mutated)))
        mutated[at : at + size], mutated[other : other + size] = (
          mutated[other : other + size],
          mutated[at : at + size],
        )
      case 3:
        mutated[at:at] = mutated[at : at + size]
      case 4:
        mutated[at : at + size] = bytes(size)
      case 5:
        del mutated[max(at, 16) :]
    if not mutated:
      return b""
  # A cut file is refused by the length in its header; half of them lie about that too.
  if mutated[:4] == b"RIFF" and rng.random() < 0.5:
    mutated[4:8] = max(0, len(mutated) - 8).to_bytes(4, "little")
  return bytes(mutated)


def _write_mp4(path: pathlib.Path, frames: list[np.ndarray], fps: int) -> None:
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.thread_count = 1
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))


@pytest.mark.parametrize(
  ("suffix", "write", "count"), [(".avi", made_actions.write_avi, 500), (".mp4", _write_mp4, 60)]
)
def test_every_mutated_file_ends_as_frames_or_a_reason(tmp_path, suffix, write, count):
  whole = []
  for name in REAL_LISTS:
    frames = [frame for frame, _ in video_files.decode_frames(REAL_CLIPS / name, 60, 80)]
    write(tmp_path / f"small{suffix}", frames[:20], 30)
    whole.append((tmp_path / f"small{suffix}").read_bytes())
  rng = np.random.default_rng(51)
  paths = []
  for i in range(count):
    paths.append(tmp_path / f"{i:04d}{suffix}")
    paths[-1].write_bytes(mutate(whole[i % 3], rng))
  kinds = {"stored": 0, "refused": 0}
  places = []
  for place, result in video_files.store_videos(paths, SCALE, workers=2, seconds_limit=20):
    places.append(place)
    if isinstance(result, str):
      kinds["refused"] += 1
      assert result.startswith(f"{paths[place]}: ")
      # Each was told by a check, none by an accident.
      assert "crashed" not in result and "longer" not in result and "decoding failed" not in result
    else:
      kinds["stored"] += 1
      assert (result.height, result.width) == (24, 32)
      assert 1 <= len(result.frames) <= 60
      assert video_files.MIN_FPS <= result.fps <= video_files.MAX_FPS
  assert places == list(range(count))
  assert min(kinds.values()) > 0


def scripted(path: str, scale: video_files.StoredScale) -> video_files.StoredVideo:
  """Does in a decoding process what the file's name says."""
  name = pathlib.Path(path).name
  if name.startswith("sleep"):
    time.sleep(600)
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
  return video_files.StoredVideo([name.encode(), *(m.encode() for m in modules)], 1.0, 1, 1)


@pytest.mark.parametrize("workers", [1, 3])
def test_only_the_guilty_video_is_blamed(tmp_path, workers):
  bad = {
    "sleep": "longer than 1.5 s",
    "exit": r"crashed twice (exit code 139)",
    "segv": "crashed twice (SIGSEGV)",
    "hungry": "GiB of memory",
    "bug": "KeyError",
  }
  names = list(itertools.chain.from_iterable((f"good{b}", b, f"fine{b}") for b in bad))
  paths = [tmp_path / name for name in names]
  results = list(video_files.store_videos(paths, SCALE, workers, seconds_limit=1.5, store=scripted))
  assert [place for place, _ in results] == list(range(len(names)))
  for name, (_, result) in zip(names, results, strict=True):
    if name in bad:
      assert isinstance(result, str)
      assert bad[name] in result and str(tmp_path / name) in result
    else:
      assert not isinstance(result, str), result
      assert result.frames == [name.encode()]


def test_a_crash_that_does_not_repeat_costs_nothing(tmp_path):
  paths = [tmp_path / "good", tmp_path / "once", tmp_path / "fine"]
  results = [r for _, r in video_files.store_videos(paths, SCALE, 1, store=scripted)]
  assert [r if isinstance(r, str) else r.frames for r in results] == [
    [b"good"],
    [b"once"],
    [b"fine"],
  ]


def test_decoding_processes_start_without_jax_and_tensorflow(tmp_path):
  # The stored frames name the heavy modules that the process has loaded, besides the file.
  [(_, result)] = video_files.store_videos([tmp_path / "x"], SCALE, 1, store=scripted)
  assert result.frames == [b"x"]


def _decoding_processes(parent: int) -> list[int]:
  found = []
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      status = (entry / "stat").read_text().rpartition(")")[2].split()
      command = (entry / "cmdline").read_text()
    except OSError:
      continue
    if int(status[1]) == parent and "spawn_main" in command and status[0] != "Z":
      found.append(int(entry.name))
  return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_leaving_early_leaves_no_process(tmp_path):
  paths = [tmp_path / "good", *(tmp_path / f"sleep{i}" for i in range(8))]
  results = video_files.store_videos(paths, SCALE, 2, store=scripted)
  assert next(results)[0] == 0
  assert len(_decoding_processes(os.getpid())) == 2
  started = time.monotonic()
  results.close()
  assert _decoding_processes(os.getpid()) == []
  assert time.monotonic() - started < 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_ends_a_program_and_its_processes(tmp_path):
  program = tmp_path / "program.py"
  program.write_text(
    textwrap.dedent(
      """
      import sys
      from hybrid_video.datasets import video_files
      import test_mutated_videos
      if __name__ == "__main__":
        paths = ["good", "sleep0", "sleep1", "sleep2"]
        scale = video_files.StoredScale()
        for place, _ in video_files.store_videos(
          paths, scale, 2, store=test_mutated_videos.scripted
        ):
          print("got", place, flush=True)
      """
    )
  )
  environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
  with subprocess.Popen(
    [sys.executable, program],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=environment,
    start_new_session=True,
  ) as process:
    assert process.stdout.readline() == "got 0\n"
    children = _decoding_processes(process.pid)
    assert len(children) == 2
    # As a terminal does it: to the whole group.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
  assert errors.count("KeyboardInterrupt") == 1
  assert not any(pathlib.Path(f"/proc/{child}").exists() for child in children)


def test_a_program_without_a_main_guard_is_told(tmp_path):
  program = tmp_path / "program.py"
  program.write_text(
    "from hybrid_video.datasets import video_files\n"
    "print(list(video_files.store_videos(['x'], video_files.StoredScale(), 1)))\n"
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


def test_the_command_line_starts_decoding_processes_without_jax_and_tensorflow():
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
