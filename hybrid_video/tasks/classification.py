"""Classification: clips and labels to a cross-entropy, and views to accuracies of videos."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video import metrics, models, tasks
from hybrid_video.analysis import aggregation as aggregations
from hybrid_video.augmentation import Augment
from hybrid_video.tasks import Array, Evaluation, Pass, Sums, Task, Tree, pixels

NAME = models.CLASSIFICATION


def make(
  build: Callable[[], nnx.Module],
  mean: Sequence[float],
  std: Sequence[float],
  augment: Augment | None = None,
  aggregation: str = aggregations.MEAN_PROBABILITIES,
) -> Task:
  """The task of a classifier.

  Args:
    build: gives a fresh model, the same at every call.
    mean, std: per channel, of pixels in 0 to 1; clips are normalized with them on the device.
    augment: what is done to training clips and labels, see `augmentation.make_augment`.
    aggregation: how a video's score comes of its views', see `analysis.aggregation`.
  """
  normalize = pixels.normalizer(mean, std)
  training, evaluation, _ = tasks.definitions(build)

  def initial_variables() -> tuple[Tree, Tree]:
    _, params, batch_stats = models.split(build())
    return params, batch_stats

  def prepare(batch: Mapping[str, Array], key: Array) -> tuple[Array, Array, Array | None]:
    clips, labels = pixels.mirror(batch["clips"], batch["mirrored"]), batch["labels"]
    if augment is None:
      return normalize(clips), labels, None
    augmented, targets = augment(clips, labels, key)
    return augmented, labels, targets

  def loss(
    params: Tree, batch_stats: Tree, prepared: tuple[Array, Array, Array | None], key: Array
  ) -> tuple[Sums, Tree]:
    clips, labels, targets = prepared
    model = nnx.merge(training, params, batch_stats)
    logits = model(clips, rngs=nnx.Rngs(dropout=key))
    _, _, new_stats = models.split(model)
    return metrics.sums(logits, labels, jnp.ones(labels.shape), targets), new_stats

  def outputs(params: Tree, batch_stats: Tree, batch: Mapping[str, Array]) -> dict[str, Array]:
    model = nnx.merge(evaluation, params, batch_stats)
    return {"logits": model(normalize(batch["clips"]))}

  return Task(
    name=NAME,
    initial_variables=initial_variables,
    prepare=prepare,
    loss=loss,
    outputs=outputs,
    summarize=functools.partial(summarize, aggregation=aggregation),
    merge=lambda params, batch_stats: nnx.merge(evaluation, params, batch_stats),
    protocol=f"a video's score is {aggregations.WORDS[aggregation]}; loss is the mean cross-entropy of a "
    "view",
    one_pass=_one_pass(evaluation, normalize) if aggregation == aggregations.WHOLE_VIDEO else None,
  )


def _one_pass(evaluation: nnx.GraphDef, normalize: Callable[[Array], Array]) -> Pass:
  """How a model with `nothing_read`, `read` and `answer`, such as the hybrid, reads videos clip after clip."""

  def begin(params: Tree, batch_stats: Tree) -> Any:
    return nnx.merge(evaluation, params, batch_stats).nothing_read(1)

  def outputs(
    params: Tree, batch_stats: Tree, batch: Mapping[str, Array], state: Any
  ) -> tuple[dict[str, Array], Any]:
    model = nnx.merge(evaluation, params, batch_stats)
    # The trunk takes all clips at once; what follows it, one after the other.
    features = model.cnn(normalize(batch["clips"]))
    nothing = model.nothing_read(1)

    def read(so_far: Any, clip: tuple[Array, Array]) -> tuple[Any, Array]:
      begins, of_clip = clip
      so_far = jax.tree.map(lambda new, old: jnp.where(begins, new, old), nothing, so_far)
      so_far = model.attention.read(so_far, of_clip[None])
      return so_far, model.answer(so_far)[0]

    state, logits = jax.lax.scan(read, state, (batch["begins"], features))
    return {"logits": logits}, state

  return Pass(begin, outputs)


def summarize(
  outputs: dict[str, np.ndarray],
  rows: np.ndarray,
  labels: np.ndarray,
  batch_size: int,
  aggregation: str = aggregations.MEAN_PROBABILITIES,
) -> Evaluation:
  """Accuracies of views and of videos.

  Args:
    outputs: `logits` `[C, classes]`.
    rows: for each view, its video's row, `[C]`.
    labels: class ids of the videos, `[V]`.
    batch_size: views that are scored at a time.
    aggregation: how a video's score comes of its views', see `analysis.aggregation`.

  Returns:
    Numbers `video_top1`, `video_top5`, `clip_top1`, `clip_top5` (fractions), `loss` (mean
    cross-entropy of a view, nats), `videos`, `clips`; arrays `probabilities` `[V, classes]`, the
    videos' scores, `view_probabilities` and `view_logits` `[C, classes]`, `view_videos` `[C]`, `labels`.
  """
  logits = outputs["logits"]
  of_views = metrics.probabilities(logits, batch_size)
  of_videos = aggregations.video_scores(aggregation, of_views, logits, rows, len(labels))
  views = metrics.means(metrics.batched_sums(logits, labels[rows], batch_size))
  videos = metrics.means(metrics.batched_sums(of_videos, labels, batch_size))
  numbers = {
    "video_top1": videos["top1"],
    "video_top5": videos["top5"],
    "clip_top1": views["top1"],
    "clip_top5": views["top5"],
    "loss": views["loss"],
    "videos": len(labels),
    "clips": len(rows),
  }
  arrays = {
    "probabilities": of_videos,
    "labels": labels,
    "view_probabilities": of_views,
    "view_logits": np.asarray(logits, np.float32),
    "view_videos": rows,
  }
  return Evaluation(numbers, arrays)
