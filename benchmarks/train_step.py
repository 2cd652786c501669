"""Our training step and inference beside torchvision's `r2plus1d_18` in PyTorch, turn by turn.

  python benchmarks/train_step.py [--batches=2,4,8] [--frames=16] [--precision=float32|bfloat16]

Runs on a CPU and on a GPU, without TensorFlow. benchmarks/requirements.txt is what it needs.

What is compared: `Task.outputs` and `steps.train_step` as training jits them (state donated)
and the peer's forward pass and training step, on the same number of clips, classes and threads, both
with SGD, momentum, weight decay and cross entropy. Each side has a process of its own, and only one
of them works at a time: ours, peer, ours, peer. Before that, both must give the same logits for the
same weights and clips.

- Ours starts from uint8 clips and mirrors and normalizes them within the step. The peer's clips lie
  on the device normalized, as floats, in its memory format: it is spared that work.
- The peer takes its best form: memory format contiguous or channels_last_3d, eager or
  `torch.compile`, tried once each at the start, for forward and training apart, unless
  `--peer_layout` and `--peer_compile` name one. bfloat16 is autocast
  for the peer and `dtype` for ours. On a GPU, cudnn.benchmark is on, and float32 allows TF32 on both
  sides.
- Allocator "default": the peer's is left as PyTorch is installed; our process is set up as main.py
  sets it up, which has glibc keep the memory that is freed instead of handing it back (the page faults
  cost either side 10 to 30 % on a CPU). "kept": the peer's process keeps it too. No matter on a GPU.

The last line is one JSON object. `ratio_forward` and `ratio_train` are the peer's time / ours (medians
over the turns), the median over the batches at the first of `--frames`, each side as its users run it;
`..._least` the least over the batches; `..._peer_tuned` with the peer's allocator kept as well, which
compares the computation alone. `rows` has every measurement:

- seconds (median and least), and seconds of processor time of all threads (least): where these are far
  from cores x seconds on a CPU, something else used the cores;
- clips a second, and our compile seconds (of the first allocator's rows: later ones find the programs
  in the cache);
- peak memory (MiB): on a CPU the process's resident size with all its libraries, on a GPU what the
  side has allocated, the trials of its compiler included; and what our compiled program needs, all of
  it and its temporaries;
- on a GPU `matrix_rate_share`: the multiply-accumulates of the layers (two FLOP each, training counted
  as three forward passes) over `matrix_rate_tflops`, the measured rate of an 8192^3 bfloat16 product.

`peer_forms` is what was tried for the peer, `logits_error` how far the two lie apart.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import ctypes
import functools
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MODEL, CLASSES = "r2plus1d_18", 51
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
WORKS = ("forward", "train")
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4
LAYOUTS = ("contiguous", "channels_last_3d")
# Largest relative difference of the two sides' float32 logits.
TOLERANCE = 1e-4
MATRIX = 8192
_NEEDS = "pip install -r benchmarks/requirements.txt"


class BenchmarkError(ValueError):
  """A comparison that cannot be made; the message says which and what to do."""


def random_batch(batch: int, frames: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Clips uint8 `[B, T, H, W, 3]` and labels `[B]`, the same in every process."""
  rng = np.random.default_rng(0)
  clips = rng.integers(0, 256, (batch, frames, size, size, 3), np.uint8)
  return clips, rng.integers(0, CLASSES, batch, np.int32)


