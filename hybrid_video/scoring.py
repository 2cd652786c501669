"""Clips to scores: a model's outputs, batch by batch.

In: batches of clips and a compiled function. Out: host arrays, streamed. No labels are needed, so
evaluation and prediction share all of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from hybrid_video import compilation, sharding
from hybrid_video.tasks import Task, Tree

Outputs = dict[str, np.ndarray]


class Scorer:
  """A task's evaluation outputs on a mesh, compiled once for all lists and orders of frames."""

  def __init__(self, task: Task, mesh: jax.sharding.Mesh, *, features: bool = False):
    """Compiles nothing yet; the first batch does.

    Args:
      task: what the model is for.
      mesh: the devices.
      features: whether its features are wanted in place of its outputs.
    """
    self._mesh, self._pass = mesh, None if features else task.one_pass
    replicated = sharding.replicated(mesh)
    function: Any = task.features if features else task.outputs
    if self._pass is not None:
      function, self._begin = (
        self._pass.outputs,
        jax.jit(self._pass.begin, out_shardings=replicated),
      )
    self._outputs = jax.jit(
      function, out_shardings=replicated, compiler_options=compilation.options(mesh)
    )

  def outputs(
    self, params: Tree, batch_stats: Tree, batches: Iterable[Mapping[str, np.ndarray]]
  ) -> Iterator[Outputs]:
    """The outputs of each whole global batch, in order.

    Args:
      params, batch_stats: of the model.
      batches: {"clips": uint8 `[b, T, H, W, 3]`, "clip_indices": int32 `[b]`, "begins": bool `[b]`}, this
        process's rows; `begins` says whether a clip is its video's first.
    """
    state = self._begin(params, batch_stats) if self._pass else None
    for batch in batches:
      placed = sharding.put_batch(batch, self._mesh)
      if self._pass:
        outputs, state = self._outputs(params, batch_stats, placed, state)
      else:
        outputs = self._outputs(params, batch_stats, placed)
      yield {name: np.asarray(value) for name, value in outputs.items()}


def gather(outputs: Iterable[Outputs], count: int) -> Outputs:
  """All clips' outputs, padding cut off.

  Args:
    outputs: batch by batch; after the last clip come only padded rows.
    count: clips.

  Raises:
    ValueError: the batches hold fewer clips.
  """
  collected: dict[str, list[np.ndarray]] = {}
  for output in outputs:
    for name, value in output.items():
      collected.setdefault(name, []).append(value)
  joined = {name: np.concatenate(values)[:count] for name, values in collected.items()}
  rows = min((len(value) for value in joined.values()), default=0)
  if rows < count:
    raise ValueError(f"{count} clips were planned and only {rows} were evaluated.")
  return joined
