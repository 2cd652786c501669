"""VideoMAE's published names and ours: the original code's, Hugging Face's and mmaction2's.

In: the keys of a file, and the depth of a model. Out: the table of the original code
(github.com/MCG-NJU/VideoMAE, inside the file's 'model' or 'module'), of Hugging Face transformers or of
mmaction2 (github.com/open-mmlab/mmaction2).
"""

from collections.abc import Collection, Iterable
import re
from typing import NamedTuple

from hybrid_video.models.videomae import FIRST, MEAN, PATCH
from hybrid_video.weights import porting
from hybrid_video.weights.porting import LINEAR, TOKEN, Path, Row, Table

KINDS = ("classifier", "pretraining")
# What a pretraining file has beyond the encoder's blocks.
PRETRAINING_ONLY: tuple[Path, ...] = (("attention", "norm"), ("decoder",))

_PATCH_EMBEDDING = porting.patch_embedding(PATCH)
_OF_PRETRAINING = "These are a pretraining file's keys, and the file has a classifier besides."
_OF_CLASSIFIER = "These are a fine-tuned classifier's keys: load the file into a classifier."
_OF_POOL = (
  "The file's classifier reads {theirs}, and the model's {ours}: build the model with pool={pool!r} "
  "(--config.model.pool={pool})."
)


class Names(NamedTuple):
  """One source's names. `{trunk}` is empty in the original's classifier and a prefix elsewhere.

  Query, key and value are one matrix in the original and separate ones in Hugging Face's.

  Attributes:
    encoder_norm: of all tokens, in pretraining.
    token_norm: the same in a classifier that reads the first token.
    head_norm: of the mean token, in a classifier that reads that.
    biases: of queries and of values.
    key_bias: of keys, where a source may have one: it changes no output.
    positions: the fixed positions, where the source saves them.
  """

  title: str
  patch_embed: str
  encoder_block: str
  encoder_norm: str
  token_norm: str
  decoder_block: str
  head_norm: str
  classifier: str
  norms: tuple[str, str]
  qkv: tuple[str, ...]
  biases: tuple[str, str]
  proj: str
  mlp: tuple[str, str]
  key_bias: str = ""
  positions: str = ""


ORIGINAL = Names(
  title="the original code",
  patch_embed="{trunk}patch_embed.proj",
  encoder_block="{trunk}blocks.",
  encoder_norm="encoder.norm",
  token_norm="norm",
  decoder_block="decoder.blocks.",
  head_norm="fc_norm",
  classifier="head",
  norms=("norm1", "norm2"),
  qkv=("attn.qkv",),
  biases=("attn.q_bias", "attn.v_bias"),
  proj="attn.proj",
  mlp=("mlp.fc1", "mlp.fc2"),
)
_HUGGING_FACE_QKV = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
HUGGING_FACE = Names(
  title="Hugging Face",
  patch_embed="videomae.embeddings.patch_embeddings.projection",
  encoder_block="videomae.encoder.layer.",
  encoder_norm="videomae.layernorm",
  token_norm="videomae.layernorm",
  decoder_block="decoder.decoder_layers.",
  head_norm="fc_norm",
  classifier="classifier",
  norms=("layernorm_before", "layernorm_after"),
  qkv=_HUGGING_FACE_QKV,
  biases=("attention.attention.q_bias", "attention.attention.v_bias"),
  proj="attention.output.dense",
  mlp=("intermediate.dense", "output.dense"),
)
# From transformers 5 on; its first releases gave keys a bias too.
HUGGING_FACE_5 = HUGGING_FACE._replace(
  title="Hugging Face's transformers 5",
  biases=("attention.attention.query.bias", "attention.attention.value.bias"),
  key_bias="attention.attention.key.bias",
)
MMACTION = ORIGINAL._replace(
  title="mmaction2",
  patch_embed="backbone.patch_embed.projection",
  encoder_block="backbone.blocks.",
  encoder_norm="backbone.norm",
  token_norm="backbone.norm",
  head_norm="backbone.fc_norm",
  classifier="cls_head.fc_cls",
  mlp=("mlp.layers.0.0", "mlp.layers.1"),
  positions="backbone.pos_embed",
)


def names_of(keys: Collection[str]) -> Names:
  """The source that a file's keys are named by."""
  if any(key.startswith("backbone.") for key in keys):
    return MMACTION
  if not any(key.startswith("videomae.") for key in keys):
    return ORIGINAL
  return HUGGING_FACE_5 if any(key.endswith(".query.bias") for key in keys) else HUGGING_FACE


