"""Lists in text files: lines, rows of CSV, and lists of videos with or without a header.

In: a list's path. Out: its lines or rows with their line numbers, or the `Row`s of a list of videos:
which file, which class, and whatever else its columns say. The only place that knows what columns
are called.

A list of videos is UTF-8 text (a byte order mark and Windows' line ends do not matter), with fields
separated by commas, tabs, semicolons or spaces, and quotes around a field that holds a separator.
"""

from collections.abc import Iterator, Sequence
import csv
import dataclasses
import io
import logging
import pathlib
import re

from hybrid_video import errors
from hybrid_video.datasets import file_kinds
from hybrid_video.datasets.listed_paths import Finder
from hybrid_video.datasets.listing import ListingError

log = logging.getLogger("hybrid_video")

# What columns are called, in lower case with `_` for spaces and hyphens; of several columns for the
# path, the first in this order counts.
_PATH = """
  path file_path filepath video_path videopath clip_path relative_path rel_path relpath full_path
  filename file_name file video_file videofile clip_file video_name videoname clip_name video clip vid
  vid_name name video_id videoid clip_id id
"""
_LABEL = """
  label label_name class class_name classname category category_name action action_name action_label
  activity target labels gt y label_id labelid label_idx label_index class_id classid class_idx
  class_index category_id action_id target_id
"""
_SPLIT = "split list subset partition fold set usage"
_GROUP = """
  group group_id subject subject_id person person_id actor actor_id participant participant_id
"""
PATH = _PATH.split()
_SYNONYMS = {
  "path": PATH,
  "label": _LABEL.split(),
  "split": _SPLIT.split(),
  "group": _GROUP.split(),
  "youtube_id": ["youtube_id"],
  "time_start": ["time_start"],
  "time_end": ["time_end"],
}
_MEANING = {name: column for column, names in _SYNONYMS.items() for name in names}
# A column of row numbers, as pandas writes it.
_ROW_NUMBERS = ("", "index", "unnamed:_0")
_NUMBER = re.compile(r"[0-9]+(\.0*)?")
# A name as near as this to a known one is taken for a slip of the pen.
_SLIP = 0.8
FORMS = (
  "a header such as `path,label`, optionally with `split` and `group`, or "
  "`label,youtube_id,time_start,time_end`, or lines `path,label` or `path label`"
)
_DELIMITERS = (",", "\t", ";")


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of a list of videos, as it is written; "" where its list has no such column.

  Attributes:
    source: its file and line, for messages.
    label: the class's name, or its number where the list has no names.
    class_id: the class's number where the list has names and numbers.
    path: the video.
    split: the list that the video belongs to.
    group: videos of one group share people and scenery.
    youtube_id, time_start, time_end: the video and the seconds cut from it, where there is no path.
  """

  source: str
  label: str
  class_id: str = ""
  path: str = ""
  split: str = ""
  group: str = ""
  youtube_id: str = ""
  time_start: str = ""
  time_end: str = ""


def _read_text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ListingError(
      f"{path}: byte {error.start} is not UTF-8 text. Save the file in UTF-8."
    ) from error
  except OSError as error:
    raise ListingError(
      f"{path}: the list cannot be read ({error.strerror}). Make the file readable."
    ) from error


def read_lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """The lines of a list that are not blank, each with its number, without line ends.

  Raises:
    ListingError: the file cannot be read or is not UTF-8 text.
  """
  # Not `splitlines`, which would split a name at some rare characters.
  for number, line in enumerate(_read_text(path).split("\n"), 1):
    if line.strip():
      yield number, line


def split_row(line: str, delimiter: str = ",") -> list[str]:
  """The fields of one line of CSV, stripped; a quote without its pair is a character like others."""
  reader = csv.reader([line], skipinitialspace=True, delimiter=delimiter)
  try:
    return [field.strip() for field in next(reader, [])]
  except csv.Error:
    # A field longer than any path.
    return [line.strip()]


def read_rows(path: pathlib.Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
  """The rows of a CSV file that are not blank, each with its line number, fields stripped.

  Raises:
    ListingError: the file cannot be read, is not UTF-8 text, or its quotes do not match.
  """
  text = io.StringIO(_read_text(path))
  reader = csv.reader(text, strict=True, skipinitialspace=True, delimiter=delimiter)
  try:
    for row in reader:
      fields = [field.strip() for field in row]
      if any(fields):
        yield reader.line_num, fields
  except csv.Error as error:
    raise ListingError(
      f"{path}, line {reader.line_num}: not a line of CSV ({error}). Put a field that holds a "
      "separator in double quotes, and double the quotes within it."
    ) from error


def column_name(field: str) -> str:
  """A column's name in the form of the tables of synonyms: `Video Path` is `video_path`."""
  return re.sub(r"[\s\-]+", "_", field.strip().lower())


