"""Which network a file's weights are of, and which of its parts a model takes.

In: a model and arrays by a reference's keys. Out: the reference's table, and what stays fresh in the
model and unused in the file; or the error that they do not belong together.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import itertools
import logging
import re

from flax import nnx
import numpy as np

from hybrid_video import errors, models
from hybrid_video.models import video_resnet, videomae
from hybrid_video.weights import (
  families,
  head_keys,
  own_names,
  perceiver_names,
  video_resnet_names,
  videomae_names,
)
from hybrid_video.weights.porting import Path, Row, Table, Target, Tree, leaves
from hybrid_video.weights.weights_errors import PortingError

log = logging.getLogger("hybrid_video")

StateDict = Mapping[str, np.ndarray]

_OF_MMACTION = re.compile(r"layer1\.0\.conv1\.(conv|bn)\.")
_TRUNK_ADVICE = (
  "To take the trunk alone and start a new attention and head ask for it: replace_head=True "
  "(--config.replace_head=True)."
)


@dataclasses.dataclass(frozen=True)
class Match:
  """How weights belong to a model; see `porting.port`.

  Attributes:
    table: the names of the network that the weights are of.
    fresh: parts of the model that keep their initial values.
    optional: beginnings of paths that the model may not have.
  """

  table: Table
  fresh: tuple[str, ...] = ()
  optional: tuple[Path, ...] = ()


def match(
  model: nnx.Module,
  params: Tree,
  batch_stats: Tree,
  state_dict: StateDict,
  *,
  replace_head: bool,
  source: str,
) -> Match:
  """Recognizes the weights, and decides which parts of a model they are for; `heads` follows.

  Args:
    model: from `hybrid_video.models.create`.
    params, batch_stats: its nested dicts.
    state_dict: arrays by key.
    replace_head: whether what does not fit after the trunk of a model of our own may stay as
      initialized: another attention with its head.
    source: what to call the weights in an error.

  Raises:
    PortingError: weights of no known network or of another than the model's.
  """
  match families.family_of(state_dict):
    case families.OWN:
      return _own(model, params, batch_stats, state_dict, replace_head, source)
    case families.VIDEOMAE:
      return _videomae(model, state_dict, source, replace_head)
    case families.VIDEO_RESNET:
      return _video_resnet(model, state_dict, source, replace_head)
    case families.PERCEIVER:
      return _perceiver(model, state_dict, source)
  raise PortingError(
    f"{source} holds the weights of no network that is known here; its first keys: "
    f"{errors.shown(state_dict)}."
  )


def _trunk_rows(architecture: str) -> list[Row]:
  return [row for row in video_resnet_names.table(architecture).rows if row.path[0] == "cnn"]


def _architecture(
  keys: Iterable[str], key_of: Callable[[Row], str], ours: str | None, taps: int | None
) -> str:
  """The video ResNet that a trunk most likely is: the one whose keys, cut somewhere, fit best.

  Args:
    keys: of the trunk's arrays.
    key_of: the key of a row of a trunk.
    ours: the model's architecture, which is taken where several fit alike.
    taps: extent in time of the first kernel of stage 2, which separates MC3 from R3D: their keys are
      the same.
  """
  keys = set(keys)

  def misfits(name: str) -> int:
    blocks = itertools.groupby(_trunk_rows(name), key=lambda row: row.path[1:3])
    cut: set[str] = set()
    counts = []
    for _, rows in blocks:
      cut |= {key_of(row) for row in rows}
      counts.append(len(cut ^ keys))
    return min(counts)

  counts = {name: misfits(name) for name in video_resnet.ARCHITECTURES}
  near = [name for name, count in counts.items() if count == min(counts.values())]
  if "mc3_18" in near and taps is not None:
    return "mc3_18" if taps == 1 else "r3d_18"
  return ours if ours in near else near[0]


def _check_architecture(model: nnx.Module, theirs: str, source: str) -> None:
  cnn = getattr(model, "cnn", None)
  if cnn is None or cnn.architecture != theirs:
    ours = "has no video ResNet in it" if cnn is None else f"is built on {cnn.architecture}"
    raise PortingError(
      f"{source} looks like the weights of {theirs}, and the model {ours}. Take the model or the "
      "file to match."
    )


def _video_resnet(
  model: nnx.Module, state_dict: StateDict, source: str, replace_head: bool
) -> Match:
  if any(_OF_MMACTION.match(key) for key in state_dict):
    raise PortingError(
      f"{source} holds an mmaction2 ResNet: its stem, pooling and shortcuts are others than those of "
      f"{', '.join(video_resnet.ARCHITECTURES)}, so that no model here computes what it does. Take "
      "torchvision's or IG-65M's weights."
    )
  is_sequential = any(key.startswith("1.0.conv1.") for key in state_dict)
  rename = video_resnet_names.numbered if is_sequential else str
  plain_head = rename(video_resnet_names.HEAD)
  head = head_keys.find(state_dict, plain_head)
  keys = [k for k in state_dict if not k.startswith(f"{plain_head}.") and "num_batches" not in k]
  kernel = state_dict.get(rename("layer2.0.conv1.0.weight"))
  taps = kernel.shape[2] if kernel is not None and kernel.ndim == 5 else None
  ours = getattr(getattr(model, "cnn", None), "architecture", None)
  theirs = _architecture(keys, lambda row: rename(row.keys[0]), ours, taps)
  _check_architecture(model, theirs, source)

  def key_of(key: str) -> str:
    first, dot, rest = key.partition(".")
    is_head = first == video_resnet_names.HEAD and head.name is not None
    return f"{head.name}{dot}{rest}" if is_head else rename(key)

  table = video_resnet_names.table(theirs).renamed(key_of)
  optional: tuple[Path, ...] = (("cnn",),)
  if isinstance(model, models.VideoResNet):
    return _with_head(Match(table, optional=optional), head, source, replace_head)
  table = dataclasses.replace(table, idle=head.others)
  return Match(table, fresh=("attention", "head"), optional=optional)


def _with_head(matched: Match, head: head_keys.Head, source: str, replace_head: bool) -> Match:
  """With a fresh head where the file has none that is like the model's."""
  if head.name is not None:
    return matched
  if head.others and not replace_head:
    raise PortingError(
      f"{source}: its head is more than one linear map, the model's is one: "
      f"{errors.shown(head.others)}. To start a new head ask for it: "
      "replace_head=True (--config.replace_head=True)."
    )
  what = "a head of another form" if head.others else "no head"
  log.warning("%s has %s: the model's stays as initialized", source, what)
  table = dataclasses.replace(matched.table, idle=(*matched.table.idle, *head.others))
  return dataclasses.replace(matched, table=table, fresh=(*matched.fresh, "head"))


