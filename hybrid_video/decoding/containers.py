"""A video file to its open container and the stream that is the video, of those it may hold.

In: the path of a file that may be anything. Out: FFmpeg's container and the main video stream, with
decoding set up but not begun, and what was said about the choice.
"""

from collections import Counter
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import os
import pathlib
import re

import av
from av.stream import Disposition

from hybrid_video import errors

# A frame of more pixels is taken for a damaged or hostile header, not for a video.
MAX_PIXELS = 8192 * 8192
ADVICE = "Copy it again or re-encode it."

# FFmpeg's demuxers that read one file alone. Those that follow names and addresses in it are left
# out: playlists (hls, dash, concat), image sequences, scripts (avs, vpy), session descriptions.
_VIDEO_FORMATS = (
  "3dostr", "4xm", "amv", "anm", "apng", "apv", "argo_brp", "asf", "asf_o", "av1", "avi", "avs2",
  "avs3", "bethsoftvid", "bfi", "bink", "bmv", "c93", "cavsvideo", "cdg", "cdxl", "cine", "dhav",
  "dirac", "dnxhd", "dsicin", "dv", "dxa", "ea", "evc", "film_cpk", "filmstrip", "flic", "flv", "frm",
  "gdv", "gif", "gxf", "h261", "h263", "h264", "hevc", "hnm", "idcin", "iff", "ifv", "ingenient",
  "ipmovie", "ipu", "iv8", "ivf", "ivr", "jv", "kux", "live_flv", "lmlm4", "lvf", "lxf", "m4v",
  "matroska", "webm", "mgsts", "mjpeg", "mjpeg_2000", "mlv", "mm", "moflex", "mov", "mp4", "mpeg",
  "mpegts", "mpegtsraw", "mpegvideo", "mpjpeg", "mtv", "mv", "mvi", "mxf", "mxg", "nc", "nsv", "nut",
  "nuv", "obu", "ogg", "paf", "pmp", "pva", "psxstr", "r3d", "rl2", "rm", "roq", "rpl", "sdr2", "ser",
  "sga", "siff", "simbiosis_imx", "smjpeg", "smk", "smush", "swf", "thp", "tiertexseq", "tmv", "ty",
  "usm", "vc1", "vc1test", "vidc", "vividas", "vivo", "vmd", "vvc", "wc3movie", "webp", "wsvqa", "wtv",
  "xmv", "yop", "yuv4mpegpipe",
)  # fmt: skip
# Read only to say that they are sound, or a picture.
_OTHER_FORMATS = (
  "aac", "ac3", "aiff", "amr", "ape", "au", "caf", "dts", "eac3", "flac", "mp3", "opus", "wav", "w64",
  "wv", "bmp_pipe", "exr_pipe", "gif_pipe", "j2k_pipe", "jpeg_pipe", "jpegls_pipe", "jpegxl_pipe",
  "pbm_pipe", "pgm_pipe", "png_pipe", "ppm_pipe", "psd_pipe", "qoi_pipe", "tiff_pipe", "webp_pipe",
)  # fmt: skip
FORMATS = (*_VIDEO_FORMATS, *_OTHER_FORMATS)

# FFmpeg sees bytes and no name (a file opened by its number has none): names with `%d` or `:` mean
# other things to it. No protocol is allowed, so nothing beside the bytes can be opened.
_OPTIONS = {
  "max_pixels": str(MAX_PIXELS),
  "protocol_whitelist": "none",
  "format_whitelist": ",".join(FORMATS),
}

# Dispositions of streams that go along with a video and are not it.
_BESIDE = (
  Disposition.attached_pic
  | Disposition.timed_thumbnails
  | Disposition.still_image
  | Disposition.dependent
  | Disposition.metadata
)
_BESIDE_WORDS = re.compile(
  r"thumb|preview|proxy|\bcover|poster|depth|disparity|auxiliary|confidence|\bmatte|\bmask",
  re.IGNORECASE,
)
# A stream flagged as the default one counts as half as large again: less than between a video and
# its preview, more than between two cameras.
_DEFAULT_BONUS = 1.5


