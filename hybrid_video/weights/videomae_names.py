"""VideoMAE's published names and ours: the original code's, and Hugging Face's.

In: the keys of a file, and the depth of a model. Out: the table of the original code
(github.com/MCG-NJU/VideoMAE, inside the file's 'model' or 'module') or of Hugging Face transformers.
"""

from collections.abc import Iterable
import re
from typing import NamedTuple

from hybrid_video.models.videomae import PATCH, TUBE
from hybrid_video.weights import porting
from hybrid_video.weights.porting import LINEAR, TOKEN, Path, Row, Table

KINDS = ("classifier", "pretraining")
# What a pretraining file has beyond the encoder's blocks.
PRETRAINING_ONLY: tuple[Path, ...] = (("attention", "norm"), ("decoder",))

_PATCH_EMBEDDING = porting.patch_embedding((TUBE, PATCH, PATCH))
_OF_PRETRAINING = "These are a pretraining file's keys, and the file has a classifier besides."
_OF_CLASSIFIER = "These are a fine-tuned classifier's keys: load the file into a classifier."


class Names(NamedTuple):
  """One source's names. `{trunk}` is empty in the original's classifier and a prefix elsewhere.

  Query, key and value are one matrix in the original and separate ones in Hugging Face's.
  """

  title: str
  patch_embed: str
  encoder_block: str
  encoder_norm: str
  decoder_block: str
  classifier: str
  norms: tuple[str, str]
  qkv: tuple[str, ...]
  qkv_biases: str
  proj: str
  mlp: tuple[str, str]


ORIGINAL = Names(
  title="the original code",
  patch_embed="{trunk}patch_embed.proj",
  encoder_block="{trunk}blocks.",
  encoder_norm="encoder.norm",
  decoder_block="decoder.blocks.",
  classifier="head",
  norms=("norm1", "norm2"),
  qkv=("attn.qkv",),
  qkv_biases="attn.",
  proj="attn.proj",
  mlp=("mlp.fc1", "mlp.fc2"),
)
HUGGING_FACE = Names(
  title="Hugging Face",
  patch_embed="videomae.embeddings.patch_embeddings.projection",
  encoder_block="videomae.encoder.layer.",
  encoder_norm="videomae.layernorm",
  decoder_block="decoder.decoder_layers.",
  classifier="classifier",
  norms=("layernorm_before", "layernorm_after"),
  qkv=tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
  qkv_biases="attention.attention.",
  proj="attention.output.dense",
  mlp=("intermediate.dense", "output.dense"),
)


def names_of(keys: Iterable[str]) -> Names:
  """The source that a file's keys are named by."""
  return HUGGING_FACE if any(key.startswith("videomae.") for key in keys) else ORIGINAL


def kind_of(keys: Iterable[str]) -> str:
  """What a file holds: "pretraining" where it has no classifier, its decoder there or cut away."""
  has_classifier = any(key.startswith(("head.", "classifier.")) for key in keys)
  return "classifier" if has_classifier else "pretraining"


def _block(path: Path, key: str, names: Names) -> list[Row]:
  rows = []
  for n in (0, 1):
    rows += porting.norm((*path, f"norm{n + 1}"), f"{key}.{names.norms[n]}")
    rows += porting.linear((*path, "mlp", f"fc{n + 1}"), f"{key}.{names.mlp[n]}")
  qkv = tuple(f"{key}.{name}.weight" for name in names.qkv)
  rows.append(Row((*path, "attn", "qkv", "kernel"), qkv, LINEAR))
  for bias in ("q_bias", "v_bias"):
    rows.append(Row((*path, "attn", bias), (f"{key}.{names.qkv_biases}{bias}",)))
  return [*rows, *porting.linear((*path, "attn", "proj"), f"{key}.{names.proj}")]


def _blocks(path: Path, prefix: str, names: Names, depth: int) -> list[Row]:
  return [
    row for i in range(depth) for row in _block((*path, "blocks", str(i)), f"{prefix}{i}", names)
  ]


def decoder_depth(keys: Iterable[str], names: Names) -> int:
  """Blocks of a file's decoder: one more than the highest number among its keys, or 0."""
  numbered = re.compile(re.escape(names.decoder_block) + r"(\d+)\.")
  matches = [numbered.match(key) for key in keys]
  return max((int(match[1]) + 1 for match in matches if match), default=0)


def table(kind: str, names: Names, *, depth: int, decoder_depth: int = 0) -> Table:
  """The names of a whole network.

  Hugging Face's classifier is one with `use_mean_pooling=True`, its pretraining model one with
  False. Their norms differ in epsilon: `config.layer_norm_eps` (1e-12 by default) in the blocks and
  1e-5 in the head and at the decoder's end, which our models take as options.

  Args:
    kind: "classifier" (`VideoMAE`) or "pretraining" (`VideoMAEForPreTraining`).
    names: whose.
    depth: blocks of the encoder.
    decoder_depth: blocks of the decoder, which a classifier has not.

  Raises:
    ValueError: an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f"kind={kind!r} is none of {', '.join(KINDS)}.")
  trunk = "encoder." if kind == "pretraining" else ""
  rows = porting.linear(
    ("attention", "patch_embed"), names.patch_embed.format(trunk=trunk), layout=_PATCH_EMBEDDING
  )
  rows += _blocks(("attention",), names.encoder_block.format(trunk=trunk), names, depth)
  if kind == "classifier":
    rows += porting.norm(("head", "norm"), "fc_norm")
    rows += porting.linear(("head", "linear"), names.classifier)
    hints = {"encoder_to_decoder.weight": _OF_PRETRAINING, "mask_token": _OF_PRETRAINING}
  else:
    rows += porting.norm(("attention", "norm"), names.encoder_norm)
    rows += porting.linear(("decoder", "embed"), "encoder_to_decoder", bias=False)
    rows.append(Row(("decoder", "mask_token"), ("mask_token",), TOKEN))
    rows += _blocks(("decoder",), names.decoder_block, names, decoder_depth)
    rows += porting.norm(("decoder", "norm"), "decoder.norm")
    rows += porting.linear(("decoder", "head"), "decoder.head")
    hints = {"fc_norm.weight": _OF_CLASSIFIER}
  return Table(f"a VideoMAE {kind} as {names.title} names it", tuple(rows), hints=hints)
