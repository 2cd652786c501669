"""What any data set lists: videos, their classes, groups and official lists, checked.

In: what a data set's own reader reads (`hmdb51`, `ucf101`, `kinetics`, `folder`). Out: a `Listing`,
the one form that the builder stores.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import csv
import dataclasses
import errno
import io
import logging
import os
import pathlib

from hybrid_video import errors, files

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
# The folder in a data folder that holds what its archives contained.
UNPACKED = "unpacked"

log = logging.getLogger("hybrid_video")


class ListingError(errors.UserError):
  """A folder or list that cannot be used; the message says what was found and what to do."""


@dataclasses.dataclass(frozen=True)
class Video:
  """One listed video.

  Attributes:
    name: unique in its data set: a file name, or a path relative to the data folder.
    label: class name.
    group: videos of one group share people and scenery. Lists drawn by this project keep groups
      whole; official lists stay as they are, and HMDB51's split some.
    codes: for each official split: `splits.TRAIN`, `splits.TEST` or `splits.UNUSED`.
    path: its file, or None where there is none.
    tags: what else the data set says about it, by name.
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
    class_names: in alphabetical order, ignoring case (numbers: by value); a class id is an index
      into it.
    videos: sorted by class and name.
    unlisted: video files in the folder that no list names, relative to the folder.
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


def is_video(path: pathlib.PurePath) -> bool:
  """Whether a file name has a video's suffix, ignoring case."""
  return path.suffix.lower() in VIDEO_SUFFIXES


def stem(name: str) -> str:
  """A file name without its video suffix; any other ending is part of the name."""
  path = pathlib.PurePath(name)
  return path.name.removesuffix(path.suffix) if is_video(path) else path.name


def relative_name(listed: str, folder: pathlib.Path) -> str:
  """The name of a video that a list names by its path: without the data folder's own path."""
  path = pathlib.Path(listed)
  if path.is_absolute() and path.is_relative_to(folder.absolute()):
    path = path.relative_to(folder.absolute())
  return path.as_posix()


def files_below(folder: pathlib.Path) -> list[pathlib.Path]:
  """Every file at any depth, sorted; links are followed, hidden files left out.

  Raises:
    ListingError: there is no such folder, it cannot be read, or it has no file.
  """

  def explain(error: OSError) -> None:
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not folder.is_dir():
      raise ListingError(
        f"{folder}: there is no such folder. Set --config.data_dir to the folder of the videos."
      ) from error
    if error.filename == os.fspath(folder):
      raise ListingError(
        f"{folder}: the folder cannot be read ({error.strerror}). Make it readable, or set "
        "--config.data_dir to another one."
      ) from error
    log.warning("%s cannot be read (%s): its videos are left out.", error.filename, error.strerror)

  paths: list[str] = []
  entered: set[tuple[int, int]] = set()
  for parent, folders, names in os.walk(folder, followlinks=True, onerror=explain):
    status = os.stat(parent)
    # A link to a folder above would be followed without end.
    if (status.st_dev, status.st_ino) in entered:
      folders.clear()
      continue
    entered.add((status.st_dev, status.st_ino))
    # Unfinished work of unpacking is not data (a class folder may well be named like it), and
    # archives made on macOS hold a hidden `._NAME.avi` beside NAME.avi.
    unpacks_here = os.path.basename(os.path.abspath(parent)) == UNPACKED
    folders[:] = sorted(
      name
      for name in folders
      if not name.startswith(".") and not (unpacks_here and name.endswith(files.PART))
    )
    paths += [os.path.join(parent, name) for name in names if not name.startswith(".")]
  if not paths:
    raise ListingError(f"{folder}: the folder is empty. Put the videos and their lists there.")
  return [pathlib.Path(path) for path in sorted(paths)]


