"""Where metrics go while training runs: console, TensorBoard, a file the figures read, and a service.

All are clu metric writers behind one `MultiWriter`. In: one `write_scalars` a step. Out: lines and
files in which each step stands once, however often the run was stopped and resumed.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import logging
import os
from typing import Any

from clu import metric_writers
from etils import epath
import jax
import numpy as np
from tensorboard.compat import tf

from hybrid_video import files, progress
from hybrid_video.experiment import Experiment
from hybrid_video.report import event_files, line_files, results
from hybrid_video.report.scalar_writer import ScalarsWriter
from hybrid_video.report.wandb_writer import WandbWriter
from hybrid_video.validation import Tracker

log = logging.getLogger("hybrid_video")

HISTORY = "history.jsonl"

History = list[dict[str, float]]
Scalars = Mapping[str, float]


def best_step(history: History, metric: str) -> dict[str, float] | None:
  """The line of the best validation, the earlier of two as good; None where nothing was validated.

  Args:
    history: what `read_history` gives.
    metric: such as `video_top1`; of `loss` less is better.
  """
  best = _best_of(history, metric).step
  return next((line for line in history if line["step"] == best), None)


def _best_of(history: History, metric: str) -> Tracker:
  tracker, name = Tracker(metric), f"validation/{metric}"
  for line in history:
    if name in line:
      tracker = tracker.after(int(line["step"]), {metric: line[name]})
  return tracker


class ConsoleWriter(ScalarsWriter):
  """A log line a report, and one a validation."""

  def __init__(self, steps: int, experiment: Experiment, before: History):
    """Goes on after what was written before.

    Args:
      steps: the last step of the training.
      experiment: `validation.metric`.
      before: the history so far, which may hold the best validation.
    """
    super().__init__()
    self._steps = steps
    self._best = _best_of(before, experiment.validation.metric_of(experiment.task))

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    """Logs the numbers of training, and of the validation list where there are any."""
    values = {name: float(value) for name, value in scalars.items()}
    log.info("%s", self._training(step, values))
    for group, words in (
      ("validation", "validation"),
      ("validation_raw", "  raw parameters"),
      ("train_sample", "  training sample"),
    ):
      if f"{group}/loss" in values:
        line = f"{words}{_score(values, group)}"
        log.info("%s", line + self._compared(step, values) if group == "validation" else line)

  def _training(self, step: int, values: dict[str, float]) -> str:
    top1 = f"  top-1 {100 * values['train/top1']:5.1f} %" if "train/top1" in values else ""
    parts = [
      f"step {step:>{len(str(self._steps))}}/{self._steps}  epoch {values['epoch']:6.2f}",
      f"  loss {values.get('train/loss', np.nan):7.4f}{top1}",
      f"  rate {values['learning_rate']:.2e}",
    ]
    for name, text in (
      ("clips_per_second", "  {:7.1f} clips/s"),
      ("waiting_share", "  waiting {:3.0%}"),
    ):
      if name in values:
        parts.append(text.format(values[name]))
    if "seconds_left" in values:
      parts.append(f"  {progress.duration(values['seconds_left']):>6} left")
    if values.get("skipped_steps"):
      parts.append(f"  ({values['skipped_steps']:.0f} updates skipped)")
    return "".join(parts)

  def _compared(self, step: int, values: dict[str, float]) -> str:
    """Whether this is the best validation so far, and if not, which is."""
    metric = self._best.metric
    self._best = self._best.after(step, {metric: values[f"validation/{metric}"]})
    value = self._best.best
    if value is None:
      return ""
    if self._best.step == step:
      return f"  (best so far, step {step})"
    shown = f"{metric} {value:.4f}" if metric == "loss" else f"{metric} {100 * value:.1f} %"
    return f"  (best: {shown}, step {self._best.step})"


def _score(values: dict[str, float], group: str) -> str:
  accuracy = f"{group}/video_top1"
  top1 = f"  top-1 {100 * values[accuracy]:5.1f} %" if accuracy in values else ""
  probe = f"{group}/probe_top1"
  probed = f"  linear probe {100 * values[probe]:5.1f} %" if probe in values else ""
  return f"{top1}  loss {values[f'{group}/loss']:7.4f}{probed}"


class EventsWriter(metric_writers.SummaryWriter):
  """TensorBoard's events; those of steps that come again are taken out first."""

  def __init__(self, workdir: os.PathLike | str, first_step: int):
    """Opens a new event file beside the earlier ones.

    Raises:
      WorkdirError: the folder cannot be read or written.
    """
    self._folder = epath.Path(workdir) / results.TENSORBOARD
    with self._writing():
      event_files.drop_scalars_after(self._folder, first_step)
      super().__init__(os.fspath(self._folder))

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    with results.writing(self._folder):
      try:
        yield
      except tf.errors.OpError as error:
        # Its first line ends in what the system said.
        raise OSError(error.message.partition("\n")[0].rpartition("; ")[2]) from error

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    """Writes the scalars of a step."""
    with self._writing():
      super().write_scalars(step, scalars)

  def flush(self) -> None:
    """Sees to it that everything is on disk."""
    with self._writing():
      super().flush()

  def close(self) -> None:
    """Writes what is left."""
    with self._writing():
      super().close()


