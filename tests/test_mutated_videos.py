"""Damaged files by the thousand: each ends as frames or as a reason, none by accident.

The short form runs with the suite; 10,000 files by `pytest -m slow tests/test_mutated_videos.py`.
"""

import os
import pathlib

import av
from conftest import REAL_CLIPS, REAL_LISTS
import numpy as np
import pytest
from test_worker_pool import decoding_processes
from video_writing import decoded

from hybrid_video.decoding import storing, timing, worker_pool

SCALE = storing.StoredScale(24, 32, stretch=True)
LIMITS = storing.DecodingLimits(max_frames=600, stall_seconds=20)
# Container and codec by suffix.
FORMS = {
  ".mp4": ("mp4", "libx264"),
  ".mkv": ("matroska", "libx264"),
  ".webm": ("webm", "libvpx"),
  ".avi": ("avi", "mjpeg"),
  ".ts": ("mpegts", "mpeg2video"),
  ".gif": ("gif", "gif"),
}
_PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8"}


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
        for offset in rng.integers(0, end, rng.integers(1, 12)):
          mutated[offset] ^= 1 << int(rng.integers(8))
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
  return bytes(mutated)


def _write(path: pathlib.Path, frames: list[np.ndarray]) -> None:
  form, codec = FORMS[path.suffix]
  with av.open(str(path), "w", format=form) as container:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = _PIXELS.get(codec, "yuv420p")
    stream.thread_count = 1
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))


def _store_mutated(folder: pathlib.Path, suffix: str, count: int, seed: int) -> None:
  whole = []
  for name in REAL_LISTS:
    _write(folder / f"whole{suffix}", decoded(REAL_CLIPS / name, 60, 80, stretch=True).frames[:20])
    whole.append((folder / f"whole{suffix}").read_bytes())
  rng = np.random.default_rng(seed)
  paths = []
  for i in range(count):
    paths.append(folder / f"{i:05d}{suffix}")
    paths[-1].write_bytes(mutate(whole[i % len(whole)], rng))
  kinds = {"stored": 0, "refused": 0}
  indices = []
  for index, result in worker_pool.store_videos(paths, SCALE, workers=2, limits=LIMITS):
    indices.append(index)
    if isinstance(result, str):
      kinds["refused"] += 1
      assert result.startswith(f"{paths[index]}: ")
      # Each was refused by a check, none by an accident.
      assert "crashed" not in result and "decoding failed" not in result, result
      assert "no further frame" not in result, result
    else:
      kinds["stored"] += 1
      assert (result.height, result.width) == (24, 32)
      assert 1 <= len(result.frames) <= LIMITS.max_frames
      assert 0 < result.fps <= timing.MAX_FPS
  assert indices == list(range(count))
  assert min(kinds.values()) > 0
  assert decoding_processes(os.getpid()) == []


@pytest.mark.parametrize("suffix", FORMS)
def test_every_mutated_file_ends_as_frames_or_a_reason(tmp_path, suffix):
  _store_mutated(tmp_path, suffix, 200 if suffix == ".avi" else 40, seed=51)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMS)
def test_ten_thousand_mutated_files_end_as_frames_or_a_reason(tmp_path, suffix):
  _store_mutated(tmp_path, suffix, 1700, seed=52)
