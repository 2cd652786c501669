"""The mode `evaluate`: a checkpoint and a data set to accuracies, predictions and figures.

In: an experiment whose checkpoint is in a work directory, and its stored videos. Out: `results.json`,
`predictions.npz` and `figures/` in the work directory.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import logging
import math
import os
import pathlib
import time
from typing import Any

from flax import nnx
import jax
import numpy as np

from hybrid_video import (
  class_identity,
  compilation,
  loading,
  models,
  origins,
  probing,
  progress,
  scoring,
  sharding,
)
from hybrid_video.analysis.predictions import Predictions
from hybrid_video.checkpoint_description import Description, check_same_model, check_same_task
from hybrid_video.checkpoints import SavedModel
from hybrid_video.datasets import preparation, splits
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.models import costs
from hybrid_video.pipeline import Batch, Pipeline
from hybrid_video.report import device_memory, log_file, results
from hybrid_video.sampling import plans
from hybrid_video.state import State
from hybrid_video.tasks import Evaluation, Task, Tree, registry

log = logging.getLogger("hybrid_video")

# The same random order of frames at every evaluation.
_SHUFFLE_SEED = 1
_PROGRESS_LINES = 4


@dataclasses.dataclass(frozen=True)
class Parameters:
  """The parameters that a run is judged by.

  Attributes:
    variables: `params` and `batch_stats`; where there are moving averages, they are these.
    step: after which step.
    which: "last" or "best".
    averaged: whether `variables` are moving averages.
    raw: those that were trained, where `variables` are averages of them and these are at hand.
  """

  variables: Tree
  step: int
  which: str = "last"
  averaged: bool = False
  raw: Tree | None = None

  @classmethod
  def of(cls, state: State, which: str = "last") -> "Parameters":
    """Those of a training's state."""
    raw = {name: state[name] for name in ("params", "batch_stats")}
    if not state.get("ema"):
      return cls(raw, int(state["step"]), which)
    return cls(state["ema"], int(state["step"]), which, True, raw)

  def described(self) -> dict[str, Any]:
    """For `results.json`: which, of which step, and whether they are averages."""
    return {"which": self.which, "step": self.step, "averaged": self.averaged}

  @classmethod
  def read(cls, checkpoint: os.PathLike | str, mesh: jax.sharding.Mesh) -> "Parameters":
    """The best ones of a run, from their checkpoint, split over the devices as in training."""
    return cls.of_saved(loading.read(checkpoint), mesh, "best")

  @classmethod
  def of_saved(cls, saved: SavedModel, mesh: jax.sharding.Mesh, which: str) -> "Parameters":
    """Those of a checkpoint or an exported file, split over the devices as in training."""

    def place(leaf: np.ndarray) -> jax.Array:
      return sharding.place(leaf, sharding.state_sharding(leaf.shape, mesh))

    def placed(model: SavedModel) -> Tree:
      variables = {"params": model.params, "batch_stats": model.batch_stats}
      return jax.tree.map(place, variables)

    raw = saved.raw() if saved.averaged else None
    return cls(placed(saved), saved.step, which, saved.averaged, placed(raw) if raw else None)


