"""Kinetics and other sets that come as lists of training and held-out videos in CSV files.

In: a folder with the videos and, at any depth, `train.csv` and the held-out list: `val.csv`,
`validate.csv` or `validation.csv`, which is the one split's test list, as is usual with Kinetics,
whose own test list has no labels. `test.csv` is read only where there is no validation list. Out: a
`Listing` of one split.

A list has one of these forms:

- The official header `label,youtube_id,time_start,time_end,split` (times in seconds; other columns
  are not read): the file is `{youtube_id}_{time_start:06d}_{time_end:06d}` or `{youtube_id}`, with
  any video suffix, at any depth.
- A header `path,label` or `filename,label`, in either order.
- No header: `path,label`, or `path label` split at the last space, as PySlowFast and mmaction2 write
  it.

Paths are absolute, or relative to the list's folder or the data folder, or the last components of a
file's path. Labels are names, or numbers from 0 whose names stand in `labels.txt`, `label_map.txt` or
`kinetics_label_map.csv`, one class a line; without such a file the number is the name. Class ids
follow the names' alphabetical order, whatever numbers a list has.

Source: https://github.com/cvdfoundation/kinetics-dataset (files and official lists) and
https://github.com/facebookresearch/SlowFast/blob/main/slowfast/datasets/DATASET.md (`path label`).
"""

from collections.abc import Iterator
import dataclasses
import pathlib

from hybrid_video.datasets import listing, splits

HOMEPAGE = "https://github.com/cvdfoundation/kinetics-dataset"
CITATION = """@article{kay2017kinetics,
  title = {The {Kinetics} Human Action Video Dataset},
  author = {Kay, Will and Carreira, Joao and Simonyan, Karen and Zhang, Brian and Hillier, Chloe
            and Vijayanarasimhan, Sudheendra and Viola, Fabio and Green, Tim and Back, Trevor and
            Natsev, Paul and Suleyman, Mustafa and Zisserman, Andrew},
  journal = {arXiv preprint arXiv:1705.06950},
  year = {2017},
}"""

