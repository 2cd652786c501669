"""Stored records to batches of clips: plans in `tf.data`, decoded, padded, shared among processes.

In: `Records` (hybrid_video.datasets) and settings. Out: batches of NumPy arrays for this process's
share of the global batch, clips as uint8 `[b, T, crop, crop, 3]`.

`tf.data` makes the plans of training (`hybrid_video.sampling.training`). Where the records lie on
this machine, `hybrid_video.decoding.clip_decoder` decodes them in threads, every frame's checksum
verified. Elsewhere, and on the workers of a tf.data service, `tf.data` decodes too, in operations
that need nothing of this process; that takes about twice the time.

What a batch holds follows from the seed and its step alone, so a resumed run goes on exactly where
it stopped, and any number of processes sees the same global batches.
"""

from collections.abc import Generator, Iterator
import re

import jax
import numpy as np
import tensorflow as tf

from hybrid_video import errors
from hybrid_video.datasets import records as stored
from hybrid_video.datasets import service_client
from hybrid_video.datasets.records import Records
from hybrid_video.decoding.clip_decoder import ClipDecoder
from hybrid_video.sampling.clip_settings import ClipSettings, EvaluationSettings, Sampling
from hybrid_video.sampling.plans import ClipPlan, Views
from hybrid_video.sampling.training import TrainingPlans

Batch = dict[str, np.ndarray]

_PREFETCHED = 4
_PLAN_FIELDS = ("video_ids", "frames", "boxes", "mirrored")
# What TensorFlow raises where a record file is damaged, cut off or gone.
_DAMAGE = (
  tf.errors.DataLossError,
  tf.errors.InvalidArgumentError,
  tf.errors.NotFoundError,
  tf.errors.OutOfRangeError,
)


class PipelineError(errors.UserError):
  """Settings that do not fit the stored videos or the number of processes."""


def training_batches(
  records: Records,
  video_ids: np.ndarray,
  settings: ClipSettings,
  *,
  batch_size: int,
  first_step: int,
  steps: int,
  seed: int,
  offset: int = 0,
  service: str = "",
) -> Generator[Batch, None, None]:
  """Batches for the training steps `first_step` to `steps`, exclusive.

  Args:
    records: the index of the stored videos.
    video_ids: the videos to train on.
    settings: what a clip is.
    batch_size: of the global batch.
    first_step: the first batch wanted.
    steps: where to stop.
    seed: of order, windows, crops and mirroring.
    offset: clips of the training that stood before step 0.
    service: address of a tf.data service dispatcher (`grpc://HOST:PORT`) whose workers, which must
      reach the records, decode; "" is this process.

  Yields:
    {"clips": uint8 `[b, T, crop, crop, 3]`, "labels": int32 `[b]`, "video_ids": int64 `[b]`,
    "mirrored": bool `[b]`, the clips to mirror}, b being this process's share of the batch.

  Raises:
    PipelineError: a crop does not fit the stored frames, or the batch the processes.
    RecordsError: a stored record is damaged.
    ServiceError: no data service is reached at the address.
  """
  plans = training_plans(
    records, video_ids, settings, batch_size=batch_size, seed=seed, offset=offset
  )

  # Without a statement that AutoGraph would have to turn into an operation, it is only slow.
  @tf.autograph.experimental.do_not_convert
  def with_labels(step: tf.Tensor) -> dict[str, tf.Tensor]:
    plan = plans.tensors(step)
    labels = tf.gather(tf.constant(records.labels, tf.int32), plan["video_ids"])
    return {**plan, "labels": labels}

  def one_step(step: tf.Tensor) -> tf.data.Dataset:
    data = _decoded(records, tf.data.Dataset.from_tensors(with_labels(step)), settings)
    return data.batch(plans.rows[1]).map(lambda batch: {**batch, "step": step})

  if service:
    batches = service_client.batches_from_workers(
      one_step, lambda data: _as_numpy(data, records), first_step, steps, service
    )
  else:
    data = tf.data.Dataset.range(first_step, steps).map(with_labels)
    batches = _batches(records, data, plans.rows[1], settings)
  return batches


