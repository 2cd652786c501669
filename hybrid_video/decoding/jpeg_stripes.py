"""Several JPEG frames as one tall JPEG, so that one call decodes a clip.

In: baseline JPEG frames of one video. Out: the bytes of one JPEG whose picture is the frames one
below the other. Nothing is decoded or encoded on the way.

A JPEG is headers and one entropy-coded scan. Where frames share their headers (same size, tables
and sampling), their scans may follow one another behind one header that gives the sum of heights
and a restart interval of as many blocks (MCUs) as a frame has, with restart markers between them: a
decoder forgets everything at a restart, as at the beginning of a file. A frame whose height is not
a multiple of a block's takes up the rows to the next multiple; they hold its encoder's padding.

The rows come out exactly as from the frames themselves if the decoder takes colour that is stored
at half the height (4:2:0) from the nearest stored pixel. A decoder that interpolates it looks one
row beyond, and mixes the colour of a frame's first and last row with its neighbour's.

Source: ITU-T T.81 (JPEG), B.1.1, B.2.2 (frame header), B.2.4.4 (restart interval), E.1.4.
"""

from collections.abc import Sequence
import dataclasses
import struct

from hybrid_video import errors

END = b"\xff\xd9"
_START = b"\xff\xd8"
_BASELINE, _SCAN, _INTERVAL = 0xC0, 0xDA, 0xDD
_RESTARTS = tuple(bytes([0xFF, 0xD0 + i]) for i in range(8))
# libjpeg's limit for either side of a JPEG; the format's own is 65535.
MAX_ROWS = 65500


class JpegError(errors.UserError):
  """Not a JPEG of the form that stripes are made of, or too many frames for one stripe."""


@dataclasses.dataclass(frozen=True)
class Header:
  """The headers that frames share, parsed.

  Attributes:
    data: all bytes before the scan's entropy-coded data.
    size_at: offset in `data` of the frame's height and width, two bytes each.
    scan_at: offset in `data` of the scan's header.
    height, width: pixels of a frame.
    block_height: rows of a block (MCU).
    blocks: blocks of a frame.
  """

  data: bytes
  size_at: int
  scan_at: int
  height: int
  width: int
  block_height: int
  blocks: int

  @property
  def rows(self) -> int:
    """Rows that a frame takes up in a stripe: its height, rounded up to whole blocks."""
    return -(-self.height // self.block_height) * self.block_height

  def stripe(self, frames: int) -> bytes:
    """The header of a stripe of this many frames.

    Raises:
      JpegError: the stripe would be higher than JPEG allows.
    """
    rows = self.rows * frames
    if rows > MAX_ROWS:
      raise JpegError(
        f"{frames} frames of {self.height} pixels are more than one JPEG holds ({MAX_ROWS} rows). "
        "Take fewer frames a clip or a smaller stored height."
      )
    data = bytearray(self.data)
    data[self.size_at : self.size_at + 2] = struct.pack(">H", rows)
    interval = struct.pack(">BBHH", 0xFF, _INTERVAL, 4, self.blocks)
    return bytes(data[: self.scan_at] + interval + data[self.scan_at :])


def parse(jpeg: bytes) -> Header:
  """Parses the headers of a baseline JPEG with one scan; `jpeg` may end anywhere after them.

  Raises:
    JpegError: it is not one, or has a restart interval of its own.
  """
  if jpeg[:2] != _START:
    raise JpegError("Not a JPEG: it does not start with the marker FFD8.")
  at, frame_header = 2, None
  while at + 4 <= len(jpeg):
    marker, (length,) = jpeg[at + 1], struct.unpack_from(">H", jpeg, at + 2)
    if jpeg[at] != 0xFF or at + 2 + length > len(jpeg):
      break
    if marker == _INTERVAL:
      raise JpegError("The JPEG has restart intervals of its own.")
    if marker == _BASELINE:
      height, width, components = struct.unpack_from(">HHB", jpeg, at + 5)
      sampling = [jpeg[at + 11 + 3 * i] for i in range(components)]
      vertical, horizontal = max(s & 15 for s in sampling), max(s >> 4 for s in sampling)
      frame_header = (at + 5, height, width, vertical, horizontal)
    if marker == _SCAN:
      if frame_header is None:
        break
      size_at, height, width, vertical, horizontal = frame_header
      blocks = -(-height // (8 * vertical)) * -(-width // (8 * horizontal))
      data = jpeg[: at + 2 + length]
      return Header(data, size_at, at, height, width, 8 * vertical, blocks)
    at += 2 + length
  raise JpegError("Not a baseline JPEG: it has no baseline frame header before its scan.")


def scan_of(jpeg: bytes, header: Header) -> bytes:
  """The entropy-coded data of a frame.

  Raises:
    JpegError: the frame's headers are not those of `header`, or its end is missing.
  """
  if not jpeg.startswith(header.data):
    raise JpegError("The frame's headers differ from those of its video's first frame.")
  if not jpeg.endswith(END):
    raise JpegError("The frame's end (FFD9) is missing.")
  return jpeg[len(header.data) : -len(END)]


def separators(frames: int) -> list[bytes]:
  """What follows each scan of a stripe: a restart marker, after the last one the end of the JPEG."""
  return [_RESTARTS[i % 8] for i in range(frames - 1)] + [END]


def join(header: Header, scans: Sequence[bytes]) -> bytes:
  """The stripe of frames that share `header`, from their entropy-coded data, see `scan_of`.

  Raises:
    JpegError: the stripe would be higher than JPEG allows.
  """
  pieces = [header.stripe(len(scans))]
  for scan, separator in zip(scans, separators(len(scans)), strict=True):
    pieces += (scan, separator)
  return b"".join(pieces)
