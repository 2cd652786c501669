"""Masked pretraining: clips without labels to the error of masked patches' predicted pixels."""

from collections.abc import Callable, Mapping, Sequence

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video import models, tasks
from hybrid_video.models import masking
from hybrid_video.tasks import Array, Evaluation, Sums, Task, Tree, pixels

NAME = models.PRETRAINING
PROTOCOL = (
  "loss is the mean squared error of {targets}, in the masked patches, each view under a mask "
  "of its own that is the same at every evaluation"
)
# What is predicted, in words.
_TARGETS = {
  masking.NORMALIZED: "pixels normalized by patch and color",
  masking.PIXELS: "pixels",
  masking.MOTION: "pixels less their mean over the clip's time",
}
# The masks of evaluation follow from this and the clip's index.
_EVALUATION_SEED = 0


def make(build: Callable[[], nnx.Module], mean: Sequence[float], std: Sequence[float]) -> Task:
  """The task of a masked autoencoder: a model with `grid`, `patch`, `mask_ratio`, `targets` and
  `features`, see `models`.

  Args:
    build: gives a fresh model, the same at every call.
    mean, std: per channel, of pixels in 0 to 1; clips are normalized with them on the device.
  """
  normalize = pixels.normalizer(mean, std)
  training, evaluation, abstract = tasks.definitions(build)
  grid, ratio, patch = abstract.grid, abstract.mask_ratio, abstract.patch
  targets = abstract.targets

  def initial_variables() -> tuple[Tree, Tree]:
    _, params, batch_stats = models.split(build())
    return params, batch_stats

  def prepare(batch: Mapping[str, Array], key: Array) -> tuple[Array, Array, Array]:
    clips = pixels.mirror(batch["clips"], batch["mirrored"])
    return clips, *masking.tube_mask(key, len(clips), grid, ratio)

  def losses(model: nnx.Module, clips: Array, visible: Array, masked: Array) -> Array:
    predictions = model(normalize(clips), visible, masked)
    return masking.clip_losses(
      predictions, masking.patch_targets(clips, masked, patch, kind=targets)
    )

  def loss(
    params: Tree, batch_stats: Tree, prepared: tuple[Array, Array, Array], key: Array
  ) -> tuple[Sums, Tree]:
    del key  # A masked autoencoder has no dropout.
    model = nnx.merge(training, params, batch_stats)
    of_clips = losses(model, *prepared)
    _, _, new_stats = models.split(model)
    return {"loss": of_clips.sum(), "count": jnp.float32(len(of_clips))}, new_stats

  def outputs(params: Tree, batch_stats: Tree, batch: Mapping[str, Array]) -> dict[str, Array]:
    model = nnx.merge(evaluation, params, batch_stats)
    visible, masked = evaluation_masks(batch["clip_indices"], grid, ratio)
    return {"loss": losses(model, batch["clips"], visible, masked)}

  def features(params: Tree, batch_stats: Tree, batch: Mapping[str, Array]) -> dict[str, Array]:
    model = nnx.merge(evaluation, params, batch_stats)
    return {"features": model.features(normalize(batch["clips"]))}

  return Task(
    name=NAME,
    initial_variables=initial_variables,
    prepare=prepare,
    loss=loss,
    outputs=outputs,
    summarize=summarize,
    merge=lambda params, batch_stats: nnx.merge(evaluation, params, batch_stats),
    protocol=PROTOCOL.format(targets=_TARGETS[targets]),
    features=features,
  )


def evaluation_masks(
  clip_indices: Array, grid: tuple[int, int, int], ratio: float
) -> tuple[Array, Array]:
  """The mask of each clip `[B]` of an evaluation, the same at every one; see `masking.tube_mask`."""
  root = jax.random.key(_EVALUATION_SEED)

  def own_mask(index: Array) -> tuple[Array, Array]:
    visible, masked = masking.tube_mask(jax.random.fold_in(root, index), 1, grid, ratio)
    return visible[0], masked[0]

  return jax.vmap(own_mask)(clip_indices)


def summarize(
  outputs: dict[str, np.ndarray], rows: np.ndarray, labels: np.ndarray, batch_size: int
) -> Evaluation:
  """The mean loss over views.

  Args:
    outputs: `loss` `[C]`, of each view.
    rows: for each view, its video's row, `[C]`.
    labels: class ids of the videos, `[V]`; not read.
    batch_size: not read.

  Returns:
    Numbers `loss`, `videos`, `clips`; arrays `view_loss` `[C]`, `view_videos` `[C]`.
  """
  del batch_size
  losses = np.asarray(outputs["loss"], np.float64)
  numbers = {"loss": float(losses.mean()), "videos": len(labels), "clips": len(rows)}
  return Evaluation(numbers, {"view_loss": outputs["loss"], "view_videos": rows})
