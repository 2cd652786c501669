"""Training with the real input pipeline: clips a second, and how long the device waits for data.

  python benchmarks/end_to_end.py [--videos FOLDER] [--model demo|r2plus1d_18] [--rates 1000,2000]

Needs TensorFlow, as all that reads records. Two parts:

- Training: `input_pipeline.training_batches`, `sharding.put_batch` and the jitted
  `steps.train_step`, in the order of the loop in `hybrid_video/train.py`, on the backend that is
  there. A second thread notes when each batch has arrived on the device and when each step is done.
- At the GPU's rate: the step's place is taken by a card that only keeps time. It works on a batch of
  B clips for B / rate seconds without using the CPU, and has at most `--ahead` batches: one at work,
  the others in its queue. First the pipeline runs as fast as it can; then the card's rate is swept
  through shares of that. Clips are 16 frames of 112x112 out of 128x171.

The videos are made ones unless `--videos` names a folder. Made frames are plainer than real ones:
where the rate matters, name real videos.

The last line is one JSON object. `waiting_share` is the device's idle time before the next batch was
made, over all time, in training after the warm-up; `handover_share` the idle time after that until
the batch was on the device; `blocked_share` the time that the loop itself stood in `next(batches)`
(it runs ahead of the device, so that is no loss while a step is at work); `clips_per_second` of
training. `rate_per_core_2_percent` is the highest swept rate (clips a second a core) at which the
card, and at every lower one, waits under 2 % of its time. `rate_on_16_cores` is 16 times that, which
is an extrapolation unless `extrapolated` is false: then 16 cores did it. `waiting_share_at` has, for each
of `--rates`, the share at that rate for 16 cores: with fewer cores, at their share of the rate. Shares are medians over the turns; where a
row's `waiting_share_least` lies far below, something else used the cores.
"""

import argparse
import collections
from collections.abc import Callable, Iterator, Sequence
import os
import pathlib
import queue
import statistics
import sys
import tempfile
import threading
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

SUFFIXES = (".avi", ".mp4")
SHARES = (0.5, 0.7, 0.85, 0.95, 1.0, 1.05, 1.15, 1.3)
CORES = 16  # of a usual host beside one GPU
LIMIT = 0.02
_ENDLESS = 10**9


def device_waiting(
  given: Sequence[float], placed: Sequence[float], finished: Sequence[float]
) -> tuple[float, float]:
  """Seconds that a device stood idle for data, and for its copy to it, from the second step on.

  Args:
    given: when the pipeline gave each batch, in seconds.
    placed: when each batch lay on the device.
    finished: when each step was done.
  """
  waited = copied = 0.0
  for k in range(1, len(finished)):
    free = finished[k - 1]
    waited += max(0.0, given[k] - free)
    copied += max(0.0, placed[k] - max(given[k], free))
  return waited, copied


def feed(
  batches: Iterator[Any],
  period: float,
  count: int,
  *,
  ahead: int = 2,
  clock: Callable[[], float] = time.perf_counter,
  sleep: Callable[[float], None] = time.sleep,
) -> float:
  """The share of its time that a card waits, given `count` batches after the first.

  Args:
    batches: what is fed.
    period: seconds that the card works on a batch; 0 takes them as fast as they come.
    count: of batches.
    ahead: batches that the card holds at most, the one at work among them.
    clock, sleep: of time, in seconds.
  """
  next(batches)
  free = clock() + period
  waited = 0.0
  for _ in range(count):
    early = free - (ahead - 1) * period - clock()
    if early > 0:
      sleep(early)
    next(batches)
    ready = clock()
    waited += max(0.0, ready - free)
    free = max(free, ready) + period
  return waited / (waited + count * period) if waited else 0.0


def highest_under(shares: Sequence[tuple[float, float]], limit: float) -> float | None:
  """The highest rate up to which every share lies under the limit; None if the lowest does not.

  Args:
    shares: (rate, share of waiting), in any order.
    limit: of the share.
  """
  found = None
  for rate, share in sorted(shares):
    if share >= limit:
      break
    found = rate
  return found


