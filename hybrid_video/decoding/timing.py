"""When frames are shown: the times a decoder gives, put on a grid of one rate.

In: the seconds at which decoded frames are shown, in the decoder's order. Out: the grid's rate and
the slot of each frame. No frame is left out: where a frame is shown longer it fills its slots.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

# A rate above this, in frames a second, comes from a damaged or missing header.
MAX_FPS = 1000.0
# FFmpeg's rate for files that have none.
ASSUMED_FPS = 25.0
# A jump forward, in seconds, that FFmpeg takes for a new clock, in formats that may have one
# (`-dts_delta_threshold`).
NEW_CLOCK_SECONDS = 10.0
# No codec's decoder gives a frame this many places from where its time belongs.
_REORDERED = 16
# How late a frame may come for the frames before it: in frames of the grid, and in seconds; and where
# only bursts of a few frames need a far higher rate.
_LATE_FRAMES, _LATE_SECONDS, _LATEST_SECONDS = 1.25, 0.04, 0.1
# Steps, and means of some steps in a row, that differ by less than this part are of one rate; so are
# steps that rounding makes different, up to the last part. Means that a pause is part of differ by more
# than the third.
_ALIKE, _ALIKE_MEANS, _ONE_MEAN, _MOST_ROUNDED = 0.12, 0.05, 0.008, 0.4
_IN_A_ROW = 16
# How far, in frames, a time may be from a multiple of the step.
_OFF_MULTIPLE = 0.2


@dataclasses.dataclass(frozen=True)
class Grid:
  """Evenly spaced times, and which of them each frame has.

  Attributes:
    fps: frames a second.
    slots: for each frame the index of its first time; ascending from 0, no two the same, int64 `[N]`.
    note: what had to be adapted, "" where the file's own times are even.
  """

  fps: float
  slots: np.ndarray
  note: str = ""

  @property
  def length(self) -> int:
    """Frames of the grid: the last one is shown once."""
    return int(self.slots[-1]) + 1


def make_grid(
  seconds: Sequence[float | None],
  stated: Sequence[float],
  *,
  resolution: float = 0.0,
  new_clocks: bool = False,
) -> Grid:
  """Puts frames on a grid.

  Frames within half a frame of a constant rate keep their places one after the other. Any others are
  put on a grid of the rate of their motion: the lowest one that occurs at which every frame has a
  slot of its own at its time. As with FFmpeg's constant-rate output, a frame goes to the nearest slot
  and is repeated until the next.

  Args:
    seconds: when each decoded frame is shown, in the decoder's order, or None; at least one. A clock
      may restart, frames may be a few places out of order.
    stated: frames a second according to the file's headers, the most trusted first.
    resolution: to how many seconds times are rounded, at most, if that is known.
    new_clocks: whether the format may change its clock, so that a jump forward is no pause.
  """
  stated = [float(rate) for rate in stated if 0 < rate <= MAX_FPS]
  times, clocks = _continuous(seconds, new_clocks)
  again = "once" if clocks == 2 else f"{clocks - 1} times"
  joined = f"the clock starts again {again}" if clocks > 1 else ""
  if times is None or times[-1] <= times[0]:
    # Also where all frames have one time.
    return _in_sequence(len(seconds), stated)
  fps, is_even = _rate(times, stated, resolution)
  slots = np.arange(len(times)) if is_even else _slots(times, fps)
  if fps > MAX_FPS:
    return _in_sequence(len(seconds), stated)
  count, length = len(slots), int(slots[-1]) + 1
  uneven = f"{count} frames at uneven times; on a grid of {fps:.6g} a second they are {length}"
  notes = [joined, uneven if length > count else ""]
  return Grid(fps, slots, "; ".join(note for note in notes if note))


def _rate(times: np.ndarray, stated: Sequence[float], resolution: float) -> tuple[float, bool]:
  """The rate of a grid, and whether each frame has the slot after the one before."""
  rates = _Rates(times, stated, resolution)
  # Files with B-frames often start with one or two odd times.
  begin = 2 if len(times) > 5 and times[2] - times[0] <= 4 / rates.usual else 0
  judged = times[begin:]
  slots = _multiples(judged, rates.usual)
  if slots is not None:
    return rates.usual, len(slots) == int(slots[-1]) + 1
  constant = _constant_rate(judged, stated)
  return (rates.of_motion(), False) if constant is None else (constant, True)


def _in_sequence(count: int, stated: Sequence[float]) -> Grid:
  """Frames one after the other, without regard to their times."""
  fps = stated[0] if stated else ASSUMED_FPS
  why = "as its header says" if stated else "as FFmpeg assumes where no rate is known"
  note = f"no usable times in the file: {fps:g} frames a second, {why}" if count > 1 else ""
  return Grid(fps, np.arange(count), note)


def _continuous(seconds: Sequence[float | None], new_clocks: bool) -> tuple[np.ndarray | None, int]:
  """Times that never decrease, from 0, and how many clocks they come from; None without any time."""
  times = np.array([np.nan if second is None else second for second in seconds], np.float64)
  known = np.flatnonzero(np.isfinite(times))
  if not len(known):
    return None, 0
  interval = _usual_step(times[known])
  # A frame without a time follows the one before.
  before = known[np.maximum(np.searchsorted(known, np.arange(len(times)), "right") - 1, 0)]
  times = times[before] + (np.arange(len(times)) - before) * interval

  pieces: list[np.ndarray] = []
  begin, end = 0, 0.0
  for restart in [*_restarts(times, interval), len(times)]:
    # Frames a few places out of order: the times are right, and belong to them in order.
    piece = np.sort(times[begin:restart])
    pieces.append(piece - piece[0] + (end + interval if pieces else 0.0))
    begin, end = restart, float(pieces[-1][-1])
  continuous, clocks = np.concatenate(pieces), len(pieces)
  if new_clocks:
    steps = np.diff(continuous)
    jumps = steps > NEW_CLOCK_SECONDS
    clocks += int(jumps.sum())
    continuous = np.concatenate([[0.0], np.cumsum(np.where(jumps, interval, steps))])
  return continuous, clocks


def _usual_step(times: np.ndarray) -> float:
  """The median time from a frame to the next, of frames that may be a few places out of order."""
  blocks = [
    np.diff(np.sort(times[i : i + 2 * _REORDERED])) for i in range(0, len(times), _REORDERED)
  ]
  steps = np.concatenate(blocks)
  return float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0


def _restarts(times: np.ndarray, interval: float) -> list[int]:
  """Where times go back for good, and not for a few frames out of order: where other clocks begin."""
  restarts: list[int] = []
  for i in np.flatnonzero(np.diff(times, prepend=times[0]) < 0).tolist():
    before = times[restarts[-1] if restarts else 0 : i]
    latest = before.max(initial=-np.inf)
    if times[i] >= latest:
      continue
    below = np.append(times[i : i + _REORDERED] <= latest, False)
    run = times[i : i + int(np.argmin(below))]
    at_end = i + len(run) == len(times)
    is_far = len(run) == _REORDERED or (at_end and latest - run.min() > _REORDERED * interval)
    # Frames out of order fill gaps; those of another clock fall between, or on, the ones before.
    together = np.sort(np.concatenate([before[before >= run.min()], run]))
    if is_far or np.median(np.diff(together)) < 0.75 * interval:
      restarts.append(i)
  return restarts


def _multiples(times: np.ndarray, fps: float) -> np.ndarray | None:
  """Slots of times that are multiples of one step, each its own; None if they are not."""
  places = (times - times[0]) * fps
  slots = np.round(places).astype(np.int64)
  exact = np.abs(places - slots).max() < _OFF_MULTIPLE and (np.diff(slots) > 0).all()
  return slots if exact else None


def _constant_rate(times: np.ndarray, stated: Sequence[float]) -> float | None:
  """The rate of frames that are evenly spaced, each within half a frame; None if they are not."""
  if times[-1] <= times[0]:
    return None
  index = np.arange(len(times))
  period, start = np.polyfit(index, times, 1)
  off_grid = (times - start) / period - index
  # Half a frame early to half a frame late, and no place where a frame is missing.
  if np.ptp(off_grid) > 1 or np.diff(times).max() > 1.75 * period:
    return None
  return _stated_or(1 / period, times[-1] - times[0], stated)


def _stated_or(fps: float, span: float, stated: Sequence[float]) -> float:
  """The header's exact fraction, unless indices and times drift apart by it."""
  near = [rate for rate in stated if abs(rate - fps) * span <= 0.5]
  return min(near, key=lambda rate: abs(rate - fps)) if near else float(fps)