def _videomae(model: nnx.Module, state_dict: StateDict, source: str, replace_head: bool) -> Match:
  if not isinstance(model, models.VideoMAE | models.VideoMAEForPreTraining):
    raise PortingError(f"{source} holds VideoMAE's weights, and the model is another.")
  names = videomae_names.names_of(state_dict)
  head = head_keys.find(state_dict, names.classifier)
  if head.name is not None:
    names = names._replace(classifier=head.name)
  depth = len(model.attention.blocks)
  if isinstance(model, models.VideoMAEForPreTraining):
    kind, decoder_depth, pool = "pretraining", len(model.decoder.blocks), videomae.MEAN
  else:
    kind = videomae_names.kind_of(state_dict, names)
    decoder_depth, pool = videomae_names.decoder_depth(state_dict, names), model.pool
  table = videomae_names.table(kind, names, depth=depth, decoder_depth=decoder_depth, pool=pool)
  _check_idle(table, names, state_dict, source)
  if isinstance(model, models.VideoMAEForPreTraining):
    return Match(table)
  if kind == "classifier":
    return _with_head(Match(table), head, source, replace_head)
  return Match(table, fresh=("head",), optional=videomae_names.PRETRAINING_ONLY)


def _check_idle(
  table: Table, names: videomae_names.Names, state_dict: StateDict, source: str
) -> None:
  """Sees that what is left out of a VideoMAE changes nothing: biases of keys, fixed positions."""
  positions = state_dict.get(names.positions)
  if positions is not None:
    fixed = videomae.sinusoid_positions(*positions.shape[-2:])
    if not np.allclose(positions.reshape(fixed.shape), fixed, atol=1e-2):
      raise PortingError(
        f"{source}: its positions, {names.positions}, are learned, and this VideoMAE's are fixed."
      )
  biases = [key for key in table.idle if key in state_dict and key != names.positions]
  if any(state_dict[key].any() for key in biases):
    log.info(
      "%s has %d biases of attention keys: they change no output and are left out",
      *(source, len(biases)),
    )


