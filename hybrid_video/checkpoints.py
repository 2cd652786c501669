"""Checkpoints: training state in, orbax files out, and back; the one place that knows orbax.

A checkpoint is enough by itself. It holds three items: `model` (parameters and batch statistics),
`training` (step and optimizer state), and `description`: the experiment, the class names and the
version of the code that wrote it, as JSON. What only uses a model reads `model` and `description`.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

import hybrid_video
from hybrid_video import class_identity, errors
from hybrid_video.experiment import Experiment
from hybrid_video.state import State

FOLDER = "checkpoints"
# Written into every description; raised when the items or their meaning change.
LAYOUT = 2
_MODEL, _TRAINING, _DESCRIPTION = "model", "training", "description"
_MODEL_KEYS, _TRAINING_KEYS = ("params", "batch_stats"), ("step", "opt_state")
# An item of the layout that version 0.1 wrote.
_LAYOUT_1 = "identity"
# Options of a model that change neither its parameters nor what they mean.
_FREE_OPTIONS = ("dtype", "dropout", "remat", "freeze_statistics")


class CheckpointError(errors.UserError):
  """A checkpoint that is missing, damaged, of another layout, or of another model."""


@dataclasses.dataclass(frozen=True)
class Description:
  """What a model is, beside its parameters.

  Attributes:
    experiment: every setting of the run that made it.
    class_names: by class id.
    version: of this package.
  """

  experiment: Experiment
  class_names: tuple[str, ...]
  version: str = hybrid_video.__version__

  def to_json(self) -> dict[str, Any]:
    """Nested dicts, lists, numbers and texts."""
    return {
      "layout": LAYOUT,
      "version": self.version,
      "experiment": self.experiment.to_json(),
      "class_names": list(self.class_names),
    }

  @classmethod
  def from_json(cls, values: Any, source: str) -> Self:
    """The description that `to_json` wrote.

    Args:
      values: parsed JSON.
      source: where it stands, for messages.

    Raises:
      CheckpointError: it is of another layout, or holds settings that this version does not know.
    """
    if not isinstance(values, Mapping) or values.get("layout") != LAYOUT:
      written = values.get("version", "?") if isinstance(values, Mapping) else "?"
      raise CheckpointError(_other_layout(source, written))
    try:
      return cls(
        Experiment.from_json(values["experiment"]),
        tuple(values["class_names"]),
        values["version"],
      )
    except (errors.UserError, KeyError, TypeError) as error:
      raise CheckpointError(
        f"{source} was written by version {values.get('version', '?')} of hybrid_video and cannot be "
        f"read by version {hybrid_video.__version__}: {error}. Use that version, or export the "
        "model with it (--mode=export) and load the file."
      ) from error


def _other_layout(source: str, version: str) -> str:
  return (
    f"{source} was written by version {version} of hybrid_video, in a layout that version "
    f"{hybrid_video.__version__} does not read. Go on with version {version}; or export the model "
    "with it (--mode=export) and start here from the file: --config.init_from=model.safetensors."
  )


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """A model as read from a checkpoint.

  Attributes:
    description: what it is.
    params, batch_stats: nested dicts of NumPy arrays.
    step: training steps behind it.
    source: where it was read, for messages.
  """

  description: Description
  params: dict[str, Any]
  batch_stats: dict[str, Any]
  step: int
  source: str


def shape_of_checkpoint(description: Description) -> dict[str, Any]:
  """All but the classes that decides which parameters and optimizer state there are; flat."""
  experiment = description.experiment
  model = {
    f"model.{name}": value
    for name, value in experiment.model.to_json().items()
    if name not in _FREE_OPTIONS
  }
  optimizer = experiment.optimizer
  return {
    **model,
    "optimizer.name": optimizer.name,
    "optimizer.clips_gradients": optimizer.clip_norm > 0,
    "optimizer.freeze": list(optimizer.freeze),
  }


def check_same_model(saved: Description, wanted: Description, source: str) -> None:
  """Refuses a checkpoint of another model, optimizer or set of classes.

  Raises:
    CheckpointError: with every difference.
  """
  there, here = shape_of_checkpoint(saved), shape_of_checkpoint(wanted)
  nothing = "nothing"
  differences = [
    f"  {name}: {there.get(name, nothing)} there, {here.get(name, nothing)} asked for"
    for name in sorted(there.keys() | here.keys())
    if there.get(name, nothing) != here.get(name, nothing)
  ]
  if of_classes := class_identity.differences(saved.class_names, wanted.class_names):
    differences.append(f"  classes: {of_classes}")
  if differences:
    raise CheckpointError(
      f"{source} holds another model's checkpoint:\n"
      + "\n".join(differences)
      + "\nName another --workdir, or set the values (and name the data) that made it."
    )


class Checkpoints:
  """The checkpoints of one training; a context manager that ends with everything on disk."""

  def __init__(self, workdir: os.PathLike | str, description: Description, keep: int):
    """Opens a work directory, which may be new.

    Args:
      workdir: the checkpoints are in its folder `checkpoints`.
      description: of the model that is trained.
      keep: how many of the newest checkpoints are kept.

    Raises:
      CheckpointError: it holds checkpoints of another model or layout.
    """
    self.directory = pathlib.Path(workdir).absolute() / FOLDER
    self._description = description
    self._manager = ocp.CheckpointManager(
      self.directory, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    )
    latest = self.latest_step()
    if latest is not None:
      try:
        saved = _read_description(self.directory / str(latest))
        check_same_model(saved, description, str(self.directory))
      except CheckpointError:
        self._manager.close()
        raise

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()

  def latest_step(self) -> int | None:
    """The newest step saved, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: State) -> None:
    """Saves in the background; a checkpoint appears under its name only when it is complete."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        model=ocp.args.PyTreeSave({name: state[name] for name in _MODEL_KEYS}),
        training=ocp.args.PyTreeSave({name: state[name] for name in _TRAINING_KEYS}),
        description=ocp.args.JsonSave(self._description.to_json()),
      ),
    )

  def restore(self, like: State) -> State:
    """The newest state, with the shapes and shardings of `like` (`jax.ShapeDtypeStruct`s).

    Raises:
      CheckpointError: there is none.
    """
    step = self.latest_step()
    if step is None:
      raise CheckpointError(_no_checkpoint(self.directory))

    def item(names: tuple[str, ...]) -> Any:
      wanted = {name: like[name] for name in names}
      arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
      return ocp.args.PyTreeRestore(wanted, restore_args=arguments)

    items = {_MODEL: item(_MODEL_KEYS), _TRAINING: item(_TRAINING_KEYS)}
    restored = self._manager.restore(step, args=ocp.args.Composite(**items))
    return {**restored[_MODEL], **restored[_TRAINING]}

  def wait(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits until everything is on disk and ends orbax's threads."""
    self._manager.wait_until_finished()
    self._manager.close()


