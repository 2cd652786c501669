"""A user's own folder of videos: class folders, or a list `videos.csv`; no official lists needed.

In: videos in one of these forms. Out: a `Listing` of one split.

- `CLASS/clip.mp4`, or `CLASS/GROUP/.../clip.mp4`: the first folder below the class names the group,
  such as a film, a person or a day, whatever the class; a clip without one is its own group.
- `train/CLASS/...` and `test/CLASS/...` or `val/CLASS/...` (or `training`, `testing`, `valid`,
  `validate`, `validation`): the lists are given. With all three, each is what it is called; where
  there is no `test`, `val` is the test list.
- `videos.csv` with a header `path,label` and optionally `group` and `list` (`train`, `val` or `test`,
  with the same meaning), or by other usual names, see `tables`. Paths are relative to its folder or
  the data folder, or see `listed_paths`; labels are names or numbers, see `class_ids`. Only the listed
  videos count.
- `train.csv` with `val.csv`, `test.csv` or both, see `kinetics`.

The forms hold for what archives contained as well: one archive with everything, or one a class.

Where no list is given, whole groups are split into training and test by a hash of the group's name:
adding or removing videos never moves others. Or they are dealt out to folds, see `_in_folds`.
"""

from collections.abc import Sequence
import dataclasses
import logging
import os
import pathlib

import numpy as np

from hybrid_video import errors
from hybrid_video.datasets import (
  class_ids,
  file_kinds,
  kinetics,
  listed_paths,
  listing,
  splits,
  tables,
)
from hybrid_video.datasets.video_files import VideoFiles, beside_videos

log = logging.getLogger("hybrid_video")

