"""The first step on the way: video files to JPEG frames at the training scale.

In: paths of files that nobody vouches for. Out: for each, its frames, evenly spaced in time, or one
line that says why there are none.

Imports neither TensorFlow nor JAX, so that decoding processes start quickly.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
import contextlib
import dataclasses
import io
import math
import multiprocessing
from multiprocessing import connection, resource_tracker
import os
import pathlib
import signal
import struct
import sys
import time

import av
from av.stream import Disposition
import numpy as np
from PIL import Image

# A frame of more pixels is taken for a damaged or hostile header, not for a video.
MAX_PIXELS = 8192 * 8192
# An hour at 60 frames a second.
MAX_FRAMES = 60 * 60 * 60
# Frames a second outside of these are damaged headers.
MIN_FPS, MAX_FPS = 0.1, 1000.0
# Address space a decoding process may take beyond what its imports took.
MEMORY_LIMIT = 4 * 2**30
# A decoding process that has not asked for work by then never will.
_START_SECONDS = 300.0
# JPEG's own limit is 65535; libjpeg stops a little before.
_JPEG_MAX_SIDE = 65500
_MEND = "Copy it again or re-encode it."
# FFmpeg's own, and those of seeks and fractions that damaged headers ask for.
_DECODING_ERRORS = (av.error.FFmpegError, OSError, ArithmeticError, ValueError)


class VideoError(ValueError):
  """A video file that cannot be used; the message names it and says what was found."""


class WorkerError(ValueError):
  """Decoding processes do not start, whatever the video."""


@dataclasses.dataclass(frozen=True)
class StoredScale:
  """How frames are stored.

  Attributes:
    height: pixels; the short side's where `width` is 0.
    width: pixels, or 0 to keep the aspect ratio.
    jpeg_quality: 1 to 95.

  Raises:
    ValueError: a size or the quality is out of range.
  """

  height: int = 128
  width: int = 171
  jpeg_quality: int = 90

  def __post_init__(self) -> None:
    if self.height < 1 or self.width < 0:
      raise ValueError(
        f"A stored scale of {self.height}x{self.width} pixels: expected a height of 1 or more, and "
        "a width of 1 or more or 0 to keep the aspect ratio. Change stored.height or stored.width."
      )
    if not 1 <= self.jpeg_quality <= 95:
      raise ValueError(
        f"A JPEG quality of {self.jpeg_quality}: expected 1 to 95. Change stored.jpeg_quality."
      )

  @property
  def name(self) -> str:
    """A short name for folders, such as `128x171-q90` or `128short-q90`."""
    size = f"{self.height}x{self.width}" if self.width else f"{self.height}short"
    return f"{size}-q{self.jpeg_quality}"


@dataclasses.dataclass(frozen=True)
class StoredVideo:
  """A decoded video.

  Attributes:
    frames: JPEG files in order of time; frame `i` is shown at `i / fps` seconds.
    fps: frames a second.
    height: pixels of every frame.
    width: likewise.
  """

  frames: list[bytes]
  fps: float
  height: int
  width: int


def _shown(path: os.PathLike | str) -> str:
  # A name may hold bytes that no terminal, log or JSON file takes.
  text = os.fsdecode(path)
  return text if text.isprintable() else ascii(text)[1:-1]


def _told(error: BaseException) -> str:
  return _shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _check_file(path: pathlib.Path) -> None:
  if path.is_dir():
    raise VideoError(f"{_shown(path)}: this is a folder. Name the video files in it.")
  if not path.is_file():
    raise VideoError(f"{_shown(path)}: there is no such file. Look at the path.")
  try:
    size = path.stat().st_size
    with path.open("rb") as file:
      head = file.read(4096)
  except OSError as error:
    raise VideoError(
      f"{_shown(path)}: it cannot be opened ({error.strerror}). Look at the rights of the file."
    ) from error
  if size == 0:
    raise VideoError(f"{_shown(path)}: the file is empty. Copy it again from the source.")
  promised = _promised_size(head)
  if promised > size:
    raise VideoError(
      f"{_shown(path)}: the file is cut short, its header promises {promised} bytes and it has "
      f"{size}. Copy it again from the source."
    )


def _promised_size(head: bytes) -> int:
  """Bytes that a file's first bytes say it has at least: AVI (RIFF) and Matroska say so, else 0.

  Decoders take the end of such a file for the end of the video. Sources: Microsoft's AVI RIFF File
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
def _open_stream(path: pathlib.Path) -> Iterator[tuple]:
  """The container and its video stream, with decoding set up but not begun."""
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
        f"{_shown(path)}: no video stream, only {len(container.streams)} of other kinds. Take the "
        "file out."
      )
    stream, context = streams[0], streams[0].codec_context
    if container.format.name.endswith("_pipe"):
      raise VideoError(f"{_shown(path)}: a still image, not a video. Take the file out.")
    if context is None:
      raise VideoError(f"{_shown(path)}: FFmpeg has no decoder for its codec. Re-encode the file.")
    # Where a header asks for more than max_pixels, FFmpeg leaves the size at 0.
    if context.width * context.height == 0:
      raise VideoError(
        f"{_shown(path)}: no usable frame size, it is missing in the file or above the "
        f"{MAX_PIXELS} pixels taken. {_MEND}"
      )
    # The files are what runs in parallel.
    context.thread_type = "NONE"
    context.options = {"max_pixels": str(MAX_PIXELS)}
    yield container, stream


