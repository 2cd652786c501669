"""A user's own folder of videos: class folders, or a list `videos.csv`; no official lists needed.

In: videos in one of three forms. Out: a `Listing` of one split.

- `CLASS/clip.mp4`, or `CLASS/GROUP/.../clip.mp4`: the first folder below the class names the group,
  such as a film, a person or a day, whatever the class; a clip without one is its own group.
- `train/CLASS/...` and `test/CLASS/...` (or `val`, `validate`, `validation`): the lists are given.
- `videos.csv` with a header `path,label` and optionally `group` and `list` (`train` or `test`);
  paths are relative to its folder or the data folder. Only the listed videos count.

The forms hold for what archives contained as well: one archive with everything, or one a class.

Where no list is given, whole groups are split into training and test by a hash of the group's name:
adding or removing videos never moves others.
"""

import dataclasses
import pathlib

from hybrid_video import errors
from hybrid_video.datasets import listing, splits

LIST_FILE = "videos.csv"
_COLUMNS = ("path", "label", "group", "list")
_HELD_OUT = ("test", "val", "validate", "validation")
_ADVICE = (
  "Add videos (of other groups), set another --config.test_share, or give a videos.csv with a "
  "column `list`."
)


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A video without codes, and the list it is given: "train", "test", or "" for none."""

  video: listing.Video
  given: str


def _own_group(name: str) -> str:
  # Without the suffix: converting a video does not move it to the other list.
  return (pathlib.PurePosixPath(name).parent / listing.stem(name)).as_posix()


def _entries_from_csv(
  path: pathlib.Path, folder: pathlib.Path, video_files: listing.VideoFiles
) -> list[_Entry]:
  columns, rows = listing.read_table(path)
  if not {"path", "label"} <= {*columns} or {*columns} - {*_COLUMNS}:
    raise listing.ListingError(
      f"{path}: found the header {','.join(columns)}, expected `path,label` and optionally `group` "
      "and `list`, separated by commas. Fix the first line."
    )
  entries = []
  for source, row in rows:
    if not row["path"] or not row["label"]:
      raise listing.ListingError(f"{source}: the path or the label is empty. Fix the line.")
    given = row.get("list", "").lower()
    if given not in ("", *splits.LIST_CODES):
      raise listing.ListingError(
        f"{source}: found the list {given!r}, expected train, test or nothing. Fix the line."
      )
    name = listing.relative_name(row["path"], folder)
    file = video_files.at(row["path"], (path.parent, folder))
    group = row.get("group") or _own_group(name)
    entries.append(_Entry(listing.Video(name, row["label"], group, (), file), given))
  return entries


def _root(folder: pathlib.Path, video_files: listing.VideoFiles) -> pathlib.Path:
  """Where the class folders begin: the data folder, or within what archives contained."""

  def folders_in(parent: pathlib.Path) -> list[str]:
    below = [p.relative_to(parent).parts for p in video_files.paths if p.is_relative_to(parent)]
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


def _entries_from_folders(folder: pathlib.Path, video_files: listing.VideoFiles) -> list[_Entry]:
  root = _root(folder, video_files)
  relative = {
    path: path.relative_to(root) for path in video_files.paths if path.is_relative_to(root)
  }
  first = {path.parts[0] for path in relative.values() if len(path.parts) > 1}
  lowered = {name.lower() for name in first}
  given_lists = bool(first) and lowered <= {"train", *_HELD_OUT}
  if given_lists and not ("train" in lowered and len(first) == 2):
    raise listing.ListingError(
      f"{folder}: found the folders {', '.join(sorted(first))}, expected class folders, or train "
      f"and one of {', '.join(_HELD_OUT)}. Rearrange them, or give a videos.csv with a column "
      "`list`."
    )
  entries = []
  for path, below in relative.items():
    *above, _ = below.parts
    given = ""
    if given_lists and above:
      given = "train" if above[0].lower() == "train" else "test"
      above = above[1:]
    # A video beside the class folders has no class: it is reported as unlisted.
    if above:
      group = above[1] if len(above) > 1 else _own_group(below.as_posix())
      # Given lists are taken as they are, also where folders in both have one name.
      group = f"{given}/{group}" if given and len(above) > 1 else group
      name = path.relative_to(folder).as_posix()
      entries.append(_Entry(listing.Video(name, above[0], group, (), path), given))
  return entries


def _check_entries(
  entries: list[_Entry], folder: pathlib.Path, video_files: listing.VideoFiles
) -> None:
  if not entries:
    raise listing.ListingError(
      f"{folder}: no video in a class folder ({len(video_files.paths)} videos found in all). Put "
      "them into one folder a class, such as walk/clip.mp4, or list them in videos.csv."
    )
  labels = {entry.video.label for entry in entries}
  if len(labels) < 2:
    raise listing.ListingError(
      f"{folder}: found the one class {', '.join(labels)}, expected two or more. Set "
      "--config.data_dir to the folder that holds the class folders."
    )


def _with_codes(
  entries: list[_Entry], folder: pathlib.Path, test_share: float
) -> list[listing.Video]:
  """The videos with the code of their group's list: the given one, or by the group's hash."""
  given_lists: dict[str, str] = {}
  for entry in entries:
    group, given = entry.video.group, entry.given
    if given and given_lists.setdefault(group, given) != given:
      raise listing.ListingError(
        f"{folder}: the group {group} is in both lists, with {entry.video.name} in {given}. Give all "
        "its videos one list."
      )
  videos = []
  for entry in entries:
    group = entry.video.group
    drawn = "test" if splits.group_fraction(group) < test_share else "train"
    code = splits.LIST_CODES[given_lists.get(group, drawn)]
    videos.append(dataclasses.replace(entry.video, codes=(code,)))
  return videos


def read(folder: pathlib.Path, *, test_share: float = 0.2) -> listing.Listing:
  """Reads a user's own folder of videos.

  Args:
    folder: in one of the forms above.
    test_share: of the groups without a given list, the share for the test, 0 to below 1.

  Raises:
    ListingError: the folder is missing or empty, `videos.csv` has a line of another form, a video
      is listed twice, there are fewer than two classes, a group is given to both lists, a class has
      test videos but none for training, the test list is empty though a share was asked for, or no
      listed video is there.
  """
  if not 0 <= test_share < 1:
    raise listing.ListingError(
      f"test_share is {test_share}, expected 0 to below 1. Set --config.test_share."
    )
  paths = listing.files_below(folder)
  video_files = listing.VideoFiles(paths)
  list_file = listing.only_file(paths, [LIST_FILE])
  if list_file:
    entries = _entries_from_csv(list_file, folder, video_files)
  else:
    entries = _entries_from_folders(folder, video_files)
  _check_entries(entries, folder, video_files)
  videos = _with_codes(entries, folder, test_share)
  splits.check_training(videos, folder, _ADVICE)
  if test_share > 0 and all(video.codes == (splits.TRAIN,) for video in videos):
    raise listing.ListingError(
      f"{folder}: none of the {len(videos)} videos falls into the test list. {_ADVICE} To train "
      "without a test, set --config.test_share=0."
    )
  return listing.make("folder", folder, videos, video_files.paths)