def _perceiver(model: nnx.Module, state_dict: StateDict, source: str) -> Match:
  if not isinstance(model, models.Hybrid):
    raise PortingError(f"{source} holds a Perceiver's weights, and the model is no hybrid.")
  stack = model.attention
  table = perceiver_names.table(
    state_dict,
    cross_blocks=stack.groups,
    self_per_group=stack.self_per_group,
    tied=stack.group_sets < stack.groups,
  )
  return Match(table, fresh=("cnn",))


def _own(
  model: nnx.Module,
  params: Tree,
  batch_stats: Tree,
  state_dict: StateDict,
  replace_head: bool,
  source: str,
) -> Match:
  """Of weights under our own names: all, an encoder, or the trunk that both models have."""
  targets = list(leaves(params, batch_stats))
  parts = {key.split(".")[0] for key in state_dict}
  if "cnn" not in params and "cnn" not in parts:
    if "decoder" not in parts or "decoder" in params:
      return Match(own_names.table(targets))
    optional = videomae_names.PRETRAINING_ONLY
    return Match(_own_table(targets, state_dict, optional), ("head",), optional)

  architecture = _check_own_trunk(model, state_dict, source)
  # A trunk that is cut takes of a longer one what it has.
  targets += [row.target for row in _trunk_rows(architecture) if row.target not in targets]
  theirs = {key: array.shape for key, array in state_dict.items() if key.startswith("attention.")}
  if theirs == _attention_shapes(params):
    if "decoder" in parts and "decoder" not in params:
      optional = (("cnn",), ("decoder",))
      return Match(_own_table(targets, state_dict, (("decoder",),)), ("head",), optional)
    return Match(own_names.table(targets), optional=(("cnn",),))
  if theirs and not replace_head:
    table = dataclasses.replace(own_names.table(targets), advice=_TRUNK_ADVICE)
    return Match(table, optional=(("cnn",),))
  if theirs:
    log.warning("%s has another attention than the model: only its trunk is taken", source)
  optional = (("attention",), ("head",), ("decoder",))
  table = _own_table(targets, state_dict, optional)
  return Match(table, ("attention", "head"), (("cnn",), *optional))


def _own_table(targets: list[Target], state_dict: StateDict, optional: tuple[Path, ...]) -> Table:
  """The names of a model's arrays, and of what else the weights have under the optional paths."""
  known = {path for _, path in targets}
  paths = [tuple(key.split(".")) for key in state_dict]
  others = [
    ("params", path)
    for path in paths
    if path not in known and any(path[: len(start)] == start for start in optional)
  ]
  return own_names.table([*targets, *others])


def _attention_shapes(params: Tree) -> dict[str, tuple[int, ...]]:
  return {
    own_names.key_of(path): tuple(leaf.shape)
    for (_, path), leaf in leaves(params, {}).items()
    if path[0] == "attention"
  }


def _check_own_trunk(model: nnx.Module, state_dict: StateDict, source: str) -> str:
  """The architecture of the trunk that the weights and the model both have."""
  keys = {key for key in state_dict if key.startswith("cnn.")}
  if not keys:
    raise PortingError(f"{source} has no video ResNet in it, and the model has.")
  kernel = state_dict.get("cnn.layer2.0.conv1.kernel")
  taps = kernel.shape[0] if kernel is not None and kernel.ndim == 5 else None
  ours = getattr(getattr(model, "cnn", None), "architecture", None)
  theirs = _architecture(keys, lambda row: own_names.key_of(row.path), ours, taps)
  _check_architecture(model, theirs, source)
  return theirs
