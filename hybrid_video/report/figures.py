"""Figures of one run: learning curves, confusion matrix, and clips as the model sees them.

In: numbers and frames. Out: PNG files.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import warnings

import matplotlib
import matplotlib.axes
import matplotlib.figure
import numpy as np

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
_GAP, _LEAST_HEIGHT = 4, 96


def _figure(width: float, height: float) -> matplotlib.figure.Figure:
  return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def learning_curves(
  path: pathlib.Path, history: Sequence[dict[str, float]], test: dict[str, float], chance: float
) -> None:
  """Training loss and accuracy over epochs, with the test list's final values beside them.

  Args:
    path: PNG to write.
    history: what `writers.read_history` gives.
    test: `loss` and `video_top1` of the test list.
    chance: accuracy of guessing.
  """
  with matplotlib.rc_context(STYLE):
    figure = _figure(8, 3.2)
    left, right = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in history]
    end = epochs[-1] if epochs else 1.0
    marker = "o" if len(epochs) < 3 else None
    left.plot(epochs, [line["train/loss"] for line in history], color=BLUE, marker=marker)
    left.plot([end], [test["loss"]], "D", color=ORANGE, clip_on=False)
    left.set_ylabel("loss (nats)")
    left.set_ylim(bottom=0)
    right.plot(
      epochs,
      [100 * line["train/top1"] for line in history],
      color=BLUE,
      marker=marker,
      label="training clips",
    )
    right.plot(
      [end],
      [100 * test["video_top1"]],
      "D",
      color=ORANGE,
      clip_on=False,
      label=f"test videos, at the end: {100 * test['video_top1']:.1f} %",
    )
    right.axhline(100 * chance, color=MUTED, linestyle=":", label=f"chance: {100 * chance:.1f} %")
    right.set_ylabel("top-1 (%)")
    right.set_ylim(0, 102)
    right.legend(frameon=False, loc="best")
    for axes in (left, right):
      axes.set_xlabel("epoch")
      axes.set_xlim(0, end * 1.02)
    figure.savefig(path)


def confusion_matrix(path: pathlib.Path, counts: np.ndarray, class_names: Sequence[str]) -> None:
  """Which class is taken for which, as shares of the true class.

  Args:
    path: PNG to write.
    counts: videos `[true class, predicted class]`.
    class_names: by class id. Classes without a test video are left out of the rows.
  """
  rows = np.flatnonzero(counts.sum(1)).tolist()
  columns = np.flatnonzero(counts.sum(1) + counts.sum(0)).tolist()
  shown = counts[np.ix_(rows, columns)]
  shares = shown / shown.sum(1, keepdims=True)
  size = max(3.2, 0.26 * len(columns) + 2.2)
  with matplotlib.rc_context({**STYLE, "axes.grid": False}):
    figure = _figure(size + 0.8, max(2.6, 0.26 * len(rows) + 2.2))
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="equal")
    axes.set_xticks(range(len(columns)), [class_names[i] for i in columns], rotation=90)
    axes.set_yticks(range(len(rows)), [class_names[i] for i in rows])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(columns) <= 20:
      for (y, x), count in np.ndenumerate(shown):
        if count:
          colour = "white" if shares[y, x] > 0.5 else INK
          axes.text(x, y, str(count), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8)
    accuracy = 100 * np.trace(counts) / counts.sum()
    axes.set_title(f"{counts.sum()} videos, {accuracy:.1f} % right", loc="left", fontsize=10)
    figure.savefig(path)


def printable(text: str) -> str:
  """A name as any terminal, font and browser takes it: what does not print, as Python writes it."""
  return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


@dataclasses.dataclass(frozen=True)
class Strip:
  """Frames of one video side by side, time to the right.

  Attributes:
    title: what comes first, such as the class.
    frames: uint8 `[N, H, W, 3]`.
    labels: what stands below each frame, N texts.
    detail: what else is to be said of it, such as the video's name.
    wrong: whether the title is marked as a fault.

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
    picture = np.zeros((height, count * width + (count - 1) * _GAP, 4), np.uint8)
    for i, panel in enumerate(panels):
      left = i * (width + _GAP)
      picture[:, left : left + width, :3] = panel
      picture[:, left : left + width, 3] = 255
    return picture


def even_frames(total: int, shown: int) -> np.ndarray:
  """Places of at most `shown` of `total` frames, evenly spaced, the first and the last among them."""
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
  with matplotlib.rc_context({**STYLE, "axes.grid": False}), warnings.catch_warnings():
    # A name may hold letters that the font lacks; they are drawn as boxes.
    warnings.filterwarnings("ignore", message="Glyph .* missing from")
    figure = matplotlib.figure.Figure(figsize=(width, height))
    top = height
    for strip, picture, tall in zip(strips, pictures, heights, strict=True):
      wide = _PANEL * len(strip.frames)
      place = (0, (top - _ROW_TEXT / 2 - tall) / height, wide / width, tall / height)
      top -= tall + _ROW_TEXT
      axes = figure.add_axes(place)
      axes.imshow(picture, aspect="auto")
      axes.set_axis_off()
      for i, label in enumerate(strip.labels):
        at = ((i + 0.5) / len(strip.labels), -0.03)
        axes.text(
          *at,
          printable(label),
          transform=axes.transAxes,
          ha="center",
          va="top",
          fontsize=8,
          color=MUTED,
          parse_math=False,
        )
      text = printable(f"{strip.title}   {strip.detail}" if strip.detail else strip.title)
      colour = ORANGE if strip.wrong else INK
      title = axes.set_title(text, loc="left", fontsize=9, color=colour, pad=3, parse_math=False)
      wanted = title.get_window_extent().width / (width * figure.dpi)
      if wanted > 1:
        title.set_text(_shortened(text, int(len(text) / wanted)))
    figure.savefig(path)


def contact_sheet(
  path: pathlib.Path,
  clips: np.ndarray,
  true: Sequence[str],
  predicted: Sequence[str],
  shown_frames: int = 8,
) -> None:
  """Clips as the model gets them, one a row, time to the right, and what it takes them for.

  Args:
    path: PNG to write.
    clips: uint8 `[N, T, H, W, 3]`.
    true: class name of each clip.
    predicted: what the model takes the clip's video for.
    shown_frames: how many of the T frames to show, evenly spaced.
  """
  indices = even_frames(clips.shape[1], shown_frames)
  strips = []
  for clip, is_, taken_for in zip(clips, true, predicted, strict=True):
    right = is_ == taken_for
    title = f"{is_}, recognised" if right else f"{is_}, taken for {taken_for}"
    labels = [f"frame {index}" for index in indices]
    strips.append(Strip(title, clip[indices], labels, wrong=not right))
  sheet(path, strips)
