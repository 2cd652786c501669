"""The folders and JSON of checkpoints, without their arrays: which there are, and what each says.

In: a path that a person gave. Out: the folders to try, and the parsed, checked JSON of one. All JSON
has a checksum in it, so that a changed letter is damage and no other value.

```
WORKDIR/checkpoints/STEP/            model training averages: arrays
WORKDIR/checkpoints/STEP/            description contents progress: JSON
WORKDIR/damaged_checkpoints/STEP/    what a resumed training passed over
WORKDIR/best.json                    step, metric and value of the best
```
"""

from collections.abc import Mapping
import dataclasses
import errno
import json
import logging
import os
import re
from typing import Any, Self
import zlib

from etils import epath

from hybrid_video import errors, files, paths
from hybrid_video.checkpoint_description import (
  LAYOUT,
  CheckpointError,
  Description,
  other_layout,
)

log = logging.getLogger("hybrid_video")

FOLDER, DAMAGED_FOLDER = "checkpoints", "damaged_checkpoints"
BEST_FILE = "best.json"
# Beside a work directory's path: WORKDIR/best and WORKDIR/last.
BEST, LAST = "best", "last"
DESCRIPTION, CONTENTS, PROGRESS = "description", "contents", "progress"
# An item of the layout that version 0.1 wrote.
_LAYOUT_1 = "identity"
# The name that orbax gives a JSON item's file.
_JSON_FILE = "metadata"
_CHECKSUM = "checksum"
_LONGEST_REASON = 120
# How tensorstore ends a message of the operating system's.
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")
_LAYERS = re.compile(r"^([A-Z_]+): .*?Error reading")
# Errors that say nothing about what is in the files.
_ERRNOS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT)
_REFUSALS = (
  "PERMISSION_DENIED",
  "UNAUTHENTICATED",
  "UNAVAILABLE",
  "DEADLINE_EXCEEDED",
  "RESOURCE_EXHAUSTED",
)


class Damaged(Exception):
  """A checkpoint that is not what was saved; the message says what is wrong, without its path."""


def reason(error: BaseException) -> str:
  """The first line of an error, short enough for a sentence; the system's own words where it has them."""
  code = _SYSTEM_ERROR.search(str(error))
  if code:
    return os.strerror(int(code[1]))
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  # tensorstore names every layer of drivers in front of what it was reading.
  text = _LAYERS.sub(r"\1: Error reading", str(error).strip())
  lines = text.splitlines() or [type(error).__name__]
  return errors.printable(lines[0][:_LONGEST_REASON])


def damage(error: Exception, folder: epath.Path) -> Damaged:
  """What an error while reading an item's folder means for its checkpoint.

  Raises:
    CheckpointError: nothing: the files could not be read at all, for want of permission, memory or a
      connection, and may be whole.
  """
  text = str(error)
  code = _SYSTEM_ERROR.search(text)
  number = int(code[1]) if code else getattr(error, "errno", None)
  refused = isinstance(error, MemoryError) or number in _ERRNOS
  if refused or any(refusal in text for refusal in _REFUSALS):
    raise CheckpointError(
      f"{folder}: the checkpoint cannot be read ({reason(error)}). It may be whole: see to its "
      "permissions, to memory and to the connection, and run the same command again."
    ) from error
  return Damaged(f"{folder.name}: {reason(error)}")


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
  """JSON with its checksum.

  Raises:
    ValueError: a number is not finite, or something is no JSON at all.
  """
  return {**values, _CHECKSUM: _checksum(values)}


