"""Checkpoints: training state in, orbax files out, and back; the one place that knows orbax.

Each checkpoint also holds a short description of the model it belongs to, so that a work directory
with another model's checkpoint is refused instead of half restored.
"""

import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp


class CheckpointError(ValueError):
  """A checkpoint that does not belong here; the message says in what it differs."""


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = list(value) if isinstance(value, tuple) else value
  return flat


class Checkpoints:
  """The checkpoints of one work directory."""

  def __init__(self, workdir: os.PathLike | str, identity: dict[str, Any], keep: int):
    """Opens a work directory, which may be new.

    Args:
      workdir: the checkpoints lie in its folder `checkpoints`.
      identity: nested JSON values that tell one model from another.
      keep: how many of the newest checkpoints stay.

    Raises:
      CheckpointError: it holds checkpoints of another model.
    """
    self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
    self._identity = _flatten(identity)
    self._manager = ocp.CheckpointManager(
      self.directory, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    )
    if self.latest_step() is not None:
      self._check_identity()

  def latest_step(self) -> int | None:
    """The newest step saved, or None."""
    return self._manager.latest_step()

  def _check_identity(self) -> None:
    args = ocp.args.Composite(identity=ocp.args.JsonRestore())
    found = self._manager.restore(self.latest_step(), args=args)["identity"]
    names = sorted(found.keys() | self._identity.keys())
    nothing = "nothing"
    differences = [
      f"  {name}: {found.get(name, nothing)} there, {self._identity.get(name, nothing)} asked for"
      for name in names
      if found.get(name, nothing) != self._identity.get(name, nothing)
    ]
    if differences:
      raise CheckpointError(
        f"{self.directory} holds another model's checkpoint:\n"
        + "\n".join(differences)
        + "\nName another --workdir, or set the values that made it."
      )

  def save(self, step: int, state: dict[str, Any]) -> None:
    """Saves in the background; a checkpoint appears under its name only when it is whole."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), identity=ocp.args.JsonSave(self._identity)
      ),
    )

  def restore(self, like: dict[str, Any]) -> dict[str, Any]:
    """The newest state, laid out as `like` (arrays or `jax.ShapeDtypeStruct` with shardings).

    Raises:
      CheckpointError: there is none.
    """
    step = self.latest_step()
    if step is None:
      raise CheckpointError(
        f"{self.directory} holds no checkpoint. Train first: run without --mode=evaluate."
      )
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    return self._manager.restore(step, args=args)["state"]

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()