def _records(arguments: argparse.Namespace, stored: Any, folder: pathlib.Path) -> Any:
  """Stored records of the videos that are asked for, at the scale `stored`."""
  from hybrid_video import datasets
  from hybrid_video.datasets import builder, listing, made_actions, splits

  records_dir = str(folder / f"records_{stored.height}")
  if not arguments.videos:
    videos_folder = folder / "videos"
    made_actions.make(videos_folder, arguments.films, 0)
    return builder.build(datasets.read("made_actions", videos_folder), records_dir, stored)
  paths = sorted(
    path
    for path in pathlib.Path(arguments.videos).rglob("*")
    if path.suffix.lower() in SUFFIXES and path.is_file()
  )
  if len(paths) < 2:
    sys.exit(
      f"{arguments.videos}: found {len(paths)} {' or '.join(SUFFIXES)} files, expected 2 or more. "
      "Name a folder of videos with --videos, or leave it out."
    )
  videos = [
    listing.Video(f"{i:05d} {path.name}", str(i % 2), str(i), (splits.TRAIN,), path)
    for i, path in enumerate(paths)
  ]
  return builder.build(listing.make("end_to_end", arguments.videos, videos), records_dir, stored)


class _Watch:
  """A thread that notes when batches lie on the device and when steps are done."""

  def __init__(self) -> None:
    self.placed: list[float] = []
    self.finished: list[float] = []
    self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def add(self, batch: Any, parts: Any) -> None:
    """Notes a step that has been dispatched."""
    self._queue.put((batch, parts))

  def close(self) -> None:
    """Waits for every step."""
    self._queue.put(None)
    self._thread.join()

  def _run(self) -> None:
    import jax

    while item := self._queue.get():
      for arrays, times in zip(item, (self.placed, self.finished), strict=True):
        jax.block_until_ready(arrays)
        times.append(time.perf_counter())


def _training(experiment: Any, records: Any, total: int) -> tuple[Any, Any, Any, Callable]:
  """What trains so many steps: mesh, state, its compiled step, and the rates by step."""
  from hybrid_video import compilation, optimizers, platform_setup, sharding, steps
  from hybrid_video import state as training_state
  from hybrid_video.tasks import registry

  platform_setup.keep_freed_memory()
  mesh = sharding.make_mesh()
  sharding.check_batch_size(experiment.batch_size, mesh, "--batch")
  schedule = optimizers.make_schedule(
    experiment.optimizer, steps=100 * total, steps_per_epoch=total
  )
  optimizer = optimizers.make_optimizer(experiment.optimizer)
  task = registry.create(experiment, len(records.class_names), mesh)
  state = training_state.create(optimizer, mesh, *task.initial_variables())
  options = steps.StepOptions.of(experiment)
  step = compilation.Program(
    steps.jitted(task, optimizer, options, mesh, state), *steps.shapes(experiment, mesh, state)
  )
  return mesh, state, step, schedule


def train(experiment: Any, records: Any, steps_wanted: int, warmup: int) -> dict[str, float]:
  """Trains so many steps after the warm-up, as `hybrid_video.train` does, and says what it took."""
  import jax
  import numpy as np

  from hybrid_video import sharding
  import input_pipeline

  total = warmup + steps_wanted
  mesh, state, step, schedule = _training(experiment, records, total)
  whole = sharding.replicated(mesh)
  seed = sharding.place(np.array(0, np.uint32), whole)
  batches = input_pipeline.training_batches(
    records,
    np.arange(len(records)),
    experiment.clip,
    batch_size=experiment.batch_size,
    first_step=0,
    steps=total,
    seed=0,
  )
  watch = _Watch()
  asked: list[float] = []
  given: list[float] = []
  putting = 0.0
  while len(given) < total:
    asked.append(time.perf_counter())
    batch = next(batches)
    given.append(time.perf_counter())
    batch.pop("video_ids")
    on_device = sharding.put_batch(batch, mesh)
    put = time.perf_counter() - given[-1]
    rate = sharding.place(np.asarray(schedule(len(given) - 1)), whole)
    state, sums = step(state, on_device, rate, seed)
    watch.add(on_device, sums)
    if len(given) <= warmup:
      # The first step compiles. The loop starts level with the device.
      jax.block_until_ready(sums)
    else:
      putting += put
      if len(given) % experiment.log_every_steps == 0:
        float(sums["loss"])
  watch.close()
  since = warmup - 1
  waited, copied = device_waiting(given[since:], watch.placed[since:], watch.finished[since:])
  taken = watch.finished[-1] - watch.finished[since]
  blocked = sum(g - a for a, g in zip(asked[warmup:], given[warmup:], strict=True))
  return {
    "waiting_share": waited / taken,
    "handover_share": copied / taken,
    "blocked_share": blocked / taken,
    "put_batch_ms": 1000 * putting / steps_wanted,
    "step_ms": 1000 * taken / steps_wanted,
    "clips_per_second": steps_wanted * experiment.batch_size / taken,
  }


