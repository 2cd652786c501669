"""Weights for parity tests that need no file: every value follows from its key.

The script that runs a reference (`tests/golden/make_*.py`, with PyTorch) and the test that runs our
model (without) fill the same keys with the same numbers, so only the reference's outputs are stored.
Norm scales, biases and running statistics are random too: none hides behind 0 or 1.
"""

from collections.abc import Mapping
import math
import zlib

import numpy as np


def value(key: str, shape: tuple[int, ...]) -> np.ndarray:
  """The tensor of a PyTorch state dict's key: float32, or int64 for `num_batches_tracked`."""
  rng = np.random.default_rng(zlib.crc32(key.encode()))
  if key.endswith("num_batches_tracked"):
    return np.zeros(shape, np.int64)
  if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)
  if len(shape) == 1:
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)
  fan_in = math.prod(shape[1:])
  return (rng.standard_normal(shape) / math.sqrt(fan_in)).astype(np.float32)


def state_dict(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """A whole state dict by key and shape."""
  return {key: value(key, tuple(shape)) for key, shape in shapes.items()}


def clips(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
  """Normalized clips, float32 `[B, T, H, W, 3]`, as random as they come."""
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
