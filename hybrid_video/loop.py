"""The loop of training: batches in, updates, and what is written between them.

In: a state and how far it is. Out: the state after the last step. Between two steps, in this order:
what was measured and validated is written, then a checkpoint is saved. Whatever ends the loop between
two steps - a signal, a record that cannot be read, a full disk - leaves a checkpoint of the last step.
"""

from collections.abc import Callable, Generator, Iterator
import contextlib
import dataclasses
import functools
import logging
import pathlib
from typing import TYPE_CHECKING, NoReturn

import jax
import numpy as np

from hybrid_video import (
  checkpoints,
  compilation,
  evaluate,
  guards,
  optimizers,
  probing,
  resuming,
  sharding,
  steps,
  stopping,
  validation,
)
from hybrid_video import progress as progress_line
from hybrid_video.checkpoint_description import CheckpointError
from hybrid_video.datasets import splits
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.meter import Length, Meter
from hybrid_video.phases import Phases
from hybrid_video.pipeline import Batch, Pipeline
from hybrid_video.prefetch import PlacedBatch, Prefetch
from hybrid_video.report import device_memory, results
from hybrid_video.report.profiling import Profile
from hybrid_video.state import State
from hybrid_video.tasks import Task

if TYPE_CHECKING:
  from clu import metric_writers

