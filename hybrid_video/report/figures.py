"""Figures of one run: learning curves, confusion matrix, and clips as the model sees them.

In: numbers and frames. Out: PNG files.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import io
import pathlib
from typing import Any
import warnings

import matplotlib
import matplotlib.axes
import matplotlib.figure
import matplotlib.ticker
import numpy as np
from PIL import Image

from hybrid_video import errors, files

matplotlib.use("Agg")

INK, MUTED, GRID = "#1f2328", "#6e7781", "#d8dee4"
BLUE, ORANGE = "#2563a8", "#c2571a"
STYLE = {
  "font.size": 9,
  "axes.edgecolor": MUTED,
  "axes.labelcolor": INK,
  "text.color": INK,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.color": GRID,
  "grid.linewidth": 0.6,
  "axes.axisbelow": True,
  "savefig.dpi": 150,
  "savefig.bbox": "tight",
  "figure.facecolor": "white",
}
# Of a contact sheet, in inches.
_PANEL, _ROW_TEXT = 1.1, 0.5
# Of a strip, in pixels; a panel that is smaller is enlarged by whole factors, so that it stays sharp.
GAP, _LEAST_HEIGHT = 4, 96
# Letters of a class name beside a matrix: those that its margin has room for, and at most. Each of
# the others widens the margin, by as many inches as the widest letters need.
_MARGIN_LETTERS, _NAME_LETTERS, _LETTER = 16, 40, 0.125


class FigureError(errors.UserError):
  """A picture that cannot be written; the message says where and why."""


@contextlib.contextmanager
def _drawing(**style: Any) -> Iterator[None]:
  """The style of all figures here, which show names that may hold anything.

  A `$` in a name begins no formula (a name such as `cost_$5_to_$10` is none that can be parsed),
  and letters that the font lacks are drawn as boxes.
  """
  with (
    matplotlib.rc_context({**STYLE, "text.parse_math": False, **style}),
    warnings.catch_warnings(),
  ):
    warnings.filterwarnings("ignore", message="Glyph .* missing from")
    yield


@contextlib.contextmanager
def _png_file(path: pathlib.Path) -> Iterator[Any]:
  """A binary file in memory that is written whole.

  Raises:
    FigureError: it cannot be written.
  """
  try:
    # Writers of pictures seek, which files in a bucket cannot.
    buffer = io.BytesIO()
    yield buffer
    with files.whole_file(path) as part:
      part.write_bytes(buffer.getvalue())
  except OSError as error:
    raise FigureError(
      f"{errors.printable(path)}: the picture cannot be written ({error.strerror or error}). Make "
      "room, or set --workdir to a folder that you may write to."
    ) from error


def _save(figure: matplotlib.figure.Figure, path: pathlib.Path) -> None:
  with _png_file(path) as file:
    figure.savefig(file, format="png")


def write_picture(path: pathlib.Path, picture: np.ndarray) -> None:
  """Writes pixels, uint8 `[H, W, 3 or 4]`, as a PNG.

  Raises:
    FigureError: the file cannot be written.
  """
  with _png_file(path) as file:
    Image.fromarray(picture).save(file, "PNG")


def _figure(width: float, height: float) -> matplotlib.figure.Figure:
  return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


History = Sequence[dict[str, float]]
# Curves of the loss and of the accuracy: their names in a history without the metric's, the metric of
# the accuracy, words, and how they are drawn.
_CURVES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
  ("train", "top1", "training clips", {"color": BLUE}),
  ("train_sample", "video_top1", "training videos", {"color": BLUE, "linestyle": "--"}),
  ("validation", "video_top1", "validation videos", {"color": ORANGE}),
  ("validation_raw", "video_top1", "the same, raw parameters", {"color": ORANGE, "linestyle": ":"}),
)
# Rates of this many groups are named each; of more, the lowest and the highest are.
_NAMED_RATES = 4


def learning_curves(
  path: pathlib.Path,
  history: History,
  test: dict[str, float],
  chance: float,
  *,
  step: int | None = None,
  best: dict[str, float] | None = None,
  note: str = "",
) -> None:
  """Loss, accuracy and learning rates over epochs, with the test list's values beside them.

  Args:
    path: PNG to write.
    history: what `writers.read_history` gives; its lines need not have the same numbers.
    test: `loss` and, of a classifier, `video_top1` of the test list; the accuracy is drawn only where
      there is one.
    chance: accuracy of guessing.
    step: the one whose parameters were tested; the default is the last.
    best: the line of the best validation, which is marked.
    note: stands below, for what a reader has to know.
  """
  end = history[-1]["epoch"] if history else 1.0
  tested = next((line["epoch"] for line in history if line.get("step") == step), end)
  is_classifier = "video_top1" in test
  # Of pretraining, a linear probe tells the accuracy.
  probe = not is_classifier and "probe_top1" in test
  has_rates = any("learning_rate" in line for line in history)
  with _drawing():
    columns = 2 if is_classifier or probe else 1
    figure = _figure(4.4 * columns, 5 if has_rates else 3.8)
    rows = figure.add_gridspec(1 + has_rates, columns, height_ratios=[3, 1][: 1 + has_rates])
    loss = figure.add_subplot(rows[0, 0])
    _curves(loss, history, {group: "loss" for group, *_ in _CURVES}, 1)
    _test_point(loss, tested, test["loss"])
    loss.set_title(f"loss; of the test videos {test['loss']:.3g}", loc="left", fontsize=9)
    loss.set_ylabel("loss (nats)" if is_classifier else "loss")
    loss.set_ylim(bottom=0)
    if is_classifier:
      accuracy = figure.add_subplot(rows[0, 1])
      _curves(accuracy, history, {group: metric for group, metric, *_ in _CURVES}, 100)
      _accuracies(accuracy, "top-1", tested, 100 * test["video_top1"], 100 * chance)
    if probe:
      _probe(
        figure.add_subplot(rows[0, 1]), history, tested, 100 * test["probe_top1"], 100 * chance
      )
    if best is not None:
      for axes in figure.axes:
        label = f"best validation: step {best['step']:.0f}"
        axes.axvline(best["epoch"], color=ORANGE, linewidth=0.8, alpha=0.6, label=label)
    _legend(figure, loss, 3 if is_classifier else 2)
    if has_rates:
      _rates(figure.add_subplot(rows[1, :]), history)
    for axes in figure.axes:
      axes.set_xlim(0, end * 1.02)
    for axes in figure.axes[-1:] if has_rates else figure.axes:
      axes.set_xlabel("epoch")
    if note:
      figure.supxlabel(note, color=ORANGE, fontsize=9)
    _save(figure, path)


def _probe(
  axes: matplotlib.axes.Axes, history: History, tested: float, accuracy: float, chance: float
) -> None:
  """A linear probe's accuracy while pretraining, per cent."""
  points = [
    (line["epoch"], 100 * line["validation/probe_top1"])
    for line in history
    if "validation/probe_top1" in line
  ]
  if points:
    axes.plot(*zip(*points, strict=True), color=ORANGE, marker="o", markersize=3)
  _accuracies(axes, "linear probe", tested, accuracy, chance)


