"""What a user can fix: the errors that the command line shows as one sentence.

Every message names the file or setting, what was found, what was expected and what to do. Any other
exception is a bug and keeps its traceback.
"""

from collections.abc import Iterable
import difflib
import importlib
import os
from types import ModuleType

_SHOWN = 5
# They join letters in names of many scripts and signs in emoji, and change nothing around them.
_JOINERS = "\u200c\u200d"


class UserError(ValueError):
  """Something that the user can fix; the message says what was found and what to do."""


class MissingExtraError(UserError):
  """A package that belongs to an extra which is not installed."""


def nearest(name: str, known: Iterable[str], *, count: int = 3, cutoff: float = 0.5) -> str:
  """The known names most like `name`, as " Did you mean A or B?", or "" where none is near."""
  close = difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)
  return f" Did you mean {' or '.join(close)}?" if close else ""


def shown(names: Iterable[str], most: int = _SHOWN) -> str:
  """The first few of some names, each `printable`, and how many more there are."""
  names = list(names)
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(map(printable, names[:most])) + more


def printable(path: os.PathLike | str) -> str:
  """A name for messages and pages: what a terminal or page cannot show is escaped, and only that.

  So are line breaks, and marks that turn the direction of the text around the name.
  """
  return "".join(
    letter if letter.isprintable() or letter in _JOINERS else ascii(letter)[1:-1]
    for letter in os.fsdecode(path)
  )


def printable_lines(text: str) -> str:
  """A text of several lines for a terminal, each line `printable`."""
  return "\n".join(map(printable, text.split("\n")))


def require(module: str, extra: str, purpose: str) -> ModuleType:
  """Imports a module of an optional dependency.

  Args:
    module: its dotted name.
    extra: the extra of this package that installs it.
    purpose: what needs it, the beginning of the message's sentence.

  Raises:
    MissingExtraError: it is not installed.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
      raise
    raise MissingExtraError(
      f"{purpose} needs the package {error.name}, which is not installed: "
      f"pip install 'hybrid-video[{extra}]'."
    ) from error
