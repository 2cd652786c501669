"""A checkpoint to go on from: its state on devices, as it was saved and as the training wants it.

In: a checkpoint's folder, the shapes and shardings of a state, and what is trained. Out: the state and
what the training kept with it; or what is damaged, or does not fit.
"""

from collections.abc import Mapping
import logging
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from hybrid_video import checkpoint_arrays, errors, settings
from hybrid_video.checkpoint_arrays import AVERAGES, ITEMS, of_item
from hybrid_video.checkpoint_description import (
  CheckpointError,
  Description,
  check_same_model,
  optimizer_differences,
)
from hybrid_video.checkpoint_files import Damaged, Stored, read_stored
from hybrid_video.state import State

log = logging.getLogger("hybrid_video")


def check(stored: Stored, wanted: Description) -> None:
  """Refuses a checkpoint that a training of this description cannot go on from.

  Raises:
    CheckpointError: it is of an earlier layout or of another model, optimizer or set of classes.
  """
  if stored.arrays is None:
    raise CheckpointError(
      f"{stored.folder} was written by version {stored.description.version} of hybrid_video, "
      "without all that this version needs to go on from it. Its model can be used: start a new run "
      f"with another --workdir and --config.init_from={stored.folder}."
    )
  check_same_model(stored.description, wanted, str(stored.folder))


def restore(
  folder: epath.Path, like: State, description: Description
) -> tuple[State, dict[str, Any]]:
  """One checkpoint's state and progress; every process gets them, or none does.

  Averages that are wanted and were not kept begin as the parameters; those not wanted are left out.

  Args:
    folder: of the checkpoint.
    like: shapes, types and shardings, `jax.ShapeDtypeStruct`s.
    description: of the training that goes on.

  Raises:
    Damaged: it is not what was saved.
    CheckpointError: it is of another model or optimizer, or the files cannot be read.
  """
  stored: Stored | None = None
  arrays: dict[str, Any] = {}
  problem: Damaged | None = None
  wanted = checkpoint_arrays.named(like)
  try:
    stored = read_stored(folder)
    check(stored, description)
    fitting = _fitting(stored, wanted, description)
    for item in ITEMS:
      arrays |= checkpoint_arrays.read_on_devices(folder / item, of_item(item, fitting))
  except Damaged as error:
    problem = error
  _agree(problem)
  assert stored and stored.arrays
  checkpoint_arrays.compare(arrays, {name: stored.arrays[name] for name in arrays})
  averages = of_item(AVERAGES, wanted)
  if averages and not of_item(AVERAGES, arrays):
    log.info("Step %d has no averages: they begin as its parameters", stored.step)
    arrays |= _as_averages(arrays, averages)
  elif not averages and of_item(AVERAGES, stored.arrays):
    log.info("The averages of step %d are left out: ema_decay is 0", stored.step)
  leaves = [arrays[name] for name in wanted]
  return jax.tree.unflatten(jax.tree.structure(like), leaves), stored.progress


def _fitting(stored: Stored, wanted: Mapping[str, Any], description: Description) -> dict[str, Any]:
  """The wanted arrays that are to be read; averages only where they are stored and wanted.

  Raises:
    CheckpointError: the stored ones are others.
  """
  assert stored.arrays
  averages = [of_item(AVERAGES, arrays) for arrays in (stored.arrays, wanted)]
  left_out = set() if all(averages) else set().union(*averages)
  here = {name: array for name, array in wanted.items() if name not in left_out}
  there = {name: array for name, array in stored.arrays.items() if name not in left_out}
  forms = ({name: _form(array) for name, array in arrays.items()} for arrays in (there, here))
  differences = [
    f"{name} ({one} there, {other} here)" for name, one, other in sorted(settings.differing(*forms))
  ]
  if differences:
    raise CheckpointError(
      f"{stored.folder} holds other arrays than the training that is asked for: "
      f"{errors.shown(differences)}.{optimizer_differences(stored.description, description)} "
      "Set the values that made it, or name another --workdir."
    )
  return here


def _form(array: Any) -> str:
  return f"{array.dtype}{list(array.shape)}"


def _as_averages(arrays: Mapping[str, jax.Array], averages: Mapping[str, Any]) -> dict[str, Any]:
  """Copies of parameters and statistics under the names and with the shardings of averages."""
  sources = {name: arrays[name.partition("/")[2]] for name in averages}
  shardings = {name: array.sharding for name, array in averages.items()}
  copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)
  return copy(sources)


def _agree(problem: Damaged | None) -> None:
  """Raises what is wrong with a checkpoint in every process, whichever found it."""
  if jax.process_count() > 1:
    found = multihost_utils.process_allgather(np.array(problem is not None))
    if problem is None and found.any():
      problem = Damaged(f"process {found.argmax()} could not read it")
  if problem:
    raise problem
