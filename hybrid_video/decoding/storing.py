"""How frames are stored: a video file to JPEG frames at the training scale.

In: the path of a video file. Out: a `StoredVideo`, which the builder of records writes to disk and
prediction keeps in memory (`StoredVideos`).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import io
import os
import pathlib
from typing import ClassVar

import numpy as np
from PIL import Image

from hybrid_video import settings
from hybrid_video.decoding import jpeg_stripes, video_reader

# Of a file that is read to the end, at a time.
_DIGEST_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class StoredScale(settings.Settings):
  """How frames are stored.

  Attributes:
    height: pixels; the short side's where `width` is 0.
    width: pixels, or 0 to keep every shape.
    stretch: whether videos of another shape than `height` x `width` are stretched to it, as
      torchvision's recipes do; if not, their short side is stored at the short one of the two.
    jpeg_quality: 1 to 95.

  Raises:
    SettingError: a size or the quality is out of range.
  """

  PATH: ClassVar[str] = "stored"

  height: int = settings.setting(128, at_least=1)
  width: int = settings.setting(171, at_least=0)
  jpeg_quality: int = settings.setting(75, at_least=1, at_most=95)
  stretch: bool = settings.setting(False)

  @property
  def name(self) -> str:
    """A short name for folders, such as `128x171-q75` or `128short-q75`."""
    size = f"{self.height}x{self.width}" if self.width else f"{self.height}short"
    return f"{size}{'stretched' if self.width and self.stretch else ''}-q{self.jpeg_quality}"


@dataclasses.dataclass(frozen=True)
class DecodingLimits(settings.Settings):
  """What decoding a file may take; a file that takes more is refused, with the setting's name.

  Attributes:
    max_frames: of a video, frames that are repeated counted; an hour at 60 a second.
    stall_seconds: of its process's own time (CPU seconds) without a further frame.
  """

  PATH: ClassVar[str] = "decoding"

  max_frames: int = settings.setting(video_reader.MAX_FRAMES, at_least=1)
  stall_seconds: float = settings.setting(60.0, above=0)


@dataclasses.dataclass(frozen=True)
class StoredVideo:
  """A decoded video.

  Attributes:
    frames: JPEG files in order of time; frame `i` is shown at `i / fps` seconds.
    fps: frames a second.
    height: pixels of every frame.
    width: likewise.
    shown_size: (height, width) that the file asks to be seen at, in square pixels.
    notes: what was adapted, by kind, see `video_reader.Video`.
    file_digest: of the video file's bytes, see `file_digest`.
  """

  frames: list[bytes]
  fps: float
  height: int
  width: int
  shown_size: tuple[int, int] = (0, 0)
  notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  file_digest: str = ""


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
  """A uint8 RGB frame `[H, W, 3]` as baseline JPEG, 4:2:0, with the standard Huffman tables.

  Of frames of one size and quality, all bytes before the entropy-coded scan are the same.
  """
  buffer = io.BytesIO()
  Image.fromarray(frame).save(
    buffer,
    format="JPEG",
    quality=quality,
    subsampling="4:2:0",
    optimize=False,
    progressive=False,
  )
  return buffer.getvalue()


def file_digest(path: os.PathLike | str, progress: Callable[[], None] = lambda: None) -> str:
  """BLAKE2b of all of a file's bytes, 128 bits in hex; calls `progress` now and then."""
  digest = hashlib.blake2b(digest_size=16)
  with pathlib.Path(path).open("rb") as file:
    while chunk := file.read(_DIGEST_BYTES):
      digest.update(chunk)
      progress()
  return digest.hexdigest()


def store_video(
  path: os.PathLike | str,
  scale: StoredScale,
  progress: Callable[[], None] = lambda: None,
  *,
  max_frames: int = video_reader.MAX_FRAMES,
) -> StoredVideo:
  """Decodes a whole video file, in this process, and encodes its frames as they are stored.

  Args:
    path: see `video_reader.read_video`.
    scale: how to store the frames.
    progress: called after each frame, and between them while much is read.
    max_frames: how long a video may be.

  Raises:
    VideoError: see `video_reader.read_video`.
  """
  target = video_reader.Target(scale.height, scale.width, scale.stretch, max_frames)
  video = video_reader.read_video(
    path, target, lambda frame: encode_jpeg(frame, scale.jpeg_quality), progress
  )
  return StoredVideo(
    video.frames, video.fps, *video.size, video.shown_size, video.notes, file_digest(path, progress)
  )


class StoredVideos:
  """Decoded videos in memory, read by clip in the same way as stored records.

  Attributes:
    num_frames: int64 `[V]`.
    fps: frames a second, float64 `[V]`.
    height, width: pixels of a video's frames, int64 `[V]`.
  """

  def __init__(self, videos: Sequence[StoredVideo], names: Sequence[str] = ()):
    """Holds the videos; a video's id is its index.

    Args:
      videos: each with one frame or more.
      names: of the videos' files, for messages; without them, messages have the ids.

    Raises:
      JpegError: a first frame is not a baseline JPEG.
      ValueError: there are names, and not one a video.
    """
    if names and len(names) != len(videos):
      raise ValueError(f"{len(names)} names of {len(videos)} videos: expected one each, or none.")
    self.num_frames = np.array([len(video.frames) for video in videos], np.int64)
    self.fps = np.array([video.fps for video in videos], np.float64)
    self.height = np.array([video.height for video in videos], np.int64)
    self.width = np.array([video.width for video in videos], np.int64)
    self._frames = [video.frames for video in videos]
    self._headers = [jpeg_stripes.parse(frames[0]) for frames in self._frames]
    self._names = [*names] or [f"video {i}" for i in range(len(videos))]

  def __len__(self) -> int:
    return len(self._frames)

  def header(self, video_id: int) -> jpeg_stripes.Header:
    """The JPEG headers that a video's frames share."""
    return self._headers[video_id]

  def read_stripe(self, video_id: int, frames: np.ndarray) -> bytes:
    """Lays frames of a video one below the other, see `jpeg_stripes`.

    Args:
      video_id: the video.
      frames: indices of its frames, `[T]`.

    Returns:
      One JPEG.

    Raises:
      JpegError: a frame has other headers than its video's first, or is cut short, or the stripe
        would be higher than JPEG allows.
    """
    header, stored = self._headers[video_id], self._frames[video_id]
    return jpeg_stripes.join(
      header, [jpeg_stripes.scan_of(stored[i], header) for i in frames.tolist()]
    )

  def damaged(self, video_id: int) -> str:
    """The message for a video whose frames in memory do not decode."""
    return (
      f"{self._names[video_id]}: its frames in memory are damaged. Run the same command again; if "
      "that does not help, check this machine's memory."
    )
