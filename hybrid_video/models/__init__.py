"""Models: normalised clips `[B, T, H, W, 3]` in, logits `[B, classes]` out.

`create` builds any of them by name. A model's parameters are grouped by its attributes: `cnn`,
`attention` and `head` are the parts that reports count.
"""

import difflib
import inspect
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video.models import video_resnet as video_resnet
from hybrid_video.models.bert_pooling import BertClassifier
from hybrid_video.models.hybrid import Hybrid
from hybrid_video.models.video_resnet import VideoResNet
from hybrid_video.models.videomae import VideoMAE as VideoMAE
from hybrid_video.models.videomae import VideoMAEForPreTraining as VideoMAEForPreTraining

# A class, and the options that make it the model of that name.
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
  "hybrid": (Hybrid, {}),
  "r2plus1d_18": (VideoResNet, {"architecture": "r2plus1d_18"}),
  "r2plus1d_34": (VideoResNet, {"architecture": "r2plus1d_34"}),
  "r3d_18": (VideoResNet, {"architecture": "r3d_18"}),
  "mc3_18": (VideoResNet, {"architecture": "mc3_18"}),
  "r2plus1d_18_bert": (BertClassifier, {"architecture": "r2plus1d_18"}),
  "r2plus1d_34_bert": (BertClassifier, {"architecture": "r2plus1d_34"}),
  "videomae_small": (VideoMAE, {"size": "small"}),
  "videomae_base": (VideoMAE, {"size": "base"}),
  "videomae_large": (VideoMAE, {"size": "large"}),
}
# float64 needs jax_enable_x64; it serves comparisons with references.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}

Tree = dict[str, Any]


def nearest(name: str, known: list[str]) -> str:
  """The known names with those most like `name` put forward, for an error message."""
  close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  proposal = f" Did you mean {' or '.join(close)}?" if close else ""
  return f"{proposal} Known: {', '.join(known)}."


def options(name: str) -> dict[str, inspect.Parameter]:
  """The options of a model by name, with their types and defaults.

  Raises:
    ValueError: there is no such model; the message has the nearest names.
  """
  if name not in MODELS:
    raise ValueError(f"There is no model {name!r}.{nearest(name, list(MODELS))}")
  builder, fixed = MODELS[name]
  taken = ("self", "num_classes", "dtype", "rng", *fixed)
  parameters = inspect.signature(builder.__init__).parameters
  return {key: value for key, value in parameters.items() if key not in taken}


def create(
  name: str, *, num_classes: int, seed: int = 0, dtype: str = "float32", **chosen: Any
) -> nnx.Module:
  """Builds a model with initial values drawn from `seed`.

  Args:
    name: one of `MODELS`.
    num_classes: width of the logits.
    seed: of the initial values.
    dtype: one of `DTYPES`, of the arithmetic; parameters are float32 always.
    **chosen: the model's own options, see its class.

  Returns:
    An NNX module in training mode: `model.eval()` and `model(clips)` give logits; in training,
    dropout takes its key at the call, `model(clips, rngs=nnx.Rngs(dropout=key))`.

  Raises:
    ValueError: an unknown name, dtype or option (the message has the nearest), or options that do
      not fit together.
  """
  known = list(options(name))
  if dtype not in DTYPES:
    raise ValueError(f"There is no dtype {dtype!r}.{nearest(dtype, list(DTYPES))}")
  for option in chosen:
    if option not in known:
      raise ValueError(f"The model {name!r} has no option {option!r}.{nearest(option, known)}")
  builder, fixed = MODELS[name]
  rng = np.random.default_rng(seed)
  return builder(num_classes, dtype=DTYPES[dtype], rng=rng, **fixed, **chosen)


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
  """A model as its definition and two plain nested dicts: parameters, batch statistics."""
  graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
  params, batch_stats = (nnx.to_pure_dict(state) for state in states)
  return graphdef, params, batch_stats


def parameter_counts(params: Tree) -> dict[str, int]:
  """Trainable parameters by part (`cnn`, `attention`, `head`) and their `total`."""
  counts = dict.fromkeys(("cnn", "attention", "head"), 0)
  for part, tree in params.items():
    counts[part] = sum(leaf.size for leaf in jax.tree.leaves(tree))
  return {**counts, "total": sum(counts.values())}
