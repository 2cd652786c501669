"""A reference's state dict into our parameters, and back: every key and every leaf accounted for.

In: arrays by the reference's names, and a table of where each goes. Out: our two nested dicts
(parameters, batch statistics), or one error that lists all that does not fit.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

Tree = dict[str, Any]
Path = tuple[str, ...]

# How an array of the reference lies in ours, and back.
CONVOLUTION, LINEAR, SAME = "convolution", "linear", "same"
_FORWARD = {CONVOLUTION: (2, 3, 4, 1, 0), LINEAR: (1, 0)}
_BACKWARD = {CONVOLUTION: (4, 3, 0, 1, 2), LINEAR: (1, 0)}


class PortingError(ValueError):
  """Weights that do not fit a model; the message lists everything at once."""


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an array of the reference goes.

  Attributes:
    collection: "params" or "batch_stats".
    path: names down the nested dict.
    form: "convolution" (out, in, t, h, w to t, h, w, in, out), "linear" (out, in to in, out) or
      "same".
  """

  collection: str
  path: Path
  form: str

  def to_ours(self, array: np.ndarray) -> np.ndarray:
    """The reference's array as ours, float32."""
    axes = _FORWARD.get(self.form)
    if axes is not None and array.ndim == len(axes):
      array = array.transpose(axes)
    return np.ascontiguousarray(array, np.float32)

  def to_reference(self, array: np.ndarray) -> np.ndarray:
    """Our array as the reference's."""
    axes = _BACKWARD.get(self.form)
    return np.ascontiguousarray(array if axes is None else np.transpose(array, axes))


@dataclasses.dataclass(frozen=True)
class Ported:
  """What porting gave.

  Attributes:
    params, batch_stats: our nested dicts.
    loaded: how many arrays came from the file.
    unused: keys of the file that this model has no use for.
    fresh: parts of the model that keep their initial values.
  """

  params: Tree
  batch_stats: Tree
  loaded: int
  unused: tuple[str, ...]
  fresh: tuple[str, ...]


def leaves(params: Tree, batch_stats: Tree) -> dict[tuple[str, Path], Any]:
  """All leaves of a model by (collection, path)."""
  found = {}
  for collection, tree in (("params", params), ("batch_stats", batch_stats)):
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
      found[collection, tuple(key.key for key in path)] = leaf
  return found


def _filled(tree: Tree, collection: str, arrays: Mapping, path: Path = ()) -> Tree:
  new: Tree = {}
  for name, child in tree.items():
    here = (*path, name)
    if isinstance(child, dict):
      new[name] = _filled(child, collection, arrays, here)
    else:
      new[name] = arrays.get((collection, here), child)
  return new


def port(
  state_dict: Mapping[str, np.ndarray],
  places: Mapping[str, Place | None],
  params: Tree,
  batch_stats: Tree,
  *,
  keep: tuple[str, ...] = (),
  source: str = "the weights",
) -> Ported:
  """Puts a reference's arrays where they belong.

  Args:
    state_dict: arrays by the reference's keys.
    places: where each key goes; None for one that nothing reads. A place the model does not have
      (a block after its cut, a part in `keep`) is left out and counted as unused.
    params, batch_stats: of a fresh model.
    keep: parts of the model (`attention`, `head`) that keep their initial values.
    source: what to call the weights in an error.

  Raises:
    PortingError: a key that is not in the table, a key or a leaf without its counterpart, or
      another shape; all of them at once.
  """
  ours = leaves(params, batch_stats)
  arrays: dict[tuple[str, Path], np.ndarray] = {}
  wrong, unused = [], []
  for key, array in state_dict.items():
    if key not in places:
      wrong.append(f"  {key} {array.shape}: the model knows no such key")
      continue
    place = places[key]
    target = None if place is None else (place.collection, place.path)
    if place is None or target not in ours or place.path[0] in keep:
      unused.append(key)
      continue
    ported = place.to_ours(array)
    expected = tuple(ours[target].shape)
    if ported.shape != expected:
      wrong.append(f"  {key}: found {array.shape}, expected {_reference_shape(place, expected)}")
      continue
    arrays[target] = ported
  keys = {(p.collection, p.path): key for key, p in places.items() if p is not None}
  for target, leaf in ours.items():
    known = keys.get(target)
    if target not in arrays and target[1][0] not in keep and known not in state_dict:
      wanted = f"the key {known}" if known else "a key for it"
      wrong.append(f"  {'/'.join(target[1])} {tuple(leaf.shape)}: {wanted} is missing")
  return _place(arrays, params, batch_stats, wrong, unused, keep, source)


def place(
  arrays: Mapping[tuple[str, Path], np.ndarray],
  params: Tree,
  batch_stats: Tree,
  *,
  keep: tuple[str, ...] = (),
  source: str = "the weights",
) -> Ported:
  """Puts arrays that already have our paths and layout in their place, as strictly as `port`.

  Raises:
    PortingError: a path that the model lacks, a leaf without an array, or another shape.
  """
  ours = leaves(params, batch_stats)
  wrong, unused = [], []
  fitting = {}
  for (collection, path), array in arrays.items():
    name = "/".join(path)
    if path[0] in keep:
      unused.append(name)
    elif (collection, path) not in ours:
      wrong.append(f"  {name} {array.shape}: the model has no such parameter")
    elif ours[collection, path].shape != array.shape:
      expected = tuple(ours[collection, path].shape)
      wrong.append(f"  {name}: found {array.shape}, expected {expected}")
    else:
      fitting[collection, path] = array
  for target, leaf in ours.items():
    if target not in arrays and target[1][0] not in keep:
      wrong.append(f"  {'/'.join(target[1])} {tuple(leaf.shape)}: nothing in the file is for it")
  return _place(fitting, params, batch_stats, wrong, unused, keep, source)


def _place(
  arrays: Mapping[tuple[str, Path], np.ndarray],
  params: Tree,
  batch_stats: Tree,
  wrong: list[str],
  unused: list[str],
  keep: tuple[str, ...],
  source: str,
) -> Ported:
  if wrong:
    listed = "\n".join(wrong)
    raise PortingError(f"{source}: {len(wrong)} mismatches, nothing was loaded:\n{listed}")
  return Ported(
    _filled(params, "params", arrays),
    _filled(batch_stats, "batch_stats", arrays),
    len(arrays),
    tuple(unused),
    tuple(part for part in keep if part in params),
  )


def _reference_shape(place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
  axes = _BACKWARD.get(place.form)
  return shape if axes is None else tuple(shape[axis] for axis in axes)


def unport(
  params: Tree, batch_stats: Tree, places: Mapping[str, Place | None]
) -> dict[str, np.ndarray]:
  """Our parameters under the reference's keys, as it would save them.

  Raises:
    PortingError: the model has leaves that the reference has no name for, or lacks some.
  """
  ours = leaves(params, batch_stats)
  state_dict: dict[str, np.ndarray] = {}
  for key, place in places.items():
    if place is None:
      state_dict[key] = np.zeros((), np.int64)
      continue
    target = (place.collection, place.path)
    if target not in ours:
      raise PortingError(
        f"{'/'.join(place.path)}, which the reference calls {key}, is not in the model: only a "
        "whole network can be written."
      )
    state_dict[key] = place.to_reference(np.asarray(ours.pop(target), np.float32))
  if ours:
    names = ", ".join("/".join(path) for _, path in list(ours)[:5])
    raise PortingError(f"The reference has no name for {len(ours)} leaves, such as {names}.")
  return state_dict
