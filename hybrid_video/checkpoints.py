"""Checkpoints: training state in, orbax files out, and back; whole, or said to be damaged.

A checkpoint is enough by itself. Its arrays are in the items `model` (parameters and batch
statistics), `training` (step, optimizer state, updates left out) and `averages` (of parameters and
statistics, where there are any). Beside them are three items of JSON: `description` (the experiment, the
class names and the version of the code that wrote it), `contents` (shape, type and checksum of every
array) and `progress` (what the training wants back). What only uses a model reads no `training`.

What is read is what was saved, or it is damaged: every array and every JSON has a checksum. orbax is
known here and in `checkpoint_arrays` alone.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import logging
import os
import threading
import time
from types import TracebackType
from typing import Any, Self

from absl import logging as absl_logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from hybrid_video import checkpoint_arrays, checkpoint_files, checkpoint_restoring, errors, paths
from hybrid_video.checkpoint_arrays import AVERAGES, ITEMS, MODEL, of_item
from hybrid_video.checkpoint_description import (
  CheckpointError,
  Description,
)
from hybrid_video.checkpoint_files import DAMAGED_FOLDER, FOLDER, Best, Damaged, read_stored
from hybrid_video.state import State

log = logging.getLogger("hybrid_video")

# Ends the names of folders that are being written, and of those that are being deleted.
_UNFINISHED, _SUPERSEDED = ".orbax-checkpoint-tmp", ".superseded"
_LONGEST_WRITE_S = 60.0
_REMOVALS, _TIMES_GONE, _BETWEEN_REMOVALS_S = 50, 3, 0.1


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """A model as read from a checkpoint, to be used.

  Attributes:
    description: what it is.
    params, batch_stats: nested dicts of NumPy arrays.
    step: training steps behind it.
    source: where it was read, for messages.
    averaged: whether both are moving averages, which is so wherever there are any.
  """

  description: Description
  params: dict[str, Any]
  batch_stats: dict[str, Any]
  step: int
  source: str
  averaged: bool = False

  @property
  def words(self) -> str:
    """Which parameters these are, for messages."""
    return words(self.step, averaged=self.averaged)

  def raw(self) -> "SavedModel | None":
    """The parameters and statistics that these are averages of; None where there are none.

    Raises:
      CheckpointError: they are damaged, or no longer where these were read.
    """
    # A file that was exported holds the averages alone.
    is_checkpoint = epath.Path(self.source).is_dir()
    return read(self.source, averaged=False) if self.averaged and is_checkpoint else None


def words(step: int, *, averaged: bool) -> str:
  """Which parameters of a run are meant, for messages: `step 1400, averaged parameters`."""
  return f"step {step}, averaged parameters" if averaged else f"step {step}"


class Checkpoints:
  """The checkpoints of one training; a context manager that ends with everything on disk.

  With several processes, each of them makes every call.

  Attributes:
    best_step: the step whose checkpoint is kept however old it is, or None.
  """

  def __init__(self, workdir: os.PathLike | str, description: Description, keep: int):
    """Opens a work directory, which may be new.

    Args:
      workdir: the checkpoints are in its folder `checkpoints`.
      description: of the model that is trained.
      keep: how many of the newest checkpoints are kept.

    Raises:
      CheckpointError: it holds checkpoints of another model or layout, or cannot be written.
    """
    self._workdir = epath.Path(paths.resolve(workdir, "The work directory"))
    self.directory = self._workdir / FOLDER
    self._description = description
    self._keep = keep
    self._pending: int | None = None
    self._marked: Best | None = None
    with _explained(f"{self.directory} cannot be used"):
      if jax.process_index() == 0:
        self.directory.mkdir(parents=True, exist_ok=True)
        _remove(self.directory, _UNFINISHED, _SUPERSEDED)
      _all_arrive("checkpoints opened")
      self._steps = checkpoint_files.steps(self.directory)
    self.best_step = self._named_as_best = self._best_on_disk()
    self._check_newest()
    checkpoint_arrays.hush_abandoned()
    self._writer = _new_writer()
    self._filter = _WithoutTracebacks()
    absl_logging.get_absl_logger().addFilter(self._filter)

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    try:
      self.close()
    except CheckpointError as of_saving:
      if error is None:
        raise
      # What ends the run stays what is reported of it.
      log.error("%s", of_saving)

  def latest_step(self) -> int | None:
    """The newest step saved, or None; that of a save which still runs in the background too."""
    return self._pending if self._pending is not None else next(iter(self._steps), None)

  def save(self, step: int, state: State, progress: Mapping[str, Any]) -> None:
    """Saves in the background; a checkpoint appears under its name only when it is complete.

    The state may be given away as soon as this returns. A step that is saved already stays as it is.

    Args:
      step: its number.
      state: see `state`.
      progress: what `restore` is to give back with it; JSON.

    Raises:
      CheckpointError: this save or the one before it failed; nothing is left of it, and what was saved
        before is whole.
    """
    self.wait()
    if step in self._steps:
      return
    arrays = checkpoint_arrays.named(state)
    contents = checkpoint_files.contents(step, checkpoint_arrays.about(arrays))
    items = {item: of_item(item, arrays) for item in ITEMS}
    composite = ocp.args.Composite(
      description=_sealed(self._description.to_json()),
      contents=_sealed(contents),
      progress=_sealed({"progress": dict(progress)}),
      **{item: ocp.args.PyTreeSave(of_one) for item, of_one in items.items() if of_one},
    )
    with self._saving(step):
      self._writer.save(self.directory / str(step), args=composite)
    self._pending = step

  def mark_best(self, step: int, metric: str, value: float) -> None:
    """Says which checkpoint is best: it is kept, and `best.json` names it once it is on disk.

    Args:
      step: of a checkpoint that is saved already, or will be.
      metric: what tells, such as `video_top1`.
      value: of the metric.

    Raises:
      CheckpointError: `best.json` cannot be written.
    """
    self._marked = Best(step, metric, value)
    self.best_step = step
    self._tidy()

  def restore(self, like: State) -> tuple[State, dict[str, Any]] | None:
    """The newest state that is whole, and its progress; None where nothing was ever saved.

    Newer ones that are damaged are named in a warning and moved to `damaged_checkpoints`. Averages
    that are wanted and were not kept begin as the parameters that are restored; those that are not
    wanted are left out.

    Args:
      like: shapes, types and shardings, `jax.ShapeDtypeStruct`s.

    Raises:
      CheckpointError: none is whole, or it is of another model or optimizer.
    """
    self._settle()
    damaged: dict[str, Damaged] = {}
    for step in list(self._steps):
      try:
        restored = checkpoint_restoring.restore(self.directory / str(step), like, self._description)
      except Damaged as error:
        damaged[str(step)] = error
        continue
      for other, why in damaged.items():
        self._set_aside(int(other), why, step)
      return restored
    if damaged:
      raise _none_whole(self.directory, damaged)
    return None

  def wait(self) -> None:
    """Waits until everything is on disk, then deletes what is superseded.

    Raises:
      CheckpointError: the last save failed, see `save`; or nothing can be deleted.
    """
    # What was there before this training may yet be needed, if the newest of it is damaged.
    if self._settle():
      self._tidy()

  def close(self) -> None:
    """Waits until everything is on disk and ends orbax's threads.

    Raises:
      CheckpointError: as of `wait`.
    """
    try:
      self.wait()
    finally:
      self._writer.close()
      absl_logging.get_absl_logger().removeFilter(self._filter)

  def _settle(self) -> bool:
    """Waits for a save in the background; whether there was one."""
    step, self._pending = self._pending, None
    if step is None:
      return False
    with self._saving(step):
      self._writer.wait_until_finished()
    self._steps = sorted((step, *self._steps), reverse=True)
    return True

  @contextlib.contextmanager
  def _saving(self, step: int) -> Iterator[None]:
    """Removes what a save leaves that fails, and says what is to be done."""
    try:
      yield
    # tensorstore reports a full disk as a ValueError, threads that give up as a RuntimeError.
    except (OSError, ValueError, RuntimeError) as error:
      self._give_up()
      if jax.process_index() == 0:
        _remove_for_good(self.directory, _UNFINISHED)
      last = next(iter(self._steps), None)
      after = "from the start" if last is None else f"from step {last}, whose checkpoint is whole"
      raise CheckpointError(
        f"The checkpoint of step {step} cannot be saved in {self.directory}: "
        f"{checkpoint_files.reason(error)}. Nothing of it is left there. Once there is room and "
        f"permission to write, the same command goes on {after}."
      ) from error

  def _give_up(self) -> None:
    """Ends a writer that failed: others of its threads may still write files."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
      self._writer.close()
    for thread in threading.enumerate():
      if type(thread).__module__.startswith("orbax."):
        # orbax's own `join` raises what the thread ended with.
        threading.Thread.join(thread, _LONGEST_WRITE_S)
    self._writer = _new_writer()

  def _tidy(self) -> None:
    """Writes down which is best, then deletes what is superseded; in this order."""
    writes = jax.process_index() == 0
    if self._marked and self._marked.step in self._steps:
      if writes:
        with _explained(f"{self._workdir / checkpoint_files.BEST_FILE} cannot be written"):
          self._marked.write(self._workdir)
      self._named_as_best, self._marked = self._marked.step, None
    kept = {*self._steps[: self._keep], self.best_step, self._named_as_best}
    for step in [step for step in self._steps if step not in kept]:
      folder = self.directory / str(step)
      if writes:
        with _explained(f"{folder}, which is superseded, cannot be deleted"):
          # Under its own name, half of a checkpoint would be a damaged one.
          folder.rename(f"{folder}{_SUPERSEDED}").rmtree()
      self._steps.remove(step)

  def _best_on_disk(self) -> int | None:
    marked = checkpoint_files.best_if_whole(self._workdir)
    return marked.step if marked and marked.step in self._steps else None

  def _check_newest(self) -> None:
    """Refuses a work directory of another model before anything is trained."""
    for step in self._steps:
      with contextlib.suppress(Damaged):
        stored = read_stored(self.directory / str(step))
        checkpoint_restoring.check(stored, self._description)
        return

  def _set_aside(self, step: int, why: Damaged, used: int) -> None:
    """Moves a damaged checkpoint away, so that its number can be saved again."""
    folder = self.directory / str(step)
    place = self._workdir / DAMAGED_FOLDER / folder.name
    writes = jax.process_index() == 0
    if writes:
      with _explained(f"{folder} is damaged ({why}) and cannot be moved away"):
        place.parent.mkdir(exist_ok=True)
        number = 1
        while place.exists():
          number += 1
          place = place.with_name(f"{step}.{number}")
        folder.rename(place)
        if step == self._named_as_best:
          (self._workdir / checkpoint_files.BEST_FILE).unlink(missing_ok=True)
    _all_arrive(f"checkpoint {step} set aside")
    log.warning(
      "The checkpoint of step %d is damaged (%s) and is passed over for that of step %d; it was moved "
      "to %s",
      step,
      why,
      used,
      place.parent,
    )
    self._steps.remove(step)
    if step == self._named_as_best:
      self.best_step = self._named_as_best = None


