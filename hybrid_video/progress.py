"""How far something is: a line that stays at the bottom of a terminal, and durations in words.

In: counts, as they grow. Out: on an interactive terminal, a line that is drawn over and over, with log
lines above it; elsewhere nothing, so that files and pipes hold log lines alone.
"""

import collections
from collections.abc import Iterator
import contextlib
import logging
import os
import shutil
import sys
import threading
import time
from typing import Self, TextIO

# Of drawing: more often than this, no eye sees it.
_SECONDS_BETWEEN = 0.1
# Speed is that of so many seconds, so that it follows what happens and does not jump.
_WINDOW_SECONDS = 30.0
_BAR = 24
_START_OF_LINE, _CLEAR_LINE = "\r", "\r\x1b[2K"

# One for all lines: what is drawn and what is logged must not mix. A signal's handler may log while
# its thread draws.
_lock = threading.RLock()
_shown: "StatusLine | None" = None


def duration(seconds: float) -> str:
  """Seconds as a short text: `42s`, `3m05s`, `2h07m`."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole}s"
  if whole < 3600:
    return f"{whole // 60}m{whole % 60:02d}s"
  return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class LogHandler(logging.StreamHandler):
  """Prints log lines above the status line, if there is one."""

  def emit(self, record: logging.LogRecord) -> None:
    """Prints a record; the status line is drawn anew below it."""
    with _above_the_line():
      super().emit(record)


@contextlib.contextmanager
def _above_the_line() -> Iterator[None]:
  with _lock:
    if _shown is None:
      yield
      return
    _shown.clear()
    yield
    _shown.draw()


class StatusLine:
  """Where a loop is: `step 120/1400 [###---] 9 %  loss 1.2345  80.1 clips/s  4m10s left`.

  A context manager, within which the line is shown if the stream is an interactive terminal; if not,
  nothing is written and an update costs next to nothing.
  """

  def __init__(
    self,
    what: str,
    total: int,
    *,
    done: int = 0,
    unit: str = "",
    per_count: int = 1,
    stream: TextIO | None = None,
  ):
    """Shows nothing yet.

    Args:
      what: is counted, such as "step".
      total: the last count.
      done: the count so far.
      unit: of speed, such as "clips"; "" shows none.
      per_count: units that one count stands for.
      stream: where to; the default is standard output.
    """
    self._what, self._total, self._done = what, total, done
    self._unit, self._per_count = unit, per_count
    self._stream = sys.stdout if stream is None else stream
    self._is_on = self._stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    self._numbers: dict[str, float] = {}
    self._drawn = 0.0
    self._times: collections.deque[tuple[float, int]] = collections.deque()

  def __enter__(self) -> Self:
    global _shown
    with _lock:
      self._before, _shown = _shown, self
      self.draw()
    return self

  def __exit__(self, *_: object) -> None:
    global _shown
    with _lock:
      self.clear()
      _shown = self._before

  def update(self, done: int, **numbers: float) -> None:
    """Takes the count so far, and numbers to show beside it by their names."""
    if not self._is_on:
      return
    now = time.monotonic()
    with _lock:
      self._done = done
      self._numbers |= numbers
      if now - self._drawn < _SECONDS_BETWEEN and done < self._total:
        return
      self._drawn = now
      self._times.append((now, done))
      while self._times[-1][0] - self._times[0][0] > _WINDOW_SECONDS and len(self._times) > 2:
        self._times.popleft()
      if _shown is self:
        self.draw()

  def clear(self) -> None:
    """Takes the line away."""
    self._write(_CLEAR_LINE)

  def draw(self) -> None:
    """Draws the line again.

    The cursor stays at its beginning, so that what others print, such as a library's warning,
    begins on a line of its own.
    """
    columns = shutil.get_terminal_size().columns
    self._write(_CLEAR_LINE + self.text()[: columns - 1] + _START_OF_LINE)

  def text(self) -> str:
    """The line, as it would be drawn on a terminal of any width."""
    share = min(1.0, self._done / self._total) if self._total else 1.0
    full = int(share * _BAR)
    parts = [
      f"{self._what} {self._done:>{len(str(self._total))}}/{self._total} "
      f"[{'#' * full}{'-' * (_BAR - full)}] {100 * share:3.0f} %",
      *(f"{name.replace('_', ' ')} {value:.4g}" for name, value in self._numbers.items()),
    ]
    if rate := self._rate():
      if self._unit:
        parts.append(f"{rate * self._per_count:.1f} {self._unit}/s")
      parts.append(f"{duration((self._total - self._done) / rate)} left")
    return "  ".join(parts)

  def _rate(self) -> float:
    """Counts a second; 0 where it is not known yet."""
    if len(self._times) < 2:
      return 0.0
    (began, first), (now, last) = self._times[0], self._times[-1]
    return (last - first) / (now - began) if now > began else 0.0

  def _write(self, text: str) -> None:
    if not self._is_on:
      return
    try:
      self._stream.write(text)
      self._stream.flush()
    except (OSError, ValueError):
      # A terminal that was closed is no reason to end what it watches.
      self._is_on = False
