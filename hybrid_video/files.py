"""Files that appear whole or not at all, and a walk that ends.

In: a path and what to write. Out: the file under its name, once all of it is on disk.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import math
import os
import pathlib
from typing import Any
import uuid

from etils import epath
import numpy as np

from hybrid_video import paths

# Ends the name of a file that is being written.
PART = ".part"


@contextlib.contextmanager
def whole_file(path: os.PathLike | str) -> Iterator[epath.Path]:
  """Gives a name to write a file under; when the block ends, the file gets its own name.

  If the block raises, what was written is removed. Several processes may write one file at once,
  each under a name of its own.

  Args:
    path: on a local disk or any file system that `etils.epath` knows, such as gs://.
  """
  final = epath.Path(path)
  part = final.with_name(f"{final.name}.{uuid.uuid4().hex}{PART}")
  try:
    yield part
    part.replace(final)
  except BaseException:
    # On a full disk, what is of no use takes no room.
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)
    raise


def write_text(path: os.PathLike | str, text: str) -> None:
  """Writes a UTF-8 text file, whole or not at all."""
  with whole_file(path) as part:
    part.write_bytes(text.encode())


def as_json(value: Any, *, indent: int | None = None) -> str:
  """JSON that every parser takes: numbers that are not finite, which JSON lacks, become null.

  Args:
    value: nested dicts, lists and tuples of texts and of Python's or NumPy's numbers.
    indent: spaces of a level; None is one line.
  """
  return json.dumps(_strict(value), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _strict(of_key) for key, of_key in value.items()}
  if isinstance(value, list | tuple):
    return [_strict(item) for item in value]
  if isinstance(value, np.generic):
    value = value.item()
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: os.PathLike | str, value: Any) -> None:
  """Writes a value as indented JSON, see `as_json`; whole or not at all."""
  write_text(path, as_json(value, indent=2) + "\n")


def size(path: os.PathLike | str) -> int:
  """Bytes of a file, on a local disk or any file system that `etils.epath` knows.

  Raises:
    OSError: there is none.
  """
  # etils looks for its owner's name too, which users of containers need not have.
  return epath.Path(path).stat().length if paths.is_remote(path) else os.stat(path).st_size


def modified(path: os.PathLike | str) -> float:
  """When a file was last written, in seconds since 1970; otherwise as `size`."""
  return epath.Path(path).stat().mtime if paths.is_remote(path) else os.stat(path).st_mtime


def walk(
  folder: pathlib.Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
  """`os.walk` that follows links, but never in a circle.

  Args:
    folder: where to begin.
    onerror: called where a folder cannot be read; by default it is left out.
  """
  entered: set[tuple[int, int]] = set()
  for parent, folders, names in os.walk(folder, followlinks=True, onerror=onerror):
    status = os.stat(parent)
    # A link to a folder above would be followed without end.
    if (status.st_dev, status.st_ino) in entered:
      folders.clear()
      continue
    entered.add((status.st_dev, status.st_ino))
    yield parent, folders, names
