"""The first step on the way: one video file in, its frames as JPEG at the training scale out.

Imports neither TensorFlow nor JAX, so that worker processes start quickly.
"""

from collections.abc import Iterable, Iterator
from concurrent import futures
import dataclasses
import io
import multiprocessing
import os
import pathlib
import struct

import av
import numpy as np
from PIL import Image


class VideoError(ValueError):
  """A video file that cannot be used; the message names it and says what was found."""


@dataclasses.dataclass(frozen=True)
class StoredScale:
  """How frames are stored: size in pixels and JPEG quality (1 to 95)."""

  height: int = 128
  width: int = 171
  jpeg_quality: int = 90

  @property
  def name(self) -> str:
    """A short name for folders, such as `128x171-q90`."""
    return f"{self.height}x{self.width}-q{self.jpeg_quality}"


@dataclasses.dataclass(frozen=True)
class StoredVideo:
  """A decoded video: JPEG frames in order of time, and the frames a second they were shot at."""

  frames: list[bytes]
  fps: float


def _check_container(path: pathlib.Path) -> None:
  size = path.stat().st_size
  if size == 0:
    raise VideoError(f"{path}: the file is empty. Copy it again from the source.")
  with path.open("rb") as file:
    head = file.read(12)
  if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
    promised = 8 + struct.unpack("<I", head[4:8])[0]
    if promised > size:
      raise VideoError(
        f"{path}: the file is cut short, its header promises {promised} bytes and it has {size}. "
        "Copy it again from the source."
      )


def decode_frames(path: os.PathLike | str, height: int, width: int) -> Iterator[tuple]:
  """Decodes a video file frame by frame, scaled (bilinear) to exactly `height` x `width`.

  Args:
    path: a file in any container and codec that FFmpeg reads. Metadata need not be UTF-8.
    height: pixels of a frame given out; the aspect ratio is not kept.
    width: likewise.

  Yields:
    (uint8 RGB `[height, width, 3]`, frames a second of the stream as a float).

  Raises:
    VideoError: the file is missing, empty, cut short, no video, or holds no frame.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise VideoError(f"{path}: there is no such file.")
  _check_container(path)
  count = 0
  try:
    with av.open(str(path), metadata_errors="ignore") as container:
      if not container.streams.video:
        raise VideoError(f"{path}: no video stream, only {len(container.streams)} other streams.")
      stream = container.streams.video[0]
      stream.thread_type = "NONE"
      rate = stream.average_rate or stream.guessed_rate
      if not rate:
        raise VideoError(f"{path}: the frame rate is not known. Re-encode the file.")
      for frame in container.decode(stream):
        scaled = frame.reformat(
          width=width, height=height, format="rgb24", interpolation="BILINEAR"
        )
        yield scaled.to_ndarray(), float(rate)
        count += 1
  except av.error.FFmpegError as error:
    found = f"decoding broke after {count} frames" if count else "it is not a video FFmpeg can read"
    raise VideoError(
      f"{path}: {found} ({error.strerror}). Copy it again or re-encode it."
    ) from error
  if not count:
    raise VideoError(
      f"{path}: it holds no frame that can be decoded. Copy it again or re-encode it."
    )


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
  """A uint8 RGB frame `[H, W, 3]` as JPEG."""
  buffer = io.BytesIO()
  Image.fromarray(frame).save(buffer, format="JPEG", quality=quality)
  return buffer.getvalue()


def store_video(path: os.PathLike | str, scale: StoredScale) -> StoredVideo:
  """Decodes a whole video file into what the records keep of it.

  Raises:
    VideoError: see `decode_frames`.
  """
  frames, rates = [], set()
  for frame, fps in decode_frames(path, scale.height, scale.width):
    frames.append(encode_jpeg(frame, scale.jpeg_quality))
    rates.add(fps)
  return StoredVideo(frames, rates.pop())


def _store_or_explain(path: str, scale: StoredScale) -> StoredVideo | str:
  try:
    return store_video(path, scale)
  except VideoError as error:
    return str(error)


def store_videos(
  paths: Iterable[os.PathLike | str], scale: StoredScale, workers: int | None = None
) -> Iterator[tuple[str, StoredVideo | str]]:
  """Decodes many files in parallel processes, in the given order.

  Args:
    paths: video files.
    scale: how to store the frames.
    workers: processes; the default is one a core.

  Yields:
    (path, the stored video), or (path, why it cannot be used).
  """
  todo = [str(path) for path in paths]
  workers = min(workers or os.cpu_count() or 1, len(todo))
  if workers <= 1:
    for path in todo:
      yield path, _store_or_explain(path, scale)
    return
  # A forked child of a process that runs TensorFlow's and JAX's threads can hang: spawn instead.
  context = multiprocessing.get_context("spawn")
  with futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
    # Few videos wait at a time, so that memory does not grow with the data set.
    ahead = 4 * workers
    waiting = [pool.submit(_store_or_explain, path, scale) for path in todo[:ahead]]
    for i, path in enumerate(todo):
      result = waiting.pop(0).result()
      if i + ahead < len(todo):
        waiting.append(pool.submit(_store_or_explain, todo[i + ahead], scale))
      yield path, result
