"""The training step of R(2+1)D-18, compiled for TPUs ahead of time: cycles and memory without a TPU.

pip install -r benchmarks/requirements.txt
python benchmarks/tpu_compile.py [--topologies v5e:2x2,v6e:2x2] [--batch 64] [--frames 16]

Two programs, compiled by the same compiler (libtpu) for the same chips, bfloat16, one batch over all
chips of the topology, from uint8 clips to the updated parameters (SGD with momentum):

- plain: the network as a port would have it, every convolution a 3-D one on `[B, T, H, W, C]`.
- ours: what `hybrid_video.models.convolution` chooses for a TPU. Both compute the same function
  (tests/test_convolution.py), from the same code, parameters and optimizer.

`estimated_cycles`, which the compiler writes beside each operation it schedules, are summed, see
`hybrid_video/planning/program.py`: a model, not a measurement. The bytes of prefetches are not in it, and
are therefore told as well, with the ratio as it would be if nothing of them were hidden behind other work,
at the measured 442 bytes a cycle of a v5e.

One compilation takes two minutes or more on two CPU cores. The last line is one JSON object:
`cycles_ratio` is ours / plain on the first topology, `cycles_ratio_unhidden` the same with all
prefetches counted in full; `topologies` has each one's cycles, memory, all-reduces, and cycles of
each part of the network, forward and backward.
"""

import argparse
import functools
import os
import pathlib
import re
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from hybrid_video.planning import program, topologies

# Before JAX is imported; which topology it is matters later, when one is asked for.
os.environ.update(topologies.named("v5e:2x2").environment())

import jax
import jax.numpy as jnp
import numpy as np
import optax
import outcome

from hybrid_video import models, sharding, steps
from hybrid_video import state as training_state
from hybrid_video.models import target
from hybrid_video.tasks import classification

CLASSES, SIZE = 51, 112
FORMS = ("plain", "ours")
# Streaming from memory on one v5e chip, by the same compiler's estimate.
BYTES_A_CYCLE = 442
MIB = 2**20
_PARTS = re.compile(r"(stem|layer\d\.\d|head)")


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
    what `program.account` finds, `compile_seconds`, and `memory_mib` (bytes at the peak, per chip).
  """
  devices = topologies.named(topology).devices()
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
    **program.account(compiled.as_text(), _PARTS),
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
