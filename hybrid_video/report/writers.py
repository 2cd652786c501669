"""Where metrics go while training runs: the console, TensorBoard, and a file the figures read.

All are clu metric writers behind one `MultiWriter`.
"""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

from clu import metric_writers
import numpy as np

from hybrid_video import files, progress

HISTORY = "history.jsonl"


class _ScalarsWriter(metric_writers.MetricWriter):
  """A writer of scalars; other kinds of summaries are ignored."""

  def write_summaries(
    self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
  ) -> None:
    pass

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    pass

  def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
    pass

  def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
    pass

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    pass

  def write_histograms(
    self,
    step: int,
    arrays: Mapping[str, Any],
    num_buckets: Mapping[str, int] | None = None,
  ) -> None:
    pass

  def write_pointcloud(self, step: int, point_clouds: Mapping[str, Any], **rest: Any) -> None:
    pass

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    pass

  def flush(self) -> None:
    pass

  def close(self) -> None:
    pass


class ConsoleWriter(_ScalarsWriter):
  """One line a report: step, epoch, loss, accuracy if there is one, speed, time left."""

  def __init__(self, steps: int):
    self._steps = steps

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Prints the training scalars `train` writes."""
    accuracies = [
      f"  {words} {100 * scalars[name]:5.1f} %"
      for name, words in (("train/top1", "top-1"), ("train/top5", "top-5"))
      if name in scalars
    ]
    print(
      f"step {step:>{len(str(self._steps))}}/{self._steps}"
      f"  epoch {scalars['epoch']:6.2f}"
      f"  loss {scalars['train/loss']:7.4f}"
      + "".join(accuracies)
      + f"  {scalars['clips_per_second']:7.1f} clips/s"
      f"  {progress.duration(scalars['seconds_left']):>6} left",
      flush=True,
    )


class HistoryWriter(_ScalarsWriter):
  """A JSON object a line; a resumed run goes on after the step it resumes from."""

  def __init__(self, workdir: pathlib.Path, first_step: int):
    self._path = workdir / HISTORY
    before = [line for line in read_history(workdir) if line["step"] <= first_step]
    files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in before))

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Appends the scalars of a step."""
    line = {"step": step, **{name: float(np.asarray(value)) for name, value in scalars.items()}}
    with self._path.open("a") as file:
      file.write(json.dumps(line) + "\n")


def read_history(workdir: pathlib.Path) -> list[dict[str, float]]:
  """The lines written so far, oldest first; a last line that is not whole is left out."""
  path = workdir / HISTORY
  lines = []
  for text in path.read_text().splitlines() if path.is_file() else ():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      break
  return lines


def create(
  workdir: os.PathLike | str, *, first_step: int, steps: int
) -> metric_writers.MetricWriter:
  """The writers of a run: console, TensorBoard under `tensorboard/`, and `history.jsonl`."""
  workdir = pathlib.Path(workdir)
  return metric_writers.MultiWriter(
    [
      ConsoleWriter(steps),
      metric_writers.SummaryWriter(os.fspath(workdir / "tensorboard")),
      HistoryWriter(workdir, first_step),
    ]
  )
