"""The pure training step: state and batch in, new state and metric sums out, for every task.

What differs between runs of one experiment, such as the seed or the learning rate of a step, is an
input, so that all of them share one compiled program.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
from jax.experimental.layout import Format, Layout
import jax.numpy as jnp
import numpy as np
import optax

from hybrid_video import compilation, optimizers, sharding
from hybrid_video.models import target
from hybrid_video.models.rematerialization import NONE
from hybrid_video.state import State
from hybrid_video.tasks import Array, Sums, Task, Tree

if TYPE_CHECKING:
  # Not for what only computes: an experiment needs a video decoder.
  from hybrid_video.experiment import Experiment
  from hybrid_video.sampling.clip_settings import ClipSettings

# Folded into the seed's key before the step, so that what `Task.prepare` draws is none of dropout's;
# no step's number gets so far.
_PREPARATION_STREAM = 2**32 - 1


def as_seed(seed: int) -> np.ndarray:
  """A seed as the compiled step takes it: what JAX makes of a larger one, uint32."""
  return np.array(seed % 2**32, np.uint32)


def keys(seed: np.uint32 | np.ndarray | Array, step: Array) -> tuple[Array, Array]:
  """The keys of a step: (what `Task.prepare` draws with, dropout's).

  Args:
    seed: see `as_seed`.
    step: updates before it.
  """
  root = jax.random.key(seed)
  stream = jax.random.fold_in(root, _PREPARATION_STREAM)
  return jax.random.fold_in(stream, step), jax.random.fold_in(root, step)


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """What an update is, beside the task and the optimizer.

  Attributes:
    micro_batches: parts that a batch is computed in, one after the other.
    ema_decay: of the moving averages; 0 is none.
    max_skipped: updates that are not finite and are left out; after one more, nothing is updated.
    freeze: parts that are not trained, see `optimizers.trained`; all that the optimizer's settings freeze,
      and maybe more.
    saves_memory: whether XLA on a CPU orders a program for little memory rather than for speed. Unless it does,
      `model.remat` saves nothing there: everything is computed again as early as it can be.
  """

  micro_batches: int = 1
  ema_decay: float = 0.0
  max_skipped: int = 0
  freeze: tuple[str, ...] = ()
  saves_memory: bool = False

  @classmethod
  def of(cls, experiment: "Experiment") -> "StepOptions":
    """What an experiment says."""
    return cls(
      experiment.micro_batches,
      experiment.ema_decay,
      experiment.max_skipped_steps,
      experiment.optimizer.freeze,
      experiment.model.options.get("remat", NONE) != NONE,
    )


_PLAIN = StepOptions()
_Update = Callable[[State], tuple[State, Array]]
# Of XLA on a CPU.
_LITTLE_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def train_step(
  state: State,
  batch: dict[str, Array],
  learning_rate: np.float32 | Array,
  seed: np.uint32 | Array,
  *,
  task: Task,
  optimizer: optax.GradientTransformation,
  options: StepOptions = _PLAIN,
) -> tuple[State, Sums]:
  """One update, if it is finite.

  An update counts as finite where the loss, BatchNorm's statistics, the gradients and these times the
  learning rate are, so that whether it is made is known before the parameters are gone through. One that
  is not changes nothing but `step` and `skipped`; the one after the last that may be left out, and all
  after it, do not even count as steps, so that the state stays what it was before it.

  Args:
    state: see `state`.
    batch: `clips` uint8 `[B, T, H, W, 3]`, `labels` `[B]`, `mirrored` bool `[B]`: clips to mirror.
    learning_rate: of this step; float32, as `optimizers.make_schedule` gives it.
    seed: the keys of dropout and augmentation follow from it and the step; uint32. Of either, a
      number of another type, Python's own among them, is another program.
    task: what is minimized.
    optimizer: the same that made the state, for a learning rate of one.
    options: accumulation, averages, guard.

  Returns:
    (the state after the step, metric sums of the batch before it). Beside the task's sums there are
    `gradient_norm`, `update_norm` and `parameter_norm` of the update, `finite` (1 or 0) and `halted`
    (1 where one more was not finite than may be), and the sum of `stop`, if the batch has it.
  """
  preparation_key, dropout_key = keys(seed, state["step"])
  prepared = task.prepare(batch, preparation_key)
  gradients, batch_stats, sums = _gradients(state, prepared, dropout_key, task, options)
  # What is not trained has no gradient, which is then not even computed.
  gradients = _of_trained(gradients, optimizers.trained(state["params"], options.freeze))
  norm = optax.tree.norm(gradients)
  # Of float32, whose squares are infinite from 2e19 on.
  sizes = [sums["loss"], norm, (learning_rate * norm) ** 2, optax.tree.norm(batch_stats)]
  is_made = jnp.isfinite(jnp.stack(sizes)).all() & (state["skipped"] <= options.max_skipped)

  def update(state: State) -> tuple[State, Array]:
    new, updates = _updated(state, gradients, batch_stats, learning_rate, optimizer, options)
    # Of what is made of it: a norm that can be had before would be a pass of its own over all of the state.
    made = jax.tree.map(lambda step: jnp.where(is_made, step, 0), updates)
    return new, learning_rate * optax.tree.norm(made)

  def leave(state: State) -> tuple[State, Array]:
    return state, jnp.zeros_like(norm)

  state, update_norm = _one_of(is_made, update, leave, state)
  sums |= {
    "gradient_norm": norm,
    "update_norm": update_norm,
    "parameter_norm": optax.tree.norm(state["params"]),
  }
  if "stop" in batch:
    sums["stop"] = batch["stop"].sum()
  return _counted(is_made, state, sums, options.max_skipped)


def _updated(
  state: State,
  gradients: Tree,
  batch_stats: Tree,
  learning_rate: np.float32 | Array,
  optimizer: optax.GradientTransformation,
  options: StepOptions,
) -> tuple[State, Tree]:
  """The state after an update, and the updates for a learning rate of one."""
  updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
  # The optimizer may know of less that stays, and decay the rest.
  updates = _of_trained(updates, optimizers.trained(state["params"], options.freeze))
  params = jax.tree.map(lambda old, step: old + learning_rate * step, state["params"], updates)
  new = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}
  if options.ema_decay:
    new["ema"] = _averages(state, new, options.ema_decay)
  return {**state, **new}, updates


def _of_trained(values: Tree, trained: Tree) -> Tree:
  """Values of what is trained; zeros for all else."""
  return jax.tree.map(lambda one, own: one if own else jnp.zeros_like(one), values, trained)


def _one_of(wanted: Array, update: _Update, leave: _Update, state: State) -> tuple[State, Array]:
  """What one of two functions makes of the state, and its norm.

  On a CPU it alone is computed, and updates the state in place: half the time of a choice between all
  values that both give (VideoMAE-B: 0.13 of 0.25 s). Accelerators choose, which a compiler has the
  passes over the parameters do on their way; around a branch it can neither fuse nor prefetch.
  """
  if target.platform() == "cpu":
    return jax.lax.cond(wanted, update, leave, state)
  return jax.tree.map(functools.partial(jnp.where, wanted), update(state), leave(state))


def _counted(is_made: Array, state: State, sums: Sums, max_skipped: int) -> tuple[State, Sums]:
  """Counts a step and what was left out, in the state and in its sums."""
  skipped = state["skipped"] + (~is_made).astype(jnp.int32)
  counts = skipped <= max_skipped
  step = state["step"] + counts.astype(jnp.int32)
  return {**state, "step": step, "skipped": skipped}, {
    **sums,
    "finite": is_made.astype(jnp.float32),
    "halted": (~counts).astype(jnp.float32),
  }


def _gradients(
  state: State, prepared: Any, dropout_key: Array, task: Task, options: StepOptions
) -> tuple[Tree, Tree, Sums]:
  """Gradients of the mean loss over the batch, the new batch statistics, and metric sums."""
  if options.micro_batches == 1:

    def mean_loss(params: Tree) -> tuple[Array, tuple[Tree, Sums]]:
      sums, batch_stats = task.loss(params, state["batch_stats"], prepared, dropout_key)
      return sums["loss"] / sums["count"], (batch_stats, sums)

    gradients, (batch_stats, sums) = jax.grad(mean_loss, has_aux=True)(state["params"])
    return gradients, batch_stats, sums

  def one_part(carried: Any, part: Any) -> tuple[Any, None]:
    total, batch_stats, sums = carried
    number, clips = part
    key = jax.random.fold_in(dropout_key, number)

    def summed_loss(params: Tree) -> tuple[Array, tuple[Tree, Sums]]:
      of_part, new_stats = task.loss(params, batch_stats, clips, key)
      return of_part["loss"], (new_stats, of_part)

    gradients, (batch_stats, of_part) = jax.grad(summed_loss, has_aux=True)(state["params"])
    add = functools.partial(jax.tree.map, jnp.add)
    return (add(total, gradients), batch_stats, add(sums, of_part)), None

  parts = jax.tree.map(lambda rows: _in_parts(rows, options.micro_batches), prepared)
  first = jax.tree.map(lambda rows: rows[0], parts)
  of_first = jax.eval_shape(task.loss, state["params"], state["batch_stats"], first, dropout_key)[0]
  zeros = functools.partial(jax.tree.map, lambda like: jnp.zeros(like.shape, like.dtype))
  start = (zeros(state["params"]), state["batch_stats"], zeros(of_first))
  numbers = jnp.arange(options.micro_batches)
  (total, batch_stats, sums), _ = jax.lax.scan(one_part, start, (numbers, parts))
  return jax.tree.map(lambda leaf: leaf / sums["count"], total), batch_stats, sums


def _in_parts(rows: Array, parts: int) -> Array:
  """Rows `[B, ...]` as `[parts, B / parts, ...]`: part i has the rows i, i + parts, i + 2 parts, ...

  So a part has the same rows on any number of devices, and each device's share of it lies on that
  device already.
  """
  return jnp.swapaxes(rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]), 0, 1)


def _averages(state: State, new: State, decay: float) -> Tree:
  """The moving averages after a step; the first step's are its own values, as PyTorch's are.

  That of a value that stays is the value, to the last bit.

  Source: `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn` and `use_buffers`.
  """
  weight = jnp.where(state["step"] == state["skipped"], 0.0, decay)
  return jax.tree.map(
    lambda average, value: jnp.where(
      average == value, value, weight * average + (1 - weight) * value
    ),
    state["ema"],
    {name: new[name] for name in ("params", "batch_stats")},
  )


def batch_shapes(clip: "ClipSettings", rows: int, where: Any = None) -> dict[str, Any]:
  """Shapes and types of a batch of so many clips, `jax.ShapeDtypeStruct`s, with `where` as their sharding."""
  shapes = {
    "clips": ((rows, clip.frames, clip.crop, clip.crop, 3), jnp.uint8),
    "labels": ((rows,), jnp.int32),
    "mirrored": ((rows,), jnp.bool_),
  }
  return {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
    for name, (shape, dtype) in shapes.items()
  }


def shapes(experiment: "Experiment", mesh: jax.sharding.Mesh, state: State) -> tuple[Any, ...]:
  """What a step of `jitted` is called with: the state, a batch, learning rate and seed, `jax.ShapeDtypeStruct`s."""
  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  batch = batch_shapes(experiment.clip, experiment.batch_size, split)
  if jax.process_count() > 1:
    batch["stop"] = jax.ShapeDtypeStruct((experiment.batch_size,), jnp.int32, sharding=split)
  rate, seed = (
    jax.ShapeDtypeStruct((), dtype, sharding=whole) for dtype in (jnp.float32, jnp.uint32)
  )
  given = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
  )
  return given, batch, rate, seed


def state_formats(state: State, platform: str) -> Any:
  """Where the arrays of a state lie between steps: their shardings, and on a TPU layouts of the compiler's choice.

  Each kernel would be laid out anew for its convolution or product in every step otherwise, and so would what the
  optimizer keeps of it.
  """
  if platform != "tpu":
    return jax.tree.map(lambda leaf: leaf.sharding, state)
  return jax.tree.map(lambda leaf: Format(Layout.AUTO, leaf.sharding), state)


def jitted(
  task: Task,
  optimizer: optax.GradientTransformation,
  options: StepOptions,
  mesh: jax.sharding.Mesh,
  state: State,
) -> Any:
  """`train_step` of `jax.jit` for arrays on a mesh: (state, batch, learning rate, seed) to (state, sums).

  On a TPU it has to be compiled for shapes first, as `compilation.Program` does, because the layouts of the state are
  the compiler's.

  Args:
    task, optimizer, options: as in `train_step`.
    mesh: the devices.
    state: with the shardings that it is to keep; `jax.ShapeDtypeStruct`s will do. It is donated.
  """
  platform = next(iter(mesh.devices.flat)).platform
  saves_memory = options.saves_memory and platform == "cpu"
  formats = state_formats(state, platform)
  return jax.jit(
    functools.partial(train_step, task=task, optimizer=optimizer, options=options),
    donate_argnums=0,
    compiler_options=_LITTLE_MEMORY if saves_memory else compilation.options(mesh),
    in_shardings=(formats, None, None, None),
    out_shardings=(formats, sharding.replicated(mesh)),
  )
