"""What any data set lists: videos, their classes, groups and official lists, checked.

In: what a data set's own reader found (`hmdb51`, `ucf101`, `kinetics`, `folder`). Out: a `Listing`,
the one form that the builder stores.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import csv
import dataclasses
import io
import os
import pathlib

UNUSED, TRAIN, TEST = 0, 1, 2
LIST_CODES = {"train": TRAIN, "test": TEST}
VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
_SHOWN = 5


class ListingError(ValueError):
  """A folder or list that cannot serve; the message says what was found and what to do."""


@dataclasses.dataclass(frozen=True)
class Video:
  """One listed video.

  Attributes:
    name: unique in its data set: a file name, or a path relative to the data folder.
    label: class name.
    group: videos of one group share people and scenery. Lists that are drawn here keep groups
      whole; official lists stand as they are, and HMDB51's part some.
    codes: for each official split: `TRAIN`, `TEST` or `UNUSED`.
    path: its file, or None where there is none.
    tags: what else the data set says of it, by name.
  """

  name: str
  label: str
  group: str
  codes: tuple[int, ...]
  path: pathlib.Path | None
  tags: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Listing:
  """A checked list of videos.

  Attributes:
    dataset: its name, such as "hmdb51".
    folder: where it was read, for messages.
    class_names: in alphabetical order, capitals or not (of numbers: by value); a class id is a
      place in it.
    videos: by class and name.
    unlisted: video files that were found and that no list names, relative to the folder.
  """

  dataset: str
  folder: pathlib.Path
  class_names: tuple[str, ...]
  videos: tuple[Video, ...]
  unlisted: tuple[str, ...] = ()

  @property
  def num_splits(self) -> int:
    """Official splits, at least 1."""
    return len(self.videos[0].codes)


def shown(names: Iterable[str]) -> str:
  """The first few of some names, and how many more there are."""
  names = list(names)
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return ", ".join(names[:_SHOWN]) + more


def is_video(path: pathlib.PurePath) -> bool:
  """Whether a file's name ends like a video's, in capitals or not."""
  return path.suffix.lower() in VIDEO_SUFFIXES


def stem(name: str) -> str:
  """A file name without its video suffix; other endings are part of the name."""
  path = pathlib.PurePath(name)
  return path.name.removesuffix(path.suffix) if is_video(path) else path.name


def relative_name(listed: str, folder: pathlib.Path) -> str:
  """The name of a video that a list names by its path: without the data folder's own path."""
  path = pathlib.Path(listed)
  if path.is_absolute() and path.is_relative_to(folder.absolute()):
    path = path.relative_to(folder.absolute())
  return path.as_posix()


def files_below(folder: pathlib.Path) -> list[pathlib.Path]:
  """Every file at any depth, sorted, links followed, hidden ones left out.

  Raises:
    ListingError: there is no such folder, or no file in it.
  """
  if not folder.is_dir():
    raise ListingError(
      f"{folder}: there is no such folder. Set --config.data_dir to the folder of the videos."
    )
  found: list[str] = []
  entered: set[tuple[int, int]] = set()
  for place, folders, names in os.walk(folder, followlinks=True):
    status = os.stat(place)
    # A link to a folder above would be followed without end.
    if (status.st_dev, status.st_ino) in entered:
      folders.clear()
      continue
    entered.add((status.st_dev, status.st_ino))
    # Unfinished work of unpacking is not data, and archives made on macOS hold a hidden
    # `._NAME.avi` beside NAME.avi.
    folders[:] = sorted(
      name for name in folders if not name.endswith(".part") and not name.startswith(".")
    )
    found += [os.path.join(place, name) for name in names if not name.startswith(".")]
  if not found:
    raise ListingError(f"{folder}: the folder is empty. Put the videos and their lists there.")
  return [pathlib.Path(path) for path in sorted(found)]


