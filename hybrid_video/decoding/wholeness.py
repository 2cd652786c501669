"""Whether a file is whole, by what it says it holds: headers raise a suspicion, frames decide.

In: the bytes of a video file, before it is decoded; then the frames that were found. Out: the reason
why it is cut short, or none.

Decoders take the end of a cut file for the end of the video. AVI and Matroska say how long their data
is. A field that is off alone means nothing (writers get it wrong): a file is cut short where frames
are missing that its header or index counts.
"""

import dataclasses
import pathlib
import struct
from typing import BinaryIO

import av

_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
# Frames may be a little shorter than their container, by this part of a frame.
_PART_OF_FRAME = 0.75


@dataclasses.dataclass(frozen=True)
class Suspicion:
  """A file that is shorter than it says.

  Attributes:
    stated_bytes: what it should have at least.
    size: bytes that it has.
    certain: whether it ends within its pictures, so that some are missing.
  """

  stated_bytes: int
  size: int
  certain: bool = False

  def __str__(self) -> str:
    return f"its header says {self.stated_bytes} bytes and it has {self.size}"


def suspicion_of(path: pathlib.Path) -> Suspicion | None:
  """Whether a file ends before its data does, by its own words; of AVI and Matroska."""
  size = path.stat().st_size
  with path.open("rb") as file:
    head = file.read(4096)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
      end, certain = _avi_end(file, size), False
    else:
      end, certain = _matroska_end(file, head, size)
  return Suspicion(end, size, certain) if end > size else None


def _avi_end(file: BinaryIO, size: int) -> int:
  """Where the last chunk of an AVI file ends; the size of the whole, in its first field, is not used.

  Source: Microsoft's AVI RIFF File Reference; OpenDML AVI 1.02, "AVIX" (further RIFF chunks).
  """
  file.seek(4)
  (stated,) = struct.unpack("<I", file.read(4))
  at, chunks = 12, 0
  while at + 8 <= size:
    file.seek(at)
    name, length = struct.unpack("<4sI", file.read(8))
    if name == b"LIST" and length < 4:
      # A recorder that was switched off has not come to write how long its pictures are.
      return 0
    # A RIFF chunk's own size is as little to be trusted as the first: its content follows.
    if name == b"RIFF":
      at += 12
    elif not name.isalnum() and not name.strip().isalnum():
      break
    else:
      at += 8 + length + length % 2
    chunks += 1
  # The padding of the last chunk is often left out.
  return at - 1 if chunks else 8 + stated


def _matroska_end(file: BinaryIO, head: bytes, size: int) -> tuple[int, bool]:
  """Where the segment of a Matroska file ends, and whether a cluster in it goes beyond the file.

  (0, False) where it is no such file, or does not say. Source: RFC 8794, section 4 (a size's width in
  bytes, its value, and "unknown" as all ones); RFC 9559, section 5.1 (the elements of a segment).
  """
  at = head.find(_SEGMENT)
  if head[:4] != b"\x1a\x45\xdf\xa3" or at < 0:
    return 0, False
  end, content = _element(head[at + 4 :], at + 4)
  if end is None:
    return 0, False
  at = content
  while at < size:
    file.seek(at)
    start = file.read(12)
    width = 9 - start[0].bit_length() if start[0] else 0
    if not 1 <= width <= 4:
      break
    next_at, _ = _element(start[width:], at + width)
    if next_at is None:
      break
    if next_at > size and start.startswith(_CLUSTER):
      return max(end, next_at), True
    at = next_at
  return end, False


def _element(data: bytes, at: int) -> tuple[int | None, int]:
  """Where an EBML element ends, None if it does not say, and where its content begins.

  Args:
    data: from its size on.
    at: where `data` lies in the file.
  """
  if not data or not data[0]:
    return None, at
  width = 9 - data[0].bit_length()
  unknown = (1 << 7 * width) - 1
  length = int.from_bytes(data[:width]) & unknown
  content = at + width
  return (None if length == unknown else content + length), content


class Found:
  """What was found in a file while it was decoded, to judge a suspicion by.

  Attributes:
    frames: decoded.
    last_place: of a stream that counts its frames, the highest place that a frame had.
    end: seconds at which the last packet of any stream ends.
  """

  def __init__(self) -> None:
    self.frames = 0
    self.last_place = -1
    self.end = 0.0

  def add_packet(self, packet: av.Packet) -> None:
    """Takes a packet of any stream."""
    if packet.pts is not None and packet.time_base is not None:
      self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))

  def add_frame(self, place: int | None) -> None:
    """Takes a decoded frame, with its time in the stream's unit."""
    self.frames += 1
    self.last_place = max(self.last_place, -1 if place is None else place)


def missing(
  suspicion: Suspicion, found: Found, container: av.container.InputContainer, stream: av.VideoStream
) -> str:
  """What a file that was suspected lacks; "" if nothing."""
  if suspicion.certain:
    return str(suspicion)
  if container.format.name == "avi":
    # Its stream header counts the frames, and frames that were left out as empty; or it does not.
    there = max(found.frames, found.last_place + 1)
    if there >= stream.frames:
      return ""
    return f"it counts {stream.frames} frames and holds {there}; {suspicion}"
  stated = (container.duration or 0) / av.time_base
  rate = stream.average_rate or stream.guessed_rate or 25
  if stated and found.end >= stated - _PART_OF_FRAME / float(rate):
    return ""
  if stated:
    return f"it says that it takes {stated:.3f} s and ends after {found.end:.3f} s; {suspicion}"
  return str(suspicion)


def index_end(stream: av.VideoStream) -> int:
  """Where the last frame ends that a stream's index names, in bytes; 0 without an index."""
  return max((entry.pos + entry.size for entry in stream.index_entries), default=0)