class VideoError(errors.UserError):
  """A video file that cannot be used; the message names it and says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Source:
  """An open video.

  Attributes:
    container: FFmpeg's.
    stream: the main video stream.
    choice: what was chosen among what, "" where there was one video stream alone.
  """

  container: av.container.InputContainer
  stream: av.VideoStream
  choice: str


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[av.container.InputContainer]:
  with (
    open(os.open(path, os.O_RDONLY), "rb") as file,
    av.open(file, metadata_errors="ignore", options=_OPTIONS) as container,
  ):
    yield container


@contextlib.contextmanager
def open_video(path: pathlib.Path) -> Iterator[Source]:
  """Opens a file and finds its main video stream, as `Source`.

  The main stream is none that is marked, by flag or by name, as a cover, thumbnail, preview or depth
  map, none of a single picture or of few beside another, no grey one beside one in color; of what
  remains, the largest, the default one before others.

  Raises:
    VideoError: no video stream, no decoder, or no usable frame size.
    av.error.FFmpegError: nothing that FFmpeg reads.
  """
  name = errors.printable(path)
  with _opened(path) as container:
    streams = list(container.streams.video)
    if container.format.name.endswith("_pipe"):
      raise VideoError(f"{name}: a still image, not a video. Take the file out.")
    candidates = [
      stream for stream in streams if Disposition.attached_pic not in stream.disposition
    ]
    if not candidates:
      raise VideoError(
        f"{name}: no video stream, only {len(container.streams)} of other kinds. Take the file out."
      )
    stream, choice = candidates[0], ""
    if len(streams) > 1:
      counts = _packet_counts(path) if len(candidates) > 1 else Counter()
      stream = _main_stream(candidates, counts)
      choice = _choice(streams, stream, counts)
    _prepare(stream, name)
    yield Source(container, stream, choice)


def _packet_counts(path: pathlib.Path) -> Counter[int]:
  """Packets of each stream by its index, read to the end in a container of its own."""
  counts: Counter[int] = Counter()
  with _opened(path) as container:
    for packet in container.demux(video=tuple(range(len(container.streams.video)))):
      counts[packet.stream.index] += packet.size > 0
  return counts


def _main_stream(candidates: list[av.VideoStream], counts: Counter[int]) -> av.VideoStream:
  most = max(counts.values(), default=0)

  def context(stream: av.VideoStream) -> av.VideoCodecContext | None:
    return stream.codec_context

  def named_beside(stream: av.VideoStream) -> bool:
    return any(_BESIDE_WORDS.search(text) for text in stream.metadata.values())

  def is_grey(stream: av.VideoStream) -> bool:
    return (getattr(context(stream), "pix_fmt", None) or "").startswith(("gray", "mono"))

  # Each condition counts if a stream meets it.
  conditions: tuple[Callable[[av.VideoStream], bool], ...] = (
    lambda stream: context(stream) is not None,
    lambda stream: not stream.disposition & _BESIDE,
    lambda stream: counts[stream.index] > 1 or most <= 1,
    lambda stream: not named_beside(stream),
    lambda stream: 4 * counts[stream.index] >= most,
    lambda stream: not is_grey(stream),
  )
  for condition in conditions:
    candidates = [stream for stream in candidates if condition(stream)] or candidates

  def rank(stream: av.VideoStream) -> tuple[float, int, int]:
    pixels = stream.codec_context.width * stream.codec_context.height if context(stream) else 0
    is_default = bool(stream.disposition & Disposition.default)
    return pixels * (_DEFAULT_BONUS if is_default else 1), counts[stream.index], -stream.index

  return max(candidates, key=rank)


def _choice(streams: list[av.VideoStream], main: av.VideoStream, counts: Counter[int]) -> str:
  def describe(stream: av.VideoStream) -> str:
    context = stream.codec_context
    what = f"{context.name} {context.width}x{context.height}" if context else "no decoder"
    count = counts[stream.index]
    frames = f", {count} frame{'' if count == 1 else 's'}" if counts else ""
    return f"stream {stream.index} ({what}{frames})"

  others = ", ".join(describe(stream) for stream in streams if stream is not main)
  return f"{describe(main)} is taken for the video, not {others}"


def _prepare(stream: av.VideoStream, name: str) -> None:
  context = stream.codec_context
  if context is None:
    raise VideoError(f"{name}: FFmpeg has no decoder for its codec. Re-encode the file.")
  # Where a header asks for more than max_pixels, FFmpeg leaves the size at 0.
  if context.width * context.height == 0:
    raise VideoError(
      f"{name}: no usable frame size, it is missing in the file or above the {MAX_PIXELS} pixels "
      f"allowed. {ADVICE}"
    )
  # Files are decoded in parallel, not the frames of one file.
  context.thread_type = "NONE"
  context.options = {"max_pixels": str(MAX_PIXELS)}
