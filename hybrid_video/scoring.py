"""Clips to scores: a model's outputs, batch by batch.

In: batches of clips and a compiled function. Out: host arrays, streamed. No labels are needed, so
evaluation and prediction share all of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from hybrid_video import sharding
from hybrid_video.tasks import Tree

Outputs = dict[str, np.ndarray]


class Scorer:
  """A task's evaluation outputs on a mesh, compiled once for all lists and orders of frames."""

  def __init__(self, function: Callable[..., Any], mesh: jax.sharding.Mesh):
    """Compiles nothing yet; the first batch does.

    Args:
      function: a task's `outputs` or `features`.
      mesh: the devices.
    """
    self._mesh = mesh
    self._outputs = jax.jit(function, out_shardings=sharding.replicated(mesh))

  def outputs(
    self, params: Tree, batch_stats: Tree, batches: Iterable[Mapping[str, np.ndarray]]
  ) -> Iterator[Outputs]:
    """The outputs of each whole global batch, in order.

    Args:
      params, batch_stats: of the model.
      batches: {"clips": uint8 `[b, T, H, W, 3]`, "clip_indices": int32 `[b]`}, this process's rows.
    """
    for batch in batches:
      outputs = self._outputs(params, batch_stats, sharding.put_batch(batch, self._mesh))
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
