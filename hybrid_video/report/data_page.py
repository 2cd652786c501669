"""What a data set holds: counted, told in a few lines, and shown on a page that a browser opens.

In: the index of records, and strips of frames. Out: a summary of plain numbers and names, and a
folder with `index.html`, `data.json` (the summary), a PNG a contact sheet and a PNG a strip. The page
needs no network and no script.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
import dataclasses
import html
import json
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hybrid_video.report import figures

if TYPE_CHECKING:
  from hybrid_video.datasets import records

PAGE, SUMMARY, STRIPS = "index.html", "data.json", "strips"
LISTS = {"train": "training", "validation": "validation", "test": "test", "unused": "unused"}
# Lengths are skewed: bins that grow keep both ends legible.
_SECONDS = (0, 0.5, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 45, 60, 120, 300, 600, 1800, 3600)
_FRAMES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_TOLD_NAMES = 3
# Longer lists are folded, and longer histograms end in a line for the rest.
_OPEN_ROWS, _HISTOGRAM_ROWS = 24, 10
# A data set of which most is missing would make a page of many megabytes.
_LISTED_NAMES = 2000
# Columns that fit on a phone; wider tables can be moved sideways.
_NARROW = 3


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


def _groups(found: records.Records, places: dict[str, np.ndarray]) -> dict[str, int]:
  """How the lists part the groups; HMDB51's official lists part some."""
  official = np.concatenate([places["train"], places["validation"]])
  training = set(found.groups[official].tolist())
  tested = found.groups[places["test"]].tolist()
  shared = training & set(tested)
  return {
    "stored": len(set(found.groups.tolist())),
    "in_lists": len(training | set(tested)),
    "in_train_and_test": len(shared),
    "test_videos_in_shared": sum(group in shared for group in tested),
    "validation": len(set(found.groups[places["validation"]].tolist())),
  }


def summarise(found: records.Records, split: int, validation_share: float = 0.0) -> dict[str, Any]:
  """Counts what a data set holds, from its index alone.

  Args:
    found: the index of records.
    split: official split, 1 and so on.
    validation_share: of the groups of the training list, 0 to below 1.

  Returns:
    Numbers, texts, lists and dictionaries alone, so that JSON takes it. Videos of `lists`, `classes`,
    lengths and groups are those stored; lengths are in frames and seconds, `bytes` is what the record
    files take up.

  Raises:
    ValueError: there is no such split.
  """
  places = found.lists(split, validation_share)
  count = len(found.class_names)
  per_class = {name: np.bincount(found.labels[of], minlength=count) for name, of in places.items()}
  classes = [
    {
      "name": str(class_name),
      "stored": int(sum(counts[i] for counts in per_class.values())),
      **{name: int(counts[i]) for name, counts in per_class.items()},
    }
    for i, class_name in enumerate(found.class_names)
  ]
  seconds = found.num_frames / found.fps
  frames = int(found.num_frames.sum())
  rates = Counter(np.round(found.fps, 3).tolist())
  sizes = Counter(zip(found.height.tolist(), found.width.tolist(), strict=True))
  return {
    "dataset": found.dataset,
    "records": found.folder,
    "split": split,
    "num_splits": found.num_splits,
    "validation_share": validation_share,
    "jpeg_quality": found.jpeg_quality,
    "videos": {
      "listed": len(found) + len(found.missing) + len(found.broken),
      "stored": len(found),
      "missing": len(found.missing),
      "broken": len(found.broken),
      "unlisted": len(found.unlisted),
    },
    "lists": {name: len(of) for name, of in places.items()},
    "classes": classes,
    "frames": frames,
    "hours": float(seconds.sum() / 3600),
    "bytes": found.record_bytes,
    "bytes_per_frame": found.record_bytes / frames,
    "length_frames": _spread(found.num_frames),
    "length_seconds": _spread(seconds),
    "frames_histogram": _bins(found.num_frames, _FRAMES),
    "seconds_histogram": _bins(seconds, _SECONDS),
    "fps_histogram": [
      {"fps": float(rate), "videos": videos} for rate, videos in rates.most_common()
    ],
    "sizes": [
      {"height": height, "width": width, "videos": videos}
      for (height, width), videos in sizes.most_common()
    ],
    "groups": _groups(found, places),
    "broken": [{"name": str(name), "reason": str(why)} for name, why in found.broken.items()],
    "missing": [str(name) for name in found.missing],
    "unlisted": [str(name) for name in found.unlisted],
  }


