"""Videos that tests write: H.264 with any times, and what moving squares in them show."""

from collections.abc import Iterable
from fractions import Fraction
import os
import subprocess
from typing import Any

import av
import imageio_ffmpeg
import numpy as np

from hybrid_video.decoding import video_reader


def write_h264(
  path: os.PathLike | str,
  pictures: list[np.ndarray],
  stamps: list[int] | range,
  rate: int,
  form: str | None = None,
  rotation: int | None = None,
  **options: str,
) -> None:
  """Writes H.264 whose frames are shown at `stamps`, in units of 1 / `rate` seconds."""
  with av.open(str(path), "w", format=form, options=options) as container:
    stream = container.add_stream("libx264", rate=rate)
    stream.height, stream.width = pictures[0].shape[:2]
    stream.pix_fmt = "yuv444p"
    stream.options = {"crf": "5"}
    stream.thread_count = 1
    stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
    if rotation is not None:
      stream.set_display_rotation(rotation)
    for picture, stamp in zip(pictures, stamps, strict=True):
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
      frame.pts, frame.time_base = stamp, Fraction(1, rate)
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def decoded(
  path: os.PathLike | str, height: int, width: int = 0, **target: Any
) -> video_reader.Video[np.ndarray]:
  """A whole video with its frames as pixels."""
  return video_reader.read_video(
    path, video_reader.Target(height, width, **target), lambda frame: frame
  )


def square_positions(path: os.PathLike | str) -> tuple[list[int], float]:
  """Which frame of `moving_square` each decoded one is, by the square's left edge; and the rate."""
  video = decoded(path, 64, 64)
  return [int((frame[28, :, 0] > 128).argmax()) for frame in video.frames], video.fps


# Numbered pictures: each shows its number in ten columns, column b for bit b: bright above and dark
# below where the bit is 1, the other way round where it is 0.
_BITS = 10


def numbered(count: int, height: int = 48, width: int = 80) -> list[np.ndarray]:
  """Pictures that show their numbers, uint8 `[height, width, 3]`."""
  pictures = []
  for number in range(count):
    picture = np.full((height, width, 3), 32, np.uint8)
    for bit, columns in enumerate(np.array_split(np.arange(width), _BITS)):
      rows = slice(None, height // 2) if number >> bit & 1 else slice(height // 2, None)
      picture[rows, columns] = 224
    pictures.append(picture)
  return pictures


def numbers(frames: Iterable[np.ndarray]) -> list[int]:
  """The numbers that decoded pictures show, upright and of any size."""
  found = []
  for frame in frames:
    bright = frame.mean(2)
    half = len(bright) // 2
    number = 0
    for bit, columns in enumerate(np.array_split(np.arange(frame.shape[1]), _BITS)):
      above, below = bright[:half, columns], bright[half:, columns]
      number |= int(np.median(above) > np.median(below)) << bit
    found.append(number)
  return found


def ffmpeg(*arguments: os.PathLike | str) -> bytes:
  """Runs the ffmpeg program and gives what it writes to its standard output."""
  command = [
    imageio_ffmpeg.get_ffmpeg_exe(),
    "-hide_banner",
    "-loglevel",
    "error",
    "-nostdin",
    "-y",
  ]
  return subprocess.run([*command, *arguments], check=True, capture_output=True).stdout


def ffmpeg_frames(path: os.PathLike | str, size: tuple[int, int], *filters: str) -> np.ndarray:
  """A video's frames as the ffmpeg program shows them, uint8 RGB `[N, height, width, 3]`."""
  height, width = size
  chain = ",".join([*filters, f"scale={width}:{height}:flags=bilinear", "format=rgb24"])
  raw = ffmpeg(
    *("-i", path, "-an", "-vf", f"{chain},setpts=N", "-fps_mode", "passthrough"),
    *("-f", "rawvideo", "-"),
  )
  return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
