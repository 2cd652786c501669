"""The two sides of a comparison: a process each, of which only one works at a time.

In: questions, one JSON object a line on standard input. Out: an answer each, likewise. A side is `ours.Ours` or
a network of `peers`; this module imports neither.
"""

from collections.abc import Callable, Sequence
import contextlib
import ctypes
import importlib
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

from benchmarks.compared import CLASSES, MASK_RATIO, PATCH, Compared

OURS, PEER = "ours", "peer"
# Largest relative difference of what the two sides compute in float32.
TOLERANCE = 1e-4
_NEEDS = "pip install -r benchmarks/requirements.txt"
# What the two libraries and the system say where memory runs out.
_FULL = ("RESOURCE_EXHAUSTED", "out of memory", "OutOfMemory", "status -9")


class BenchmarkError(ValueError):
  """A comparison that cannot be made; the message says which and what to do."""

  @property
  def is_of_memory(self) -> bool:
    """Whether a smaller batch may do."""
    return any(text in str(self) for text in _FULL)


class MissingError(BenchmarkError):
  """A package that a side needs is not installed."""


def random_batch(batch: int, frames: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Clips uint8 `[B, T, H, W, 3]` and labels `[B]`, the same in every process."""
  rng = np.random.default_rng(0)
  clips = rng.integers(0, 256, (batch, frames, size, size, 3), np.uint8)
  return clips, rng.integers(0, CLASSES, batch, np.int32)


def tube_masks(batch: int, frames: int, size: int) -> np.ndarray:
  """Masks bool `[B, N]`, True where hidden: the same cells at all times, the same in every process."""
  cells = (size // PATCH[1]) * (size // PATCH[2])
  rng = np.random.default_rng(1)
  hidden = np.stack([rng.permutation(cells) < int(MASK_RATIO * cells) for _ in range(batch)])
  return np.tile(hidden, (1, frames // PATCH[0]))


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


def make_side(name: str, precision: str, compared: Compared, kept: bool) -> Any:
  """What computes in a side's process.

  Args:
    name: `OURS` or `PEER`.
    precision: "float32" or "bfloat16".
    compared: the model, at the clips it is measured with.
    kept: whether the peer's process keeps freed memory, as ours always does.
  """
  if name == OURS:
    from benchmarks import ours

    return ours.Ours(precision, compared)
  from benchmarks.peers import on_device

  if kept:
    on_device.keep_freed_memory()
  network = importlib.import_module(f"benchmarks.peers.{compared.peer}")
  return on_device.Peer(precision, compared, lambda: network.make(compared))


class Worker:
  """What a side's process answers with: one method a question."""

  def __init__(self, side: Any, compared: Compared):
    """Takes what computes, and what is measured."""
    self._side, self._compared = side, compared

  def _batch(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips, and their labels or masks."""
    shape = (batch, self._compared.frames, self._compared.size)
    clips, labels = random_batch(*shape)
    return clips, tube_masks(*shape) if self._compared.is_pretraining else labels

  def about(self) -> Any:
    """Where it computes."""
    return self._side.about()

  def outputs(self, folder: str) -> Any:
    """What it computes of two random clips, some of it, and the loss of pretraining."""
    clips, targets = self._batch(2)
    masks = targets if self._compared.is_pretraining else None
    found, loss = self._side.outputs(clips, masks, folder)
    some = found if masks is None else found[:, ::13, ::31]
    return {"values": some.ravel().tolist(), "loss": loss}

  def prepare(self, work: str, batch: int, **form: Any) -> Any:
    """Compiles, runs, and gives the peak memory of two more calls and the seconds of the second."""
    found = self._side.prepare(work, *self._batch(batch), **form)
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
    """See `ours.Ours.matrix_rate`."""
    return {"rate": self._side.matrix_rate()}

  def forward_flop(self) -> Any:
    """See `ours.Ours.forward_flop`."""
    return {"flop": self._side.forward_flop()}


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
    model: str,
    compared: Compared,
    precision: str,
    kept: bool,
    environment: dict[str, str],
  ):
    """Starts it; it imports its libraries at the first question.

    Args:
      side: `OURS` or `PEER`.
      model: one of `compared.MODELS`.
      compared: that, at the clips it is measured with.
      precision: "float32" or "bfloat16".
      kept: whether the peer keeps freed memory.
      environment: beside this process's own.
    """
    self._name = "PyTorch" if side == PEER else "JAX"
    script = pathlib.Path(__file__).with_name("train_step.py")
    command = [sys.executable, str(script), f"--serve={side}", f"--model={model}"]
    command += [f"--frames={compared.frames}", f"--size={compared.size}"]
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
        raise MissingError(f"Python has no module {answer['missing']!r} here: {_NEEDS}")
      raise BenchmarkError(f"{self._name} failed at {do!r}: {answer['error']}")
    return answer


def relative_error(found: Sequence, expected: Sequence) -> float:
  """The largest difference over the largest magnitude expected."""
  wanted = np.asarray(expected, np.float64)
  return float(np.abs(np.asarray(found, np.float64) - wanted).max() / np.abs(wanted).max())


def check_agreement(ours: Side, peer: Side) -> float:
  """The relative error of what ours computes against the peer's, for its weights and random clips.

  Raises:
    BenchmarkError: it is `TOLERANCE` or more: not the same network, no comparison.
  """
  with tempfile.TemporaryDirectory() as folder:
    expected = peer.ask("outputs", folder=folder)
    found = ours.ask("outputs", folder=folder)
  error = relative_error(found["values"], expected["values"])
  if expected["loss"] is not None:
    error = max(error, relative_error([found["loss"]], [expected["loss"]]))
  if not error < TOLERANCE:
    raise BenchmarkError(
      f"The outputs of the two sides differ by {error:.1e} relative to the largest; expected less "
      f"than {TOLERANCE:g}. Run the parity tests first."
    )
  return error


def best_forms(
  peer: Side,
  works: Sequence[str],
  candidates: Sequence[dict[str, Any]],
  batch: int,
  goes: int,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
  """The peer's fastest form for each work, by the least of its goes, and all that were tried.

  Args:
    peer: the peer's process.
    works: "forward", "train" or both.
    candidates: the forms, `layout` and `compiled`. An only one is taken untried.
    batch: clips that it is tried with.
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
      row: dict[str, Any] = {"work": work, **form, "batch": batch}
      try:
        told = peer.ask("prepare", work=work, batch=batch, **form)
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
  batch: int,
  ours: Side,
  peer: Side | None,
  form: dict[str, Any],
  *,
  turns: int,
  seconds: float,
) -> dict[str, Any]:
  """One row: both sides' turns at one work and batch."""
  sides = {OURS: ours, **({PEER: peer} if peer else {})}
  told = {OURS: ours.ask("prepare", work=work, batch=batch)}
  if peer:
    told[PEER] = peer.ask("prepare", work=work, batch=batch, **form)
  calls = {name: max(1, round(seconds / told[name]["seconds"])) for name in sides}
  taken: dict[str, list[float]] = {name: [] for name in sides}
  used: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(turns):
    for name, side in sides.items():
      answer = side.ask("run", calls=calls[name])
      taken[name].append(answer["seconds"])
      used[name].append(answer["cpu_seconds"])
  row: dict[str, Any] = {"work": work, "batch": batch}
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
      f"{name}_clips_per_second": batch / median,
      f"{name}_peak_mib": told[name]["peak_bytes"] and told[name]["peak_bytes"] / 2**20,
    }
  for part in ("temporary", "program"):
    row[f"ours_{part}_mib"] = told["ours"][f"{part}_bytes"] / 2**20
  row["ours_compile_seconds"] = told["ours"]["compile_seconds"]
  if peer:
    row["peer_first_seconds"] = told["peer"]["first_seconds"]
    row |= {"peer_form": form_name(form)} if form else {}
  return row
