"""The plan of a clip: which video, which frames, which box, mirrored or not.

In: lengths, rates and sizes of videos, and settings. Out: `ClipPlan`s, a public value that training,
evaluation, prediction and inspection make and `decoding.clip_decoder` carries out.
"""

from collections.abc import Iterator
import dataclasses
from typing import Protocol

import numpy as np

from hybrid_video.sampling import frames as frame_arithmetic
from hybrid_video.sampling.clip_settings import EvaluationSettings


class VideoFacts(Protocol):
  """What planning needs to know of videos; one row a video, `[V]` each."""

  @property
  def num_frames(self) -> np.ndarray:
    """Stored frames."""
    ...

  @property
  def fps(self) -> np.ndarray:
    """Stored frames a second."""
    ...

  @property
  def height(self) -> np.ndarray:
    """Pixels of a stored frame."""
    ...

  @property
  def width(self) -> np.ndarray:
    """Pixels of a stored frame."""
    ...


@dataclasses.dataclass(frozen=True)
class ClipPlan:
  """Clips to cut, one row a clip.

  Attributes:
    video_ids: the video of each, int64 `[C]`: its row in the records.
    frames: its frames in order, int64 `[C, T]`.
    boxes: what is cut out of each frame: top, left, height, width in stored pixels, int64 `[C, 4]`.
    mirrored: whether left and right are exchanged, bool `[C]`. That is done on the device.
  """

  video_ids: np.ndarray
  frames: np.ndarray
  boxes: np.ndarray
  mirrored: np.ndarray

  def __len__(self) -> int:
    return len(self.video_ids)

  def take(self, rows: np.ndarray | list[int] | slice) -> "ClipPlan":
    """Some of the clips, in the order of `rows`."""
    return ClipPlan(self.video_ids[rows], self.frames[rows], self.boxes[rows], self.mirrored[rows])


@dataclasses.dataclass(frozen=True)
class Views:
  """Every clip that an evaluation looks at, by video.

  Attributes:
    video_ids: the videos, int64 `[V]`.
    rows: for each clip, its video's row in `video_ids`, int64 `[C]`, ascending.
    crops: which crop of its window each clip is, int64 `[C]`.
    clips: what to cut, `C` clips.
  """

  video_ids: np.ndarray
  rows: np.ndarray
  crops: np.ndarray
  clips: ClipPlan

  def __len__(self) -> int:
    return len(self.rows)

  def take(self, clip_indices: np.ndarray | list[int]) -> "Views":
    """Some of the clips, of the same videos."""
    return Views(
      self.video_ids,
      self.rows[clip_indices],
      self.crops[clip_indices],
      self.clips.take(clip_indices),
    )

  def with_shuffled_frames(self, seed: int) -> "Views":
    """Each clip's frames in a random order.

    That takes away what motion shows and keeps what single frames show.
    """
    order = np.random.default_rng(seed)
    shuffled = dataclasses.replace(self.clips, frames=order.permuted(self.clips.frames, axis=1))
    return dataclasses.replace(self, clips=shuffled)

  def num_batches(self, batch_size: int) -> int:
    """Batches that hold all clips, the last one padded."""
    return -(-len(self) // batch_size)

  def batches(
    self, batch_size: int, rows: slice = slice(None)
  ) -> Iterator[tuple[ClipPlan, np.ndarray]]:
    """The clips in order, `batch_size` at a time.

    Args:
      batch_size: of the global batch.
      rows: the share of each batch that is wanted, such as one process's.

    Yields:
      (clips, mask float32 `[b]`). The last batch is filled up with its last clip, mask 0.
    """
    for batch in range(self.num_batches(batch_size)):
      indices = np.arange(batch * batch_size, (batch + 1) * batch_size)[rows]
      mask = (indices < len(self)).astype(np.float32)
      yield self.clips.take(np.minimum(indices, len(self) - 1)), mask


def _crop_boxes(
  settings: EvaluationSettings, crops: np.ndarray, height: np.ndarray, width: np.ndarray
) -> np.ndarray:
  """Boxes int64 `[C, 4]`; `crops` is 0 to `settings.crops` - 1 along the longer side."""
  # Where frames are smaller than the crop, their largest square is resized.
  side = np.minimum(settings.crop, np.minimum(height, width))
  top, left = (height - side) // 2, (width - side) // 2
  if settings.crops == 3:
    wide = width >= height
    left = np.where(wide, (width - side) * crops // 2, left)
    top = np.where(wide, top, (height - side) * crops // 2)
  return np.stack([top, left, side, side], axis=1)


def evaluation_views(
  videos: VideoFacts, video_ids: np.ndarray, settings: EvaluationSettings
) -> Views:
  """The views of every video: its windows, and of each window its crops.

  Args:
    videos: their lengths, rates and sizes.
    video_ids: the videos wanted, `[V]`.
    settings: which windows and crops.
  """
  video_ids = np.asarray(video_ids, np.int64)
  windows = frame_arithmetic.windows(settings, videos.num_frames[video_ids], videos.fps[video_ids])
  frames: list[np.ndarray] = []
  counts: list[int] = []
  for row in range(len(video_ids)):
    if settings.mode == "segments":
      clips = settings.clips or 1
      within = (2 * np.arange(clips) + 1) * frame_arithmetic.SEGMENT_UNIT // (2 * clips)
      within = np.broadcast_to(within[:, None], (clips, settings.frames))
      selected = frame_arithmetic.segment_frames(settings, within, frames=windows.frames[row])
    else:
      shape = {
        name: getattr(windows, name)[row]
        for name in ("span", "positions", "numerator", "denominator")
      }
      starts = frame_arithmetic.even_starts(
        int(windows.starts[row]), int(shape["span"]), int(shape["positions"]), settings.clips
      )
      selected = frame_arithmetic.window_frames(settings, starts[:, None], **shape)
    frames.append(np.repeat(selected, settings.crops, axis=0))
    counts.append(len(frames[-1]))
  rows = np.repeat(np.arange(len(video_ids)), counts)
  crops = np.arange(len(rows)) % settings.crops
  of_clips = video_ids[rows]
  plan = ClipPlan(
    video_ids=of_clips,
    frames=np.concatenate(frames) if frames else np.zeros((0, settings.frames), np.int64),
    boxes=_crop_boxes(settings, crops, videos.height[of_clips], videos.width[of_clips]),
    mirrored=np.zeros(len(rows), bool),
  )
  return Views(video_ids, rows, crops, plan)
