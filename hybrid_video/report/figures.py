"""Figures of one run: learning curves, confusion matrix, and clips as the model sees them."""

from collections.abc import Sequence
import pathlib

import matplotlib
import matplotlib.axes
import matplotlib.figure
import numpy as np

matplotlib.use("Agg")

INK, MUTED, GRID = "#1f2328", "#6e7781", "#d8dee4"
BLUE, ORANGE = "#2563a8", "#c2571a"
_STYLE = {
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
  with matplotlib.rc_context(_STYLE):
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
  with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
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


def contact_sheet(
  path: pathlib.Path,
  clips: np.ndarray,
  true: Sequence[str],
  predicted: Sequence[str],
  shown_frames: int = 8,
) -> None:
  """Clips as the model gets them, one a row, time to the right.

  Args:
    path: PNG to write.
    clips: uint8 `[N, T, H, W, 3]`.
    true: class name of each clip.
    predicted: what the model takes the clip's video for.
    shown_frames: how many of the T frames to show, evenly spaced.
  """
  count, total = clips.shape[:2]
  indices = np.unique(np.linspace(0, total - 1, min(shown_frames, total)).round().astype(int))
  with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
    figure = matplotlib.figure.Figure(figsize=(1.1 * len(indices), 1.35 * count))
    spacing = {"hspace": 0.3, "wspace": 0.04}
    grid = figure.subplots(count, len(indices), squeeze=False, gridspec_kw=spacing)
    for row, clip, is_, taken_for in zip(grid, clips, true, predicted, strict=True):
      for axes, index in zip(row, indices, strict=True):
        axes.imshow(clip[index])
        axes.set_axis_off()
      right = is_ == taken_for
      title = f"{is_}, recognised" if right else f"{is_}, taken for {taken_for}"
      row[0].set_title(title, loc="left", fontsize=9, color=INK if right else ORANGE)
    for axes, index in zip(grid[-1], indices, strict=True):
      axes.text(0.5, -0.08, f"frame {index}", transform=axes.transAxes, ha="center", va="top")
    figure.savefig(path)