def _few(names: Iterable[str]) -> str:
  names = list(names)
  more = len(names) - _TOLD_NAMES
  told = ", ".join(figures.printable(name) for name in names[:_TOLD_NAMES])
  return f"{told} and {more:,} more" if more > 0 else told


def _amount(number: int, one: str, many: str = "") -> str:
  return f"{number:,} {one if number == 1 else many or one + 's'}"


def _span(least: int, most: int) -> str:
  return (f"{least:,} to " if least < most else "") + _amount(most, "stored video")


def _bytes(number: float) -> str:
  for unit in ("bytes", "kB", "MB", "GB"):
    if number < 1000:
      return f"{number:.0f} bytes" if unit == "bytes" else f"{number:.3g} {unit}"
    number /= 1000
  return f"{number:.3g} TB"


def _hours(hours: float) -> str:
  for least, factor, unit in ((1, 1, "hours"), (1 / 60, 60, "minutes")):
    if hours >= least:
      return f"{hours * factor:.1f} {unit}"
  return f"{hours * 3600:.1f} seconds"


def _warnings(summary: dict[str, Any]) -> list[str]:
  """What is worth a look before training, one sentence or two each."""
  videos, groups, said = summary["videos"], summary["groups"], []
  for name in ("train", "test"):
    if not summary["lists"][name]:
      said.append(
        f"The {LISTS[name]} list of split {summary['split']} has no stored video. Choose another "
        "--config.split, or complete the data folder."
      )
  if summary["validation_share"] and not summary["lists"]["validation"]:
    said.append("The validation list has no stored video. Raise --config.validation_share.")
  empty = [c["name"] for c in summary["classes"] if not c["stored"]]
  if empty:
    verb = "has" if len(empty) == 1 else "have"
    said.append(f"{_amount(len(empty), 'class', 'classes')} {verb} no stored video: {_few(empty)}.")
  if summary["lists"]["train"] and summary["lists"]["test"]:
    unseen = [c["name"] for c in summary["classes"] if c["test"] and not c["train"]]
    if unseen:
      verb = "has" if len(unseen) == 1 else "have"
      said.append(
        f"{_amount(len(unseen), 'class', 'classes')} {verb} test videos and no training video: "
        f"{_few(unseen)}."
      )
  if groups["in_train_and_test"]:
    said.append(
      f"{groups['in_train_and_test']:,} of {_amount(groups['in_lists'], 'group')} in the lists have "
      "videos in both the training and the test list: "
      f"{groups['test_videos_in_shared']:,} of {_amount(summary['lists']['test'], 'test video')} may "
      "be recognised by people and scenery. The lists are kept as they are."
    )
  if videos["broken"]:
    said.append(f"{_amount(videos['broken'], 'listed video')} cannot be decoded.")
  if videos["missing"]:
    verb = "has" if videos["missing"] == 1 else "have"
    said.append(f"{_amount(videos['missing'], 'listed video')} {verb} no file.")
  if videos["unlisted"]:
    verb = "is" if videos["unlisted"] == 1 else "are"
    said.append(f"{_amount(videos['unlisted'], 'video file')} {verb} in no list, and not used.")
  return said


def text(summary: dict[str, Any]) -> str:
  """A summary in at most 15 lines for the console."""
  videos, lists_ = summary["videos"], summary["lists"]
  classes = [c["stored"] for c in summary["classes"]]
  sizes, rates = summary["sizes"], summary["fps_histogram"]
  frames, seconds = summary["length_frames"], summary["length_seconds"]
  shown = [name for name in LISTS if name != "validation" or summary["validation_share"]]
  lines = [
    f"{summary['dataset']}: {_amount(videos['listed'], 'video')} listed, {videos['stored']:,} stored, "
    f"{videos['missing']:,} missing, {videos['broken']:,} broken; {videos['unlisted']:,} unlisted",
    f"{_amount(len(classes), 'class', 'classes')} of {_span(min(classes), max(classes))}",
    f"split {summary['split']} of {summary['num_splits']}: "
    + ", ".join(f"{lists_[name]:,} {LISTS[name]}" for name in shown),
    f"length: {seconds['least']:.1f} to {seconds['most']:.1f} s, median {seconds['median']:.1f}, mean "
    f"{seconds['mean']:.1f}; {frames['least']:.0f} to {frames['most']:.0f} frames; in all "
    f"{summary['frames']:,} frames, {_hours(summary['hours'])}",
    "frames a second: "
    + ", ".join(
      f"{rate['fps']:g} ({_amount(rate['videos'], 'video')})" for rate in rates[:_TOLD_NAMES]
    )
    + (f" and {len(rates) - _TOLD_NAMES:,} other rates" if len(rates) > _TOLD_NAMES else ""),
    f"stored: {_bytes(summary['bytes'])}, {_bytes(summary['bytes_per_frame'])} a frame, "
    + ", ".join(f"{size['height']}x{size['width']}" for size in sizes[:_TOLD_NAMES])
    + (f" and {len(sizes) - _TOLD_NAMES:,} other sizes" if len(sizes) > _TOLD_NAMES else ""),
    *(f"note: {warning}" for warning in _warnings(summary)),
  ]
  if summary["broken"]:
    lines.append(f"broken: {_few(entry['name'] for entry in summary['broken'])}")
  if summary["missing"]:
    lines.append(f"missing: {_few(summary['missing'])}")
  return "\n".join(lines)


