"""The mode `train`: a run from start to end, read from top to bottom.

In: an experiment and a work directory. Out: checkpoints, TensorBoard events, `history.jsonl`, and
what `evaluate` leaves behind. A run that is already in the work directory goes on from its last
checkpoint.
"""

import dataclasses
import logging
import pathlib
import time
from typing import Any

from clu import parameter_overview
import jax
import numpy as np
import optax

from hybrid_video import (
  checkpoint_files,
  compilation,
  errors,
  evaluate,
  files,
  initialization,
  loop,
  models,
  optimizers,
  origins,
  paths,
  phases,
  resuming,
  sharding,
  stopping,
)
from hybrid_video import state as training_state
from hybrid_video.checkpoint_description import Description
from hybrid_video.checkpoints import Checkpoints
from hybrid_video.datasets import preparation, splits
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.loop import Length, Run
from hybrid_video.pipeline import Pipeline
from hybrid_video.report import data_summary, log_file, results
from hybrid_video.state import State
from hybrid_video.tasks import registry
from hybrid_video.validation import Tracker, ValidationSettings

log = logging.getLogger("hybrid_video")


class ValidationError(errors.UserError):
  """A choice that needs a validation list where there is none."""


def run(
  experiment: Experiment,
  workdir: pathlib.Path,
  pipeline: Pipeline,
  stop: stopping.StopRequest | None = None,
) -> dict[str, Any]:
  """Trains, or goes on training, and evaluates.

  Args:
    experiment: every setting.
    workdir: where everything goes.
    pipeline: makes batches of clips.
    stop: whether the run is asked to stop; None is never.

  Returns:
    What `results.json` holds.

  Raises:
    UserError: a value, file or folder that cannot be used, or an update that is not finite.
    Stopped: it was asked to stop.
  """
  began = time.monotonic()
  workdir = paths.resolve(workdir, "The work directory")
  with log_file.attached(workdir), compilation.counted() as compiled:
    mesh = sharding.make_mesh(fsdp=experiment.fsdp)
    sharding.check_batch_size(
      experiment.batch_size, mesh, experiment.path("batch_size"), experiment.micro_batches
    )
    sharding.check_batch_size(experiment.eval_batch_size, mesh, experiment.path("eval_batch_size"))
    results.make_folder(workdir)
    records = preparation.load_records(experiment, workdir)
    video_ids = _training_list(experiment, records)
    task = registry.create(experiment, len(records.class_names), mesh)
    evaluator = evaluate.Evaluator(records, task, experiment, pipeline, mesh)
    clips = len(video_ids) * experiment.clip.repeats
    length = Length(clips, experiment.batch_size, experiment.epochs)
    training = Run(
      experiment=experiment,
      workdir=workdir,
      pipeline=pipeline,
      records=records,
      video_ids=video_ids,
      length=length,
      task=task,
      mesh=mesh,
      evaluator=evaluator,
      compiled=compiled,
      stop=stop or stopping.StopRequest(),
    )
    description = Description(experiment, records.class_names)
    with Checkpoints(workdir, description, experiment.keep_checkpoints) as saved:
      chosen = _train(training, description, saved)
    origin = origins.recorded(workdir)
    return evaluate.report(evaluator, chosen, records, experiment, workdir, compiled, began, origin)


def _training_list(experiment: Experiment, records: Records) -> np.ndarray:
  """The videos to train on, after every check on the lists; says what there is."""
  split, share = experiment.split, experiment.validation_share
  video_ids = splits.select(records, split, "train", share, experiment.training_share)
  splits.select(records, split, "test")
  if splits.has_validation(records, split, share):
    splits.select(records, split, "validation", share)
  if not experiment.allow_missing and experiment.task != models.PRETRAINING:
    splits.check_training_classes(records, split)
  on_test = experiment.validation.is_on_test
  has_list = on_test or splits.has_validation(records, split, share)
  if experiment.test_parameters == "best" and not has_list:
    raise ValidationError(
      f"{experiment.path('test_parameters')} is 'best', and split {split} of {experiment.dataset} has no "
      f"validation list to tell it by: set {experiment.path('validation_share')}, such as 0.1."
    )
  if on_test:
    log.warning(
      "%s is 'test': what is chosen by it is chosen on the test list, and its numbers are optimistic",
      ValidationSettings.path("on"),
    )
  log.info(
    "%s",
    data_summary.text(data_summary.summarize(records, split, share, experiment.training_share)),
  )
  missing = [*records.missing, *records.broken]
  if missing:
    log.warning("%d listed videos are missing or broken, which the settings allow", len(missing))
  return video_ids


