"""The classifier in a file of weights: whether a model takes it, and which of its classes.

In: recognized weights, and what is known of the classes on both sides. Out: the same weights with the
classes of the head as the model has them, or a head that starts fresh.
"""

from collections.abc import Mapping
import dataclasses
import logging

import numpy as np

from hybrid_video import class_identity, errors
from hybrid_video.weights.matching import Match
from hybrid_video.weights.porting import LINEAR, Path, Row, Shape, Tree, leaves
from hybrid_video.weights.weights_errors import PortingError

log = logging.getLogger("hybrid_video")

StateDict = Mapping[str, np.ndarray]

# The kernels of the classifiers, after a norm or not.
_KERNELS: tuple[Path, ...] = (("head", "linear", "kernel"), ("head", "kernel"))


@dataclasses.dataclass(frozen=True)
class Classes:
  """The classes of a model and of the weights that it starts from.

  Attributes:
    ours: class names by id, of the model.
    theirs: by id, of the weights' head; None where nothing says them.
    source: what says so, for messages.
  """

  ours: tuple[str, ...]
  theirs: tuple[str, ...] | None
  source: str = ""


@dataclasses.dataclass(frozen=True)
class _Head:
  """The classifier that the weights have for the model.

  Attributes:
    kernel: its row of the table; the bias's is like it.
    theirs, ours: (channels, classes) of the weights' and of the model's.
  """

  kernel: Row
  theirs: Shape
  ours: Shape

  @property
  def bias(self) -> Path:
    """The path of the bias."""
    return (*self.kernel.path[:-1], "bias")


def _head_of(match: Match, params: Tree, state_dict: StateDict) -> _Head | None:
  """The head that the model would take; None where the weights have none for it."""
  ours = leaves(params, {})
  for row in match.table.rows:
    if row.path in _KERNELS and row.target in ours and row.keys[0] in state_dict:
      theirs = state_dict[row.keys[0]].shape
      theirs = theirs[::-1] if row.layout is LINEAR else theirs
      expected = tuple(ours[row.target].shape)
      # Another rank is no classifier: porting lists it with all that does not fit.
      return _Head(row, theirs, expected) if len(theirs) == len(expected) else None
  return None


def fit(
  match: Match,
  params: Tree,
  state_dict: StateDict,
  classes: Classes | None,
  *,
  replace_head: bool,
  source: str,
) -> tuple[Match, StateDict]:
  """Decides about the head of recognized weights.

  Where the classes are known it is kept only if the weights have every class of the model, whatever
  their order and whatever others they have; its rows are put into the model's order.

  Args:
    match: what the weights are; one that leaves the head fresh is given back as it is.
    params: of the model.
    state_dict: arrays by key.
    classes: the names on both sides; None goes by the number of classes alone.
    replace_head: whether a head of other classes may stay as initialized.
    source: what to call the weights.

  Returns:
    The match, with "head" among its fresh parts where it is not kept, and the arrays.

  Raises:
    PortingError: a head of other or unknown classes that was not to be replaced, or names of another
      number than the head's classes.
  """
  head = None if "head" in match.fresh else _head_of(match, params, state_dict)
  if head is None:
    return match, state_dict
  fresh = dataclasses.replace(match, fresh=(*match.fresh, "head"))
  if classes is None or head.theirs[0] != head.ours[0]:
    if head.theirs == head.ours:
      return match, state_dict
    reason = (
      f"its head reads {head.theirs[0]} channels for {head.theirs[1]} classes, the model's "
      f"{head.ours[0]} for {head.ours[1]}."
    )
  else:
    ids = _ids(classes, head, source)
    if ids is not None and None not in ids:
      return match, _selected(state_dict, match, head, np.array(ids), source)
    reason = _difference(classes, head)
  if not replace_head:
    raise PortingError(
      f"{source}: {reason} To start a new head ask for it: replace_head=True "
      "(--config.replace_head=True)."
    )
  log.info("The head starts fresh. %s: %s", source, reason)
  return fresh, state_dict


def _ids(classes: Classes, head: _Head, source: str) -> tuple[int | None, ...] | None:
  """The id in the weights of each of the model's classes; None where their names are not known."""
  if classes.theirs is None:
    return None
  if len(classes.theirs) != head.theirs[1]:
    raise PortingError(
      f"{source}: its head is for {head.theirs[1]} classes, and {classes.source} names "
      f"{len(classes.theirs)}. Give the list of names that belongs to it."
    )
  return class_identity.ids_in(classes.theirs, classes.ours)


def _difference(classes: Classes, head: _Head) -> str:
  """Why a head is not kept, as sentences."""
  if classes.theirs is None:
    return (
      f"nothing says which {head.theirs[1]} classes its head is for, and a number of classes proves "
      "nothing. If you know them, name them by --config.init_classes: a list that comes with the "
      "package, a file with one name a line, or `same` for the data set's own."
    )
  ids = class_identity.ids_in(classes.theirs, classes.ours)
  missing = [name for name, i in zip(classes.ours, ids, strict=True) if i is None]
  advice = ""
  if all(name.isdecimal() for name in classes.ours):
    advice = (
      " The data set's names are numbers: give it a list of names, or set --config.init_classes=same if "
      "its numbers are the ids of these weights."
    )
  return (
    f"{len(ids) - len(missing)} of {len(ids)} names in common with its {head.theirs[1]} classes (by "
    f"{classes.source}); missing there: {errors.shown(missing)}.{advice}"
  )


def _selected(
  state_dict: StateDict, match: Match, head: _Head, ids: np.ndarray, source: str
) -> StateDict:
  """The arrays with the classes of the head in the model's order."""
  count = head.theirs[1]
  if np.array_equal(ids, np.arange(count)):
    log.info("The head is kept: the %d classes of %s are the data set's", count, source)
    return state_dict
  if len(ids) == count:
    log.info("Head reordered: %d classes in another order in %s", count, source)
  else:
    log.info("Head cut: %d of the %d classes of %s are the data set's", len(ids), count, source)
  changed = dict(state_dict)
  for row in match.table.rows:
    if row.path not in (head.kernel.path, head.bias) or row.keys[0] not in changed:
      continue
    array, axis = changed[row.keys[0]], 0 if row.layout is LINEAR else -1
    # Porting lists a bias that does not belong to its kernel.
    if array.ndim and array.shape[axis] == count:
      changed[row.keys[0]] = array.take(ids, axis)
  return changed