def sweep(
  records: Any, clip: Any, arguments: argparse.Namespace, cores: int
) -> tuple[float, list[dict[str, float]], dict[str, float]]:
  """The pipeline's own rate, the sweep's rows, and the shares at the rates that were asked for."""
  import numpy as np

  import input_pipeline

  size = arguments.feed_batch
  batches = input_pipeline.training_batches(
    records,
    np.arange(len(records)),
    clip,
    batch_size=size,
    first_step=0,
    steps=_ENDLESS,
    seed=0,
  )

  def unlimited(seconds: float) -> float:
    # What stands ready was made before the clock started.
    collections.deque((next(batches) for _ in range(8)), maxlen=0)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
      count += len(next(batches)["clips"])
    return count / (time.perf_counter() - started)

  def share(rate: float) -> dict[str, float]:
    period = size / rate
    goes = []
    for _ in range(arguments.turns):
      # Batches that stand ready hide a rate that is too high, until they are used up.
      feed(batches, period, max(1, round(arguments.seconds / 3 / period)), ahead=arguments.ahead)
      count = max(1, round(arguments.seconds / period))
      goes.append(feed(batches, period, count, ahead=arguments.ahead))
    return {"waiting_share": statistics.median(goes), "waiting_share_least": min(goes)}

  unlimited(arguments.seconds / 3)
  highest = statistics.median(unlimited(arguments.seconds) for _ in range(arguments.turns))
  print(f"Unlimited: {highest:.0f} clips/s, {highest / cores:.0f} a core", flush=True)
  rows = []
  for part in SHARES:
    rate = part * highest
    rows.append({"rate_per_core": rate / cores, "rate": rate, **share(rate)})
    print(f"{rate:.0f} clips/s: waiting {100 * rows[-1]['waiting_share']:.2f} %", flush=True)
  at = {
    f"{rate:g}": share(rate * min(cores, CORES) / CORES)["waiting_share"]
    for rate in arguments.rates
  }
  batches.close()  # type: ignore[attr-defined]  # a generator
  return highest, rows, at


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--videos", default="", help="folder of video files; made ones if left out")
  parser.add_argument("--films", type=int, default=20, help="of made videos, eight to a film")
  parser.add_argument("--model", choices=["demo", "r2plus1d_18"], help="demo; on a GPU r2plus1d_18")
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="GPU: bfloat16")
  parser.add_argument("--batch", type=int, help="of training; as configured, on a GPU 64")
  parser.add_argument("--steps", type=int, default=60, help="training steps measured")
  parser.add_argument("--warmup", type=int, default=5, help="training steps before that")
  parser.add_argument("--no_train", action="store_true", help="leave the first part out")
  parser.add_argument("--feed_batch", type=int, default=32, help="batch of the second part")
  parser.add_argument("--ahead", type=int, default=2, help="batches that the card holds at most")
  parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn at one rate")
  parser.add_argument("--turns", type=int, default=3, help="at each rate")
  parser.add_argument(
    "--rates",
    type=lambda text: [float(part) for part in text.split(",")],
    default=[1000.0, 2000.0, 4000.0],
    help="of a GPU whose host has 16 cores, clips/s",
  )
  parser.add_argument("--cores", type=int, default=os.cpu_count(), help="how many to use")
  parser.add_argument("--name", help="of the results; end_to_end_cpu or end_to_end_gpu")
  parser.add_argument("--results", type=pathlib.Path, help="folder to write them to")
  return parser.parse_args()


