"""Training steps compiled for TPUs ahead of time: cycles and memory without a TPU.

  python benchmarks/tpu_compile.py [--model=r2plus1d_18] [--topologies=v5e:2x2,v6e:2x2] [--batch=64]

`--model` takes several of benchmarks/compared.py by comma, or `all`. Two programs of each, compiled by the same
compiler (libtpu) for the same chips, bfloat16, one batch over all chips of the topology, from uint8 clips to the
updated parameters:

- plain: the network as a port would have it, every convolution a 3-D one on `[B, T, H, W, C]`, and attention in its
  plain form, the state laid out as arrays are by themselves.
- ours: what `hybrid_video.models` chooses for a TPU, with the state between steps in layouts of the compiler's choice,
  as training keeps it. Both compute the same function (tests/test_convolution.py, tests/test_attention.py,
  tests/test_layouts.py), from the same code, parameters and optimizer.

`estimated_cycles`, which the compiler writes beside each operation it schedules, are summed, see
`hybrid_video/planning/program.py`: a model, not a measurement. The bytes of prefetches are not in it, and
are therefore told as well, with the ratio as it would be if nothing of them were hidden behind other work,
at the measured 442 bytes a cycle of a v5e. Some operations have no estimate; how many there are is told too.

One compilation takes two minutes or more on two CPU cores. Results are kept by model and topology in
benchmarks/results/tpu_compile.json; others stay. The last line is one JSON object, `models`, with what was compiled
now: of each model and topology both forms' cycles, memory, all-reduces, and cycles of each part of the network,
forward and backward, `cycles_ratio` (ours / plain) and `cycles_ratio_unhidden` (with all prefetches counted in full),
and `share_of_peak`: the multiply-accumulates of the step, two operations each, over what the chips' matrix units
could do in ours' cycles. For a single model, the ratios on its first topology stand beside that too.
"""

import argparse
import dataclasses
import functools
import json
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

from benchmarks import ours, outcome
from benchmarks.compared import MODELS, Compared, named
from hybrid_video import sharding, steps
from hybrid_video import state as training_state
from hybrid_video.models import costs, target

PLAIN, OURS = FORMS = ("plain", "ours")
# Streaming from memory on one v5e chip, by the same compiler's estimate.
BYTES_A_CYCLE = 442
MIB = 2**20
_PARTS = re.compile(r"(stem|layer\d\.\d|cnn|attention|decoder|head)")
_NAME = "tpu_compile"


def compile_step(topology: str, form: str, compared: Compared, batch: int) -> dict[str, Any]:
  """Compiles one training step.

  Args:
    topology: such as "v5e:2x2"; the batch is split over all its chips.
    form: "plain" or "ours".
    compared: the model.
    batch: clips in all.

  Returns:
    what `program.account` finds, `compile_seconds`, `memory_mib` (bytes at the peak, per chip), and
    `multiply_accumulates` of the whole step over all chips.
  """
  chips = topologies.named(topology)
  devices = chips.devices()
  mesh = sharding.make_mesh(devices)
  task, optimizer = ours.task_of(compared, "bfloat16"), ours.optimizer_of(compared)

  def placed(tree: Any, where: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)

  state = training_state.abstract(task, optimizer, mesh)
  clips = {
    "clips": jax.ShapeDtypeStruct(
      (batch, compared.frames, compared.size, compared.size, 3), jnp.uint8
    ),
    "labels": jax.ShapeDtypeStruct((batch,), jnp.int32),
    "mirrored": jax.ShapeDtypeStruct((batch,), jnp.bool_),
  }
  step = functools.partial(steps.train_step, task=task, optimizer=optimizer)
  arguments = (
    state,
    placed(clips, sharding.batch_sharding(mesh)),
    np.float32(compared.update.learning_rate),
    np.uint32(0),
  )
  jitted = jax.jit(step, donate_argnums=0)
  if form == OURS:
    jitted = steps.jitted(task, optimizer, steps.StepOptions(), mesh, state)
  started = time.perf_counter()
  # With no device to choose for, everything takes its plain form.
  with target.traced_for(devices if form == OURS else []):
    lowered = jitted.lower(*arguments)
  compiled = lowered.compile()
  seconds = time.perf_counter() - started
  memory = compiled.memory_analysis()
  found = program.account(compiled.as_text(), _PARTS)
  work = costs.multiply_accumulates(step, *arguments)
  cycles_at_peak = 2 * work / len(devices) / chips.generation.operations
  return {
    **found,
    "memory_mib": round(memory.peak_memory_in_bytes / MIB),
    "temporary_mib": round(memory.temp_size_in_bytes / MIB),
    "compile_seconds": round(seconds, 1),
    "multiply_accumulates": work,
    "share_of_peak": round(cycles_at_peak / found["cycles"], 4),
    "milliseconds": round(1e3 * found["cycles"] / chips.generation.clock, 2),
  }


