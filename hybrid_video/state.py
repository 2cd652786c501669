"""The state of a training, a plain dict of arrays.

`step` (int32, updates tried), `params`, `batch_stats`, `opt_state`, `skipped` (int32, updates left out
because they were not finite) and `ema` (averages of `params` and `batch_stats`; empty without
`ema_decay`).

In: a task, an optimizer, a mesh, and initial values on the host. Out: the state as global arrays,
made by one jitted function whose outputs are sharded by `sharding.state_sharding`; no array is ever
whole on one device unless the rule says so.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hybrid_video import models, sharding
from hybrid_video.tasks import Task, Tree

State = dict[str, Any]


def _start(
  optimizer: optax.GradientTransformation, averaged: bool, params: Tree, batch_stats: Tree
) -> State:
  # The averages are arrays of their own: the step gives each of its inputs' memory to one output.
  averages = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
  return {
    "step": jnp.zeros((), jnp.int32),
    "params": params,
    "batch_stats": batch_stats,
    "opt_state": optimizer.init(params),
    "skipped": jnp.zeros((), jnp.int32),
    "ema": averages if averaged else {},
  }


def _sharded(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding.state_sharding(leaf.shape, mesh)
    ),
    tree,
  )


def abstract(
  task: Task,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  *,
  averaged: bool = False,
) -> State:
  """Shapes, types and shardings of the state, `jax.ShapeDtypeStruct`s; nothing is computed.

  Args:
    task, optimizer, mesh: as in `create`.
    averaged: whether there are moving averages.
  """
  with models.shapes_only():
    variables = jax.eval_shape(task.initial_variables)
  return _sharded(jax.eval_shape(lambda *of: _start(optimizer, averaged, *of), *variables), mesh)


def create(
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  params: Tree,
  batch_stats: Tree,
  *,
  averaged: bool = False,
) -> State:
  """The state before the first step.

  Args:
    optimizer: for a learning rate of one, see `optimizers`.
    mesh: where it lives.
    params, batch_stats: initial values, nested dicts of host arrays.
    averaged: whether moving averages of both are kept.
  """
  given = jax.tree.map(
    lambda leaf: sharding.place(leaf, sharding.state_sharding(leaf.shape, mesh)),
    (params, batch_stats),
  )
  shapes = jax.eval_shape(lambda *of: _start(optimizer, averaged, *of), params, batch_stats)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, _sharded(shapes, mesh))
  start = jax.jit(lambda *of: _start(optimizer, averaged, *of), out_shardings=shardings)
  return start(*given)
