"""The plans of training: the k-th clip follows from (seed, k), inside `tf.data`.

In: lengths, rates and sizes of videos, settings, a seed and a step. Out: the fields of a `ClipPlan`
for this process's rows of the step's batch. Nothing before a step is needed to know it, so a resumed
run goes on exactly where it stopped, and any number of processes sees the same global batches.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from hybrid_video.sampling import boxes, draws
from hybrid_video.sampling import frames as frame_arithmetic
from hybrid_video.sampling.clip_settings import ClipSettings
from hybrid_video.sampling.draws import Purpose
from hybrid_video.sampling.plans import ClipPlan, VideoFacts


@dataclasses.dataclass(frozen=True)
class TrainingPlans:
  """Plans of the batches of a training.

  Every epoch is a new order of the whole list; batches run on across the end of an epoch, so that
  no video is left out and none comes twice in one epoch, or as often as a clip's settings say.

  Attributes:
    videos: lengths, rates and sizes of all videos.
    video_ids: the videos to train on, int64 `[V]`.
    settings: what a clip is.
    seed: of order, windows, crops and mirroring.
    batch_size: of the global batch.
    rows: first and number of the batch's rows wanted, such as one process's.
    offset: clips of the training that stood before step 0.
  """

  videos: VideoFacts
  video_ids: np.ndarray
  settings: ClipSettings
  seed: int
  batch_size: int
  rows: tuple[int, int]
  offset: int = 0

  def tensors(self, step: tf.Tensor) -> dict[str, tf.Tensor]:
    """The fields of the step's `ClipPlan` as tensors, by name."""
    first_row, count = self.rows
    first_clip = step * self.batch_size + self.offset + first_row
    clip_indices = first_clip + tf.range(count, dtype=tf.int64)
    order = draws.shuffled(self.seed, clip_indices // self.settings.repeats, len(self.video_ids))
    video_ids = tf.gather(tf.constant(self.video_ids, tf.int64), order)
    mirrored = draws.integers(self.seed, Purpose.FLIP, clip_indices, 2) == 1
    return {
      "video_ids": video_ids,
      "frames": tf.ensure_shape(
        self._frames(clip_indices, video_ids), (count, self.settings.frames)
      ),
      "boxes": boxes.random_boxes(
        self.settings,
        self.seed,
        clip_indices,
        tf.gather(tf.constant(self.videos.height), video_ids),
        tf.gather(tf.constant(self.videos.width), video_ids),
      ),
      "mirrored": mirrored & self.settings.flip,
    }

  def plan(self, step: int) -> ClipPlan:
    """The plan of one step, as NumPy arrays."""
    tensors = self.tensors(tf.constant(step, tf.int64))
    return ClipPlan(**{name: value.numpy() for name, value in tensors.items()})

  def _frames(self, clip_indices: tf.Tensor, video_ids: tf.Tensor) -> tf.Tensor:
    settings = self.settings
    windows = frame_arithmetic.windows(settings, self.videos.num_frames, self.videos.fps)
    of = {
      field.name: tf.gather(tf.constant(getattr(windows, field.name)), video_ids)[:, None]
      for field in dataclasses.fields(windows)
    }
    if settings.mode == "segments":
      unit, count = frame_arithmetic.SEGMENT_UNIT, settings.frames
      within = draws.integers(self.seed, Purpose.SEGMENT, clip_indices, unit, count)
      within = tf.reshape(within, (self.rows[1], count))
      return frame_arithmetic.segment_frames(settings, within, frames=of["frames"])
    start = draws.integers(self.seed, Purpose.WINDOW, clip_indices, of["starts"][:, 0])
    shape = {name: of[name] for name in ("span", "positions", "numerator", "denominator")}
    return frame_arithmetic.window_frames(settings, start[:, None], **shape)