def _checksum(values: Mapping[str, Any]) -> int:
  """CRC-32 of the values, however they are written down."""
  # Whatever is read back has to give the same: tuples are lists by then, and keys are texts.
  plain = json.loads(json.dumps(values, allow_nan=False))
  return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def unseal(values: Any) -> dict[str, Any]:
  """What was sealed.

  Raises:
    Damaged: it is something else now.
  """
  if not isinstance(values, dict) or _CHECKSUM not in values:
    raise Damaged("JSON without its checksum")
  plain = {name: value for name, value in values.items() if name != _CHECKSUM}
  try:
    whole = _checksum(plain) == values[_CHECKSUM]
  except ValueError:
    whole = False
  if not whole:
    raise Damaged("JSON that differs from its checksum")
  return plain


@dataclasses.dataclass(frozen=True)
class StoredArray:
  """What an array of a checkpoint is known by.

  Attributes:
    shape, dtype: as NumPy names them.
    checksum: see `array_checksums`.
  """

  shape: tuple[int, ...]
  dtype: str
  checksum: int

  def to_json(self) -> list[Any]:
    """Shape, dtype, checksum."""
    return [list(self.shape), self.dtype, self.checksum]

  @classmethod
  def from_json(cls, values: Any) -> Self:
    """What `to_json` wrote."""
    return cls(tuple(values[0]), values[1], values[2])


@dataclasses.dataclass(frozen=True)
class Stored:
  """What a checkpoint says of itself.

  Attributes:
    folder: of the checkpoint.
    description: of its model.
    step: training steps behind it.
    arrays: every array by its name in the training state, such as `params/head/kernel`; None where
      an earlier layout did not write them down.
    progress: what the training gave to be kept with it.
  """

  folder: epath.Path
  description: Description
  step: int
  arrays: dict[str, StoredArray] | None
  progress: dict[str, Any]


def contents(step: int, arrays: Mapping[str, StoredArray]) -> dict[str, Any]:
  """The JSON item that says which arrays a checkpoint has."""
  return {"step": step, "arrays": {name: array.to_json() for name, array in arrays.items()}}


def read_stored(folder: epath.Path) -> Stored:
  """The JSON of one checkpoint.

  Raises:
    Damaged: it is not what was saved.
    CheckpointError: it is of a layout or version that cannot be read.
  """
  if (folder / _LAYOUT_1).is_dir() and not (folder / DESCRIPTION).exists():
    raise CheckpointError(other_layout(str(folder), "0.1"))
  values = _json(folder, DESCRIPTION)
  if isinstance(values, dict) and _CHECKSUM not in values and values.get("layout") != LAYOUT:
    description = Description.from_json(values, str(folder))
    # What wrote this layout had the step in the folder's name alone.
    step = int(folder.name) if folder.name.isdecimal() else 0
    return Stored(folder, description, step, None, {})
  description = Description.from_json(_unsealed(values, DESCRIPTION), str(folder))
  described = _unsealed(_json(folder, CONTENTS), CONTENTS)
  arrays = {name: StoredArray.from_json(array) for name, array in described["arrays"].items()}
  progress = _unsealed(_json(folder, PROGRESS), PROGRESS)
  return Stored(folder, description, described["step"], arrays, progress["progress"])


def _unsealed(values: Any, item: str) -> dict[str, Any]:
  try:
    return unseal(values)
  except Damaged as error:
    raise Damaged(f"{item}: {error}") from error


def _json(folder: epath.Path, item: str) -> Any:
  file = folder / item / _JSON_FILE
  try:
    return json.loads(file.read_bytes())
  except FileNotFoundError as error:
    raise Damaged(f"{item} is missing") from error
  except (OSError, ValueError, RecursionError) as error:
    raise damage(error, folder / item) from error


def steps(directory: epath.Path) -> list[int]:
  """The steps that have a folder, the newest first; whole or not."""
  if not directory.is_dir():
    return []
  names = (entry.name for entry in directory.iterdir() if entry.is_dir())
  return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)[::-1]


@dataclasses.dataclass(frozen=True)
class Best:
  """Which checkpoint of a work directory is best.

  Attributes:
    step: of the checkpoint.
    metric: what tells, such as `video_top1`.
    value: of the metric.
  """

  step: int
  metric: str
  value: float

  def write(self, workdir: os.PathLike | str) -> None:
    """Writes `best.json`, whole or not at all."""
    files.write_json(epath.Path(workdir) / BEST_FILE, seal(dataclasses.asdict(self)))


