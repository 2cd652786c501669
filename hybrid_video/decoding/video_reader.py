"""The first step: a video file to its frames, scaled, upright and evenly spaced in time.

In: the path of a file that may be anything. Out: its frames and their rate, and what was adapted to
get them; or an error that says what is wrong with the file.
"""

from collections.abc import Callable, Iterator
import dataclasses
from fractions import Fraction
import itertools
import os
import pathlib
from typing import Generic, TypeVar

import av
from av.format import Flags
import numpy as np

from hybrid_video import errors
from hybrid_video.decoding import containers, jpeg_stripes, shape, timing, wholeness
from hybrid_video.decoding.containers import ADVICE, MAX_PIXELS, VideoError

# An hour at 60 frames a second.
MAX_FRAMES = 60 * 60 * 60
# FFmpeg's own, and those of seeks and fractions that damaged headers ask for.
_DECODING_ERRORS = (av.error.FFmpegError, OSError, ArithmeticError, ValueError)

# GIF counts hundredths of a second; a unit that is longer is a frame's time.
_COARSEST_ROUNDING = 0.01

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Target:
  """What to make of a video's frames.

  Attributes:
    height: pixels of a frame given out; of its short side where `width` is 0.
    width: pixels; 0 keeps every shape.
    stretch: whether frames of another shape than `height` x `width` are stretched to it. If not,
      their short side gets the target's and their shape is kept.
    max_frames: how long a video may be, repeated frames counted.
  """

  height: int
  width: int = 0
  stretch: bool = False
  max_frames: int = MAX_FRAMES


@dataclasses.dataclass(frozen=True)
class Video(Generic[T]):
  """A decoded video.

  Attributes:
    frames: evenly spaced in time, what was kept of each; one that is repeated is the same object.
    fps: frames a second.
    size: (height, width) of the frames.
    shown_size: (height, width) that the file asks to be seen at, in square pixels.
    notes: what was adapted, by kind: "time", "orientation", "pixel aspect", "stream", "start".
  """

  frames: list[T]
  fps: float
  size: tuple[int, int]
  shown_size: tuple[int, int]
  notes: dict[str, str]


def read_video(
  path: os.PathLike | str,
  target: Target,
  keep: Callable[[np.ndarray], T],
  progress: Callable[[], None] = lambda: None,
) -> Video[T]:
  """Decodes a whole video file, scaled (bilinear) and as a person sees it.

  Every frame that the decoder gives is kept, at the time it is shown at, see `timing.make_grid`.
  Frames are turned and mirrored as the file's display matrix says, and its pixels' width is honored.
  Sound is ignored. The file is the only one that is read, whatever it names.

  A damaged file never passes for a whole one: it raises. (Cut MPEG transport streams, and cut files
  that do not say their length, look whole.) Frames before the first key frame, of a recording that
  begins in the middle, cannot be decoded and are left out, with a note.

  Args:
    path: a file in any container and codec that FFmpeg reads, under any name. Metadata need not be
      UTF-8.
    target: size of the frames.
    keep: what to keep of each frame, uint8 RGB `[height, width, 3]`; called once a frame.
    progress: called after each frame, and between them while much is read.

  Raises:
    VideoError: the file is missing, empty, cut short, damaged, too long, no video, or holds no
      frame.
  """
  path = pathlib.Path(path)
  name = errors.printable(path)
  _check_file(path)
  suspicion = None
  reader = _Reader(name, target, keep, progress)
  try:
    suspicion = wholeness.suspicion_of(path)
    with containers.open_video(path) as source:
      reader.read(source, path.stat().st_size)
      if not reader.found.frames:
        cut = f"the file is cut short: {suspicion}; " if suspicion else ""
        raise VideoError(f"{name}: {cut}it holds no frame that can be decoded. {ADVICE}")
      lacks = suspicion and wholeness.missing(
        suspicion, reader.found, source.container, source.stream
      )
      if lacks:
        raise VideoError(f"{name}: the file is cut short: {lacks}. Copy it again from the source.")
      return reader.video(source)
  except VideoError:
    raise
  except _DECODING_ERRORS as error:
    count = reader.found.frames
    what = f"decoding broke after {count} frames" if count else "it is not a video FFmpeg can read"
    cut = f"the file is cut short: {suspicion}; " if suspicion else ""
    raise VideoError(f"{name}: {cut}{what} ({_reason(error)}). {ADVICE}") from error


