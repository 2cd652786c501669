"""Files of weights, whatever their format.

In: the path of a file, from anywhere. Out: its arrays by key, or the texts in its header. Nothing in
a file is executed.
"""

from collections.abc import Iterator
import contextlib
import os
from typing import BinaryIO, NamedTuple

import numpy as np

from hybrid_video import errors
from hybrid_video.weights import key_prefixes, safetensors_files, sharded_files, torch_files
from hybrid_video.weights.weights_errors import WeightsFileError


class Contents(NamedTuple):
  """What a file holds.

  Attributes:
    arrays: of the network, by its own keys.
    outside: keys of the file that are of no network, such as a metric's.
  """

  arrays: dict[str, np.ndarray]
  outside: tuple[str, ...]


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
  """The arrays of `contents` alone."""
  return contents(path).arrays


def contents(path: os.PathLike | str) -> Contents:
  """The state dict in a PyTorch or safetensors file, or in the several files of an index.

  Of PyTorch's, a state dict that lies under one of `torch_checkpoints.WRAPPERS` (at most three deep)
  is taken from there, whatever else lies beside it: epochs, arguments, an optimizer, objects of any
  class. A moving average (`torch_checkpoints.AVERAGES`) is taken only where there is nothing else.
  Entries that are numbers, texts or containers are left out. What wrappers put before a network's
  own keys is taken off, see `key_prefixes`.

  Args:
    path: of the file, of an index of several (`model.safetensors.index.json`), or of a folder as
      Hugging Face's libraries write it. A file's format follows from its content, not its name.

  Returns:
    Arrays by key, in the file's order: C-ordered, writable, each with memory of its own even where
    the file shares it. dtypes are the file's, but bfloat16, which NumPy has not, becomes float32
    (every value is exact); float16 stays. A scalar has shape `()`.

  Raises:
    WeightsFileError: the file cannot be opened, is damaged, of another format or byte order, holds
      no state dict or more than one, has an object among the weights, is one of several, or names
      files that are missing. The message names the file, and nothing of the file was run.
  """
  path = sharded_files.in_folder(path) or path
  sharded_files.check_is_whole(path)
  with _opened(path) as (file, start):
    arrays = _sharded(path) if sharded_files.is_index(start) else _one_file(path, file, start)
    return Contents(*key_prefixes.split(arrays))


def _one_file(path: os.PathLike | str, file: BinaryIO, start: bytes) -> dict[str, np.ndarray]:
  return safetensors_files.read(path) if safetensors_files.begins(start) else torch_files.read(file)


def _sharded(index: os.PathLike | str) -> dict[str, np.ndarray]:
  arrays: dict[str, np.ndarray] = {}
  for shard, keys in sharded_files.read_index(index).items():
    with _opened(shard) as (file, start):
      parts = _one_file(shard, file, start)
    sharded_files.check_keys(shard, set(parts), keys)
    arrays |= parts
  return arrays


def read_metadata(path: os.PathLike | str) -> dict[str, str]:
  """The texts in a safetensors file's header, by key; {} of other files and where there are none.

  Raises:
    WeightsFileError: the file cannot be opened, or its header is damaged.
  """
  with _opened(path) as (_, start):
    return safetensors_files.read_metadata(path) if safetensors_files.begins(start) else {}