def read_videos(path: pathlib.Path, finder: Finder) -> list[Row]:
  """Reads a list of videos.

  Args:
    path: the list.
    finder: finds the videos that it names.

  Raises:
    ListingError: the file cannot be read or lists no video, a line has another form, or its first
      line is a header with unknown columns or without a column for the path or the label.
  """
  first = next(read_lines(path), None)
  header = _header(first[1], path.parent, finder) if first else None
  if header:
    rows = _with_header(path, *header)
  else:
    rows = _without_header(path)
    _check_first(rows, path.parent, finder)
  if not rows:
    raise ListingError(f"{path}: the file lists no video. Expected {FORMS}.")
  return _whole_numbers(rows)


def _whole_numbers(rows: list[Row]) -> list[Row]:
  """The rows with labels such as `3.0`, as pandas writes numbers in a column with gaps, as `3`."""
  for field in ("label", "class_id"):
    texts = [getattr(row, field) for row in rows]
    numbers = [re.fullmatch(r"([0-9]+)\.0*", text) for text in texts]
    if all(numbers):
      pairs = zip(rows, numbers, strict=True)
      rows = [dataclasses.replace(row, **{field: found[1]}) for row, found in pairs if found]
  return rows


def has_labels(path: pathlib.Path, finder: Finder) -> bool:
  """Whether a list of videos has labels, judged by its first line; published test lists have none."""
  first = next(read_lines(path), None)
  if first is None:
    return False
  header = _header(first[1], path.parent, finder)
  if header:
    return any(_MEANING.get(column) == "label" for column in header[0])
  return bool(_pairs(first[1]))


def is_official(path: pathlib.Path) -> bool:
  """Whether a list has the columns of Kinetics' own lists."""
  first = next(read_lines(path), None)
  return first is not None and "youtube_id" in map(column_name, split_row(first[1]))


def _header(line: str, folder: pathlib.Path, finder: Finder) -> tuple[list[str], str] | None:
  """The columns of a header and its delimiter; None where the line is no header."""
  for delimiter in (*_DELIMITERS, " "):
    fields = line.split() if delimiter == " " else split_row(line, delimiter)
    columns = [column_name(field) for field in fields]
    meanings = [_MEANING.get(column, "") for column in columns]
    named = {"path", "label"} <= {*meanings} or {*meanings} <= {"path", "split", "group"}
    paths = [field for field, meaning in zip(fields, meanings, strict=True) if meaning == "path"]
    # A file may be called `video`, without a suffix, and a class `action`.
    is_named = named and not any(finder.is_file(text, folder) for text in paths)
    if "youtube_id" in meanings or is_named:
      return columns, delimiter
  return None


def _columns(path: pathlib.Path, columns: Sequence[str]) -> dict[str, list[int]]:
  """Where the columns of each meaning stand, the strongest first.

  Raises:
    ListingError: a column is unknown and like a known one, one is missing, or two mean the same.
  """
  places: dict[str, list[int]] = {}
  unknown = []
  for place, column in enumerate(columns):
    if column in _MEANING:
      places.setdefault(_MEANING[column], []).append(place)
    elif column not in _ROW_NUMBERS:
      unknown.append(column)
  shown = errors.printable(",".join(columns))
  for column in unknown:
    if nearest := errors.nearest(column, _MEANING, count=1, cutoff=_SLIP):
      raise ListingError(
        f"{path}: found the header {shown}, and no column is called {errors.printable(column)!r}."
        f"{nearest} Fix the first line."
      )
  if unknown:
    log.info("%s: these columns are not read: %s", path, errors.printable(", ".join(unknown)))
  if "label" not in places or not {"path", "youtube_id"} & places.keys():
    what = "label" if "label" not in places else "path"
    raise ListingError(
      f"{path}: the header {shown} has no column `{what}`, nor another name of it "
      f"({errors.shown(_SYNONYMS[what], 12)}). Take a list with labels, or fix the first line."
    )
  places.get("path", []).sort(key=lambda place: PATH.index(columns[place]))
  for meaning, found in places.items():
    if len(found) > (2 if meaning == "label" else 1) and meaning != "path":
      raise ListingError(
        f"{path}: found the header {shown}, where several columns give the {meaning}. Remove all "
        "but one."
      )
  return places