def _sealed(values: Mapping[str, Any]) -> ocp.args.JsonSave:
  return ocp.args.JsonSave(checkpoint_files.seal(values))


def _all_arrive(where: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(where)


def _remove(directory: epath.Path, *endings: str) -> None:
  """Deletes the folders whose names end so."""
  for entry in directory.iterdir():
    if entry.name.endswith(endings):
      entry.rmtree()


def _remove_for_good(directory: epath.Path, ending: str) -> None:
  """Deletes folders in which tensorstore's threads, who cannot be waited for, may still make files."""
  gone = 0
  for _ in range(_REMOVALS):
    with contextlib.suppress(OSError):
      gone = 0 if any(entry.name.endswith(ending) for entry in directory.iterdir()) else gone + 1
      _remove(directory, ending)
    if gone == _TIMES_GONE:
      return
    time.sleep(_BETWEEN_REMOVALS_S)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise CheckpointError(
      f"{what}: {checkpoint_files.reason(error)}. Make room or give permission there, and run the "
      "same command again."
    ) from error


class _WithoutTracebacks(logging.Filter):
  """Keeps back orbax's own reports of failed saves, page after page: `Checkpoints` raises them."""

  def filter(self, record: logging.LogRecord) -> bool:
    """Whether a record is shown."""
    return not (record.levelno == logging.ERROR and _is_of_orbax(record.pathname))


def _is_of_orbax(file: str) -> bool:
  return f"{os.sep}orbax{os.sep}" in file


def _new_writer() -> ocp.AsyncCheckpointer:
  # Folders are made before `save` returns: where that fails, orbax's threads would wait for them.
  options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(async_options=options)
  )
  return ocp.AsyncCheckpointer(handler, async_options=options)


