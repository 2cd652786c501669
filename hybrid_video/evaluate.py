"""The mode `evaluate`: a checkpoint and a data set to accuracies, predictions and figures.

In: an experiment whose checkpoint is in a work directory, and its stored videos. Out: `results.json`,
`predictions.npz` and `figures/` in the work directory.
"""

from collections.abc import Iterator
import dataclasses
import logging
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from hybrid_video import class_identity, compilation, loading, progress, scoring, sharding
from hybrid_video.checkpoint_description import CheckpointError, Description, check_same_model
from hybrid_video.datasets import preparation, splits
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.pipeline import Batch, Pipeline
from hybrid_video.report import results, run_figures
from hybrid_video.sampling import plans
from hybrid_video.state import State
from hybrid_video.tasks import Evaluation, Task, registry

log = logging.getLogger("hybrid_video")

# The same random order of frames at every evaluation.
_SHUFFLE_SEED = 1
_PROGRESS_LINES = 4


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

  @property
  def protocol(self) -> str:
    """In words, how the numbers come about."""
    heights, widths = self._records.height.tolist(), self._records.width.tolist()
    sizes = {f"{height}x{width}" for height, width in zip(heights, widths, strict=True)}
    stored = next(iter(sizes)) if len(sizes) == 1 else f"{len(sizes)} sizes"
    return (
      f"{self._experiment.evaluation.describe_views()} of stored frames of {stored}; "
      f"{self._task.protocol}; the parameters after the last step, nothing selected on the test list"
    )

  def views(self, which: str) -> plans.Views:
    """Every clip of the "train", "validation" or "test" list."""
    experiment = self._experiment
    video_ids = splits.select(self._records, experiment.split, which, experiment.validation_share)
    return plans.evaluation_views(self._records, video_ids, experiment.evaluation)

  def batches(self, views: plans.Views) -> Iterator[Batch]:
    """The views' clips in batches, with `clips`, `labels` and `mask`."""
    experiment = self._experiment
    return self._pipeline.evaluation_batches(
      self._records, views, experiment.evaluation, batch_size=experiment.eval_batch_size
    )

  def run(self, state: State, which: str, *, shuffled: bool = False) -> Evaluation:
    """Evaluates on a whole list ("train", "validation", "test").

    Args:
      state: `params` and `batch_stats`.
      which: the list.
      shuffled: whether each clip's frames come in random order.
    """
    views = self.views(which)
    if shuffled:
      views = views.with_shuffled_frames(_SHUFFLE_SEED)
    order = ", frames in random order" if shuffled else ""
    log.info("Evaluating the %s list: %d clips%s", which, len(views), order)
    outputs = self._scorer.outputs(
      state["params"], state["batch_stats"], self._numbered(self.batches(views))
    )
    total = views.num_batches(self._experiment.eval_batch_size)
    gathered = scoring.gather(_with_progress(outputs, total), len(views))
    labels = self._records.labels[views.video_ids]
    return self._task.summarize(gathered, views.rows, labels, self._experiment.eval_batch_size)

  def _numbered(self, batches: Iterator[Batch]) -> Iterator[Batch]:
    first = 0
    for batch in batches:
      rows = len(batch["clips"])
      offset = first + jax.process_index() * rows
      yield {
        "clips": batch["clips"],
        "clip_indices": np.arange(offset, offset + rows, dtype=np.int32),
      }
      first += rows * jax.process_count()


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
  state: State,
  records: Records,
  experiment: Experiment,
  workdir: pathlib.Path,
  compiled: compilation.Compilations,
  began: float,
) -> dict[str, Any]:
  """Evaluates every list that the experiment asks for; writes predictions, results, then figures.

  Args:
    evaluator: of the experiment's lists.
    state: `params`, `batch_stats` and `step`.
    records: the index of the stored videos.
    experiment: every setting.
    workdir: where everything goes.
    compiled: programs compiled in the run.
    began: when the run began, of `time.monotonic`.

  Returns:
    What `results.json` holds.
  """
  tested = evaluator.run(state, "test")
  views = evaluator.views("test")
  if jax.process_index() == 0:
    names = records.names[views.video_ids]
    results.write_predictions(workdir, tested, names, records.class_names)
  outcome: dict[str, Any] = {
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
    "protocol": evaluator.protocol,
    "step": int(state["step"]),
    "test": dict(tested.numbers),
    "params_digest": results.params_digest(state["params"]),
  }
  if splits.has_validation(records, experiment.split, experiment.validation_share):
    outcome["validation"] = dict(evaluator.run(state, "validation").numbers)
  if experiment.evaluate_shuffled:
    shuffled = evaluator.run(state, "test", shuffled=True).numbers
    metric = "video_top1" if "video_top1" in shuffled else "loss"
    outcome["test"][f"shuffled_{metric}"] = shuffled[metric]
  if experiment.evaluate_train:
    outcome["train"] = dict(evaluator.run(state, "train").numbers)
  results.finish(workdir, outcome, state["params"], compiled, began)
  run_figures.draw(workdir, records, evaluator, views, tested)
  return outcome


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
  with compilation.counted() as compiled:
    saved = loading.read(workdir if checkpoint is None else checkpoint)
    experiment = saved.description.experiment if experiment is None else experiment
    mesh = sharding.make_mesh()
    sharding.check_batch_size(experiment.eval_batch_size, mesh, "--config.eval_batch_size")
    results.make_folder(workdir)
    records = preparation.load_records(experiment, workdir)
    records = with_class_ids_of(saved.description, records)
    check_same_model(saved.description, Description(experiment, records.class_names), saved.source)
    task = registry.create(experiment, len(records.class_names), mesh)
    if saved.description.experiment.task != task.name:
      raise CheckpointError(f"{saved.source} is a model of another task than {task.name}.")
    place = sharding.replicated(mesh)
    params, batch_stats = jax.tree.map(
      lambda leaf: sharding.place(leaf, place), (saved.params, saved.batch_stats)
    )
    state = {"params": params, "batch_stats": batch_stats, "step": saved.step}
    log.info("Evaluating %s: %s", saved.source, saved.words)
    evaluator = Evaluator(records, task, experiment, pipeline, mesh)
    return report(evaluator, state, records, experiment, workdir, compiled, began)
