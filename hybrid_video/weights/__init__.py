"""Weights: a published checkpoint or one of ours in, a model that computes the same out; and back.

`sources` finds the file (a known name, a URL, a path), `reading` reads it and takes off what stands
before a network's keys, `matching` recognizes the network, the `*_names` files hold the names as
tables, and `porting` puts every array in its place by such a table, or says all that does not fit.
`heads` decides whether a classifier is for the same classes.
"""

from collections.abc import Mapping
import dataclasses
import logging
import os

from etils import epath
from flax import nnx
import numpy as np

from hybrid_video import errors, models
from hybrid_video.models import video_resnet
from hybrid_video.models.bert_pooling import BertPooling
from hybrid_video.models.layers import resampled
from hybrid_video.weights import (
  heads,
  matching,
  own_names,
  porting,
  reading,
  safetensors_files,
  video_resnet_names,
)
from hybrid_video.weights.heads import Classes
from hybrid_video.weights.porting import Ported
from hybrid_video.weights.reading import read_metadata
from hybrid_video.weights.weights_errors import PortingError, WeightsFileError

__all__ = [
  "Classes",
  "Ported",
  "PortingError",
  "WeightsFileError",
  "load_pretrained",
  "load_trees",
  "read_metadata",
  "save",
]

log = logging.getLogger("hybrid_video")

# BERT pooling's, of the CLS token and of each moment, under our own names.
_POSITIONS = "attention.positions"


def load_pretrained(
  model: nnx.Module,
  path: os.PathLike | str,
  *,
  replace_head: bool = False,
  classes: Classes | None = None,
) -> Ported:
  """Loads a file of weights into a model, in place.

  Takes torchvision's video ResNets, IG-65M's R(2+1)D-34 and 3D-ResNets-PyTorch's R(2+1)D-18 (into
  the classifier of that name, or into the trunk of a hybrid or a BERT model, whose other parts stay
  as they are), VideoMAE's checkpoints as the original code, Hugging Face and mmaction2 name them, a
  perceiver-pytorch `Perceiver` (into a hybrid's attention and head), and what `save` wrote (see
  `load_trees` for the parts it fills).

  Args:
    model: from `hybrid_video.models.create`.
    path: a PyTorch file (old or new format) or a safetensors file, as a training saved it or bare,
      the index of several, or a folder of Hugging Face's; nothing in it is executed.
    replace_head: whether a head of other classes may stay as initialized.
    classes: the class names of model and file, by which the head is kept, put into the model's order
      or left fresh; None goes by their number alone.

  Returns:
    What was loaded, what of the file is unused, and which parts stay fresh.

  Raises:
    PortingError: the file does not fit; nothing was loaded.
    WeightsFileError: the file cannot be read, or holds other things among its weights.
  """
  contents, source = reading.contents(path), errors.printable(path)
  return _load(model, contents, source=source, replace_head=replace_head, classes=classes)


def load_trees(
  model: nnx.Module,
  params: models.Tree,
  batch_stats: models.Tree,
  *,
  source: str,
  replace_head: bool = False,
  classes: Classes | None = None,
) -> Ported:
  """Loads the parameters of a model of ours into another, in place.

  All of them where the models are the same. Of a pretraining model, a classifier takes the encoder.
  Models that share only the trunk, a video ResNet of one architecture, share that: `attention` and
  `head` stay fresh. So they do where both models have an attention, but not the same, if
  `replace_head`. A trunk that is cut takes of a longer one what it has.

  Args:
    model: from `hybrid_video.models.create`.
    params, batch_stats: nested dicts of arrays, as `models.split` gives them.
    source: what to call the weights in an error.
    replace_head: whether a head of other classes, or another attention with its head, may stay as
      initialized.
    classes: as of `load_pretrained`.

  Returns:
    What was loaded, what is unused, and which parts stay fresh.

  Raises:
    PortingError: the arrays do not fit; nothing was loaded.
  """
  contents = reading.Contents(own_names.state_dict(params, batch_stats), ())
  return _load(model, contents, source=source, replace_head=replace_head, classes=classes)


def _at_length_of(
  model: nnx.Module, arrays: dict[str, np.ndarray], source: str
) -> dict[str, np.ndarray]:
  """BERT pooling's positions, learned on clips of another length, at the length of the model's clips."""
  pooling = getattr(model, "attention", None)
  learned = arrays.get(_POSITIONS)
  if not isinstance(pooling, BertPooling) or learned is None or learned.ndim != 2:
    return arrays
  theirs, ours = len(learned) - 1, pooling.max_tokens
  if theirs == ours or theirs < 1:
    return arrays
  log.info("%s: positions of %d moments are interpolated to %d", source, theirs, ours)
  between = np.asarray(resampled(learned[1:], ours))
  return {**arrays, _POSITIONS: np.concatenate([learned[:1], between])}


def _load(
  model: nnx.Module,
  contents: reading.Contents,
  *,
  source: str,
  replace_head: bool,
  classes: Classes | None,
) -> Ported:
  state_dict: Mapping[str, np.ndarray] = _at_length_of(model, contents.arrays, source)
  _, params, batch_stats = models.split(model)
  match = matching.match(
    model, params, batch_stats, state_dict, replace_head=replace_head, source=source
  )
  match, state_dict = heads.fit(
    match, params, state_dict, classes, replace_head=replace_head, source=source
  )
  ported = porting.port(
    state_dict,
    match.table,
    params,
    batch_stats,
    fresh=match.fresh,
    optional=match.optional,
    source=source,
  )
  ported = dataclasses.replace(ported, unused=(*ported.unused, *contents.outside))
  nnx.update(model, ported.params)
  nnx.update(model, ported.batch_stats)
  log.info(
    "Loaded %d arrays from %s; %d of its keys unused; parts with initial values: %s",
    ported.loaded,
    source,
    len(ported.unused),
    ", ".join(ported.fresh) or "none",
  )
  return ported


def save(
  model: nnx.Module, path: os.PathLike | str, metadata: Mapping[str, str] | None = None
) -> epath.Path:
  """Writes a model as a safetensors file, whole or not at all; float32.

  A whole video ResNet has torchvision's names, and PyTorch loads it:
  `model.load_state_dict(safetensors.torch.load_file(path))`. Every other model has our own, see
  docs/models.md. `load_pretrained` takes both.

  Args:
    model: any of `hybrid_video.models`, on this host.
    path: on a local disk or any file system that `etils.epath` knows.
    metadata: texts for the file's header, by key; `read_metadata` gives them back.

  Raises:
    WeightsFileError: the file cannot be written.
  """
  _, params, batch_stats = models.split(model)
  if isinstance(model, models.VideoResNet) and _is_whole(model.cnn):
    table = video_resnet_names.table(model.cnn.architecture)
  else:
    table = own_names.table(porting.leaves(params, batch_stats))
  arrays = porting.unport(params, batch_stats, table)
  return safetensors_files.write(path, arrays, metadata or {})


def _is_whole(trunk: video_resnet.Trunk) -> bool:
  return len(trunk.blocks()) == video_resnet.ARCHITECTURES[trunk.architecture].depth
