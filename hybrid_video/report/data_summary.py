"""What a data set holds: counted from its index, and put into a few lines for the console.

In: the index of records and a split. Out: a summary of plain numbers, texts and lists, which JSON
takes, `data_page` shows, and `text` prints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_video import errors
from hybrid_video.datasets import splits

if TYPE_CHECKING:
  from hybrid_video.datasets.records import Records

LISTS = {"train": "training", "validation": "validation", "test": "test", "unused": "unused"}
# Lengths are skewed: bins that grow keep both ends legible.
_SECONDS = (0, 0.5, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 45, 60, 120, 300, 600, 1800, 3600)
_FRAMES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
# Names, rates and sizes in a line of the console.
_SHOWN = 3
# What decoding adapts, by the kinds of `video_reader.Video.notes`.
ADAPTED = {
  "time": "put on an even grid of times, frames repeated where nothing was recorded",
  "orientation": "turned or mirrored, as the files say",
  "pixel aspect": "of pixels that are not square, widened as they are shown",
  "stream": "of several video streams, of which the main one is used",
  "start": "without a beginning: frames before the first key frame cannot be decoded",
}


def summarize(
  records: Records, split: int, validation_share: float = 0.0, training_share: float = 1.0
) -> dict[str, Any]:
  """Counts what a data set holds, from its index alone.

  Args:
    records: the index.
    split: official split, 1 and so on.
    validation_share: of the groups of the training list, 0 to below 1.
    training_share: of its other groups, those that are trained on.

  Returns:
    Numbers, texts, lists and dictionaries only, so that JSON takes it. Videos of `lists`, `classes`,
    lengths and groups are those stored; lengths are in frames and seconds, `bytes` is the size of
    the record files.

  Raises:
    errors.UserError: there is no such split.
  """
  lists = splits.list_indices(records, split, validation_share, training_share)
  seconds = records.num_frames / records.fps
  frames = int(records.num_frames.sum())
  rates = Counter(np.round(records.fps, 3).tolist())
  return {
    "dataset": records.dataset,
    "records": records.folder,
    "split": split,
    "num_splits": records.num_splits,
    "validation_share": validation_share,
    "training_share": training_share,
    "jpeg_quality": records.jpeg_quality,
    "videos": {
      "listed": len(records) + len(records.missing) + len(records.broken),
      "stored": len(records),
      "missing": len(records.missing),
      "broken": len(records.broken),
      "unlisted": len(records.unlisted),
      "ignored": len(records.ignored),
    },
    "lists": {name: len(indices) for name, indices in lists.items()},
    "classes": _classes(records, lists),
    "frames": frames,
    "hours": float(seconds.sum() / 3600),
    "bytes": records.record_bytes,
    "bytes_per_frame": records.record_bytes / frames,
    "length_frames": _spread(records.num_frames),
    "length_seconds": _spread(seconds),
    "frames_histogram": _bins(records.num_frames, _FRAMES),
    "seconds_histogram": _bins(seconds, _SECONDS),
    "fps_histogram": [{"fps": fps, "videos": videos} for fps, videos in rates.most_common()],
    "sizes": _sizes(records.height, records.width),
    "shown_sizes": _sizes(records.shown_height, records.shown_width),
    "shapes": _shapes(records),
    "adapted": _adapted(records),
    "groups": _groups(records, split, lists),
    "broken": [{"name": str(name), "reason": str(why)} for name, why in records.broken.items()],
    "missing": [str(name) for name in records.missing],
    "unlisted": [str(name) for name in records.unlisted],
    "ignored": [{"name": str(name), "reason": str(why)} for name, why in records.ignored],
  }


def _sizes(heights: np.ndarray, widths: np.ndarray) -> list[dict[str, int]]:
  sizes = Counter(zip(heights.tolist(), widths.tolist(), strict=True))
  return [
    {"height": height, "width": width, "videos": videos}
    for (height, width), videos in sizes.most_common()
  ]


def _shapes(records: Records) -> dict[str, int]:
  """Videos by the shape that they are shown in."""
  ratio = records.shown_width / records.shown_height
  limits = {
    "upright": (0, 0.9),
    "square": (0.9, 1.1),
    "near 4:3": (1.1, 1.55),
    "wide": (1.55, np.inf),
  }
  counts = {
    name: int(((ratio >= low) & (ratio < high)).sum()) for name, (low, high) in limits.items()
  }
  return {name: count for name, count in counts.items() if count}


def _adapted(records: Records) -> list[dict[str, str]]:
  """What was adapted in decoding, a row a video and kind, in the order of `ADAPTED`."""
  notes = {
    str(name): json.loads(str(text))
    for name, text in zip(records.names.tolist(), records.notes.tolist(), strict=True)
    if text != "{}"
  }
  return [
    {"name": name, "kind": kind, "note": of_video[kind]}
    for kind in ADAPTED
    for name, of_video in notes.items()
    if kind in of_video
  ]


def _spread(values: np.ndarray) -> dict[str, float]:
  return {
    "least": float(values.min()),
    "median": float(np.median(values)),
    "mean": float(values.mean()),
    "most": float(values.max()),
  }


def _bins(values: np.ndarray, edges: Sequence[float]) -> list[dict[str, float | None]]:
  """Videos from each edge to below the next; the last bin has no end. Empty ends are left out."""
  bin_of = np.searchsorted(edges, values, side="right") - 1
  counts = np.bincount(bin_of, minlength=len(edges))
  filled = np.flatnonzero(counts)
  return [
    {
      "from": float(edges[i]),
      "below": float(edges[i + 1]) if i + 1 < len(edges) else None,
      "videos": int(counts[i]),
    }
    for i in range(filled[0], filled[-1] + 1)
  ]


def _classes(records: Records, lists: dict[str, np.ndarray]) -> list[dict[str, Any]]:
  """Stored videos of each class, in all and by list."""
  count = len(records.class_names)
  per_list = {
    name: np.bincount(records.labels[indices], minlength=count) for name, indices in lists.items()
  }
  return [
    {
      "name": str(class_name),
      "stored": sum(int(counts[i]) for counts in per_list.values()),
      **{name: int(counts[i]) for name, counts in per_list.items()},
    }
    for i, class_name in enumerate(records.class_names)
  ]


def _groups(records: Records, split: int, lists: dict[str, np.ndarray]) -> dict[str, int]:
  """How the lists separate the groups; HMDB51's official lists have groups on both sides."""
  # The whole official list, of which a share may be held out for validation.
  training = set(records.groups[splits.with_code(records, split, splits.TRAIN)].tolist())
  test = records.groups[lists["test"]].tolist()
  shared = training & set(test)
  return {
    "stored": len(set(records.groups.tolist())),
    "in_lists": len(training | set(test)),
    "in_train_and_test": len(shared),
    "test_videos_in_shared": sum(group in shared for group in test),
    "validation": len(set(records.groups[lists["validation"]].tolist())),
  }


