"""What any data set lists: videos, their classes, groups and official lists, checked.

In: what a data set's own reader reads (`hmdb51`, `ucf101`, `kinetics`, `folder`). Out: a `Listing`,
the one form that the builder stores. Readers take what they read with from `tables` (lists in text
files), `class_ids`, `video_files` and `listed_paths`.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import errno
import logging
import os
import pathlib

from hybrid_video import errors, files
from hybrid_video.datasets import file_kinds

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
    codes: for each official split: `splits.TRAIN`, `splits.TEST`, `splits.VALIDATION` or
      `splits.UNUSED`.
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
    class_names: a class id is an index into it. In the order of the lists' own numbers, where they
      have numbers, also of classes without a video; in alphabetical order, ignoring case (folders
      named by numbers: by value), where there are names alone.
    videos: sorted by class and name.
    unlisted: video files in the folder that no list names, relative to the folder.
    ignored: other files among the videos that are not used, relative to the folder, each with what
      it is, such as "not a video (text)".
  """

  dataset: str
  folder: pathlib.Path
  class_names: tuple[str, ...]
  videos: tuple[Video, ...]
  unlisted: tuple[str, ...] = ()
  ignored: tuple[tuple[str, str], ...] = ()

  @property
  def num_splits(self) -> int:
    """Official splits, at least 1."""
    return len(self.videos[0].codes)


def text(name: str) -> str:
  """A name as it is stored: bytes of a file name that are not UTF-8 are written out as Python does."""
  return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def files_below(folder: pathlib.Path) -> list[pathlib.Path]:
  """Every file at any depth, sorted; links are followed, hidden and system files left out.

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
  for parent, folders, names in files.walk(folder, explain):
    # Unfinished work of unpacking is not data (a class folder may well be named like it), and
    # archives made on macOS hold a hidden `._NAME.avi` beside NAME.avi.
    unpacks_here = os.path.basename(os.path.abspath(parent)) == UNPACKED
    folders[:] = sorted(
      name
      for name in folders
      if not file_kinds.is_system(name) and not (unpacks_here and name.endswith(files.PART))
    )
    paths += [os.path.join(parent, name) for name in names if not file_kinds.is_system(name)]
  if not paths:
    raise ListingError(f"{folder}: the folder is empty. Put the videos and their lists there.")
  return [pathlib.Path(path) for path in sorted(paths)]


def only_file(paths: Iterable[pathlib.Path], names: Sequence[str]) -> pathlib.Path | None:
  """The one file that has one of some lower-case names, ignoring case; None where there is none.

  Raises:
    ListingError: there are two.
  """
  matches = [path for path in paths if path.name.lower() in names]
  if len(matches) > 1:
    raise ListingError(f"{matches[0]} and {matches[1]}: two files for one list. Remove one.")
  return matches[0] if matches else None


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


def _with_class_names(
  videos: Iterable[Video], class_names: Sequence[str], folder: pathlib.Path
) -> tuple[list[Video], list[str]]:
  """The videos with class names that are text without white space around it, and these names.

  Bytes of a folder's name that are no text are written out as Python does.

  Raises:
    ListingError: a class name is empty, or two become the same.
  """
  originals: dict[str, str] = {}

  def text_of(name: str) -> str:
    stripped = text(name).strip()
    first = originals.setdefault(stripped, name)
    if not stripped:
      raise ListingError(
        f"{errors.printable(folder)}: found the class name '{errors.printable(name)}', expected a "
        "name that is not empty. Rename its folder, or fix its list."
      )
    if first != name:
      raise ListingError(
        f"{errors.printable(folder)}: the class names '{errors.printable(first)}' and "
        f"'{errors.printable(name)}' differ in white space around them alone. Give them one name."
      )
    return stripped

  texts = [text_of(name) for name in class_names]
  return [dataclasses.replace(v, label=text_of(v.label)) for v in videos], texts


def make(
  dataset: str,
  folder: os.PathLike | str,
  videos: Iterable[Video],
  video_paths: Iterable[pathlib.Path] = (),
  ignored: Iterable[tuple[pathlib.Path, str]] = (),
  class_names: Sequence[str] = (),
) -> Listing:
  """Sorts and checks what a reader read; class names lose white space around them.

  Args:
    dataset: its name.
    folder: where it was read.
    videos: as listed, in any order.
    video_paths: the video files in the folder; those of no listed video become `Listing.unlisted`.
    ignored: other files that are not used, and what they are.
    class_names: by class id, of all classes; empty for the alphabetical order of those listed.

  Raises:
    ListingError: nothing is listed, a name or file is listed twice or in two classes, videos have
      different numbers of splits, no listed video has a file, or a class name is empty.
  """
  folder = pathlib.Path(folder)
  videos, class_names = _with_class_names(videos, class_names, folder)
  if not videos:
    raise ListingError(f"{folder}: no video is listed. Look at the lists of {dataset} there.")
  class_names = class_names or sorted({video.label for video in videos}, key=_class_order)
  ids = {name: class_id for class_id, name in enumerate(class_names)}
  videos.sort(key=lambda video: (ids[video.label], video.name))
  used = _check_videos(videos, folder)
  if not used:
    raise ListingError(
      f"{folder}: none of the {len(videos)} listed videos is there, such as "
      f"{errors.printable(videos[0].name)}. Put the video files into this folder, at any depth, under "
      "the names in the lists."
    )
  unlisted = [
    path.relative_to(folder).as_posix() for path in video_paths if os.path.abspath(path) not in used
  ]
  others = [(path.relative_to(folder).as_posix(), reason) for path, reason in ignored]
  return Listing(
    dataset,
    folder,
    tuple(class_names),
    tuple(videos),
    tuple(sorted(unlisted)),
    tuple(sorted(others)),
  )


def _check_videos(videos: Sequence[Video], folder: pathlib.Path) -> set[str]:
  """Checks that every video and file is listed once, and gives the files' absolute paths.

  Raises:
    ListingError: see `make`.
  """
  shown = errors.printable
  by_name: dict[str, Video] = {}
  by_path: dict[str, Video] = {}
  for video in videos:
    name = shown(video.name)
    if video.name in by_name:
      first = by_name[video.name].label
      classes = f"{shown(first)} and {shown(video.label)}"
      what = "twice" if first == video.label else f"in two classes, {classes}"
      raise ListingError(f"{folder}: {name} is listed {what}. Remove one entry.")
    by_name[video.name] = video
    if len(video.codes) != len(videos[0].codes) or not video.codes:
      raise ListingError(f"{folder}: {name} is not in the lists of every split.")
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
  return set(by_path)