_CSS = f"""
:root {{ color-scheme: light dark; --ink: {figures.INK}; --muted: #59636e; --grid: {figures.GRID};
  --blue: {figures.BLUE}; --orange: {figures.ORANGE}; --paper: #ffffff; --card: #f6f8fa; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6edf3; --muted: #9aa4ae; --grid: #343b43;
  --blue: #6aa5e3; --orange: #ef9a66; --paper: #0f1419; --card: #181e25; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }}
h2 {{ font-size: 1.25rem; margin: 2.2rem 0 0.4rem; padding-top: 0.6rem;
  border-top: 1px solid var(--grid); }}
h3 {{ font-size: 1rem; margin: 1.2rem 0 0.3rem; }}
p {{ margin: 0.4rem 0; max-width: 46rem; }}
a {{ color: var(--blue); }}
nav a {{ display: inline-block; margin-right: 1rem; padding: 0.2rem 0; }}
code {{ font-family: ui-monospace, monospace; font-size: 0.92em; }}
.muted {{ color: var(--muted); }}
dl {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.6rem;
  margin: 1rem 0; }}
dl div {{ background: var(--card); border: 1px solid var(--grid); border-radius: 0.5rem;
  padding: 0.5rem 0.7rem; }}
dt {{ color: var(--muted); font-size: 0.85rem; }}
dd {{ margin: 0; }}
dd b {{ font-size: 1.3rem; font-weight: 600; }}
ul.notes {{ margin: 0.8rem 0; padding: 0.6rem 0.9rem 0.6rem 2rem; border-left: 4px solid var(--orange);
  background: var(--card); border-radius: 0 0.5rem 0.5rem 0; }}
.columns {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr));
  gap: 0 2rem; align-items: start; }}
.scroll {{ overflow-x: auto; max-width: 100%; }}
table {{ border-collapse: collapse; width: 100%; overflow-wrap: break-word; font-variant-numeric: tabular-nums;
  font-size: 0.92rem; }}
caption {{ text-align: left; font-weight: 600; padding: 0.8rem 0 0.3rem; }}
th, td {{ text-align: right; padding: 0.22rem 0 0.22rem 0.8rem; border-bottom: 1px solid var(--grid);
  vertical-align: top; }}
thead th {{ color: var(--muted); font-weight: 500; }}
th:first-child, .words {{ text-align: left; }}
th:first-child {{ padding-left: 0; font-weight: 400; }}
table.names {{ table-layout: fixed; }}
table.names th:first-child {{ width: 45%; }}
td.bar {{ width: 45%; vertical-align: middle; }}
td.bar i {{ display: block; height: 0.75rem; min-width: 1px; background: var(--blue);
  border-radius: 0 2px 2px 0; }}
@media (max-width: 40rem) {{ table.wide td.bar, table.wide thead td {{ display: none; }} }}
.flag {{ white-space: nowrap; }}
details {{ margin: 0.6rem 0; }}
summary {{ cursor: pointer; color: var(--blue); padding: 0.3rem 0; }}
ul.files {{ columns: 22rem; padding-left: 1.2rem; font-size: 0.88rem; }}
figure {{ margin: 1.2rem 0; }}
figcaption {{ margin-bottom: 0.3rem; }}
figcaption span {{ color: var(--muted); font-size: 0.9rem; }}
.film {{ min-width: calc(var(--frames) * 6.5rem); }}
.film img {{ display: block; width: 100%; height: auto; border-radius: 3px; }}
.film ol {{ display: grid; grid-template-columns: repeat(var(--frames), 1fr); list-style: none;
  margin: 0.15rem 0 0; padding: 0; text-align: center; color: var(--muted); font-size: 0.8rem;
  font-variant-numeric: tabular-nums; }}
:focus-visible {{ outline: 2px solid var(--blue); outline-offset: 2px; }}
@media print {{ .film {{ min-width: 0; }} figure, tr {{ break-inside: avoid; }} }}
"""


