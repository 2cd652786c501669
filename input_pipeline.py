"""Stored records to batches of clips: choose a window, decode only its frames, crop, batch, shard.

In: `Records` (hybrid_video.datasets). Out: batches of NumPy arrays for this process's share of
the global batch, clips as uint8 `[B, T, H, W, 3]`.

What a batch holds follows from the seed and its place in the sequence alone: the k-th clip of
training is known without those before it, so a resumed run goes on exactly where it stopped.
"""

from collections.abc import Iterator
import dataclasses
import logging
import os

import jax
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from hybrid_video import clips as clip_arithmetic
from hybrid_video.datasets import made_actions, records, video_files
from hybrid_video.datasets.hmdb51 import hmdb51_dataset_builder, layout

log = logging.getLogger("hybrid_video")

Batch = dict[str, np.ndarray]
_PREFETCHED = 4


@dataclasses.dataclass(frozen=True)
class ClipSettings:
  """What a clip is.

  Attributes:
    frames: frames of a clip.
    window_seconds: the stretch of video they are spread over.
    crop: pixels of the square that is cut out.
    flip: whether training mirrors half of the clips.
  """

  frames: int = 16
  window_seconds: float = 2.0
  crop: int = 112
  flip: bool = True


def prepare(
  *,
  dataset: str,
  data_dir: str,
  records_dir: str,
  scale: video_files.StoredScale,
  allow_missing: bool,
  made_films: int,
  seed: int,
) -> records.Records:
  """Makes, decodes and stores what is not stored yet, and gives the index.

  Args:
    dataset: "hmdb51", or "made_actions" for videos that are made first.
    data_dir: folder of the videos and split files.
    records_dir: where records are kept; "" is TFDS's own place, ~/tensorflow_datasets.
    scale: size and quality of stored frames.
    allow_missing: whether listed videos may be missing or broken.
    made_films: for made videos, how many films of them.
    seed: for made videos, theirs.

  Raises:
    ValueError: the data cannot serve; the message names the file and says what to do.
  """
  if dataset not in ("hmdb51", "made_actions"):
    raise ValueError(f"There is no data set {dataset!r}. Known: hmdb51, made_actions.")
  if not data_dir:
    raise ValueError(
      "No data folder is named: set --config.data_dir to a folder with HMDB51's AVI files and its "
      "split files."
    )
  if dataset == "made_actions" and made_actions.make(data_dir, made_films, seed):
    log.info("Made %d videos in %s", made_films * len(made_actions.ACTIONS), data_dir)
  config = hmdb51_dataset_builder.make_config(data_dir, scale, allow_missing=allow_missing)
  # Not a pathlib path: records may lie on gs:// or another file system TFDS reads.
  place = os.path.expanduser(records_dir or "~/tensorflow_datasets")
  # One progress bar is enough: ours, over videos.
  tfds.disable_progress_bar()
  builder = hmdb51_dataset_builder.Builder(config=config, data_dir=place)
  if not builder.info.initialized:
    builder.download_and_prepare()
  found = records.index(builder)
  lacking = [*found.missing, *found.broken]
  if lacking and not allow_missing:
    raise hmdb51_dataset_builder.MissingVideosError(
      f"{len(lacking)} listed videos are not in the records of {builder.data_dir}: "
      f"{hmdb51_dataset_builder.describe(lacking)}. Complete {data_dir}, or set "
      "--config.allow_missing=True to go on without them."
    )
  return found


def select(found: records.Records, split: int, which: str) -> np.ndarray:
  """Places of the official "train" or "test" list of a split.

  Raises:
    ValueError: the list has no video here.
  """
  places = found.select(split, layout.LIST_CODES[which])
  if not len(places):
    raise ValueError(
      f"The {which} list of split {split} has no video among the {len(found)} that are stored. "
      "Choose another --config.split, or complete the data folder."
    )
  return places


def _decode(
  frames: tf.Tensor, indices: tf.Tensor, top: tf.Tensor, left: tf.Tensor, crop: int
) -> tf.Tensor:
  window = tf.stack([top, left, crop, crop])
  clip = tf.map_fn(
    lambda jpeg: tf.io.decode_and_crop_jpeg(jpeg, window, channels=3),
    tf.gather(frames, indices),
    fn_output_signature=tf.uint8,
  )
  return tf.ensure_shape(clip, (indices.shape[0], crop, crop, 3))


def _stored_size(found: records.Records, settings: ClipSettings) -> tuple[int, int]:
  height, width = found.frame_size
  if settings.crop > min(height, width):
    raise ValueError(
      f"A crop of {settings.crop} pixels does not fit stored frames of {height}x{width}."
    )
  return height, width


def _options() -> tf.data.Options:
  options = tf.data.Options()
  options.deterministic = True
  options.autotune.enabled = True
  return options


def _share(global_batch: int) -> tuple[int, int]:
  processes = jax.process_count()
  if global_batch % processes:
    raise ValueError(f"The batch of {global_batch} does not divide among {processes} processes.")
  return global_batch // processes, jax.process_index() * (global_batch // processes)