class Ours:
  """Our network, as training and evaluation jit it."""

  learning_rate = LEARNING_RATE

  def __init__(self, precision: str):
    """Builds it with `precision` as its dtype, on the first device that JAX has."""
    import jax

    from hybrid_video import models, optimizers, platform_setup, sharding, state, steps

    platform_setup.keep_freed_memory()
    self._jax, self._models, self._steps = jax, models, steps
    self._create_state = state.create
    self._device = jax.devices()[0]
    self._mesh = sharding.make_mesh([self._device])
    self._task = self._make_task(self._build(precision))
    self._optimizer = optimizers.make_optimizer(self._settings())
    self._state: Any = None
    self._call: Callable[[], Any]

  def _build(self, precision: str) -> Callable[[], Any]:
    return functools.partial(self._models.create, MODEL, num_classes=CLASSES, dtype=precision)

  def _make_task(self, build: Callable[[], Any]) -> Any:
    from hybrid_video.tasks import classification

    return classification.make(build, MEAN, STD)

  def _settings(self) -> Any:
    from hybrid_video import optimizers

    return optimizers.OptimizerSettings(name="sgd", momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

  def about(self) -> dict[str, Any]:
    """Where it computes."""
    return {"backend": self._jax.default_backend(), "device": self._device.device_kind}

  def logits(self, clips: np.ndarray, path: str) -> dict[str, Any]:
    """Logits in evaluation mode and full float32, of the weights in a file of PyTorch's."""
    from hybrid_video import weights

    build = self._build("float32")
    model = build()
    weights.load_pretrained(model, path)
    _, params, batch_stats = self._models.split(model)
    outputs = self._jax.jit(self._make_task(build).outputs)
    with self._jax.default_matmul_precision("highest"):
      logits = outputs(params, batch_stats, {"clips": clips})["logits"]
    return {"logits": np.asarray(logits).tolist()}

  def prepare(self, work: str, clips: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compiles for `run` and runs once.

    Args:
      work: "forward" or "train".
      clips: uint8 `[B, T, H, W, 3]`.
      labels: `[B]`.
    """
    jax, steps = self._jax, self._steps
    if self._state is None:
      variables = self._task.initial_variables()
      state = self._create_state(self._optimizer, self._mesh, *variables)
      self._state = jax.device_put(state, self._device)
    mirrored = np.arange(len(clips)) % 2 == 0
    batch = jax.device_put({"clips": clips, "labels": labels, "mirrored": mirrored}, self._device)
    rate_and_seed = (np.float32(self.learning_rate), np.uint32(0))
    arguments: tuple[Any, ...]
    if work == "train":
      step = functools.partial(steps.train_step, task=self._task, optimizer=self._optimizer)
      jitted = jax.jit(step, donate_argnums=0)
      arguments = (self._state, batch, *rate_and_seed)
    else:
      jitted = jax.jit(self._task.outputs)
      arguments = (self._state["params"], self._state["batch_stats"], {"clips": batch["clips"]})
    started = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    seconds = time.perf_counter() - started

    def train() -> Any:
      self._state, sums = compiled(self._state, batch, *rate_and_seed)
      return sums

    self._call = train if work == "train" else functools.partial(compiled, *arguments)
    self.run(1)
    memory = compiled.memory_analysis()
    temporary = memory.temp_size_in_bytes
    return {
      "compile_seconds": seconds,
      "temporary_bytes": temporary,
      "program_bytes": temporary
      + memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes,
    }

  def run(self, calls: int) -> float:
    """Seconds of so many calls, one after the other, until the device is done."""
    started = time.perf_counter()
    for _ in range(calls):
      given = self._call()
    self._jax.block_until_ready(given)
    return time.perf_counter() - started

  def forget_peak(self) -> None:
    """Device memory has one peak in a process; the works come in the order of their need."""

  def peak_device_bytes(self) -> int | None:
    """Peak device memory in bytes; None on a CPU, where it is the process's own."""
    return (self._device.memory_stats() or {}).get("peak_bytes_in_use")

  def matrix_rate(self) -> float:
    """FLOP a second of an 8192^3 bfloat16 product, the best of five goes."""
    jax = self._jax
    product = jax.jit(jax.numpy.dot)
    left, right = (
      jax.random.normal(jax.random.key(i), (MATRIX, MATRIX), jax.numpy.bfloat16) for i in (0, 1)
    )
    product(left, right).block_until_ready()
    best, count = float("inf"), 20
    for _ in range(5):
      started = time.perf_counter()
      for _ in range(count):
        result = product(left, right)
      result.block_until_ready()
      best = min(best, (time.perf_counter() - started) / count)
    return 2 * MATRIX**3 / best


def _forget_peak_resident() -> None:
  """The peak resident size counts from here, and from what is in use; Linux alone does that."""
  with contextlib.suppress(OSError, AttributeError, TypeError):
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def _peak_resident_bytes() -> int | None:
  with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
    for line in file:
      if line.startswith("VmHWM"):
        return int(line.split()[1]) * 1024
  return None


def _make_side(side: str, precision: str, kept: bool) -> Any:
  if side == "ours":
    return Ours(precision)
  from benchmarks import torchvision_peer

  if kept:
    torchvision_peer.keep_freed_memory()
  return torchvision_peer.Peer(
    precision,
    classes=CLASSES,
    mean=MEAN,
    std=STD,
    learning_rate=LEARNING_RATE,
    momentum=MOMENTUM,
    weight_decay=WEIGHT_DECAY,
  )


class Worker:
  """What a side's process answers with: one method a question."""

  def __init__(self, side: Any):
    """Takes what computes: `Ours` or a peer."""
    self._side = side

  def _batch(self, batch: int, frames: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What a side prepares for."""
    return random_batch(batch, frames, size)

  def about(self) -> Any:
    """Where it computes."""
    return self._side.about()

  def logits(self, path: str, frames: int, size: int) -> Any:
    """Those of two random clips."""
    return self._side.logits(random_batch(2, frames, size)[0], path)

  def prepare(self, work: str, batch: int, frames: int, size: int, **form: Any) -> Any:
    """Compiles, runs, and gives the peak memory of two more calls and the seconds of the second."""
    found = self._side.prepare(work, *self._batch(batch, frames, size), **form)
    _forget_peak_resident()
    self._side.forget_peak()
    self._side.run(1)
    seconds = self._side.run(1)
    peak = self._side.peak_device_bytes() or _peak_resident_bytes()
    return {**found, "seconds": seconds, "peak_bytes": peak}

  def run(self, calls: int) -> Any:
    """Seconds of a call, and of all processors in it."""
    used = time.process_time()
    seconds = self._side.run(calls)
    used = time.process_time() - used
    return {"seconds": seconds / calls, "cpu_seconds": used / calls}

  def matrix_rate(self) -> Any:
    """See `Ours.matrix_rate`."""
    return {"rate": self._side.matrix_rate()}


def serve(make_worker: Callable[[], Worker]) -> None:
  """Answers the questions on standard input, one JSON object a line, until it ends."""
  # What libraries print must not come between the answers.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  worker = None
  for line in sys.stdin:
    asked = json.loads(line)
    try:
      worker = worker or make_worker()
      answer = getattr(worker, asked.pop("do"))(**asked)
    except Exception as error:
      missing = error.name if isinstance(error, ModuleNotFoundError) else None
      told = " ".join(f"{type(error).__name__}: {error}".split())[:500]
      answer = {"error": told, "missing": missing}
    print(json.dumps(answer), file=answers, flush=True)


class Side:
  """A process that computes one side and waits while the other does."""

  def __init__(
    self,
    side: str,
    precision: str,
    kept: bool,
    environment: dict[str, str],
    script: str = __file__,
    options: Sequence[str] = (),
  ):
    """Starts it; it imports its libraries at the first question."""
    self._name = "PyTorch" if side == "peer" else "JAX"
    command = [sys.executable, str(pathlib.Path(script).resolve()), f"--serve={side}", *options]
    command += [f"--precision={precision}", f"--allocators={'kept' if kept else 'default'}"]
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, **environment},
    )

  def __enter__(self) -> "Side":
    return self

  def __exit__(self, *_: object) -> None:
    if self._process.stdin:
      with contextlib.suppress(BrokenPipeError):
        self._process.stdin.close()
    try:
      self._process.wait(20)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    if self._process.stdout:
      self._process.stdout.close()

  def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
    """A question and its answer.

    Raises:
      BenchmarkError: the process ended, or answers that it failed.
    """
    assert self._process.stdin and self._process.stdout
    line = ""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    if not line:
      raise BenchmarkError(
        f"{self._name}'s process ended with status {self._process.wait()} at {do!r}. If memory ran "
        "out (-9), take smaller --batches."
      )
    answer = json.loads(line)
    if "error" in answer:
      if answer["missing"]:
        raise BenchmarkError(f"Python has no module {answer['missing']!r} here: {_NEEDS}")
      raise BenchmarkError(f"{self._name} failed at {do!r}: {answer['error']}")
    return answer


def relative_error(found: Sequence, expected: Sequence) -> float:
  """The largest difference over the largest magnitude expected."""
  wanted = np.asarray(expected, np.float64)
  return float(np.abs(np.asarray(found, np.float64) - wanted).max() / np.abs(wanted).max())


def check_agreement(ours: Side, peer: Side, frames: int, size: int) -> float:
  """The relative error of our logits against the peer's, for its weights and random clips.

  Raises:
    BenchmarkError: it is `TOLERANCE` or more: not the same network, no comparison.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = str(pathlib.Path(folder) / "weights.pt")
    expected = peer.ask("logits", path=path, frames=frames, size=size)["logits"]
    found = ours.ask("logits", path=path, frames=frames, size=size)["logits"]
  error = relative_error(found, expected)
  if not error < TOLERANCE:
    raise BenchmarkError(
      f"The logits of the two sides differ by {error:.1e} relative to the largest; expected less "
      f"than {TOLERANCE:g}. Run the parity tests (tests/test_video_resnet_parity.py) first."
    )
  return error


def best_forms(
  peer: Side,
  works: Sequence[str],
  candidates: Sequence[dict[str, Any]],
  shape: dict[str, int],
  goes: int,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
  """The peer's fastest form for each work, by the least of its goes, and all that were tried.

  Args:
    peer: the peer's process.
    works: of `WORKS`.
    candidates: the forms, `layout` and `compiled`. An only one is taken untried.
    shape: `batch`, `frames` and `size` of the clips it is tried with.
    goes: how often.

  Raises:
    BenchmarkError: none runs.
  """
  if len(candidates) == 1:
    return dict.fromkeys(works, candidates[0]), []
  best: dict[str, dict[str, Any]] = {}
  tried: list[dict[str, Any]] = []
  for work in works:
    rows: list[dict[str, Any]] = []
    for form in candidates:
      row: dict[str, Any] = {"work": work, **form, **shape}
      try:
        told = peer.ask("prepare", work=work, **shape, **form)
        more = (peer.ask("run", calls=1)["seconds"] for _ in range(goes - 1))
        row |= {"seconds": min(told["seconds"], *more), "first_seconds": told["first_seconds"]}
      except BenchmarkError as error:
        if not form["compiled"]:
          raise
        row |= {"seconds": None, "first_seconds": None, "error": str(error)}
      rows.append(row)
      took = f"{row['seconds']:.3f} s" if row["seconds"] else row["error"]
      print(f"peer, {work}: {form_name(row)}: {took}", flush=True)
    fastest = min((row for row in rows if row["seconds"]), key=lambda row: row["seconds"])
    best[work] = {"layout": fastest["layout"], "compiled": fastest["compiled"]}
    tried += rows
  return best, tried


def form_name(form: dict[str, Any]) -> str:
  """The peer's form in words."""
  return f"{form['layout']}, {'compiled' if form['compiled'] else 'eager'}"


def measure(
  work: str,
  shape: dict[str, int],
  ours: Side,
  peer: Side | None,
  form: dict[str, Any],
  *,
  turns: int,
  seconds: float,
) -> dict[str, Any]:
  """One row: both sides' turns at one work and shape."""
  sides = {"ours": ours, **({"peer": peer} if peer else {})}
  told = {"ours": ours.ask("prepare", work=work, **shape)}
  if peer:
    told["peer"] = peer.ask("prepare", work=work, **shape, **form)
  calls = {name: max(1, round(seconds / told[name]["seconds"])) for name in sides}
  taken: dict[str, list[float]] = {name: [] for name in sides}
  used: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(turns):
    for name, side in sides.items():
      answer = side.ask("run", calls=calls[name])
      taken[name].append(answer["seconds"])
      used[name].append(answer["cpu_seconds"])
  row: dict[str, Any] = {"work": work, "frames": shape["frames"], "batch": shape["batch"]}
  if peer:
    row["ratio"] = statistics.median(taken["peer"]) / statistics.median(taken["ours"])
    row["ratio_of_least"] = min(taken["peer"]) / min(taken["ours"])
    row["ratio_of_cpu_seconds"] = min(used["peer"]) / min(used["ours"])
  for name in sides:
    median = statistics.median(taken[name])
    row |= {
      f"{name}_seconds": median,
      f"{name}_least_seconds": min(taken[name]),
      f"{name}_least_cpu_seconds": min(used[name]),
      f"{name}_clips_per_second": shape["batch"] / median,
      f"{name}_peak_mib": told[name]["peak_bytes"] and told[name]["peak_bytes"] / 2**20,
    }
  for part in ("temporary", "program"):
    row[f"ours_{part}_mib"] = told["ours"][f"{part}_bytes"] / 2**20
  row["ours_compile_seconds"] = told["ours"]["compile_seconds"]
  if peer:
    row["peer_first_seconds"] = told["peer"]["first_seconds"]
    row |= {"peer_form": form_name(form)} if form else {}
  return row


def ratios(rows: Sequence[dict[str, Any]], frames: int) -> dict[str, float]:
  """The JSON object's ratios, from the rows with `frames` frames: see the module."""
  found = {}
  measured = {row["allocator"] for row in rows}
  endings = {"default": "", "kept": "_peer_tuned" if "default" in measured else ""}
  for allocator, ending in endings.items():
    for work in WORKS:
      of = [
        row["ratio"]
        for row in rows
        if (row["work"], row["allocator"], row["frames"]) == (work, allocator, frames)
        and "ratio" in row
      ]
      if of:
        found[f"ratio_{work}{ending}"] = round(statistics.median(of), 3)
        found[f"ratio_{work}_least{ending}"] = round(min(of), 3)
  return found


def _draw(rows: Sequence[dict[str, Any]], frames: int) -> Callable[[Sequence[Any]], None]:
  from hybrid_video.report import figures

  rows = [row for row in rows if row["frames"] == frames]
  # The stricter comparison, where both were made.
  rows = [row for row in rows if row["allocator"] == "kept"] or rows
  names = {"ours": ("ours", figures.BLUE), "peer": ("torchvision", figures.ORANGE)}

  def draw(axes: Sequence[Any]) -> None:
    panels = [(work, "clips_per_second") for work in WORKS] + [("train", "peak_mib")]
    for ax, (work, key) in zip(axes, panels, strict=True):
      of = [row for row in rows if row["work"] == work]
      for side, (label, colour) in names.items():
        points = [(r["batch"], r[f"{side}_{key}"]) for r in of if r.get(f"{side}_{key}")]
        if points:
          ax.plot(*zip(*points, strict=True), "o-", color=colour, label=label)
      ax.set_xscale("log", base=2)
      batches = sorted({row["batch"] for row in of})
      ax.set_xticks(batches, [str(batch) for batch in batches])
      ax.minorticks_off()
      ax.set_ylim(bottom=0)
      ax.set_xlabel("batch")
      of_what = "Forward" if work == "forward" else "Training step"
      ax.set_title(f"{of_what}, " + ("clips/s" if key != "peak_mib" else "peak memory, MiB"))
    axes[0].legend(frameon=False)

  return draw


_SHOWN = (
  "work",
  "frames",
  "batch",
  "allocator",
  "ratio",
  "ours_seconds",
  "peer_seconds",
  "ours_clips_per_second",
  "ours_peak_mib",
  "peer_peak_mib",
  "ours_compile_seconds",
  "matrix_rate_share",
  "peer_form",
)


def _numbers(text: str) -> list[int]:
  return [int(part) for part in text.split(",")]


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--batches", type=_numbers, help="2,4,8; on a GPU 16,32,64,128")
  parser.add_argument("--frames", type=_numbers, default=[16], help="clip lengths, 16 or 16,8,32")
  parser.add_argument("--size", type=int, default=112, help="height and width, pixels")
  parser.add_argument("--precision", choices=["float32", "bfloat16"], help="GPU: bfloat16")
  parser.add_argument("--works", default=",".join(WORKS), help="forward, train or both")
  parser.add_argument("--allocators", default="", help="default,kept on a CPU; kept on a GPU")
  parser.add_argument("--peer_compile", choices=["auto", "yes", "no"], default="auto")
  parser.add_argument("--peer_layout", choices=["auto", *LAYOUTS], default="auto")
  parser.add_argument("--no_peer", action="store_true", help="ours alone; needs no PyTorch")
  parser.add_argument("--turns", type=int, default=5, help="of each side")
  parser.add_argument("--seconds", type=float, default=1.0, help="least length of a turn")
  parser.add_argument("--name", help="of the results; train_step_cpu or train_step_gpu")
  parser.add_argument("--results", type=pathlib.Path, help="folder to write them to")
  parser.add_argument("--serve", choices=["ours", "peer"], help=argparse.SUPPRESS)
  return parser.parse_args()


def main() -> None:
  """Measures and prints."""
  arguments = _parse()
  if arguments.serve:
    kept = arguments.allocators == "kept"
    serve(lambda: Worker(_make_side(arguments.serve, arguments.precision, kept)))
    return
  try:
    with tempfile.TemporaryDirectory() as folder:
      compare(arguments, folder)
  except BenchmarkError as error:
    sys.exit(str(error))


def _all_rows(
  arguments: argparse.Namespace,
  backend: str,
  precision: str,
  batches: Sequence[int],
  allocators: str,
  forms: dict[str, dict[str, Any]],
  environment: dict[str, str],
  failed: list[str],
) -> Iterator[dict[str, Any]]:
  """Measures every work, batch, clip length and allocator; what fails is added to `failed`."""
  rate = 0.0
  for allocator, frames, batch in itertools.product(
    allocators.split(","), arguments.frames, batches
  ):
    shape = {"batch": batch, "frames": frames, "size": arguments.size}
    flop = _forward_flop(frames, arguments.size) * batch if backend != "cpu" else 0
    with contextlib.ExitStack() as stack:
      # main.py has freed memory kept, so ours does in both cases.
      ours = stack.enter_context(Side("ours", precision, True, environment))
      peer = None
      if not arguments.no_peer:
        peer = stack.enter_context(Side("peer", precision, allocator == "kept", environment))
      # Forward first: a process's peak of memory only rises.
      for work, form in forms.items():
        where = f"{work}, batch {batch}, {frames} frames, {allocator}"
        try:
          row = measure(
            work, shape, ours, peer, form, turns=arguments.turns, seconds=arguments.seconds
          )
          row["allocator"] = allocator
          if backend != "cpu":
            rate = max(rate, ours.ask("matrix_rate")["rate"])
            needed = flop * (3 if work == "train" else 1)
            row["matrix_rate_share"] = needed / row["ours_seconds"] / rate
            row["matrix_rate_tflops"] = rate / 1e12
        except BenchmarkError as problem:
          failed.append(f"{where}: {problem}")
          print(failed[-1], flush=True)
          break
        versus = f", {row['ratio']:.2f} times the peer's speed" if "ratio" in row else ""
        print(f"{where}: {row['ours_seconds']:.4f} s{versus}", flush=True)
        yield row


def compare(arguments: argparse.Namespace, cache: str) -> None:
  """The whole comparison; compiled programs are kept in the folder `cache` and found again there.

  Raises:
    BenchmarkError: a side cannot run, or the two do not compute the same.
  """
  from benchmarks import outcome

  # Caches that start empty, so that compile times are true; they serve the later processes.
  environment = {
    "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
    "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
  }
  with_peer, works = not arguments.no_peer, arguments.works.split(",")
  unknown = set(works) - set(WORKS)
  if unknown:
    raise BenchmarkError(f"--works has {', '.join(unknown)}: expected {' or '.join(WORKS)}.")
  if with_peer:
    with Side("peer", "float32", True, environment) as peer:
      peer_about = peer.ask("about")
    # Where PyTorch has a GPU, both use it, and JAX may not quietly fall back.
    environment["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(peer_about["backend"], "cpu")
  with Side("ours", "float32", True, environment) as ours:
    about = ours.ask("about")
  backend, frames, size = about["backend"], arguments.frames, arguments.size
  batches = arguments.batches or ([2, 4, 8] if backend == "cpu" else [16, 32, 64, 128])
  precision = arguments.precision or ("float32" if backend == "cpu" else "bfloat16")
  given = arguments.allocators or ("default,kept" if backend == "cpu" and with_peer else "kept")
  print(f"{MODEL}, {CLASSES} classes, {precision}, on {about['device']}", flush=True)

  error: float | None = None
  forms: dict[str, dict[str, Any]] = {work: {} for work in works}
  tried: list[dict[str, Any]] = []
  if with_peer:
    with (
      Side("ours", "float32", True, environment) as ours,
      Side("peer", "float32", True, environment) as peer,
    ):
      error = check_agreement(ours, peer, frames[0], size)
    print(f"The logits agree to {error:.1e}", flush=True)
    compile_too = {"auto": (False, True), "yes": (True,), "no": (False,)}[arguments.peer_compile]
    layouts = LAYOUTS if arguments.peer_layout == "auto" else (arguments.peer_layout,)
    candidates = [
      {"layout": layout, "compiled": compiled} for compiled in compile_too for layout in layouts
    ]
    with Side("peer", precision, True, environment) as peer:
      middle = sorted(batches)[len(batches) // 2]
      shape = {"batch": middle, "frames": frames[0], "size": size}
      forms, tried = best_forms(peer, works, candidates, shape, max(2, arguments.turns))

  rows: list[dict[str, Any]] = []
  failed: list[str] = []
  try:
    for row in _all_rows(arguments, backend, precision, batches, given, forms, environment, failed):
      rows.append(row)
  except KeyboardInterrupt:
    failed.append("interrupted: what was not measured by then is missing")
  if not rows:
    raise BenchmarkError("Nothing could be measured: see the lines above.")

  name = arguments.name or f"train_step_{backend}"
  if arguments.results:
    outcome.RESULTS = arguments.results
  shown = [key for key in _SHOWN if any(key in row for row in rows)]
  print("\n" + outcome.table([{key: row.get(key) for key in shown} for row in rows]) + "\n")
  outcome.plot(name, _draw(rows, frames[0]), panels=3)
  outcome.write(
    name,
    {
      **ratios(rows, frames[0]),
      "backend": backend,
      "device": about["device"],
      "precision": precision,
      "logits_error": error,
      "turns": arguments.turns,
      "peer_threads": peer_about["threads"] if with_peer else None,
      "peer_forms": tried,
      "failed": failed,
      "rows": rows,
    },
  )


def _forward_flop(frames: int, size: int) -> int:
  """FLOP of one clip's forward pass, counted in a process of its own: this one never loads JAX."""
  code = (
    "from hybrid_video.models import costs\n"
    f"print(costs.of_model({MODEL!r}, ({frames}, {size}, {size}), {CLASSES}))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=True,
  )
  return 2 * int(done.stdout)


if __name__ == "__main__":
  main()