def both_forms(topology: str, model: str, compared: Compared, batch: int) -> dict[str, Any]:
  """Compiles both forms of a model's step and tells of each."""
  found: dict[str, Any] = {"batch": batch, "frames": compared.frames, "size": compared.size}
  for form in FORMS:
    print(f"compiling the {form} step of {model} for {topology} ...", flush=True)
    found[form] = made = compile_step(topology, form, compared, batch)
    print(
      f"  {made['cycles'] / 1e6:.2f} M cycles, {made['memory_mib']} MiB, "
      f"compiled in {made['compile_seconds']:.0f} s",
      flush=True,
    )
  unhidden = [
    found[form]["cycles"] + found[form]["prefetched_bytes"] / BYTES_A_CYCLE for form in FORMS
  ]
  found["cycles_ratio"] = round(found[OURS]["cycles"] / found[PLAIN]["cycles"], 4)
  found["cycles_ratio_unhidden"] = round(unhidden[1] / unhidden[0], 4)
  found["memory_ratio"] = round(found[OURS]["memory_mib"] / found[PLAIN]["memory_mib"], 3)
  return {**found, "versions": outcome.versions()}


def _summary(models: dict[str, Any]) -> list[dict[str, Any]]:
  return [
    {
      "model": model,
      "chips": topology,
      "batch": made["batch"],
      "plain, M cycles": made[PLAIN]["cycles"] / 1e6,
      "ours, M cycles": made[OURS]["cycles"] / 1e6,
      "ratio": made["cycles_ratio"],
      "prefetches in full": made["cycles_ratio_unhidden"],
      "of the peak": made[OURS]["share_of_peak"],
      "ms": made[OURS]["milliseconds"],
      "plain, MiB": made[PLAIN]["memory_mib"],
      "ours, MiB": made[OURS]["memory_mib"],
      "not estimated": made[PLAIN]["not_estimated"] + made[OURS]["not_estimated"],
    }
    for model, by_topology in models.items()
    for topology, made in by_topology.items()
  ]


def _parts(made: dict[str, Any]) -> list[dict[str, Any]]:
  """Million cycles of each part of a network, in the order in which a clip meets them."""
  met = ("stem", "layer", "cnn", "attention", "decoder", "head", "other")
  zero = {"forward": 0, "backward": 0}
  names = sorted(
    {*made[PLAIN]["parts"], *made[OURS]["parts"]},
    key=lambda name: ([name.startswith(kind) for kind in met].index(True), name),
  )
  return [
    {
      "part": name,
      **{
        f"{form} {way}, M": made[form]["parts"].get(name, zero)[way] / 1e6
        for form in FORMS
        for way in ("forward", "backward")
      },
    }
    for name in names
  ]


def _draw(models: dict[str, Any], topology: str) -> Any:
  """Cycles of both forms of every model on a topology."""
  shown = {name: made[topology] for name, made in models.items() if topology in made}

  def draw(axes: Any) -> None:
    places = np.arange(len(shown))
    for shift, form, colour in ((-0.2, PLAIN, outcome.MUTED), (0.2, OURS, outcome.BLUE)):
      heights = [made[form]["cycles"] / 1e6 for made in shown.values()]
      axes[0].barh(places + shift, heights, 0.4, label=form, color=colour)
    axes[0].set_yticks(places, [*shown])
    axes[0].invert_yaxis()
    axes[0].set_xlabel("million cycles a step, estimated")
    axes[0].set_title(topology, loc="left", fontsize=10)
    axes[0].legend(frameon=False)

  return draw


def _keep(model: str, topology: str, made: dict[str, Any]) -> None:
  of_model = outcome.kept(_NAME).get(model, {}) | {topology: made}
  every = outcome.keep(_NAME, {model: of_model}, [*MODELS])
  count = sum(topology in of for of in every.values())
  outcome.plot(_NAME, _draw(every, "v5e:2x2"), height=1.2 + 0.5 * count)


def main() -> None:
  """Compiles, and tells what it found."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--model", type=named, default=["r2plus1d_18"], help=f"all, or of {', '.join(MODELS)}"
  )
  parser.add_argument("--topologies", default="v5e:2x2,v6e:2x2")
  parser.add_argument("--batch", type=int, default=64, help="clips over all chips")
  parser.add_argument("--frames", type=int, help="of a clip; each model has its own")
  parser.add_argument("--results", type=pathlib.Path, help="folder to write them to")
  given = parser.parse_args()
  outcome.RESULTS = given.results or outcome.RESULTS
  found: dict[str, Any] = {}
  for model in given.model:
    compared = dataclasses.replace(MODELS[model], frames=given.frames or MODELS[model].frames)
    for topology in given.topologies.split(","):
      made = both_forms(topology, model, compared, given.batch)
      found.setdefault(model, {})[topology] = made
      _keep(model, topology, made)
  print("\n" + outcome.table(_summary(found)) + "\n")
  alone: dict[str, Any] = {}
  if len(given.model) == 1:
    first = next(iter(found[given.model[0]].values()))
    print(outcome.table(_parts(first)) + "\n")
    alone = {key: first[key] for key in ("cycles_ratio", "cycles_ratio_unhidden", "memory_ratio")}
  print(json.dumps({**alone, "models": found}))


if __name__ == "__main__":
  main()