@dataclasses.dataclass(frozen=True)
class _Timing:
  """When a stream's frames are shown: on a grid of `fps`, or `irregular` and to be put on one."""

  fps: float
  irregular: bool


def _timing_of(seconds: np.ndarray, stated_fps: float | None) -> _Timing | None:
  """Whether frames are evenly spaced, from ascending times `[N]` and the header's rate."""
  count = len(seconds)
  span = seconds[-1] - seconds[0] if count else 0.0
  if count < 3 or span <= 0:
    return _Timing(stated_fps, irregular=False) if stated_fps else None
  # Files with B-frames often start with one or two odd times.
  judged = seconds[2:] if count > 5 else seconds
  if judged[-1] > judged[0]:
    index = np.arange(len(judged))
    period, start = np.polyfit(index, judged, 1)
    off_grid = (judged - start) / period - index
    if np.ptp(off_grid) <= 1:  # Half a frame early to half a frame late.
      fps = float(1 / period)
      # The header's exact fraction, unless indices and times drift apart by it.
      if stated_fps and abs(stated_fps - fps) * (judged[-1] - judged[0]) <= 0.5:
        fps = stated_fps
      return _Timing(fps, irregular=False)
  return _Timing(float((count - 1) / span), irregular=True)


def _read_timing(path: pathlib.Path, max_frames: int) -> _Timing:
  """Whether a file is whole and when its frames are shown, from its packets, without decoding."""
  stamps: list[int | None] = []
  with _open_stream(path) as (container, stream):
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if end > path.stat().st_size:
      raise VideoError(
        f"{_shown(path)}: the file is cut short, its index names byte {end} and it has "
        f"{path.stat().st_size} bytes. Copy it again from the source."
      )
    for packet in container.demux(stream):
      if packet.is_corrupt:
        raise VideoError(f"{_shown(path)}: packet {len(stamps)} is cut short or damaged. {_MEND}")
      # The last packet is empty and there to flush the decoder.
      if packet.size and not packet.is_discard:
        stamps.append(packet.pts)
      if len(stamps) > max_frames:
        raise VideoError(
          f"{_shown(path)}: more than {max_frames} frames. Cut the video into shorter ones."
        )
    stated = stream.average_rate or stream.guessed_rate
    time_base = stream.time_base
  known = sorted(stamp for stamp in stamps if stamp is not None)
  if not time_base or len(known) < len(stamps):
    known = []
  seconds = np.array([stamp - known[0] for stamp in known], float) * float(time_base or 0)
  timing = _timing_of(seconds, float(stated) if stated else None)
  if timing is None:
    raise VideoError(f"{_shown(path)}: the frame rate is not known. Re-encode the file.")
  if not MIN_FPS <= timing.fps <= MAX_FPS:
    raise VideoError(
      f"{_shown(path)}: {timing.fps:g} frames a second, expected {MIN_FPS:g} to {MAX_FPS:g}. {_MEND}"
    )
  return timing


def _scaled_size(path: pathlib.Path, frame_size: tuple[int, int], wanted: tuple[int, int]) -> tuple:
  """(height, width) to store a frame of (height, width) at; see `StoredScale`."""
  height, width = wanted
  if not width:
    factor = wanted[0] / min(frame_size)
    height, width = (max(1, round(side * factor)) for side in frame_size)
  if max(height, width) > _JPEG_MAX_SIDE or height * width > MAX_PIXELS:
    raise VideoError(
      f"{_shown(path)}: frames of {frame_size[0]}x{frame_size[1]} pixels would be stored as "
      f"{height}x{width}, too large for JPEG. Set a stored width or re-encode the file."
    )
  return height, width


