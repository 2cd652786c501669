"""Our Perceiver with the weights that perceiver-pytorch's ran with, and how far their outputs lie apart."""

import json
import pathlib

from flax import nnx
import jax.numpy as jnp
import numpy as np

from golden import reference_weights
from golden.comparison import relative_error
from hybrid_video import models
from hybrid_video.models import hybrid
from hybrid_video.weights import perceiver_names, porting

GOLDEN = np.load(pathlib.Path(__file__).parent / "perceiver.npz")
GROUPS = [(1, 0), (1, 1), (1, 3), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
FEATURES = reference_weights.clips((2, 2, 3, 4, 5))
STACK = {
  "latents": 6,
  "width": 16,
  "cross_heads": 1,
  "self_heads": 2,
  "head_dim": 8,
  "multiplier": 4,
  "bands": 4,
  "max_freq": 10.0,
  "dropout": 0.0,
  "use_cls": False,
  "dtype": jnp.float32,
}


class Reader(nnx.Module):
  """The hybrid without its CNN."""

  def __init__(self, groups: int, self_per_group: int, tied: bool, **options):
    rng = np.random.default_rng(0)
    self.attention = hybrid.AttentionStack(
      5,
      cross_blocks=groups,
      self_blocks=groups * self_per_group,
      tie_groups=tied,
      rng=rng,
      **{**STACK, **options},
    )
    self.head = hybrid.Head(16, 7, rng=rng)


def state_dict(groups: int, self_per_group: int, tied: bool) -> dict[str, np.ndarray]:
  """The weights that the reference ran with; later groups of a tied one repeat those of group 1."""
  stored = GOLDEN[f"{case(groups, self_per_group, tied)}/shapes"]
  shapes = {key: tuple(shape) for key, shape in json.loads(str(stored)).items()}
  state = reference_weights.state_dict(shapes)
  if tied:
    state = {key: state[key.replace("layers.2.", "layers.1.")] for key in state}
  return state


def case(groups: int, self_per_group: int, tied: bool) -> str:
  return f"depth{groups}_self{self_per_group}_{'tied' if tied else 'own'}"


def ported(
  state: dict[str, np.ndarray], groups: int, self_per_group: int, tied: bool, model: nnx.Module
) -> porting.Ported:
  """The reference's weights as those of a model."""
  _, params, _ = models.split(model)
  table = perceiver_names.table(
    state, cross_blocks=groups, self_per_group=self_per_group, tied=tied
  )
  return porting.port(state, table, params, {})


def filled(groups: int, self_per_group: int, tied: bool) -> nnx.Module:
  """The reader with the weights that the reference ran with, in evaluation mode."""
  model = Reader(groups, self_per_group, tied)
  graphdef, *_ = models.split(model)
  state = state_dict(groups, self_per_group, tied)
  model = nnx.merge(graphdef, ported(state, groups, self_per_group, tied, model).params)
  model.eval()
  return model


def errors(groups: int, self_per_group: int, tied: bool) -> dict[str, float]:
  """Relative errors of the `latents` and `logits` of one of the reference's forms."""
  model = filled(groups, self_per_group, tied)
  latents = model.attention(jnp.asarray(FEATURES))
  name = case(groups, self_per_group, tied)
  return {
    "latents": relative_error(latents, GOLDEN[f"{name}/latents"]),
    "logits": relative_error(model.head(latents.mean(1)), GOLDEN[f"{name}/logits"]),
  }
