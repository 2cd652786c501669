"""Checksums of arrays: where a bit is another one, so is the number.

In: arrays on any devices with any sharding, or on the host. Out: 32 bits for each, the same wherever
and however it lies.

An array's checksum is the sum, modulo 2**32, of a number for each of its 32-bit words:
`mix(word ^ mix(index))`. `mix` is a bijection, so that one element that is another one always changes
the sum; of other changes, one in 2**32 goes unseen. Sums of integers are exact in any order.
"""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

# MurmurHash3's finalizer for 32 bits (Appleby, 2011).
_FIRST, _SECOND = 0x85EBCA6B, 0xC2B2AE35
# Elements that the host works on at a time, so that copies stay small.
_CHUNK = 2**20


def on_devices(arrays: Mapping[str, Any]) -> dict[str, int]:
  """The checksums of arrays by name, worked out where they are; waits until they are.

  Args:
    arrays: of any shapes; floats, integers and bools of 8 to 64 bits. With several processes, global
      arrays in the same order; every process has to call this and gets the same.
  """
  # A program for each shape, and not one for all: of hundreds of arrays most share one of few shapes.
  sums = []
  for array in arrays.values():
    sums.append(_jitted(_everywhere(array))(array))
    if jax.process_count() > 1:
      # Programs that wait for other processes must not overlap: CPUs may run them in another order there.
      sums[-1].block_until_ready()
  return dict(zip(arrays, map(int, jax.device_get(sums)), strict=True))


def _everywhere(array: Any) -> NamedSharding | None:
  """The sharding that gives every process of an array's mesh the whole number."""
  sharding = getattr(array, "sharding", None)
  if not isinstance(sharding, NamedSharding):
    return None
  return NamedSharding(sharding.mesh, PartitionSpec())


@functools.cache
def _jitted(place: NamedSharding | None) -> Callable[[Any], jax.Array]:
  return jax.jit(_on_device, out_shardings=place)


def _on_device(array: jax.Array) -> jax.Array:
  words = _words(array)
  # No array is made flat: that would gather the parts of one that is split.
  index = jnp.zeros(words.shape, jnp.uint32)
  for axis, _ in enumerate(words.shape):
    stride = np.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
    index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
  return _mix(words ^ _mix(index)).sum(dtype=jnp.uint32)


def _words(array: jax.Array) -> jax.Array:
  """The bits of each element as uint32; those of 64 bits as two, the lower one first."""
  if array.dtype == bool:
    return array.astype(jnp.uint32)
  bits = min(8 * array.dtype.itemsize, 32)
  return jax.lax.bitcast_convert_type(array, f"uint{bits}").astype(jnp.uint32)


def _mix(words: Any) -> Any:
  words = words ^ (words >> 16)
  words = words * np.uint32(_FIRST)
  words = words ^ (words >> 13)
  words = words * np.uint32(_SECOND)
  return words ^ (words >> 16)


def on_host(array: np.ndarray) -> int:
  """The checksum of an array in memory, without a device."""
  flat = np.ascontiguousarray(array).reshape(-1)
  bits = min(8 * flat.dtype.itemsize, 32)
  words = flat.view(f"<u{bits // 8}")
  total = 0
  for start in range(0, len(words), _CHUNK):
    chunk = words[start : start + _CHUNK].astype(np.uint32)
    index = (np.arange(start, start + len(chunk), dtype=np.uint64) % 2**32).astype(np.uint32)
    total += int(_mix(chunk ^ _mix(index)).sum(dtype=np.uint64))
  return total % 2**32
