"""The pure training step: state and batch in, new state and metric sums out, for every task.

What differs between runs of one experiment, such as the seed or the learning rate of a step, is an
input, so that all of them share one compiled program.
"""

import jax
import numpy as np
import optax

from hybrid_video.state import State
from hybrid_video.tasks import Array, Sums, Task, Tree

# Folded into the seed's key before the step, so that what `Task.prepare` draws is none of dropout's;
# no step's number gets so far.
_PREPARATION_STREAM = 2**32 - 1


def train_step(
  state: State,
  batch: dict[str, Array],
  learning_rate: np.float32 | Array,
  seed: np.uint32 | Array,
  *,
  task: Task,
  optimizer: optax.GradientTransformation,
) -> tuple[State, Sums]:
  """One update.

  Args:
    state: see `state`.
    batch: `clips` uint8 `[B, T, H, W, 3]`, `labels` `[B]`, `mirrored` bool `[B]`: clips to mirror.
    learning_rate: of this step; float32, as `optimizers.make_schedule` gives it.
    seed: the keys of dropout and augmentation follow from it and the step; uint32. Of either, a
      number of another type, Python's own among them, is another program.
    task: what is minimized.
    optimizer: the same that made the state, for a learning rate of one.

  Returns:
    (the state after the step, metric sums of the batch before it).
  """
  root = jax.random.key(seed)
  dropout_key = jax.random.fold_in(root, state["step"])
  stream = jax.random.fold_in(root, _PREPARATION_STREAM)
  prepared = task.prepare(batch, jax.random.fold_in(stream, state["step"]))

  def mean_loss(params: Tree) -> tuple[Array, tuple[Tree, Sums]]:
    sums, batch_stats = task.loss(params, state["batch_stats"], prepared, dropout_key)
    return sums["loss"] / sums["count"], (batch_stats, sums)

  gradients, (batch_stats, sums) = jax.grad(mean_loss, has_aux=True)(state["params"])
  updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
  updates = jax.tree.map(lambda update: learning_rate * update, updates)
  new = {
    "step": state["step"] + 1,
    "params": optax.apply_updates(state["params"], updates),
    "batch_stats": batch_stats,
    "opt_state": opt_state,
  }
  return new, sums
