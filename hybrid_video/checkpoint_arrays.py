"""The arrays of a checkpoint: by name, in items that orbax reads, and checked.

In: a state, or a checkpoint's folder. Out: its leaves by the path to each, such as
`opt_state/1/0/mu/head/kernel`; read back onto devices or the host, and compared with the checksums that
the checkpoint has.
"""

from collections.abc import Mapping
import functools
import logging
import os
import sys
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from hybrid_video import array_checksums, errors
from hybrid_video.checkpoint_files import Damaged, StoredArray, damage

MODEL, TRAINING, AVERAGES = "model", "training", "averages"
# The keys of a state that an item holds.
_KEYS = {
  MODEL: ("params", "batch_stats"),
  TRAINING: ("step", "opt_state", "skipped"),
  AVERAGES: ("ema",),
}
ITEMS = tuple(_KEYS)


def named(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by the path to each."""
  leaves = jax.tree.leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts of what `named` gives for such."""
  tree: dict[str, Any] = {}
  for name, array in arrays.items():
    *parents, last = name.split("/")
    branch = tree
    for parent in parents:
      branch = branch.setdefault(parent, {})
    branch[last] = array
  return tree


def of_item(item: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Those of some named arrays that belong to an item."""
  return {name: array for name, array in arrays.items() if name.partition("/")[0] in _KEYS[item]}


def about(arrays: Mapping[str, Any]) -> dict[str, StoredArray]:
  """Shape, type and checksum of named arrays, all on devices or all NumPy's; waits for them."""
  if all(isinstance(array, np.ndarray) for array in arrays.values()):
    sums = {name: array_checksums.on_host(array) for name, array in arrays.items()}
  else:
    sums = array_checksums.on_devices(arrays)
  return {
    name: StoredArray(tuple(array.shape), str(array.dtype), sums[name])
    for name, array in arrays.items()
  }


def read_on_devices(folder: epath.Path, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
  """The arrays of an item's folder, with the shapes, types and shardings that are wanted.

  Args:
    folder: of the item.
    wanted: `jax.ShapeDtypeStruct`s by name, of every array in it.

  Raises:
    Damaged: they cannot be read; what can may still be wrong.
    CheckpointError: the file system does not let them be read.
  """
  if not wanted:
    return {}
  item = dict(wanted)
  arguments = ocp.checkpoint_utils.construct_restore_args(item)
  return _restored(folder, ocp.args.PyTreeRestore(item, restore_args=arguments))


def read_on_host(folder: epath.Path) -> dict[str, np.ndarray]:
  """Every array of an item's folder, in the host's memory.

  Raises:
    Damaged: they cannot be read; what can may still be wrong.
    CheckpointError: the file system does not let them be read.
  """
  handler = ocp.PyTreeCheckpointHandler()
  try:
    tree = handler.metadata(folder).tree
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
  except Exception as error:
    raise damage(error, folder) from error
  return named(_restored(folder, ocp.args.PyTreeRestore(restore_args=arguments)))


def _restored(folder: epath.Path, arguments: Any) -> Any:
  hush_abandoned()
  try:
    return ocp.PyTreeCheckpointHandler().restore(folder, args=arguments)
  # Files that are damaged end in errors of every kind: of JSON, keys, types, shapes, values.
  except Exception as error:
    raise damage(error, folder) from error


@functools.cache
def hush_abandoned() -> None:
  """Keeps back what orbax and tensorstore have to say of a read or a save after its first failure.

  Every part that was left reports itself as it ends or is collected, page after page, none of it news.
  """
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    code = getattr(unraisable.object, "cr_code", None)
    of_orbax = code is not None and f"{os.sep}orbax{os.sep}" in code.co_filename
    if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
      before(unraisable)

  sys.unraisablehook = hook
  logging.getLogger("asyncio").addFilter(_WithoutAbandoned())


class _WithoutAbandoned(logging.Filter):
  def filter(self, record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def compare(arrays: Mapping[str, Any], stored: Mapping[str, StoredArray]) -> None:
  """Checks arrays that were read against what was saved.

  Args:
    arrays: all on devices, or all NumPy's.
    stored: of the same names.

  Raises:
    Damaged: with the names of those that are something else.
  """
  found = about(arrays)
  wrong = [name for name in {**stored, **found} if found.get(name) != stored.get(name)]
  if wrong:
    raise Damaged(f"the values of {errors.shown(wrong)} are not those that were saved")
