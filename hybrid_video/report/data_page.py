"""What a data set holds, on a page that a browser opens.

In: a summary (`data_summary`) and strips of frames. Out: a folder with `index.html`, `data.json` (the
summary), a PNG for each contact sheet and a PNG for each strip.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

from hybrid_video import errors, files
from hybrid_video.report import data_summary, figures, pages
from hybrid_video.report.data_summary import LISTS, amount

PAGE, SUMMARY, STRIPS = "index.html", "data.json", "strips"
_TEMPLATE = "data_page.html.j2"
# Headings before the sheets': the template's ids and titles.
_SECTIONS = (
  ("numbers", "Numbers"),
  ("classes", "Classes"),
  ("problems", "Missing and broken"),
  ("adapted", "Adapted"),
)
# Longer lists are folded, and longer histograms end in a line for the rest.
_OPEN_ROWS, _HISTOGRAM_ROWS = 24, 10
# A data set of which most is missing would make a page of many megabytes.
_LISTED_NAMES = 2000


class PageError(errors.UserError):
  """A page that cannot be written; the message says where and why."""


@dataclasses.dataclass(frozen=True)
class Sheet:
  """A section of the page: strips of frames.

  Attributes:
    name: of its files, letters only.
    title: heading.
    text: what is seen, or why there is nothing to see.
    strips: what to show; none is allowed.
  """

  name: str
  title: str
  text: str
  strips: Sequence[figures.Strip] = ()


def write(folder: pathlib.Path, summary: dict[str, Any], pictures: Sequence[Sheet]) -> pathlib.Path:
  """Writes the page and all that belongs to it; what an earlier page left is replaced.

  Args:
    folder: made if need be.
    summary: what `data_summary.summarize` gives.
    pictures: the contact sheets, in order.

  Returns:
    The path of the page.

  Raises:
    PageError, figures.FigureError: a file or folder cannot be written.
  """
  try:
    (folder / STRIPS).mkdir(parents=True, exist_ok=True)
    for sheet in pictures:
      for old in (folder / f"{sheet.name}.png", *(folder / STRIPS).glob(f"{sheet.name}-*.png")):
        old.unlink(missing_ok=True)
    sheets = [_write_pictures(folder, sheet) for sheet in pictures]
    files.write_json(folder / SUMMARY, summary)
    files.write_text(folder / PAGE, pages.render(_TEMPLATE, **_values(summary, sheets)))
  except OSError as error:
    raise PageError(
      f"{errors.printable(folder)}: the page cannot be written ({error.strerror or error}). Make "
      "room, or set --workdir to a folder that you may write to."
    ) from error
  return folder / PAGE


def _write_pictures(folder: pathlib.Path, sheet: Sheet) -> dict[str, Any]:
  """Writes a sheet's PNGs and gives what the template shows of it."""
  if sheet.strips:
    figures.sheet(folder / f"{sheet.name}.png", sheet.strips)
  strips = [
    pages.write_strip(folder, f"{STRIPS}/{sheet.name}-{number:02d}.png", strip)
    for number, strip in enumerate(sheet.strips, 1)
  ]
  return {"name": sheet.name, "title": sheet.title, "text": sheet.text, "strips": strips}


def _values(summary: dict[str, Any], sheets: list[dict[str, Any]]) -> dict[str, Any]:
  """What the template shows."""
  return {
    "sections": [*_SECTIONS, *((sheet["name"], sheet["title"]) for sheet in sheets)],
    "summary": summary,
    "summary_file": SUMMARY,
    "cards": _cards(summary),
    "warnings": data_summary.warnings(summary),
    "tables": [
      *_list_tables(summary),
      _length_table(summary),
      *_histograms(summary),
    ],
    "classes": _class_table(summary),
    "open_rows": _OPEN_ROWS,
    "listed_names": _LISTED_NAMES,
    "sheets": sheets,
  }


def _cards(summary: dict[str, Any]) -> list[pages.Card]:
  videos, groups = summary["videos"], summary["groups"]
  in_groups = f"in {amount(groups['stored'], 'group')}"
  unusable = videos["missing"] + videos["broken"]
  why_unusable = f"{videos['missing']:,} missing, {videos['broken']:,} broken"
  size_of_frame = f"{data_summary.byte_size(summary['bytes_per_frame'])} a frame"
  median = summary["length_seconds"]["median"]
  return [
    pages.Card("Videos", f"{videos['stored']:,}", f"stored of {videos['listed']:,} listed"),
    pages.Card("Classes", f"{len(summary['classes']):,}", in_groups),
    pages.Card("Length", data_summary.duration(summary["hours"]), f"{summary['frames']:,} frames"),
    pages.Card("A video", f"{median:.1f} s", "median length"),
    pages.Card("Stored", data_summary.byte_size(summary["bytes"]), size_of_frame),
    pages.Card("Not usable", f"{unusable:,}", why_unusable),
  ]


