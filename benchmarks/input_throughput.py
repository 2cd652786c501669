"""Clips a second of the input pipeline, beside decoding videos and beside libjpeg-turbo alone.

python benchmarks/input_throughput.py [--videos FOLDER]

Three ways to the same kind of clip (16 frames over 2 s, 112x112 out of 128x171), each on all cores,
turn by turn in one run, so that what else the machine does falls on all of them:

- videos: as data loaders of video libraries do it (PyAV): seek, decode the window, turn every frame
  to RGB, keep 16, resize (Pillow), crop. One process a core.
- ours: `input_pipeline.training_batches` from stored records: random videos and windows, random crop.
  (Mirroring and the other augmentations run on the device.)
- libjpeg-turbo: nothing but decoding the very frames that our clips take, from memory, whole, one
  process a core. No pipeline on JPEG frames can be faster than it.

- TFDS, tf.data, grain: the same records through TFDS and through tf.data alone, and the same frames in
  an array_record file through grain (`library_readers.py`), random crop.

Then the memory of the process over many clips, and the bytes and the error of stored frames at
several JPEG qualities, against the decoded and scaled video.

The last line is one JSON object; `ratio_per_core` is ours / videos, `ratio_to_jpeg_limit` is ours /
libjpeg-turbo, `ratio_to_tfds`, `ratio_to_tf_data` and `ratio_to_grain` ours / theirs (grain's faster
way), all medians over the turns.
"""

import argparse
from collections.abc import Callable
import contextlib
import functools
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import av  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
import simplejpeg  # noqa: E402

from benchmarks import library_readers  # noqa: E402

FRAMES, SECONDS, HEIGHT, WIDTH, CROP = 16, 2.0, 128, 171, 112
QUALITIES = (50, 60, 70, 75, 80, 85, 90, 95)
SUFFIXES = (".avi", ".mp4")
WARM_UP_SECONDS = 2.0


