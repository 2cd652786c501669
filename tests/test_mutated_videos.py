"""Hundreds of damaged files: each ends as frames or as a reason, none by accident."""

import pathlib

import av
from conftest import REAL_CLIPS, REAL_LISTS
import numpy as np
import pytest

from hybrid_video.datasets import made_actions
from hybrid_video.decoding import storing, timing, video_reader, worker_pool

SCALE = storing.StoredScale(24, 32)


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
    frames = [frame for frame, _ in video_reader.decode_frames(REAL_CLIPS / name, 60, 80)]
    write(tmp_path / f"small{suffix}", frames[:20], 30)
    whole.append((tmp_path / f"small{suffix}").read_bytes())
  rng = np.random.default_rng(51)
  paths = []
  for i in range(count):
    paths.append(tmp_path / f"{i:04d}{suffix}")
    paths[-1].write_bytes(mutate(whole[i % 3], rng))
  kinds = {"stored": 0, "refused": 0}
  indices = []
  for index, result in worker_pool.store_videos(paths, SCALE, workers=2, seconds_limit=20):
    indices.append(index)
    if isinstance(result, str):
      kinds["refused"] += 1
      assert result.startswith(f"{paths[index]}: ")
      # Each was refused by a check, none by an accident.
      assert "crashed" not in result and "longer" not in result and "decoding failed" not in result
    else:
      kinds["stored"] += 1
      assert (result.height, result.width) == (24, 32)
      assert 1 <= len(result.frames) <= 60
      assert timing.MIN_FPS <= result.fps <= timing.MAX_FPS
  assert indices == list(range(count))
  assert min(kinds.values()) > 0