def training_batches(
  found: records.Records,
  places: np.ndarray,
  settings: ClipSettings,
  *,
  batch_size: int,
  first_step: int,
  steps: int,
  seed: int,
) -> Iterator[Batch]:
  """Batches for the training steps `first_step` to `steps`, exclusive.

  Every epoch is a new order of the whole list; batches run on across the end of an epoch, so that
  no video is left out and none comes twice in one epoch.

  Args:
    found: the index of records.
    places: the videos to train on.
    settings: what a clip is.
    batch_size: of the global batch.
    first_step: the first batch wanted.
    steps: where to stop.
    seed: of order, windows, crops and flips.

  Yields:
    {"clips": uint8 `[b, T, crop, crop, 3]`, "labels": int32 `[b]`, "places": int64 `[b]`}, b being
    this process's share of the batch.
  """
  height, width = _stored_size(found, settings)
  local, first_row = _share(batch_size)
  lengths = clip_arithmetic.window_length(found.num_frames, found.fps, settings.window_seconds)
  count = len(places)

  def load(turn: tf.Tensor) -> dict[str, tf.Tensor]:
    # turn: the clip's place in the whole sequence of training.
    epoch, within = turn // count, turn % count
    order = tf.stack([tf.constant(seed, tf.int64), epoch])
    row = tf.random.experimental.index_shuffle(within, order, count - 1)
    place = tf.gather(tf.constant(places, tf.int64), row)

    def draw(purpose: int, limit: tf.Tensor | int) -> tf.Tensor:
      # A whole number from 0 to limit - 1, one stream of numbers a purpose.
      key = tf.stack([tf.constant(seed * 8 + purpose, tf.int64), turn])
      return tf.random.stateless_uniform((), key, 0, tf.cast(limit, tf.int64), tf.int64)

    length = tf.gather(tf.constant(lengths), place)
    spare = tf.gather(tf.constant(found.num_frames, tf.int64), place) - length
    indices = clip_arithmetic.frame_indices(draw(1, spare + 1), length, settings.frames)
    top = tf.cast(draw(2, height - settings.crop + 1), tf.int32)
    left = tf.cast(draw(3, width - settings.crop + 1), tf.int32)
    example = found.fetch(place)
    clip = _decode(example["video"], indices, top, left, settings.crop)
    if settings.flip:
      clip = tf.cond(draw(4, 2) == 1, lambda: tf.reverse(clip, [2]), lambda: clip)
    return {"clips": clip, "labels": tf.cast(example["label"], tf.int32), "places": place}

  rows = tf.data.Dataset.range(first_step, steps).flat_map(
    lambda step: tf.data.Dataset.range(local).map(lambda i: step * batch_size + first_row + i)
  )
  data = rows.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(local, drop_remainder=True)
  return data.prefetch(_PREFETCHED).with_options(_options()).as_numpy_iterator()


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
  """Every clip that an evaluation looks at, known beforehand.

  Attributes:
    places: the videos, `[V]`.
    rows: for each clip, its video's row in `places`, `[C]`.
    starts, lengths: for each clip, its window's first frame and frames, `[C]`.
  """

  places: np.ndarray
  rows: np.ndarray
  starts: np.ndarray
  lengths: np.ndarray

  def batches(self, batch_size: int) -> int:
    """Batches that hold all clips, the last one padded."""
    return -(-len(self.rows) // batch_size)


def plan_evaluation(
  found: records.Records, places: np.ndarray, settings: ClipSettings
) -> EvaluationPlan:
  """Uniform windows over every video: the fewest that cover it, evenly spaced."""
  lengths = clip_arithmetic.window_length(found.num_frames, found.fps, settings.window_seconds)
  starts = [
    clip_arithmetic.uniform_starts(int(found.num_frames[place]), int(lengths[place]))
    for place in places
  ]
  counts = [len(s) for s in starts]
  return EvaluationPlan(
    places=places,
    rows=np.repeat(np.arange(len(places)), counts),
    starts=np.concatenate(starts),
    lengths=np.repeat(lengths[places], counts),
  )


def evaluation_batches(
  found: records.Records,
  plan: EvaluationPlan,
  settings: ClipSettings,
  *,
  batch_size: int,
  shuffle_frames_seed: int | None = None,
) -> Iterator[Batch]:
  """Every clip of a plan once, in order, from the centre of the frame; the last batch is padded.

  Args:
    found: the index of records.
    plan: the clips.
    settings: what a clip is.
    batch_size: of the global batch.
    shuffle_frames_seed: if given, each clip's frames come in a random order drawn from it, which
      takes away what motion tells and keeps what single frames tell.

  Yields:
    {"clips": uint8 `[b, T, crop, crop, 3]`, "labels": int32 `[b]`, "mask": float32 `[b]`}, with
    mask 0 for padding. Clips follow the plan's order across the global batch.
  """
  height, width = _stored_size(found, settings)
  local, first_row = _share(batch_size)
  total = len(plan.rows)
  top, left = (height - settings.crop) // 2, (width - settings.crop) // 2
  clip_places = plan.places[plan.rows]

  def load(turn: tf.Tensor) -> dict[str, tf.Tensor]:
    real = turn < total
    turn = tf.minimum(turn, total - 1)
    start = tf.gather(tf.constant(plan.starts), turn)
    length = tf.gather(tf.constant(plan.lengths), turn)
    indices = clip_arithmetic.frame_indices(start, length, settings.frames)
    if shuffle_frames_seed is not None:
      key = tf.stack([tf.constant(shuffle_frames_seed, tf.int64), turn])
      indices = tf.random.experimental.stateless_shuffle(indices, key)
    example = found.fetch(tf.gather(tf.constant(clip_places, tf.int64), turn))
    clip = _decode(example["video"], indices, tf.constant(top), tf.constant(left), settings.crop)
    return {
      "clips": clip,
      "labels": tf.cast(example["label"], tf.int32),
      "mask": tf.cast(real, tf.float32),
    }

  rows = tf.data.Dataset.range(plan.batches(batch_size)).flat_map(
    lambda batch: tf.data.Dataset.range(local).map(lambda i: batch * batch_size + first_row + i)
  )
  data = rows.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(local, drop_remainder=True)
  return data.prefetch(_PREFETCHED).with_options(_options()).as_numpy_iterator()
