"""Kinetics and other sets that come as lists of training and held-out videos in CSV files.

In: a folder with the videos and, at any depth, `train.csv` and the held-out list: `val.csv`,
`valid.csv`, `validate.csv` or `validation.csv`, or `test.csv`. Out: a `Listing` of one split.

With one held-out list, that is the test list, as is usual with Kinetics. With three lists, each is
what it is called, but for Kinetics' own columns and where `test.csv` has no labels: then `test.csv` is
not read, and the validation list is the test list. Lists may end in `.tsv` or `.txt` instead.

A list has one of these forms, see `tables`:

- The official header `label,youtube_id,time_start,time_end,split` (times in seconds; other columns
  are not read): the file is `{youtube_id}_{time_start:06d}_{time_end:06d}` or `{youtube_id}`, with
  any video suffix, at any depth.
- A header `path,label`, in any order and by any usual names, with a class's number beside its name
  if there is one, and optionally with `group`.
- No header: `path,label`, or `path label` split at the last space, as PySlowFast and mmaction2 write
  it.

Paths are those of this machine or of another, see `listed_paths`. Labels are names, or numbers that a
file of class names may name, see `class_ids`. A class id is the list's own number; where lists have
names alone, ids are alphabetical.

Source: https://github.com/cvdfoundation/kinetics-dataset (files and official lists) and
https://github.com/facebookresearch/SlowFast/blob/main/slowfast/datasets/DATASET.md (`path label`).
"""

from collections.abc import Sequence
import logging
import pathlib

from hybrid_video import errors
from hybrid_video.datasets import class_ids, listed_paths, listing, splits, tables
from hybrid_video.datasets import video_files as videos_there

log = logging.getLogger("hybrid_video")

HOMEPAGE = "https://github.com/cvdfoundation/kinetics-dataset"
CITATION = """@article{kay2017kinetics,
  title = {The {Kinetics} Human Action Video Dataset},
  author = {Kay, Will and Carreira, Joao and Simonyan, Karen and Zhang, Brian and Hillier, Chloe
            and Vijayanarasimhan, Sudheendra and Viola, Fabio and Green, Tim and Back, Trevor and
            Natsev, Paul and Suleyman, Mustafa and Zisserman, Andrew},
  journal = {arXiv preprint arXiv:1705.06950},
  year = {2017},
}"""

# Of lists of each kind, those with the first suffix that is there count.
SUFFIXES = (".csv", ".tsv", ".txt")
TRAIN, VALIDATION, TEST = (
  tuple(name for name, of in splits.LIST_CODES.items() if of == code)
  for code in (splits.TRAIN, splits.VALIDATION, splits.TEST)
)


def _list_file(
  files: Sequence[pathlib.Path], names: Sequence[str], suffixes: Sequence[str]
) -> pathlib.Path | None:
  for suffix in suffixes:
    if path := listing.only_file(files, [name + suffix for name in names]):
      return path
  return None


def list_files(
  files: Sequence[pathlib.Path],
  finder: listed_paths.Finder,
  suffixes: Sequence[str] = SUFFIXES,
) -> dict[pathlib.Path, int]:
  """The lists among some files, each with its code; empty where there are not two that have labels.

  Args:
    files: of the data folder.
    finder: finds the videos that lists name.
    suffixes: of lists, the first before others.

  Raises:
    ListingError: there are two lists of one kind.
  """
  train, validation, test = (
    _list_file(files, names, suffixes) for names in (TRAIN, VALIDATION, TEST)
  )
  if train is None or not (validation or test):
    return {}
  if validation is None:
    assert test
    return {train: splits.TRAIN, test: splits.TEST}
  if test is None:
    return {train: splits.TRAIN, validation: splits.TEST}
  if tables.is_official(test) or not tables.has_labels(test, finder):
    log.info("%s is not read: the validation list is the test list.", test)
    return {train: splits.TRAIN, validation: splits.TEST}
  return {train: splits.TRAIN, validation: splits.VALIDATION, test: splits.TEST}


