"""From the command to the end of the first training step, beside a plain PyTorch script.

  python benchmarks/startup.py [--turns 3] [--batch 2] [--frames 16] [--crop 112] [--width 64]

`main.py` trains R(2+1)D-18 from made videos, whose frames are stored before the clock starts, once with an empty cache
of compiled programs and then, in every turn, with the warm one. The script on the other side builds torchvision's
network, makes a random batch of the same shape and takes one step of SGD, eager: it reads no videos, writes no
checkpoints and draws no curves.

The last line is one JSON object: `first_step_seconds` (warm), `first_step_seconds_cold`, the seconds of its parts
(`parts`: imports until the records are read, tracing the step and making the model and its state, compiling or
loading the step and running it),
`import_seconds` of the training program alone, `programs` compiled or loaded before the first step is done,
`peer_first_step_seconds`, and `ratio_first_step`, PyTorch's time / ours with a warm cache; the peer's are null where
PyTorch is not installed. Medians over the turns.
"""

import argparse
from collections.abc import Iterator
import contextlib
import importlib.util
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import outcome
from benchmarks.sides import BenchmarkError

ROOT = pathlib.Path(__file__).resolve().parents[1]
_LIMIT = 600
# The console's lines that end a part of a start, in their order.
_PARTS = (
  ("imports and records", re.compile(r"\d+ videos listed")),
  ("step traced, model and state", re.compile(r"Training on \d+ device")),
  (
    "step compiled or loaded, and run",
    re.compile(r"Compiled up to the first step: (\d+) programs"),
  ),
)
_IMPORTS = (
  "import time; began = time.perf_counter(); from hybrid_video import platform_setup; "
  "platform_setup.load_pipeline('input_pipeline', 'a benchmark'); from hybrid_video import train; "
  "print(time.perf_counter() - began)"
)


@contextlib.contextmanager
def _started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
  """A process and its group, which ends with the block."""
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )
  try:
    yield process
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def first_step(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
  """Seconds of the parts of one start, and the programs until its first step is done.

  Raises:
    BenchmarkError: it ended before that; the message has its last lines.
  """
  began, lines = time.perf_counter(), []
  seconds: dict[str, float] = {}
  with _started(command, environment) as process:
    assert process.stdout is not None
    for line in process.stdout:
      lines.append(line)
      name, ends = _PARTS[len(seconds)]
      if found := ends.search(line):
        seconds[name] = time.perf_counter() - began - sum(seconds.values())
        if len(seconds) == len(_PARTS):
          return {"parts": seconds, "programs": int(found[1])}
  raise BenchmarkError(f"It ended before its first step:\n{''.join(lines[-5:])}")


def measure(given: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
  """Our side: stored first, then with an empty cache of programs, then with it."""
  environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}

  def command(name: str) -> list[str]:
    return [
      *(sys.executable, "main.py", "--config=configs/videos.py:made_actions,recipe=scratch"),
      *(f"--workdir={folder / name}", f"--config.data_dir={folder / 'videos'}"),
      *(f"--config.records_dir={folder / 'records'}", "--config.made_films=4"),
      *(f"--config.batch_size={given.batch}", f"--config.clip.frames={given.frames}"),
      *(f"--config.clip.crop={given.crop}", f"--config.model.width={given.width}"),
      *("--config.epochs=2", "--config.optimizer.warmup_epochs=0", "--config.test_share=0.5"),
    ]

  first_step(command("stored"), {**environment, "JAX_COMPILATION_CACHE_DIR": str(folder / "other")})
  cold = first_step(command("cold"), environment)
  warm = [first_step(command(f"warm{turn}"), environment) for turn in range(given.turns)]
  imports = [float(_run([sys.executable, "-c", _IMPORTS], environment)[1]) for _ in warm]
  return {
    "first_step_seconds": statistics.median(sum(one["parts"].values()) for one in warm),
    "first_step_seconds_cold": sum(cold["parts"].values()),
    "parts": {
      name: statistics.median(one["parts"][name] for one in warm) for name in warm[0]["parts"]
    },
    "parts_cold": cold["parts"],
    "programs": warm[-1]["programs"],
    "import_seconds": statistics.median(imports),
  }


def _run(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
  """Seconds of a whole process, and what it printed.

  Raises:
    BenchmarkError: it failed; the message ends as its errors do.
  """
  began = time.perf_counter()
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_LIMIT
  )
  if done.returncode:
    raise BenchmarkError(done.stderr.strip()[-500:] or f"It ended with {done.returncode}.")
  return time.perf_counter() - began, done.stdout


def measure_peer(given: argparse.Namespace) -> float | None:
  """Seconds of the PyTorch script, of its whole process; None without PyTorch."""
  if importlib.util.find_spec("torch") is None:
    return None
  sizes = [str(size) for size in (given.batch, given.frames, given.crop)]
  command = [sys.executable, "-m", "benchmarks.peers.first_step", *sizes]
  return statistics.median(_run(command, {**os.environ})[0] for _ in range(given.turns))


def main() -> None:
  """Prints what was measured, and keeps it."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--turns", type=int, default=3)
  parser.add_argument("--batch", type=int, default=2)
  parser.add_argument("--frames", type=int, default=16)
  parser.add_argument("--crop", type=int, default=112)
  parser.add_argument("--width", type=int, default=64, help="of our network's first layer")
  parser.add_argument("--results", type=pathlib.Path, help="folder to write them to")
  given = parser.parse_args()
  outcome.RESULTS = given.results or outcome.RESULTS
  # So that what was started ends, and its folder goes, as after Ctrl-C.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  with tempfile.TemporaryDirectory() as folder:
    ours = measure(given, pathlib.Path(folder))
  peer = measure_peer(given)
  if peer is None:
    print("PyTorch is not installed: ours alone. pip install -r benchmarks/requirements.txt")
  rows = [
    {"part": name, "cold, s": ours["parts_cold"][name], "warm, s": seconds}
    for name, seconds in ours["parts"].items()
  ]
  together = {
    "part": "together",
    "cold, s": ours["first_step_seconds_cold"],
    "warm, s": ours["first_step_seconds"],
  }
  print("\n" + outcome.table([*rows, together]) + "\n")
  ratio = None if peer is None else peer / ours["first_step_seconds"]
  sizes = {name: getattr(given, name) for name in ("turns", "batch", "frames", "crop", "width")}
  outcome.write(
    "startup", {**sizes, **ours, "peer_first_step_seconds": peer, "ratio_first_step": ratio}
  )


if __name__ == "__main__":
  main()
