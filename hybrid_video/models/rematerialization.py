"""What of a block is kept for its backward pass, and what is computed again there.

In: the name of a policy and a block's function. Out: the same function, whose gradient needs less memory.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name

from hybrid_video import errors
from hybrid_video.models.model_error import ModelError

NONE, BLOCKS, CONVOLUTIONS_SAVED = POLICIES = ("none", "blocks", "convolutions_saved")
_SAVED = "convolution"
_NAMED = jax.checkpoint_policies.save_only_these_names(_SAVED)


def policy(remat: str) -> str:
  """One of `POLICIES`: `NONE` keeps all that the backward pass reads, `BLOCKS` the inputs of blocks alone,
  `CONVOLUTIONS_SAVED` also the results of convolutions, linear maps and attention, so that only what is cheap is
  computed again.

  Args:
    remat: its name.

  Raises:
    ModelError: an unknown name; the message has the nearest.
  """
  if remat not in POLICIES:
    raise ModelError(
      f"remat={errors.printable(remat)} is none of {', '.join(POLICIES)}."
      f"{errors.nearest(remat, POLICIES)}"
    )
  return remat


def saved(x: Any) -> Any:
  """Marks the arrays of `x` as results that `CONVOLUTIONS_SAVED` keeps; changes nothing."""
  return jax.tree.map(lambda leaf: checkpoint_name(leaf, _SAVED), x)


def under(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
  """By policy, a function of a module and arrays with that policy for its gradient."""
  return {
    NONE: function,
    BLOCKS: nnx.remat(function),
    CONVOLUTIONS_SAVED: nnx.remat(function, policy=_NAMED),
  }
