"""The figures of one run, drawn after its evaluation: curves, confusion matrix, test clips.

In: an evaluation and the clips behind it. Out: PNG files in `figures/` of the work directory.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import logging
import pathlib
from typing import Any, Protocol

from flax import nnx
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from hybrid_video import attribution, probing
from hybrid_video.analysis import accuracy
from hybrid_video.datasets import splits
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.pipeline import Batch
from hybrid_video.report import figures, neighbours, reconstructions, results, writers
from hybrid_video.sampling.plans import Views
from hybrid_video.tasks import Evaluation, pixels
from hybrid_video.validation import train_sample

log = logging.getLogger("hybrid_video")

FOLDER = "figures"
CURVES, CONFUSION, CLIPS = "learning_curves.png", "confusion.png", "clips.png"
LOOKS = "where_the_model_looks.png"
_SHEET_CLIPS = 8
_LOOKS_CLIPS, _LOOKS_WRONG = 6, 2
_RECONSTRUCTED = 4


class Clips(Protocol):
  """What makes the clips of views and the features of videos, such as `evaluate.Evaluator`."""

  def batches(self, views: Views) -> Iterator[Batch]:
    """Batches with `clips`, every view once, in order."""
    ...

  def model(self, variables: Mapping[str, Any]) -> nnx.Module:
    """The model with these parameters, in evaluation mode."""
    ...

  def features(self, variables: Mapping[str, Any], videos: np.ndarray) -> np.ndarray:
    """What videos `[V]` are to a pretraining model, `[V, D]`."""
    ...


_ON_TEST = "Validated on the test list, not on videos of its own: optimistic"


@dataclasses.dataclass(frozen=True)
class RunFigures:
  """The figures of one run.

  Attributes:
    workdir: of the run.
    records: the index of the stored videos.
    evaluator: makes the clips that are shown.
    views: of the test list.
    tested: its evaluation.
    experiment: by what the best step is told.
    step: the one whose parameters were tested.
    variables: these parameters.
  """

  workdir: pathlib.Path
  records: Records
  evaluator: Clips
  views: Views
  tested: Evaluation
  experiment: Experiment
  step: int
  variables: Mapping[str, Any]

  def draw(self, parts: results.Parts) -> None:
    """Draws them; every process has to call it, the first one writes.

    One that cannot be drawn is named in a warning: what it shows is in the results, which are written.

    Args:
      parts: what of the report could not be made.
    """
    folder, first = self.workdir / FOLDER, jax.process_index() == 0
    # Of several processes none has all of the parameters.
    alone = jax.process_count() == 1
    drawings = (
      (CURVES, self._curves, first),
      (CONFUSION, self._confusion, first and self._is_classifier),
      # Each process makes its share of the clips.
      (CLIPS, self._clips, True),
      (LOOKS, self._looks, alone and self._is_classifier),
      (reconstructions.FILE, self._reconstructions, alone and not self._is_classifier),
      (neighbours.FILE, self._neighbours, alone and not self._is_classifier),
    )
    for name, drawing, wanted in drawings:
      if wanted:
        with parts.making(folder / name):
          if first:
            results.make_folder(folder)
          drawing(folder / name)
    log.info("Figures: %s", folder)

  @property
  def _is_classifier(self) -> bool:
    return "probabilities" in self.tested.arrays

  @functools.cached_property
  def _labels(self) -> np.ndarray:
    """Of each view."""
    return self.records.labels[self.views.video_ids[self.views.rows]]

  @functools.cached_property
  def _predicted(self) -> np.ndarray:
    """Of each video."""
    return self.tested.arrays["probabilities"].argmax(-1)

  def _normalized(self, clips: np.ndarray) -> jax.Array:
    return pixels.normalizer(self.experiment.mean, self.experiment.std)(jnp.asarray(clips))

  def _curves(self, path: pathlib.Path) -> None:
    history = writers.read_history(self.workdir)
    validation = self.experiment.validation
    figures.learning_curves(
      path,
      history,
      self.tested.numbers,
      1 / len(self.records.class_names),
      step=self.step,
      best=writers.best_step(history, validation.metric_of(self.experiment.task)),
      note=_ON_TEST if validation.is_on_test else "",
    )

  def _confusion(self, path: pathlib.Path) -> None:
    arrays = self.tested.arrays
    counts = accuracy.confusion(arrays["probabilities"], arrays["labels"])
    figures.confusion_matrix(path, counts, self.records.class_names)

  def _clips(self, path: pathlib.Path) -> None:
    chosen = _spread_over_classes(self._labels)
    clips = _gathered(self.evaluator, self.views.take(chosen))
    if jax.process_index() != 0:
      return
    names = self.records.class_names
    predicted = [""] * len(chosen)
    if self._is_classifier:
      predicted = [names[self._predicted[row]] for row in self.views.rows[chosen]]
    figures.contact_sheet(path, clips, [names[label] for label in self._labels[chosen]], predicted)

  def _looks(self, path: pathlib.Path) -> None:
    """Where the model looks in a few test clips, for what it predicts for their videos."""
    true, of_clips = self._labels, self._predicted[self.views.rows]
    wrong = _some(true, true != of_clips)[:_LOOKS_WRONG]
    right = _some(true, true == of_clips)[: _LOOKS_CLIPS - len(wrong)]
    chosen = right + wrong
    clips = _gathered(self.evaluator, self.views.take(chosen))
    model = self.evaluator.model(self.variables)
    drawn = attribution.maps(model, self._normalized(clips), of_clips[chosen])[0]
    names = self.records.class_names
    titles = [
      f"{names[true[i]]}, predicted {names[of_clips[i]]}"
      if true[i] != of_clips[i]
      else f"{names[true[i]]}, recognized"
      for i in chosen
    ]
    attribution.sheet(path, drawn, clips, titles, [bool(true[i] != of_clips[i]) for i in chosen])

  def _reconstructions(self, path: pathlib.Path) -> None:
    chosen = _spread_over_classes(self._labels)[:_RECONSTRUCTED]
    clips = _gathered(self.evaluator, self.views.take(chosen))
    titles = [self.records.class_names[label] for label in self._labels[chosen]]
    model = self.evaluator.model(self.variables)
    reconstructions.draw(path, model, clips, self._normalized(clips), chosen, titles)

  def _neighbours(self, path: pathlib.Path) -> None:
    experiment = self.experiment
    shares = (experiment.validation_share, experiment.training_share)
    trained = splits.select(self.records, experiment.split, "train", *shares)
    trained = train_sample(trained, probing.MOST_VIDEOS, experiment.seed)
    rows = self.views.rows[_spread_over_classes(self._labels)]
    videos = self.views.video_ids[rows]
    features, of_trained = (
      self.evaluator.features(self.variables, ids) for ids in (videos, trained)
    )
    neighbours.draw(path, self.records, videos.tolist(), features, trained, of_trained)


def _gathered(evaluator: Clips, views: Views) -> np.ndarray:
  """The clips of views, uint8 `[N, T, H, W, 3]`; each process has its share of a batch's rows."""
  batches: list[Batch] = list(evaluator.batches(views))
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
