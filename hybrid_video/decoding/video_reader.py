"""The first step: a video file to its frames, scaled, upright and evenly spaced in time.

In: the path of a file that may be anything. Out: its frames one by one, or an error that says what
is wrong with the file.
"""

from collections.abc import Iterable, Iterator
import contextlib
import itertools
import os
import pathlib
import struct

import av
from av.stream import Disposition
import numpy as np

from hybrid_video import errors
from hybrid_video.decoding import jpeg_stripes, timing

# A frame of more pixels is taken for a damaged or hostile header, not for a video.
MAX_PIXELS = 8192 * 8192
# An hour at 60 frames a second.
MAX_FRAMES = 60 * 60 * 60
_ADVICE = "Copy it again or re-encode it."
# FFmpeg's own, and those of seeks and fractions that damaged headers ask for.
_DECODING_ERRORS = (av.error.FFmpegError, OSError, ArithmeticError, ValueError)


class VideoError(errors.UserError):
  """A video file that cannot be used; the message names it and says what is wrong with it."""


def _reason(error: BaseException) -> str:
  text = getattr(error, "strerror", None) or str(error) or type(error).__name__
  return errors.printable(text)


def _check_file(path: pathlib.Path) -> None:
  """Checks what can be seen without a decoder.

  Raises:
    VideoError: the file is missing, a folder, not readable, empty or shorter than it says.
  """
  name = errors.printable(path)
  try:
    if path.is_dir():
      raise VideoError(f"{name}: this is a folder. Name the video files in it.")
    if not path.is_file():
      raise VideoError(f"{name}: there is no such file. Check the path.")
    size = path.stat().st_size
    with path.open("rb") as file:
      head = file.read(4096)
  except OSError as error:
    raise VideoError(
      f"{name}: it cannot be opened ({error.strerror}). Check the file's permissions."
    ) from error
  if size == 0:
    raise VideoError(f"{name}: the file is empty. Copy it again from the source.")
  stated = _stated_size(head)
  if stated > size:
    raise VideoError(
      f"{name}: the file is cut short, its header says {stated} bytes and it has {size}. Copy it "
      "again from the source."
    )


def _stated_size(head: bytes) -> int:
  """Bytes that a file has at least, by its first bytes: AVI (RIFF) and Matroska say so, else 0.

  Decoders take the end of a cut file for the end of the video. Sources: Microsoft's AVI RIFF File
  Reference; RFC 8794, section 4 (a size's width in bytes, its value, and "unknown" as all ones).
  """
  if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
    return 8 + struct.unpack("<I", head[4:8])[0]
  at = head.find(b"\x18\x53\x80\x67") + 4
  if head[:4] == b"\x1a\x45\xdf\xa3" and 4 <= at < len(head) and head[at]:
    width = 9 - head[at].bit_length()
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(head[at : at + width]) & unknown
    if size != unknown:
      return at + width + size
  return 0


