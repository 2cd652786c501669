"""A trained model and clips to maps of where it looks.

In: a model and normalized clips. Out: `Map`s on the host.
"""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video import models
from hybrid_video.models import rematerialization
from hybrid_video.models.relevance import Map

Array = jax.Array


@functools.partial(jax.jit, static_argnums=0)
def _maps(
  graphdef: nnx.GraphDef, params: Any, batch_stats: Any, clips: Array, classes: Array | None
) -> tuple[Map, ...]:
  def of_one(clip: Array, class_id: Array | None) -> tuple[Map, ...]:
    model = nnx.merge(graphdef, params, batch_stats)
    model.eval()
    # What is computed again is traced on its own, and weights could not leave that trace.
    model.set_attributes(remat=rematerialization.NONE, raise_if_not_found=False)
    return model.maps(clip[None], None if class_id is None else class_id[None])

  # One after the other: the weights of one clip may fill a good part of the memory.
  if classes is None:
    found = jax.lax.map(lambda clip: of_one(clip, None), clips)
  else:
    found = jax.lax.map(lambda both: of_one(*both), (clips, classes))
  return jax.tree.map(lambda values: values[:, 0].astype(jnp.float32), found)


def maps(
  model: nnx.Module, clips: np.ndarray | Array, classes: np.ndarray | Array | None = None
) -> tuple[Map, ...]:
  """Where a classifier looks in clips, by the methods that its architecture allows.

  The first map is the one to draw: `[B, T', H', W']`, over the CNN's feature map or the patches.
  Which others there are:

  - hybrid: attention rollout, gradient-weighted attention; then for each cross attention block each
    latent's weights, `[B, heads, latents, T', H', W']`;
  - R(2+1)D, R3D, MC3: Grad-CAM;
  - the same with BERT: Grad-CAM; the CLS token's weights over itself and time `[B, heads, 1 + T']`;
  - VideoMAE: attention rollout, gradient-weighted attention.

  Weights are those of the forward pass in evaluation mode, and sum to 1 over what is attended to.

  Args:
    model: a classifier, such as `hybrid_video.load(...).model`; it is not changed.
    clips: normalized, `[B, T, H, W, 3]`.
    classes: the class id to explain for each clip, int `[B]`; by default the predicted ones.

  Raises:
    ModelError: the model has no classes to explain, or the clips are of a size that it does not take.
  """
  if not hasattr(model, "maps"):
    raise models.ModelError(
      f"{type(model).__name__} has no classes whose scores could be explained: give a classifier."
    )
  graphdef, params, batch_stats = models.split(model)
  chosen = None if classes is None else jnp.asarray(classes, jnp.int32)
  return jax.tree.map(np.asarray, _maps(graphdef, params, batch_stats, jnp.asarray(clips), chosen))
