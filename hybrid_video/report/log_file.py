"""The log of a work directory: every line of the console, with its time, over all starts of a run.

In: log records. Out: `log.txt`, and `log.1.txt` and so on of the other processes.
"""

from collections.abc import Iterator
import contextlib
import datetime
import logging
import os
import pathlib
import shlex
import sys
import time
import traceback

import jax

import hybrid_video
from hybrid_video import errors
from hybrid_video.report import line_files, results

log = logging.getLogger("hybrid_video")

# Where a file has to be written anew for every line, it is not at every line.
_SECONDS_BETWEEN = 30.0


class _LogFile(logging.Handler):
  """Adds records to a file, which is made with the first one; what is refused leaves no trace."""

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self._path = path
    self._file: line_files.LineFile | None = None
    self._flushed = time.monotonic()
    self._has_failed = False

  def emit(self, record: logging.LogRecord) -> None:
    text = self.format(record)
    if record.levelno >= logging.WARNING:
      text = f"{record.levelname}: {text}"
    self.write(text, record.created)

  def write(self, text: str, seconds: float) -> None:
    """Adds a text of one or more lines; `seconds` are of `time.time`."""
    at = datetime.datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
    lines = errors.printable_lines(text).split("\n")
    try:
      if self._file is None:
        results.make_folder(self._path.parent)
        self._file = line_files.LineFile(self._path)
        command = shlex.join([pathlib.PurePath(sys.argv[0]).name, *sys.argv[1:]])
        version = hybrid_video.__version__
        lines.insert(0, f"--- hybrid_video {version}, process {os.getpid()}: {command}")
      self._file.write("".join(f"{at}  {line}\n" for line in lines))
      if time.monotonic() - self._flushed > _SECONDS_BETWEEN:
        self._flush()
    except (OSError, errors.UserError) as error:
      self._complain(error)

  @property
  def is_begun(self) -> bool:
    """Whether there is a line in it."""
    return self._file is not None

  def _flush(self) -> None:
    if self._file:
      self._file.flush()
    self._flushed = time.monotonic()

  def _complain(self, error: Exception) -> None:
    """Says once that lines are missing: the run can do without them."""
    if not self._has_failed:
      self._has_failed = True
      log.warning("%s: lines of the log are missing (%s)", self._path, error)

  def close(self) -> None:
    try:
      self._flush()
    except OSError as error:
      self._complain(error)
    super().close()


@contextlib.contextmanager
def attached(workdir: pathlib.Path) -> Iterator[None]:
  """While the block runs, all log lines go into the work directory as well; so does its end.

  Args:
    workdir: made with the first line.
  """
  index = jax.process_index()
  handler = _LogFile(workdir / (f"log.{index}.txt" if index else "log.txt"))
  log.addHandler(handler)
  try:
    yield
  except errors.UserError as error:
    _write_end(handler, f"Error: {error}")
    raise
  except Exception as error:
    _write_end(handler, "".join(traceback.format_exception(error)).rstrip())
    raise
  except BaseException as error:
    _write_end(handler, f"Stopped: {type(error).__name__}")
    raise
  finally:
    log.removeHandler(handler)
    handler.close()


def _write_end(handler: _LogFile, text: str) -> None:
  if handler.is_begun:
    handler.write(text, time.time())