def _train(run: Run, description: Description, saved: Checkpoints) -> evaluate.Parameters:
  """The parameters to test, after the last step: restored if it is done, trained if not."""
  experiment = run.experiment
  optimizer = optimizers.make_optimizer(experiment.optimizer)
  abstract = training_state.abstract(
    run.task, optimizer, run.mesh, averaged=experiment.ema_decay > 0
  )
  data = resuming.data_digest(run.records, run.video_ids)
  restored = saved.restore(abstract)
  if restored is None:
    tracker = Tracker(experiment.validation.metric_of(experiment.task))
    progress = resuming.Progress(0, tracker, data, len(run.video_ids))
  else:
    state, progress = _resumed(run, restored, data, saved)
  run = run.with_offset(progress.offset)
  if not run.is_done(progress):
    step = 0 if restored is None else int(state["step"])
    of_run = _phases(run, optimizer, abstract, step)
  if restored is None:
    state = _fresh(run, description, optimizer)
  # Only now: what was not accepted leaves no trace.
  if jax.process_index() == 0:
    files.write_json(run.workdir / "config.json", experiment.to_json())
  schedule = optimizers.make_schedule(
    experiment.optimizer.for_batch(experiment.batch_size),
    steps=run.length.scheduled_steps,
    steps_per_epoch=run.length.steps_per_epoch,
  )
  if run.is_done(progress):
    log.info("The training is done, at step %d: evaluating only", progress.finished)
  else:
    _announce(run, state)
    _announce_head(of_run, int(state["step"]))
    state, progress = loop.train(run, state, progress, of_run, schedule, saved)
  return _chosen(run, state, progress, saved)


def _phases(
  run: Run, optimizer: optax.GradientTransformation, abstract: State, step: int
) -> phases.Phases:
  """The steps of the training, the one after `step` others being compiled while all else is made ready."""
  experiment, mesh = run.experiment, run.mesh
  classes = len(run.records.class_names)
  made = phases.make(experiment, run.length, run.task, optimizer, mesh, abstract, classes)
  # Several processes compile in one order.
  if jax.process_count() == 1:
    made.start(step)
  return made


def _fresh(run: Run, description: Description, optimizer: optax.GradientTransformation) -> State:
  """The state before the first step."""
  variables = initialization.variables(run.task, description)
  _record_origin(run)
  averaged = run.experiment.ema_decay > 0
  return training_state.create(optimizer, run.mesh, *variables, averaged=averaged)


def _resumed(
  run: Run, restored: tuple[State, dict[str, Any]], data: str, saved: Checkpoints
) -> tuple[State, resuming.Progress]:
  """A restored state and its progress, if the run may go on with the settings of now."""
  experiment, (state, values) = run.experiment, restored
  progress = resuming.Progress.from_json(values)
  step = int(state["step"])
  before = checkpoint_files.read_stored(saved.directory / str(step)).description.experiment
  if experiment.init_from:
    log.info("Going on from step %d; %s was for the first start", step, experiment.init_from)
  progress = resuming.check(before, progress, step, experiment, data, len(run.video_ids))
  if not run.with_offset(progress.offset).is_done(progress):
    progress = resuming.with_comparable_best(before, progress, experiment)
  return state, progress


def _record_origin(run: Run) -> None:
  """Notes in the work directory what the run starts from, and says which classes it has seen there."""
  origin, names = origins.of(run.experiment), run.records.class_names
  if jax.process_index() == 0:
    origins.record(run.workdir, origin)
  if origin is None:
    return
  described = origin.described(run.experiment, names)
  log.info("%s", origins.in_words(described, len(names)))
  for name, theirs in described["shared"].items():
    log.info("  %s: %s", errors.printable(name), errors.shown(theirs))


def _announce(run: Run, state: State) -> None:
  log.info("%s", parameter_overview.get_parameter_overview(state["params"], include_stats=False))
  counts = models.parameter_counts(state["params"])
  log.info("Parameters: %s", ", ".join(f"{part} {count:,}" for part, count in counts.items()))
  for sentence in optimizers.part_rates_in_words(run.experiment.optimizer, state["params"]):
    log.info("%s", sentence)
  parts = run.experiment.micro_batches
  log.info(
    "Training on %d device(s) (%s) from step %d to %d, %g epochs of %d clips, batch %d%s",
    run.mesh.size,
    jax.devices()[0].device_kind,
    int(state["step"]),
    run.length.total_steps,
    run.experiment.epochs,
    run.length.clips,
    run.experiment.batch_size,
    f" in {parts} parts" if parts > 1 else "",
  )


def _announce_head(of_run: phases.Phases, step: int) -> None:
  if step < of_run.head_steps:
    log.info(
      "The head alone is trained up to step %d; all else, batch statistics too, stays until then",
      of_run.head_steps,
    )


def _chosen(
  run: Run, state: State, progress: resuming.Progress, saved: Checkpoints
) -> evaluate.Parameters:
  """The parameters that the settings want tested."""
  last = evaluate.Parameters.of(state)
  tracker = progress.tracker
  if run.experiment.test_parameters == "last" or tracker.step == last.step:
    return dataclasses.replace(last, which=run.experiment.test_parameters)
  if tracker.step is None:
    raise ValidationError(
      f"{run.experiment.path('test_parameters')} is 'best', and nothing was validated in this run: set "
      f"{ValidationSettings.path('every_epochs')} and train in another --workdir, or test the last."
    )
  log.info(
    "The best of the %s list: step %d, %s %.4f",
    run.experiment.validation.on,
    tracker.step,
    tracker.metric,
    tracker.best,
  )
  saved.wait()
  return evaluate.Parameters.read(saved.directory / str(tracker.step), run.mesh)
