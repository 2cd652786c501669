"""Class names and their numbers: from files of class names, and from the lists themselves.

In: the labels of a list, as names or numbers, and the folder's files of class names. Out: `Classes`:
what each label is called, and the names in the order of their ids.

A file of class names has one name a line, from the id 0; or names with their ids, in any order, as
`id name`, `id,name` or `name,id` (commas, tabs, semicolons or spaces) with or without a header; or it
is JSON: a list of names, {"0": "name"} or {"name": 0}. Ids may count from 1 where the lists' numbers
agree. Ids are the lists' own: nothing is sorted where there are numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import logging
import pathlib
import re

from hybrid_video import errors
from hybrid_video.datasets import file_kinds, tables
from hybrid_video.datasets.listing import ListingError
from hybrid_video.datasets.tables import Row, is_number

log = logging.getLogger("hybrid_video")

LABEL_FILES = (
  "labels.txt", "label_map.txt", "kinetics_label_map.txt", "kinetics_label_map.csv", "classes.txt",
  "classind.txt", "class_names.txt", "classnames.txt", "class_ids.txt", "labels.csv", "classes.csv",
  "label_map.csv", "class_names.csv", "labels.tsv", "classes.tsv", "label_map.tsv", "labels.json",
  "classes.json", "label_map.json", "class_names.json", "class_ids.json",
)  # fmt: skip
# A number beyond is a slip, such as a video's id in the place of its class.
MAX_CLASSES = 100_000
_IDS = """
  id ids index idx number no num y label_id labelid label_idx label_index class_id classid class_idx
  class_index category_id action_id target_id class_number
"""
_NAMES = """
  name names label labels label_name class class_name classname classes category category_name action
  action_name activity