def _no_checkpoint(directory: pathlib.Path) -> str:
  return (
    f"{directory} holds no checkpoint. Train first: run without --mode, or name another --workdir."
  )


def find(path: os.PathLike | str) -> pathlib.Path:
  """The folder of one checkpoint: the newest of a work directory, or the one that is named.

  Args:
    path: a work directory, its folder `checkpoints`, or a step's folder in there.

  Raises:
    CheckpointError: there is no checkpoint.
  """
  given = pathlib.Path(path).expanduser().absolute()
  if (given / _DESCRIPTION).is_dir() or (given / _LAYOUT_1).is_dir():
    return given
  directory = given if given.name == FOLDER else given / FOLDER
  steps = [
    int(entry.name)
    for entry in (directory.iterdir() if directory.is_dir() else ())
    if entry.is_dir() and entry.name.isdecimal()
  ]
  if not steps:
    raise CheckpointError(_no_checkpoint(directory))
  return directory / str(max(steps))


def _read_description(step_folder: pathlib.Path) -> Description:
  if (step_folder / _LAYOUT_1).is_dir():
    raise CheckpointError(_other_layout(str(step_folder), "0.1"))
  folder = step_folder / _DESCRIPTION
  try:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      values = reader.restore(folder)
  except (OSError, ValueError, json.JSONDecodeError) as error:
    raise CheckpointError(
      f"{folder}: the checkpoint's description cannot be read ({error}). Delete {step_folder}; the "
      "checkpoint before it is used then."
    ) from error
  return Description.from_json(values, str(step_folder))


def read_description(path: os.PathLike | str) -> Description:
  """What a checkpoint's model is; `path` as in `find`.

  Raises:
    CheckpointError: there is none, or it is of another layout.
  """
  return _read_description(find(path))


def read(path: os.PathLike | str) -> SavedModel:
  """A model from a checkpoint, on the host, whatever devices it was trained on.

  Args:
    path: as in `find`.

  Raises:
    CheckpointError: there is none, or it is damaged or of another layout.
  """
  folder = find(path)
  description = _read_description(folder)
  handler = ocp.PyTreeCheckpointHandler()
  try:
    with ocp.Checkpointer(handler) as reader:
      tree = handler.metadata(folder / _MODEL).tree
      as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
      restored = reader.restore(folder / _MODEL, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
  except (OSError, ValueError, KeyError) as error:
    raise CheckpointError(
      f"{folder}: the checkpoint cannot be read ({error}). Delete this folder; the checkpoint before "
      "it is used then."
    ) from error
  return SavedModel(
    description, restored["params"], restored["batch_stats"], int(folder.name), str(folder)
  )