def _decode_all(
  path: pathlib.Path, height: int, width: int
) -> Iterator[tuple[np.ndarray, float | None]]:
  """All frames that the decoder gives, scaled and upright, with the seconds they are shown at."""
  size = None
  count = 0
  try:
    with _open_stream(path) as (container, stream):
      for frame in container.decode(stream):
        if frame.is_corrupt:
          # FFmpeg hides what it cannot decode under pixels of other frames.
          raise VideoError(f"{_shown(path)}: frame {count} is damaged. {_MEND}")
        # A phone held upright writes lying frames and how far to turn them, counterclockwise.
        quarters = round(frame.rotation / 90) % 4
        lying = quarters % 2 == 1
        if size is None:
          shown_size = (frame.height, frame.width)
          size = _scaled_size(path, shown_size[::-1] if lying else shown_size, (height, width))
        scaled = frame.reformat(
          width=size[0] if lying else size[1],
          height=size[1] if lying else size[0],
          format="rgb24",
          interpolation="BILINEAR",
        )
        pixels = np.ascontiguousarray(np.rot90(scaled.to_ndarray(), quarters))
        yield pixels, None if frame.time_base is None else frame.time
        count += 1
  except VideoError:
    raise
  except _DECODING_ERRORS as error:
    found = f"decoding broke after {count} frames" if count else "it is not a video FFmpeg can read"
    raise VideoError(f"{_shown(path)}: {found} ({_told(error)}). {_MEND}") from error
  if not count:
    raise VideoError(f"{_shown(path)}: it holds no frame that can be decoded. {_MEND}")


def _on_grid(
  frames: Iterable[tuple[np.ndarray, float | None]], fps: float
) -> Iterator[tuple[np.ndarray, float | None]]:
  """Puts frames on a constant grid: each moves to the nearest time, is shown until the next comes.

  What FFmpeg's `fps` filter does: where two meet, the later stays; gaps repeat the frame before.
  """
  start: float | None = None
  held, slot = None, 0
  for pixels, seconds in frames:
    if start is None:
      start = seconds
    if seconds is None or start is None:
      arrives = slot + 1
    else:
      arrives = max(slot, math.floor((seconds - start) * fps + 0.5))
    if held is not None:
      for _ in range(arrives - slot):
        yield held, None
      slot = arrives
    held = pixels
  if held is not None:
    yield held, None


def decode_frames(
  path: os.PathLike | str, height: int, width: int, *, max_frames: int = MAX_FRAMES
) -> Iterator[tuple[np.ndarray, float]]:
  """Decodes a video file frame by frame, scaled (bilinear) and upright.

  Frames come evenly spaced. A file whose timestamps keep to a constant rate, within half a frame,
  gives exactly the frames of its decoder. Of any other, the frames are put on a grid of its average
  rate, repeated and left out as FFmpeg's `fps` filter does.

  Nothing half decoded passes: a cut or damaged file raises, at the latest at the first damaged
  frame. (Cut MPEG transport streams, and cut files that do not say their length, look whole.)
  Quarter turns in the file's display matrix are honoured; mirrorings in it, and pixels that are not
  square, are not. Sound is ignored.

  Args:
    path: a file in any container and codec that FFmpeg reads, under any name. Metadata need not be
      UTF-8.
    height: pixels of a frame given out; of its short side where `width` is 0.
    width: pixels; 0 keeps the aspect ratio.
    max_frames: how long a video may be.

  Yields:
    (uint8 RGB `[height, width, 3]`, frames a second), both sizes the same for all frames.

  Raises:
    VideoError: the file is missing, empty, cut short, damaged, too long, no video, or holds no
      frame.
  """
  path = pathlib.Path(path)
  _check_file(path)
  try:
    timing = _read_timing(path, max_frames)
  except VideoError:
    raise
  except _DECODING_ERRORS as error:
    raise VideoError(
      f"{_shown(path)}: it is not a video FFmpeg can read ({_told(error)}). {_MEND}"
    ) from error
  frames = _decode_all(path, height, width)
  for count, (pixels, _) in enumerate(_on_grid(frames, timing.fps) if timing.irregular else frames):
    # Streams without packets of one frame each are only counted here.
    if count == max_frames:
      raise VideoError(
        f"{_shown(path)}: more than {max_frames} frames. Cut the video into shorter ones."
      )
    yield pixels, timing.fps


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


