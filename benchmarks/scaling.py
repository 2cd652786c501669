"""How the training step of R(2+1)D-18 should scale over TPU chips: on paper, from what is compiled.

pip install -r benchmarks/requirements.txt
python benchmarks/scaling.py [--generation v5e] [--batches 2,4,8,16,32]

The step is compiled ahead of time for 8 chips (see tpu_compile.py) at several batches a chip. Their
estimated cycles give the time of arithmetic (between two batches a line, above the largest in
proportion); the compiled all-reduces and published rates of the links give the time of communication:

- bytes: an all-reduce of V bytes over n chips sends 2 V (n - 1) / n from each chip, through all ports
  of a torus (16x16), or through the two that a corner of an open mesh has (2x4, 8x8);
- latency: a message crosses the slice's longest way twice, at an assumed microsecond a hop, once for
  each all-reduce. Gradients are reduced together; each BatchNorm waits for its own statistics, forward
  and backward.

Nothing of it is taken to hide behind arithmetic. The efficiency of n chips is their clips a second over
n times those of one chip at the batch it does best; so it falls with few clips a chip for two reasons,
links and half-empty matrix units, which the table tells apart. Nothing of this was measured: no slice
of TPUs was at hand.

The last line is one JSON object; `slices` has for each number of chips the efficiency at each batch,
and `least_batch_for_90`, the clips a chip (and `global_batch_for_90`, over all) below which it is under
90 %.
"""

import argparse
import math
import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import outcome, tpu_compile
from benchmarks.compared import MODELS

# Published: cloud.google.com/tpu/docs/v5e and v6e, "Inter-chip interconnect bandwidth" a chip, in bytes
# a second, over four ports. Clocks: peak compute over the operations of a cycle, see CYCLES.
LINKS = {"v5e": 1600e9 / 8, "v6e": 3200e9 / 8}
PORTS = 4
# Published peak bf16 operations a second over those of the matrix units in one cycle.
CYCLES = {"v5e": 197e12 / (4 * 2 * 128 * 128), "v6e": 918e12 / (4 * 2 * 256 * 256)}
SLICES = {8: (2, 4), 64: (8, 8), 256: (16, 16)}
TORUS = 16
SECONDS_A_HOP = 1e-6


