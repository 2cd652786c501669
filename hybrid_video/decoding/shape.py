"""How a frame is to be seen: which way up, and how wide, and the size that it is stored at.

In: a decoded frame, and what its file says of turns and of the width of pixels. Out: pixels as a
person sees them, scaled.
"""

from collections.abc import Iterable
import dataclasses
from fractions import Fraction
import struct

import av
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter
import numpy as np

# Pixels that are wider or narrower than this come from a damaged header.
_MOST_STRETCHED = 8
# Shapes (width by height) that differ by less than this part are one: nobody sees the difference.
SAME_SHAPE = 0.02


@dataclasses.dataclass(frozen=True)
class Orientation:
  """One of the eight ways up: the frame is transposed first and then mirrored.

  Attributes:
    transposed: whether rows become columns.
    flipped: whether it is mirrored in y (upside down) and in x.
  """

  transposed: bool = False
  flipped: tuple[bool, bool] = (False, False)

  def upright(self, pixels: np.ndarray) -> np.ndarray:
    """Pixels `[H, W, 3]` as they are to be seen."""
    if self.transposed:
      pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(
      pixels[tuple(slice(None, None, -1 if f else 1) for f in self.flipped)]
    )

  def __str__(self) -> str:
    """In words: how frames are turned, counterclockwise as a quarter turn is, and mirrored."""
    names = {
      (False, False, False): "as stored",
      (False, True, True): "turned by 180°",
      (False, False, True): "mirrored left to right",
      (False, True, False): "mirrored top to bottom",
      (True, False, True): "turned by 90° clockwise",
      (True, True, False): "turned by 90° counterclockwise",
      (True, False, False): "mirrored along its diagonal",
      (True, True, True): "mirrored along its other diagonal",
    }
    return names[(self.transposed, *self.flipped)]


AS_STORED = Orientation()


def orientation_of(frame: av.VideoFrame) -> Orientation:
  """The orientation that a frame's display matrix asks for, to the nearest quarter turn.

  The matrix `(a b u; c d v; x y w)` puts the pixel (p, q) at (a p + c q + x, b p + d q + y), counted
  from the upper left corner. Source: FFmpeg's libavutil/display.h; ISO/IEC 14496-12, 6.2.2.
  """
  matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)
  data = b"" if matrix is None else bytes(matrix)
  if len(data) < 20:
    return AS_STORED
  a, b, _, c, d = struct.unpack_from("=5i", data)
  if abs(b) + abs(c) > abs(a) + abs(d):
    return Orientation(True, (b < 0, c < 0))
  return Orientation(False, (d < 0, a < 0))


def pixel_aspect(stream: av.VideoStream) -> Fraction:
  """How wide a pixel is shown for its height; 1 where the file does not say or cannot be right."""
  for ratio in (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio):
    if ratio and Fraction(1, _MOST_STRETCHED) <= ratio <= _MOST_STRETCHED:
      return Fraction(ratio)
  return Fraction(1)


def shown_size(
  size: tuple[int, int], aspect: Fraction, orientation: Orientation
) -> tuple[int, int]:
  """(height, width) that a frame of (height, width) stored pixels is seen at, in square pixels."""
  height, width = size
  # The side that is too short is lengthened, so that no pixel is lost.
  if aspect >= 1:
    width = round(width * aspect)
  else:
    height = round(height / aspect)
  return (width, height) if orientation.transposed else (height, width)


def scaled_size(
  shown: tuple[int, int], target: tuple[int, int], *, stretch: bool
) -> tuple[int, int]:
  """The (height, width) to store frames at that are seen at (height, width).

  Args:
    shown: pixels.
    target: height and width; a width of 0 stands for any shape.
    stretch: whether frames of another shape than the target's are stretched to it. If not, their
      short side gets the target's short side, and their shape is kept.
  """
  height, width = target
  if width:
    of_target, of_frame = width / height, shown[1] / shown[0]
    if stretch or abs(of_frame / of_target - 1) <= SAME_SHAPE:
      return height, width
  factor = (min(height, width) if width else height) / min(shown)
  return max(1, round(shown[0] * factor)), max(1, round(shown[1] * factor))


class Scaler:
  """Frames to upright RGB pixels of one size."""

  def __init__(self, size: tuple[int, int]):
    """Scales to (height, width) pixels, seen upright."""
    self.size = size
    self._reformatter = VideoReformatter()

  def scale(self, frame: av.VideoFrame, orientation: Orientation) -> np.ndarray:
    """A frame's pixels, scaled (bilinear) and upright, uint8 RGB `[height, width, 3]`."""
    height, width = self.size[::-1] if orientation.transposed else self.size
    scaled = self._reformatter.reformat(
      frame, width=width, height=height, format="rgb24", interpolation="BILINEAR"
    )
    pixels = scaled.to_ndarray()
    return pixels if orientation is AS_STORED else orientation.upright(pixels)


def describe(orientations: Iterable[Orientation], aspect: Fraction) -> dict[str, str]:
  """What was adapted, by kind; empty where frames are seen as stored."""
  turned = sorted({str(orientation) for orientation in orientations if orientation != AS_STORED})
  notes = {"orientation": ", then ".join(turned)} if turned else {}
  if aspect != 1:
    notes["pixel aspect"] = f"pixels of {aspect.numerator}:{aspect.denominator}"
  return notes
