"""One form of table for every reference's names, and the one converter that works by it.

In: arrays by a reference's keys, and a `Table` of where each lies in our parameters. Out: our two
nested dicts (parameters, batch statistics), or one error that lists all that does not fit. `unport`
is the way back by the same table.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from hybrid_video import errors
from hybrid_video.weights.weights_errors import PortingError

Tree = dict[str, Any]
Path = tuple[str, ...]
Shape = tuple[int, ...]
# Collection ("params" or "batch_stats") and names down its nested dict.
Target = tuple[str, Path]

_SHOWN = 8
# Keys are long and much alike; less than this is no misspelling.
_NEAR = 0.85


@dataclasses.dataclass(frozen=True)
class Layout:
  """How an array lies in the reference and how in ours.

  Attributes:
    axes: the reference's axes in the order in which ours has them; None leaves them as they are.
    unfolded: our shape to that shape with the axes apart that the reference keeps apart and ours
      joins; None where ours joins none.
  """

  axes: tuple[int, ...] | None = None
  unfolded: Callable[[Shape], Shape] | None = None

  def to_ours(self, array: np.ndarray, shape: Shape) -> np.ndarray:
    """The reference's array as ours of a shape, float32."""
    moved = array if self.axes is None else array.transpose(self.axes)
    return np.ascontiguousarray(moved.reshape(shape), np.float32)

  def to_reference(self, array: np.ndarray) -> np.ndarray:
    """Our array as the reference's."""
    if self.unfolded is not None:
      array = array.reshape(self.unfolded(array.shape))
    return np.ascontiguousarray(array if self.axes is None else array.transpose(self._inverse()))

  def reference_shape(self, shape: Shape) -> Shape:
    """The shape in the reference of our array of a shape."""
    apart = shape if self.unfolded is None else self.unfolded(shape)
    return apart if self.axes is None else tuple(apart[axis] for axis in self._inverse())

  def _inverse(self) -> tuple[int, ...]:
    assert self.axes is not None
    return tuple(self.axes.index(axis) for axis in range(len(self.axes)))


SAME = Layout()
# Kernels: (out, in) to (in, out), and (out, in, t, h, w) to (t, h, w, in, out).
LINEAR = Layout((1, 0))
CONVOLUTION = Layout((2, 3, 4, 1, 0))
# A learned token: (1, 1, channels) to (channels).
TOKEN = Layout(unfolded=lambda shape: (1, 1, *shape))