def training_plans(
  records: Records,
  video_ids: np.ndarray,
  settings: ClipSettings,
  *,
  batch_size: int,
  seed: int,
  offset: int = 0,
) -> TrainingPlans:
  """The plans of this process's rows of every training batch; arguments as `training_batches`.

  Raises:
    PipelineError: a crop does not fit the stored frames, or the batch the processes.
  """
  smallest = np.minimum(records.height[video_ids], records.width[video_ids])
  if settings.crop_mode == "random" and settings.crop > smallest.min():
    video_id = video_ids[smallest.argmin()]
    raise PipelineError(
      f"A crop of {settings.crop} pixels does not fit stored frames of "
      f"{records.height[video_id]}x{records.width[video_id]} ({records.names[video_id]}). Store "
      "larger frames (--config.stored) or crop less (--config.clip.crop)."
    )
  return TrainingPlans(
    records, video_ids, settings, seed, batch_size, _own_rows(batch_size), offset
  )


def evaluation_batches(
  records: Records, views: Views, settings: EvaluationSettings, *, batch_size: int
) -> Iterator[Batch]:
  """Every clip of an evaluation once, in order; the last batch is padded.

  Args:
    records: the index of the stored videos.
    views: the clips, see `hybrid_video.sampling.plans.evaluation_views`.
    settings: what a clip is.
    batch_size: of the global batch.

  Yields:
    {"clips": uint8 `[b, T, crop, crop, 3]`, "labels": int32 `[b]`, "mask": float32 `[b]`}, with
    mask 0 for padding. Clips follow the views' order across the global batch.

  Raises:
    RecordsError: a stored record is damaged.
  """
  first_row, count = _own_rows(batch_size)
  plans = views.batches(batch_size, slice(first_row, first_row + count))
  if records.is_local:
    with ClipDecoder(records, settings.crop) as decoder:
      for clips, (plan, mask) in decoder.batches((plan, (plan, mask)) for plan, mask in plans):
        labels = records.labels[plan.video_ids].astype(np.int32)
        yield {"clips": clips, "labels": labels, "mask": mask}
    return

  batches = list(plans)
  fields = {name: np.stack([getattr(plan, name) for plan, _ in batches]) for name in _PLAN_FIELDS}
  fields["mask"] = np.stack([mask for _, mask in batches])
  fields["labels"] = records.labels[fields["video_ids"]].astype(np.int32)
  data = tf.data.Dataset.from_tensor_slices(fields)
  for batch in _batches(records, data, count, settings):
    yield {name: batch[name] for name in ("clips", "labels", "mask")}


def _own_rows(batch_size: int) -> tuple[int, int]:
  """First and number of the global batch's rows that are this process's."""
  processes = jax.process_count()
  if batch_size % processes:
    raise PipelineError(
      f"A batch of {batch_size} does not divide among {processes} processes: set "
      f"--config.batch_size to a multiple of {processes}."
    )
  count = batch_size // processes
  return jax.process_index() * count, count


def _batches(
  records: Records, plans: tf.data.Dataset, count: int, settings: Sampling
) -> Generator[Batch, None, None]:
  """Plans of batches, with what else is to be in a batch, to batches of `count` clips."""
  if not records.is_local:
    yield from _as_numpy(_decoded(records, plans, settings).batch(count), records)
    return
  elements = plans.prefetch(_PREFETCHED).with_options(_options()).as_numpy_iterator()
  with ClipDecoder(records, settings.crop) as decoder:
    for clips, rest in decoder.batches((_clip_plan(element), element) for element in elements):
      other = {name: value for name, value in rest.items() if name not in ("frames", "boxes")}
      yield {"clips": clips, **other}


def _clip_plan(element: Batch) -> ClipPlan:
  return ClipPlan(**{name: element[name] for name in _PLAN_FIELDS})