def _accuracies(
  axes: matplotlib.axes.Axes, what: str, tested: float, accuracy: float, chance: float
) -> None:
  """The test list's accuracy beside the curves, per cent, and the axes of a panel of accuracies."""
  _test_point(axes, tested, accuracy)
  axes.axhline(chance, color=MUTED, linestyle=(0, (1, 3)))
  title = f"{what}; of the test videos {accuracy:.1f} %, by chance {chance:.1f} %"
  axes.set_title(title, loc="left", fontsize=9)
  axes.set_ylabel("top-1 (%)")
  axes.set_ylim(0, 102)


def _legend(figure: matplotlib.figure.Figure, axes: matplotlib.axes.Axes, columns: int) -> None:
  """Names what is drawn in a panel and those like it, outside, where it hides no curve."""
  handles, labels = axes.get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=8)


def _curves(
  axes: matplotlib.axes.Axes, history: History, metrics: dict[str, str], factor: float
) -> None:
  """Draws the metric of each list that the history has one of."""
  for group, _, words, style in _CURVES:
    name = f"{group}/{metrics[group]}"
    points = [(line["epoch"], factor * line[name]) for line in history if name in line]
    if points:
      marker = "o" if len(points) < 3 else None
      axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=words, **style)


def _test_point(axes: matplotlib.axes.Axes, epoch: float, value: float) -> None:
  point: Any = {"color": INK, "marker": "D", "linestyle": "none", "label": "test videos"}
  axes.plot([epoch], [value], clip_on=False, zorder=3, **point)