TRAIN_FILES = ("train.csv",)
VALIDATION_FILES = ("val.csv", "validate.csv", "validation.csv")
TEST_FILES = ("test.csv",)
LABEL_FILES = ("labels.txt", "label_map.txt", "kinetics_label_map.csv")
_PATH_COLUMNS = ("path", "filename")
_FORMS = (
  "a header `label,youtube_id,time_start,time_end,split` or `path,label`, or lines `path,label` or "
  "`path label`"
)


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A line of a list: its file and number, what it names, and its label as written."""

  source: str
  label: str
  listed: str = ""
  youtube_id: str = ""
  clip: str = ""


def _time(text: str, source: str) -> int:
  try:
    return int(float(text))
  except (ValueError, OverflowError) as error:
    raise listing.ListingError(
      f"{source}: found the time {text!r}, expected a number of seconds. Fix the line."
    ) from error


def _with_header(path: pathlib.Path) -> Iterator[_Entry]:
  columns, rows = listing.read_table(path)
  if "label" not in columns:
    raise listing.ListingError(
      f"{path}: the header {','.join(columns)} has no column `label`. Take a list with labels."
    )
  for source, row in rows:
    listed = next((row[column] for column in _PATH_COLUMNS if column in row), "")
    youtube_id = "" if listed else row.get("youtube_id", "")
    if not row["label"] or not (listed or youtube_id):
      raise listing.ListingError(
        f"{source}: found {','.join(row.values())!r}, where the video or its label is empty. Fix the "
        "line, or take a list with labels."
      )
    clip = youtube_id
    if youtube_id and row.get("time_start") and row.get("time_end"):
      start, end = _time(row["time_start"], source), _time(row["time_end"], source)
      clip = f"{youtube_id}_{start:06d}_{end:06d}"
    yield _Entry(source, row["label"], listed, youtube_id, clip)


def _without_header(path: pathlib.Path) -> Iterator[_Entry]:
  # Quotes are read line by line: in lists split at spaces they are characters like any other.
  for number, line in listing.read_lines(path):
    source = f"{path}, line {number}"
    at_commas = listing.split_row(line)
    at_space = [field.strip() for field in line.strip().rsplit(maxsplit=1)]
    pairs = [fields for fields in (at_commas, at_space) if len(fields) == 2 and all(fields)]
    # A path may hold commas or spaces, so its suffix decides where the line is split.
    ended = [pair for pair in pairs if listing.is_video(pathlib.PurePath(pair[0]))]
    if not pairs:
      raise listing.ListingError(f"{source}: found {line!r}, expected {_FORMS}. Fix the line.")
    listed, label = (ended or pairs)[0]
    yield _Entry(source, label, listed)


def _read_list(path: pathlib.Path) -> list[_Entry]:
  first = next(listing.read_lines(path), None)
  header = {field.lower() for field in listing.split_row(first[1])} if first else set()
  if header & {"youtube_id", *_PATH_COLUMNS}:
    entries = list(_with_header(path))
  else:
    entries = list(_without_header(path))
  if not entries:
    raise listing.ListingError(f"{path}: the file lists no video. Expected {_FORMS}.")
  return entries


def _label_names(entries: list[_Entry], files: list[pathlib.Path]) -> dict[str, str]:
  written = {entry.label: entry.source for entry in entries}
  if not all(label.isascii() and label.isdigit() for label in written):
    return {label: label for label in written}
  path = listing.only_file(files, LABEL_FILES)
  if path is None:
    return {label: str(int(label)) for label in written}
  names = [line.strip() for _, line in listing.read_lines(path)]
  if len({*names}) != len(names):
    raise listing.ListingError(f"{path}: a class is named twice. Remove one line.")
  for label, source in written.items():
    if int(label) >= len(names):
      raise listing.ListingError(
        f"{source}: found the label {label}, but {path} names {len(names)} classes, 0 to "
        f"{len(names) - 1}. Complete that file, or remove it to use the numbers as names."
      )
  return {label: names[int(label)] for label in written}


def _list_files(files: list[pathlib.Path], folder: pathlib.Path) -> dict[pathlib.Path, int]:
  train = listing.only_file(files, TRAIN_FILES)
  held_out = listing.only_file(files, VALIDATION_FILES) or listing.only_file(files, TEST_FILES)
  if train is None or held_out is None:
    missing = "train.csv" if train is None else "val.csv"
    raise listing.ListingError(
      f"{folder}: {missing} is not there, at any depth. Put the lists of training and held-out "
      f"videos there under the names train.csv and val.csv, each with {_FORMS}; for videos in "
      "class folders, set --config.dataset=folder."
    )
  return {train: splits.TRAIN, held_out: splits.TEST}


def read(folder: pathlib.Path) -> listing.Listing:
  """Reads a folder with lists of training and held-out videos.

  Args:
    folder: the lists and the videos, at any depth.

  Returns:
    A listing of one split. A video's group is its YouTube id or, where lists give paths, the file's
    name without suffix.

  Raises:
    ListingError: the folder is missing or empty, a list is missing, a line has another form, a
      video is listed twice or in both lists, a class is held out but never trained on, two files
      have a listed name, or no listed video is there.
  """
  files = listing.files_below(folder)
  lists = {path: (_read_list(path), code) for path, code in _list_files(files, folder).items()}
  labels = _label_names([entry for entries, _ in lists.values() for entry in entries], files)
  video_files = listing.VideoFiles(files)
  videos: list[listing.Video] = []
  sources: dict[str, str] = {}
  for list_path, (entries, code) in lists.items():
    for entry in entries:
      if entry.youtube_id:
        path = video_files.named(entry.clip) or video_files.named(entry.youtube_id)
        name, group = f"{entry.clip}.mp4", entry.youtube_id
      else:
        path = video_files.at(entry.listed, (list_path.parent, folder))
        name, group = listing.relative_name(entry.listed, folder), listing.stem(entry.listed)
      if name in sources:
        raise listing.ListingError(
          f"{entry.source}: {name} is listed already in {sources[name]}. Remove one line."
        )
      sources[name] = entry.source
      videos.append(listing.Video(name, labels[entry.label], group, (code,), path))
  splits.check_training(
    videos, folder, "Complete train.csv, or write the labels alike in both lists."
  )
  return listing.make("kinetics", folder, videos, video_files.paths)
