"""The figures of one run, drawn after its evaluation: curves, confusion matrix, test clips.

In: an evaluation and the clips behind it. Out: PNG files in `figures/` of the work directory.
"""

import logging
import pathlib
from typing import Protocol

from flax import nnx
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from hybrid_video import attribution
from hybrid_video.analysis import accuracy
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.pipeline import Batch
from hybrid_video.report import figures, reconstructions, results, writers
from hybrid_video.sampling.plans import Views
from hybrid_video.tasks import Evaluation, pixels

log = logging.getLogger("hybrid_video")

FOLDER = "figures"
CURVES, CONFUSION, CLIPS = "learning_curves.png", "confusion.png", "clips.png"
LOOKS = "where_the_model_looks.png"
_SHEET_CLIPS = 8
_LOOKS_CLIPS, _LOOKS_WRONG = 6, 2
_RECONSTRUCTED = 4


class ClipBatches(Protocol):
  """What makes the clips of views, such as `evaluate.Evaluator`."""

  def batches(self, views: Views) -> "object":
    """Batches with `clips`, every view once, in order."""
    ...


_ON_TEST = "Validated on the test list, not on videos of its own: optimistic"


def draw(
  workdir: pathlib.Path,
  records: Records,
  evaluator: ClipBatches,
  views: Views,
  tested: Evaluation,
  experiment: Experiment,
  step: int,
  parts: results.Parts,
  model: nnx.Module,
) -> None:
  """Draws the run's figures; every process has to call it, the first one writes.

  One that cannot be drawn is named in a warning: what it shows is in the results, which are written.

  Args:
    workdir: of the run.
    records: the index of the stored videos.
    evaluator: makes the clips that are shown.
    views: of the test list.
    tested: its evaluation.
    experiment: by what the best step is told.
    step: the one whose parameters were tested.
    parts: what of the report could not be made.
    model: with these parameters.
  """
  folder, names = workdir / FOLDER, records.class_names
  chosen = _spread_over_classes(records.labels[views.video_ids[views.rows]])
  few = views.take(chosen)
  predicted = [""] * len(few)
  if "probabilities" in tested.arrays:
    best = tested.arrays["probabilities"].argmax(-1)
    predicted = [names[best[row]] for row in few.rows]
  if jax.process_index() == 0:
    with parts.making(folder / CURVES):
      results.make_folder(folder)
      history = writers.read_history(workdir)
      figures.learning_curves(
        folder / CURVES,
        history,
        tested.numbers,
        1 / len(names),
        step=step,
        best=writers.best_step(history, experiment.validation.metric_of(experiment.task)),
        note=_ON_TEST if experiment.validation.is_on_test else "",
      )
    if "probabilities" in tested.arrays:
      with parts.making(folder / CONFUSION):
        counts = accuracy.confusion(tested.arrays["probabilities"], tested.arrays["labels"])
        figures.confusion_matrix(folder / CONFUSION, counts, names)
  with parts.making(folder / CLIPS):
    clips = _gathered(evaluator, few)
    if jax.process_index() == 0:
      titles = [names[records.labels[video_id]] for video_id in few.video_ids[few.rows]]
      figures.contact_sheet(folder / CLIPS, clips, titles, predicted)
  if "view_loss" in tested.arrays and jax.process_count() == 1:
    path = folder / reconstructions.FILE
    with parts.making(path):
      chosen = chosen[:_RECONSTRUCTED]
      clips = _gathered(evaluator, views.take(chosen))
      normalized = pixels.normalizer(experiment.mean, experiment.std)(jnp.asarray(clips))
      titles = [names[records.labels[video_id]] for video_id in few.video_ids[few.rows]]
      reconstructions.draw(path, model, clips, normalized, chosen, titles[: len(chosen)])
  # Of several processes none has all of the parameters.
  if "probabilities" in tested.arrays and jax.process_count() == 1:
    with parts.making(folder / LOOKS):
      best = tested.arrays["probabilities"].argmax(-1)
      _where_the_model_looks(folder / LOOKS, records, evaluator, views, best, experiment, model)
  log.info("Figures: %s", folder)


def _where_the_model_looks(
  path: pathlib.Path,
  records: Records,
  evaluator: ClipBatches,
  views: Views,
  predicted: np.ndarray,
  experiment: Experiment,
  model: nnx.Module,
) -> None:
  """Draws where the model looks in a few test clips, for what it predicts for their videos `[V]`."""
  true = records.labels[views.video_ids[views.rows]]
  of_clips = predicted[views.rows]
  wrong = _some(true, true != of_clips)[:_LOOKS_WRONG]
  right = _some(true, true == of_clips)[: _LOOKS_CLIPS - len(wrong)]
  chosen = right + wrong
  clips = _gathered(evaluator, views.take(chosen))
  normalize = pixels.normalizer(experiment.mean, experiment.std)
  drawn = attribution.maps(model, normalize(jnp.asarray(clips)), of_clips[chosen])[0]
  names = records.class_names
  titles = [
    f"{names[true[i]]}, predicted {names[of_clips[i]]}"
    if true[i] != of_clips[i]
    else f"{names[true[i]]}, recognized"
    for i in chosen
  ]
  attribution.sheet(path, drawn, clips, titles, [bool(true[i] != of_clips[i]) for i in chosen])


def _gathered(evaluator: ClipBatches, views: Views) -> np.ndarray:
  """The clips of views, uint8 `[N, T, H, W, 3]`; each process has its share of a batch's rows."""
  batches: list[Batch] = list(evaluator.batches(views))  # type: ignore[call-overload]
  shares = [multihost_utils.process_allgather(batch["clips"], tiled=True) for batch in batches]
  return np.concatenate(shares)[: len(views)]


def _spread_over_classes(labels: np.ndarray) -> list[int]:
  """One clip each of classes spread over the list, drawn so that films differ too."""
  classes = np.unique(labels)
  shown = classes[np.linspace(0, len(classes) - 1, min(_SHEET_CLIPS, len(classes))).astype(int)]
  rng = np.random.default_rng(0)
  return [int(rng.choice(np.flatnonzero(labels == label))) for label in shown]


def _some(labels: np.ndarray, among: np.ndarray) -> list[int]:
  """A few of the clips where `among` is true, of classes spread over these."""
  indices = np.flatnonzero(among)
  return [int(indices[i]) for i in _spread_over_classes(labels[indices])] if len(indices) else []
