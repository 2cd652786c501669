"""Compiles in a process of its own, and waits for it without falling silent.

In: an experiment and where it is to run. Out: an `Answer`; while it takes minutes, a line that says so.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from hybrid_video import errors, progress
from hybrid_video.experiment import Experiment
from hybrid_video.planning import topologies

log = logging.getLogger("hybrid_video")

_PACKAGES = pathlib.Path(__file__).parents[2]
_SAY_SECONDS = 30.0
_COMPLAINT_LINES = 4


class CompilerError(errors.UserError):
  """A step that could not be compiled; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Answer:
  """What was found out about a step.

  Attributes:
    sizes: as `step.sizes` has them, with `devices`.
    compiled: as `step.compile_step` has it; None where memory does not suffice.
    needed, limit: bytes a device where memory does not suffice, as the compiler says; 0 is unknown.
    seconds: of each measured step.
  """

  sizes: dict[str, Any]
  compiled: dict[str, Any] | None = None
  needed: int = 0
  limit: int = 0
  seconds: tuple[float, ...] = ()


def _environment(topology: topologies.Topology | None) -> dict[str, str]:
  paths = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
  return {
    **os.environ,
    **(topology.environment() if topology else {}),
    "PYTHONPATH": os.pathsep.join(paths),
    # A program that is read instead of compiled does not tell its memory.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
  }


def ask(
  experiment: Experiment,
  num_classes: int,
  topology: topologies.Topology | None,
  *,
  what: str,
  limit_seconds: float,
  measured_steps: int = 0,
  on_sizes: Callable[[dict[str, Any]], None] | None = None,
) -> Answer:
  """Sizes of a step, what the compiler makes of it, and its seconds if wanted.

  Args:
    experiment: every setting.
    num_classes: of the data set.
    topology: TPUs that need not be there, or None for this machine's devices.
    what: what is compiled, for the line that says so.
    limit_seconds: after which the compiler is ended.
    measured_steps: how many to run, on this machine's devices.
    on_sizes: called with what is counted before the compiler begins.

  Raises:
    CompilerError: it refused, died or took too long.
    MissingExtraError: `libtpu` is not installed.
  """
  if topology:
    errors.require("libtpu", "plan", f"--topology={topology.name}")
  request = {
    "experiment": experiment.to_json(),
    "num_classes": num_classes,
    "topology": topology.name if topology else None,
    "measured_steps": measured_steps,
  }
  with tempfile.TemporaryFile("w+", errors="replace") as complaints:
    process = subprocess.Popen(
      [sys.executable, "-m", "hybrid_video.planning.child"],
      env=_environment(topology),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=complaints,
      text=True,
    )
    assert process.stdin
    try:
      events = _events(process, json.dumps(request), what, limit_seconds, on_sizes)
    finally:
      process.kill()
      code = process.wait()
      # What it did not read is of no use.
      with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    complaints.seek(0)
    return _answer(events, code, complaints.read(), what)


def _events(
  process: subprocess.Popen,
  request: str,
  what: str,
  limit_seconds: float,
  on_sizes: Callable[[dict[str, Any]], None] | None,
) -> dict[str, dict[str, Any]]:
  """The events by name, until the process ends or its time is up."""
  assert process.stdin and process.stdout
  lines: queue.Queue[str] = queue.Queue()

  def read(stream: Any) -> None:
    with stream:
      for line in stream:
        lines.put(line)
    lines.put("")

  reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
  reader.start()
  # What it complained of is read later.
  with contextlib.suppress(BrokenPipeError):
    print(request, file=process.stdin, flush=True)
  events: dict[str, dict[str, Any]] = {}
  started = said = time.monotonic()
  while True:
    try:
      line = lines.get(timeout=1.0)
    except queue.Empty:
      now = time.monotonic()
      if now - started > limit_seconds:
        raise CompilerError(
          f"Compiling {what} took longer than {progress.duration(limit_seconds)}, and was ended. "
          "Raise --time_limit (minutes)."
        ) from None
      if now - said >= _SAY_SECONDS:
        said = now
        log.info("Compiling %s: %s so far", what, progress.duration(now - started))
      continue
    if not line:
      process.wait()
      reader.join()
      return events
    event = json.loads(line)
    events[event.pop("event")] = event
    if "sizes" in events and on_sizes:
      on_sizes(events["sizes"])
      on_sizes = None


def _answer(events: dict[str, dict[str, Any]], code: int, complaints: str, what: str) -> Answer:
  if refused := events.get("refused"):
    raise CompilerError(refused["message"])
  sizes = events.get("sizes", {})
  if too_large := events.get("too_large"):
    return Answer(sizes, events.get("compiled"), too_large["needed"], too_large["limit"])
  if code or "compiled" not in events:
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    last = " / ".join(lines[-_COMPLAINT_LINES:]) or "it said nothing"
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    advice = (
      " The machine may be out of memory: compiling takes several GB; end other programs first."
      if code == -9
      else ""
    )
    raise CompilerError(
      f"The process that compiled {what} {ended} without an answer.{advice} Its last lines: {last}"
    )
  measured = events.get("measured", {}).get("seconds", ())
  return Answer(sizes, events["compiled"], seconds=tuple(measured))