class _Rates:
  """The rates that occur among the steps from frame to frame."""

  def __init__(self, times: np.ndarray, stated: Sequence[float], resolution: float):
    self._times = times
    steps = np.diff(times)
    self._steps = steps[steps > 0]
    self._means = (times[_IN_A_ROW:] - times[:-_IN_A_ROW]) / _IN_A_ROW
    self._rounding = 1.1 * max(resolution, 0.001)
    self._known = [*stated, *(n * part for n in range(1, 121) for part in (1.0, 1000 / 1001))]
    # Of the median step.
    self.usual = self.exact(float(np.median(self._steps)))

  def exact(self, step: float) -> float:
    """The mean rate of steps that are about as long: times are rounded, and jitter."""
    # Of steps in a row, rounding and jitter cancel out.
    alike = self._means[np.abs(self._means - step) < _ALIKE_MEANS * step]
    if len(alike):
      near = max(_ONE_MEAN * step, self._rounding / _IN_A_ROW)
      alike = alike[np.abs(alike - np.median(alike)) < near]
    if len(alike) < _IN_A_ROW:
      rounding = min(self._rounding, _MOST_ROUNDED * step)
      alike = self._steps[np.abs(self._steps - step) < max(_ALIKE * step, rounding)]
    if not len(alike):
      return float(1 / step)
    return _stated_or(float(1 / alike.mean()), float(alike.sum()), self._known)

  def of_motion(self) -> float:
    """The lowest rate that occurs at which no frame comes late, from the usual one up."""
    times, usual = self._times, self.usual
    quick = np.quantile(self._steps, (0.25, 0.1, 0.05), method="nearest").tolist()
    rates = {self.exact(step) for step in quick}
    fastest = MAX_FPS
    for count in (_IN_A_ROW, 8, 4):
      if len(times) > count:
        shortest = float((times[count:] - times[:-count]).min()) / count
        fastest = self.exact(shortest) if shortest * MAX_FPS > 1 else MAX_FPS
        rates.add(fastest)
    # Two frames at almost one time make no rate.
    ascending = [usual, *sorted(rate for rate in rates if usual < rate <= fastest)]
    late = [float((_slots(times, fps) / fps - (times - times[0])).max()) for fps in ascending]

    def lowest(allowed: Callable[[float], float]) -> float:
      pairs = zip(ascending, late, strict=True)
      return next((fps for fps, seconds in pairs if seconds <= allowed(fps)), fastest)

    punctual = lowest(lambda fps: max(_LATE_FRAMES / fps, _LATE_SECONDS))
    bursts_spread = lowest(lambda fps: _LATEST_SECONDS)
    return punctual if punctual <= 2 * bursts_spread else bursts_spread


def _slots(times: np.ndarray, fps: float) -> np.ndarray:
  """The nearest slot of each time, halves upwards, or the next one that is free."""
  index = np.arange(len(times))
  # Halves that are a rounding error below themselves count as halves.
  nearest = np.floor((times - times[0]) * fps + 0.5 + 1e-6).astype(np.int64)
  return np.maximum.accumulate(nearest - index) + index