def best(workdir: os.PathLike | str) -> Best | None:
  """What `best.json` says; None where there is none.

  Raises:
    CheckpointError: it is damaged.
  """
  file = epath.Path(workdir) / BEST_FILE
  if not file.exists():
    return None
  try:
    return Best(**unseal(json.loads(file.read_bytes())))
  except (OSError, ValueError, TypeError, RecursionError, Damaged) as error:
    raise CheckpointError(
      f"{file} is damaged ({reason(error)}). Delete it; {LAST} is used then, or name a step's folder."
    ) from error


@dataclasses.dataclass(frozen=True)
class Candidates:
  """The folders that a path may mean.

  Attributes:
    folders: to be tried in this order.
    exact: whether the path names one checkpoint, for which no other may stand.
  """

  folders: tuple[epath.Path, ...]
  exact: bool


def candidates(path: os.PathLike | str) -> Candidates:
  """The checkpoints that a path names.

  Args:
    path: a work directory; `best` or `last` in it; its folder `checkpoints`; or a step's folder.

  Raises:
    CheckpointError: there is no checkpoint.
  """
  given = epath.Path(paths.resolve(path, "The checkpoint"))
  if _is_checkpoint(given):
    return Candidates((given,), exact=True)
  wanted = given.name if names_run(given) else ""
  workdir = given.parent if wanted or given.name == FOLDER else given
  directory = workdir / FOLDER
  newest = [directory / str(step) for step in steps(directory)]
  if not newest:
    raise CheckpointError(
      f"{directory} holds no checkpoint. Train first: run without --mode, or name another --workdir."
    )
  if wanted == LAST:
    return Candidates(tuple(newest), exact=False)
  if wanted == BEST:
    marked = best(workdir)
    if marked is None:
      raise CheckpointError(
        f"{workdir / BEST_FILE} does not exist: nothing was validated while this run trained. Name "
        f"{workdir / LAST}, or a folder in {directory}."
      )
    return Candidates((directory / str(marked.step),), exact=True)
  if _uses_best(newest):
    newest = _best_first(workdir, newest)
  return Candidates(tuple(newest), exact=False)


def best_if_whole(workdir: os.PathLike | str) -> Best | None:
  """What `best.json` says; None where there is none or, with a warning, where it is damaged."""
  try:
    return best(workdir)
  except CheckpointError as error:
    log.warning("%s", error)
    return None


def _best_first(workdir: epath.Path, newest: list[epath.Path]) -> list[epath.Path]:
  marked = best_if_whole(workdir)
  if marked is None:
    return newest
  first = workdir / FOLDER / str(marked.step)
  return [first, *(folder for folder in newest if folder != first)]


def names_run(path: os.PathLike | str) -> bool:
  """Whether a path is `best` or `last` in a work directory, which are no folders."""
  given = epath.Path(path).expanduser()
  return given.name in (BEST, LAST) and not given.exists() and (given.parent / FOLDER).is_dir()


def _is_checkpoint(folder: epath.Path) -> bool:
  """Whether a folder is one checkpoint, or what is left of one."""
  has_items = any((folder / item).is_dir() for item in (DESCRIPTION, CONTENTS, _LAYOUT_1))
  is_numbered = folder.name.isdecimal() and folder.parent.name in (FOLDER, DAMAGED_FOLDER)
  return has_items or (is_numbered and folder.is_dir())


def _uses_best(newest: list[epath.Path]) -> bool:
  """Whether the newest readable checkpoint's experiment asks for the best parameters."""
  for folder in newest:
    try:
      return read_stored(folder).description.experiment.test_parameters == BEST
    except Damaged:
      continue
  return False
