"""HMDB51's own layout: clip names, official split files, and a folder that holds both.

In: a folder. Out: what is there, checked: every listed clip, its class, its three split codes and
the path of its file, or its name among the missing.

Facts: `NAME.avi CODE ` a line, CODE 1 for train, 2 for test, 0 for unused, in 51 x 3 files
`CLASS_test_splitN.txt`. A name may hold `( ) ! & + ~ #` and is never split on anything but the
line's last blank. It ends in five tags and a number:
`FILM_CLASS_(visible body part)_(camera motion)_(people)_(viewpoint)_(quality)_(number).avi`.

Source: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import re

NUM_SPLITS = 3
UNUSED, TRAIN, TEST = 0, 1, 2
LIST_CODES = {"train": TRAIN, "test": TEST}
# HMDB51's page speaks of np1 to np3; the lists hold np0 to np10.
TAGS = {
  "body": "[hulf]",
  "camera": "cm|nm",
  "people": r"np\d+",
  "view": "fr|ba|le|ri",
  "quality": "goo|med|bad",
}
_SPLIT_FILE = re.compile(r"(?P<action>.+)_test_split(?P<split>[123])\.txt")
_SPLIT_LINE = re.compile(r"(?P<name>\S.*\.avi) (?P<code>[012]) ?")
_NAME = re.compile(
  r"(?P<film>.+)_"
  + "_".join(f"(?P<{tag}>{values})" for tag, values in TAGS.items())
  + r"_(?P<number>\d+)\.avi"
)


class LayoutError(ValueError):
  """A folder that is not in HMDB51's layout; the message says what was found and what to do."""


@dataclasses.dataclass(frozen=True)
class Clip:
  """One clip of the lists.

  Attributes:
    name: file name, with `.avi`.
    action: class name.
    codes: for splits 1, 2, 3: 1 train, 2 test, 0 unused.
    path: its file, or None where there is none.
    film: the film it was cut from; clips of one film share people and scenery.
    tags: the five tags by the names in `TAGS`.
  """

  name: str
  action: str
  codes: tuple[int, int, int]
  path: pathlib.Path | None
  film: str
  tags: dict[str, str]


def parse_name(name: str, action: str) -> tuple[str, dict[str, str]]:
  """Reads the film and the five tags off a clip's file name.

  Args:
    name: such as `RATRACE_wave_f_nm_np1_fr_goo_37.avi`.
    action: its class, which is taken off the film's end.

  Returns:
    ("RATRACE", {"body": "f", "camera": "nm", "people": "np1", "view": "fr", "quality": "goo"}).

  Raises:
    LayoutError: the name does not end in the five tags and a number.
  """
  match = _NAME.fullmatch(name)
  if not match:
    raise LayoutError(
      f"{name}: not a clip name of HMDB51's form, which is "
      f"FILM_{action}_{'_'.join(f'({values})' for values in TAGS.values())}_NUMBER.avi."
    )
  tags = {tag: match[tag] for tag in TAGS}
  return match["film"].removesuffix(f"_{action}"), tags


def read_split_file(path: pathlib.Path) -> dict[str, int]:
  """Reads one split file: clip name to code.

  Raises:
    LayoutError: a line of another form, a name listed twice, or no line at all.
  """
  codes: dict[str, int] = {}
  for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
    if not line.strip():
      continue
    match = _SPLIT_LINE.fullmatch(line)
    if not match:
      raise LayoutError(
        f"{path}, line {number}: found {line!r}, expected `NAME.avi CODE` with CODE 0, 1 or 2. "
        "Take the official split files (testTrainMulti_7030_splits)."
      )
    if match["name"] in codes:
      raise LayoutError(f"{path}, line {number}: {match['name']} is listed twice. Remove one line.")
    codes[match["name"]] = int(match["code"])
  if not codes:
    raise LayoutError(f"{path}: the file lists no clip. Take the official split file.")
  return codes


def _files_below(folder: pathlib.Path) -> list[pathlib.Path]:
  found = []
  for place, _, names in os.walk(folder, followlinks=True):
    found += [pathlib.Path(place, name) for name in names]
  return sorted(found)


def _read_lists(files: Sequence[pathlib.Path], folder: pathlib.Path) -> dict[str, dict[str, list]]:
  by_split: dict[tuple[str, int], pathlib.Path] = {}
  for path in files:
    match = _SPLIT_FILE.fullmatch(path.name)
    if match:
      key = (match["action"], int(match["split"]))
      if key in by_split:
        raise LayoutError(f"{by_split[key]} and {path}: two files for one list. Remove one.")
      by_split[key] = path
  if not by_split:
    raise LayoutError(
      f"{folder}: no split files (CLASS_test_split1.txt to 3) at any depth. Unpack the official "
      "testTrainMulti_7030_splits into this folder."
    )
  lists: dict[str, dict[str, list]] = {}
  for action in sorted({action for action, _ in by_split}):
    clips: dict[str, list] = {}
    for split in range(1, NUM_SPLITS + 1):
      if (action, split) not in by_split:
        raise LayoutError(
          f"{folder}: {action}_test_split{split}.txt is missing beside its siblings."
        )
      path = by_split[action, split]
      for name, code in read_split_file(path).items():
        clips.setdefault(name, [None] * NUM_SPLITS)[split - 1] = code
    for name, codes in clips.items():
      if None in codes:
        raise LayoutError(
          f"{by_split[action, codes.index(None) + 1]}: {name} is missing here, though another "
          f"split file of {action} lists it. Take the official split files."
        )
    lists[action] = clips
  return lists


def read_folder(folder: os.PathLike | str) -> list[Clip]:
  """Reads a folder in HMDB51's layout.

  Split files and AVI files may lie at any depth, in class folders or in one flat folder.

  Args:
    folder: what `--config.data_dir` names.

  Returns:
    Every listed clip, sorted by class and name. Class ids are the places of the class names in
    alphabetical order.

  Raises:
    LayoutError: the folder is missing or empty, a split file or a clip's name has another form, a
      clip is listed in two classes, a file name stands in two folders, or no listed clip is there.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise LayoutError(
      f"{folder}: there is no such folder. Set --config.data_dir to a folder that holds HMDB51's "
      "AVI files and its split files."
    )
  files = _files_below(folder)
  if not files:
    raise LayoutError(
      f"{folder}: the folder is empty. Put HMDB51's AVI files and split files there."
    )
  lists = _read_lists(files, folder)
  paths: dict[str, pathlib.Path] = {}
  for path in files:
    if path.suffix.lower() == ".avi":
      if path.name in paths:
        raise LayoutError(f"{paths[path.name]} and {path}: two files of one name. Remove one.")
      paths[path.name] = path
  clips: list[Clip] = []
  seen: dict[str, str] = {}
  for action, listed in lists.items():
    for name, codes in sorted(listed.items()):
      if name in seen:
        raise LayoutError(f"{name} is listed in two classes, {seen[name]} and {action}.")
      seen[name] = action
      film, tags = parse_name(name, action)
      clips.append(Clip(name, action, tuple(codes), paths.get(name), film, tags))
  if not any(clip.path for clip in clips):
    raise LayoutError(
      f"{folder}: none of the {len(clips)} listed clips is there ({len(paths)} AVI files found, "
      "whose names are not in the lists). Unpack hmdb51_org.rar, and the RAR of each class in it, "
      "into this folder."
    )
  return clips