log = logging.getLogger("hybrid_video")


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
    evaluator: of the experiment's lists.
    compiled: programs compiled so far.
    stop: whether the run is asked to stop.
  """

  experiment: Experiment
  workdir: pathlib.Path
  pipeline: Pipeline
  records: Records
  video_ids: np.ndarray
  length: Length
  task: Task
  mesh: jax.sharding.Mesh
  evaluator: evaluate.Evaluator
  compiled: compilation.Compilations
  stop: stopping.StopRequest

  def with_offset(self, offset: int) -> "Run":
    """The run where so many clips stood before step 0."""
    return dataclasses.replace(self, length=dataclasses.replace(self.length, offset=offset))

  def stops_early(self, progress: resuming.Progress) -> bool:
    """Whether validation has not become better for as long as the settings bear."""
    patience = self.experiment.validation.patience
    return bool(patience) and self.validates and progress.tracker.since >= patience

  def is_done(self, progress: resuming.Progress) -> bool:
    """Whether nothing is left to train."""
    return progress.finished >= self.length.total_steps or self.stops_early(progress)

  def batches(self, first_step: int, steps: int) -> Generator[Batch, None, None]:
    """The training batches of the steps `first_step` to `steps`, exclusive, from 0."""
    return self.pipeline.training_batches(
      self.records,
      self.video_ids,
      self.experiment.clip,
      batch_size=self.experiment.batch_size,
      first_step=first_step,
      steps=steps,
      seed=self.experiment.seed,
      offset=self.length.offset,
      service=self.experiment.data_service,
    )

  @property
  def check_stop(self) -> Callable[[], None] | None:
    """What ends a long wait within a step where the run is asked to stop; several processes stop together."""
    return self.stop.check if jax.process_count() == 1 else None

  @functools.cached_property
  def probe(self) -> probing.Probe | None:
    """What tells, by labels, how far pretraining is; None of a task that has labels."""
    return probing.Probe.of(self.evaluator.features, self.records, self.experiment, self.video_ids)

  @functools.cached_property
  def validates(self) -> bool:
    """Whether there is a list to validate on while training, and it is to be used."""
    experiment = self.experiment
    return experiment.validation.is_on_test or (
      experiment.validation.is_on
      and splits.has_validation(self.records, experiment.split, experiment.validation_share)
    )


@dataclasses.dataclass
class _Place:
  """Where the loop is: the state after `step`, and how far the run is."""

  state: State
  step: int
  progress: resuming.Progress


def train(
  run: Run,
  state: State,
  progress: resuming.Progress,
  phases: Phases,
  schedule: optimizers.Schedule,
  saved: checkpoints.Checkpoints,
) -> tuple[State, resuming.Progress]:
  """Trains to the last step, or to where validation stops getting better.

  Args:
    run: what is trained, on what.
    state: of the last step done.
    progress: how far the run is.
    phases: the compiled steps.
    schedule: the learning rate of each step.
    saved: where checkpoints go.

  Returns:
    The state after the last step, and how far the run is then.

  Raises:
    UserError: an update that is not finite, or a file or folder that cannot be used.
    Stopped: the run was asked to stop, and everything is saved.
  """
  at = _Place(state, int(state["step"]), progress)
  meter = Meter(run.length, at.step, progress.sums)
  saved.best_step = progress.tracker.step
  with contextlib.ExitStack() as stack:
    writer = stack.enter_context(_writer(run, progress.finished))
    batches = stack.enter_context(_placed_batches(run, at.step))
    status = stack.enter_context(
      progress_line.StatusLine(
        "step", run.length.total_steps, done=at.step, unit="clips", per_count=run.length.batch_size
      )
    )
    profile = stack.enter_context(
      Profile(run.workdir / results.TENSORBOARD, run.experiment.profile_steps)
    )
    try:
      profile.step(at.step + 1, at.state)
      hold = functools.partial(stack.enter_context, run.stop.held())
      for step in _steps(run, at, meter, writer, phases, schedule, saved, batches, hold):
        status.update(step, **meter.latest)
        profile.step(step + 1, at.state)
    except stopping.Stopped as stopped:
      if jax.process_count() > 1 and stopped.step is None:
        # This process alone, in its first step: a save takes all of them.
        raise
      _keep(at, meter, saved)
      raise run.stop.stopped(at.step or None) from None
    except CheckpointError:
      raise
    except BaseException:
      if jax.process_count() == 1:
        _keep(at, meter, saved)
      raise
  return at.state, at.progress


def _steps(
  run: Run,
  at: _Place,
  meter: Meter,
  writer: "metric_writers.MetricWriter",
  phases: Phases,
  schedule: optimizers.Schedule,
  saved: checkpoints.Checkpoints,
  batches: Prefetch,
  hold: Callable[[], object],
) -> Iterator[int]:
  """Trains step by step, and gives the number of each when all that follows from it is done.

  Requests to stop are held from the second step on: the first one compiles, which can take minutes.
  """
  experiment, total = run.experiment, run.length.total_steps
  save_every = experiment.checkpoint_every_steps or max(
    1, round(experiment.checkpoint_every_epochs * run.length.steps_per_epoch)
  )
  whole = sharding.replicated(run.mesh)
  seed = sharding.place(steps.as_seed(experiment.seed), whole)
  guard = guards.StepGuard(run.compiled)
  # A run may have been stopped between this step and its report.
  if at.progress.finished < at.step and _finish(run, at, meter, writer, phases, schedule):
    _mark_best(at, saved)
  while at.step < total and not run.stops_early(at.progress):
    rate = sharding.place(np.asarray(schedule(at.step + run.length.shift)), whole)
    # From here on the next batch is fetched: as little as can be is left to do beside it.
    batch = meter.next(batches)
    if jax.process_count() > 1:
      # Not with the batch, which was placed while the step before ran.
      asked = np.full(
        experiment.batch_size // jax.process_count(), run.stop.requested is not None, np.int32
      )
      batch |= sharding.put_batch({"stop": asked}, run.mesh)
    with guard.watch(at.step + 1, compiles=phases.ends_at(at.step)):
      at.state, sums = phases.update(at.state, at.step, batch, rate, seed)
    if guard.first:
      hold()
      # The first step compiles: it is not part of any speed.
      jax.block_until_ready(at.state)
      log.info("Compiled up to the first step: %s", run.compiled)
      meter.start_clock()
    at.step += 1
    meter.add(at.step, sums)
    # What follows the head's phase compiles, which a notice of the machine's end does not wait for.
    saves = at.step == total or at.step % save_every == 0 or phases.ends_at(at.step)
    if saves or _is_due(run, at.step) or _is_asked_to_stop(run, meter):
      meter.drain()
    if meter.refused is not None:
      _refuse(run, at, meter, saved)
    if _is_asked_to_stop(run, meter):
      raise run.stop.stopped(at.step)
    is_best = _finish(run, at, meter, writer, phases, schedule)
    if saves or is_best or run.stops_early(at.progress):
      _save(at, meter, saved)
    if is_best:
      _mark_best(at, saved)
    yield at.step


def _placed_batches(run: Run, first_step: int) -> Prefetch:
  """The rows that steps use, on the devices."""

  def place(batch: Batch) -> PlacedBatch:
    rows = {name: rows for name, rows in batch.items() if name != "video_ids"}
    return sharding.put_batch(rows, run.mesh)

  return Prefetch(run.batches(first_step, run.length.total_steps), place, run.check_stop)


def _is_asked_to_stop(run: Run, meter: Meter) -> bool:
  """Whether to stop after this step; several processes find the same."""
  return meter.stop if jax.process_count() > 1 else run.stop.requested is not None


def _is_due(run: Run, step: int) -> bool:
  last = step == run.length.total_steps
  return last or step % run.experiment.log_every_steps == 0 or _validates_at(run, step)


def _validates_at(run: Run, step: int) -> bool:
  every = run.experiment.validation.every(run.length.steps_per_epoch)
  due = step % every == 0 or step == run.length.total_steps or _probes_at(run, step)
  return run.validates and due


def _probes_at(run: Run, step: int) -> bool:
  every = run.experiment.validation.probes_every(run.length.steps_per_epoch)
  if not every or run.probe is None:
    return False
  return step % every == 0 or step == run.length.total_steps


def _finish(
  run: Run,
  at: _Place,
  meter: Meter,
  writer: "metric_writers.MetricWriter",
  phases: Phases,
  schedule: optimizers.Schedule,
) -> bool:
  """Writes what is due after a step; gives whether it is the best one so far."""
  tracker = at.progress.tracker
  if _is_due(run, at.step):
    rate = float(schedule(at.step - 1 + run.length.shift))
    scalars = {
      "epoch": run.length.epoch(at.step),
      "learning_rate": rate,
      **{
        f"learning_rate/{group}": rate * factor
        for group, factor in phases.rates(at.step, at.state["params"]).items()
      },
      **meter.report(at.step),
    }
    if (peak := device_memory.peak_bytes()) is not None:
      scalars["device_memory_bytes"] = peak
    if _validates_at(run, at.step):
      validated = _validated(run, at.state, probes=_probes_at(run, at.step))
      scalars |= {
        f"{group}/{name}": float(value)
        for group, numbers in validated.items()
        for name, value in numbers.items()
        if name not in ("videos", "clips")
      }
      tracker = tracker.after(at.step, validated["validation"])
    writer.write_scalars(at.step, scalars)
    writer.flush()
    meter.begin(at.step)
  at.progress = dataclasses.replace(at.progress, finished=at.step, tracker=tracker)
  return tracker.step == at.step


def _validated(run: Run, state: State, *, probes: bool) -> dict[str, dict[str, float | int]]:
  """Numbers of the validation list and of a sample of the training list, by list; with a probe's, if due."""
  experiment = run.experiment
  chosen = evaluate.Parameters.of(state)
  sample = validation.train_sample(
    run.video_ids, experiment.validation.train_videos, experiment.seed
  )
  which, check = experiment.validation.on, run.check_stop
  numbers = {"validation": run.evaluator.numbers(chosen.variables, which, check)}
  if chosen.raw is not None:
    numbers["validation_raw"] = run.evaluator.numbers(chosen.raw, which, check)
  if len(sample):
    numbers["train_sample"] = run.evaluator.numbers(chosen.variables, sample, check)
  if probes and run.probe:
    videos = run.evaluator.views(which).video_ids
    numbers["validation"]["probe_top1"] = run.probe.accuracy(chosen.variables, videos, check)
  return numbers


