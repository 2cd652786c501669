import numpy as np
import pytest

from hybrid_video import clips


@pytest.mark.parametrize(
  ("start", "length", "frames", "expected"),
  [
    (0, 60, 16, [0, 3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51, 55, 59]),
    (5, 16, 16, list(range(5, 21))),
    (0, 1, 4, [0, 0, 0, 0]),
    (7, 3, 6, [7, 7, 7, 8, 8, 9]),
    (2, 9, 1, [2]),
  ],
)
def test_frames_are_evenly_spaced_from_the_first_to_the_last_of_the_window(
  start, length, frames, expected
):
  assert clips.frame_indices(start, length, frames).tolist() == expected


def test_tensors_give_the_same_frames_as_integers():
  import tensorflow as tf

  found = clips.frame_indices(tf.constant(11, tf.int64), tf.constant(48, tf.int64), 16)
  assert found.numpy().tolist() == clips.frame_indices(11, 48, 16).tolist()


@pytest.mark.parametrize(
  ("frames", "fps", "expected"),
  [(89, 30.0, 60), (89, 29.97, 60), (40, 30.0, 40), (1, 30.0, 1), (100, 0.1, 1), (31, 12.5, 25)],
)
def test_a_window_is_two_seconds_or_the_whole_of_a_shorter_video(frames, fps, expected):
  assert clips.window_length(frames, fps, 2.0) == expected


@pytest.mark.parametrize(
  ("frames", "length", "expected"),
  [(60, 60, [0]), (61, 60, [0, 1]), (120, 60, [0, 60]), (150, 60, [0, 45, 90]), (1, 1, [0])],
)
def test_uniform_windows_cover_a_video_to_its_last_frame(frames, length, expected):
  assert clips.uniform_starts(frames, length).tolist() == expected


def test_no_frame_is_ever_past_the_end_and_every_frame_lies_in_a_window():
  for frames in range(1, 200):
    length = int(clips.window_length(frames, 24.0, 2.0))
    starts = clips.uniform_starts(frames, length)
    seen = np.concatenate([np.arange(start, start + length) for start in starts])
    assert set(seen.tolist()) == set(range(frames))
    for start in starts:
      chosen = clips.frame_indices(start, length, 16)
      assert chosen.min() == start
      assert chosen.max() == start + length - 1 < frames
      assert (np.diff(chosen) >= 0).all()
