"""UCF101's own lists: 13320 videos of 101 actions in three official splits.

In: a folder with the videos and the official lists, both at any depth. Out: a `Listing`, checked
against what the official lists are known to hold.

Facts: videos are `v_CLASS_gNN_cNN.avi`: clip NN of group NN, whose clips share people and scenery;
groups are numbered within each class. `trainlist01.txt` to 03 hold `CLASS/NAME.avi ID` a
line, `testlist01.txt` to 03 `CLASS/NAME.avi`, `classInd.txt` `ID CLASS`, whose order is
alphabetical, ignoring case. The class HandstandPushups is spelt HandStandPushups in its file names
(some releases fix that), so case does not count in names.

Source: the page below, and the lists themselves.
"""

from collections import Counter
from collections.abc import Iterable
import pathlib
import re

from hybrid_video import errors
from hybrid_video.datasets import listing, splits, tables, video_files

HOMEPAGE = "https://www.crcv.ucf.edu/research/data-sets/ucf101/"
CITATION = """@article{soomro2012ucf101,
  title = {{UCF101}: A Dataset of 101 Human Actions Classes From Videos in The Wild},
  author = {Soomro, Khurram and Zamir, Amir Roshan and Shah, Mubarak},
  journal = {arXiv preprint arXiv:1212.0402},
  year = {2012},
}"""

NUM_SPLITS = 3
NUM_CLASSES = 101
NUM_VIDEOS = 13320
# Of splits 1 to 3.
VIDEOS_A_LIST = {"train": (9537, 9586, 9624), "test": (3783, 3734, 3696)}
_LISTS = {"train": splits.TRAIN, "test": splits.TEST}
_CLASS_LINE = re.compile(r"(?P<id>\d+)\s+(?P<label>\S+)\s*")
_LIST_LINE = re.compile(
  r"(?P<label>[^/\s]+)/(?P<name>v_(?P<stated>[^/\s]+)_(?P<group>g\d+)_c\d+\.avi)"
  r"(?:\s+(?P<id>\d+))?\s*",
  re.IGNORECASE,
)


def _list_file(files: list[pathlib.Path], name: str, folder: pathlib.Path) -> pathlib.Path:
  path = listing.only_file(files, [name.lower()])
  if path is None:
    raise listing.ListingError(
      f"{folder}: {name} is not there, at any depth. Unpack the official "
      "UCF101TrainTestSplits-RecognitionTask.zip into this folder."
    )
  return path


def read_class_file(path: pathlib.Path) -> dict[str, int]:
  """Reads `classInd.txt`: class name to the id that the training lists use, counted from 1.

  Raises:
    ListingError: a line of another form, or an id or class that comes twice.
  """
  ids: dict[str, int] = {}
  folded: set[str] = set()
  for number, line in tables.read_lines(path):
    match = _CLASS_LINE.fullmatch(line)
    if not match:
      raise listing.ListingError(
        f"{path}, line {number}: found {line!r}, expected `ID CLASS`. Take the official file."
      )
    label, class_id = match["label"], int(match["id"])
    if label.casefold() in folded or class_id in ids.values():
      raise listing.ListingError(
        f"{path}, line {number}: the id {class_id} or the class {label} is there twice. Take the "
        "official file."
      )
    folded.add(label.casefold())
    ids[label] = class_id
  return ids


def _read_list(path: pathlib.Path, ids: dict[str, int]) -> Iterable[tuple[str, str, str]]:
  labels = {label.casefold(): label for label in ids}
  for number, line in tables.read_lines(path):
    match = _LIST_LINE.fullmatch(line)
    if not match:
      raise listing.ListingError(
        f"{path}, line {number}: found {line!r}, expected `CLASS/v_CLASS_gNN_cNN.avi`, with the "
        "class's number in a training list. Take the official file."
      )
    label = labels.get(match["label"].casefold())
    if label is None:
      raise listing.ListingError(
        f"{path}, line {number}: classInd.txt has no class {match['label']}. Take both files from "
        "one release."
      )
    if match["stated"].casefold() != label.casefold():
      raise listing.ListingError(
        f"{path}, line {number}: {match['name']} is listed as {label}, but its name says "
        f"{match['stated']}. Take the official file."
      )
    if match["id"] and int(match["id"]) != ids[label]:
      raise listing.ListingError(
        f"{path}, line {number}: {match['name']} has the class number {match['id']}, but "
        f"classInd.txt gives {label} the number {ids[label]}. Take both files from one release."
      )
    yield match["name"], label, f"{label}_{match['group'].lower()}"


def _check_official(videos: list[listing.Video], ids: dict[str, int], folder: pathlib.Path) -> None:
  wrong = []
  if len(ids) != NUM_CLASSES:
    wrong.append(f"{len(ids)} classes in classInd.txt, expected {NUM_CLASSES}")
  labels = {video.label for video in videos}
  wrong += [f"no video of the class {label} in any list" for label in ids if label not in labels]
  counts = Counter((split, code) for video in videos for split, code in enumerate(video.codes))
  for name, expected in VIDEOS_A_LIST.items():
    for split in range(NUM_SPLITS):
      count = counts[split, _LISTS[name]]
      if count != expected[split]:
        wrong.append(f"{count} videos in {name}list0{split + 1}.txt, expected {expected[split]}")
  if len(videos) != NUM_VIDEOS:
    wrong.append(f"{len(videos)} videos in all, expected {NUM_VIDEOS}")
  if wrong:
    raise listing.ListingError(
      f"{folder}: these are not UCF101's official lists. Found {errors.shown(wrong)}. Take the "
      "official UCF101TrainTestSplits-RecognitionTask.zip; for a set of your own, set "
      "--config.dataset=folder."
    )


def read(folder: pathlib.Path, *, official: bool = True) -> listing.Listing:
  """Reads a folder in UCF101's layout.

  Args:
    folder: the lists and the videos, at any depth, in class folders or flat.
    official: whether the lists must be the official ones: 101 classes, 13320 videos, and the known
      number of videos in each list. Videos without a file are no error.

  Raises:
    ListingError: the folder is missing or empty, a list is missing or has a line of another form,
      the lists contradict each other, a video lies in the folder of another class, two files
      have one name, no listed video is there, or the lists are not the official ones.
  """
  files = listing.files_below(folder)
  lists = [_list_file(files, "classInd.txt", folder)]
  ids = read_class_file(lists[0])
  about: dict[str, tuple[str, str, str]] = {}
  codes: dict[str, list[int]] = {}
  for split in range(NUM_SPLITS):
    for list_name, code in _LISTS.items():
      path = _list_file(files, f"{list_name}list0{split + 1}.txt", folder)
      lists.append(path)
      for name, label, group in _read_list(path, ids):
        key = name.casefold()
        about.setdefault(key, (name, label, group))
        of_video = codes.setdefault(key, [splits.UNUSED] * NUM_SPLITS)
        if of_video[split] != splits.UNUSED:
          raise listing.ListingError(
            f"{path}: {name} is in this split already, here or in the other list. Remove one line."
          )
        of_video[split] = code
  found = video_files.VideoFiles(files, str.casefold)
  videos = [
    listing.Video(name, label, group, tuple(codes[key]), found.named(name))
    for key, (name, label, group) in about.items()
  ]
  if official:
    _check_official(videos, ids, folder)
  listing.check_class_folders(videos, folder)
  unlisted, others = found.unused(videos, lists)
  ignored = video_files.beside_videos(others, videos, folder)
  class_names = sorted(ids, key=lambda label: ids[label])
  return listing.make("ucf101", folder, videos, unlisted, ignored, class_names)