def _draw(rows: Sequence[dict[str, float]]) -> Callable[[Sequence[Any]], None]:
  """The share of waiting against the rate."""
  from hybrid_video.report import figures

  def draw(axes: Sequence[Any]) -> None:
    axes[0].plot(
      [row["rate_per_core"] for row in rows],
      [100 * row["waiting_share"] for row in rows],
      "o-",
      color=figures.BLUE,
    )
    axes[0].axhline(100 * LIMIT, color=figures.MUTED, linestyle="--", linewidth=1)
    axes[0].set_xlabel("clips/s a core that the card takes")
    axes[0].set_title("Share of the card's time spent waiting, %")
    axes[0].set_ylim(bottom=0)

  return draw


def _experiments(arguments: argparse.Namespace, backend: str) -> tuple[str, Any, Any]:
  """The name of the model that is trained, its experiment, and that of the default stored size."""
  from configs import defaults, demo
  from hybrid_video import experiment

  model = arguments.model or ("demo" if backend == "cpu" else "r2plus1d_18")
  config = demo.get_config() if model == "demo" else defaults.get_config()
  with config.unlocked():
    config.batch_size = arguments.batch or (config.batch_size if backend == "cpu" else 64)
    config.model.dtype = arguments.dtype or ("float32" if backend == "cpu" else "bfloat16")
  plain = experiment.from_config(defaults.get_config())
  return model, experiment.from_config(config), plain


def main() -> None:
  """Measures and prints."""
  arguments = _parse()
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
  cores = arguments.cores
  try:
    import tensorflow as tf
  except ModuleNotFoundError:
    sys.exit("The input pipeline needs TensorFlow: pip install -r requirements.txt")
  tf.config.set_visible_devices([], "GPU")
  import jax

  from benchmarks import outcome

  backend = jax.default_backend()
  model, experiment, plain = _experiments(arguments, backend)
  trained: dict[str, float] = {}
  with tempfile.TemporaryDirectory() as text:
    folder = pathlib.Path(text)
    if not arguments.no_train:
      records = _records(arguments, experiment.stored, folder)
      trained = train(experiment, records, arguments.steps, arguments.warmup)
      print(
        f"Training {model}, batch {experiment.batch_size}: {trained['clips_per_second']:.1f} clips/s, "
        f"waiting for data {100 * trained['waiting_share']:.2f} %, for its copy to the device "
        f"{100 * trained['handover_share']:.2f} % of the time",
        flush=True,
      )
    records = _records(arguments, plain.stored, folder)
    highest, rows, at = sweep(records, plain.clip, arguments, cores)
    of_records = {
      "stored_videos": len(records),
      "stored_bytes_a_frame": round(records.record_bytes / int(records.num_frames.sum())),
    }
  best = highest_under([(row["rate_per_core"], row["waiting_share"]) for row in rows], LIMIT)
  on_16 = best and best * CORES
  extrapolated = cores < CORES
  print("\n" + outcome.table(rows) + "\n")
  if on_16:
    how = "extrapolated by cores, not measured" if extrapolated else "measured"
    print(f"16 cores feed {on_16:.0f} clips/s with under 2 % waiting ({how})")
  name = arguments.name or f"end_to_end_{'cpu' if backend == 'cpu' else 'gpu'}"
  outcome.RESULTS = arguments.results or outcome.RESULTS
  outcome.plot(name, _draw(rows))
  found = {
    **{key: round(value, 5) for key, value in trained.items()},
    "rate_per_core_2_percent": best and round(best, 1),
    "rate_on_16_cores": on_16 and round(on_16),
    "extrapolated": extrapolated,
    "waiting_share_at": at,
    "unlimited_clips_per_second": highest,
  }
  of_run = {
    "model": model,
    "dtype": experiment.model.dtype,
    "batch": experiment.batch_size,
    "feed_batch": arguments.feed_batch,
    "ahead": arguments.ahead,
    "backend": backend,
    "cores": cores,
    "videos": "given" if arguments.videos else "made",
  }
  outcome.write(name, {**found, **of_run, **of_records, "rows": rows})


if __name__ == "__main__":
  try:
    main()
  except ValueError as error:
    sys.exit(str(error))
