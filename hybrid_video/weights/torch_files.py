"""PyTorch checkpoints, read without PyTorch and without running anything they ask for.

In: an open checkpoint file, from anywhere. Out: its state dict as NumPy arrays by key.

`read` knows two formats by their content: PyTorch's stream (before 1.6, or on request) and its zip
archive (since 1.6). Both hold pickles, which `torch_pickle` interprets; `torch_checkpoints` says
which of the dictionaries in one are the weights.

Formats: https://github.com/pytorch/pytorch/blob/main/torch/serialization.py.
"""

import io
import os
import pickle
import struct
from typing import BinaryIO
import zipfile
import zlib

import numpy as np

from hybrid_video.weights.torch_checkpoints import not_run, state_dict
from hybrid_video.weights.torch_pickle import Machine, take
from hybrid_video.weights.torch_tensors import ADVICE, short
from hybrid_video.weights.weights_errors import WeightsFileError

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
_ARCHIVE_VERSIONS = range(1, 11)


def read(file: BinaryIO) -> dict[str, np.ndarray]:
  """The state dict in a checkpoint; see `reading.read`.

  Args:
    file: at its beginning.

  Raises:
    WeightsFileError: the file is damaged, of another format or byte order, holds no state dict or
      more than one, or asks for a name that no tensor needs. The message does not name the file.
  """
  size = os.fstat(file.fileno()).st_size
  start = file.read(9)
  file.seek(0)
  if start.startswith(b"PK\x03\x04"):
    return _from_archive(file, size)
  if start.startswith(pickle.PROTO):
    return _from_stream(file, size)
  raise WeightsFileError(
    f"it begins with {start!r} and has {size} bytes: neither a PyTorch checkpoint nor a safetensors "
    "file. See that the download is whole."
  )


def _from_stream(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
  machine = Machine(file)
  if machine.load() != _STREAM_MAGIC:
    raise WeightsFileError(f"it is a pickle, but none of PyTorch's.{not_run(machine)} {ADVICE}")
  version = Machine(file).load()
  if type(version) is not int or version != _STREAM_VERSION:
    # A container is not shown: one that repeats itself can take forever to print.
    shown = short(version) if type(version) is int else f"a {type(version).__name__}"
    raise WeightsFileError(f"its version is {shown}, {_STREAM_VERSION} expected.")
  match Machine(file).load():
    case {"protocol_version": 1001, "little_endian": True}:
      pass
    case {"little_endian": False}:
      raise WeightsFileError(f"it was written on a big-endian machine: not supported. {ADVICE}")
    case _:
      raise WeightsFileError("its system record is damaged.")
  machine = Machine(file)
  tensors = state_dict(machine, _budget(size))
  keys = Machine(file).load()
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise WeightsFileError("its list of storages is damaged.")
  if len(set(keys)) != len(keys) or set(keys) != set(machine.storages):
    raise WeightsFileError(
      f"it lists {len(set(keys))} storages in {len(keys)} entries and its tensors name "
      f"{len(machine.storages)}, not the same ones: the file is damaged."
    )
  needed = {tensor.storage.key for tensor in tensors.values()}
  raw = {}
  for key in keys:
    storage = machine.storages[key]
    (numel,) = struct.unpack("<q", take(file, 8))
    if numel != storage.numel:
      raise WeightsFileError(
        f"storage {short(key)} has {numel} elements, {short(storage.numel)} expected: the file is damaged."
      )
    if storage.nbytes > (left := size - file.tell()):
      raise WeightsFileError(
        f"the file is truncated: storage {short(key)} has {storage.nbytes} bytes, {left} are left."
      )
    if key in needed:
      raw[key] = take(file, storage.nbytes)
    else:
      file.seek(storage.nbytes, os.SEEK_CUR)
  if left := size - file.tell():
    raise WeightsFileError(f"{left} bytes follow its end: the file is damaged.")
  return {key: tensor.array(raw[tensor.storage.key]) for key, tensor in tensors.items()}


def _from_archive(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
  file.seek(max(size - 22, 0))
  if file.read(4) != b"PK\x05\x06":
    raise WeightsFileError(
      "it does not end as a zip archive does: it is truncated, or bytes follow."
    )
  try:
    with zipfile.ZipFile(file) as archive:
      return _from_members(archive, _budget(size))
  except WeightsFileError:
    raise
  except (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(ValueError, OverflowError, NotImplementedError, RuntimeError),
  ) as error:
    raise WeightsFileError(f"its zip archive is damaged: {error}") from error


def _from_members(archive: zipfile.ZipFile, budget: int) -> dict[str, np.ndarray]:
  members = {info.filename: info for info in archive.infolist()}
  if len(members) != len(archive.infolist()):
    raise WeightsFileError("its zip archive has members of the same name: the file is damaged.")
  if min((info.header_offset for info in members.values()), default=0):
    raise WeightsFileError("other bytes lie before its zip archive: the file is damaged.")
  for name, info in members.items():
    stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    if info.flag_bits & 1 or not (stored or info.compress_type == zipfile.ZIP_DEFLATED):
      raise WeightsFileError(f"its member {short(name)} is neither stored nor deflated. {ADVICE}")
  if (total := sum(info.file_size for info in members.values())) > budget:
    raise WeightsFileError(
      f"its members would unpack to {total} bytes, more than the {budget} that a file of its size "
      "is allowed. Unpack it and pack it without compression."
    )
  roots = [n.removesuffix("/data.pkl") for n in members if n.endswith("/data.pkl")]
  if len(roots) != 1:
    raise WeightsFileError(
      f"it is a zip archive with {len(roots)} members data.pkl, where PyTorch writes one. {ADVICE}"
    )
  root = roots[0]
  if f"{root}/constants.pkl" in members:
    raise WeightsFileError(f"it is a TorchScript program, not a state dict. {ADVICE}")

  def content(name: str) -> bytes:
    if f"{root}/{name}" not in members:
      raise WeightsFileError(f"its zip archive has no member {short(name)}: the file is damaged.")
    return archive.read(members[f"{root}/{name}"])

  version = content("version").strip()
  if not (version.isdigit() and len(version) < 4 and int(version) in _ARCHIVE_VERSIONS):
    raise WeightsFileError(
      f"its version is {short(version)}, {_ARCHIVE_VERSIONS[0]} to {_ARCHIVE_VERSIONS[-1]} expected."
    )
  # Files from before PyTorch 2.1 name no byte order; they come from little-endian machines.
  if f"{root}/byteorder" in members and (order := content("byteorder")) != b"little":
    raise WeightsFileError(f"its byte order is {short(order)}, little expected. {ADVICE}")
  pickled = io.BytesIO(content("data.pkl"))
  machine = Machine(pickled)
  tensors = state_dict(machine, budget)
  if left := len(pickled.read()):
    raise WeightsFileError(f"{left} bytes follow the end of its data.pkl: the file is damaged.")
  for key, storage in machine.storages.items():
    member = members.get(f"{root}/data/{key}")
    if member is None or member.file_size != storage.nbytes:
      raise WeightsFileError(
        f"storage {short(key)} has {member.file_size if member else 'no'} bytes, "
        f"{short(storage.nbytes)} expected: the file is damaged."
      )
  needed = {tensor.storage.key for tensor in tensors.values()}
  raw = {key: content(f"data/{key}") for key in needed}
  return {key: tensor.array(raw[tensor.storage.key]) for key, tensor in tensors.items()}


def _budget(size: int) -> int:
  """Bytes that a file of `size` bytes may unpack to, by compression or by repeated elements."""
  return 16 * size + (64 << 20)
