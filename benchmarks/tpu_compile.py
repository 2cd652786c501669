"""The training step of R(2+1)D-18, compiled for TPUs ahead of time: cycles and memory without a TPU.

pip install -r benchmarks/requirements.txt
python benchmarks/tpu_compile.py [--topologies v5e:2x2,v6e:2x2] [--batch 64] [--frames 16]

Two programs, compiled by the same compiler (libtpu) for the same chips, bfloat16, one batch over all
chips of the topology, from uint8 clips to the updated parameters (SGD with momentum):

- plain: the network as a port would have it, every convolution a 3-D one on `[B, T, H, W, C]`.
- ours: what `hybrid_video.models.convolution` chooses for a TPU. Both compute the same function
  (tests/test_convolution.py), from the same code, parameters and optimizer.

`estimated_cycles`, which the compiler writes beside each operation it schedules, are summed. They are
a model, not a measurement: they count tiles, windows and memory traffic of an operation, but neither
elementwise work fused into a convolution nor prefetches that run beside others nor all-reduces. The
bytes of such prefetches are therefore told as well, with the ratio as it would be if nothing of them
were hidden behind other work, at the measured 442 bytes a cycle of a v5e.

One compilation takes two minutes or more on two CPU cores. The last line is one JSON object:
`cycles_ratio` is ours / plain on the first topology, `cycles_ratio_unhidden` the same with all
prefetches counted in full; `topologies` has each one's cycles, memory, all-reduces, and cycles of
each part of the network, forward and backward.
"""

import argparse
import collections
import functools
import os
import pathlib
import re
import sys
import time
from typing import Any

os.environ.update(
  JAX_PLATFORMS="cpu",
  TPU_SKIP_MDS_QUERY="1",
  TPU_WORKER_HOSTNAMES="localhost",
  # No TPU is used: nothing to keep other processes from.
  ALLOW_MULTIPLE_LIBTPU_LOAD="1",
  TF_CPP_MIN_LOG_LEVEL="3",
)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import optax
import outcome

from hybrid_video import models, sharding, steps
from hybrid_video import state as training_state
from hybrid_video.models import target
from hybrid_video.tasks import classification

CLASSES, SIZE = 51, 112
# libtpu asks for a machine's name before it compiles for any topology of that generation.
ACCELERATORS = {"v5e": "v5litepod-4", "v6e": "v6e-4"}
FORMS = ("plain", "ours")
# Streaming from memory on one v5e chip, by the same compiler's estimate.
BYTES_A_CYCLE = 442
MIB = 2**20
_PARTS = re.compile(r"(stem|layer\d\.\d|head)")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r"\b(pred|[subf]\d+|bf16)\[([\d,]*)\]")
_WIDTHS = {"pred": 1, "bf16": 2}


def _bytes(shapes: str) -> int:
  """Bytes of all arrays in an instruction's result, padding left out."""
  total = 0
  for kind, sizes in _ARRAY.findall(shapes):
    width = _WIDTHS.get(kind) or int(re.sub(r"\D", "", kind)) // 8
    total += width * int(np.prod([int(size) for size in sizes.split(",") if size]))
  return total


def account(text: str) -> dict[str, Any]:
  """What a compiled program's text tells of its costs.

  Args:
    text: `compiled.as_text()` of a TPU program.

  Returns:
    `cycles` (the sum of estimates), `parts` (of the network: forward and backward cycles),
    `prefetched_bytes` (asynchronous copies, which have no estimate), `all_reduces` (bytes of each).
  """
  parts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  cycles, prefetched = 0, 0
  reduced: list[int] = []
  for line in text.splitlines():
    if not (match := _INSTRUCTION.match(line)):
      continue
    name, rest = match.groups()
    result = rest.split(" ", 1)[0] if not rest.startswith("(") else rest[: rest.index(") ") + 1]
    if re.match(r"(copy-start|slice-start|async-start)", name):
      # The result holds source, destination and a handle: the smaller array is what moves.
      arrays = [_bytes(found.group(0)) for found in _ARRAY.finditer(result)]
      prefetched += sorted(arrays)[-2] if len(arrays) > 1 else 0
    if re.search(r"\ball-reduce(-start)?\(", rest):
      reduced.append(_bytes(result))
    if not (estimate := _CYCLES.search(line)):
      continue
    count = int(estimate.group(1))
    cycles += count
    op = found.group(1) if (found := _OP_NAME.search(line)) else ""
    part = found.group(1) if (found := _PARTS.search(op)) else "other"
    parts[part]["transpose(" in op] += count
  return {
    "cycles": cycles,
    "parts": {part: {"forward": f, "backward": b} for part, (f, b) in sorted(parts.items())},
    "prefetched_bytes": prefetched,
    "all_reduces": reduced,
  }