"""
_VIDEO_COLUMNS = frozenset(tables.PATH) - {"id", "name"}
_ID_COLUMNS, _NAME_COLUMNS = frozenset(_IDS.split()), frozenset(_NAMES.split())
_FORMS = "one name a line, `id name`, `id,name` or `name,id`"


@dataclasses.dataclass(frozen=True)
class Classes:
  """What labels are called, and the order of classes.

  Attributes:
    names: class name by label, as lists write it.
    in_order: all class names by class id; empty where nothing but names is known, whose order is
      alphabetical.
  """

  names: Mapping[str, str]
  in_order: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _ClassFile:
  """A file of class names.

  Attributes:
    path: the file.
    names: class name by number.
    numbered: whether the numbers are its own; otherwise names were counted from 0.
  """

  path: pathlib.Path
  names: Mapping[int, str]
  numbered: bool


def resolve(rows: Sequence[Row], class_files: Iterable[pathlib.Path]) -> Classes:
  """The classes of a list's labels.

  Where rows have names and numbers, or numbers that a file names, ids are the numbers (less one where
  they count from 1). Numbers without names are names themselves, and all up to the largest are
  classes. Names alone have their file's order, if one has all of them.

  Args:
    rows: of all lists of the data set.
    class_files: files of class names; all have to say the same.

  Raises:
    ListingError: a file of class names has another form or contradicts another, a class has two
      numbers or a number two names, or a number is too large, or not in the file.
  """
  described = _read_files(class_files)
  given = _given_ids(rows)
  if given:
    if described and described.numbered:
      _check_agree(given, described)
      given = {**described.names, **given}
    return _numbered({row.label: row.label for row in rows}, given)
  sources = {row.label: row.source for row in reversed(rows)}
  if all(map(is_number, sources)):
    if described is None:
      for label, source in sources.items():
        _check_size(label, source)
      most = max(map(int, sources))
      return Classes({x: str(int(x)) for x in sources}, tuple(map(str, range(most + 1))))
    return _named_numbers(sources, described)
  if all(is_number(label.removeprefix("-")) for label in sources):
    label = next(label for label in sources if not is_number(label))
    raise ListingError(
      f"{sources[label]}: found the label {label}, expected a class's number, 0 or more. Leave out "
      "videos without a label."
    )
  return _by_name(sources, described)


def class_files(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
  """The files of class names among some files, by their names."""
  return [path for path in paths if path.name.lower() in LABEL_FILES]


# Lists with numbers.


def _check_size(number: str, source: str) -> None:
  if len(number) > 18 or int(number) >= MAX_CLASSES:
    raise ListingError(
      f"{source}: found the class number {number[:40]}, expected less than {MAX_CLASSES}. Fix the "
      "line, or number the classes from 0."
    )


def _given_ids(rows: Iterable[Row]) -> dict[int, str]:
  """Class names by number, of rows that have both.

  Raises:
    ListingError: a class has two numbers, or a number two names.
  """
  names: dict[int, str] = {}
  numbers: dict[str, int] = {}
  for row in rows:
    if row.class_id:
      _check_size(row.class_id, row.source)
      number = int(row.class_id)
      _add(names, numbers, number, row.label, row.source)
  return names


def _add(
  names: dict[int, str], numbers: dict[str, int], number: int, name: str, source: str
) -> None:
  other, known = names.setdefault(number, name), numbers.setdefault(name, number)
  if other != name:
    raise ListingError(
      f"{source}: the class number {number} is {errors.printable(name)!r} here and "
      f"{errors.printable(other)!r} elsewhere. Give each class one number."
    )
  if known != number:
    raise ListingError(
      f"{source}: the class {errors.printable(name)!r} has the number {number} here and {known} "
      "elsewhere. Give each class one number."
    )


def _check_agree(given: Mapping[int, str], described: _ClassFile) -> None:
  for number, name in given.items():
    other = described.names.get(number, name)
    if other != name:
      raise ListingError(
        f"{described.path}: the class number {number} is {errors.printable(other)!r} here and "
        f"{errors.printable(name)!r} in the lists. Make them agree, or remove this file."
      )


def _numbered(labels: Mapping[str, str], names: Mapping[int, str]) -> Classes:
  """Classes whose numbers are known; those without a name in between are called by their number."""
  # Counted from 1 alone: otherwise a class without a name would be the first.
  base = int(min(names) == 1 and max(names) == len(names))
  in_order = tuple(names.get(number, str(number)) for number in range(base, max(names) + 1))
  if len({*in_order}) < len(in_order):
    twice = next(name for name in in_order if in_order.count(name) > 1)
    raise ListingError(
      f"The class name {errors.printable(twice)!r} is also the number of a class without a name. "
      "Name every class number in the lists or in a file of class names."
    )
  return Classes(labels, in_order)


def _named_numbers(sources: Mapping[str, str], described: _ClassFile) -> Classes:
  """Classes of numbers that a file names."""
  names, used = described.names, {int(label[:18]) for label in sources}
  if not described.numbered and 0 not in used and len(names) in used:
    names = {number + 1: name for number, name in names.items()}
  for label, source in sources.items():
    if int(label[:18]) not in names:
      first, last = min(names), max(names)
      hint = " The lists count from 0 and that file from 1." if first == 1 and 0 in used else ""
      raise ListingError(
        f"{source}: found the label {label[:40]}, but {described.path} names {len(names)} classes, "
        f"{first} to {last}.{hint} Complete that file, or remove it to use the numbers as names."
      )
  return _numbered({label: names[int(label)] for label in sources}, names)


def _by_name(sources: Mapping[str, str], described: _ClassFile | None) -> Classes:
  """Classes of names, in the order of a file that has all of them."""
  labels = {label: label for label in sources}
  if described is None:
    return Classes(labels)
  unknown = [label for label in sources if label not in described.names.values()]
  if unknown:
    log.warning(
      "%s: %d of the %d classes in the lists are not in it, such as %s: class ids are alphabetical",
      described.path, len(unknown), len(labels), errors.printable(unknown[0]),
    )  # fmt: skip
    return Classes(labels)
  return _numbered(labels, described.names)


# Files of class names.


def _read_files(paths: Iterable[pathlib.Path]) -> _ClassFile | None:
  """What the files of class names say, all the same.

  Raises:
    ListingError: a file has another form, or two disagree.
  """
  read = [described for path in paths if (described := read_class_file(path))]
  for other in read[1:]:
    if [*other.names.values()] != [*read[0].names.values()]:
      raise ListingError(
        f"{read[0].path} and {other.path}: two files of class names, which disagree. Remove one."
      )
  return read[0] if read else None


def read_class_file(path: pathlib.Path) -> _ClassFile | None:
  """Reads a file of class names, sorted by number; None where it is a list of videos.

  Raises:
    ListingError: the file has another form, or a number or name twice, or a number is too large.
  """
  if path.suffix.lower() == ".json":
    pairs, numbered = _json_pairs(path), True
  else:
    pairs, numbered = _text_pairs(path)
  if _lists_videos(path) or any(file_kinds.is_video(name) for _, _, name in pairs):
    return None
  names: dict[int, str] = {}
  numbers: dict[str, int] = {}
  for source, number, name in pairs:
    _check_size(number, source)
    if int(number) in names or name in numbers:
      raise ListingError(
        f"{source}: the class {errors.printable(name)!r} or the number {number} is there twice; a "
        "class is named twice. Remove one line."
      )
    _add(names, numbers, int(number), name, source)
  if not names:
    raise ListingError(f"{path}: the file names no class. Expected {_FORMS}.")
  return _ClassFile(path, dict(sorted(names.items())), numbered)


def _lists_videos(path: pathlib.Path) -> bool:
  """Whether a file's header has a column that is a video's path and not a class's name or number."""
  first = next(tables.read_lines(path), (0, ""))[1]
  columns = map(tables.column_name, re.split("[,;\t]", first))
  return any(column in _VIDEO_COLUMNS for column in columns)


