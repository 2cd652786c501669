"""Which classes of one list of names are which of another's: the one place that compares names.

In: class names by id, of a checkpoint and of a data set. Out: the id there of each class here, or the
differences in words.
"""

from collections import Counter
from collections.abc import Sequence
import os
import pathlib
import re
import unicodedata

from hybrid_video import errors

_SHOWN = 3
# What people write differently in the same name: "shoot_bow", "Shoot bow", "hurling (sport)".
_SPACING = re.compile(r"[\s_\-‐-―]+")
_DROPPED = re.compile(r"[\"'`´‘’‚“”„()\[\]{}]")


class ClassNamesError(errors.UserError):
  """A list of class names that cannot be used; the message says what was found and what to do."""


def normalized(name: str) -> str:
  """What is the same for two ways to write one class.

  Case, Unicode form, quotes and brackets do not count; spaces, underscores and hyphens are one.
  """
  text = unicodedata.normalize("NFKC", name).casefold()
  return _SPACING.sub(" ", _DROPPED.sub("", text)).strip()


def ids_in(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int | None, ...]:
  """The id there of each class here, None where there is none; no id comes twice.

  A name that is written the same counts first, then one that is the same `normalized` and the only
  such name on both sides: where case alone tells classes apart, it tells them apart here too.

  Args:
    theirs, ours: class names by id.
  """
  exact = {name: i for i, name in enumerate(theirs)}
  taken = {exact[name] for name in ours if name in exact}
  rest = {i: normalized(name) for i, name in enumerate(theirs) if i not in taken}
  counts = Counter(rest.values())
  by_form = {form: i for i, form in rest.items() if counts[form] == 1}
  wanted = Counter(normalized(name) for name in ours if name not in exact)

  def find(name: str) -> int | None:
    if name in exact:
      return exact[name]
    form = normalized(name)
    return by_form.get(form) if wanted[form] == 1 else None

  return tuple(map(find, ours))


def differences(theirs: Sequence[str], ours: Sequence[str]) -> str:
  """How two lists of classes differ, in words with the first few names; "" where they do not.

  Args:
    theirs, ours: class names by id; the words for them are "there" and "here".
  """
  ids = ids_in(theirs, ours)
  if ids == tuple(range(len(theirs))):
    return ""
  common = {i for i in ids if i is not None}
  if len(common) == len(theirs) == len(ours):
    moved = [
      f"{ours[here]} has id {there} there and {here} here"
      for here, there in enumerate(ids)
      if there != here
    ]
    return f"the same {len(ours)} classes in another order: {errors.shown(moved, _SHOWN)}"
  parts = [f"{len(common)} in common"]
  missing = [name for i, name in enumerate(theirs) if i not in common]
  new = [name for name, i in zip(ours, ids, strict=True) if i is None]
  for names, where in ((missing, "there alone"), (new, "here alone")):
    if names:
      parts.append(f"{len(names)} {where} ({errors.shown(names, _SHOWN)})")
  return f"{len(theirs)} classes there and {len(ours)} here: {', '.join(parts)}"


def read_names(path: os.PathLike | str) -> tuple[str, ...]:
  """The class names in a text file, one a line; the id is the line's number, from 0.

  Raises:
    ClassNamesError: the file cannot be read, is not UTF-8 text, or has a blank line between names or
      a name twice.
  """
  shown = errors.printable(path)
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8-sig")
  except OSError as error:
    raise ClassNamesError(
      f"{shown}: the class names cannot be read ({error.strerror or error}). Give a text file with one "
      "name a line, in the order of the ids."
    ) from error
  except UnicodeDecodeError as error:
    raise ClassNamesError(
      f"{shown}: byte {error.start} is not UTF-8 text. Save the file in UTF-8."
    ) from error
  names = tuple(line.strip() for line in text.rstrip().split("\n"))
  first: dict[str, int] = {}
  for number, name in enumerate(names, 1):
    if not name:
      raise ClassNamesError(
        f"{shown}, line {number}: found a blank line, expected a class name on every line, since the "
        "line's number is the class's id."
      )
    if first.setdefault(name, number) != number:
      raise ClassNamesError(
        f"{shown}, line {number}: {errors.printable(name)} stands on line {first[name]} already, "
        "expected every class once."
      )
  return names