def amount(number: int, one: str, many: str = "") -> str:
  """A number with its noun, such as "1 video" or "6,766 videos"."""
  return f"{number:,} {one if number == 1 else many or one + 's'}"


def byte_size(number: float) -> str:
  """A number of bytes in words, to three digits."""
  for unit in ("bytes", "kB", "MB", "GB"):
    if number < 1000:
      return f"{number:.0f} bytes" if unit == "bytes" else f"{number:.3g} {unit}"
    number /= 1000
  return f"{number:.3g} TB"


def duration(hours: float) -> str:
  """Hours in words: in hours, minutes or seconds."""
  for least, factor, unit in ((1, 1, "hours"), (1 / 60, 60, "minutes")):
    if hours >= least:
      return f"{hours * factor:.1f} {unit}"
  return f"{hours * 3600:.1f} seconds"


def shown_lists(summary: dict[str, Any]) -> list[str]:
  """The lists worth showing: all, without "validation" where there is none and none is asked for."""
  validation = summary["validation_share"] or summary["lists"]["validation"]
  return [name for name in LISTS if name != "validation" or validation]


def _share_of_training(summary: dict[str, Any]) -> str:
  share = summary["training_share"]
  return f" (a share of {share:g} of the training groups, others unused)" if share < 1 else ""


def _few(names: Iterable[str]) -> str:
  return errors.shown(names, _SHOWN)


def _class_warnings(summary: dict[str, Any]) -> list[str]:
  empty = [c["name"] for c in summary["classes"] if not c["stored"]]
  unseen: list[str] = []
  if summary["lists"]["train"] and summary["lists"]["test"]:
    unseen = [c["name"] for c in summary["classes"] if c["test"] and not c["train"]]
  return [
    f"{amount(len(names), 'class', 'classes')} {'has' if len(names) == 1 else 'have'} {what}: "
    f"{_few(names)}."
    for names, what in (
      (empty, "no stored video"),
      (unseen, "test videos and no training video"),
    )
    if names
  ]


def warnings(summary: dict[str, Any]) -> list[str]:
  """What is worth a look before training, one or two sentences each."""
  return [*_list_warnings(summary), *_adapted_warnings(summary)]


def _list_warnings(summary: dict[str, Any]) -> list[str]:
  videos, groups, lines = summary["videos"], summary["groups"], []
  for name in ("train", "test"):
    if not summary["lists"][name]:
      lines.append(
        f"The {LISTS[name]} list of split {summary['split']} has no stored video. Choose another "
        "--config.split, or complete the data folder."
      )
  if summary["validation_share"] and not summary["lists"]["validation"]:
    lines.append("The validation list has no stored video. Raise --config.validation_share.")
  lines += _class_warnings(summary)
  if groups["in_train_and_test"]:
    verb = "has" if groups["in_train_and_test"] == 1 else "have"
    lines.append(
      f"{groups['in_train_and_test']:,} of {amount(groups['in_lists'], 'group')} in the lists {verb} "
      "videos in both the training and the test list: "
      f"{groups['test_videos_in_shared']:,} of {amount(summary['lists']['test'], 'test video')} may "
      "be recognized by people and scenery. The lists are used as they are."
    )
  if videos["broken"]:
    lines.append(f"{amount(videos['broken'], 'listed video')} cannot be decoded.")
  if videos["missing"]:
    verb = "has" if videos["missing"] == 1 else "have"
    lines.append(f"{amount(videos['missing'], 'listed video')} {verb} no file.")
  if videos["unlisted"]:
    verb = "is" if videos["unlisted"] == 1 else "are"
    lines.append(
      f"{amount(videos['unlisted'], 'video file')} {verb} in no list, and not used: "
      f"{_few(summary['unlisted'])}."
    )
  if videos["ignored"]:
    lines.append(_ignored_warning(summary["ignored"]))
  return lines


