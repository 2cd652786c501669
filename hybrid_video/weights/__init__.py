"""Pretrained weights: a published checkpoint in, a model of ours that computes the same out.

`sources` finds the file (a known name, a URL, a path), `torch_files` reads it without PyTorch,
`porting` puts every array in its place or says all that does not fit, and the `*_names` files hold
the references' names. `save_torchvision` is the way back.
"""

from collections.abc import Mapping
import dataclasses
import logging
import os
import pathlib

from flax import nnx
import numpy as np

from hybrid_video import models
from hybrid_video.models import video_resnet
from hybrid_video.weights import (
  perceiver_names,
  porting,
  torch_files,
  video_resnet_names,
  videomae_names,
)
from hybrid_video.weights.porting import Ported, PortingError

__all__ = ["Ported", "PortingError", "load_pretrained", "save_torchvision"]

log = logging.getLogger("hybrid_video")

# The classifier's kernel in the models whose head has a norm before it.
_HEAD = ("params", ("head", "linear", "kernel"))


def _architecture(state_dict: Mapping[str, np.ndarray]) -> str:
  """The video ResNet that a state dict most likely is: the one whose keys and ranks fit best."""

  def misfits(name: str) -> int:
    keys = video_resnet_names.places(name).keys()
    return len(keys ^ state_dict.keys())

  fewest = min(misfits(name) for name in video_resnet.ARCHITECTURES)
  near = [name for name in video_resnet.ARCHITECTURES if misfits(name) == fewest]
  # R3D and MC3 share their keys and differ in the kernels' extent in time.
  kernel = state_dict.get("layer2.0.conv1.0.weight")
  if "mc3_18" in near and kernel is not None:
    return "mc3_18" if kernel.ndim == 5 and kernel.shape[2] == 1 else "r3d_18"
  return near[0]


def _replaced_head(
  theirs: tuple[int, ...] | None, ours: tuple[int, ...], replace_head: bool
) -> tuple[str, ...]:
  """The parts to keep fresh: the head, where the file's does not fit and that was asked for."""
  return ("head",) if replace_head and theirs not in (None, ours) else ()


def _port_video_resnet(
  model: nnx.Module,
  params: porting.Tree,
  batch_stats: porting.Tree,
  state_dict: Mapping[str, np.ndarray],
  *,
  replace_head: bool,
  source: str,
) -> Ported:
  cnn = getattr(model, "cnn", None)
  found = _architecture(state_dict)
  if cnn is None or cnn.architecture != found:
    ours = "has no video ResNet in it" if cnn is None else f"is built on {cnn.architecture}"
    raise PortingError(
      f"{source} looks like the weights of {found}, and the model {ours}. Take the model or the "
      "file to match."
    )
  places = video_resnet_names.places(found)
  if not isinstance(model, video_resnet.VideoResNet):
    return porting.port(
      state_dict, places, params, batch_stats, keep=("attention", "head"), source=source
    )
  head = state_dict.get("fc.weight")
  theirs = None if head is None else head.shape[::-1]
  ours = params["head"]["kernel"].shape
  if theirs not in (None, ours) and not replace_head:
    raise PortingError(
      f"{source}: its head reads {theirs[0]} channels for {theirs[1]} classes, the model's "
      f"{ours[0]} for {ours[1]}. To start a new head ask for it: replace_head=True "
      "(--config.replace_head=True)."
    )
  keep = _replaced_head(theirs, ours, replace_head)
  return porting.port(state_dict, places, params, batch_stats, keep=keep, source=source)


def _port_videomae(
  model: nnx.Module,
  params: porting.Tree,
  batch_stats: porting.Tree,
  state_dict: Mapping[str, np.ndarray],
  *,
  replace_head: bool,
  source: str,
) -> Ported:
  kind = "pretraining" if isinstance(model, models.VideoMAEForPreTraining) else "classifier"
  if not isinstance(model, models.VideoMAE | models.VideoMAEForPreTraining):
    raise PortingError(f"{source} holds VideoMAE's weights, and the model is another.")
  from_file = (
    videomae_names.from_hugging_face
    if any(key.startswith("videomae.") for key in state_dict)
    else videomae_names.from_original
  )
  # A pretraining file has a decoder; one that was cut down to its encoder has no classifier.
  pretrained = not any(key.startswith(("head.", "classifier.")) for key in state_dict)
  try:
    converted = from_file(state_dict, kind, pretrained_encoder=pretrained and kind == "classifier")
  except ValueError as error:
    raise PortingError(f"{source}: {error}") from error
  arrays = {("params", path): array for path, array in converted.arrays.items()}
  keep: tuple[str, ...] = ()
  if kind == "classifier":
    ours = params["head"]["linear"]["kernel"].shape
    keep = ("head",) if pretrained else _replaced_head(arrays[_HEAD].shape, ours, replace_head)
  ported = porting.place(arrays, params, batch_stats, keep=keep, source=source)
  return dataclasses.replace(ported, unused=(*ported.unused, *converted.dropped))


