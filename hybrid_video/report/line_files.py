"""Text files that grow by whole lines, on any file system.

In: lines, one after the other. Out: a file that holds them all, however its writer ends.
"""

import contextlib
import os

from etils import epath

from hybrid_video import files, paths


class LineFile:
  """A file that lines are added to.

  On a local disk each line is in the file at once. Object stores cannot append: there the file is
  written anew by `flush`.
  """

  def __init__(self, path: os.PathLike | str):
    """Goes on with a file, or begins one.

    Args:
      path: on a local disk or any file system that `etils.epath` knows, such as gs://.

    Raises:
      OSError: it is there and cannot be read.
    """
    self._path = epath.Path(path)
    self._appends = not paths.is_remote(self._path)
    self._text = "" if self._appends or not self._path.exists() else self._path.read_text()
    self._is_flushed = True

  def write(self, lines: str) -> None:
    """Adds whole lines, each with its line break.

    Raises:
      OSError: they cannot be written.
    """
    if not self._appends:
      self._text += lines
      self._is_flushed = False
      return
    with open(self._path, "ab", buffering=0) as file:
      before, rest = file.tell(), memoryview(lines.encode())
      try:
        while rest:
          rest = rest[file.write(rest) :]
      except BaseException:
        # On a full disk, half a line is of no use.
        with contextlib.suppress(OSError):
          file.truncate(before)
        raise

  def flush(self) -> None:
    """Sees to it that all lines are in the file.

    Raises:
      OSError: they cannot be written.
    """
    if not self._is_flushed:
      files.write_text(self._path, self._text)
      self._is_flushed = True