# (source for messages, number, name)
_Pairs = list[tuple[str, str, str]]


def _text_pairs(path: pathlib.Path) -> tuple[_Pairs, bool]:
  lines = [(f"{path}, line {number}", line.strip()) for number, line in tables.read_lines(path)]
  for delimiter in (",", "\t", ";", " "):
    pairs = _id_pairs(lines, delimiter)
    if pairs is not None:
      return pairs, True
  in_columns = path.suffix.lower() in (".csv", ".tsv")
  if in_columns and lines and tables.column_name(lines[0][1]) in _NAME_COLUMNS:
    lines = lines[1:]
  pairs = []
  for number, (source, line) in enumerate(lines):
    fields = tables.split_row(line)
    # A name may hold commas, in quotes or not.
    pairs.append((source, str(number), fields[0] if len(fields) == 1 else line))
  return pairs, False


def _id_pairs(lines: Sequence[tuple[str, str]], delimiter: str) -> _Pairs | None:
  """The rows of a file whose every line has a number; None where not every line has one.

  Raises:
    ListingError: a header says where numbers stand, and a line has none there.
  """
  if not lines:
    return None
  header = lines[0][1].split() if delimiter == " " else tables.split_row(lines[0][1], delimiter)
  columns = [tables.column_name(field) for field in header]
  ids = [place for place, column in enumerate(columns) if column in _ID_COLUMNS]
  names = [place for place, column in enumerate(columns) if column in _NAME_COLUMNS]
  if len(columns) > 2 and len(ids) == 1 and names and delimiter != " ":
    split = [(source, tables.split_row(line, delimiter)) for source, line in lines[1:]]
    return [_by_columns(source, fields, ids[0], names[0]) for source, fields in split]
  known = len(columns) == 2 and len(ids) == 1 and bool(names)
  if known:
    at = -ids[0]
    split = [(source, _in_two(line, delimiter, at)) for source, line in lines[1:]]
    return [_by_columns(source, fields, at, -1 - at) for source, fields in split]
  for at in (0, -1):
    split = [(source, _in_two(line, delimiter, at)) for source, line in lines]
    # Whatever a header calls its columns, below it are numbers.
    if delimiter != " " and len(columns) == 2 and not is_number(columns[at]):
      split = split[1:]
    if split and all(len(fields) == 2 and is_number(fields[at]) for _, fields in split):
      return [(source, fields[at], fields[-1 - at]) for source, fields in split]
  return None


def _in_two(line: str, delimiter: str, at: int) -> list[str]:
  """The number at a line's start (`at` 0) or end (-1), and the rest, in their order in the line."""
  if delimiter != " " and len(fields := tables.split_row(line, delimiter)) == 2:
    return fields
  # A name may hold separators.
  separator = None if delimiter == " " else delimiter
  split = line.split(separator, 1) if at == 0 else line.rsplit(separator, 1)
  return [field.strip() for field in split]


def _by_columns(
  source: str, fields: Sequence[str], id_at: int, name_at: int
) -> tuple[str, str, str]:
  whole = len(fields) > max(id_at, name_at, 1)
  if not whole or not is_number(fields[id_at]) or not fields[name_at]:
    raise ListingError(
      f"{source}: found {errors.printable(','.join(fields))!r}, expected a class's number and name, "
      "as the header says. Fix the line."
    )
  return source, fields[id_at], fields[name_at]


def _json_pairs(path: pathlib.Path) -> _Pairs:
  text = "\n".join(line for _, line in tables.read_lines(path))
  try:
    # Objects as their pairs: a name that is there twice is seen.
    values = json.loads(text, object_pairs_hook=tuple)
  except (ValueError, RecursionError) as error:
    raise ListingError(
      f"{path}: not JSON ({errors.printable(str(error))}). Fix the file."
    ) from error
  source = str(path)
  pairs: list[tuple[object, object]] = []
  if isinstance(values, list):
    pairs = list(enumerate(values))
  elif isinstance(values, tuple):
    pairs = list(values)
    if not all(is_number(str(number)) for number, _ in pairs):
      pairs = [(number, name) for name, number in pairs]
  texts = [(str(number), str(name).strip()) for number, name in pairs]
  plain = all(isinstance(name, str | int) and not isinstance(name, bool) for _, name in pairs)
  if not plain or not all(is_number(number) and name for number, name in texts):
    raise ListingError(
      f'{path}: expected a list of class names, {{"0": "name"}} or {{"name": 0}}. Fix the file.'
    )
  return [(source, number, name) for number, name in texts]
