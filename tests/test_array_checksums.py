"""Checksums of arrays: the same wherever an array lies, another for every other array."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import pytest

from hybrid_video import array_checksums, sharding

TYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "int16", "bool")


def _array(dtype, shape=(6, 8)):
  bits = np.random.default_rng(0).integers(0, 256, (*shape, 8), np.uint8)
  if dtype == "bool":
    return (bits[..., 0] % 2).astype(bool)
  size = np.dtype(dtype).itemsize
  return np.ascontiguousarray(bits[..., :size]).view(dtype)[..., 0]


def _on_devices(array):
  return array_checksums.on_devices({"a": array})["a"]


@pytest.mark.parametrize("dtype", TYPES)
def test_devices_and_host_agree_on_any_bits_of_every_type(dtype):
  array = _array(dtype)
  assert _on_devices(jnp.asarray(array)) == array_checksums.on_host(array)


def test_devices_and_host_agree_on_64_bits():
  with jax.enable_x64(True):
    for dtype in ("float64", "int64"):
      array = _array(dtype)
      assert _on_devices(jnp.asarray(array)) == array_checksums.on_host(array)


def test_values_that_compare_equal_or_not_at_all_are_told_by_their_bits():
  zeros = np.array([0.0, -0.0], np.float32)
  assert array_checksums.on_host(zeros[:1]) != array_checksums.on_host(zeros[1:])
  nan = np.array([0x7FC00000, 0x7FC00001, 1], np.uint32).view(np.float32)
  assert _on_devices(jnp.asarray(nan)) == array_checksums.on_host(nan)
  assert len({array_checksums.on_host(nan[i : i + 1]) for i in range(3)}) == 3


def test_no_sharding_changes_a_checksum():
  array = _array("float32", (8, 12, 4))
  expected = array_checksums.on_host(array)
  for fsdp in (1, 2, 4):
    mesh = sharding.make_mesh(fsdp=fsdp)
    for spec in ((), ("data",), (None, "fsdp"), ("fsdp", None, "data"), (("data", "fsdp"),)):
      place = NamedSharding(mesh, PartitionSpec(*spec))
      assert _on_devices(sharding.place(array, place)) == expected, (fsdp, spec)
  # Of a chunk that the host takes at a time, there is more than one in a larger array.
  larger = np.arange(2**20 + 3, dtype=np.float32)
  assert _on_devices(jnp.asarray(larger)) == array_checksums.on_host(larger)


def test_every_bit_every_place_and_every_order_counts():
  array = _array("bfloat16", (3, 5))
  sums = {array_checksums.on_host(array)}
  raw = array.tobytes()
  for bit in range(8 * len(raw)):
    other = bytearray(raw)
    other[bit // 8] ^= 1 << bit % 8
    sums.add(array_checksums.on_host(np.frombuffer(bytes(other), ml_dtypes.bfloat16)))
  assert len(sums) == 8 * len(raw) + 1
  for other in (array[::-1], array.T, np.roll(array, 1), np.zeros_like(array)):
    assert array_checksums.on_host(other) not in sums


def test_a_number_stays_what_it_is_from_one_version_to_the_next():
  assert array_checksums.on_host(np.arange(5, dtype=np.float32)) == EXPECTED
  assert _on_devices(jnp.arange(5, dtype=jnp.float32)) == EXPECTED
  assert array_checksums.on_host(np.zeros((0, 3), np.float32)) == 0
  assert array_checksums.on_devices({}) == {}


def _one_by_one() -> int:
  """The definition, word by word, in Python's own integers."""

  def mix(word):
    word ^= word >> 16
    word = word * 0x85EBCA6B % 2**32
    word ^= word >> 13
    word = word * 0xC2B2AE35 % 2**32
    return word ^ word >> 16

  words = np.arange(5, dtype=np.float32).view(np.uint32).tolist()
  return sum(mix(word ^ mix(index)) for index, word in enumerate(words)) % 2**32


EXPECTED = _one_by_one()