LIST_FILE = "videos.csv"
# The class of a video that has none, where none is needed.
UNLABELLED = "unlabelled"
_WITHOUT_CLASSES = (
  "Without classes they can pretrain a model: --config=configs/videomae.py:pretrain."
)
_ADVICE = (
  "Add videos (of other groups), set another --config.test_share, or give a videos.csv with a "
  "column `list`."
)


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A video without codes, and the code of the list that it is given, None for none."""

  video: listing.Video
  given: int | None


@dataclasses.dataclass(frozen=True)
class _Found:
  """What one of the forms gives.

  Attributes:
    entries: the videos.
    in_order: class names by class id, empty for the alphabetical order.
    unlisted: videos that the list does not name.
    ignored: other files that are not used, each with what it is.
  """

  entries: list[_Entry]
  in_order: Sequence[str] = ()
  unlisted: Sequence[pathlib.Path] = ()
  ignored: Sequence[tuple[pathlib.Path, str]] = ()


def _own_group(name: str) -> str:
  # Without the suffix: converting a video does not move it to the other list.
  return (pathlib.PurePosixPath(name).parent / file_kinds.stem(name)).as_posix()


def _given(row: tables.Row) -> int | None:
  given = row.split.lower()
  if given and given not in splits.LIST_CODES:
    raise listing.ListingError(
      f"{row.source}: found the list {errors.printable(given)!r}, expected train, val, test or "
      "nothing. Fix the line."
    )
  return splits.LIST_CODES.get(given)


def _from_csv(
  path: pathlib.Path,
  folder: pathlib.Path,
  files: Sequence[pathlib.Path],
  there: VideoFiles,
  finder: listed_paths.Finder,
) -> _Found:
  rows = tables.read_videos(path, finder)
  without = next((row for row in rows if not row.path), None)
  if without:
    raise listing.ListingError(
      f"{without.source}: the line has no path. Name the videos by their paths, or set "
      "--config.dataset=kinetics for lists of YouTube ids."
    )
  class_files = class_ids.class_files(files)
  classes = class_ids.resolve(rows, class_files)
  listed = [listed_paths.ListedPath(row.path, row.source, path.parent) for row in rows]
  entries = []
  for row, file in zip(rows, finder.find(listed), strict=True):
    name = finder.name(row.path)
    group = row.group or _own_group(name)
    video = listing.Video(name, classes.names[row.label], group, (), file)
    entries.append(_Entry(video, _given(row)))
  videos = [entry.video for entry in entries]
  unlisted, others = there.unused(videos, [path, *class_files])
  ignored = beside_videos(others, videos, folder)
  return _Found(entries, classes.in_order, unlisted, ignored)


def _root(folder: pathlib.Path, there: VideoFiles) -> pathlib.Path:
  """Where the class folders begin: the data folder, or within what archives contained."""

  def folders_in(parent: pathlib.Path) -> list[str]:
    below = [p.relative_to(parent).parts for p in there.paths if p.is_relative_to(parent)]
    return sorted({components[0] for components in below if len(components) > 1})

  first = folders_in(folder)
  if listing.UNPACKED not in first:
    return folder
  if len(first) > 1:
    raise listing.ListingError(
      f"{folder}: found class folders both within {listing.UNPACKED}, from archives, and beside it: "
      f"{errors.shown(name for name in first if name != listing.UNPACKED)}. Unpack the archives by "
      f"hand and remove them and {listing.UNPACKED}, or give a videos.csv."
    )
  root = folder / listing.UNPACKED
  inside = folders_in(root)
  # One archive with everything, often in one more folder that has its own name.
  while len(inside) == 1 and (root.name == listing.UNPACKED or inside[0] == root.name):
    root = root / inside[0]
    inside = folders_in(root)
  return root


def _labelled(
  lists: dict[pathlib.Path, int], finder: listed_paths.Finder
) -> dict[pathlib.Path, int]:
  """The lists, if all of them have labels: others leave the classes to the folders."""
  for path in lists:
    if not tables.has_labels(path, finder):
      log.warning("%s has no labels: the lists are not read, folders are classes.", path)
      return {}
  return lists


def _list_folders(folder: pathlib.Path, names: set[str]) -> dict[str, int]:
  """The code of each folder that is a list; empty where the folders are classes.

  Raises:
    ListingError: folders are lists, but not one for training and one or two to be held out.
  """
  if not names or not {name.lower() for name in names} <= {*splits.LIST_CODES}:
    return {}
  given = {name: splits.LIST_CODES[name.lower()] for name in sorted(names)}
  codes = [*given.values()]
  if splits.TRAIN not in codes or len(codes) < 2 or len({*codes}) < len(codes):
    raise listing.ListingError(
      f"{folder}: found the folders {', '.join(sorted(names))}, expected class folders, or train "
      "with val, test or both. Rearrange them, or give a videos.csv with a column `list`."
    )
  return given


def _from_folders(
  folder: pathlib.Path, files: Sequence[pathlib.Path], there: VideoFiles, needs_classes: bool
) -> _Found:
  root = _root(folder, there)
  inside = {path: path.relative_to(root) for path in there.paths if path.is_relative_to(root)}
  given_lists = _list_folders(folder, {p.parts[0] for p in inside.values() if len(p.parts) > 1})
  # Of a file, the folders above it that are neither a list nor the root: its class first.
  skipped = 1 if given_lists else 0
  entries = []
  for path, below in inside.items():
    above = below.parts[skipped:-1]
    # A video beside the class folders has no class: it is reported as ignored.
    if not above and not needs_classes:
      group, given = _own_group(below.as_posix()), given_lists.get(below.parts[0])
      name = path.relative_to(folder).as_posix()
      entries.append(_Entry(listing.Video(name, UNLABELLED, group, (), path), given))
    if above:
      given = given_lists.get(below.parts[0])
      group = above[1] if len(above) > 1 else _own_group(below.as_posix())
      # Given lists are taken as they are, also where folders in both have one name.
      group = f"{below.parts[0].lower()}/{group}" if given and len(above) > 1 else group
      name = path.relative_to(folder).as_posix()
      entries.append(_Entry(listing.Video(name, above[0], group, (), path), given))
  at_top = [path for path in class_ids.class_files(files) if path.parent in (folder, root)]
  in_order: Sequence[str] = ()
  if at_top and entries:
    rows = [tables.Row(os.fspath(entry.video.path or ""), entry.video.label) for entry in entries]
    classes = class_ids.resolve(rows, at_top)
    in_order = classes.in_order
    entries = [_renamed(entry, classes.names[entry.video.label]) for entry in entries]
  loose, others = there.unused(entry.video for entry in entries)
  ignored = [(path, "a video beside the class folders") for path in loose]
  ignored += [
    (path, reason)
    for path, reason in others
    if path.is_relative_to(root) and len(path.relative_to(root).parts) > 1 + skipped
  ]
  return _Found(entries, in_order, ignored=ignored)


def _renamed(entry: _Entry, label: str) -> _Entry:
  return dataclasses.replace(entry, video=dataclasses.replace(entry.video, label=label))


def _check_entries(
  entries: Sequence[_Entry], folder: pathlib.Path, there: VideoFiles, needs_classes: bool
) -> None:
  if not entries:
    raise listing.ListingError(
      f"{folder}: no video in a class folder ({len(there.paths)} videos found in all). Put "
      "them into one folder a class, such as walk/clip.mp4, or list them in videos.csv."
      + (f" {_WITHOUT_CLASSES}" if there.paths else "")
    )
  labels = {entry.video.label for entry in entries}
  if len(labels) < 2 and needs_classes:
    raise listing.ListingError(
      f"{folder}: found the one class {', '.join(labels)}, expected two or more. Set "
      f"--config.data_dir to the folder that holds the class folders. {_WITHOUT_CLASSES}"
    )


def _with_codes(
  entries: Sequence[_Entry], folder: pathlib.Path, test_share: float
) -> list[listing.Video]:
  """The videos with the code of their group's list: the given one, or by the group's hash."""
  given_lists: dict[str, int] = {}
  for entry in entries:
    group, given = entry.video.group, entry.given
    if given is not None and given_lists.setdefault(group, given) != given:
      raise listing.ListingError(
        f"{folder}: the group {group} is in both lists, with {entry.video.name} in the second. Give "
        "all its videos one list."
      )
  codes = [given_lists.get(entry.video.group) for entry in entries]
  if None not in codes and splits.TEST not in codes:
    # The only list that is held out.
    codes = [splits.TEST if code == splits.VALIDATION else code for code in codes]
  videos = []
  for entry, code in zip(entries, codes, strict=True):
    if code is None:
      drawn = splits.group_fraction(entry.video.group) < test_share
      code = splits.TEST if drawn else splits.TRAIN
    videos.append(dataclasses.replace(entry.video, codes=(code,)))
  return videos


def _given_lists(folder: pathlib.Path, folds: int) -> listing.ListingError:
  return listing.ListingError(
    f"{folder}: found given lists, and --config.folds={folds} asks for others. Set it to 0, or take the lists "
    "away."
  )


def _in_folds(entries: Sequence[_Entry], folder: pathlib.Path, folds: int) -> list[listing.Video]:
  """The videos with a code for each of the folds; each group is tested in one.

  The largest groups go first (of one size, by name), each to the fold that keeps the classes most
  evenly spread: the least sum over folds and classes of the squared share of the class's videos. Of
  equal ones it is the fold with the fewest videos, then the first.

  Raises:
    ListingError: there are given lists, or fewer groups than folds in all.
  """
  if any(entry.given is not None for entry in entries):
    raise _given_lists(folder, folds)
  labels = sorted({entry.video.label for entry in entries})
  groups: dict[str, np.ndarray] = {}
  for entry in entries:
    counts = groups.setdefault(entry.video.group, np.zeros(len(labels)))
    counts[labels.index(entry.video.label)] += 1
  if len(groups) < folds:
    raise listing.ListingError(
      f"{folder}: {len(groups)} groups cannot make {folds} folds. Set --config.folds to {len(groups)} or "
      "fewer."
    )
  totals = np.sum([*groups.values()], axis=0)
  filled = np.zeros((folds, len(labels)))
  fold_of: dict[str, int] = {}
  for group in sorted(groups, key=lambda name: (-groups[name].sum(), name)):
    # What a fold adds to the sum of squares, worked out in whole numbers' shares.
    added = ((filled + groups[group]) ** 2 - filled**2) / totals**2
    costs = [(round(added[k].sum(), 12), filled[k].sum(), k) for k in range(folds)]
    fold_of[group] = min(costs)[-1]
    filled[fold_of[group]] += groups[group]
  return [
    dataclasses.replace(
      entry.video,
      codes=tuple(
        splits.TEST if fold_of[entry.video.group] == k else splits.TRAIN for k in range(folds)
      ),
    )
    for entry in entries
  ]


def read(
  folder: pathlib.Path,
  *,
  test_share: float = 0.2,
  folds: int = 0,
  replace_prefix: str = "",
  needs_classes: bool = True,
) -> listing.Listing:
  """Reads a user's own folder of videos.

  Args:
    folder: in one of the forms above.
    test_share: of the groups without a given list, the share for the test, 0 to below 1.
    folds: how many splits of whole groups, each of which tests one fold, in place of the one by
      `test_share`; see `_in_folds`. 0 is none.
    replace_prefix: what listed paths begin with and what that is here, see `listed_paths.Finder`.
    needs_classes: whether there must be two classes or more; if not, as for pretraining, videos beside
      class folders count too, in the class `UNLABELLED`.

  Raises:
    ListingError: the folder is missing or empty, a list has a line of another form, a video is
      listed twice, there are fewer than two classes, a group is given to two lists, a class has
      held-out videos but none for training, the test list is empty though a share was asked for,
      no listed video is there, or a prefix is to be replaced and there is no list.
  """
  if not 0 <= test_share < 1:
    raise listing.ListingError(
      f"test_share is {test_share}, expected 0 to below 1. Set --config.test_share."
    )
  files = listing.files_below(folder)
  there = VideoFiles(files)
  finder = listed_paths.Finder(folder, there, replace_prefix)
  list_file = listing.only_file(files, [LIST_FILE])
  if list_file:
    found = _from_csv(list_file, folder, files, there, finder)
  elif lists := _labelled(kinetics.list_files(files, finder, suffixes=(".csv",)), finder):
    if folds:
      raise _given_lists(folder, folds)
    listed = kinetics.read_lists(folder, files, there, finder, lists)
    return dataclasses.replace(listed, dataset="folder")
  else:
    if replace_prefix:
      raise listing.ListingError(
        f"{folder}: there is no {LIST_FILE}, so no listed path has a prefix. Leave out "
        "--config.replace_prefix."
      )
    found = _from_folders(folder, files, there, needs_classes)
  _check_entries(found.entries, folder, there, needs_classes)
  if folds:
    videos = _in_folds(found.entries, folder, folds)
  else:
    videos = _with_codes(found.entries, folder, test_share)
  if needs_classes:
    splits.check_training(videos, folder, _ADVICE)
  if not folds and test_share > 0 and not any(video.codes == (splits.TEST,) for video in videos):
    raise listing.ListingError(
      f"{folder}: none of the {len(videos)} videos falls into the test list. {_ADVICE} To train "
      "without a test, set --config.test_share=0."
    )
  return listing.make("folder", folder, videos, found.unlisted, found.ignored, found.in_order)