def _e(value: object) -> str:
  return html.escape(figures.printable(str(value)))


def _table(
  caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], bars: Sequence[float] = ()
) -> str:
  """A table whose first column names its rows; cells are escaped here.

  Args:
    caption: of the table.
    heads: of the columns.
    rows: cells.
    bars: for each row the length of a bar, 0 to 1, behind its cells; none if empty.
  """
  heads_ = "".join(f'<th scope="col">{_e(head)}</th>' for head in heads)
  # Bars say again what the numbers beside them say.
  heads_ += '<td aria-hidden="true"></td>' if len(bars) else ""
  lines = []
  for i, (first, *rest) in enumerate(rows):
    cells = f'<th scope="row">{_e(first)}</th>' + "".join(f"<td>{_e(cell)}</td>" for cell in rest)
    if len(bars):
      bar = f'<i style="width:{100 * bars[i]:.1f}%"></i>' if bars[i] else ""
      cells += f'<td class="bar" aria-hidden="true">{bar}</td>'
    lines.append(f"<tr>{cells}</tr>")
  table = (
    f"<caption>{_e(caption)}</caption><thead><tr>{heads_}</tr></thead>"
    f"<tbody>{''.join(lines)}</tbody></table>"
  )
  if len(heads) <= _NARROW:
    return f"<table>{table}"
  return (
    f'<div class="scroll" tabindex="0" role="region" aria-label="{_e(caption)}">'
    f'<table class="wide">{table}</div>'
  )


def _histogram(caption: str, what: str, counts: Sequence[tuple[str, int]]) -> str:
  shown = list(counts)
  if len(shown) > _HISTOGRAM_ROWS:
    rest = shown[_HISTOGRAM_ROWS - 1 :]
    kept = shown[: _HISTOGRAM_ROWS - 1]
    shown = [*kept, (f"{len(rest):,} others", sum(videos for _, videos in rest))]
  most = max(videos for _, videos in shown)
  rows = [(name, f"{videos:,}") for name, videos in shown]
  return _table(caption, (what, "videos"), rows, [videos / most for _, videos in shown])


def _bin_name(entry: dict[str, Any], step: float) -> str:
  if entry["below"] is None:
    return f"{entry['from']:g} and more"
  last = entry["below"] - step
  return f"{entry['from']:g} to {last:g}" if last > entry["from"] else f"{entry['from']:g}"


def _folded(rows: int, what: str, inside: str) -> str:
  opened = " open" if rows <= _OPEN_ROWS else ""
  return f"<details{opened}><summary>{_e(what)}</summary>{inside}</details>"


def _numbers(summary: dict[str, Any]) -> str:
  videos, groups = summary["videos"], summary["groups"]
  seconds = summary["length_seconds"]
  cards = [
    ("Videos", f"{videos['stored']:,}", f"stored of {videos['listed']:,} listed"),
    ("Classes", f"{len(summary['classes']):,}", f"in {_amount(groups['stored'], 'group')}"),
    ("Length", _hours(summary["hours"]), f"{summary['frames']:,} frames"),
    ("A video", f"{seconds['median']:.1f} s", "median length"),
    ("Stored", _bytes(summary["bytes"]), f"{_bytes(summary['bytes_per_frame'])} a frame"),
    ("Not usable", f"{videos['missing'] + videos['broken']:,}", f"{videos['missing']:,} missing, {videos['broken']:,} broken"),
  ]  # fmt: skip
  cells = "".join(
    f"<div><dt>{_e(name)}</dt><dd><b>{_e(value)}</b><br>"
    f'<span class="muted">{_e(rest)}</span></dd></div>'
    for name, value, rest in cards
  )
  notes = "".join(f"<li>{_e(warning)}</li>" for warning in _warnings(summary))
  heading = '<h2 id="notes">Worth a look</h2>'
  return f"<dl>{cells}</dl>" + (f'{heading}<ul class="notes">{notes}</ul>' if notes else "")


