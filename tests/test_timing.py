"""Frames are evenly spaced in time, whatever times the file gives them."""

from conftest import moving_square
import pytest
from video_writing import square_positions, write_h264


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_frame_rate_becomes_a_constant_one(tmp_path, suffix):
  path = tmp_path / f"variable{suffix}"
  write_h264(path, moving_square(8), [0, 100, 200, 1000, 1100, 1200, 1800, 2100], 1000)
  positions, fps = square_positions(path)
  # Seven intervals in 2.1 s; frames 0 and 1 fall on one time, as do 4 and 5; two gaps are filled.
  assert fps == pytest.approx(10 / 3)
  assert positions == [1, 2, 2, 3, 5, 5, 6, 7]


@pytest.mark.parametrize(
  "stamps",
  [
    [1000 * i // 30 for i in range(40)],
    [1000 * i // 30 + (9, -9)[i % 2] + 9 for i in range(40)],
    [0, *(1000 * i // 30 + 66 for i in range(1, 40))],
  ],
  ids=["rounded to milliseconds", "jitter below half a frame", "an odd first time"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_constant_frame_rate_keeps_every_frame_once(tmp_path, stamps, suffix):
  path = tmp_path / f"constant{suffix}"
  write_h264(path, moving_square(40), stamps, 1000)
  positions, fps = square_positions(path)
  assert positions == list(range(40))
  assert fps == pytest.approx(30, rel=0.02)