def check_video(path: os.PathLike | str) -> None:
  """Checks that a file is a video by its content: a main video stream of two packets or more.

  Raises:
    VideoError: the file is missing, empty, a still picture, or nothing FFmpeg reads.
  """
  path = pathlib.Path(path)
  name = errors.printable(path)
  _check_file(path)
  try:
    with containers.open_video(path) as source:
      # A GIF, and others like it, may be one still picture.
      packets = (packet for packet in source.container.demux(source.stream) if packet.size)
      if sum(1 for _ in itertools.islice(packets, 2)) < 2:
        raise VideoError(f"{name}: a still image, not a video. Take the file out.")
  except VideoError:
    raise
  except _DECODING_ERRORS as error:
    raise VideoError(
      f"{name}: it is not a video FFmpeg can read ({_reason(error)}). {ADVICE}"
    ) from error


def _reason(error: BaseException) -> str:
  text = getattr(error, "strerror", None) or str(error) or type(error).__name__
  return errors.printable(text)


def _check_file(path: pathlib.Path) -> None:
  """Checks what can be seen without a decoder.

  Raises:
    VideoError: the file is missing, a folder, no regular file, not readable, or empty.
  """
  name = errors.printable(path)
  try:
    if path.is_dir():
      raise VideoError(f"{name}: this is a folder. Name the video files in it.")
    if not path.exists():
      raise VideoError(f"{name}: there is no such file. Check the path.")
    if not path.is_file():
      raise VideoError(f"{name}: a pipe or device, not a file. Copy what it gives into a file.")
    with path.open("rb") as file:
      head = file.read(1)
  except OSError as error:
    raise VideoError(
      f"{name}: it cannot be opened ({error.strerror}). Check the file's permissions."
    ) from error
  if not head:
    raise VideoError(f"{name}: the file is empty. Copy it again from the source.")


