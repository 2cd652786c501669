"""Files of weights, whatever their format.

In: the path of a file, from anywhere. Out: its arrays by key, or the texts in its header. Nothing in
a file is executed.
"""

from collections.abc import Iterator
import contextlib
import os
from typing import BinaryIO

import numpy as np

from hybrid_video import errors
from hybrid_video.weights import safetensors_files, torch_files
from hybrid_video.weights.weights_errors import WeightsFileError


@contextlib.contextmanager
def _opened(path: os.PathLike | str) -> Iterator[tuple[BinaryIO, bytes]]:
  """A file at its beginning, and its first 9 bytes; errors name the file."""
  name = errors.printable(path)
  try:
    with open(path, "rb") as file:
      start = file.read(9)
      file.seek(0)
      yield file, start
  except WeightsFileError as error:
    raise WeightsFileError(f"{name}: {error}") from error
  except OSError as error:
    raise WeightsFileError(
      f"{name}: the file cannot be read: {error.strerror or error}. Give the path of a file of "
      "weights."
    ) from error


def read(path: os.PathLike | str) -> dict[str, np.ndarray]:
  """The state dict in a PyTorch or safetensors file.

  Of PyTorch's, a state dict that lies under `state_dict`, `model`, `module` or `model_state` (at
  most three deep) is taken from there, whatever else lies beside it: epochs, arguments, an
  optimizer. Entries that are not tensors are left out. A prefix `module.` that all keys share, as
  data-parallel training puts it, is taken off.

  Args:
    path: of the file; its format follows from its content, not from its name.

  Returns:
    Arrays by key, in the file's order: C-ordered, writable, each with memory of its own even where
    the file shares it. dtypes are the file's, but bfloat16, which NumPy has not, becomes float32
    (every value is exact); float16 stays. A scalar has shape `()`.

  Raises:
    WeightsFileError: the file cannot be opened, is damaged, of another format or byte order, holds
      no state dict or more than one, or asks for a name that no tensor needs. The message names the
      file, and nothing of the file was run.
  """
  with _opened(path) as (file, start):
    if safetensors_files.begins(start):
      arrays = safetensors_files.read(path)
    else:
      arrays = torch_files.read(file)
  return _without_prefix(arrays, "module.")


def read_metadata(path: os.PathLike | str) -> dict[str, str]:
  """The texts in a safetensors file's header, by key; {} of other files and where there are none.

  Raises:
    WeightsFileError: the file cannot be opened, or its header is damaged.
  """
  with _opened(path) as (_, start):
    return safetensors_files.read_metadata(path) if safetensors_files.begins(start) else {}


def _without_prefix(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  if all(key.startswith(prefix) and key != prefix for key in arrays):
    return {key.removeprefix(prefix): array for key, array in arrays.items()}
  return arrays