class Evaluator:
  """Evaluates parameters on the lists of a split, all with one compiled program."""

  def __init__(
    self,
    records: Records,
    task: Task,
    experiment: Experiment,
    pipeline: Pipeline,
    mesh: jax.sharding.Mesh,
  ):
    """Compiles nothing yet; the first batch does.

    Args:
      records: the index of the stored videos.
      task: what the model is for.
      experiment: split, windows, crops and batch size.
      pipeline: makes batches of clips.
      mesh: the devices.
    """
    self._records = records
    self._task = task
    self._experiment = experiment
    self._pipeline = pipeline
    self._scorer = scoring.Scorer(task, mesh)
    self._features = scoring.Scorer(task, mesh, features=True) if task.features else None
    # Of the last `run`, without its first batch, which may compile; None where there was no other.
    self.clips_per_second: float | None = None

  def protocol(self, chosen: Parameters) -> str:
    """In words, how the numbers of these parameters come about."""
    of = self._words(chosen)
    share = self._experiment.training_share
    part = f"; trained on {100 * share:g} % of the training groups" if share < 1 else ""
    return f"{self._views_in_words()}; {self._task.protocol}; {of}, {self._selection()}{part}"

  def compared(self, chosen: Parameters) -> dict[str, Any]:
    """What has to be the same where numbers are compared, for `predictions.npz`."""
    experiment = self._experiment
    which = "the parameters after the last step"
    if chosen.which != "last":
      metric = experiment.validation.metric_of(self._task.name)
      which = f"the best parameters by {metric} of the {experiment.validation.on} list"
    averaged = "moving averages of " if chosen.averaged else ""
    return {
      "dataset": experiment.dataset,
      "split": experiment.split,
      "list": "test",
      "views": self._views_in_words(),
      "aggregation": experiment.evaluation.aggregation,
      "selection": f"{averaged}{which}, {self._selection()}",
      "seed": experiment.seed,
      "words": self.protocol(chosen),
    }

  def _views_in_words(self) -> str:
    heights, widths = self._records.height.tolist(), self._records.width.tolist()
    sizes = {f"{height}x{width}" for height, width in zip(heights, widths, strict=True)}
    stored = next(iter(sizes)) if len(sizes) == 1 else f"{len(sizes)} sizes"
    return f"{self._experiment.evaluation.describe_views()} of stored frames of {stored}"

  def _selection(self) -> str:
    if self._experiment.selects_on_test:
      return "the best epoch was chosen on the test list: optimistic"
    return "nothing selected on the test list"

  def _words(self, chosen: Parameters) -> str:
    averaged = "moving averages of " if chosen.averaged else ""
    if chosen.which == "last":
      return f"{averaged}the parameters after the last step"
    metric = self._experiment.validation.metric_of(self._task.name)
    return (
      f"{averaged}the parameters of step {chosen.step}, the best by {metric} of the "
      f"{self._experiment.validation.on} list"
    )

  def model(self, variables: Mapping[str, Any]) -> nnx.Module:
    """The model with these parameters, in evaluation mode."""
    return self._task.merge(variables["params"], variables["batch_stats"])

  def views(self, which: str | np.ndarray) -> plans.Views:
    """Every clip of the "train", "validation" or "test" list, or of videos by their ids `[V]`."""
    experiment = self._experiment
    if isinstance(which, str):
      shares = (experiment.validation_share, experiment.training_share)
      which = splits.select(self._records, experiment.split, which, *shares)
    return plans.evaluation_views(self._records, which, experiment.evaluation)

  def batches(self, views: plans.Views) -> Iterator[Batch]:
    """The views' clips in batches, with `clips`, `labels` and `mask`."""
    experiment = self._experiment
    return self._pipeline.evaluation_batches(
      self._records, views, experiment.evaluation, batch_size=experiment.eval_batch_size
    )

  def run(self, variables: Mapping[str, Any], which: str, *, shuffled: bool = False) -> Evaluation:
    """Evaluates on a whole list ("train", "validation", "test").

    Args:
      variables: `params` and `batch_stats`.
      which: the list.
      shuffled: whether each clip's frames come in random order.
    """
    views = self.views(which)
    if shuffled:
      views = views.with_shuffled_frames(_SHUFFLE_SEED)
    order = ", frames in random order" if shuffled else ""
    log.info("Evaluating the %s list: %d clips%s", which, len(views), order)
    total = views.num_batches(self._experiment.eval_batch_size)
    outputs = _with_progress(self._outputs(variables, views), total)
    return self._summarized(views, self._timed(outputs, len(views)))

  def _timed(self, outputs: Iterator[scoring.Outputs], clips: int) -> Iterator[scoring.Outputs]:
    batch_size = self._experiment.eval_batch_size
    yield next(outputs)
    began = time.monotonic()
    yield from outputs
    self.clips_per_second = None
    if clips > batch_size:
      self.clips_per_second = (clips - batch_size) / (time.monotonic() - began)

  def numbers(
    self,
    variables: Mapping[str, Any],
    which: str | np.ndarray,
    check: Callable[[], None] | None = None,
  ) -> dict[str, float | int]:
    """The metrics of a list, without a word on the console.

    Args:
      variables: `params` and `batch_stats`.
      which: the list, or videos by their ids `[V]`.
      check: called after each batch; what it raises ends the evaluation.
    """
    views = self.views(which)
    return self._summarized(views, _checked(self._outputs(variables, views), check)).numbers

  def features(
    self,
    variables: Mapping[str, Any],
    videos: np.ndarray,
    check: Callable[[], None] | None = None,
  ) -> np.ndarray:
    """What videos are to the model: the mean over each one's views, float32 `[V, D]`.

    Args:
      variables: `params` and `batch_stats`, of a task that has features.
      videos: ids, `[V]`.
      check: as of `numbers`.
    """
    assert self._features is not None
    views = self.views(videos)
    batches = self._numbered(views)
    outputs = self._features.outputs(variables["params"], variables["batch_stats"], batches)
    found = scoring.gather(_checked(outputs, check), len(views))["features"]
    sums = np.zeros((len(videos), found.shape[1]), np.float32)
    np.add.at(sums, views.rows, found)
    return sums / np.bincount(views.rows, minlength=len(videos))[:, None]

  def _outputs(self, variables: Mapping[str, Any], views: plans.Views) -> Iterator[scoring.Outputs]:
    return self._scorer.outputs(
      variables["params"], variables["batch_stats"], self._numbered(views)
    )

  def _summarized(self, views: plans.Views, outputs: Iterator[scoring.Outputs]) -> Evaluation:
    gathered = scoring.gather(outputs, len(views))
    labels = self._records.labels[views.video_ids]
    return self._task.summarize(gathered, views.rows, labels, self._experiment.eval_batch_size)

  def _numbered(self, views: plans.Views) -> Iterator[Batch]:
    """The views' clips with their places, and whether they are the first of their videos."""
    begins, first = np.diff(views.rows, prepend=-1) != 0, 0
    for batch in self.batches(views):
      rows = len(batch["clips"])
      offset = first + jax.process_index() * rows
      of_batch = begins[offset : offset + rows]
      yield {
        "clips": batch["clips"],
        "clip_indices": np.arange(offset, offset + rows, dtype=np.int32),
        "begins": np.pad(of_batch, (0, rows - len(of_batch)), constant_values=True),
      }
      first += rows * jax.process_count()


