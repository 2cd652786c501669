"""Clip plans to pixels: reads just the planned frames, decodes them as one JPEG, cuts the boxes.

In: `ClipPlan`s and a source of stored frames (records on a local disk, or decoded videos in memory).
Out: clips, uint8 `[B, T, crop, crop, 3]`. Training, evaluation, prediction and inspection all use it.
"""

import collections
from collections.abc import Iterable, Iterator
from concurrent import futures
import contextlib
import os
import threading
from types import TracebackType
from typing import Protocol, Self, TypeVar

import cv2
import numpy as np
import simplejpeg

from hybrid_video import errors
from hybrid_video.decoding import jpeg_stripes
from hybrid_video.sampling.plans import ClipPlan

# Batches that are being decoded before the one that is due.
_AHEAD = 4
# Clips that a thread takes at a time: handing them out one by one costs a twentieth of the work.
_CLIPS_PER_TASK = 8

T = TypeVar("T")


class StoredFrameError(errors.UserError):
  """A stored frame that cannot be decoded."""


class FrameSource(Protocol):
  """Stored JPEG frames of videos, by their ids."""

  def header(self, video_id: int) -> jpeg_stripes.Header:
    """The JPEG header that the video's frames share."""
    ...

  def read_stripe(self, video_id: int, frames: np.ndarray) -> bytes:
    """Some frames of a video one below the other, as one JPEG."""
    ...

  def damaged(self, video_id: int) -> str:
    """The message for a video whose stored frames cannot be decoded."""
    ...


class ClipDecoder:
  """Decodes clips in threads of this process; a context manager that leaves no thread behind."""

  def __init__(self, source: FrameSource, crop: int, workers: int | None = None):
    """Starts no thread before the first batch.

    Args:
      source: of the frames.
      crop: pixels of a clip's side; boxes of another size are resized (bilinear).
      workers: threads; the default is one a core.
    """
    # The clips are what runs in parallel.
    cv2.setNumThreads(1)
    self._source = source
    self._crop = crop
    self._workers = workers or os.cpu_count() or 1
    self._pool = futures.ThreadPoolExecutor(self._workers, "decode")
    self._memory = threading.local()

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()

  def close(self) -> None:
    """Waits for clips that are being decoded and ends the threads."""
    # At the end of the interpreter, a pool's modules may be gone before batches nobody closed are.
    with contextlib.suppress(AttributeError):
      self._pool.shutdown(wait=True, cancel_futures=True)

  def decode(self, plan: ClipPlan) -> np.ndarray:
    """The clips of a plan, uint8 `[C, T, crop, crop, 3]`.

    Raises:
      UserError: a stored frame is damaged or gone.
    """
    return _finished(*self._begin(plan))

  def batches(self, plans: Iterable[tuple[ClipPlan, T]]) -> Iterator[tuple[np.ndarray, T]]:
    """Clips of one plan after the other, some plans ahead; what stands beside a plan comes along.

    Raises:
      UserError: a stored frame is damaged or gone.
    """
    waiting: collections.deque[tuple[np.ndarray, list[futures.Future], T]] = collections.deque()
    for plan, beside in plans:
      waiting.append((*self._begin(plan), beside))
      # Enough work for every core, and then the batch that is due.
      tasks = max(len(waiting[0][1]), 1)
      if len(waiting) > max(_AHEAD, 2 * self._workers // tasks):
        clips, jobs, first = waiting.popleft()
        yield _finished(clips, jobs), first
    while waiting:
      clips, jobs, first = waiting.popleft()
      yield _finished(clips, jobs), first

  def _begin(self, plan: ClipPlan) -> tuple[np.ndarray, list[futures.Future]]:
    shape = (len(plan), plan.frames.shape[1], self._crop, self._crop, 3)
    clips = np.empty(shape, np.uint8)
    tasks = [slice(i, i + _CLIPS_PER_TASK) for i in range(0, len(plan), _CLIPS_PER_TASK)]
    return clips, [self._pool.submit(self._fill, clips[rows], plan.take(rows)) for rows in tasks]

  def _fill(self, clips: np.ndarray, plan: ClipPlan) -> None:
    videos, boxes = plan.video_ids.tolist(), plan.boxes.tolist()
    for clip, video_id, frames, box in zip(clips, videos, plan.frames, boxes, strict=True):
      self._fill_one(clip, video_id, frames, box)

  def _fill_one(self, clip: np.ndarray, video_id: int, frames: np.ndarray, box: list[int]) -> None:
    header = self._source.header(video_id)
    needed = header.rows * len(frames) * header.width * 3
    memory = self._memory
    if getattr(memory, "size", 0) < needed:
      memory.size, memory.buffer = needed, np.empty(needed, np.uint8)
    stripe = self._source.read_stripe(video_id, frames)
    try:
      # Colour is taken from the nearest stored pixel: what stands above or below a frame in its
      # stripe cannot reach into it.
      pixels = simplejpeg.decode_jpeg(stripe, fastupsample=True, buffer=memory.buffer[:needed])
    except ValueError as error:
      raise StoredFrameError(self._source.damaged(video_id)) from error
    pixels = pixels.reshape(len(frames), header.rows, header.width, 3)
    top, left, height, width = box
    cut = pixels[:, top : top + height, left : left + width]
    if cut.shape == clip.shape:
      clip[:] = cut
      return
    for small, frame in zip(clip, cut, strict=True):
      cv2.resize(frame, (self._crop, self._crop), small, interpolation=cv2.INTER_LINEAR)


def _finished(clips: np.ndarray, jobs: list[futures.Future]) -> np.ndarray:
  for job in jobs:
    job.result()
  return clips
