"""VideoMAE's published names: from a checkpoint's flat keys to our parameter paths.

In: a state dict of arrays, named as in the original code (github.com/MCG-NJU/VideoMAE, inside the
file's 'model' or 'module') or as in Hugging Face transformers. Out: arrays by the path that they
have in the nested dict of our parameters, transposed to our layout.
"""

from collections.abc import Iterable, Mapping
import re
from typing import NamedTuple

import numpy as np

Path = tuple[str, ...]

KINDS = ("classifier", "pretraining")
SHOWN_KEYS = 8
TRUNK = ("attention",)

# Our path within a block, the original's name, Hugging Face's. Their query, key and value are
# separate matrices; the original's one matrix has them one below the other.
BLOCK: tuple[tuple[Path, str, tuple[str, ...]], ...] = (
  (("norm1", "scale"), "norm1.weight", ("layernorm_before.weight",)),
  (("norm1", "bias"), "norm1.bias", ("layernorm_before.bias",)),
  (
    ("attn", "qkv", "kernel"),
    "attn.qkv.weight",
    tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value")),
  ),
  (("attn", "q_bias"), "attn.q_bias", ("attention.attention.q_bias",)),
  (("attn", "v_bias"), "attn.v_bias", ("attention.attention.v_bias",)),
  (("attn", "proj", "kernel"), "attn.proj.weight", ("attention.output.dense.weight",)),
  (("attn", "proj", "bias"), "attn.proj.bias", ("attention.output.dense.bias",)),
  (("norm2", "scale"), "norm2.weight", ("layernorm_after.weight",)),
  (("norm2", "bias"), "norm2.bias", ("layernorm_after.bias",)),
  (("mlp", "fc1", "kernel"), "mlp.fc1.weight", ("intermediate.dense.weight",)),
  (("mlp", "fc1", "bias"), "mlp.fc1.bias", ("intermediate.dense.bias",)),
  (("mlp", "fc2", "kernel"), "mlp.fc2.weight", ("output.dense.weight",)),
  (("mlp", "fc2", "bias"), "mlp.fc2.bias", ("output.dense.bias",)),
)


class Names(NamedTuple):
  """One source's names outside the blocks, and where its blocks stand.

  `{trunk}` is empty in the original's classifier and a prefix elsewhere.
  """

  patch_embed: str
  encoder_block: str
  encoder_norm: str
  decoder_block: str
  classifier: str
  is_original: bool


ORIGINAL = Names(
  patch_embed="{trunk}patch_embed.proj",
  encoder_block="{trunk}blocks.",
  encoder_norm="encoder.norm",
  decoder_block="decoder.blocks.",
  classifier="head",
  is_original=True,
)
HUGGING_FACE = Names(
  patch_embed="videomae.embeddings.patch_embeddings.projection",
  encoder_block="videomae.encoder.layer.",
  encoder_norm="videomae.layernorm",
  decoder_block="decoder.decoder_layers.",
  classifier="classifier",
  is_original=False,
)


class Converted(NamedTuple):
  """What a checkpoint gave.

  Attributes:
    arrays: float32 parameters by our path.
    dropped: keys of the checkpoint that a classifier has no use for.
    fresh: our paths that the checkpoint does not hold and that keep their initial values.
  """

  arrays: dict[Path, np.ndarray]
  dropped: tuple[str, ...]
  fresh: tuple[Path, ...]


def _affine(path: Path, name: str, weight: str) -> dict[Path, tuple[str, ...]]:
  return {(*path, weight): (f"{name}.weight",), (*path, "bias"): (f"{name}.bias",)}


def _block_table(path: Path, prefix: str, names: Names, depth: int) -> dict[Path, tuple[str, ...]]:
  return {
    (*path, "blocks", str(i), *ours): tuple(
      f"{prefix}{i}.{name}" for name in ((original,) if names.is_original else hugging_face)
    )
    for i in range(depth)
    for ours, original, hugging_face in BLOCK
  }


def _depth(keys: Iterable[str], prefix: str) -> int:
  """Blocks in the checkpoint: one more than the highest number after `prefix`."""
  found = [re.match(re.escape(prefix) + r"(\d+)\.", key) for key in keys]
  return max((int(match[1]) + 1 for match in found if match), default=1)


def _list(keys: Iterable[str]) -> str:
  listed = sorted(keys)
  more = f" and {len(listed) - SHOWN_KEYS} more" if len(listed) > SHOWN_KEYS else ""
  return ", ".join(listed[:SHOWN_KEYS]) + more


def _array(path: Path, arrays: list[np.ndarray]) -> np.ndarray:
  """Joins and transposes to our layout: kernels `[in, out]`, the mask token `[D]`."""
  x = np.concatenate(arrays).astype(np.float32)
  if path[-1] == "kernel":
    # A patch convolution [out, in, t, h, w] reads a patch in the order (t, h, w, in).
    x = x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0]) if x.ndim == 5 else x.T
  return np.ascontiguousarray(x.reshape(-1) if path[-1] == "mask_token" else x)