class VideoFiles:
  """The video files among some files, by name or by path.

  The suffix of a listed name may differ from the file's, so converted videos match too.

  Attributes:
    paths: all of them.
  """

  def __init__(self, paths: Iterable[pathlib.Path], fold: Callable[[str], str] = str):
    """Indexes the files.

    Args:
      paths: files of any kind; only videos count.
      fold: makes names equal that mean one file, such as `str.casefold`.
    """
    self.paths = [path for path in paths if is_video(path)]
    self._fold = fold
    self._by_stem: dict[str, list[pathlib.Path]] = {}
    for path in self.paths:
      self._by_stem.setdefault(fold(stem(path.name)), []).append(path)

  def named(self, name: str) -> pathlib.Path | None:
    """The file with a name, in whichever folder; None where there is none.

    Raises:
      ListingError: there are two.
    """
    return self._only(self._by_stem.get(self._fold(stem(name)), []))

  def at(self, listed: str, folders: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """The file that a list names by its path; None where there is none.

    Args:
      listed: absolute; or relative to one of the folders; or else the last components of a file's
        path.
      folders: where a relative path may start; the first that has the file counts.

    Raises:
      ListingError: it leads out of all these folders by `..`; or none of them has it, and the paths of
        two files elsewhere end like this.
    """
    for path in _candidates(listed, folders):
      # Of `pathlib` this would raise an error for a name that is too long.
      if os.path.isfile(path):
        return path
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


def _candidates(listed: str, folders: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """Where a listed path may lead from some folders: never out of all of them by `..`.

  Raises:
    ListingError: from each it leads out; the message names the path, and what to do.
  """
  paths = [folder / listed for folder in folders]
  if ".." not in pathlib.PurePath(listed).parts or os.path.isabs(listed):
    return paths
  tops = [os.path.abspath(folder) for folder in folders]
  inside = [
    path
    for path in paths
    if any(os.path.commonpath([top, os.path.abspath(path)]) == top for top in tops)
  ]
  if not inside:
    raise ListingError(
      f"{errors.printable(folders[-1])}: a list names {errors.printable(listed)}, which leads out of "
      "the data folder. Put the file into the data folder, or give its absolute path."
    )
  return inside


def only_file(paths: Iterable[pathlib.Path], names: Sequence[str]) -> pathlib.Path | None:
  """The one file that has one of some lower-case names, ignoring case; None where there is none.

  Raises:
    ListingError: there are two.
  """
  matches = [path for path in paths if path.name.lower() in names]
  if len(matches) > 1:
    raise ListingError(f"{matches[0]} and {matches[1]}: two files for one list. Remove one.")
  return matches[0] if matches else None


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


def split_row(line: str) -> list[str]:
  """The fields of one line of CSV, stripped; a quote without its pair is a character like others."""
  return [field.strip() for field in next(csv.reader([line], skipinitialspace=True), [])]


def read_rows(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
  """The rows of a CSV file that are not blank, each with its line number, fields stripped.

  Raises:
    ListingError: the file cannot be read, is not UTF-8 text, or its quotes do not match.
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
    (column names in lower case; for each row "FILE, line N", for messages, and its fields by
    column). Rows are read one by one, as they are iterated over.

  Raises:
    ListingError: as `read_rows`; a row has more or fewer fields than the header.
  """
  rows = read_rows(path)
  columns = [column.lower() for column in next(rows, (1, [""]))[1]]

  def fields_of_rows() -> Iterator[tuple[str, dict[str, str]]]:
    for number, fields in rows:
      source = f"{path}, line {number}"
      if len(fields) != len(columns):
        raise ListingError(
          f"{source}: found {len(fields)} fields, expected {len(columns)} as in the header. Put a "
          "field that holds a comma in double quotes."
        )
      yield source, dict(zip(columns, fields, strict=True))

  return columns, fields_of_rows()


def check_class_folders(videos: Iterable[Video], folder: pathlib.Path) -> None:
  """Checks that no video lies in a folder that has the name of another class than its list says.

  Raises:
    ListingError: names the file, both classes, and what to do.
  """
  videos = list(videos)
  labels = {video.label.casefold(): video.label for video in videos}
  for video in videos:
    # The data folder itself, or one above it, may have any name.
    if video.path is None or video.path.parent == folder:
      continue
    other = labels.get(video.path.parent.name.casefold(), video.label)
    if other != video.label:
      raise ListingError(
        f"{video.path}: the file lies in the folder of {other}, but the lists say {video.label}. "
        f"Unpack the archive of {other} again, or move the file to a folder {video.label}."
      )


def _class_order(name: str) -> tuple[int, int, str, str]:
  if name.isascii() and name.isdigit():
    return 0, int(name), "", name
  return 1, 0, name.casefold(), name


def _with_class_names(videos: Iterable[Video], folder: pathlib.Path) -> list[Video]:
  """The videos with class names that a file of one name a line can hold, as TFDS stores them.

  Bytes of a folder's name that are no text are written out as Python does, and white space around a
  name goes.

  Raises:
    ListingError: a class name is empty or has a line break, or two become the same.
  """
  labels: dict[str, str] = {}
  named = []
  for video in videos:
    text = (
      video.label.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").strip()
    )
    first = labels.setdefault(text, video.label)
    if not text or "\n" in text or "\r" in text:
      raise ListingError(
        f"{errors.printable(folder)}: found the class name '{errors.printable(video.label)}', expected "
        "a name of one line. Rename its folder, or fix its list."
      )
    if first != video.label:
      raise ListingError(
        f"{errors.printable(folder)}: the class names '{errors.printable(first)}' and "
        f"'{errors.printable(video.label)}' differ in white space around them alone. Give them one name."
      )
    named.append(dataclasses.replace(video, label=text))
  return named


def make(
  dataset: str,
  folder: os.PathLike | str,
  videos: Iterable[Video],
  video_paths: Iterable[pathlib.Path] = (),
) -> Listing:
  """Sorts and checks what a reader read; class names become one line of text each.

  Args:
    dataset: its name.
    folder: where it was read.
    videos: as listed, in any order.
    video_paths: the video files in the folder; those of no listed video become `Listing.unlisted`.

  Raises:
    ListingError: nothing is listed, a name or file is listed twice or in two classes, videos have
      different numbers of splits, no listed video has a file, or a class name is no line of text.
  """
  folder = pathlib.Path(folder)
  videos = _with_class_names(videos, folder)
  videos.sort(key=lambda video: (_class_order(video.label), video.name))
  if not videos:
    raise ListingError(f"{folder}: no video is listed. Look at the lists of {dataset} there.")
  shown = errors.printable
  by_name: dict[str, Video] = {}
  by_path: dict[str, Video] = {}
  for video in videos:
    if video.name in by_name:
      first = by_name[video.name].label
      classes = f"{shown(first)} and {shown(video.label)}"
      what = "twice" if first == video.label else f"in two classes, {classes}"
      raise ListingError(f"{folder}: {shown(video.name)} is listed {what}. Remove one entry.")
    by_name[video.name] = video
    if len(video.codes) != len(videos[0].codes) or not video.codes:
      raise ListingError(f"{folder}: {shown(video.name)} is not in the lists of every split.")
    if video.path:
      path = os.path.abspath(video.path)
      if path in by_path:
        first_video, second = (
          f"{shown(v.name)} ({shown(v.label)})" for v in (by_path[path], video)
        )
        raise ListingError(
          f"{shown(video.path)}: one file for two listed videos, {first_video} and {second}. Remove "
          "one entry."
        )
      by_path[path] = video
  class_names = sorted({video.label for video in videos}, key=_class_order)
  if not by_path:
    raise ListingError(
      f"{folder}: none of the {len(videos)} listed videos is there, such as {shown(videos[0].name)}. Put "
      "the video files into this folder, at any depth, under the names in the lists."
    )
  unlisted = [
    path.relative_to(folder).as_posix()
    for path in video_paths
    if os.path.abspath(path) not in by_path
  ]
  return Listing(dataset, folder, tuple(class_names), tuple(videos), tuple(sorted(unlisted)))
