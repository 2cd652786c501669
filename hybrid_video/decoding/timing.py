"""When frames are shown: at a constant rate, or irregularly and then put on a grid of one.

In: times of a stream's frames in seconds. Out: the rate, and frames that are evenly spaced in time.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import math

import numpy as np

# Rates outside of these, in frames a second, come from damaged headers.
MIN_FPS, MAX_FPS = 0.1, 1000.0


@dataclasses.dataclass(frozen=True)
class Timing:
  """When the frames of a stream are shown.

  Attributes:
    fps: frames a second; where `irregular`, their average.
    irregular: whether frames have to be put on a grid of `fps`, see `on_grid`.
  """

  fps: float
  irregular: bool


def timing_of(seconds: np.ndarray, stated_fps: float | None) -> Timing | None:
  """Whether frames are evenly spaced: each within half a frame of a constant rate.

  Args:
    seconds: when frames are shown, ascending, `[N]`; empty where the file does not say.
    stated_fps: frames a second according to the file's header.

  Returns:
    The timing, or None where neither the times nor the header give a rate.
  """
  count = len(seconds)
  span = seconds[-1] - seconds[0] if count else 0.0
  if count < 3 or span <= 0:
    return Timing(stated_fps, irregular=False) if stated_fps else None
  # Files with B-frames often start with one or two odd times.
  judged = seconds[2:] if count > 5 else seconds
  if judged[-1] > judged[0]:
    index = np.arange(len(judged))
    period, start = np.polyfit(index, judged, 1)
    off_grid = (judged - start) / period - index
    if np.ptp(off_grid) <= 1:  # Half a frame early to half a frame late.
      fps = float(1 / period)
      # The header's exact fraction, unless indices and times drift apart by it.
      if stated_fps and abs(stated_fps - fps) * (judged[-1] - judged[0]) <= 0.5:
        fps = stated_fps
      return Timing(fps, irregular=False)
  return Timing(float((count - 1) / span), irregular=True)


def on_grid(frames: Iterable[tuple[np.ndarray, float | None]], fps: float) -> Iterator[np.ndarray]:
  """Puts frames on a constant grid: each moves to the nearest time, is shown until the next comes.

  What FFmpeg's `fps` filter does: where two meet, the later stays; gaps repeat the frame before.

  Args:
    frames: in order of time, each with the seconds it is shown at, or None where it has no time
      and follows the one before.
    fps: of the grid, frames a second.

  Yields:
    The frame at every time of the grid; a repeated one is the same object.
  """
  start: float | None = None
  held, slot = None, 0
  for pixels, seconds in frames:
    if start is None:
      start = seconds
    if seconds is None or start is None:
      arrives = slot + 1
    else:
      arrives = max(slot, math.floor((seconds - start) * fps + 0.5))
    if held is not None:
      for _ in range(arrives - slot):
        yield held
      slot = arrives
    held = pixels
  if held is not None:
    yield held
