"""How far an output lies from a reference's."""

from typing import Any

import numpy as np


def relative_error(output: Any, expected: np.ndarray) -> float:
  """The largest difference over the reference's largest magnitude.

  Raises:
    ValueError: the shapes differ.
  """
  output = np.asarray(output)
  if output.shape != expected.shape:
    raise ValueError(f"The output has shape {output.shape}, the reference {expected.shape}.")
  return float(np.abs(output - expected).max() / np.abs(expected).max())


def sampled_error(array: Any, sample: np.ndarray) -> float:
  """The same against evenly spaced values of a reference, whose largest magnitude stands last."""
  flat = np.asarray(array, np.float64).reshape(-1)
  indices = np.linspace(0, len(flat) - 1, len(sample) - 1).astype(int)
  differences = np.abs(flat[indices] - sample[:-1])
  return float(max(differences.max(), abs(np.abs(flat).max() - sample[-1])) / sample[-1])
