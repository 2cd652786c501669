"""What guards a training: transfers and compilations nobody asked for, and updates that are not finite.

In: steps as they run; or a state and the batch that led it astray. Out: warnings, or an error that says
where the first value that is not finite came up.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import logging
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video import errors, sharding, steps
from hybrid_video.compilation import Compilations
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.pipeline import Batch
from hybrid_video.state import State
from hybrid_video.tasks import Array, Task, Tree

log = logging.getLogger("hybrid_video")


class TrainingError(errors.UserError):
  """Training that cannot go on; the message says at which step and what was found."""


class StepGuard:
  """Notices what makes steps slow without a word: compiling again, and transfers nobody asked for."""

  def __init__(self, compiled: Compilations):
    """Counts by what was compiled so far."""
    self._compiled = compiled
    self._steps = 0

  @property
  def first(self) -> bool:
    """Whether one step was watched and no other."""
    return self._steps == 1

  @contextlib.contextmanager
  def watch(self, step: int, *, compiles: bool = False) -> Iterator[None]:
    """Watches a step being handed to the devices.

    Args:
      step: its number.
      compiles: whether it is known to be another program than the one before it.

    Raises:
      Exception: JAX's, where host memory is transferred that was not placed on the devices.
    """
    before = self._compiled.programs
    with jax.transfer_guard("disallow"):
      yield
    self._steps += 1
    programs = self._compiled.programs - before
    if programs and self._steps > 1 and not compiles:
      log.warning(
        "Step %d compiled %d program(s) again, which takes time: a batch or a number was of another "
        "shape or type than before.",
        step,
        programs,
      )


def explain(
  task: Task,
  mesh: jax.sharding.Mesh,
  state: State,
  batch: Batch,
  experiment: Experiment,
  records: Records,
) -> TrainingError:
  """Why an update is not finite: the step is taken again, value by value.

  Args:
    task: what is minimized.
    mesh: the devices.
    state: before the update.
    batch: this process's rows.
    experiment: seed and settings.
    records: the index of the stored videos.

  Returns:
    An error that names the step, the clips and the first layer whose output is not finite, or where
    else that begins.
  """
  step = int(state["step"]) + 1
  names = records.names[batch["video_ids"]]
  rows = {name: value for name, value in batch.items() if name != "video_ids"}
  found = _first_not_finite(task, state, sharding.put_batch(rows, mesh), experiment.seed)
  saved = f"Step {step - 1} is saved. " if step > 1 else ""
  skipped = (
    ""
    if not experiment.max_skipped_steps
    else f" {experiment.max_skipped_steps} were left out before."
  )
  return TrainingError(
    f"The update of step {step} is not finite: {found}.{skipped} Its clips are of "
    f"{errors.shown(names, 8)}. {saved}Lower --config.optimizer.learning_rate or set "
    "--config.optimizer.clip_norm (going on with another value takes --config.resume_changed=True), or "
    "leave single updates out with --config.max_skipped_steps."
  )


def _first_not_finite(task: Task, state: State, batch: dict[str, Array], seed: int) -> str:
  """In words, where the first value that is not finite comes up."""
  params = state["params"]
  wrong = _not_finite({"params": params, "batch_stats": state["batch_stats"]})
  if wrong:
    return f"{errors.shown(wrong)} in the state before it are not"
  preparation_key, key = steps.keys(steps.as_seed(seed), state["step"])
  prepared = jax.jit(task.prepare)(batch, preparation_key)
  if _not_finite(prepared):
    return "the clips are not after augmentation"

  def loss(params: Tree) -> tuple[Array, Tree]:
    sums, batch_stats = task.loss(params, state["batch_stats"], prepared, key)
    return sums["loss"] / sums["count"], batch_stats

  with _outputs_checked() as layers:
    value, batch_stats = jax.jit(loss)(params)
    jax.block_until_ready(value)
    jax.effects_barrier()
  if layers:
    name = layers[min(layers)]
    return f"the first layer whose output is not is {name} (the loss is {float(value)})"
  if not np.isfinite(float(value)):
    return f"all layers' outputs are, and the loss is {float(value)}"
  if wrong := _not_finite(batch_stats):
    return (
      f"the loss is {float(value):.4g}, and BatchNorm's statistics {errors.shown(wrong)} are not"
    )
  gradients = jax.jit(jax.grad(lambda params: loss(params)[0]))(params)
  if wrong := _not_finite(gradients):
    return f"the loss is {float(value):.4g}, and the gradients of {errors.shown(wrong)} are not"
  return (
    f"the loss is {float(value):.4g} and the gradients are finite, and the square of their norm, or of that "
    "times the learning rate, is not"
  )


@jax.jit
def _all_finite(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def _not_finite(tree: Any) -> list[str]:
  """Paths of the arrays that hold a value that is not finite."""
  flags = jax.tree_util.tree_flatten_with_path(jax.device_get(_all_finite(tree)))[0]
  return [
    jax.tree_util.keystr(path, simple=True, separator="/") for path, finite in flags if not finite
  ]


@contextlib.contextmanager
def _outputs_checked() -> Iterator[dict[int, str]]:
  """While the block traces and runs a model, notes the layers whose outputs are not finite.

  Gives the layers' names by their place in the order of computation; an inner layer stands before the
  one that holds it.
  """
  wrong: dict[int, str] = {}
  names: list[str] = []
  paths: list[dict[int, str]] = []
  classes = _layer_classes()
  originals = {cls: cls.__call__ for cls in classes}

  def note(number: int, finite: np.ndarray) -> None:
    if not finite:
      wrong[number] = names[number]

  def checked(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def checks(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
      outermost = not paths
      if outermost:
        paths.append({id(node): "/".join(map(str, path)) for path, node in nnx.iter_graph(self)})
      try:
        output = call(self, *args, **kwargs)
      finally:
        known = paths[0].get(id(self)) or type(self).__name__
        if outermost:
          paths.clear()
      number = len(names)
      names.append(known)
      leaves = [leaf for leaf in jax.tree.leaves(output) if isinstance(leaf, jax.Array)]
      finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
      jax.debug.callback(functools.partial(note, number), finite)
      return output

    return checks

  try:
    for cls, call in originals.items():
      cls.__call__ = checked(call)
    yield wrong
  finally:
    for cls, call in originals.items():
      cls.__call__ = call


def _layer_classes() -> list[Any]:
  """Every class of layers there is that computes something itself."""
  pending, found = [nnx.Module], []
  while pending:
    for cls in pending.pop().__subclasses__():
      pending.append(cls)
      if "__call__" in vars(cls):
        found.append(cls)
  return found