def _options() -> tf.data.Options:
  options = tf.data.Options()
  options.deterministic = True
  options.autotune.enabled = True
  return options


def _decoded(records: Records, plans: tf.data.Dataset, settings: Sampling) -> tf.data.Dataset:
  """Plans of batches to single clips, in TensorFlow's operations alone."""

  def decode(plan: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    frames, box = plan.pop("frames"), plan.pop("boxes")
    stripe = records.stripe(plan["video_ids"], frames)
    return {"clips": _cut(records, plan["video_ids"], stripe, box, settings), **plan}

  return plans.unbatch().map(decode, num_parallel_calls=tf.data.AUTOTUNE)


def _cut(
  records: Records, video_id: tf.Tensor, stripe: tf.Tensor, box: tf.Tensor, settings: Sampling
) -> tf.Tensor:
  """A stripe of frames to a clip, uint8 `[T, crop, crop, 3]`; other boxes are resized (bilinear)."""
  rows, width = (tf.gather(tf.constant(of), video_id) for of in (records.rows, records.width))
  top, left, box_height, box_width = tf.unstack(box)
  # The decoder is up to twice as slow where a window does not begin on a block of 16 pixels or is a
  # multiple of 8 wide. So it gets a little more, and what it gives is cut.
  begin = left // 16 * 16
  wide = tf.minimum(tf.bitwise.bitwise_or(left - begin + box_width, 1), width - begin)
  window = tf.stack([tf.zeros_like(begin), begin, rows * settings.frames, wide])
  # Colour is taken from the nearest stored pixel, as the threads take it: what stands above or below
  # a frame in its stripe cannot reach into it.
  exact = {"fancy_upscaling": False, "dct_method": "INTEGER_ACCURATE"}
  decoded = tf.io.decode_and_crop_jpeg(stripe, tf.cast(window, tf.int32), channels=3, **exact)
  frames = tf.reshape(decoded, tf.stack([settings.frames, rows, wide, 3]))
  offset = left - begin
  clip = frames[:, top : top + box_height, offset : offset + box_width]
  fits = (box_height == settings.crop) & (box_width == settings.crop)
  clip = tf.cond(fits, lambda: clip, lambda: _resize(clip, settings.crop))
  return tf.ensure_shape(clip, (settings.frames, settings.crop, settings.crop, 3))


def _resize(clip: tf.Tensor, crop: int) -> tf.Tensor:
  smooth = tf.image.resize(clip, (crop, crop), tf.image.ResizeMethod.BILINEAR)
  return tf.cast(tf.clip_by_value(tf.round(smooth), 0, 255), tf.uint8)


def _as_numpy(data: tf.data.Dataset, records: Records) -> Iterator[Batch]:
  """Batches as NumPy arrays; what TensorFlow says of damage becomes a clear error."""
  try:
    yield from data.prefetch(_PREFETCHED).with_options(_options()).as_numpy_iterator()
  except _DAMAGE as error:
    raise stored.RecordsError(_explained(error.message, records)) from error


def _explained(message: str, records: Records) -> str:
  """Which record file TensorFlow stumbled over: it names an offset, but not the file."""
  ends = records.offset + records.length + stored.FOOTER_BYTES
  for shard in np.unique(records.shard).tolist():
    path = records.shards[shard]
    if not tf.io.gfile.exists(path):
      return f"{path}: the stored records are gone. The same command makes them again."
    if tf.io.gfile.stat(path).length < ends[records.shard == shard].max():
      return stored.damaged(path, "its end is missing")
  offset = re.search(r"corrupted record at (\d+)", message)
  at = int(offset[1]) if offset else 0
  begins = (records.offset == at) | (records.offset == at + stored.HEADER_BYTES)
  for video_id in np.flatnonzero(begins).tolist():
    try:
      records.stripe(tf.constant(video_id), tf.constant([0], tf.int64))
    except tf.errors.OpError:
      return records.damaged(video_id)
  return f"{records.folder}: the stored records cannot be read: {message.splitlines()[0]}"
