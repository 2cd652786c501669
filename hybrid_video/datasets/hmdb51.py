"""HMDB51's own lists: 6766 clips of 51 actions in three official splits.

In: a folder with the clips and the split files, both at any depth. Out: a `Listing`, checked
against what the official lists are known to hold.

Facts: `NAME.avi CODE ` a line, CODE 1 for train, 2 for test, 0 for unused, in 51 x 3 files
`CLASS_test_splitN.txt`. A name may hold `( ) ! & + ~ #` and is split from its code at the line's last
space alone. It ends in five tags and a number:
`FILM_CLASS_(visible body part)_(camera motion)_(people)_(viewpoint)_(quality)_(number).avi`.
Clips cut from one film are one group, whatever their classes.

Source: the page below, and the split files themselves.
"""

from collections import Counter
from collections.abc import Iterable
import pathlib
import re

from hybrid_video import errors
from hybrid_video.datasets import listing, splits, tables, video_files

HOMEPAGE = "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/"
CITATION = r"""@inproceedings{kuehne2011hmdb,
  title = {{HMDB}: A Large Video Database for Human Motion Recognition},
  author = {Kuehne, Hildegard and Jhuang, Hueihan and Garrote, Est{\'i}baliz and Poggio, Tomaso
            and Serre, Thomas},
  booktitle = {IEEE International Conference on Computer Vision (ICCV)},
  pages = {2556--2563},
  year = {2011},
}"""

NUM_SPLITS = 3
_CLASS_NAMES = """
  brush_hair cartwheel catch chew clap climb climb_stairs dive draw_sword dribble drink eat
  fall_floor fencing flic_flac golf handstand hit hug jump kick kick_ball kiss laugh pick pour
  pullup punch push pushup ride_bike ride_horse run shake_hands shoot_ball shoot_bow shoot_gun sit
  situp smile smoke somersault stand swing_baseball sword sword_exercise talk throw turn walk wave
"""
CLASSES = tuple(_CLASS_NAMES.split())
NUM_CLIPS = 6766
# Of every class in every split; the other clips are unused.
CLIPS_A_CLASS = {splits.TRAIN: 70, splits.TEST: 30}
# HMDB51's page speaks of np1 to np3; the lists hold np0 to np10.
TAGS = {
  "body": "[hulf]",
  "camera": "cm|nm",
  "people": r"np\d+",
  "view": "fr|ba|le|ri",
  "quality": "goo|med|bad",
}
_LIST_NAMES = {splits.TRAIN: "training", splits.TEST: "test"}
_SPLIT_FILE = re.compile(r"(?P<label>.+)_test_split(?P<split>[123])\.txt")
_SPLIT_LINE = re.compile(r"(?P<name>\S.*\.avi) (?P<code>[012]) ?")
_NAME = re.compile(
  r"(?P<film>.+)_"
  + "_".join(f"(?P<{tag}>{values})" for tag, values in TAGS.items())
  + r"_(?P<number>\d+)\.avi"
)


def parse_name(name: str, label: str) -> tuple[str, dict[str, str]]:
  """The film and the five tags in a clip's file name.

  Args:
    name: such as `RATRACE_wave_f_nm_np1_fr_goo_37.avi`.
    label: its class, which is removed from the end of the film's name.

  Returns:
    ("RATRACE", {"body": "f", "camera": "nm", "people": "np1", "view": "fr", "quality": "goo"}).

  Raises:
    ListingError: the name does not end in the five tags and a number.
  """
  match = _NAME.fullmatch(name)
  if not match:
    raise listing.ListingError(
      f"{name}: not a clip name of HMDB51's form, which is "
      f"FILM_{label}_{'_'.join(f'({values})' for values in TAGS.values())}_NUMBER.avi. Fix the "
      "name in the file and in the split files."
    )
  tags = {tag: match[tag] for tag in TAGS}
  return match["film"].removesuffix(f"_{label}"), tags


def read_split_file(path: pathlib.Path) -> dict[str, int]:
  """Reads one split file: clip name to code.

  Raises:
    ListingError: a line of another form, a name listed twice, or no line at all.
  """
  codes: dict[str, int] = {}
  for number, line in tables.read_lines(path):
    match = _SPLIT_LINE.fullmatch(line)
    if not match:
      raise listing.ListingError(
        f"{path}, line {number}: found {line!r}, expected `NAME.avi CODE` with CODE 0, 1 or 2. "
        "Take the official split files (testTrainMulti_7030_splits)."
      )
    if match["name"] in codes:
      raise listing.ListingError(
        f"{path}, line {number}: {match['name']} is listed twice. Remove one line."
      )
    codes[match["name"]] = int(match["code"])
  if not codes:
    raise listing.ListingError(f"{path}: the file lists no clip. Take the official split file.")
  return codes