def _port_perceiver(
  model: nnx.Module,
  params: porting.Tree,
  batch_stats: porting.Tree,
  state_dict: Mapping[str, np.ndarray],
  *,
  replace_head: bool,
  source: str,
) -> Ported:
  if not isinstance(model, models.Hybrid):
    raise PortingError(f"{source} holds a Perceiver's weights, and the model is no hybrid.")
  stack = model.attention
  try:
    by_path = perceiver_names.to_paths(
      state_dict,
      cross_blocks=stack.groups,
      self_per_group=stack.self_per_group,
      tied=stack.group_sets < stack.groups,
    )
  except ValueError as error:
    raise PortingError(f"{source}: {error}") from error
  arrays = {("params", path): array for path, array in by_path.items()}
  ours = params["head"]["linear"]["kernel"].shape
  keep = ("cnn", *_replaced_head(arrays[_HEAD].shape, ours, replace_head))
  return porting.place(arrays, params, batch_stats, keep=keep, source=source)


def load_pretrained(
  model: nnx.Module, path: os.PathLike | str, *, replace_head: bool = False
) -> Ported:
  """Loads a published checkpoint into a model, in place.

  Takes torchvision's video ResNets and IG-65M's R(2+1)D-34 (into the classifier of that name, or
  into the trunk of a hybrid or a BERT model, whose other parts stay as they are), VideoMAE's
  checkpoints in their original and in Hugging Face's form, and a perceiver-pytorch `Perceiver`
  (into a hybrid's attention and head).

  Args:
    model: from `hybrid_video.models.create`.
    path: a PyTorch file (old or new format) or a safetensors file; nothing in it is executed.
    replace_head: whether a head of another number of classes may stay as initialised.

  Returns:
    What was loaded, what of the file is unused, and which parts stay fresh.

  Raises:
    PortingError: the file does not fit; nothing was loaded.
    torch_files.TorchFileError: the file cannot be read, or asks for more than tensors.
  """
  source = os.fspath(path)
  state_dict = torch_files.read(path)
  _, params, batch_stats = models.split(model)
  if any("patch_embed" in key for key in state_dict):
    port = _port_videomae
  elif any(key.startswith(("stem.", "layer1.")) for key in state_dict):
    port = _port_video_resnet
  elif "latents" in state_dict:
    port = _port_perceiver
  else:
    some = ", ".join(list(state_dict)[:5])
    raise PortingError(
      f"{source} holds the weights of no network that is known here; its first keys: {some}."
    )
  ported = port(model, params, batch_stats, state_dict, replace_head=replace_head, source=source)
  nnx.update(model, ported.params)
  nnx.update(model, ported.batch_stats)
  log.info(
    "Loaded %d arrays from %s; %d of its keys unused; initial values kept: %s",
    ported.loaded,
    source,
    len(ported.unused),
    ", ".join(ported.fresh) or "none",
  )
  return ported


def save_torchvision(model: nnx.Module, path: os.PathLike | str) -> pathlib.Path:
  """Writes a video ResNet as a safetensors file under torchvision's names, whole or not at all.

  PyTorch loads it: `model.load_state_dict(safetensors.torch.load_file(path))`.

  Raises:
    PortingError: the model is no whole video ResNet.
  """
  if not isinstance(model, video_resnet.VideoResNet):
    raise PortingError(
      f"torchvision has no names for a {type(model).__name__}; only the video ResNets can be "
      "written."
    )
  # Here, because reading needs no such package.
  import safetensors.numpy

  _, params, batch_stats = models.split(model)
  places = video_resnet_names.places(model.cnn.architecture)
  path = pathlib.Path(path)
  part = path.with_name(path.name + ".part")
  safetensors.numpy.save_file(porting.unport(params, batch_stats, places), part)
  part.replace(path)
  return path
