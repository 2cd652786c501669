"""The mode `train`: a run from start to end, read from top to bottom.

In: an experiment and a work directory. Out: checkpoints, TensorBoard events, `history.jsonl`, and
what `evaluate` leaves behind. A run that is already in the work directory goes on from its last
checkpoint.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import logging
import pathlib
import time
from typing import Any

from clu import metric_writers, parameter_overview
import jax
import numpy as np

from hybrid_video import (
  checkpoints,
  compilation,
  errors,
  evaluate,
  files,
  initialization,
  metrics,
  models,
  optimizers,
  sharding,
  steps,
)
from hybrid_video import state as training_state
from hybrid_video.datasets import preparation, splits
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.pipeline import Pipeline
from hybrid_video.report import data_summary, results, writers
from hybrid_video.state import State
from hybrid_video.tasks import Sums, Task, registry

log = logging.getLogger("hybrid_video")

StepFunction = Callable[..., tuple[State, Sums]]


class TrainingError(errors.UserError):
  """Training that cannot go on; the message says at which step and what was found."""


@dataclasses.dataclass(frozen=True)
class Length:
  """How long a training is.

  Attributes:
    clips: of an epoch.
    steps_per_epoch: not always a whole number.
    total_steps: of the whole training, at least 1.
  """

  clips: int
  steps_per_epoch: float
  total_steps: int

  @classmethod
  def of(cls, experiment: Experiment, clips: int) -> "Length":
    """The length of an experiment on a list of so many videos."""
    steps_per_epoch = clips / experiment.batch_size
    return cls(clips, steps_per_epoch, max(1, round(experiment.epochs * steps_per_epoch)))


@dataclasses.dataclass(frozen=True)
class Run:
  """What a training is made of, before its first step.

  Attributes:
    experiment: every setting.
    workdir: where everything goes.
    pipeline: makes batches of clips.
    records: the index of the stored videos.
    video_ids: those to train on.
    length: how long.
    task: what is minimized.
    mesh: the devices.
    compiled: programs compiled so far.
  """

  experiment: Experiment
  workdir: pathlib.Path
  pipeline: Pipeline
  records: Records
  video_ids: np.ndarray
  length: Length
  task: Task
  mesh: jax.sharding.Mesh
  compiled: compilation.Compilations


def run(experiment: Experiment, workdir: pathlib.Path, pipeline: Pipeline) -> dict[str, Any]:
  """Trains, or goes on training, and evaluates.

  Args:
    experiment: every setting.
    workdir: where everything goes.
    pipeline: makes batches of clips.

  Returns:
    What `results.json` holds.

  Raises:
    UserError: a value, file or folder that cannot be used, or a loss that is not finite.
  """
  began = time.monotonic()
  workdir = pathlib.Path(workdir).absolute()
  with compilation.counted() as compiled:
    mesh = sharding.make_mesh()
    for name in ("batch_size", "eval_batch_size"):
      sharding.check_batch_size(getattr(experiment, name), mesh, experiment.path(name))
    results.make_folder(workdir)
    records = preparation.load_records(experiment, workdir)
    video_ids = _training_list(experiment, records)
    length = Length.of(experiment, len(video_ids))
    task = registry.create(experiment, len(records.class_names), mesh)
    if jax.process_index() == 0:
      files.write_json(workdir / "config.json", experiment.to_json())
    training = Run(experiment, workdir, pipeline, records, video_ids, length, task, mesh, compiled)
    state = _train(training)
    evaluator = evaluate.Evaluator(records, task, experiment, pipeline, mesh)
    return evaluate.report(evaluator, state, records, experiment, workdir, compiled, began)


def _training_list(experiment: Experiment, records: Records) -> np.ndarray:
  """The videos to train on, after every check on the lists; says what there is."""
  split, share = experiment.split, experiment.validation_share
  video_ids = splits.select(records, split, "train", share)
  splits.select(records, split, "test")
  if not experiment.allow_missing:
    splits.check_training_classes(records, split)
  log.info("%s", data_summary.text(data_summary.summarize(records, split, share)))
  missing = [*records.missing, *records.broken]
  if missing:
    log.warning("%d listed videos are missing or broken, which the settings allow", len(missing))
  return video_ids


def _train(run: Run) -> State:
  """The state after the last step: restored if it is there, trained if not."""
  experiment, length = run.experiment, run.length
  schedule = optimizers.make_schedule(
    experiment.optimizer, steps=length.total_steps, steps_per_epoch=length.steps_per_epoch
  )
  optimizer = optimizers.make_optimizer(experiment.optimizer)
  averaged = experiment.ema_decay > 0
  abstract = training_state.abstract(run.task, optimizer, run.mesh, averaged=averaged)
  description = checkpoints.Description(experiment, run.records.class_names)
  with checkpoints.Checkpoints(run.workdir, description, experiment.keep_checkpoints) as saved:
    restored = saved.restore(abstract)
    if restored is None:
      variables = initialization.variables(run.task, description)
      state = training_state.create(optimizer, run.mesh, *variables, averaged=averaged)
      del variables
    else:
      state, _ = restored
    done = int(state["step"])
    if restored and experiment.init_from:
      log.info("Going on from step %d; %s was for the first start", done, experiment.init_from)
    if done >= length.total_steps:
      log.info("The checkpoint of step %d of %d: evaluating only", done, length.total_steps)
      return state
    _announce(run, state)
    options = steps.StepOptions.of(experiment)
    step_function = steps.jitted(run.task, optimizer, options, run.mesh, abstract)
    return _loop(run, state, step_function, schedule, saved)


def _announce(run: Run, state: State) -> None:
  log.info("%s", parameter_overview.get_parameter_overview(state["params"], include_stats=False))
  counts = models.parameter_counts(state["params"])
  log.info("Parameters: %s", ", ".join(f"{part} {count:,}" for part, count in counts.items()))
  log.info(
    "Training on %d device(s) (%s) from step %d to %d, %g epochs of %d clips, batch %d",
    run.mesh.size,
    jax.devices()[0].device_kind,
    int(state["step"]),
    run.length.total_steps,
    run.experiment.epochs,
    run.length.clips,
    run.experiment.batch_size,
  )


def _loop(
  run: Run,
  state: State,
  step_function: StepFunction,
  schedule: optimizers.Schedule,
  saved: checkpoints.Checkpoints,
) -> State:
  experiment, length = run.experiment, run.length
  first_step = int(state["step"])
  save_every = max(1, round(experiment.checkpoint_every_epochs * length.steps_per_epoch))
  # What JAX makes of a larger seed, as the type that the compiled step takes.
  seed = np.uint32(experiment.seed % 2**32)
  batches = run.pipeline.training_batches(
    run.records,
    run.video_ids,
    experiment.clip,
    batch_size=experiment.batch_size,
    first_step=first_step,
    steps=length.total_steps,
    seed=experiment.seed,
    service=experiment.data_service,
  )
  reporter = _Reporter(experiment, run.workdir, length, first_step)
  with reporter, contextlib.closing(batches):
    for step, batch in enumerate(batches, first_step + 1):
      batch.pop("video_ids")
      learning_rate = schedule(step - 1)
      state, sums = step_function(state, sharding.put_batch(batch, run.mesh), learning_rate, seed)
      reporter.add(step, sums)
      if step == first_step + 1:
        # The first step compiles: it is not part of any speed.
        jax.block_until_ready(state)
        log.info("Compiled up to the first step: %s", run.compiled)
        reporter.start_clock()
      last = step == length.total_steps
      saves = last or step % save_every == 0
      reports = last or step % experiment.log_every_steps == 0
      if saves or reports:
        # What is saved is known to be finite.
        _check_finite(float(sums["loss"]), step, saved.latest_step())
      if reports:
        reporter.report(step, float(learning_rate))
      if saves:
        saved.save(step, state, {})
  return state


def _check_finite(loss: float, step: int, saved: int | None) -> None:
  if not np.isfinite(loss):
    last = (
      "There is no checkpoint yet" if saved is None else f"The last checkpoint is of step {saved}"
    )
    raise TrainingError(
      f"The loss is {loss} at step {step}. {last}; lower --config.optimizer.learning_rate or set "
      "--config.optimizer.clip_norm."
    )


class _Reporter:
  """Means, speed and time left, to the writers of the first process; a context manager."""

  def __init__(
    self, experiment: Experiment, workdir: pathlib.Path, length: Length, first_step: int
  ):
    self._experiment = experiment
    self._length = length
    self._first_step = self._reported_step = first_step
    self._waiting: list[Sums] = []
    self._started = self._reported = time.monotonic()
    self._writer: metric_writers.MetricWriter | None = None
    if jax.process_index() == 0:
      self._writer = writers.create(workdir, first_step=first_step, steps=length.total_steps)

  def __enter__(self) -> "_Reporter":
    return self

  def __exit__(self, *_: object) -> None:
    if self._writer:
      self._writer.close()

  def start_clock(self) -> None:
    """Speed is measured from here."""
    self._started = self._reported = time.monotonic()

  def add(self, step: int, sums: Sums) -> None:
    """Takes the metric sums of a step, which may still be computed."""
    self._waiting.append(sums)

  def report(self, step: int, learning_rate: float) -> None:
    """Writes the means since the last report."""
    now = time.monotonic()
    pace = (now - self._started) / max(step - self._first_step - 1, 1)
    recent = (now - self._reported) / max(step - self._reported_step, 1) or pace
    means = metrics.means(jax.device_get(self._waiting))
    self._waiting.clear()
    if self._writer:
      self._writer.write_scalars(
        step,
        {
          "epoch": step / self._length.steps_per_epoch,
          "learning_rate": learning_rate,
          **{f"train/{name}": value for name, value in means.items()},
          "clips_per_second": self._experiment.batch_size / recent if recent else 0.0,
          "seconds_left": pace * (self._length.total_steps - step),
        },
      )
    self._reported, self._reported_step = time.monotonic(), step
