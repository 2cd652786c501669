"""Safetensors files, by the library of that name.

In: a path. Out: its arrays by key as NumPy's, or the text in its header; and the way back.
"""

from collections.abc import Mapping
import os

from etils import epath
import ml_dtypes  # noqa: F401  It gives NumPy the name bfloat16, by which the library asks for it.
import numpy as np
import safetensors
import safetensors.numpy

from hybrid_video import errors, files
from hybrid_video.weights.weights_errors import WeightsFileError

_READABLE = {
  *("F64", "F32", "F16", "BF16", "BOOL"),
  *(f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)),
}


def begins(start: bytes) -> bool:
  """Whether a file's first 9 bytes are those of a safetensors file: a length, and JSON."""
  return start[8:9] == b"{"


def read(path: os.PathLike | str) -> dict[str, np.ndarray]:
  """The arrays of a file by key, in its order.

  Returns:
    Arrays of the file's types, each with memory of its own; bfloat16 becomes float32, exactly.

  Raises:
    WeightsFileError: the file is damaged, empty, or has arrays of another type. The message does
      not name the file.
  """
  arrays: dict[str, np.ndarray] = {}
  try:
    with safetensors.safe_open(path, framework="np") as file:
      for key in file.offset_keys():
        dtype = file.get_slice(key).get_dtype()
        if dtype not in _READABLE:
          raise WeightsFileError(
            f"tensor {key!a} has the type {dtype}; known: {', '.join(sorted(_READABLE))}. "
            "Re-save it as one of these."
          )
        array = file.get_tensor(key)
        arrays[key] = array.astype(np.float32) if dtype == "BF16" else array
  except (safetensors.SafetensorError, ValueError, OverflowError, MemoryError) as error:
    if isinstance(error, errors.UserError):
      raise
    raise WeightsFileError(f"the safetensors file is damaged or truncated: {error}") from error
  if not arrays:
    raise WeightsFileError("it holds no tensors.")
  return arrays


def read_metadata(path: os.PathLike | str) -> dict[str, str]:
  """The texts in a file's header, by key; no array is read.

  Raises:
    WeightsFileError: the file is damaged. The message does not name the file.
  """
  try:
    with safetensors.safe_open(path, framework="np") as file:
      return dict(file.metadata() or {})
  except safetensors.SafetensorError as error:
    raise WeightsFileError(f"the safetensors file is damaged or truncated: {error}") from error


def write(
  path: os.PathLike | str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> epath.Path:
  """Writes a file, whole or not at all.

  Args:
    path: on a local disk or any file system that `etils.epath` knows.
    arrays: by key.
    metadata: texts for the header, by key.

  Raises:
    WeightsFileError: the file cannot be written.
  """
  content = safetensors.numpy.save(dict(arrays), dict(metadata) or None)
  try:
    with files.whole_file(path) as part:
      part.write_bytes(content)
  except OSError as error:
    raise WeightsFileError(
      f"{errors.printable(path)} could not be written: {error.strerror or error}. Give another "
      "path, or make room on the disk."
    ) from error
  return epath.Path(path)
