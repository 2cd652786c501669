"""The figures of one run, drawn after its evaluation: curves, confusion matrix, test clips.

In: an evaluation and the clips behind it. Out: PNG files in `figures/` of the work directory.
"""

from collections.abc import Iterator
import contextlib
import logging
import pathlib
from typing import Protocol

import jax
from jax.experimental import multihost_utils
import numpy as np

from hybrid_video import errors
from hybrid_video.datasets.records import Records
from hybrid_video.pipeline import Batch
from hybrid_video.report import figures, results, writers
from hybrid_video.sampling.plans import Views
from hybrid_video.tasks import Evaluation, classification

log = logging.getLogger("hybrid_video")

FOLDER = "figures"
_SHEET_CLIPS = 8


class ClipBatches(Protocol):
  """What makes the clips of views, such as `evaluate.Evaluator`."""

  def batches(self, views: Views) -> "object":
    """Batches with `clips`, every view once, in order."""
    ...


def draw(
  workdir: pathlib.Path,
  records: Records,
  evaluator: ClipBatches,
  views: Views,
  tested: Evaluation,
) -> None:
  """Draws the run's figures; every process has to call it, the first one writes.

  One that cannot be drawn is named in a warning: what it shows is in the results, which are written.

  Args:
    workdir: of the run.
    records: the index of the stored videos.
    evaluator: makes the clips that are shown.
    views: of the test list.
    tested: its evaluation.
  """
  labels = records.labels[views.video_ids[views.rows]]
  few = views.take(_spread_over_classes(labels))
  # Each process has its share of a batch's rows.
  batches: list[Batch] = list(evaluator.batches(few))  # type: ignore[call-overload]
  clips = np.concatenate(
    [multihost_utils.process_allgather(batch["clips"], tiled=True) for batch in batches]
  )[: len(few)]
  if jax.process_index():
    return
  folder = workdir / FOLDER
  results.make_folder(folder)
  names = records.class_names
  with _drawn(folder / "learning_curves.png") as path:
    history = writers.read_history(workdir)
    figures.learning_curves(path, history, tested.numbers, 1 / len(names))
  titles = [names[records.labels[video_id]] for video_id in few.video_ids[few.rows]]
  predicted = [""] * len(few)
  if "probabilities" in tested.arrays:
    with _drawn(folder / "confusion.png") as path:
      figures.confusion_matrix(path, classification.confusion(tested), names)
    best = tested.arrays["probabilities"].argmax(-1)
    predicted = [names[best[row]] for row in few.rows]
  with _drawn(folder / "clips.png") as path:
    figures.contact_sheet(path, clips, titles, predicted)
  log.info("Figures: %s", folder)


@contextlib.contextmanager
def _drawn(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a figure's path; whatever stops its drawing becomes a warning."""
  try:
    yield path
  except Exception as error:
    reason = (
      str(error) if isinstance(error, errors.UserError) else f"{type(error).__name__}: {error}"
    )
    log.warning("The figure %s was not drawn, the results stand: %s", path, reason)


def _spread_over_classes(labels: np.ndarray) -> list[int]:
  """One clip each of classes spread over the list, drawn so that films differ too."""
  classes = np.unique(labels)
  shown = classes[np.linspace(0, len(classes) - 1, min(_SHEET_CLIPS, len(classes))).astype(int)]
  rng = np.random.default_rng(0)
  return [int(rng.choice(np.flatnonzero(labels == label))) for label in shown]
