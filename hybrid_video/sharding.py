"""Where arrays live: one mesh over all devices, and one rule for batches, parameters and optimizer.

In: shapes and host arrays. Out: `NamedSharding`s and `jax.Array`s.

The mesh has two axes. A batch is split along both. Parameters and what the optimizer keeps for them
are copied along "data" and split along "fsdp"; with an fsdp axis of one device, everything but the
batch is copied everywhere.
"""

from collections.abc import Mapping
import math
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from hybrid_video import errors

BATCH_AXES = ("data", "fsdp")
# Splitting small arrays (norms, biases, counters) costs more messages than it saves memory.
_SMALLEST_SPLIT = 2**14


class ShardingError(errors.UserError):
  """Sizes that do not divide among the devices."""


def make_mesh(devices: list[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
  """A mesh of the axes "data" and "fsdp".

  Args:
    devices: the default is all there are.
    fsdp: devices along the "fsdp" axis.

  Raises:
    ShardingError: the devices do not divide, with the nearest number that they do divide into.
  """
  devices = jax.devices() if devices is None else devices
  if fsdp < 1 or len(devices) % fsdp:
    fits = [size for size in range(1, len(devices) + 1) if len(devices) % size == 0]
    nearest = min(fits, key=lambda size: (abs(size - fsdp), size))
    raise ShardingError(
      f"--config.fsdp is {fsdp}: {len(devices)} devices do not divide into groups of {fsdp} for the "
      f"fsdp axis. Set it to {nearest}, or use more devices."
    )
  shape = (len(devices) // fsdp, fsdp)
  types = (AxisType.Auto, AxisType.Auto)
  if len({device.process_index for device in devices}) > 1:
    # A process's rows of a batch are those that follow the rows of the process before it; the order
    # that suits a TPU's wires would mix the hosts.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(shape), BATCH_AXES, axis_types=types)
  return jax.make_mesh(shape, BATCH_AXES, types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis is split among all devices."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def state_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
  """The rule for parameters, statistics and optimizer state, by an array's shape alone.

  The longest axis that the "fsdp" axis divides is split (the last of several as long); small arrays
  and those without such an axis are copied.
  """
  fsdp = mesh.shape["fsdp"]
  divisible = [axis for axis, length in enumerate(shape) if length % fsdp == 0]
  if fsdp == 1 or not divisible or math.prod(shape) < _SMALLEST_SPLIT:
    return replicated(mesh)
  split = max(divisible, key=lambda axis: (shape[axis], axis))
  return NamedSharding(mesh, PartitionSpec(*(None,) * split, "fsdp"))


def place(array: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
  """A host array as a global one; each device is given its own part alone."""
  host = np.asarray(array)
  return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def on_host(array: jax.Array | np.ndarray) -> np.ndarray:
  """A whole array on every host, wherever its parts are; all processes have to ask for it."""
  if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
  return np.asarray(array)


def check_batch_size(batch_size: int, mesh: Mesh, setting: str, micro_batches: int = 1) -> None:
  """Refuses a batch that does not divide among the devices.

  Args:
    batch_size: of the global batch.
    mesh: the devices.
    setting: its full name, for the message.
    micro_batches: parts that the batch is computed in, each of which has to divide.

  Raises:
    ShardingError: with the nearest sizes that do, and the nearest `micro_batches` if one does.
  """
  devices = mesh.size
  share = devices * micro_batches
  if batch_size >= 1 and batch_size % share == 0:
    return
  below = batch_size - batch_size % share
  sizes = " or ".join(str(size) for size in (below, below + share) if size > 0)
  parts, others = "", ""
  if micro_batches > 1:
    parts = f" in {micro_batches} parts"
    fits = [n for n in range(1, batch_size // devices + 1) if batch_size % (devices * n) == 0]
    if fits:
      nearest = min(fits, key=lambda n: (abs(n - micro_batches), n))
      others = f", or --config.micro_batches to {nearest}"
  raise ShardingError(
    f"{setting} is {batch_size}: a batch of {batch_size}{parts} does not divide among {devices} "
    f"devices. Set it to {sizes}{others}."
  )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
  """The rows of this process's batch as global arrays, split along the first axis."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()
  }
