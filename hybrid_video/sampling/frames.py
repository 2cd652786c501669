"""Which frames: pure index arithmetic, from a video's length and rate to the frames of its clips.

In: frame counts and rates. Out: frame indices, none past the end. Everything is exact integer
arithmetic, on Python integers, NumPy arrays or TensorFlow tensors alike; nothing reads a video.

A video is first seen as a row of positions: its frames, or those that a target rate leaves of them
(position `p` is frame `floor(p fps / rate)`). A window is a stretch of positions, and a clip is
`frames` of them at even spacing:

- "seconds": the window lasts `window_seconds` (the source study's way);
- "stride": every `stride`-th position (torchvision's way is stride 1 at 15 frames a second);
- "segments": the video is cut into `frames` equal segments, one frame of each (TSN,
  arXiv:1608.00859), so that a clip spans the whole video.

Where a video is shorter than the window, `short` says what happens: "fit" shrinks the window to the
video, "loop" starts again from its first frame, "last" repeats its last one.
"""

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np

from hybrid_video.sampling.clip_settings import Sampling

# Where in a segment a frame lies is drawn as a fraction of this.
SEGMENT_UNIT = 2**31


@dataclasses.dataclass(frozen=True)
class Windows:
  """The windows that videos have, one row a video, int64 `[V]` each.

  Attributes:
    frames: of the video.
    positions: of the video; as many as frames, or fewer at a lower rate.
    span: positions in a window, its first and last included.
    starts: how many first positions a window can have: 0 to `starts` - 1.
    numerator, denominator: position `p` is frame `p numerator // denominator`.
  """

  frames: np.ndarray
  positions: np.ndarray
  span: np.ndarray
  starts: np.ndarray
  numerator: np.ndarray
  denominator: np.ndarray


def windows(sampling: Sampling, num_frames: Any, fps: Any) -> Windows:
  """The windows of videos.

  Args:
    sampling: how frames are chosen.
    num_frames: frames of each video, `[V]`, at least 1.
    fps: frames a second of each, `[V]`.
  """
  num_frames = np.atleast_1d(np.asarray(num_frames, np.int64))
  fps = np.broadcast_to(np.asarray(fps, np.float64), num_frames.shape)
  # Rates such as 30000/1001 arrive as floats: the fraction they stand for keeps arithmetic exact.
  exact = {rate: Fraction(rate).limit_denominator(100_000) for rate in np.unique(fps).tolist()}
  wanted = Fraction(sampling.rate).limit_denominator(100_000)
  ratios = {
    rate: max(Fraction(1), of / wanted) if wanted else Fraction(1) for rate, of in exact.items()
  }
  numerator = np.array([ratios[rate].numerator for rate in fps.tolist()], np.int64)
  denominator = np.array([ratios[rate].denominator for rate in fps.tolist()], np.int64)
  positions = np.maximum(num_frames * denominator // numerator, 1)
  if sampling.mode == "seconds":
    span = np.rint(fps * denominator / numerator * sampling.window_seconds).astype(np.int64)
    span = np.maximum(span, 1)
  elif sampling.mode == "stride":
    span = np.full_like(positions, (sampling.frames - 1) * sampling.stride + 1)
  else:
    span = positions
  if sampling.short == "fit":
    span = np.minimum(span, positions)
  starts = np.maximum(positions - span, 0) + 1
  return Windows(num_frames, positions, span, starts, numerator, denominator)


def window_frames(
  sampling: Sampling, start: Any, *, span: Any, positions: Any, numerator: Any, denominator: Any
) -> Any:
  """The frames of a window's clip, in the modes "seconds" and "stride".

  The i-th position is start + floor(i (span - 1) / (frames - 1)), what `linspace` gives when it is
  truncated to integers; in mode "stride" that is start + i stride.

  Args:
    sampling: how frames are chosen.
    start: first position of the window, an integer, or integers `[..., 1]`, as are the others.
    span, positions, numerator, denominator: see `Windows`.

  Returns:
    Integers `[frames]` or `[..., frames]`; ascending, unless a short video is looped.
  """
  steps = np.arange(sampling.frames, dtype=np.int64)
  position = start + (steps * (span - 1)) // max(sampling.frames - 1, 1)
  if sampling.short == "loop":
    position = position % positions
  else:
    last = positions - 1
    # The lesser of the two, in operations that every kind of number has.
    position = (position + last - abs(position - last)) // 2
  return position * numerator // denominator


def segment_frames(sampling: Sampling, within: Any, *, frames: Any) -> Any:
  """One frame of each segment, in the mode "segments".

  Args:
    sampling: how frames are chosen.
    within: where in its segment each frame lies, integers `[..., T]` of 0 to `SEGMENT_UNIT` - 1.
    frames: frames of the video, an integer or integers `[..., 1]`.

  Returns:
    Integers `[..., T]`, ascending. A video of fewer frames than segments repeats some.
  """
  steps = np.arange(sampling.frames, dtype=np.int64)
  first = steps * frames // sampling.frames
  beyond = (steps + 1) * frames // sampling.frames
  return first + (beyond - first) * within // SEGMENT_UNIT


def even_starts(starts: int, span: int, positions: int, clips: int = 0) -> np.ndarray:
  """First positions of an evaluation's windows, evenly spaced from a video's start to its end.

  Args:
    starts, span, positions: see `Windows`.
    clips: how many windows, one alone in the middle; 0 is the fewest that cover the video.

  Returns:
    int64 `[clips]`; the last window ends on the last position, unless there is but one.
  """
  clips = clips or -(-positions // span)
  if clips == 1:
    return np.array([(starts - 1) // 2], np.int64)
  return np.arange(clips, dtype=np.int64) * (starts - 1) // (clips - 1)
