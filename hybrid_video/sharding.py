"""Where arrays lie: one mesh over all devices, batches split along it, everything else copied.

In: host arrays. Out: `jax.Array`s with a `NamedSharding`.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

DATA_AXIS = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """A mesh of one axis, "data", over the given devices or all there are."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis is split among the devices."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Refuses a batch that does not divide among the devices.

  Raises:
    ValueError: with the nearest sizes that do.
  """
  devices = mesh.size
  if batch_size < 1 or batch_size % devices:
    below = batch_size - batch_size % devices
    sizes = " or ".join(str(size) for size in (below, below + devices) if size > 0)
    raise ValueError(
      f"A batch of {batch_size} does not divide among {devices} devices: take {sizes}."
    )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
  """The rows of this process's batch as global arrays, split along the first axis."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()
  }
