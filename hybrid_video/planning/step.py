"""The training step of an experiment, for the devices that it is planned for: sizes, and compiled.

In: an experiment, the number of classes, devices that need not be there. Out: parameters,
multiply-accumulates and bytes of the state, which cost seconds; then what the compiler says, which
costs minutes; then, on devices that are there, seconds a step.
"""

from collections.abc import Sequence
import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np

from hybrid_video import compilation, models, optimizers, sharding, steps
from hybrid_video import state as training_state
from hybrid_video.experiment import Experiment
from hybrid_video.models import costs, target
from hybrid_video.planning import program
from hybrid_video.tasks import Task, registry

_LEARNING_RATE, _SEED = np.float32(1e-3), np.uint32(0)


@dataclasses.dataclass(frozen=True)
class Step:
  """A step that has not been compiled.

  Attributes:
    experiment: every setting.
    task, optimizer, mesh: what it is made of.
    state, batch: shapes with shardings.
  """

  experiment: Experiment
  task: Task
  optimizer: Any
  mesh: jax.sharding.Mesh
  state: dict[str, Any]
  batch: dict[str, jax.ShapeDtypeStruct]

  @property
  def devices(self) -> Sequence[jax.Device]:
    """Those of the mesh."""
    return list(self.mesh.devices.flat)


def make(experiment: Experiment, num_classes: int, devices: Sequence[jax.Device]) -> Step:
  """The step that `train` would run on these devices.

  Args:
    experiment: every setting.
    num_classes: of the data set.
    devices: such as `topologies.Topology.devices` gives.

  Raises:
    UserError: a batch or an fsdp axis that does not divide, or options that do not fit together.
  """
  mesh = sharding.make_mesh(list(devices), experiment.fsdp)
  sharding.check_batch_size(
    experiment.batch_size, mesh, experiment.path("batch_size"), experiment.micro_batches
  )
  with target.traced_for(devices):
    task = registry.create(experiment, num_classes, mesh)
    optimizer = optimizers.make_optimizer(experiment.optimizer)
    state = training_state.abstract(task, optimizer, mesh, averaged=experiment.ema_decay > 0)
  optimizers.trained(state["params"], experiment.optimizer.freeze)
  batch = steps.batch_shapes(experiment.clip, experiment.batch_size, sharding.batch_sharding(mesh))
  return Step(experiment, task, optimizer, mesh, state, batch)


def _bytes(tree: Any) -> tuple[int, int]:
  """Bytes of arrays: of all, and of one device's share of them."""
  whole, share = 0, 0
  for leaf in jax.tree.leaves(tree):
    whole += leaf.size * leaf.dtype.itemsize
    share += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return whole, share


def sizes(step: Step) -> dict[str, Any]:
  """What can be counted without a compiler.

  Returns:
    `parameters` (by part), `trained`, `bytes` and `device_bytes` (of `parameters`, `gradients`,
    `optimizer`, `averages`, `statistics`, `batch`), `multiply_accumulates` (`clip`, a forward pass;
    `step`, of all devices), `has_batch_norm`.
  """
  experiment, state = step.experiment, step.state
  mask = optimizers.trained(state["params"], experiment.optimizer.freeze)
  trained = [
    leaf
    for leaf, of in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(mask), strict=True)
    if of
  ]
  kinds = {
    "parameters": state["params"],
    "gradients": trained,
    "optimizer": state["opt_state"],
    "averages": state["ema"],
    "statistics": state["batch_stats"],
    "batch": step.batch,
  }
  found = {kind: _bytes(tree) for kind, tree in kinds.items()}
  return {
    "parameters": models.parameter_counts(state["params"]),
    "trained": sum(leaf.size for leaf in trained),
    "bytes": {kind: whole for kind, (whole, _) in found.items()},
    "device_bytes": {kind: share for kind, (_, share) in found.items()},
    "multiply_accumulates": _multiply_accumulates(step),
    "has_batch_norm": bool(state["batch_stats"]),
  }


def _multiply_accumulates(step: Step) -> dict[str, int]:
  experiment, task, state = step.experiment, step.task, step.state
  key = jax.eval_shape(lambda: jax.random.key(0))

  def forward(params: Any, statistics: Any, batch: Any, key: Any) -> Any:
    return task.loss(params, statistics, task.prepare(batch, key), key)[0]

  def whole(*arguments: Any) -> Any:
    options = steps.StepOptions.of(experiment)
    return steps.train_step(*arguments, task=task, optimizer=step.optimizer, options=options)

  # As many clips as there are devices: augmentation is spread over them.
  rows = step.mesh.size
  few = steps.batch_shapes(experiment.clip, rows)
  of_rows = costs.multiply_accumulates(forward, state["params"], state["batch_stats"], few, key)
  of_step = costs.multiply_accumulates(whole, state, step.batch, _LEARNING_RATE, _SEED)
  return {"clip": of_rows // rows, "step": of_step}


def compile_step(step: Step) -> tuple[Any, dict[str, Any]]:
  """The step, compiled.

  Returns:
    (the program, what it says: `memory` of a device as `program.Memory` has it, with `total`; `cycles`,
    `collectives`, `prefetched_bytes`; `seconds` of lowering and compiling).

  Raises:
    jax.errors.JaxRuntimeError: the compiler refuses, for one because memory does not suffice.
  """
  experiment = step.experiment
  options = steps.StepOptions.of(experiment)
  started = time.monotonic()
  with target.traced_for(step.devices):
    function: Any = steps.jitted(step.task, step.optimizer, options, step.mesh, step.state)
    lowered = function.lower(step.state, step.batch, _LEARNING_RATE, _SEED)
  compiled = lowered.compile()
  seconds = time.monotonic() - started
  memory = program.Memory.of(compiled)
  told = program.account(compiled.as_text())
  return compiled, {
    "memory": {**dataclasses.asdict(memory), "total": memory.total},
    **{name: told[name] for name in ("cycles", "collectives", "prefetched_bytes")},
    "seconds": round(seconds, 1),
  }


def measure(step: Step, compiled: Any, count: int) -> list[float]:
  """Seconds of each of `count` steps on random clips, after one that is not counted.

  Args:
    step: on devices that are there.
    compiled: what `compile_step` gave.
    count: how many.
  """
  variables = step.task.initial_variables()
  averaged = step.experiment.ema_decay > 0
  state = training_state.create(step.optimizer, step.mesh, *variables, averaged=averaged)
  rng = np.random.default_rng(0)
  host = {
    "clips": rng.integers(0, 256, step.batch["clips"].shape, np.uint8),
    "labels": np.zeros(step.batch["labels"].shape, np.int32),
    "mirrored": np.zeros(step.batch["mirrored"].shape, bool),
  }
  batch = sharding.put_batch(host, step.mesh)
  state, batch, rate, seed = compilation.laid_out(compiled, (state, batch, _LEARNING_RATE, _SEED))
  seconds = []
  for _ in range(count + 1):
    started = time.monotonic()
    state, sums = compiled(state, batch, rate, seed)
    jax.block_until_ready((state, sums))
    seconds.append(time.monotonic() - started)
  return seconds[1:]