def clip_of_video(path: str, rng: np.random.Generator) -> np.ndarray:
  """A random clip straight from a video file, uint8 `[FRAMES, CROP, CROP, 3]`."""
  with av.open(path, metadata_errors="ignore") as container:
    stream = container.streams.video[0]
    stream.thread_type = "NONE"  # every core has a process of its own
    fps = float(stream.average_rate)
    # The header counts one frame too many.
    spare = max(stream.frames - 1 - round(SECONDS * fps), 0)
    begin = int(rng.integers(spare + 1)) / fps
    container.seek(int(begin / stream.time_base), stream=stream)
    window = []
    for frame in container.decode(stream):
      if frame.time < begin - 1e-6:
        continue
      if frame.time >= begin + SECONDS:
        break
      window.append(frame.to_ndarray(format="rgb24"))
  sampled = [window[i] for i in np.linspace(0, len(window) - 1, FRAMES).astype(int)]
  top, left = int(rng.integers(HEIGHT - CROP + 1)), int(rng.integers(WIDTH - CROP + 1))
  small = [
    np.asarray(Image.fromarray(frame).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
    for frame in sampled
  ]
  return np.stack([frame[top : top + CROP, left : left + CROP] for frame in small])


def _videos_worker(paths: list[str], seed: int) -> Callable[[], int]:
  rng = np.random.default_rng(seed)
  turn = iter(int(i) for _ in range(10**6) for i in rng.permutation(len(paths)))

  def work() -> int:
    clip_of_video(paths[next(turn)], rng)
    return 1

  return work


def _jpeg_worker(clips: list[list[bytes]]) -> Callable[[], int]:
  turn = iter(i for _ in range(10**6) for i in range(len(clips)))

  def work() -> int:
    for frame in clips[next(turn)]:
      # As our pipeline decodes them.
      simplejpeg.decode_jpeg(frame, fastupsample=True)
    return 1

  return work


def _serve(
  make: Callable[..., Callable[[], int]],
  arguments: tuple,
  pipe: multiprocessing.connection.Connection,
) -> None:
  work = make(*arguments)
  work()
  pipe.send("ready")
  while seconds := pipe.recv():
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
      count += work()
    pipe.send(count / (time.perf_counter() - started))


class Processes:
  """One process a core, each doing the same; `rate` runs all of them for some seconds."""

  def __init__(self, make: Callable[..., Callable[[], int]], arguments: list[tuple]):
    """Starts a process for each of `arguments`, whose work is `make(*arguments)`."""
    context = multiprocessing.get_context("spawn")
    self._pipes = []
    for given in arguments:
      here, there = context.Pipe()
      context.Process(target=_serve, args=(make, given, there), daemon=True).start()
      self._pipes.append(here)
    for pipe in self._pipes:
      pipe.recv()

  def rate(self, seconds: float) -> float:
    """Clips a second of all together."""
    for pipe in self._pipes:
      pipe.send(seconds)
    return sum(pipe.recv() for pipe in self._pipes)

  def close(self) -> None:
    """Ends the processes."""
    for pipe in self._pipes:
      pipe.send(None)


def resident_mib() -> float:
  """Memory of this process that no file backs, in MiB; Linux alone tells."""
  with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
    for line in file:
      if line.startswith("RssAnon"):
        return int(line.split()[1]) / 1024
  return float("nan")


def stored_quality(paths: list[str]) -> list[dict[str, float]]:
  """Bytes a frame and PSNR (dB) by JPEG quality; the error is of all frames' pixels together."""
  from hybrid_video.decoding import storing, video_reader

  target = video_reader.Target(HEIGHT, WIDTH, stretch=True)
  frames = [
    frame
    for path in paths
    for frame in video_reader.read_video(path, target, lambda frame: frame).frames[::8]
  ]
  rows = []
  for quality in QUALITIES:
    errors, sizes = [], []
    for frame in frames:
      jpeg = storing.encode_jpeg(frame, quality)
      sizes.append(len(jpeg))
      decoded = simplejpeg.decode_jpeg(jpeg, fastupsample=True)
      errors.append(np.mean((decoded.astype(np.float64) - frame) ** 2))
    psnr = 10 * np.log10(255**2 / np.array(errors))
    rows.append(
      {
        "quality": quality,
        "bytes_a_frame": round(float(np.mean(sizes))),
        "psnr_mean_db": round(float(psnr.mean()), 2),
        "psnr_least_db": round(float(psnr.min()), 2),
      }
    )
  return rows


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  default = ROOT / "tests" / "data" / "hmdb51"
  parser.add_argument("--videos", default=str(default), help="folder of video files, at any depth")
  parser.add_argument("--cores", type=int, default=os.cpu_count(), help="processes and threads")
  parser.add_argument("--turns", type=int, default=7, help="how often each way has its turn")
  parser.add_argument("--seconds", type=float, default=5.0, help="length of a turn")
  parser.add_argument("--memory_clips", type=int, default=10_000, help="0 leaves memory out")
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--quality", type=int, default=75, help="JPEG quality of the records")
  return parser.parse_args()


def _store(paths: list[str], arguments: argparse.Namespace, folder: str) -> Any:
  """The videos as stored records."""
  from hybrid_video.datasets import builder, listing, splits
  from hybrid_video.decoding import storing

  scale = storing.StoredScale(HEIGHT, WIDTH, arguments.quality)
  videos = [
    listing.Video(
      f"{i:03d} {pathlib.Path(path).name}", str(i % 2), str(i), (splits.TRAIN,), pathlib.Path(path)
    )
    for i, path in enumerate(paths)
  ]
  return builder.build(listing.make("throughput", arguments.videos, videos), folder, scale)


def _our_batches(records: Any, mode: str, batch_size: int) -> Any:
  from hybrid_video.sampling import clip_settings
  import input_pipeline

  settings = clip_settings.ClipSettings(
    frames=FRAMES, window_seconds=SECONDS, crop=CROP, crop_mode=mode
  )
  return input_pipeline.training_batches(
    records,
    np.arange(len(records)),
    settings,
    batch_size=batch_size,
    first_step=0,
    steps=10**9,
    seed=0,
  )


def _jpeg_clips(records: Any) -> list[list[bytes]]:
  """What libjpeg-turbo gets: frames of the windows that the pipeline takes."""
  rng = np.random.default_rng(0)
  clips = []
  video_ids = np.arange(len(records))
  for video_id in np.tile(video_ids, -(-64 // len(video_ids))).tolist():
    length = min(records.num_frames[video_id], round(SECONDS * records.fps[video_id]))
    start = int(rng.integers(records.num_frames[video_id] - length + 1))
    frames = np.linspace(start, start + length - 1, FRAMES).astype(int)
    clips.append(records.read_frames(video_id, frames))
  return clips


def _rate(make: Callable[[], Any], seconds: float) -> float:
  """Clips a second of a source's endless batches, which are made for this turn alone.

  So no source fills its buffers while another one is measured.
  """
  batches = make()
  # Until its own tuning has settled, and what was made before the clock started is used up.
  started = time.perf_counter()
  while time.perf_counter() - started < WARM_UP_SECONDS:
    next(batches)
  count, started = 0, time.perf_counter()
  while time.perf_counter() - started < seconds:
    batch = next(batches)
    count += len(batch["clips"] if isinstance(batch, dict) else batch)
  rate = count / (time.perf_counter() - started)
  if hasattr(batches, "close"):
    batches.close()
  return rate


def _sources(
  records: Any, arguments: argparse.Namespace, folder: str
) -> dict[str, Callable[[], Any]]:
  """What makes endless batches, by name: ours in every crop mode, and the libraries'."""
  size = arguments.batch_size
  sources: dict[str, Callable[[], Any]] = {
    f"ours, {words} crop": functools.partial(_our_batches, records, mode, size)
    for mode, words in (
      ("random", "random"),
      ("multi_scale", "multi-scale"),
      ("random_resized", "random resized"),
    )
  }
  clip: dict[str, Any] = {"frames": FRAMES, "seconds": SECONDS, "crop": CROP, "batch_size": size}
  sources["TFDS"] = functools.partial(library_readers.tfds_batches, records, **clip)
  sources["tf.data"] = functools.partial(library_readers.tf_data_batches, records, **clip)
  if not library_readers.has_grain():
    print("grain is not installed, and left out: pip install -r benchmarks/requirements.txt")
    return sources
  path = library_readers.write_array_record(records, folder)
  for decoding, joined in (("", False), (", our decoding", True)):
    for way in ("threads", "processes"):
      sources[f"grain, {way}{decoding}"] = functools.partial(
        library_readers.grain_batches,
        records,
        path,
        joined=joined,
        **clip,
        **{way: arguments.cores},
      )
  return sources


def _turns(
  paths: list[str], records: Any, arguments: argparse.Namespace, folder: str
) -> dict[str, np.ndarray]:
  """Clips a second and core of each way, one a turn."""
  cores = arguments.cores
  videos = Processes(_videos_worker, [(paths, seed) for seed in range(cores)])
  jpeg = Processes(_jpeg_worker, [(_jpeg_clips(records),)] * cores)
  sources = _sources(records, arguments, folder)
  turns: dict[str, list[float]] = {}
  print(
    f"{len(records)} videos, {cores} cores, {arguments.turns} turns of {arguments.seconds:g} s each"
  )
  for turn in range(arguments.turns):
    measured = {"videos (PyAV)": videos.rate(arguments.seconds)}
    for name, source in sources.items():
      measured[name] = _rate(source, arguments.seconds)
      if name == "ours, random crop":
        measured["libjpeg-turbo alone"] = jpeg.rate(arguments.seconds)
    for name, rate in measured.items():
      turns.setdefault(name, []).append(rate / cores)
    line = ", ".join(f"{name} {rate / cores:.0f}" for name, rate in measured.items())
    print(f"turn {turn + 1} of {arguments.turns}, clips/s a core: {line}", flush=True)
  videos.close()
  jpeg.close()
  return {name: np.array(rates) for name, rates in turns.items()}


def _memory(records: Any, arguments: argparse.Namespace) -> list[float]:
  """The process's memory in MiB after each tenth of many clips."""
  memory: list[float] = []
  if not arguments.memory_clips:
    return memory
  source, done = _our_batches(records, "random", arguments.batch_size), 0
  for batch in source:
    done += len(batch["clips"])
    if done >= (len(memory) + 1) * arguments.memory_clips / 10:
      memory.append(resident_mib())
    if done >= arguments.memory_clips:
      break
  source.close()
  tenths = " ".join(f"{value:.0f}" for value in memory)
  print(f"\nMemory (anonymous, MiB) over {done} clips, each tenth: {tenths}")
  return memory


def _print_tables(turns: dict[str, np.ndarray], quality: list[dict[str, float]]) -> None:
  base, limit = turns["videos (PyAV)"], turns["libjpeg-turbo alone"]
  print(f"\n{'':32s}{'clips/s a core':>16s}{'x videos':>10s}{'x libjpeg-turbo':>17s}")
  for name, rate in turns.items():
    ratios = np.median(rate / base), np.median(rate / limit)
    print(f"{name:32s}{np.median(rate):16.0f}{ratios[0]:10.1f}{ratios[1]:17.2f}")
  print(f"\n{'JPEG quality':>12s}{'bytes a frame':>15s}{'PSNR mean':>11s}{'least':>8s}")
  for row in quality:
    print(
      f"{row['quality']:12d}{row['bytes_a_frame']:15d}{row['psnr_mean_db']:11.2f}"
      f"{row['psnr_least_db']:8.2f}"
    )


def main() -> None:
  """Measures, and prints the tables and the JSON object."""
  arguments = _arguments()
  cores = arguments.cores
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
  paths = sorted(
    str(path)
    for path in pathlib.Path(arguments.videos).rglob("*")
    if path.suffix.lower() in SUFFIXES and path.is_file()
  )
  if not paths:
    sys.exit(f"{arguments.videos}: no {' or '.join(SUFFIXES)} file. Name a folder with --videos.")
  with tempfile.TemporaryDirectory() as folder:
    records = _store(paths, arguments, folder)
    turns = _turns(paths, records, arguments, folder)
    memory = _memory(records, arguments)
    bytes_a_frame = records.record_bytes / int(records.num_frames.sum())
  quality = stored_quality(paths)
  _print_tables(turns, quality)
  ours = turns["ours, random crop"]

  def ratio_to(digits: int, *names: str) -> float | None:
    """To the fastest of these that was measured."""
    rates = [turns[name] for name in names if name in turns]
    return round(min(float(np.median(ours / rate)) for rate in rates), digits) if rates else None

  decoding = ", our decoding"
  grain = ("grain, threads", "grain, processes")
  outcome = {
    "ratio_per_core": ratio_to(2, "videos (PyAV)"),
    "ratio_to_jpeg_limit": ratio_to(3, "libjpeg-turbo alone"),
    "ratio_to_tfds": ratio_to(2, "TFDS"),
    "ratio_to_tf_data": ratio_to(2, "tf.data"),
    "ratio_to_grain": ratio_to(2, *grain),
    "ratio_to_grain_with_our_decoding": ratio_to(2, *(name + decoding for name in grain)),
    "clips_per_second_per_core": {n: round(float(np.median(r)), 1) for n, r in turns.items()},
    "cores": cores,
    "videos": len(paths),
    "stored_bytes_a_frame": round(bytes_a_frame),
    "jpeg_quality": arguments.quality,
    "memory_growth_mib": round(memory[-1] - memory[1], 1) if memory else None,
    "quality": quality,
  }
  print(json.dumps(outcome))


if __name__ == "__main__":
  main()