def _tables(summary: dict[str, Any]) -> str:
  stored = summary["videos"]["stored"]
  shown = [name for name in LISTS if name != "validation" or summary["validation_share"]]
  of_lists = [(LISTS[name], summary["lists"][name]) for name in shown]
  spreads = {"frames": summary["length_frames"], "seconds": summary["length_seconds"]}
  digits = {"frames": 0, "seconds": 2}
  lengths = [
    (unit, *(f"{spread[name]:,.{digits[unit]}f}" for name in ("least", "median", "mean", "most")))
    for unit, spread in spreads.items()
  ]
  groups = summary["groups"]
  of_groups = [
    ("with stored videos", f"{groups['stored']:,}"),
    ("in the training or test list", f"{groups['in_lists']:,}"),
    ("in both lists", f"{groups['in_train_and_test']:,}"),
    ("test videos of groups in both", f"{groups['test_videos_in_shared']:,}"),
  ]
  if summary["validation_share"]:
    of_groups.append(("in the validation list", f"{groups['validation']:,}"))
  parts = [
    _table(
      f"Lists of split {summary['split']} of {summary['num_splits']}",
      ("list", "videos"),
      [(name, f"{count:,}") for name, count in of_lists],
      [count / stored for _, count in of_lists],
    ),
    _table("Groups: videos that share people and scenery", ("groups", "number"), of_groups),
    _table("Length of a video", ("in", "least", "median", "mean", "most"), lengths),
    _histogram(
      "Frames a second",
      "rate",
      [(f"{entry['fps']:g}", entry["videos"]) for entry in summary["fps_histogram"]],
    ),
    _table(
      "Length in seconds",
      ("seconds", "videos"),
      [(_bin_name(entry, 0), f"{entry['videos']:,}") for entry in summary["seconds_histogram"]],
      _shares(summary["seconds_histogram"]),
    ),
    _table(
      "Length in frames",
      ("frames", "videos"),
      [(_bin_name(entry, 1), f"{entry['videos']:,}") for entry in summary["frames_histogram"]],
      _shares(summary["frames_histogram"]),
    ),
    _histogram(
      f"Size of stored frames, JPEG quality {summary['jpeg_quality']}",
      "height × width",
      [(f"{size['height']} × {size['width']}", size["videos"]) for size in summary["sizes"]],
    ),
  ]
  return f'<div class="columns">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _shares(entries: Sequence[dict[str, Any]]) -> list[float]:
  most = max(entry["videos"] for entry in entries)
  return [entry["videos"] / most for entry in entries]


def _classes(summary: dict[str, Any]) -> str:
  shown = [name for name in LISTS if name != "validation" or summary["validation_share"]]
  rows = [
    (c["name"], f"{c['stored']:,}", *(f"{c[name]:,}" for name in shown)) for c in summary["classes"]
  ]
  most = max(c["stored"] for c in summary["classes"])
  heads = ("class", "stored", *(LISTS[name] for name in shown))
  bars = [c["stored"] / most for c in summary["classes"]]
  table = _table("Stored videos by class and list", heads, rows, bars)
  return _folded(len(rows), _amount(len(rows), "class", "classes"), table)


def _troubles(summary: dict[str, Any]) -> str:
  parts = []
  if summary["broken"]:
    rows = "".join(
      f'<tr><th scope="row"><code>{_e(entry["name"])}</code></th>'
      f'<td class="words">{_e(entry["reason"])}</td></tr>'
      for entry in summary["broken"]
    )
    table = (
      '<table class="names"><caption>Broken videos</caption><thead><tr><th scope="col">video</th>'
      f'<th scope="col" class="words">what was found</th></tr></thead><tbody>{rows}</tbody></table>'
    )
    parts.append(
      "<h3>Broken</h3><p>These files are there and cannot be decoded whole. Put a whole copy in the "
      "place of each and run the same command again: what is stored already stays. Or go on without "
      'them, with <code class="flag">--config.allow_missing=True</code>, or with their names in '
      '<code class="flag">--config.missing_allowed</code>.</p>'
      + _folded(len(summary["broken"]), _amount(len(summary["broken"]), "broken video"), table)
    )
  for name, title, todo in (
    ("missing", "Missing", "These are in the lists, and the data folder has no file of their name. "
     "Add the files at any depth and run the same command again."),
    ("unlisted", "Unlisted", "These files are in the data folder and in no list: nothing uses them. "
     "A name that differs from the list's by a letter is both here and among the missing."),
  ):  # fmt: skip
    if summary[name]:
      names = summary[name]
      entries = "".join(f"<li><code>{_e(entry)}</code></li>" for entry in names[:_LISTED_NAMES])
      if len(names) > _LISTED_NAMES:
        more = f"{len(names) - _LISTED_NAMES:,} more in"
        entries += f'<li>{more} <a href="{SUMMARY}">{SUMMARY}</a></li>'
      what = _amount(len(summary[name]), f"{name} video")
      folded = _folded(len(summary[name]), what, f'<ul class="files">{entries}</ul>')
      parts.append(f"<h3>{title}</h3><p>{_e(todo)}</p>{folded}")
  return "".join(parts) or "<p>Every listed video is stored, and no video file is left over.</p>"