def _rank(path: Path) -> int:
  if path[-1] == "mask_token":
    return 3
  if path[-1] == "kernel":
    return 5 if "patch_embed" in path else 2
  return 1


def _convert(
  state_dict: Mapping[str, np.ndarray], model_kind: str, pretrained_encoder: bool, names: Names
) -> Converted:
  if model_kind not in KINDS:
    raise ValueError(f"model_kind={model_kind!r} is none of {', '.join(KINDS)}.")
  classifier = model_kind == "classifier"
  if pretrained_encoder and not classifier:
    raise ValueError("pretrained_encoder=True is for model_kind='classifier' only.")
  from_pretraining = pretrained_encoder or not classifier
  trunk = "encoder." if from_pretraining else ""
  block = names.encoder_block.format(trunk=trunk)
  table = {
    **_affine((*TRUNK, "patch_embed"), names.patch_embed.format(trunk=trunk), "kernel"),
    **_block_table(TRUNK, block, names, _depth(state_dict, block)),
  }
  head = {
    **_affine(("head", "norm"), "fc_norm", "scale"),
    **_affine(("head", "linear"), names.classifier, "kernel"),
  }
  pretraining_only = {
    **_affine((*TRUNK, "norm"), names.encoder_norm, "scale"),
    ("decoder", "embed", "kernel"): ("encoder_to_decoder.weight",),
    ("decoder", "mask_token"): ("mask_token",),
    **_block_table(
      ("decoder",), names.decoder_block, names, _depth(state_dict, names.decoder_block)
    ),
    **_affine(("decoder", "norm"), "decoder.norm", "scale"),
    **_affine(("decoder", "head"), "decoder.head", "kernel"),
  }
  if not pretrained_encoder:
    table.update(head if classifier else pretraining_only)

  expected = {key for keys in table.values() for key in keys}
  droppable = {key for keys in pretraining_only.values() for key in keys}
  dropped = sorted(droppable & set(state_dict)) if pretrained_encoder else []
  unknown = set(state_dict) - expected - set(dropped)
  missing = expected - set(state_dict)
  misshapen = {
    f"{key} {list(state_dict[key].shape)} in place of {_rank(path)} axes"
    for path, keys in table.items()
    for key in keys
    if key in state_dict and state_dict[key].ndim != _rank(path)
  }
  problems = [
    f"{len(keys)} {what}: {_list(keys)}."
    for what, keys in (("unknown", unknown), ("missing", missing), ("of another shape", misshapen))
    if keys
  ]
  if problems:
    hint = ""
    if classifier and not pretrained_encoder and unknown & droppable:
      hint = " These are a pretraining file's keys: pass pretrained_encoder=True for its encoder."
    elif from_pretraining and "fc_norm.weight" in unknown:
      hint = " These are a fine-tuned classifier's keys: convert them as one."
    source = "the original code" if names.is_original else "Hugging Face"
    raise ValueError(
      f"The keys are not those of a VideoMAE {model_kind} as {source} names it. "
      + " ".join(problems)
      + hint
    )
  return Converted(
    arrays={
      path: _array(path, [np.asarray(state_dict[key]) for key in keys])
      for path, keys in table.items()
    },
    dropped=tuple(dropped),
    fresh=tuple(head) if pretrained_encoder else (),
  )


def from_original(
  state_dict: Mapping[str, np.ndarray], model_kind: str, *, pretrained_encoder: bool = False
) -> Converted:
  """Converts a state dict named as in the original code.

  The number of blocks is taken from the keys: compare the result with the model's own paths and
  shapes before using it.

  Args:
    state_dict: arrays by key.
    model_kind: "classifier" (`VideoMAE`) or "pretraining" (`VideoMAEForPreTraining`).
    pretrained_encoder: whether a classifier starts from the encoder of a pretraining checkpoint.
      Its final norm and its decoder are then dropped, and the head keeps its initial values.

  Raises:
    ValueError: unknown or missing keys or arrays of another rank, all named at once; an unknown
      kind; `pretrained_encoder` for another kind than the classifier.
  """
  return _convert(state_dict, model_kind, pretrained_encoder, ORIGINAL)


def from_hugging_face(
  state_dict: Mapping[str, np.ndarray], model_kind: str, *, pretrained_encoder: bool = False
) -> Converted:
  """Converts a state dict named as in Hugging Face transformers; see `from_original`.

  A classifier is one with `use_mean_pooling=True`, a pretraining model one with False. Their norms
  differ in epsilon: `config.layer_norm_eps` (1e-12 by default) in the blocks and 1e-5 in the head
  and at the decoder's end, which our models take as options.
  """
  return _convert(state_dict, model_kind, pretrained_encoder, HUGGING_FACE)