def communication(
  all_reduces: list[int], shape: tuple[int, int], link: float
) -> tuple[float, float]:
  """Seconds that all-reduces take on a slice: of bytes, and of latency.

  Args:
    all_reduces: bytes of each.
    shape: chips along both axes of the slice.
    link: bytes a second of one chip, over all its ports, one way.
  """
  chips = math.prod(shape)
  torus = all(size == TORUS for size in shape)
  rate = link if torus else link * 2 / PORTS
  hops = sum(size // 2 if torus else size - 1 for size in shape)
  sent = 2 * sum(all_reduces) * (chips - 1) / chips
  return sent / rate, len(all_reduces) * 2 * hops * SECONDS_A_HOP


def seconds_of(clips: np.ndarray, batches: list[int], seconds: list[float]) -> np.ndarray:
  """Seconds of arithmetic for any number of clips a chip, from those at a few."""
  within = np.interp(clips, batches, seconds)
  return np.where(clips > batches[-1], seconds[-1] * clips / batches[-1], within)


def slice_of(
  chips: int, curve: np.ndarray, batches: list[int], of_bytes: float, of_latency: float
) -> dict[str, Any]:
  """What is told of one slice.

  Args:
    chips: in it.
    curve: its efficiency for 1, 2, ... clips a chip.
    batches: clips a chip that were compiled.
    of_bytes, of_latency: see `communication`.
  """
  under = np.flatnonzero(curve < 0.9)
  least = int(under[-1]) + 2 if len(under) else 1
  return {
    "chips": chips,
    "slice": "x".join(str(size) for size in SLICES[chips]),
    "all_reduce_bytes_ms": round(1e3 * of_bytes, 3),
    "all_reduce_latency_ms": round(1e3 * of_latency, 3),
    "efficiency": {batch: round(float(curve[batch - 1]), 4) for batch in batches},
    "least_batch_for_90": least,
    "global_batch_for_90": least * chips,
  }


def _print(
  slices: list[dict[str, Any]], batches: list[int], seconds: list[float], best: float
) -> None:
  rows = [
    {
      "clips a chip": batch,
      "arithmetic, ms": 1e3 * time,
      "one chip, %": 100 * batch * best / time,
      **{f"{row['chips']} chips, %": 100 * row["efficiency"][batch] for row in slices},
    }
    for batch, time in zip(batches, seconds, strict=True)
  ]
  print("\n" + outcome.table(rows) + "\n")
  columns = {
    "chips": "chips",
    "slice": "slice",
    "all_reduce_bytes_ms": "all-reduces, bytes, ms",
    "all_reduce_latency_ms": "all-reduces, latency, ms",
    "least_batch_for_90": "90 % down to, clips a chip",
    "global_batch_for_90": "90 % down to, clips in all",
  }
  print(outcome.table([{told: row[key] for key, told in columns.items()} for row in slices]) + "\n")


def _draw(generation: str, curves: dict[int, np.ndarray]) -> Any:
  """Efficiency against clips a chip, a curve for each slice."""

  def draw(axes: Any) -> None:
    for (chips, curve), colour in zip(
      curves.items(), (outcome.BLUE, outcome.ORANGE, outcome.INK), strict=True
    ):
      axes[0].plot(np.arange(1, len(curve) + 1), 100 * curve, label=f"{chips} chips", color=colour)
    axes[0].axhline(90, color=outcome.MUTED, linewidth=0.8, linestyle="--")
    axes[0].set_xscale("log", base=2)
    most = max(len(curve) for curve in curves.values())
    ticks = [2**power for power in range(int(np.log2(most)) + 1)]
    axes[0].set_xticks(ticks, ticks)
    axes[0].set_ylim(0, 100)
    axes[0].set_xlabel("clips a chip")
    axes[0].set_ylabel("expected efficiency (%)")
    axes[0].set_title(f"R(2+1)D-18 on {generation}, on paper", loc="left", fontsize=10)
    axes[0].legend(frameon=False)

  return draw


def main() -> None:
  """Compiles, computes, tells."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--generation", default="v5e", choices=sorted(LINKS))
  parser.add_argument("--batches", default="2,4,8,16,32", help="clips a chip")
  arguments = parser.parse_args()
  batches = sorted(int(size) for size in arguments.batches.split(","))
  link, clock = LINKS[arguments.generation], CYCLES[arguments.generation]
  compiled = {}
  for batch in batches:
    print(f"compiling for 8 {arguments.generation} chips, {batch} clips each ...", flush=True)
    compiled[batch] = made = tpu_compile.compile_step(
      f"{arguments.generation}:2x4", "ours", MODELS["r2plus1d_18"], 8 * batch
    )
    print(f"  {made['cycles'] / 1e6:.2f} M cycles in {made['compile_seconds']:.0f} s", flush=True)
  seconds = [made["cycles"] / clock for made in compiled.values()]
  reduced = compiled[batches[-1]]["all_reduces"]
  best = min(time / batch for time, batch in zip(seconds, batches, strict=True))
  sizes = np.arange(1, 4 * batches[-1] + 1)
  slices, curves = [], {}
  for chips, shape in SLICES.items():
    of_bytes, of_latency = communication(reduced, shape, link)
    whole = seconds_of(sizes, batches, seconds) + of_bytes + of_latency
    curves[chips] = sizes * best / whole
    slices.append(slice_of(chips, curves[chips], batches, of_bytes, of_latency))
  _print(slices, batches, seconds, best)
  name = f"scaling_{arguments.generation}"
  outcome.plot(name, _draw(arguments.generation, curves))
  outcome.write(
    name,
    {
      "slices": slices,
      "cycles": {batch: made["cycles"] for batch, made in compiled.items()},
      "memory_mib": {batch: made["memory_mib"] for batch, made in compiled.items()},
      "all_reduces": {"count": len(reduced), "bytes": sum(reduced)},
      "link_bytes_per_second": link,
      "clock_hz": clock,
      "seconds_a_hop_assumed": SECONDS_A_HOP,
    },
  )


if __name__ == "__main__":
  main()