def _save(at: _Place, meter: Meter, saved: checkpoints.Checkpoints) -> None:
  progress = dataclasses.replace(at.progress, sums=meter.sums())
  saved.best_step = progress.tracker.step
  saved.save(at.step, at.state, progress.to_json())


def _mark_best(at: _Place, saved: checkpoints.Checkpoints) -> None:
  tracker = at.progress.tracker
  assert tracker.best is not None
  saved.mark_best(at.step, tracker.metric, tracker.best)


def _keep(at: _Place, meter: Meter, saved: checkpoints.Checkpoints) -> None:
  """Saves the last step, where the loop ends between two steps for whatever reason."""
  if at.state["step"].is_deleted() or int(at.state["step"]) != at.step:
    # Within a step, the state before it is given up.
    return
  meter.drain()
  if meter.refused is None and _save_newer(at, meter, saved):
    log.info("Saved step %d", at.step)


def _save_newer(at: _Place, meter: Meter, saved: checkpoints.Checkpoints) -> bool:
  """Saves a step unless it, or a later one, is saved; gives whether it did, once all is on disk."""
  latest = saved.latest_step()
  if at.step <= (0 if latest is None else latest):
    return False
  _save(at, meter, saved)
  saved.wait()
  return True


def _refuse(run: Run, at: _Place, meter: Meter, saved: checkpoints.Checkpoints) -> NoReturn:
  """Ends a run whose update was not finite; the state before it is saved."""
  refused = meter.refused
  assert refused is not None
  whole = sharding.replicated(run.mesh)
  allowed = np.array(run.experiment.max_skipped_steps, np.int32)
  # What was refused is tried again when the run goes on.
  at.state = {**at.state, "skipped": sharding.place(allowed, whole)}
  at.step = refused - 1
  _save_newer(at, meter, saved)
  with contextlib.closing(run.batches(at.step, refused)) as batches:
    batch = next(batches)
  raise guards.explain(run.task, run.mesh, at.state, batch, run.experiment, run.records)


@contextlib.contextmanager
def _writer(run: Run, first_step: int) -> Iterator["metric_writers.MetricWriter"]:
  # With clu's come TensorBoard, Keras, scikit-learn and Matplotlib: not before the step is being compiled.
  from hybrid_video.report import writers

  writer = writers.create(
    run.workdir,
    first_step=first_step,
    steps=run.length.total_steps,
    experiment=run.experiment,
  )
  try:
    yield writer
  finally:
    writer.close()