class VideoFiles:
  """The video files among some files, to be found by name or by path.

  The suffix of a listed name need not be the file's, so that converted videos are found too.
  """

  def __init__(self, files: Iterable[pathlib.Path], fold: Callable[[str], str] = str):
    """Indexes the files.

    Args:
      files: of any kind; those that are no videos are left out.
      fold: makes names equal that mean one file, such as `str.casefold`.
    """
    self.paths = [path for path in files if is_video(path)]
    self._fold = fold
    self._by_stem: dict[str, list[pathlib.Path]] = {}
    for path in self.paths:
      self._by_stem.setdefault(fold(stem(path.name)), []).append(path)

  def named(self, name: str) -> pathlib.Path | None:
    """The file of a name, wherever it lies.

    Raises:
      ListingError: there are two.
    """
    return self._only(self._by_stem.get(self._fold(stem(name)), []))

  def at(self, listed: str, places: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """The file that a list names by its path.

    Args:
      listed: absolute; or relative to one of the places or, failing that, the last parts of the
        path of a file.
      places: folders that the path may start from; the first that has the file counts.

    Raises:
      ListingError: no place has it, and two files elsewhere end so.
    """
    for place in places:
      if (place / listed).is_file():
        return place / listed
    if pathlib.Path(listed).is_absolute():
      return None
    above = pathlib.PurePath(self._fold(listed)).parts[:-1]
    return self._only(
      [
        path
        for path in self._by_stem.get(self._fold(stem(listed)), [])
        if not above or tuple(map(self._fold, path.parts[:-1]))[-len(above) :] == above
      ]
    )

  def _only(self, paths: list[pathlib.Path]) -> pathlib.Path | None:
    if len(paths) > 1:
      raise ListingError(f"{paths[0]} and {paths[1]}: two files of one name. Remove one.")
    return paths[0] if paths else None


def only_file(files: Iterable[pathlib.Path], names: Sequence[str]) -> pathlib.Path | None:
  """The one file that has one of some names, capitals or not; None where there is none.

  Raises:
    ListingError: there are two.
  """
  found = [path for path in files if path.name.lower() in names]
  if len(found) > 1:
    raise ListingError(f"{found[0]} and {found[1]}: two files for one list. Remove one.")
  return found[0] if found else None


def _read_text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ListingError(
      f"{path}: byte {error.start} is not UTF-8 text. Save the file in UTF-8."
    ) from error


def read_lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """The lines of a list that are not blank, with their numbers, without their ends.

  Raises:
    ListingError: the file is not UTF-8 text.
  """
  # Not `splitlines`, which would part a name at some rare signs.
  for number, line in enumerate(_read_text(path).split("\n"), 1):
    if line.strip():
      yield number, line


def split_row(line: str) -> list[str]:
  """The fields of one line of CSV, stripped; quotes that do not match are signs like any other."""
  return [field.strip() for field in next(csv.reader([line], skipinitialspace=True), [])]


def read_rows(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
  """The rows of a CSV file that are not blank, with their line numbers, fields stripped.

  Raises:
    ListingError: the file is not UTF-8 text, or its quotes do not match.
  """
  reader = csv.reader(io.StringIO(_read_text(path)), strict=True, skipinitialspace=True)
  try:
    for row in reader:
      fields = [field.strip() for field in row]
      if any(fields):
        yield reader.line_num, fields
  except csv.Error as error:
    raise ListingError(
      f"{path}, line {reader.line_num}: not a line of CSV ({error}). Put a field that holds a "
      "comma in double quotes, and double the quotes within it."
    ) from error


def read_table(path: pathlib.Path) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
  """A CSV file with a header.

  Returns:
    (column names in lower case; for each row, where it stands, for messages, and its fields by
    column). The rows are read as they are asked for.

  Raises:
    ListingError: as `read_rows`; a row has other fields than the header.
  """
  rows = read_rows(path)
  columns = [column.lower() for column in next(rows, (1, [""]))[1]]

  def fields_of_rows() -> Iterator[tuple[str, dict[str, str]]]:
    for number, fields in rows:
      place = f"{path}, line {number}"
      if len(fields) != len(columns):
        raise ListingError(
          f"{place}: found {len(fields)} fields, expected {len(columns)} as in the header. Put a "
          "field that holds a comma in double quotes."
        )
      yield place, dict(zip(columns, fields, strict=True))

  return columns, fields_of_rows()


def check_class_folders(videos: Iterable[Video], folder: pathlib.Path) -> None:
  """Refuses videos that lie in a folder named as another class than their list says.

  Raises:
    ListingError: names the file, both classes, and what to do.
  """
  videos = list(videos)
  labels = {video.label.casefold(): video.label for video in videos}
  for video in videos:
    # The data folder itself, or one far above, may bear any name.
    if video.path is None or video.path.parent == folder:
      continue
    other = labels.get(video.path.parent.name.casefold(), video.label)
    if other != video.label:
      raise ListingError(
        f"{video.path}: the file lies in the folder of {other}, but the lists say {video.label}. "
        f"Unpack the archive of {other} anew, or move the file to a folder {video.label}."
      )


def check_training(videos: Iterable[Video], folder: pathlib.Path, advice: str) -> None:
  """Refuses lists of which no model could learn, or on which none could be tested.

  Args:
    videos: with the codes of the same splits each.
    folder: for messages.
    advice: what to do about it.

  Raises:
    ListingError: in some split a class has test videos but none for training.
  """
  lists: dict[tuple[int, str], set[int]] = {}
  for video in videos:
    for split, code in enumerate(video.codes, 1):
      lists.setdefault((split, video.label), set()).add(code)
  lacking = [label for (_, label), codes in lists.items() if TEST in codes and TRAIN not in codes]
  if lacking:
    raise ListingError(
      f"{folder}: these classes have test videos but none for training: {shown(sorted(lacking))}. "
      f"{advice}"
    )


def _class_order(name: str) -> tuple[int, int, str, str]:
  if name.isascii() and name.isdigit():
    return 0, int(name), "", name
  return 1, 0, name.casefold(), name


def make(
  dataset: str,
  folder: os.PathLike | str,
  videos: Iterable[Video],
  found: Iterable[pathlib.Path] = (),
) -> Listing:
  """Sorts and checks what a reader found.

  Args:
    dataset: its name.
    folder: where it was read.
    videos: as listed, in any order.
    found: the video files in the folder; those that no video has become `Listing.unlisted`.

  Raises:
    ListingError: nothing is listed, a name or file is listed twice or in two classes, splits
      differ in number, or no listed video has a file.
  """
  folder = pathlib.Path(folder)
  videos = sorted(videos, key=lambda video: (_class_order(video.label), video.name))
  if not videos:
    raise ListingError(f"{folder}: no video is listed. Look at the lists of {dataset} there.")
  by_name: dict[str, Video] = {}
  by_path: dict[str, Video] = {}
  for video in videos:
    if video.name in by_name:
      first = by_name[video.name].label
      what = "twice" if first == video.label else f"in two classes, {first} and {video.label}"
      raise ListingError(f"{folder}: {video.name} is listed {what}. Remove one entry.")
    by_name[video.name] = video
    if len(video.codes) != len(videos[0].codes) or not video.codes:
      raise ListingError(f"{folder}: {video.name} is not in the lists of every split.")
    if video.path:
      path = os.path.abspath(video.path)
      if path in by_path:
        raise ListingError(
          f"{video.path}: one file for two listed videos, {by_path[path].name} ("
          f"{by_path[path].label}) and {video.name} ({video.label}). Remove one entry."
        )
      by_path[path] = video
  class_names = sorted({video.label for video in videos}, key=_class_order)
  if not by_path:
    raise ListingError(
      f"{folder}: none of the {len(videos)} listed videos is there, such as {videos[0].name}. Put "
      "the video files into this folder, at any depth, under the names in the lists."
    )
  unlisted = [
    path.relative_to(folder).as_posix() for path in found if os.path.abspath(path) not in by_path
  ]
  return Listing(dataset, folder, tuple(class_names), tuple(videos), tuple(sorted(unlisted)))