def store_video(
  path: os.PathLike | str, scale: StoredScale, *, max_frames: int = MAX_FRAMES
) -> StoredVideo:
  """Decodes a whole video file, in this process, into what the records keep of it.

  Args:
    path: see `decode_frames`.
    scale: how to store the frames.
    max_frames: how long a video may be.

  Raises:
    VideoError: see `decode_frames`.
  """
  jpegs: list[bytes] = []
  encoded, rate = None, 0.0
  for frame, fps in decode_frames(path, scale.height, scale.width, max_frames=max_frames):
    # A repeated frame is the same object.
    jpegs.append(jpegs[-1] if frame is encoded else encode_jpeg(frame, scale.jpeg_quality))
    encoded, rate = frame, fps
  assert encoded is not None  # decode_frames raises rather than giving nothing.
  return StoredVideo(jpegs, rate, *encoded.shape[:2])


Store = Callable[[str, StoredScale], StoredVideo]


def _limit_memory() -> None:
  if sys.platform == "linux":
    import resource

    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or limit < most:
      resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def _work(pipe: connection.Connection, store: Store, scale: StoredScale, limit: float) -> None:
  """A decoding process: takes paths from the pipe and gives back stored videos or reasons."""
  _limit_memory()
  with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
    pipe.send(None)
    while True:
      path = pipe.recv()
      # The parent ends a process that takes too long. Should the parent be gone, this does; the
      # default action needs no Python, so it ends native code too.
      signal.setitimer(signal.ITIMER_REAL, limit + 10)
      result: StoredVideo | str
      try:
        result = store(path, scale)
      except VideoError as error:
        result = str(error)
      except MemoryError:
        result = (
          f"{_shown(path)}: decoding needs more than {MEMORY_LIMIT / 2**30:g} GiB of memory. "
          "Re-encode the file at a smaller size."
        )
      except Exception as error:
        result = (
          f"{_shown(path)}: decoding failed ({type(error).__name__}: {_shown(str(error))}). {_MEND}"
        )
      signal.setitimer(signal.ITIMER_REAL, 0)
      pipe.send(result)


class _Worker:
  """A decoding process with a pipe of its own, so that its end cannot harm another's results."""

  def __init__(self, store: Store, scale: StoredScale, seconds_limit: float):
    # A forked child of a process that runs TensorFlow's and JAX's threads can hang: spawn instead.
    context = multiprocessing.get_context("spawn")
    self.pipe, theirs = context.Pipe()
    self.process = context.Process(
      target=_work, args=(theirs, store, scale, seconds_limit), daemon=True
    )
    # Ctrl-C reaches the whole group of processes and the parent alone decides, also while the child
    # still imports. The tracker comes first, as starting it unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      self.process.start()
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    self.seconds_limit = seconds_limit
    self.started = False
    self.fresh = True
    self.task: int | None = None
    self.deadline = time.monotonic() + _START_SECONDS

  def start(self) -> None:
    """Notes that the process has asked for work."""
    self.started = True
    self.deadline = math.inf

  def give(self, task: int, path: str) -> bool:
    """Sends a task, unless the process is gone."""
    try:
      self.pipe.send(path)
    except (BrokenPipeError, ConnectionResetError):
      return False
    self.task, self.fresh = task, False
    self.deadline = time.monotonic() + self.seconds_limit
    return True

  def take(self) -> tuple[int, StoredVideo | str]:
    """The task and the result that waits in the pipe.

    Raises:
      EOFError, OSError: the process is gone.
    """
    result = self.pipe.recv()
    assert self.task is not None
    task, self.task = self.task, None
    self.deadline = math.inf
    return task, result

  def kill(self) -> None:
    self.process.kill()

  def end(self) -> str:
    """Waits for the process to be gone and says how it ended."""
    self.process.join(5)
    code = self.process.exitcode
    self.pipe.close()
    if code is not None and code < 0:
      with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