@contextlib.contextmanager
def _open_stream(
  path: pathlib.Path,
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
  """The container and its video stream, with decoding set up but not begun."""
  name = errors.printable(path)
  # FFmpeg sees bytes and no name (a file opened by its number has none): names with `%d` or `:`
  # mean other things to it. No protocol is allowed, because some formats (playlists) name other
  # files and addresses to read.
  options = {"max_pixels": str(MAX_PIXELS), "protocol_whitelist": "none"}
  with (
    open(os.open(path, os.O_RDONLY), "rb") as file,
    av.open(file, metadata_errors="ignore", options=options) as container,
  ):
    # Music files carry their cover as a video stream.
    streams = [s for s in container.streams.video if Disposition.attached_pic not in s.disposition]
    if not streams:
      raise VideoError(
        f"{name}: no video stream, only {len(container.streams)} of other kinds. Take the file out."
      )
    stream, context = streams[0], streams[0].codec_context
    if container.format.name.endswith("_pipe"):
      raise VideoError(f"{name}: a still image, not a video. Take the file out.")
    if context is None:
      raise VideoError(f"{name}: FFmpeg has no decoder for its codec. Re-encode the file.")
    # Where a header asks for more than max_pixels, FFmpeg leaves the size at 0.
    if context.width * context.height == 0:
      raise VideoError(
        f"{name}: no usable frame size, it is missing in the file or above the {MAX_PIXELS} pixels "
        f"allowed. {_ADVICE}"
      )
    # Files are decoded in parallel, not the frames of one file.
    context.thread_type = "NONE"
    context.options = {"max_pixels": str(MAX_PIXELS)}
    yield container, stream


def _read_stamps(
  path: pathlib.Path,
  container: av.container.InputContainer,
  stream: av.VideoStream,
  max_frames: int,
) -> list[int | None]:
  """Presentation times of a stream's packets, in the stream's unit, as they come.

  Raises:
    VideoError: the file is cut short, a packet is damaged, or there are more than `max_frames`.
  """
  name, size = errors.printable(path), path.stat().st_size
  end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
  if end > size:
    raise VideoError(
      f"{name}: the file is cut short, its index names byte {end} and it has {size} bytes. Copy it "
      "again from the source."
    )
  stamps: list[int | None] = []
  for packet in container.demux(stream):
    if packet.is_corrupt:
      raise VideoError(f"{name}: packet {len(stamps)} is cut short or damaged. {_ADVICE}")
    # The last packet is empty and there to flush the decoder.
    if packet.size and not packet.is_discard:
      stamps.append(packet.pts)
    if len(stamps) > max_frames:
      raise _too_long(path, max_frames)
  return stamps


def _too_long(path: pathlib.Path, max_frames: int) -> VideoError:
  return VideoError(
    f"{errors.printable(path)}: more than {max_frames} frames. Cut the video into shorter ones."
  )


def _read_timing(path: pathlib.Path, max_frames: int) -> timing.Timing:
  """Whether a file is whole and when its frames are shown, from its packets, without decoding.

  Raises:
    VideoError: see `decode_frames`.
  """
  name = errors.printable(path)
  try:
    with _open_stream(path) as (container, stream):
      stamps = _read_stamps(path, container, stream, max_frames)
      stated = stream.average_rate or stream.guessed_rate
      time_base = stream.time_base
    known = sorted(stamp for stamp in stamps if stamp is not None)
    if not time_base or len(known) < len(stamps):
      known = []
    seconds = np.array([stamp - known[0] for stamp in known], float) * float(time_base or 0)
    found = timing.timing_of(seconds, float(stated) if stated else None)
  except VideoError:
    raise
  except _DECODING_ERRORS as error:
    raise VideoError(
      f"{name}: it is not a video FFmpeg can read ({_reason(error)}). {_ADVICE}"
    ) from error
  if found is None:
    raise VideoError(f"{name}: the frame rate is not known. Re-encode the file.")
  if not timing.MIN_FPS <= found.fps <= timing.MAX_FPS:
    raise VideoError(
      f"{name}: {found.fps:g} frames a second, expected {timing.MIN_FPS:g} to "
      f"{timing.MAX_FPS:g}. {_ADVICE}"
    )
  return found


def _scaled_size(
  path: pathlib.Path, frame_size: tuple[int, int], target: tuple[int, int]
) -> tuple[int, int]:
  """(height, width) to scale a frame of (height, width) to; a target width of 0 keeps the aspect.

  Raises:
    VideoError: the scaled frame is larger than a JPEG may be.
  """
  height, width = target
  if not width:
    factor = height / min(frame_size)
    height, width = (max(1, round(side * factor)) for side in frame_size)
  if max(height, width) > jpeg_stripes.MAX_ROWS or height * width > MAX_PIXELS:
    raise VideoError(
      f"{errors.printable(path)}: frames of {frame_size[0]}x{frame_size[1]} pixels would be stored "
      f"as {height}x{width}, too large for JPEG. Set a stored width or re-encode the file."
    )
  return height, width


def _decode_all(
  path: pathlib.Path, height: int, width: int
) -> Iterator[tuple[np.ndarray, float | None]]:
  """All frames that the decoder gives, scaled and upright, with the seconds they are shown at."""
  name = errors.printable(path)
  size = None
  count = 0
  try:
    with _open_stream(path) as (container, stream):
      for frame in container.decode(stream):
        if frame.is_corrupt:
          # FFmpeg hides what it cannot decode under pixels of other frames.
          raise VideoError(f"{name}: frame {count} is damaged. {_ADVICE}")
        # A phone held upright writes frames on their side and how far to turn them,
        # counterclockwise.
        quarters = round(frame.rotation / 90) % 4
        on_side = quarters % 2 == 1
        if size is None:
          shown_size = (frame.height, frame.width)
          size = _scaled_size(path, shown_size[::-1] if on_side else shown_size, (height, width))
        scaled = frame.reformat(
          width=size[0] if on_side else size[1],
          height=size[1] if on_side else size[0],
          format="rgb24",
          interpolation="BILINEAR",
        )
        pixels = np.ascontiguousarray(np.rot90(scaled.to_ndarray(), quarters))
        yield pixels, None if frame.time_base is None else frame.time
        count += 1
  except VideoError:
    raise
  except _DECODING_ERRORS as error:
    what = f"decoding broke after {count} frames" if count else "it is not a video FFmpeg can read"
    raise VideoError(f"{name}: {what} ({_reason(error)}). {_ADVICE}") from error
  if not count:
    raise VideoError(f"{name}: it holds no frame that can be decoded. {_ADVICE}")


def decode_frames(
  path: os.PathLike | str, height: int, width: int, *, max_frames: int = MAX_FRAMES
) -> Iterator[tuple[np.ndarray, float]]:
  """Decodes a video file frame by frame, scaled (bilinear) and upright.

  Frames come evenly spaced. A file whose timestamps keep to a constant rate, within half a frame,
  gives exactly the frames of its decoder. Of any other, the frames are put on a grid of its average
  rate, repeated and left out as FFmpeg's `fps` filter does.

  A damaged file never passes for a whole one: it raises, at the latest at the first damaged frame.
  (Cut MPEG transport streams, and cut files that do not say their length, look whole.) Quarter
  turns in the file's display matrix are honoured; mirrorings in it, and pixels that are not square,
  are not. Sound is ignored.

  Args:
    path: a file in any container and codec that FFmpeg reads, under any name. Metadata need not be
      UTF-8.
    height: pixels of a frame given out; of its short side where `width` is 0.
    width: pixels; 0 keeps the aspect ratio.
    max_frames: how long a video may be.

  Yields:
    (uint8 RGB `[height, width, 3]`, frames a second), both sizes the same for all frames. A frame
    that is repeated is the same object.

  Raises:
    VideoError: the file is missing, empty, cut short, damaged, too long, no video, or holds no
      frame.
  """
  path = pathlib.Path(path)
  _check_file(path)
  shown = _read_timing(path, max_frames)
  decoded = _decode_all(path, height, width)
  frames: Iterable[np.ndarray] = (
    timing.on_grid(decoded, shown.fps) if shown.irregular else (pixels for pixels, _ in decoded)
  )
  for count, pixels in enumerate(frames):
    # Streams without packets of one frame each are only counted here.
    if count == max_frames:
      raise _too_long(path, max_frames)
    yield pixels, shown.fps


def check_video(path: os.PathLike | str) -> None:
  """Checks that a file is a video by its content: a main video stream of two packets or more.

  Raises:
    VideoError: the file is missing, empty, cut short, a still picture, or nothing FFmpeg reads.
  """
  path = pathlib.Path(path)
  _check_file(path)
  try:
    with _open_stream(path) as (container, stream):
      # A GIF, and others like it, may be one still picture.
      packets = (packet for packet in container.demux(stream) if packet.size)
      if sum(1 for _ in itertools.islice(packets, 2)) < 2:
        raise VideoError(
          f"{errors.printable(path)}: a still image, not a video. Take the file out."
        )
  except VideoError:
    raise
  except _DECODING_ERRORS as error:
    raise VideoError(
      f"{errors.printable(path)}: it is not a video FFmpeg can read ({_reason(error)}). {_ADVICE}"
    ) from error