def _film(folder: pathlib.Path, name: str, strip: figures.Strip) -> str:
  """Writes a strip's PNG and gives its figure."""
  picture = strip.picture()
  file = f"{STRIPS}/{name}.png"
  Image.fromarray(picture).save(folder / file)
  height, width = picture.shape[:2]
  count = len(strip.frames)
  labels = "".join(f"<li>{_e(label)}</li>" for label in strip.labels)
  alt = f"{_amount(count, 'frame')} of {strip.title}, {strip.labels[0]} to {strip.labels[-1]}"
  detail = f" <span>{_e(strip.detail)}</span>" if strip.detail else ""
  return (
    f"<figure><figcaption><b>{_e(strip.title)}</b>{detail}</figcaption>"
    f'<div class="scroll" tabindex="0" role="region" aria-label="{_e(alt)}">'
    f'<div class="film" style="--frames:{count};max-width:{2 * width}px">'
    f'<img src="{file}" alt="{_e(alt)}" width="{width}" height="{height}" loading="lazy">'
    f"<ol>{labels}</ol></div></div></figure>"
  )


def _sheet(folder: pathlib.Path, sheet: Sheet) -> str:
  parts = [f'<h2 id="{_e(sheet.name)}">{_e(sheet.title)}</h2><p>{_e(sheet.text)}</p>']
  if sheet.strips:
    figures.sheet(folder / f"{sheet.name}.png", sheet.strips)
    parts.append(f'<p><a href="{_e(sheet.name)}.png">The whole sheet as one picture</a></p>')
  for i, strip in enumerate(sheet.strips, 1):
    parts.append(_film(folder, f"{sheet.name}-{i:02d}", strip))
  return "".join(parts)


def _replace(path: pathlib.Path, content: str) -> None:
  part = path.with_name(f"{path.name}.part")
  part.write_text(content, encoding="utf-8")
  part.replace(path)


def write(folder: pathlib.Path, summary: dict[str, Any], pictures: Sequence[Sheet]) -> pathlib.Path:
  """Writes the page and all that belongs to it; what an earlier page left is replaced.

  Args:
    folder: made if need be.
    summary: what `summarise` gives.
    pictures: the contact sheets, in order.

  Returns:
    The path of the page.
  """
  (folder / STRIPS).mkdir(parents=True, exist_ok=True)
  for sheet in pictures:
    for old in (folder / f"{sheet.name}.png", *(folder / STRIPS).glob(f"{sheet.name}-*.png")):
      old.unlink(missing_ok=True)
  sections = [("numbers", "Numbers"), ("classes", "Classes"), ("troubles", "Missing and broken")]
  sections += [(sheet.name, sheet.title) for sheet in pictures]
  links = "".join(f'<a href="#{_e(name)}">{_e(title)}</a>' for name, title in sections)
  title = f"{summary['dataset']}, split {summary['split']}"
  content = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>Data: {_e(title)}</title><style>{_CSS}</style></head><body>\n"
    f'<header><h1>{_e(title)}</h1><p class="muted">Records in <code>{_e(summary["records"])}</code>. '
    f'The numbers below as a file: <a href="{SUMMARY}">{SUMMARY}</a></p>'
    f'<nav aria-label="Sections">{links}</nav></header>\n<main>'
    f"{_numbers(summary)}\n"
    f'<h2 id="numbers">Numbers</h2>{_tables(summary)}\n'
    f'<h2 id="classes">Classes</h2>{_classes(summary)}\n'
    f'<h2 id="troubles">Missing and broken</h2>{_troubles(summary)}\n'
    + "\n".join(_sheet(folder, sheet) for sheet in pictures)
    + "</main></body></html>\n"
  )
  _replace(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
  _replace(folder / PAGE, content)
  return folder / PAGE