def _with_header(path: pathlib.Path, columns: list[str], delimiter: str) -> list[Row]:
  places = _columns(path, columns)
  lines: list[tuple[str, list[str]]] = []
  for number, fields in _split_rows(path, len(columns), delimiter):
    source = f"{path}, line {number}"
    if len(fields) != len(columns):
      raise ListingError(
        f"{source}: found {len(fields)} fields, expected {len(columns)}, one a column of the header. "
        "Put a field that holds a separator in double quotes."
      )
    lines.append((source, fields))
  label, class_id = _label_columns(path, columns, places["label"], [fields for _, fields in lines])
  rows = []
  for source, fields in lines:
    known = {m: fields[at[0]] for m, at in places.items() if m != "label"}
    known |= {"label": fields[label], "class_id": "" if class_id is None else fields[class_id]}
    if known.get("path"):
      known["youtube_id"] = ""
    if not known["label"] or not (known.get("path") or known.get("youtube_id")):
      raise ListingError(
        f"{source}: found {errors.printable(','.join(fields))!r}, where the video or its label is "
        "empty. Fix the line, or take a list with labels."
      )
    rows.append(Row(source, **known))
  return rows


def _split_rows(
  path: pathlib.Path, columns: int, delimiter: str
) -> Iterator[tuple[int, list[str]]]:
  """The rows below a header; of a list split at spaces, the first field may hold some."""
  if delimiter != " ":
    rows = read_rows(path, delimiter)
  else:
    rows = ((n, line.strip().rsplit(maxsplit=columns - 1)) for n, line in read_lines(path))
  next(rows, None)
  return rows


def _label_columns(
  path: pathlib.Path, columns: list[str], places: list[int], rows: list[list[str]]
) -> tuple[int, int | None]:
  """Where labels stand, and where their numbers do beside them.

  Raises:
    ListingError: there are two columns for the label, and not one of names and one of numbers.
  """
  if len(places) == 1:
    return places[0], None
  numbers = [place for place in places if all(_NUMBER.fullmatch(row[place]) for row in rows)]
  if len(numbers) != 1:
    raise ListingError(
      f"{path}: found the columns {' and '.join(columns[place] for place in places)}, expected one "
      "with the class's name and one with its number, a whole number in every line. Remove one."
    )
  return next(place for place in places if place not in numbers), numbers[0]


def is_number(text: str) -> bool:
  """Whether a label is a class's number: ASCII digits alone."""
  return text.isascii() and text.isdigit()


def _pairs(line: str) -> list[list[str]]:
  """Every way to read a line as a path and a label."""
  ways = [split_row(line, delimiter) for delimiter in _DELIMITERS if delimiter in line]
  ways.append([field.strip() for field in line.strip().rsplit(maxsplit=1)])
  return [fields for fields in ways if len(fields) == 2 and all(fields)]


def _without_header(path: pathlib.Path) -> list[Row]:
  rows = []
  # Quotes are read line by line: in lists split at spaces they are characters like any other.
  for number, line in read_lines(path):
    source = f"{path}, line {number}"
    pairs = _pairs(line)
    if not pairs:
      raise ListingError(
        f"{source}: found {errors.printable(line.strip())!r}, expected {FORMS}. Fix the line."
      )
    # A path may hold separators, so its suffix decides where the line is split.
    ended = [pair for pair in pairs if file_kinds.is_video(pair[0])]
    listed, label = (ended or pairs)[0]
    rows.append(Row(source, label, path=listed))
  return rows


def _check_first(rows: list[Row], folder: pathlib.Path, finder: Finder) -> None:
  """Checks that the first line is not a header with names that are not known.

  Raises:
    ListingError: its path leads to no video and its label is unlike all others.
  """

  def leads_to_video(row: Row) -> bool:
    return file_kinds.is_video(row.path) or finder.leads_to_file(row.path, folder)

  if len(rows) < 2 or is_number(rows[0].label) or leads_to_video(rows[0]):
    return
  first, *others = rows
  numbered = all(is_number(row.label) for row in others)
  unlike = all(row.label != first.label for row in others)
  if numbered or (unlike and all(map(leads_to_video, others))):
    raise ListingError(
      f"{first.source}: found {errors.printable(f'{first.path},{first.label}')!r}, which is no video "
      f"and looks like a header. Expected {FORMS}. Fix or remove the line."
    )