def compile_step(
  topology: str, form: str, *, batch: int, frames: int, blocks: int | None = None
) -> dict[str, Any]:
  """Compiles one training step.

  Args:
    topology: such as "v5e:2x2"; the batch is split over all its chips.
    form: "plain" or "ours".
    batch: clips in all.
    frames: of a clip.
    blocks: residual blocks kept; None is all.

  Returns:
    what `account` finds, `compile_seconds`, and `memory_mib` (bytes at the peak, per chip).
  """
  os.environ["TPU_ACCELERATOR_TYPE"] = ACCELERATORS[topology.split(":")[0]]
  devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  mesh = sharding.make_mesh(devices)
  build = functools.partial(
    models.create, "r2plus1d_18", num_classes=CLASSES, seed=0, dtype="bfloat16", blocks=blocks
  )
  task = classification.make(build, (0.43, 0.39, 0.38), (0.23, 0.22, 0.22))
  optimizer = optax.sgd(0.01, momentum=0.9)

  def placed(tree: Any, where: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)

  state = training_state.abstract(task, optimizer, mesh)
  clips = {
    "clips": jax.ShapeDtypeStruct((batch, frames, SIZE, SIZE, 3), jnp.uint8),
    "labels": jax.ShapeDtypeStruct((batch,), jnp.int32),
    "mirrored": jax.ShapeDtypeStruct((batch,), jnp.bool_),
  }
  step = jax.jit(
    functools.partial(steps.train_step, task=task, optimizer=optimizer),
    donate_argnums=0,
  )
  started = time.perf_counter()
  # With no device to choose for, everything takes its plain form.
  with target.traced_for(devices if form == "ours" else []):
    batches = placed(clips, sharding.batch_sharding(mesh))
    lowered = step.lower(state, batches, np.float32(0.01), np.uint32(0))
  compiled = lowered.compile()
  seconds = time.perf_counter() - started
  memory = compiled.memory_analysis()
  return {
    **account(compiled.as_text()),
    "memory_mib": round(memory.peak_memory_in_bytes / MIB),
    "temporary_mib": round(memory.temp_size_in_bytes / MIB),
    "compile_seconds": round(seconds, 1),
  }


def main() -> None:
  """Compiles, and tells what it found."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--topologies", default="v5e:2x2,v6e:2x2")
  parser.add_argument("--batch", type=int, default=64, help="clips over all chips")
  parser.add_argument("--frames", type=int, default=16)
  parser.add_argument("--blocks", type=int, help="residual blocks kept, to be done sooner")
  parser.add_argument("--name", default="tpu_compile", help="of the files in benchmarks/results")
  arguments = parser.parse_args()
  found: dict[str, dict[str, Any]] = {}
  for topology in arguments.topologies.split(","):
    found[topology] = {}
    for form in FORMS:
      print(f"compiling the {form} step for {topology} ...", flush=True)
      found[topology][form] = made = compile_step(
        topology, form, batch=arguments.batch, frames=arguments.frames, blocks=arguments.blocks
      )
      print(
        f"  {made['cycles'] / 1e6:.2f} M cycles, {made['memory_mib']} MiB, "
        f"compiled in {made['compile_seconds']:.0f} s",
        flush=True,
      )

  summary = []
  for topology, forms in found.items():
    plain, ours = forms["plain"], forms["ours"]
    unhidden = [form["cycles"] + form["prefetched_bytes"] / BYTES_A_CYCLE for form in (ours, plain)]
    summary.append(
      {
        "chips": topology,
        "plain, M cycles": plain["cycles"] / 1e6,
        "ours, M cycles": ours["cycles"] / 1e6,
        "ratio": ours["cycles"] / plain["cycles"],
        "ratio, prefetches in full": unhidden[0] / unhidden[1],
        "plain, MiB": plain["memory_mib"],
        "ours, MiB": ours["memory_mib"],
      }
    )
  first = found[arguments.topologies.split(",")[0]]
  print("\n" + outcome.table(summary) + "\n")
  # As a clip meets them.
  met = ("stem", "layer", "head", "other")
  names = sorted(
    {*first["plain"]["parts"], *first["ours"]["parts"]},
    key=lambda name: ([name.startswith(kind) for kind in met].index(True), name),
  )
  zero = {"forward": 0, "backward": 0}
  layers = [
    {
      "part": name,
      **{
        f"{form} {way}, M": first[form]["parts"].get(name, zero)[way] / 1e6
        for form in FORMS
        for way in ("forward", "backward")
      },
    }
    for name in names
  ]
  print(outcome.table(layers) + "\n")

  def draw(axes: Any) -> None:
    places = np.arange(len(names))
    for shift, form, colour in ((-0.2, "plain", outcome.MUTED), (0.2, "ours", outcome.BLUE)):
      parts = [first[form]["parts"].get(name, zero) for name in names]
      heights = [sum(part.values()) / 1e6 for part in parts]
      axes[0].bar(places + shift, heights, 0.4, label=form, color=colour)
    axes[0].set_xticks(places, names, rotation=60, ha="right")
    axes[0].set_ylabel("million cycles a step, estimated")
    axes[0].set_title(f"R(2+1)D-18, {arguments.topologies.split(',')[0]}", loc="left", fontsize=10)
    axes[0].legend(frameon=False)

  outcome.plot(arguments.name, draw)
  outcome.write(
    arguments.name,
    {
      "cycles_ratio": round(summary[0]["ratio"], 4),
      "cycles_ratio_unhidden": round(summary[0]["ratio, prefetches in full"], 4),
      "memory_ratio": round(first["ours"]["memory_mib"] / first["plain"]["memory_mib"], 3),
      "batch": arguments.batch,
      "frames": arguments.frames,
      "topologies": found,
    },
  )


if __name__ == "__main__":
  main()