def _checked(
  outputs: Iterator[scoring.Outputs], check: Callable[[], None] | None
) -> Iterator[scoring.Outputs]:
  for output in outputs:
    if check:
      check()
    yield output


def _with_progress(outputs: Iterator[scoring.Outputs], total: int) -> Iterator[scoring.Outputs]:
  started = time.monotonic()
  for done, output in enumerate(outputs, 1):
    if done < total and done % max(1, total // _PROGRESS_LINES) == 0:
      left = (time.monotonic() - started) / done * (total - done)
      log.info("  batch %d of %d, %s left", done, total, progress.duration(left))
    yield output


def with_class_ids_of(description: Description, records: Records) -> Records:
  """A data set with the class ids of a model, where it has the same classes under other ids or spellings.

  Args:
    description: of the model.
    records: the stored videos; given back as they are where their classes are others.
  """
  theirs, ours = description.class_names, records.class_names
  ids = class_identity.ids_in(theirs, ours)
  if theirs == ours or len(theirs) != len(ours) or None in ids:
    return records
  if ids != tuple(range(len(ids))):
    log.info(
      "Labels reordered: the data set has the checkpoint's %d classes in another order", len(ids)
    )
  labels = np.array(ids, records.labels.dtype)[records.labels]
  return dataclasses.replace(records, labels=labels, class_names=theirs)


def report(
  evaluator: Evaluator,
  chosen: Parameters,
  records: Records,
  experiment: Experiment,
  workdir: pathlib.Path,
  compiled: compilation.Compilations,
  began: float,
  origin: origins.Origin | None = None,
) -> dict[str, Any]:
  """Evaluates every list that the experiment asks for; writes predictions, results, then figures.

  Each file is written as soon as what it holds is known, `results.json` once more with each list.
  One that cannot be made costs the others nothing.

  Args:
    evaluator: of the experiment's lists.
    chosen: the parameters that are tested.
    records: the index of the stored videos.
    experiment: every setting.
    workdir: where everything goes.
    compiled: programs compiled in the run.
    began: when the run began, of `time.monotonic`.
    origin: what the training started from, where that is known.

  Returns:
    What `results.json` holds.

  Raises:
    ReportError: predictions or results could not be written; everything else was.
  """
  # What analyses and draws imports scikit-learn and Matplotlib, which a training does not wait for.
  from hybrid_video.analysis import summary
  from hybrid_video.report import run_figures

  parts, writes = results.Parts(), jax.process_index() == 0
  predictions, results_file = workdir / results.PREDICTIONS, workdir / results.RESULTS
  views = evaluator.views("test")
  tested = evaluator.run(chosen.variables, "test")
  outcome = _described(evaluator, chosen, records, experiment)
  outcome |= origins.for_results(origin, experiment, records.class_names)
  if writes:
    with parts.making(predictions, needed=True):
      about = results.about(records, views.video_ids)
      protocol = evaluator.compared(chosen) | {"data": about.pop("data")}
      results.write_predictions(workdir, tested, about, records.class_names, protocol)
  for name, numbers in _numbers(evaluator, chosen, tested, records, experiment):
    outcome[name] = numbers
    outcome["compilation"] = compiled.as_numbers()
    outcome["seconds"] = round(time.monotonic() - began, 1)
    if writes:
      with parts.making(results_file, needed=True):
        results.write(workdir, outcome)
  if writes:
    if "probabilities" in tested.arrays and not parts.lacks(predictions):
      with parts.making(f"{results_file} (analysis)"):
        outcome["analysis"] = summary.summarize(Predictions.read(predictions))
        results.write(workdir, outcome)
    log.info("%s", results.summary(outcome))
    log.info("Compiled in all: %s", compiled)
    for path in (path for path in (results_file, predictions) if not parts.lacks(path)):
      log.info("%s: %s", path.stem.capitalize(), path)
  tested = dataclasses.replace(tested, numbers=outcome["test"])
  drawn = run_figures.RunFigures(
    workdir, records, evaluator, views, tested, experiment, chosen.step, chosen.variables
  )
  drawn.draw(parts)
  parts.finish()
  return outcome


def _described(
  evaluator: Evaluator, chosen: Parameters, records: Records, experiment: Experiment
) -> dict[str, Any]:
  """What was evaluated, and how, for `results.json`."""
  params = chosen.variables["params"]
  return {
    "config": experiment.to_json(),
    "dataset": experiment.dataset,
    "split": experiment.split,
    "classes": list(records.class_names),
    "stored_videos": len(records),
    "missing": {
      "count": len(records.missing) + len(records.broken),
      "allowed": experiment.allow_missing,
    },
    "broken": records.broken,
    "protocol": evaluator.protocol(chosen),
    "selected_on_test": experiment.selects_on_test,
    "step": chosen.step,
    "parameters_tested": chosen.described(),
    "parameters": models.parameter_counts(params),
    "multiply_accumulates": _multiply_accumulates(experiment, len(records.class_names)),
    "evaluation_clips_per_second": evaluator.clips_per_second,
    "peak_memory": device_memory.peak(),
    "params_digest": results.params_digest(params),
  }


def _multiply_accumulates(experiment: Experiment, num_classes: int) -> int | None:
  """Of one evaluation clip's forward pass; None of a model that is no classifier."""
  if experiment.task != models.CLASSIFICATION:
    return None
  crop = experiment.evaluation.crop
  clip = (experiment.evaluation.frames, crop, crop)
  return costs.of_model(experiment.model.name, clip, num_classes, **experiment.model_options)


def _numbers(
  evaluator: Evaluator,
  chosen: Parameters,
  tested: Evaluation,
  records: Records,
  experiment: Experiment,
) -> Iterator[tuple[str, dict[str, float | int]]]:
  """The numbers of each list under their names in `results.json`, as they become known."""
  of_test = dict(tested.numbers)
  yield "test", of_test
  if chosen.raw is not None:
    yield "test_raw", evaluator.run(chosen.raw, "test").numbers
  if splits.has_validation(records, experiment.split, experiment.validation_share):
    yield "validation", evaluator.run(chosen.variables, "validation").numbers
  if experiment.validation.probe_every_epochs:
    shares = (experiment.validation_share, experiment.training_share)
    trained = splits.select(records, experiment.split, "train", *shares)
    if probe := probing.Probe.of(evaluator.features, records, experiment, trained):
      of_test["probe_top1"] = probe.accuracy(chosen.variables, evaluator.views("test").video_ids)
      yield "test", of_test
  if experiment.evaluate_shuffled:
    shuffled = evaluator.run(chosen.variables, "test", shuffled=True).numbers
    metric = "video_top1" if "video_top1" in shuffled else "loss"
    yield "test", of_test | {f"shuffled_{metric}": shuffled[metric]}
  if experiment.evaluate_train:
    yield "train", evaluator.run(chosen.variables, "train").numbers


def run(
  experiment: Experiment | None,
  workdir: pathlib.Path,
  pipeline: Pipeline,
  *,
  checkpoint: os.PathLike | str | None = None,
) -> dict[str, Any]:
  """Evaluates a checkpoint on its experiment's data set, or on another one of the same classes.

  Args:
    experiment: data set, views and batch size; its model has to be the checkpoint's. None is the
      experiment that the checkpoint holds.
    workdir: where the results go.
    pipeline: makes batches of clips.
    checkpoint: a work directory, one of its checkpoints or an exported file; the default is
      `workdir`.

  Returns:
    What `results.json` holds.

  Raises:
    UserError: there is no such checkpoint, or the data cannot be used.
  """
  began = time.monotonic()
  with log_file.attached(workdir), compilation.counted() as compiled:
    saved = loading.read(workdir if checkpoint is None else checkpoint)
    experiment = saved.description.experiment if experiment is None else experiment
    check_same_task(saved.description, experiment, saved.source)
    # Split as in training, as far as these devices, which may be others, divide.
    mesh = sharding.make_mesh(fsdp=math.gcd(experiment.fsdp, jax.device_count()))
    sharding.check_batch_size(experiment.eval_batch_size, mesh, "--config.eval_batch_size")
    results.make_folder(workdir)
    records = preparation.load_records(experiment, workdir)
    records = with_class_ids_of(saved.description, records)
    check_same_model(saved.description, Description(experiment, records.class_names), saved.source)
    task = registry.create(experiment, len(records.class_names), mesh)
    chosen = Parameters.of_saved(saved, mesh, "last")
    log.info("Evaluating %s: %s", saved.source, saved.words)
    evaluator = Evaluator(records, task, experiment, pipeline, mesh)
    origin = origins.recorded(saved.source)
    return report(evaluator, chosen, records, experiment, workdir, compiled, began, origin)
