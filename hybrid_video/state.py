"""The state of a training: `params`, `batch_stats`, `opt_state`, `step`, a plain dict of arrays.

In: a task, an optimizer, a mesh, and initial values on the host. Out: the state as global arrays,
made by one jitted function whose outputs are sharded by `sharding.state_sharding`; no array is ever
whole on one device unless the rule says so.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hybrid_video import sharding
from hybrid_video.tasks import Task, Tree

State = dict[str, Any]


def _start(optimizer: optax.GradientTransformation, params: Tree, batch_stats: Tree) -> State:
  return {
    "step": jnp.zeros((), jnp.int32),
    "params": params,
    "batch_stats": batch_stats,
    "opt_state": optimizer.init(params),
  }


def _sharded(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding.state_sharding(leaf.shape, mesh)
    ),
    tree,
  )


def abstract(task: Task, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> State:
  """Shapes, types and shardings of the state, `jax.ShapeDtypeStruct`s; nothing is computed."""
  params, batch_stats = jax.eval_shape(task.initial_variables)
  return _sharded(jax.eval_shape(lambda *of: _start(optimizer, *of), params, batch_stats), mesh)


def create(
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  params: Tree,
  batch_stats: Tree,
) -> State:
  """The state before the first step.

  Args:
    optimizer: for a learning rate of one, see `optimizers`.
    mesh: where it lives.
    params, batch_stats: initial values, nested dicts of host arrays.
  """
  given = jax.tree.map(
    lambda leaf: sharding.place(leaf, sharding.state_sharding(leaf.shape, mesh)),
    (params, batch_stats),
  )
  shapes = jax.eval_shape(lambda *of: _start(optimizer, *of), params, batch_stats)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, _sharded(shapes, mesh))
  start = jax.jit(lambda *of: _start(optimizer, *of), out_shardings=shardings)
  return start(*given)