def _cores() -> int:
  if sys.platform == "linux":
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def store_videos(
  paths: Iterable[os.PathLike | str],
  scale: StoredScale,
  workers: int | None = None,
  *,
  seconds_limit: float = 120.0,
  store: Store = store_video,
) -> Generator[tuple[int, StoredVideo | str], None, None]:
  """Decodes many files in parallel processes, in the given order.

  Whatever a file does to its decoder, it ends as one of the two results, and no other file is
  harmed: a process that crashes, hangs or asks for too much memory is replaced. Results are made
  few ahead of what is asked for, so memory does not grow with the number of files. When the
  iterator ends or is closed, no process is left.

  Args:
    paths: video files, under any names.
    scale: how to store the frames.
    workers: processes; the default is one a core.
    seconds_limit: how long one file may take.
    store: what a process does with a path, importable by name.

  Yields:
    (place of the file in `paths`, its stored video or why it cannot be used).

  Raises:
    ValueError: the number of workers or the limit is not positive.
    WorkerError: a decoding process ends before it was given a file.
  """
  if workers is not None and workers < 1:
    raise ValueError(f"{workers} decoding processes: expected 1 or more. Change workers.")
  if not seconds_limit > 0:
    raise ValueError(f"{seconds_limit} seconds a video: expected more than 0. Change the limit.")
  todo = [os.fspath(path) for path in paths]
  return _store_in_order(todo, scale, min(workers or _cores(), len(todo)), seconds_limit, store)


def _store_in_order(
  todo: list[str], scale: StoredScale, workers: int, seconds_limit: float, store: Store
) -> Generator[tuple[int, StoredVideo | str], None, None]:
  ahead = 4 * workers
  pool: list[_Worker] = []
  results: dict[int, StoredVideo | str] = {}
  given = 0
  # What a process crashed on gets a second trial, in a process that has decoded nothing yet: the
  # crash may be the late work of a file before it, or of a machine short of memory.
  suspects: list[int] = []
  tried_again: set[int] = set()

  def remove(worker: _Worker) -> str:
    pool.remove(worker)
    how = worker.end()
    left = len(todo) - given + len(suspects) + sum(w.task is not None for w in pool)
    # A suspect needs a fresh process; otherwise those alive may suffice for the last files.
    if suspects or len(pool) < min(workers, left):
      pool.append(_Worker(store, scale, seconds_limit))
    return how

  def collect(worker: _Worker) -> None:
    try:
      if not worker.started:
        worker.pipe.recv()
        worker.start()
        return
      task, result = worker.take()
    except (EOFError, OSError):
      crashed = worker.task
      if crashed is not None and crashed not in tried_again:
        tried_again.add(crashed)
        suspects.append(crashed)
        crashed = None
      how = remove(worker)
      if not worker.started:
        raise WorkerError(
          f"A decoding process ended ({how}) before it was given a file. The lines above say why; "
          "a script that decodes needs `if __name__ == '__main__':` around its work."
        ) from None
      if crashed is not None:
        results[crashed] = (
          f"{_shown(todo[crashed])}: the decoder crashed twice ({how}). Re-encode the file or "
          "leave it out."
        )
    else:
      results[task] = result

  def stop(worker: _Worker) -> None:
    if not worker.started:
      raise WorkerError(
        f"A decoding process did not start in {_START_SECONDS:g} s. Look at the machine's load."
      )
    assert worker.task is not None
    results[worker.task] = (
      f"{_shown(todo[worker.task])}: decoding took longer than {seconds_limit:g} s. Re-encode the "
      "file or leave it out."
    )
    worker.kill()
    remove(worker)

  try:
    pool.extend(_Worker(store, scale, seconds_limit) for _ in range(workers))
    for wanted in range(len(todo)):
      while True:
        wait = 0.0
        if wanted not in results:
          wait = max(0.0, min(worker.deadline for worker in pool) - time.monotonic())
        ready = connection.wait(
          [worker.pipe for worker in pool], None if wait == math.inf else wait
        )
        for worker in list(pool):
          if worker.pipe in ready:
            collect(worker)
          # A result that waits to be read was made in time, however late it is read.
          elif worker.deadline <= time.monotonic():
            stop(worker)
        for worker in pool:
          if not worker.started or worker.task is not None:
            continue
          if worker.fresh and suspects:
            if worker.give(suspects[0], todo[suspects[0]]):
              suspects.pop(0)
          elif given < min(len(todo), wanted + ahead) and worker.give(given, todo[given]):
            given += 1
        if wanted in results:
          break
      yield wanted, results.pop(wanted)
  finally:
    for worker in pool:
      worker.kill()
    for worker in pool:
      worker.end()
