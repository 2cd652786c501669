"""The training loop's own time: all that stands between two jitted steps, as a share of the step.

  python benchmarks/loop_time.py [--epochs 6] [--films 80]

Trains the demo through `train.run`, as the command line does, with its own intervals of reports and
checkpoints: batches from the pipeline, the copy to the device, the metrics of every step, a report every
50 steps, a checkpoint every 5 epochs. Every step is waited for, and what lies between the end of one and
the beginning of the next is the loop's.
The last line is one JSON object: seconds of a step and of the loop a step, medians and means, and
`share`, the quotient of the means. `share_of_saving` is that of the steps with a checkpoint beside them,
which are not part of the others.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# The first steps compile, and their data are being read ahead.
WARM_UP = 10


def gaps(spans: list[tuple[float, float]], saved: set[int]) -> tuple[list[float], list[float]]:
  """Seconds between steps, after the warm-up: where nothing is saved, and where a checkpoint is.

  Args:
    spans: when each step began and ended.
    saved: the steps, from 1, that a checkpoint was saved after.
  """
  plain, saving = [], []
  for number in range(WARM_UP, len(spans) - 1):
    gap = spans[number + 1][0] - spans[number][1]
    (saving if number + 1 in saved else plain).append(gap)
  return plain, saving


def measure(epochs: float, films: int) -> dict[str, Any]:
  """Trains the demo and times it; the JSON object's values."""
  import jax

  from configs import demo
  from hybrid_video import checkpoints, experiment, phases, platform_setup, train
  import input_pipeline

  platform_setup.keep_compiled_programs()
  platform_setup.keep_freed_memory()
  spans: list[tuple[float, float]] = []
  saved: set[int] = set()
  update, save = phases.Phases.update, checkpoints.Checkpoints.save

  def timed(*inputs: Any) -> Any:
    began = time.perf_counter()
    outputs = jax.block_until_ready(update(*inputs))
    spans.append((began, time.perf_counter()))
    return outputs

  def noted(self: Any, step: int, *rest: Any) -> None:
    saved.add(step)
    save(self, step, *rest)

  phases.Phases.update, checkpoints.Checkpoints.save = timed, noted  # type: ignore[method-assign]
  with tempfile.TemporaryDirectory() as folder:
    config = demo.get_config().unlock()
    config.made_films, config.epochs = films, epochs
    train.run(experiment.from_config(config), pathlib.Path(folder), input_pipeline)
  plain, saving = gaps(spans, saved)
  of_steps = [end - began for began, end in spans[WARM_UP:]]
  return {
    "steps": len(of_steps),
    "step_seconds": statistics.median(of_steps),
    "loop_seconds": statistics.median(plain),
    "mean_step_seconds": statistics.fmean(of_steps),
    "mean_loop_seconds": statistics.fmean(plain),
    "share": statistics.fmean(plain) / statistics.fmean(of_steps),
    "share_of_medians": statistics.median(plain) / statistics.median(of_steps),
    "share_of_saving": statistics.fmean(saving) / statistics.fmean(of_steps) if saving else None,
    "saves": len(saving),
  }


def main() -> None:
  """Prints what was measured."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--epochs", type=float, default=6.0)
  parser.add_argument("--films", type=int, default=80)
  arguments = parser.parse_args()
  found = measure(arguments.epochs, arguments.films)
  print(
    f"A step takes {1e3 * found['mean_step_seconds']:.1f} ms, the loop around it "
    f"{1e3 * found['mean_loop_seconds']:.2f} ms: {100 * found['share']:.2f} % "
    f"(of the medians {100 * found['share_of_medians']:.2f} %)"
  )
  print(json.dumps(found))


if __name__ == "__main__":
  main()
