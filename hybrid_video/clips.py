"""Which frames: pure index arithmetic, from a video's length and rate to the frames of its clips.

In: frame counts and rates. Out: frame indices. Everything is exact integer arithmetic on Python
numbers, NumPy arrays or TensorFlow tensors alike; nothing here reads a video.

A clip is `num_frames` frames at even spacing over a window of some seconds, at the video's own
rate. A video shorter than the window is its own window; one of a single frame repeats it.
"""

from typing import Any

import numpy as np


def window_length(num_video_frames: Any, fps: Any, window_seconds: float) -> np.ndarray:
  """Frames in a window, at least 1 and at most the whole video.

  Args:
    num_video_frames: frames of the video, or an array of such.
    fps: frames a second.
    window_seconds: length of the window.

  Returns:
    int64, shaped like the arguments.
  """
  wanted = np.rint(np.asarray(fps, np.float64) * window_seconds).astype(np.int64)
  return np.clip(wanted, 1, np.asarray(num_video_frames, np.int64))


def frame_indices(start: Any, length: Any, num_frames: int) -> Any:
  """The frames of a clip: `num_frames` at even spacing from `start` to `start + length - 1`.

  The i-th is start + floor(i (length - 1) / (num_frames - 1)), what `linspace` gives when it is
  truncated to integers. A window of fewer frames than the clip repeats some.

  Args:
    start: first frame of the window, an integer scalar.
    length: frames in the window, an integer scalar.
    num_frames: frames in the clip; one alone is the window's first.

  Returns:
    Integers `[num_frames]`, ascending.
  """
  steps = np.arange(num_frames, dtype=np.int64)
  return start + (steps * (length - 1)) // max(num_frames - 1, 1)


def uniform_starts(num_video_frames: int, length: int) -> np.ndarray:
  """First frames of the fewest windows that cover a video, evenly spaced from its start to its end.

  Returns:
    int64 `[ceil(num_video_frames / length)]`; the last window ends on the last frame.
  """
  windows = -(-num_video_frames // length)
  return np.arange(windows, dtype=np.int64) * (num_video_frames - length) // max(windows - 1, 1)