def _adapted_warnings(summary: dict[str, Any]) -> list[str]:
  names: dict[str, list[str]] = {}
  for entry in summary["adapted"]:
    names.setdefault(entry["kind"], []).append(entry["name"])
  lines = [
    f"{amount(len(names[kind]), 'video')}, {what}: {_few(names[kind])}."
    for kind, what in ADAPTED.items()
    if kind in names
  ]
  if len(summary["shapes"]) > 1:
    counts = [f"{count:,} {name}" for name, count in summary["shapes"].items()]
    lines.append(
      f"Videos of several shapes ({', '.join(counts)}), stored as {len(summary['sizes']):,} sizes: a "
      "crop shows less of those that are far from square. More --config.evaluation.crops show more."
    )
  return lines


def _ignored_warning(ignored: Sequence[dict[str, str]]) -> str:
  """The number of files that are not used, the first of them, and how many of each kind."""
  kinds = Counter(entry["reason"].partition(":")[0] for entry in ignored)
  verb = "is" if len(ignored) == 1 else "are"
  return (
    f"{amount(len(ignored), 'other file')} among the videos {verb} not used: "
    f"{_few(entry['name'] for entry in ignored)} "
    f"({'; '.join(f'{kind}: {count:,}' for kind, count in kinds.most_common())})."
  )


def _adapted_lines(summary: dict[str, Any]) -> list[str]:
  """The same in a line each for what was adapted and for shapes."""
  kinds = Counter(entry["kind"] for entry in summary["adapted"])
  shapes = summary["shapes"]
  lines = []
  if kinds:
    counts = ", ".join(f"{kind} of {amount(count, 'video')}" for kind, count in kinds.items())
    lines.append(f"adapted in decoding: {counts}; --mode=inspect shows which")
  if len(shapes) > 1:
    lines.append("shapes: " + ", ".join(f"{count:,} {name}" for name, count in shapes.items()))
  return lines


def _and_others(parts: Sequence[str], what: str) -> str:
  more = len(parts) - _SHOWN
  return ", ".join(parts[:_SHOWN]) + (f" and {more:,} other {what}" if more > 0 else "")


def text(summary: dict[str, Any]) -> str:
  """A summary in at most 17 lines for the console."""
  videos, lists = summary["videos"], summary["lists"]
  classes = [c["stored"] for c in summary["classes"]]
  least = f"{min(classes):,} to " if min(classes) < max(classes) else ""
  rates = [f"{r['fps']:g} ({amount(r['videos'], 'video')})" for r in summary["fps_histogram"]]
  sizes = [f"{frame['height']}x{frame['width']}" for frame in summary["sizes"]]
  frames, seconds = summary["length_frames"], summary["length_seconds"]
  lines = [
    f"{summary['dataset']}: {amount(videos['listed'], 'video')} listed, {videos['stored']:,} stored, "
    f"{videos['missing']:,} missing, {videos['broken']:,} broken; {videos['unlisted']:,} unlisted",
    f"{amount(len(classes), 'class', 'classes')} of {least}{amount(max(classes), 'stored video')}",
    f"split {summary['split']} of {summary['num_splits']}: "
    + ", ".join(f"{lists[name]:,} {LISTS[name]}" for name in shown_lists(summary))
    + _share_of_training(summary),
    f"length: {seconds['least']:.1f} to {seconds['most']:.1f} s, median {seconds['median']:.1f}, mean "
    f"{seconds['mean']:.1f}; {frames['least']:.0f} to {frames['most']:.0f} frames; in all "
    f"{summary['frames']:,} frames, {duration(summary['hours'])}",
    f"frames a second: {_and_others(rates, 'rates')}",
    f"stored: {byte_size(summary['bytes'])}, {byte_size(summary['bytes_per_frame'])} a frame, "
    f"{_and_others(sizes, 'sizes')}",
    *(f"note: {warning}" for warning in _list_warnings(summary)),
    *_adapted_lines(summary),
  ]
  if summary["broken"]:
    lines.append(f"broken: {_few(entry['name'] for entry in summary['broken'])}")
  if summary["missing"]:
    lines.append(f"missing: {_few(summary['missing'])}")
  return "\n".join(lines)
