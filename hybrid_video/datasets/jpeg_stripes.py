"""Several JPEG frames as one tall JPEG, so that one call decodes a clip.

In: baseline JPEG frames of one video. Out: the bytes of one JPEG whose picture is the frames one
below the other. Nothing is decoded or encoded on the way.

A JPEG is headers and one entropy-coded scan. Where frames share their headers (same size, tables
and sampling), their scans may stand one after the other behind one header that tells the sum of
heights and a restart interval of as many blocks (MCUs) as a frame has, with restart markers between
them: a decoder forgets everything at a restart, as at the beginning of a file. A frame whose height
is no multiple of a block's takes up the rows to the next multiple; they hold its encoder's padding.

The rows come out as from the frames themselves, to the bit, where the decoder takes colour that is
stored at half the height (4:2:0) from the nearest stored pixel. One that interpolates it looks one
row beyond, and mixes the colour of a frame's first and last row with its neighbour's.

Source: ITU-T T.81 (JPEG), B.1.1, B.2.2 (frame header), B.2.4.4 (restart interval), E.1.4.
"""

import dataclasses
import struct

END = b"\xff\xd9"
_START = b"\xff\xd8"
_BASELINE, _SCAN, _INTERVAL = 0xC0, 0xDA, 0xDD
_RESTARTS = tuple(bytes([0xFF, 0xD0 + i]) for i in range(8))
# What libjpeg takes; the format itself would go to 65535.
MAX_ROWS = 65500


class JpegError(ValueError):
  """Not a JPEG of the form that stripes are made of."""


@dataclasses.dataclass(frozen=True)
class Header:
  """The headers that frames share, taken apart.

  Attributes:
    data: all bytes before the scan's entropy-coded data.
    size_at: where in `data` the frame's height and width stand, two bytes each.
    scan_at: where in `data` the scan's header begins.
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
    """The header of a stripe of so many frames.

    Raises:
      JpegError: it would be higher than JPEG allows.
    """
    rows = self.rows * frames
    if rows > MAX_ROWS:
      raise JpegError(
        f"{frames} frames of {self.height} pixels are more than one JPEG holds ({MAX_ROWS} rows): "
        "take fewer frames a clip or a smaller stored height."
      )
    data = bytearray(self.data)
    data[self.size_at : self.size_at + 2] = struct.pack(">H", rows)
    interval = struct.pack(">BBHH", 0xFF, _INTERVAL, 4, self.blocks)
    return bytes(data[: self.scan_at] + interval + data[self.scan_at :])


def parse(jpeg: bytes) -> Header:
  """Reads the headers of a baseline JPEG with one scan; `jpeg` may end anywhere after them.

  Raises:
    JpegError: it is something else, or has a restart interval of its own.
  """
  if jpeg[:2] != _START:
    raise JpegError("Not a JPEG: it does not start with the marker FFD8.")
  at, found = 2, None
  while at + 4 <= len(jpeg):
    marker, (length,) = jpeg[at + 1], struct.unpack_from(">H", jpeg, at + 2)
    if jpeg[at] != 0xFF or at + 2 + length > len(jpeg):
      break
    if marker == _INTERVAL:
      raise JpegError("The JPEG has restart intervals of its own.")
    if marker == _BASELINE:
      height, width, components = struct.unpack_from(">HHB", jpeg, at + 5)
      sampling = [jpeg[at + 11 + 3 * i] for i in range(components)]
      found = (at + 5, height, width, max(s & 15 for s in sampling), max(s >> 4 for s in sampling))
    if marker == _SCAN:
      if found is None:
        break
      size_at, height, width, vertical, horizontal = found
      blocks = -(-height // (8 * vertical)) * -(-width // (8 * horizontal))
      data = jpeg[: at + 2 + length]
      return Header(data, size_at, at, height, width, 8 * vertical, blocks)
    at += 2 + length
  raise JpegError("Not a baseline JPEG: it has no baseline frame header before its scan.")


def scan_of(jpeg: bytes, header: Header) -> bytes:
  """The entropy-coded data of a frame.

  Raises:
    JpegError: the frame's headers are not `header`'s, or its end is missing.
  """
  if not jpeg.startswith(header.data):
    raise JpegError("The frame's headers differ from those of its video's first frame.")
  if not jpeg.endswith(END):
    raise JpegError("The frame's end (FFD9) is missing.")
  return jpeg[len(header.data) : -len(END)]


def separators(frames: int) -> list[bytes]:
  """What follows each scan of a stripe: a restart marker, after the last one the end of the JPEG."""
  return [_RESTARTS[i % 8] for i in range(frames - 1)] + [END]