class HistoryWriter(ScalarsWriter):
  """A JSON object a line; a resumed run goes on after the step it resumes from."""

  def __init__(self, workdir: os.PathLike | str, first_step: int):
    """Leaves the steps up to the first one in the file.

    Raises:
      WorkdirError: it cannot be read or written.
    """
    super().__init__()
    self._path = epath.Path(workdir) / HISTORY
    with results.writing(self._path):
      before = [line for line in _lines(self._path) if line["step"] <= first_step]
      files.write_text(self._path, "".join(files.as_json(line) + "\n" for line in before))
      self._file = line_files.LineFile(self._path)

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    """Adds the scalars of a step."""
    line = {"step": step, **{name: float(value) for name, value in scalars.items()}}
    with results.writing(self._path):
      self._file.write(files.as_json(line) + "\n")

  def flush(self) -> None:
    """Sees to it that every line is in the file."""
    with results.writing(self._path):
      self._file.flush()

  def close(self) -> None:
    """Sees to it that every line is in the file."""
    self.flush()


def _lines(path: epath.Path) -> list[dict[str, Any]]:
  lines = []
  for text in path.read_text().splitlines() if path.exists() else ():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      break
  return lines


def read_history(workdir: os.PathLike | str) -> History:
  """The lines written so far, oldest first; a last line that is not whole is left out.

  What was not finite, null in the file, is nan.
  """
  return [
    {name: np.nan if value is None else value for name, value in line.items()}
    for line in _lines(epath.Path(workdir) / HISTORY)
  ]


def create(
  workdir: os.PathLike | str, *, first_step: int, steps: int, experiment: Experiment
) -> metric_writers.MetricWriter:
  """The writers of a run: of its first process, and none of the others.

  Args:
    workdir: has `tensorboard/` and `history.jsonl`.
    first_step: the last step that was trained and reported; what is written of later ones is dropped.
    steps: the last step of the training.
    experiment: `validation.metric`; `wandb_project` adds Weights & Biases.

  Raises:
    UserError: something cannot be written, or Weights & Biases cannot be used.
  """
  if jax.process_index():
    return metric_writers.MultiWriter([])
  history = HistoryWriter(workdir, first_step)
  before = read_history(workdir)
  # What is on this machine first: it is what a resumed run builds on.
  made: list[metric_writers.MetricWriter] = [
    ConsoleWriter(steps, experiment, before),
    history,
    EventsWriter(workdir, first_step),
  ]
  if experiment.wandb_project:
    made.append(WandbWriter(workdir, experiment))
  return metric_writers.MultiWriter(made)