def _none_whole(directory: epath.Path, damaged: Mapping[str, Damaged]) -> CheckpointError:
  each = errors.shown(f"{name} ({why})" for name, why in damaged.items())
  return CheckpointError(
    f"None of the checkpoints in {directory} is whole: {each}. Put back a copy of one; or start again "
    "with another --workdir."
  )


def find(path: os.PathLike | str) -> epath.Path:
  """The folder of the checkpoint that a path names; it may be damaged.

  Args:
    path: a work directory: the best of it where its experiment's `test_parameters` says so, else the
      newest; `best` or `last` in one; its folder `checkpoints`; or a step's folder in there.

  Raises:
    CheckpointError: there is no checkpoint.
  """
  return checkpoint_files.candidates(path).folders[0]


def read(path: os.PathLike | str, *, averaged: bool = True) -> SavedModel:
  """A model from a checkpoint, on the host, whatever devices it was trained on.

  Where the path names no one checkpoint, one that is damaged is named in a warning and passed over.

  Args:
    path: as in `find`.
    averaged: whether moving averages are given where there are any.

  Raises:
    CheckpointError: there is none, or it is damaged or of another layout.
  """
  chosen = checkpoint_files.candidates(path)
  damaged: dict[str, Damaged] = {}
  for folder in chosen.folders:
    try:
      model = _read_model(folder, averaged=averaged)
    except Damaged as error:
      if chosen.exact:
        raise CheckpointError(
          f"{folder}: the checkpoint is damaged ({error}). Name its work directory, and the newest "
          "whole one is used."
        ) from error
      damaged[folder.name] = error
      continue
    for name, why in damaged.items():
      log.warning(
        "The checkpoint of step %s is damaged (%s) and is passed over for that of step %d",
        name,
        why,
        model.step,
      )
    return model
  raise _none_whole(chosen.folders[0].parent, damaged)


def _read_model(folder: epath.Path, *, averaged: bool) -> SavedModel:
  stored = read_stored(folder)
  averages = of_item(AVERAGES, stored.arrays or {})
  averaged = averaged and bool(averages)
  arrays = checkpoint_arrays.read_on_host(folder / (AVERAGES if averaged else MODEL))
  if stored.arrays is not None:
    checkpoint_arrays.compare(arrays, averages if averaged else of_item(MODEL, stored.arrays))
  tree = checkpoint_arrays.nested(arrays)
  tree = tree["ema"] if averaged else tree
  params, batch_stats = (tree.get(name, {}) for name in ("params", "batch_stats"))
  return SavedModel(
    stored.description, params, batch_stats, stored.step, str(folder), averaged=averaged
  )