def patch_embedding(patch: tuple[int, int, int]) -> Layout:
  """A convolution over patches of (t, h, w): (out, in, t, h, w) to (t h w in, out)."""
  return Layout(CONVOLUTION.axes, lambda shape: (*patch, shape[0] // math.prod(patch), shape[1]))


@dataclasses.dataclass(frozen=True)
class Row:
  """One array of ours and where the reference has it.

  Attributes:
    path: names down our nested dict.
    keys: of the reference; several where it keeps apart, along its first axis, what ours joins.
    layout: how the joined array lies.
    collection: "params" or "batch_stats".
  """

  path: Path
  keys: tuple[str, ...]
  layout: Layout = SAME
  collection: str = "params"

  @property
  def target(self) -> Target:
    """Where it lies in ours."""
    return self.collection, self.path

  def key_shape(self, shape: Shape) -> Shape:
    """The shape of each key's array, for our array of a shape."""
    whole = self.layout.reference_shape(shape)
    return whole if len(self.keys) == 1 else (whole[0] // len(self.keys), *whole[1:])

  def to_ours(self, arrays: list[np.ndarray], shape: Shape) -> np.ndarray:
    """The keys' arrays as ours of a shape, float32."""
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return self.layout.to_ours(joined, shape)

  def to_reference(self, array: np.ndarray) -> list[np.ndarray]:
    """Our array as the keys'."""
    whole = self.layout.to_reference(array)
    return [whole] if len(self.keys) == 1 else np.split(whole, len(self.keys))


def linear(path: Path, key: str, *, layout: Layout = LINEAR, bias: bool = True) -> list[Row]:
  """The rows of a linear map or convolution: `kernel` and `bias`."""
  kernel = Row((*path, "kernel"), (f"{key}.weight",), layout)
  return [kernel, Row((*path, "bias"), (f"{key}.bias",))] if bias else [kernel]


def norm(path: Path, key: str) -> list[Row]:
  """The rows of a norm without statistics: `scale` and `bias`."""
  return [Row((*path, "scale"), (f"{key}.weight",)), Row((*path, "bias"), (f"{key}.bias",))]


@dataclasses.dataclass(frozen=True)
class Table:
  """The names of one network.

  Attributes:
    title: what the network is called in errors, such as "r2plus1d_18 as torchvision names it".
    rows: where every array lies. Rows that share a path stand for a network that repeats an array.
    counters: keys of whole numbers that nothing of ours holds; written as 0.
    idle: keys that a file may have and that change no output; not written.
    advice: what to do about a mismatch; a sentence.
    shared_advice: what to do where rows of one path differ; a sentence.
    hints: by a key, what it means that the file has it though the network does not; a sentence.
  """

  title: str
  rows: tuple[Row, ...]
  counters: tuple[str, ...] = ()
  idle: tuple[str, ...] = ()
  advice: str = ""
  shared_advice: str = ""
  hints: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def renamed(self, rename: Callable[[str], str]) -> "Table":
    """The same network with every key under another name."""
    rows = (dataclasses.replace(row, keys=tuple(map(rename, row.keys))) for row in self.rows)
    return dataclasses.replace(self, rows=tuple(rows), counters=tuple(map(rename, self.counters)))


@dataclasses.dataclass(frozen=True)
class Ported:
  """What porting gave.

  Attributes:
    params, batch_stats: our nested dicts.
    loaded: how many arrays of the model came from the weights.
    unused: keys of the weights that this model has no use for.
    fresh: parts of the model that keep their initial values.
  """

  params: Tree
  batch_stats: Tree
  loaded: int
  unused: tuple[str, ...]
  fresh: tuple[str, ...]


def leaves(params: Tree, batch_stats: Tree) -> dict[Target, Any]:
  """All leaves of a model by (collection, path)."""
  return {
    (collection, tuple(key.key for key in path)): leaf
    for collection, tree in (("params", params), ("batch_stats", batch_stats))
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _filled(tree: Tree, collection: str, arrays: Mapping[Target, Any], path: Path = ()) -> Tree:
  return {
    name: _filled(child, collection, arrays, (*path, name))
    if isinstance(child, dict)
    else arrays.get((collection, (*path, name)), child)
    for name, child in tree.items()
  }


@dataclasses.dataclass
class _Mismatches:
  """All that does not fit, by kind."""

  missing: list[str] = dataclasses.field(default_factory=list)
  unknown: dict[str, Shape] = dataclasses.field(default_factory=dict)
  surplus: list[str] = dataclasses.field(default_factory=list)
  shapes: list[str] = dataclasses.field(default_factory=list)
  types: list[str] = dataclasses.field(default_factory=list)
  nameless: list[str] = dataclasses.field(default_factory=list)
  differing: list[str] = dataclasses.field(default_factory=list)

  def check(self, table: Table, source: str) -> None:
    """Raises a PortingError that has all of them, if there is any."""
    unknown = [
      f"{key} {shape}{errors.nearest(key, self.missing, count=1, cutoff=_NEAR)}"
      for key, shape in self.unknown.items()
    ]
    kinds = (
      ("missing", self.missing),
      ("unknown", unknown),
      ("that the model has nothing for", self.surplus),
      ("of another shape", self.shapes),
      ("that are no floating-point numbers", self.types),
      ("of the model without a key", self.nameless),
      ("that should be the same and differ", self.differing),
    )
    count = sum(len(listed) for _, listed in kinds)
    if not count:
      return
    lines = [
      f"  {len(listed)} {kind}: {errors.shown(listed, _SHOWN)}" for kind, listed in kinds if listed
    ]
    hints = dict.fromkeys(table.hints[key] for key in self.unknown if key in table.hints)
    shared_advice = [table.shared_advice] if self.differing and table.shared_advice else []
    advice = " ".join([*hints, *shared_advice, *([table.advice] if table.advice else [])])
    raise PortingError(
      "\n".join(
        [
          f"{source}: {count} mismatches with {table.title}, nothing was loaded:",
          *lines,
          *([advice] if advice else []),
        ]
      )
    )


def _convert(
  state_dict: Mapping[str, np.ndarray],
  row: Row,
  shape: Shape,
  mismatches: _Mismatches,
) -> np.ndarray | None:
  """A row's array as ours of a shape; None, with the mismatches noted, if it does not fit."""
  missing = [key for key in row.keys if key not in state_dict]
  mismatches.missing += missing
  expected = row.key_shape(shape)
  others = [
    f"{key}: found {state_dict[key].shape} where {expected} is expected"
    for key in row.keys
    if key in state_dict and state_dict[key].shape != expected
  ]
  mismatches.shapes += others
  # Of whole numbers, such as a quantized network's, the scale is not known.
  types = [
    f"{key}: {state_dict[key].dtype}"
    for key in row.keys
    if key in state_dict and not np.issubdtype(state_dict[key].dtype, np.floating)
  ]
  mismatches.types += types
  return (
    None
    if missing or others or types
    else row.to_ours([state_dict[key] for key in row.keys], shape)
  )


def _nameless(table: Table, ours: Mapping[Target, Any], fresh: tuple[str, ...]) -> list[str]:
  """The arrays of the model that should be filled and that the table has no key for."""
  named = {row.target for row in table.rows}
  return [
    f"{'.'.join(target[1])} {tuple(leaf.shape)}"
    for target, leaf in ours.items()
    if target not in named and target[1][0] not in fresh
  ]


def port(
  state_dict: Mapping[str, np.ndarray],
  table: Table,
  params: Tree,
  batch_stats: Tree,
  *,
  fresh: Iterable[str] = (),
  optional: Iterable[Path] = (),
  source: str = "the weights",
) -> Ported:
  """Puts a reference's arrays where they belong in a model's parameters.

  Args:
    state_dict: arrays by the reference's keys.
    table: where each key goes.
    params, batch_stats: of a fresh model.
    fresh: parts of the model (`attention`, `head`) that keep their initial values; what the
      weights have for them stays unused.
    optional: beginnings of paths that the weights may have and the model not, such as `("cnn",)`
      for a trunk that is cut; it stays unused.
    source: what to call the weights in an error.

  Raises:
    PortingError: a key that the table does not have, a key or a leaf without its counterpart,
      another shape, or repeated arrays that differ; all of them at once.
  """
  fresh, optional = tuple(fresh), tuple(optional)
  ours = leaves(params, batch_stats)
  arrays: dict[Target, np.ndarray] = {}
  mismatches = _Mismatches()
  known, unused = {*table.counters, *table.idle}, {*table.counters, *table.idle}
  for row in table.rows:
    known.update(row.keys)
    if row.path[0] in fresh:
      unused.update(row.keys)
      continue
    if row.target not in ours:
      if not any(row.path[: len(prefix)] == prefix for prefix in optional):
        mismatches.surplus += [key for key in row.keys if key in state_dict]
      unused.update(row.keys)
      continue
    array = _convert(state_dict, row, tuple(ours[row.target].shape), mismatches)
    if array is None:
      continue
    first = arrays.setdefault(row.target, array)
    if first is not array and not np.array_equal(first, array):
      mismatches.differing += row.keys
  mismatches.unknown = {key: a.shape for key, a in state_dict.items() if key not in known}
  mismatches.nameless = _nameless(table, ours, fresh)
  mismatches.check(table, source)
  return Ported(
    _filled(params, "params", arrays),
    _filled(batch_stats, "batch_stats", arrays),
    len(arrays),
    tuple(key for key in state_dict if key in unused),
    tuple(part for part in fresh if part in params),
  )


def unport(params: Tree, batch_stats: Tree, table: Table) -> dict[str, np.ndarray]:
  """Our parameters under the reference's keys, as it would save them.

  Raises:
    PortingError: the model has leaves that the reference has no name for, or only a part of those
      that the reference has.
  """
  ours = leaves(params, batch_stats)
  state_dict: dict[str, np.ndarray] = {key: np.zeros((), np.int64) for key in table.counters}
  for row in table.rows:
    if row.target not in ours:
      raise PortingError(
        f"{'.'.join(row.path)}, which is {row.keys[0]} in {table.title}, is not in the model: only "
        "a whole network can be written."
      )
    arrays = row.to_reference(np.asarray(ours[row.target], np.float32))
    state_dict.update(zip(row.keys, arrays, strict=True))
  named = {row.target for row in table.rows}
  nameless = [".".join(path) for collection, path in ours if (collection, path) not in named]
  if nameless:
    raise PortingError(
      f"{table.title} has no name for {len(nameless)} arrays of the model: "
      f"{errors.shown(nameless)}."
    )
  return state_dict