def _rates(axes: matplotlib.axes.Axes, history: History) -> None:
  """Draws the learning rate, or those of the groups of parameters where there are groups."""
  groups = {name for line in history for name in line if name.startswith("learning_rate/")}
  highest = {
    name: max((line[name] for line in history if name in line), default=0.0)
    for name in groups or {"learning_rate"}
  }
  ordered = sorted(highest, key=lambda name: (-highest[name], name))
  named = set(ordered if len(ordered) <= _NAMED_RATES else (ordered[0], ordered[-1]))
  for i, name in enumerate(ordered):
    points = [(line["epoch"], line[name]) for line in history if name in line]
    shade = matplotlib.colormaps["viridis"](0.85 * i / max(1, len(ordered) - 1))
    words = errors.printable(name.partition("/")[2])
    axes.plot(
      *zip(*points, strict=True),
      color=shade if groups else INK,
      label=words if name in named else None,
      marker="o" if len(points) < 3 else None,
      markersize=4,
    )
  positive = [rate for rate in highest.values() if rate > 0]
  if positive and max(positive) > 30 * min(positive):
    axes.set_yscale("log")
    axes.set_ylim(min(positive) / 100, 2 * max(positive))
    # Matplotlib's own are formulas.
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda rate, _: f"{rate:.0e}"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
  else:
    axes.set_ylim(bottom=0)
  axes.set_ylabel("learning rate")
  if groups:
    axes.legend(loc="best", ncols=len(named), frameon=False, fontsize=7.5)


def confusion_matrix(path: pathlib.Path, counts: np.ndarray, class_names: Sequence[str]) -> None:
  """Which class is predicted for which, as shares of the true class.

  Args:
    path: PNG to write.
    counts: videos `[true class, predicted class]`.
    class_names: by class id. Classes without a test video are left out of the rows.
  """
  rows = np.flatnonzero(counts.sum(1)).tolist()
  columns = np.flatnonzero(counts.sum(1) + counts.sum(0)).tolist()
  shown = counts[np.ix_(rows, columns)]
  shares = shown / shown.sum(1, keepdims=True)
  names = [_shortened(errors.printable(name), _NAME_LETTERS) for name in class_names]
  margin = 2.2 + _LETTER * max(0, max(len(names[i]) for i in columns) - _MARGIN_LETTERS)
  width = margin + max(1.0, 0.26 * len(columns))
  height = margin + max(0.4, 0.26 * len(rows))
  with _drawing(**{"axes.grid": False}):
    figure = _figure(width + 0.8, height)
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="equal")
    axes.set_xticks(range(len(columns)), [names[i] for i in columns], rotation=90)
    axes.set_yticks(range(len(rows)), [names[i] for i in rows])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(columns) <= 20:
      for (y, x), count in np.ndenumerate(shown):
        if count:
          colour = "white" if shares[y, x] > 0.5 else INK
          axes.text(x, y, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8)
    accuracy = 100 * np.trace(counts) / counts.sum()
    axes.set_title(f"{counts.sum()} videos, {accuracy:.1f} % correct", loc="left", fontsize=10)
    _save(figure, path)


