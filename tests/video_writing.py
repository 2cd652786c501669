"""Videos that tests write: H.264 with any times, and what moving squares in them show."""

from fractions import Fraction
import os

import av
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


def square_positions(path: os.PathLike | str) -> tuple[list[int], float]:
  """Which frame of `moving_square` each decoded one is, by the square's left edge; and the rate."""
  decoded = [
    (int((frame[28, :, 0] > 128).argmax()), fps)
    for frame, fps in video_reader.decode_frames(path, 64, 64)
  ]
  positions, rates = zip(*decoded, strict=True)
  assert len(set(rates)) == 1
  return list(positions), rates[0]
