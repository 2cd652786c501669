"""Clips to videos: logits of every clip in, accuracies of clips and of videos out."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import logging
import time

import jax
import numpy as np

from hybrid_video import metrics, progress, sharding, steps
from hybrid_video.datasets import records
import input_pipeline

log = logging.getLogger("hybrid_video")

# The same random order of frames at every evaluation.
_SHUFFLE_SEED = 1
_PROGRESS_LINES = 4


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What an evaluation found.

  Attributes:
    numbers: `video_top1`, `video_top5`, `clip_top1`, `clip_top5` (fractions), `loss` (mean
      cross-entropy of a clip, nats), `videos`, `clips`.
    probabilities: of each video, the mean of its clips' softmax, float32 `[V, classes]`.
    labels: true class ids, `[V]`.
  """

  numbers: dict[str, float | int]
  probabilities: np.ndarray
  labels: np.ndarray

  def confusion(self) -> np.ndarray:
    """Counts int64 `[true class, predicted class]`."""
    classes = self.probabilities.shape[1]
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (self.labels, self.probabilities.argmax(-1)), 1)
    return counts


@jax.jit
def _score(
  scores: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
  return metrics.sums(scores, labels, mask), jax.nn.softmax(scores, axis=-1)


def _means(
  scores: np.ndarray, labels: np.ndarray, size: int
) -> tuple[dict[str, float], np.ndarray]:
  """Metrics of scores `[N, classes]`, and their softmax of the same shape.

  Taken `size` rows at a time, the last ones padded, so that clips and videos of every list, however
  many, are scored by one compiled program.
  """
  parts, shares = [], []
  for start in range(0, len(scores), size):
    count = min(size, len(scores) - start)
    rows = np.zeros((size, scores.shape[1]), np.float32)
    rows[:count] = scores[start : start + count]
    true = np.zeros(size, np.int32)
    true[:count] = labels[start : start + count]
    sums, share = jax.device_get(_score(rows, true, (np.arange(size) < count).astype(np.float32)))
    parts.append(sums)
    shares.append(share[:count])
  return metrics.means(parts), np.concatenate(shares)


def evaluate(
  predict: Callable[[dict[str, np.ndarray]], jax.Array],
  batches: Iterable[dict[str, np.ndarray]],
  *,
  rows: np.ndarray,
  labels: np.ndarray,
) -> Evaluation:
  """Runs a model over every clip and averages each video's probabilities.

  Args:
    predict: a batch to the logits of the whole global batch, `[B, classes]`.
    batches: all clips in order; after the last come only padded rows.
    rows: for each clip, its video's row, `[C]`.
    labels: class ids of the videos, `[V]`.

  Raises:
    ValueError: the batches hold fewer clips than `rows`.
  """
  parts = [np.asarray(predict(batch)) for batch in batches]
  logits = np.concatenate(parts) if parts else np.zeros((0, 1))
  if len(logits) < len(rows):
    raise ValueError(f"{len(rows)} clips were planned and only {len(logits)} were evaluated.")
  size = max(map(len, parts), default=1)
  clip, of_clips = _means(logits[: len(rows)], labels[rows], size)
  of_videos = np.zeros((len(labels), logits.shape[1]), np.float32)
  np.add.at(of_videos, rows, of_clips)
  of_videos /= np.bincount(rows, minlength=len(labels))[:, None]
  video, _ = _means(of_videos, labels, size)
  numbers = {
    "video_top1": video["top1"],
    "video_top5": video["top5"],
    "clip_top1": clip["top1"],
    "clip_top5": clip["top5"],
    "loss": clip["loss"],
    "videos": len(labels),
    "clips": len(rows),
  }
  return Evaluation(numbers, of_videos, labels)


class Evaluator:
  """Evaluates parameters on one of the official lists."""

  def __init__(
    self,
    found: records.Records,
    network: steps.Network,
    settings: input_pipeline.ClipSettings,
    *,
    split: int,
    validation_share: float = 0.0,
    batch_size: int,
    mesh: jax.sharding.Mesh,
  ):
    """Compiles nothing yet; the first batch does, and every list and order after it shares that.

    Args:
      found: the index of records.
      network: the model.
      settings: what a clip is.
      split: official split, from 1.
      validation_share: what the validation list takes of the training list.
      batch_size: clips at a time, over all devices.
      mesh: the devices.
    """
    self._found = found
    self._settings = settings
    self._split = split
    self._validation_share = validation_share
    self._batch_size = batch_size
    self._mesh = mesh
    self._predict = jax.jit(
      functools.partial(steps.predict_step, network=network),
      out_shardings=sharding.replicated(mesh),
    )

  @property
  def protocol(self) -> str:
    """In words, how the numbers come about."""
    sizes = {
      f"{height}x{width}"
      for height, width in zip(self._found.height.tolist(), self._found.width.tolist(), strict=True)
    }
    stored = next(iter(sizes)) if len(sizes) == 1 else f"{len(sizes)} sizes"
    return (
      f"{self._settings.describe_views()} of stored frames of {stored}; a video's score is the mean "
      "of its views' softmax; loss is the mean cross-entropy of a view; the parameters after the "
      "last step, nothing selected on the test list"
    )

  def plan(self, which: str) -> input_pipeline.EvaluationPlan:
    """Every clip of the "train", "validation" or "test" list."""
    places = input_pipeline.select(self._found, self._split, which, self._validation_share)
    return input_pipeline.plan_evaluation(self._found, places, self._settings)

  def batches(
    self, plan: input_pipeline.EvaluationPlan, shuffle_frames_seed: int | None = None
  ) -> Iterator[input_pipeline.Batch]:
    """The plan's clips in batches, see `input_pipeline.evaluation_batches`."""
    return input_pipeline.evaluation_batches(
      self._found,
      plan,
      self._settings,
      batch_size=self._batch_size,
      shuffle_frames_seed=shuffle_frames_seed,
    )

  def run(self, state: steps.State, which: str, *, shuffled: bool = False) -> Evaluation:
    """Evaluates on a whole list ("train", "validation", "test"), frames shuffled within clips if asked for."""
    plan = self.plan(which)
    total, done, started = plan.batches(self._batch_size), 0, time.monotonic()

    def predict(batch: input_pipeline.Batch) -> jax.Array:
      nonlocal done
      clips = sharding.put_batch({"clips": batch["clips"]}, self._mesh)["clips"]
      logits = self._predict(state["params"], state["batch_stats"], clips)
      done += 1
      if done < total and done % max(1, total // _PROGRESS_LINES) == 0:
        left = (time.monotonic() - started) / done * (total - done)
        log.info("  batch %d of %d, %s left", done, total, progress.duration(left))
      return logits

    order = ", frames in random order" if shuffled else ""
    log.info("Evaluating the %s list: %d clips%s", which, len(plan.rows), order)
    return evaluate(
      predict,
      self.batches(plan, _SHUFFLE_SEED if shuffled else None),
      rows=plan.rows,
      labels=self._found.labels[plan.places],
    )