@dataclasses.dataclass(frozen=True)
class Strip:
  """Frames of one video side by side, time to the right.

  Attributes:
    title: what comes first, such as the class.
    frames: uint8 `[N, H, W, 3]`.
    labels: what stands below each frame, N texts.
    detail: more about it, such as the video's name.
    wrong: whether the title is marked as a wrong prediction.

  Raises:
    ValueError: there are not as many labels as frames.
  """

  title: str
  frames: np.ndarray
  labels: Sequence[str]
  detail: str = ""
  wrong: bool = False

  def __post_init__(self) -> None:
    if not len(self.labels) == len(self.frames) > 0:
      raise ValueError(
        f"The strip {self.title!r} has {len(self.frames)} frames and {len(self.labels)} labels: "
        "expected one label a frame, and at least one frame."
      )

  def picture(self) -> np.ndarray:
    """The frames in one row, uint8 RGBA `[H', W', 4]`, with clear gaps between them."""
    count, height, width = self.frames.shape[:3]
    factor = -(-_LEAST_HEIGHT // height)
    panels = self.frames.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor, width * factor
    picture = np.zeros((height, count * width + (count - 1) * GAP, 4), np.uint8)
    for i, panel in enumerate(panels):
      left = i * (width + GAP)
      picture[:, left : left + width, :3] = panel
      picture[:, left : left + width, 3] = 255
    return picture


def even_frames(total: int, shown: int) -> np.ndarray:
  """Indices of at most `shown` of `total` frames, evenly spaced, the first and the last among them."""
  return np.unique(np.linspace(0, total - 1, min(shown, total)).round().astype(int))


def _shortened(text: str, letters: int) -> str:
  # Names differ at both ends.
  half = (letters - 1) // 2
  return text if len(text) <= letters else f"{text[:half]}…{text[-half:]}"


def sheet(path: pathlib.Path, strips: Sequence[Strip]) -> None:
  """Strips one below the other.

  Args:
    path: PNG to write.
    strips: at least one.
  """
  pictures = [strip.picture() for strip in strips]
  columns = max(len(strip.frames) for strip in strips)
  # A strip with fewer frames than others has panels as large as theirs.
  heights = [
    _PANEL * len(strip.frames) * picture.shape[0] / picture.shape[1]
    for strip, picture in zip(strips, pictures, strict=True)
  ]
  width, height = _PANEL * columns, sum(heights) + _ROW_TEXT * len(strips)
  with _drawing(**{"axes.grid": False}):
    figure = matplotlib.figure.Figure(figsize=(width, height))
    top = height
    for strip, picture, tall in zip(strips, pictures, heights, strict=True):
      wide = _PANEL * len(strip.frames)
      box = (0, (top - _ROW_TEXT / 2 - tall) / height, wide / width, tall / height)
      top -= tall + _ROW_TEXT
      axes = figure.add_axes(box)
      axes.imshow(picture, aspect="auto")
      axes.set_axis_off()
      below: Any = {"transform": axes.transAxes, "ha": "center", "va": "top"}
      for i, label in enumerate(strip.labels):
        middle = (i + 0.5) / len(strip.labels)
        axes.text(middle, -0.03, errors.printable(label), fontsize=8, color=MUTED, **below)
      text = errors.printable(f"{strip.title}   {strip.detail}" if strip.detail else strip.title)
      colour = ORANGE if strip.wrong else INK
      title = axes.set_title(text, loc="left", fontsize=9, color=colour, pad=3)
      share = title.get_window_extent().width / (width * figure.dpi)
      if share > 1:
        title.set_text(_shortened(text, int(len(text) / share)))
    _save(figure, path)


def contact_sheet(
  path: pathlib.Path,
  clips: np.ndarray,
  true: Sequence[str],
  predicted: Sequence[str],
  shown_frames: int = 8,
) -> None:
  """Clips as the model gets them, one a row, time to the right, and what it predicts.

  Args:
    path: PNG to write.
    clips: uint8 `[N, T, H, W, 3]`.
    true: class name of each clip.
    predicted: class name that the model predicts for the clip's video; "" where it predicts none.
    shown_frames: how many of the T frames to show, evenly spaced.
  """
  indices = even_frames(clips.shape[1], shown_frames)
  strips = []
  for clip, true_name, predicted_name in zip(clips, true, predicted, strict=True):
    title, wrong = true_name, False
    if predicted_name:
      wrong = true_name != predicted_name
      title += f", predicted {predicted_name}" if wrong else ", recognized"
    labels = [f"frame {index}" for index in indices]
    strips.append(Strip(title, clip[indices], labels, wrong=wrong))
  sheet(path, strips)