def _split_files(
  files: Iterable[pathlib.Path], folder: pathlib.Path
) -> dict[str, list[pathlib.Path]]:
  split_files: dict[tuple[str, int], pathlib.Path] = {}
  for path in files:
    match = _SPLIT_FILE.fullmatch(path.name)
    if match:
      key = (match["label"], int(match["split"]))
      first = split_files.setdefault(key, path)
      if first != path:
        raise listing.ListingError(f"{first} and {path}: two files for one list. Remove one.")
  if not split_files:
    raise listing.ListingError(
      f"{folder}: no split files (CLASS_test_split1.txt to 3) at any depth. Unpack the official "
      "test_train_splits.rar into this folder."
    )
  by_class: dict[str, list[pathlib.Path]] = {}
  for label in sorted({label for label, _ in split_files}):
    for split in range(1, NUM_SPLITS + 1):
      if (label, split) not in split_files:
        raise listing.ListingError(
          f"{folder}: {label}_test_split{split}.txt is missing, though other lists of the "
          "class are there. Take it from the official test_train_splits.rar."
        )
    by_class[label] = [split_files[label, split] for split in range(1, NUM_SPLITS + 1)]
  return by_class


def _class_codes(label: str, paths: list[pathlib.Path]) -> dict[str, tuple[int, ...]]:
  by_split = [read_split_file(path) for path in paths]
  names = dict.fromkeys(name for codes in by_split for name in codes)
  for path, codes in zip(paths, by_split, strict=True):
    missing = [name for name in names if name not in codes]
    if missing:
      raise listing.ListingError(
        f"{path}: {missing[0]} is missing here, though another split file of {label} lists it. "
        "Take the official split files."
      )
  return {name: tuple(codes[name] for codes in by_split) for name in names}


def _check_official(videos: list[listing.Video], folder: pathlib.Path) -> None:
  counts = Counter(
    (video.label, split, code) for video in videos for split, code in enumerate(video.codes, 1)
  )
  labels = {video.label for video in videos}
  wrong = [f"no split files of the class {label}" for label in CLASSES if label not in labels]
  wrong += [f"the class {label}, expected none such" for label in sorted(labels - {*CLASSES})]
  wrong += [
    f"{counts[label, split, code]} {_LIST_NAMES[code]} clips of {label} in split {split}, "
    f"expected {expected}"
    for label in sorted(labels & {*CLASSES})
    for split in range(1, NUM_SPLITS + 1)
    for code, expected in CLIPS_A_CLASS.items()
    if counts[label, split, code] != expected
  ]
  if not wrong and len(videos) != NUM_CLIPS:
    wrong = [f"{len(videos)} clips in all, expected {NUM_CLIPS}"]
  if wrong:
    raise listing.ListingError(
      f"{folder}: these are not HMDB51's official lists. Found {errors.shown(wrong)}. Take the "
      "official test_train_splits.rar; for a set of your own in this layout, set "
      "--config.dataset=hmdb51_layout."
    )


def read(folder: pathlib.Path, *, official: bool = True) -> listing.Listing:
  """Reads a folder in HMDB51's layout.

  Args:
    folder: split files and clips, at any depth, in class folders or flat.
    official: whether the lists must be the official ones: 51 classes, 6766 clips, and in every
      split 70 training and 30 test clips of every class. Clips without a file are no error.

  Raises:
    ListingError: the folder is missing or empty, a split file or a clip's name has another form, a
      clip is listed in two classes or lies in the folder of another, two files have one name, no
      listed clip is there, or the lists are not the official ones.
  """
  files = listing.files_below(folder)
  lists = _split_files(files, folder)
  found = video_files.VideoFiles(files)
  videos: list[listing.Video] = []
  for label, paths in lists.items():
    for name, codes in _class_codes(label, paths).items():
      film, tags = parse_name(name, label)
      videos.append(listing.Video(name, label, film, codes, found.named(name), tags))
  if official:
    _check_official(videos, folder)
  listing.check_class_folders(videos, folder)
  dataset = "hmdb51" if official else "hmdb51_layout"
  unlisted, others = found.unused(videos, [path for paths in lists.values() for path in paths])
  ignored = video_files.beside_videos(others, videos, folder)
  return listing.make(dataset, folder, videos, unlisted, ignored)