def _seconds(text: str, source: str) -> int:
  try:
    return int(float(text))
  except (ValueError, OverflowError) as error:
    raise listing.ListingError(
      f"{source}: found the time {text!r}, expected a number of seconds. Fix the line."
    ) from error


def _clip_name(row: tables.Row) -> str:
  """The name that the official files have, without suffix."""
  if not (row.time_start and row.time_end):
    return row.youtube_id
  start, end = _seconds(row.time_start, row.source), _seconds(row.time_end, row.source)
  return f"{row.youtube_id}_{start:06d}_{end:06d}"


def read(folder: pathlib.Path, *, replace_prefix: str = "") -> listing.Listing:
  """Reads a folder with lists of training and held-out videos.

  Args:
    folder: the lists and the videos, at any depth.
    replace_prefix: what listed paths begin with and what that is here, see `listed_paths.Finder`.

  Returns:
    A listing of one split. Unless the lists have groups, a video's is its YouTube id or, where lists
    give paths, the file's name without suffix.

  Raises:
    ListingError: the folder is missing or empty, a list is missing, a line has another form, a
      video is listed twice or in two lists, a class is held out but never trained on, two files
      have a listed name, classes and their numbers contradict each other, or no listed video is
      there.
  """
  files = listing.files_below(folder)
  there = videos_there.VideoFiles(files)
  finder = listed_paths.Finder(folder, there, replace_prefix)
  lists = list_files(files, finder)
  if not lists:
    train = _list_file(files, TRAIN, SUFFIXES)
    raise listing.ListingError(
      f"{folder}: {'train.csv' if train is None else 'val.csv'} is not there, at any depth. Put the "
      "lists of training and held-out videos there under the names train.csv and val.csv, each with "
      f"{tables.FORMS}; for videos in class folders, set --config.dataset=folder."
    )
  return read_lists(folder, files, there, finder, lists)


def read_lists(
  folder: pathlib.Path,
  files: Sequence[pathlib.Path],
  there: videos_there.VideoFiles,
  finder: listed_paths.Finder,
  lists: dict[pathlib.Path, int],
) -> listing.Listing:
  """Reads some lists, see `read`.

  Args:
    folder: the data folder.
    files: all its files.
    there: its videos.
    finder: finds them by their listed paths.
    lists: each list's code.
  """
  rows: list[tuple[tables.Row, pathlib.Path]] = []
  for path in lists:
    rows += [(row, path) for row in tables.read_videos(path, finder)]
  class_files = class_ids.class_files(files)
  classes = class_ids.resolve([row for row, _ in rows], class_files)
  listed = [
    listed_paths.ListedPath(row.path, row.source, path.parent) for row, path in rows if row.path
  ]
  found = iter(finder.find(listed))
  videos: list[listing.Video] = []
  sources: dict[str, str] = {}
  for row, list_path in rows:
    if row.path:
      file, name, group = next(found), finder.name(row.path), finder.stem(row.path)
    else:
      clip = _clip_name(row)
      file = there.named(clip) or there.named(row.youtube_id)
      name, group = f"{clip}.mp4", row.youtube_id
    if name in sources:
      raise listing.ListingError(
        f"{row.source}: {errors.printable(name)} is listed already in {sources[name]}. Remove one "
        "line."
      )
    sources[name] = row.source
    label = classes.names[row.label]
    videos.append(listing.Video(name, label, row.group or group, (lists[list_path],), file))
  splits.check_training(
    videos, folder, "Complete train.csv, or write the labels alike in both lists."
  )
  unlisted, others = there.unused(videos, [*lists, *class_files])
  ignored = videos_there.beside_videos(others, videos, folder)
  return listing.make("kinetics", folder, videos, unlisted, ignored, classes.in_order)