def kind_of(keys: Collection[str], names: Names) -> str:
  """What a file holds: "pretraining" also where of that the decoder is cut away.

  A file without a classifier is one of a classifier, its head taken off, where its trunk is named so.
  """
  signs = ["head.", "classifier.", f"{names.classifier}.", f"{names.head_norm}."]
  if "{trunk}" in names.patch_embed:
    signs.append(names.patch_embed.format(trunk=""))
  return "classifier" if any(key.startswith(tuple(signs)) for key in keys) else "pretraining"


def _block(path: Path, key: str, names: Names) -> list[Row]:
  rows = []
  for n in (0, 1):
    rows += porting.norm((*path, f"norm{n + 1}"), f"{key}.{names.norms[n]}")
    rows += porting.linear((*path, "mlp", f"fc{n + 1}"), f"{key}.{names.mlp[n]}")
  qkv = tuple(f"{key}.{name}.weight" for name in names.qkv)
  rows.append(Row((*path, "attn", "qkv", "kernel"), qkv, LINEAR))
  for bias, name in zip(("q_bias", "v_bias"), names.biases, strict=True):
    rows.append(Row((*path, "attn", bias), (f"{key}.{name}",)))
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


def table(
  kind: str, names: Names, *, depth: int, decoder_depth: int = 0, pool: str = MEAN
) -> Table:
  """The names of a whole network.

  Hugging Face's classifier with `use_mean_pooling=True`, its default, reads the mean token, and with
  False the first; its pretraining model is one with False. Their norms differ in epsilon:
  `config.layer_norm_eps` (1e-12 by default) in the blocks and 1e-5 in the head and at the decoder's
  end, which our models take as options.

  Args:
    kind: "classifier" (`VideoMAE`) or "pretraining" (`VideoMAEForPreTraining`).
    names: whose.
    depth: blocks of the encoder.
    decoder_depth: blocks of the decoder, which a classifier has not.
    pool: what the classifier reads, one of `videomae.POOLS`.

  Raises:
    ValueError: an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f"kind={kind!r} is none of {', '.join(KINDS)}.")
  trunk = "encoder." if kind == "pretraining" else ""
  block = names.encoder_block.format(trunk=trunk)
  rows = porting.linear(
    ("attention", "patch_embed"), names.patch_embed.format(trunk=trunk), layout=_PATCH_EMBEDDING
  )
  rows += _blocks(("attention",), block, names, depth)
  if kind == "classifier":
    rows += _pool(names, pool)
    rows += porting.linear(("head", "linear"), names.classifier)
    hints = {
      "encoder_to_decoder.weight": _OF_PRETRAINING,
      "mask_token": _OF_PRETRAINING,
      **_pool_hints(names, pool),
    }
  else:
    rows += porting.norm(("attention", "norm"), names.encoder_norm)
    rows += porting.linear(("decoder", "embed"), "encoder_to_decoder", bias=False)
    rows.append(Row(("decoder", "mask_token"), ("mask_token",), TOKEN))
    rows += _blocks(("decoder",), names.decoder_block, names, decoder_depth)
    rows += porting.norm(("decoder", "norm"), "decoder.norm")
    rows += porting.linear(("decoder", "head"), "decoder.head")
    hints = {"fc_norm.weight": _OF_CLASSIFIER}
  # A bias of the keys adds the same to a query's products with all of them: the softmax undoes it.
  idle = [
    f"{prefix}{i}.{names.key_bias}"
    for prefix, count in ((block, depth), (names.decoder_block, decoder_depth))
    for i in range(count if names.key_bias else 0)
  ]
  return Table(
    f"a VideoMAE {kind} as {names.title} names it",
    tuple(rows),
    idle=(*idle, *([names.positions] if names.positions else [])),
    hints=hints,
  )


def _pool(names: Names, pool: str) -> list[Row]:
  if pool == MEAN:
    return porting.norm(("head", "norm"), names.head_norm)
  return porting.norm(("attention", "norm"), names.token_norm)


def _pool_hints(names: Names, pool: str) -> dict[str, str]:
  mean, first = "the mean of the tokens", "the first token"
  if pool == MEAN:
    hint = _OF_POOL.format(theirs=first, ours=mean, pool=FIRST)
    return {f"{names.token_norm}.weight": hint}
  return {f"{names.head_norm}.weight": _OF_POOL.format(theirs=mean, ours=first, pool=MEAN)}