class _Reader(Generic[T]):
  """Decodes one file's frames and keeps them with their times."""

  def __init__(
    self, name: str, target: Target, keep: Callable[[np.ndarray], T], progress: Callable[[], None]
  ):
    self.found = wholeness.Found()
    self._name = name
    self._target = target
    self._keep = keep
    self._progress = progress
    self._kept: list[T] = []
    self._presented: list[float | None] = []
    self._decoded_at: list[float | None] = []
    self._orientations: dict[shape.Orientation, None] = {}
    self._aspect = Fraction(1)
    self._scaler: shape.Scaler | None = None
    self._shown = (0, 0)
    self._before_start = 0

  def read(self, source: containers.Source, size: int) -> None:
    """Decodes all frames.

    Raises:
      VideoError: frames are missing or damaged, or there are too many.
    """
    end = wholeness.index_end(source.stream)
    if end > size:
      raise VideoError(
        f"{self._name}: the file is cut short, its index names byte {end} and it has {size} bytes. "
        "Copy it again from the source."
      )
    self._aspect = shape.pixel_aspect(source.stream)
    for frame in self._decoded(source):
      self._add(frame)

  def _decoded(self, source: containers.Source) -> Iterator[av.VideoFrame]:
    """The frames of the stream, in the decoder's order, from its first key frame on."""
    # In streams that are cut into packets of a fixed size, a packet is flagged after any break of
    # its counters, as where two recordings are joined; what is damaged then shows in the frames.
    counted = _may_change_clocks(source.container)
    packets = 0
    for packet in source.container.demux():
      self.found.add_packet(packet)
      if packet.stream is not source.stream:
        self._progress()
        continue
      if packet.is_corrupt and not counted:
        raise VideoError(f"{self._name}: packet {packets} is cut short or damaged. {ADVICE}")
      packets += 1
      try:
        frames = packet.decode()
      except av.error.InvalidDataError:
        if self._kept or not counted:
          raise
        frames = []
        self._before_start += 1
      for frame in frames:
        if frame.is_corrupt and not self._kept and not frame.key_frame:
          self._before_start += 1
        elif frame.is_corrupt:
          # FFmpeg hides what it cannot decode under pixels of other frames.
          raise VideoError(f"{self._name}: frame {self.found.frames} is damaged. {ADVICE}")
        else:
          yield frame

  def _add(self, frame: av.VideoFrame) -> None:
    # Streams without packets of one frame each are only counted here.
    if len(self._kept) == self._target.max_frames:
      raise self._too_long(f"more than {self._target.max_frames} frames")
    orientation = shape.orientation_of(frame)
    if self._scaler is None:
      self._scaler = shape.Scaler(self._first_size(frame, orientation))
    self._orientations[orientation] = None
    self._kept.append(self._keep(self._scaler.scale(frame, orientation)))
    unit = frame.time_base
    for seconds, stamp in ((self._presented, frame.pts), (self._decoded_at, frame.dts)):
      seconds.append(None if unit is None or stamp is None else float(stamp * unit))
    self.found.add_frame(frame.pts)
    self._progress()

  def _first_size(self, frame: av.VideoFrame, orientation: shape.Orientation) -> tuple[int, int]:
    """(height, width) to scale all frames to, by the first one."""
    target = self._target
    stored = (frame.height, frame.width)
    self._shown = shape.shown_size(stored, self._aspect, orientation)
    height, width = shape.scaled_size(
      self._shown, (target.height, target.width), stretch=target.stretch
    )
    if max(height, width) > jpeg_stripes.MAX_ROWS or height * width > MAX_PIXELS:
      raise VideoError(
        f"{self._name}: frames of {self._shown[0]}x{self._shown[1]} pixels would be stored as "
        f"{height}x{width}, too large for JPEG. Set --config.stored.stretch=True or re-encode the "
        "file."
      )
    return height, width

  def _too_long(self, what: str) -> VideoError:
    return VideoError(
      f"{self._name}: {what}. Cut the video into shorter ones, or raise "
      "--config.decoding.max_frames."
    )

  def video(self, source: containers.Source) -> Video[T]:
    """All that was read, evenly spaced in time.

    Raises:
      VideoError: it is too long with its repeated frames.
    """
    assert self._scaler is not None
    stream, container = source.stream, source.container
    rates = [stream.guessed_rate, stream.average_rate, stream.base_rate]
    grid = timing.make_grid(
      _ordered(self._presented, self._decoded_at),
      [float(rate) for rate in rates if rate],
      resolution=_resolution(stream),
      new_clocks=_may_change_clocks(container),
    )
    if grid.length > self._target.max_frames:
      raise self._too_long(
        f"its {len(self._kept)} frames take {grid.length / grid.fps:.0f} s, {grid.length} frames at "
        f"{grid.fps:g} a second, and {self._target.max_frames} are allowed"
      )
    repeats = np.diff(grid.slots, append=grid.length)
    frames = [
      kept for kept, times in zip(self._kept, repeats.tolist(), strict=True) for _ in range(times)
    ]
    notes = shape.describe(self._orientations, self._aspect)
    if grid.note:
      notes["time"] = grid.note
    if source.choice:
      notes["stream"] = source.choice
    if self._before_start:
      notes["start"] = f"{self._before_start} frames before the first key frame are left out"
    return Video(frames, grid.fps, self._scaler.size, self._shown, notes)


def _ordered(presented: list[float | None], decoded: list[float | None]) -> list[float | None]:
  """The times that go forward more steadily, those of presentation where both do alike.

  AVI has times of decoding alone; with B-frames, the others are made up and out of order. Source:
  `guess_correct_pts` of FFmpeg's libavcodec/decode.c.
  """

  def faults(seconds: list[float | None]) -> int:
    known = np.array([second for second in seconds if second is not None])
    return int((np.diff(known) <= 0).sum())

  # Frames that come out after the last packet have no time of decoding.
  usable = sum(second is not None for second in decoded) > len(decoded) // 2
  return decoded if usable and faults(decoded) < faults(presented) else presented


def _resolution(stream: av.VideoStream) -> float:
  """To how many seconds a stream's times are rounded; 0 where its unit is its frames'."""
  unit = float(stream.time_base or 0)
  return unit if unit <= _COARSEST_ROUNDING else 0.0


def _may_change_clocks(container: av.container.InputContainer) -> bool:
  """Whether the container is of a format for broadcasts and discs, whose clocks may start anew."""
  return bool(container.format.flags & Flags.ts_discont.value)