def _list_tables(summary: dict[str, Any]) -> list[pages.Table]:
  stored = summary["videos"]["stored"]
  counts = [(LISTS[name], summary["lists"][name]) for name in data_summary.shown_lists(summary)]
  groups = summary["groups"]
  group_rows = [
    ("with stored videos", groups["stored"]),
    ("in the training or test list", groups["in_lists"]),
    ("in both lists", groups["in_train_and_test"]),
    ("test videos of groups in both", groups["test_videos_in_shared"]),
  ]
  if summary["validation_share"]:
    group_rows.append(("in the validation list", groups["validation"]))
  return [
    pages.Table(
      f"Lists of split {summary['split']} of {summary['num_splits']}",
      ("list", "videos"),
      [(name, f"{count:,}") for name, count in counts],
      [count / stored for _, count in counts],
    ),
    pages.Table(
      "Groups: videos that share people and scenery",
      ("groups", "number"),
      [(name, f"{count:,}") for name, count in group_rows],
    ),
  ]


def _length_table(summary: dict[str, Any]) -> pages.Table:
  columns = ("least", "median", "mean", "most")
  rows = [
    (unit, *(f"{summary[key][column]:,.{digits}f}" for column in columns))
    for unit, key, digits in (("frames", "length_frames", 0), ("seconds", "length_seconds", 2))
  ]
  return pages.Table("Length of a video", ("in", *columns), rows)


def _histograms(summary: dict[str, Any]) -> list[pages.Table]:
  rates = [(f"{entry['fps']:g}", entry["videos"]) for entry in summary["fps_histogram"]]
  seconds = [(_bin_name(entry, 0), entry["videos"]) for entry in summary["seconds_histogram"]]
  frames = [(_bin_name(entry, 1), entry["videos"]) for entry in summary["frames_histogram"]]
  shown, sizes = (
    [(f"{size['height']} × {size['width']}", size["videos"]) for size in summary[key]]
    for key in ("shown_sizes", "sizes")
  )
  sizes_caption = f"Size of stored frames, JPEG quality {summary['jpeg_quality']}"
  return [
    _histogram("Frames a second", "rate", _first_rows(rates)),
    _histogram("Length in seconds", "seconds", seconds),
    _histogram("Length in frames", "frames", frames),
    _histogram("Size that videos are shown at", "height × width", _first_rows(shown)),
    _histogram(sizes_caption, "height × width", _first_rows(sizes)),
  ]


def _histogram(caption: str, what: str, counts: Sequence[tuple[str, int]]) -> pages.Table:
  most = max(videos for _, videos in counts)
  rows = [(name, f"{videos:,}") for name, videos in counts]
  return pages.Table(caption, (what, "videos"), rows, [videos / most for _, videos in counts])


def _first_rows(counts: list[tuple[str, int]]) -> list[tuple[str, int]]:
  if len(counts) <= _HISTOGRAM_ROWS:
    return counts
  rest = counts[_HISTOGRAM_ROWS - 1 :]
  others = (f"{len(rest):,} others", sum(videos for _, videos in rest))
  return [*counts[: _HISTOGRAM_ROWS - 1], others]


def _bin_name(entry: dict[str, Any], step: float) -> str:
  if entry["below"] is None:
    return f"{entry['from']:g} and more"
  last = entry["below"] - step
  return f"{entry['from']:g} to {last:g}" if last > entry["from"] else f"{entry['from']:g}"


def _class_table(summary: dict[str, Any]) -> pages.Table:
  lists, classes = data_summary.shown_lists(summary), summary["classes"]
  most = max(c["stored"] for c in classes)
  return pages.Table(
    "Stored videos by class and list",
    ("class", "stored", *(LISTS[name] for name in lists)),
    [(c["name"], f"{c['stored']:,}", *(f"{c[name]:,}" for name in lists)) for c in classes],
    [c["stored"] / most for c in classes],
  )
