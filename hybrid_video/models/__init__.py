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

from hybrid_video.models.hybrid import Hybrid
from hybrid_video.models.r2plus1d import R2Plus1D

MODELS: dict[str, Any] = {
  "hybrid": Hybrid,
  "r2plus1d_18": R2Plus1D,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Tree = dict[str, Any]


def nearest(name: str, known: list[str]) -> str:
  """The known names with those most like `name` put forward, for an error message."""
  close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  proposal = f" Did you mean {' or '.join(close)}?" if close else ""
  return f"{proposal} Known: {', '.join(known)}."


def create(
  name: str, *, num_classes: int, seed: int = 0, dtype: str = "float32", **options: Any
) -> nnx.Module:
  """Builds a model with initial values drawn from `seed`.

  Args:
    name: one of `MODELS`.
    num_classes: width of the logits.
    seed: of the initial values.
    dtype: "float32" or "bfloat16", of the arithmetic; parameters are float32 always.
    **options: the model's own, see its class.

  Returns:
    An NNX module in training mode: `model.eval()` and `model(clips)` give logits; in training,
    dropout takes its key at the call, `model(clips, rngs=nnx.Rngs(dropout=key))`.

  Raises:
    ValueError: an unknown name, dtype or option (the message has the nearest), or options that do
      not fit together.
  """
  if name not in MODELS:
    raise ValueError(f"There is no model {name!r}.{nearest(name, list(MODELS))}")
  if dtype not in DTYPES:
    raise ValueError(f"There is no dtype {dtype!r}.{nearest(dtype, list(DTYPES))}")
  builder = MODELS[name]
  parameters = inspect.signature(builder.__init__).parameters
  known = [p for p in parameters if p not in ("self", "num_classes", "dtype", "rng")]
  for option in options:
    if option not in known:
      raise ValueError(f"The model {name!r} has no option {option!r}.{nearest(option, known)}")
  return builder(num_classes, dtype=DTYPES[dtype], rng=np.random.default_rng(seed), **options)


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
