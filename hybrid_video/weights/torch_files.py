"""PyTorch checkpoints, read without PyTorch and without running anything they ask for.

In: the path of a checkpoint file, from anywhere. Out: its state dict as NumPy arrays by key, for
the port to our trees.

`read` knows three formats by their content: PyTorch's stream (before 1.6, or on request), PyTorch's
zip archive (since 1.6) and safetensors. The first two hold pickles. They are interpreted here, not
given to `pickle`: a small machine knows the few instructions and names that tensors are written
with, and stops at any other. Beside foreign calls that shuts out what a subclass of
`pickle.Unpickler` cannot: hashes of deeply nested tuples, which overflow the stack, and memo
numbers that allocate gigabytes.

Formats: https://github.com/pytorch/pytorch/blob/main/torch/serialization.py,
https://docs.python.org/3/library/pickletools.html, https://github.com/huggingface/safetensors.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import io
import json
import math
import os
import pickle
import pickletools
import struct
from typing import Any, BinaryIO
import zipfile
import zlib

import numpy as np

WRAPPERS = ("state_dict", "model", "module", "model_state")

# Descriptions of real tensors are kilobytes; a byte of a hostile one can cost a container of 64.
_DESCRIPTION_BYTES = 8 << 20
_WRAPPER_DEPTH = 3
_DIMENSIONS = 32
_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
_ARCHIVE_VERSIONS = range(1, 11)
_ADVICE = (
  "If you trust its origin, load it where PyTorch is installed and re-save its state dict as "
  "safetensors (safetensors.torch.save_file)."
)
_INSTRUCTIONS = {op.code.encode("latin-1"): op.name for op in pickletools.opcodes}


class TorchFileError(ValueError):
  """A checkpoint that is damaged, of another format, or asks for more than tensors need."""


@dataclasses.dataclass(frozen=True)
class _DType:
  name: str
  stored: np.dtype

  def values(self, stored: np.ndarray) -> np.ndarray:
    """A fresh C-ordered array in native byte order, of elements as they lie in the file."""
    if self.name == "bfloat16":
      wide = np.array(stored, np.uint32, order="C")
      wide <<= 16
      return wide.view(np.float32)
    if self.name == "bool":
      return np.array(stored != 0, order="C")
    return np.array(stored, stored.dtype.newbyteorder("="), order="C")


_BFLOAT16 = _DType("bfloat16", np.dtype("<u2"))
_BOOL = _DType("bool", np.dtype("u1"))
_FLOATS_AND_INTEGERS = {
  name: _DType(name, np.dtype(name).newbyteorder("<"))
  for name in (
    *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
  )
}
_DTYPES = {**_FLOATS_AND_INTEGERS, "bfloat16": _BFLOAT16, "bool": _BOOL}
_SAFETENSORS_DTYPES = {
  "BF16": _BFLOAT16,
  "BOOL": _BOOL,
  **{
    f"{dtype.stored.kind.upper()}{8 * dtype.stored.itemsize}": dtype
    for dtype in _FLOATS_AND_INTEGERS.values()
  },
}
_TYPED_STORAGES = {
  "DoubleStorage": "float64",
  "FloatStorage": "float32",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "int64",
  "IntStorage": "int32",
  "ShortStorage": "int16",
  "CharStorage": "int8",
  "ByteStorage": "uint8",
  "BoolStorage": "bool",
}


@dataclasses.dataclass(frozen=True)
class _StorageType:
  dtype: _DType


@dataclasses.dataclass(frozen=True)
class _Storage:
  key: str
  dtype: _DType
  numel: int

  @property
  def nbytes(self) -> int:
    return self.numel * self.dtype.stored.itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
  storage: _Storage
  dtype: _DType
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    """Bytes of the array it becomes."""
    itemsize = 4 if self.dtype is _BFLOAT16 else self.dtype.stored.itemsize
    return math.prod(self.shape) * itemsize

  def array(self, raw: bytes) -> np.ndarray:
    """Its elements, gathered from the raw bytes of its storage."""
    stored = np.frombuffer(raw, self.dtype.stored, len(raw) // self.dtype.stored.itemsize)
    if 0 in self.shape:
      return self.dtype.values(np.empty(self.shape, self.dtype.stored))
    steps = [stride if n > 1 else 0 for n, stride in zip(self.shape, self.strides, strict=True)]
    view = np.lib.stride_tricks.as_strided(
      stored[self.offset :],
      self.shape,
      [step * self.dtype.stored.itemsize for step in steps],
      writeable=False,
    )
    return self.dtype.values(view)


class _Opaque:
  """What a name that is allowed, but of no use to us, stands for."""


class _Function:
  """One of the functions below, under the name a file calls it by."""

  def __init__(self, call: Any):
    self.call = call


def _ordered_dict(*arguments: Any) -> dict[Any, Any]:
  result: dict[Any, Any] = {}
  match arguments:
    case ():
      pass
    case (list(pairs),):
      for pair in pairs:
        match pair:
          case (key, value):
            _set_item(result, key, value)
          case _:
            raise TorchFileError("an OrderedDict is not made of pairs: the file is damaged.")
    case _:
      raise TorchFileError("an OrderedDict has arguments it cannot have: the file is damaged.")
  return result


def _set_item(container: dict[Any, Any], key: Any, value: Any) -> None:
  if type(key) is not str and not (type(key) is int and abs(key) < 1 << 31):
    raise TorchFileError(
      f"a dictionary has a key of type {type(key).__name__}, where state dicts have strings. "
      f"{_ADVICE}"
    )
  container[key] = value


def _sizes(values: Any) -> bool:
  return isinstance(values, tuple) and all(type(n) is int and n >= 0 for n in values)


def _require_possible(shape: Iterable[int]) -> None:
  # NumPy refuses such sizes even beside a zero.
  if math.prod(max(n, 1) for n in shape) > 1 << 56:
    raise TorchFileError(f"a tensor has the impossible shape {_short(shape)}: the file is damaged.")


def _rebuild(
  storage: Any, offset: Any, shape: Any, strides: Any, dtype: _DType | None, metadata: Any
) -> _Tensor:
  if not (
    isinstance(storage, _Storage)
    and _sizes((offset,))
    and _sizes(shape)
    and _sizes(strides)
    and len(shape) == len(strides) <= _DIMENSIONS
  ):
    raise TorchFileError("a tensor is not described as tensors are: the file is damaged.")
  if metadata:
    raise TorchFileError(
      f"a tensor of storage {storage.key!r} is a lazy conjugate or negative view. {_ADVICE}"
    )
  dtype = dtype or storage.dtype
  itemsize = dtype.stored.itemsize
  _require_possible(shape)
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
  if 0 not in shape and (last + 1) * itemsize > storage.nbytes:
    raise TorchFileError(
      f"a tensor of shape {_short(shape)}, offset {_short(offset)} and strides {_short(strides)} "
      f"reaches beyond the {storage.nbytes // itemsize} elements of its storage {storage.key!r}: "
      "the file is damaged."
    )
  return _Tensor(storage, dtype, offset, shape, strides)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
  return _rebuild(storage, offset, shape, strides, None, None)


def _rebuild_tensor_v2(
  storage: Any,
  offset: Any,
  shape: Any,
  strides: Any,
  requires_grad: Any,
  hooks: Any,
  metadata: Any = None,
) -> _Tensor:
  return _rebuild(storage, offset, shape, strides, None, metadata)


def _rebuild_tensor_v3(
  storage: Any,
  offset: Any,
  shape: Any,
  strides: Any,
  requires_grad: Any,
  hooks: Any,
  dtype: Any,
  metadata: Any = None,
) -> _Tensor:
  if not isinstance(dtype, _DType):
    raise TorchFileError("a tensor is not described as tensors are: the file is damaged.")
  return _rebuild(storage, offset, shape, strides, dtype, metadata)


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> _Tensor:
  if not isinstance(data, _Tensor):
    raise TorchFileError("a parameter is not made of a tensor: the file is damaged.")
  return data


def _size(sizes: Any = ()) -> tuple[int, ...]:
  if not _sizes(sizes):
    raise TorchFileError("a torch.Size is not made of sizes: the file is damaged.")
  return sizes


def _device(kind: Any, index: Any = None) -> _Opaque:
  return _Opaque()


# Every name that a file may ask for, and what it gets: never the thing of that name.
_GLOBALS: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): _Function(_ordered_dict),
  ("torch._utils", "_rebuild_tensor"): _Function(_rebuild_tensor),
  ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor_v2),
  ("torch._utils", "_rebuild_tensor_v3"): _Function(_rebuild_tensor_v3),
  ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
  ("torch._utils", "_rebuild_parameter_with_state"): _Function(_rebuild_parameter),
  ("torch", "Size"): _Function(_size),
  ("torch", "device"): _Function(_device),
  **{("torch", name): dtype for name, dtype in _DTYPES.items()},
  **{
    (module, name): _StorageType(_DTYPES[dtype])
    for module in ("torch", "torch.cuda")
    for name, dtype in _TYPED_STORAGES.items()
  },
  # Counted in bytes; a tensor over one brings its own dtype. The name moved between releases.
  **{
    (module, name): _StorageType(_DTYPES["uint8"])
    for module in ("torch", "torch.storage")
    for name in ("UntypedStorage", "_UntypedStorage")
  },
}


def _short(value: Any) -> str:
  text = ascii(value)
  return text if len(text) <= 80 else text[:77] + "..."


def _take(file: BinaryIO, count: int) -> bytes:
  """Exactly `count` bytes, which the caller knows to be no more than the file could have."""
  found = file.read(count)
  if len(found) != count:
    raise TorchFileError(f"the file is truncated: {count} bytes expected, {len(found)} left.")
  return found


class _Machine:
  """Interprets one pickle: containers, numbers, strings and tensors, and nothing else.

  Keys of dictionaries are strings or small integers, so that no hash can recurse. Its storages are
  named, and their bytes read later.
  """

  def __init__(self, file: BinaryIO):
    self.file = file
    self.left = _DESCRIPTION_BYTES
    self.stack: list[Any] = []
    self.outer: list[list[Any]] = []
    self.memo: dict[int, Any] = {}
    self.storages: dict[str, _Storage] = {}

  def load(self) -> Any:
    """Runs up to the pickle's end, where the file is left, and returns the object made."""
    try:
      while (opcode := self.take(1)) != pickle.STOP:
        self.step(opcode)
    except (IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
      raise TorchFileError(f"its pickle is damaged ({type(error).__name__}).") from error
    if self.outer or len(self.stack) != 1:
      raise TorchFileError("its pickle ends in the middle of an object: the file is damaged.")
    return self.stack.pop()

  def take(self, count: int) -> bytes:
    self.left -= count
    if self.left < 0:
      raise TorchFileError(
        f"its pickle has more than {_DESCRIPTION_BYTES >> 20} MiB, far more than a state dict needs. "
        f"{_ADVICE}"
      )
    return _take(self.file, count)

  def number(self, form: str) -> Any:
    return struct.unpack(form, self.take(struct.calcsize(form)))[0]

  def counted(self, form: str) -> bytes:
    return self.take(self.number(form))

  def line(self) -> str:
    found = bytearray()
    while (byte := self.take(1)) != b"\n":
      found += byte
    return found.decode()

  def to_mark(self) -> list[Any]:
    items, self.stack = self.stack, self.outer.pop()
    return items

  def global_name(self, module: Any, name: Any) -> Any:
    if type(module) is not str or type(name) is not str:
      raise TorchFileError("its pickle has a name that is no text: the file is damaged.")
    if (module, name) not in _GLOBALS:
      raise TorchFileError(
        f"it asks for {_short(f'{module}.{name}')[1:-1]}, which is not among the names tensors are "
        f"written with: refused, and nothing of it was run. {_ADVICE}"
      )
    return _GLOBALS[module, name]

  def persistent(self, identity: Any) -> _Storage:
    match identity:
      case ("storage", _StorageType(dtype), str(key), str(), int(numel)) | (
        "storage",
        _StorageType(dtype),
        str(key),
        str(),
        int(numel),
        None,
      ) if numel >= 0:
        storage = _Storage(key, dtype, numel)
      case ("storage", _StorageType(), str(), str(), int(), tuple()):
        raise TorchFileError(f"a storage is a view of another, as before PyTorch 0.4. {_ADVICE}")
      case _:
        raise TorchFileError("a storage is not described as storages are: the file is damaged.")
    known = self.storages.setdefault(key, storage)
    if known.nbytes != storage.nbytes:
      raise TorchFileError(
        f"storage {_short(key)} has {known.nbytes} bytes in one place and {_short(storage.nbytes)} "
        "in another: the file is damaged."
      )
    return storage

  def items_into(self, container: Any, items: list[Any]) -> None:
    if type(container) is not dict or len(items) % 2:
      raise TorchFileError("its pickle sets items where it cannot: the file is damaged.")
    for key, value in zip(items[::2], items[1::2], strict=True):
      _set_item(container, key, value)

  def values_into(self, container: Any, values: list[Any]) -> None:
    if type(container) is not list:
      raise TorchFileError("its pickle appends where it cannot: the file is damaged.")
    container.extend(values)

  def call(self, function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Function) or type(arguments) is not tuple:
      raise TorchFileError("its pickle calls what is no function: the file is damaged.")
    return function.call(*arguments)

  def step(self, opcode: bytes) -> None:
    push, pop = self.stack.append, self.stack.pop
    match opcode:
      case pickle.PROTO:
        if (version := self.number("<B")) not in range(2, 6):
          raise TorchFileError(f"its pickle is of protocol {version}, 2 to 5 expected. {_ADVICE}")
      case pickle.FRAME:
        self.number("<Q")
      case pickle.MARK:
        self.outer.append(self.stack)
        self.stack = []
      case pickle.NONE:
        push(None)
      case pickle.NEWTRUE:
        push(True)
      case pickle.NEWFALSE:
        push(False)
      case pickle.BININT:
        push(self.number("<i"))
      case pickle.BININT1:
        push(self.number("<B"))
      case pickle.BININT2:
        push(self.number("<H"))
      case pickle.LONG1:
        push(int.from_bytes(self.counted("<B"), "little", signed=True))
      case pickle.BINFLOAT:
        push(self.number(">d"))
      case pickle.SHORT_BINUNICODE | pickle.SHORT_BINSTRING:
        push(self.counted("<B").decode("utf-8", "surrogatepass"))
      case pickle.BINUNICODE | pickle.BINSTRING:
        push(self.counted("<I").decode("utf-8", "surrogatepass"))
      case pickle.SHORT_BINBYTES:
        push(self.counted("<B"))
      case pickle.BINBYTES:
        push(self.counted("<I"))
      case pickle.EMPTY_TUPLE:
        push(())
      case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
        count = 1 + (pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3).index(opcode)
        push(tuple([pop() for _ in range(count)][::-1]))
      case pickle.TUPLE:
        values = self.to_mark()
        self.stack.append(tuple(values))
      case pickle.EMPTY_LIST:
        push([])
      case pickle.APPEND:
        value = pop()
        self.values_into(self.stack[-1], [value])
      case pickle.APPENDS:
        values = self.to_mark()
        self.values_into(self.stack[-1], values)
      case pickle.EMPTY_DICT:
        push({})
      case pickle.SETITEM:
        value, key = pop(), pop()
        self.items_into(self.stack[-1], [key, value])
      case pickle.SETITEMS:
        values = self.to_mark()
        self.items_into(self.stack[-1], values)
      case pickle.BINGET:
        push(self.memo[self.number("<B")])
      case pickle.LONG_BINGET:
        push(self.memo[self.number("<I")])
      case pickle.BINPUT:
        self.memo[self.number("<B")] = self.stack[-1]
      case pickle.LONG_BINPUT:
        self.memo[self.number("<I")] = self.stack[-1]
      case pickle.MEMOIZE:
        self.memo[len(self.memo)] = self.stack[-1]
      case pickle.GLOBAL:
        module, name = self.line(), self.line()
        push(self.global_name(module, name))
      case pickle.STACK_GLOBAL:
        name, module = pop(), pop()
        push(self.global_name(module, name))
      case pickle.REDUCE:
        arguments, function = pop(), pop()
        push(self.call(function, arguments))
      case pickle.BUILD:
        # A module's state dict carries its versions as an attribute, `_metadata`.
        pop()
        if type(self.stack[-1]) is not dict:
          raise TorchFileError(f"it gives a state to what has none. {_ADVICE}")
      case pickle.BINPERSID:
        push(self.persistent(pop()))
      case _:
        raise TorchFileError(
          f"its pickle has the instruction {_INSTRUCTIONS.get(opcode, opcode)}, which is not among "
          f"those tensors are written with: refused. {_ADVICE}"
        )


def _tensors_of(tree: Mapping[Any, Any], depth: int) -> dict[str, _Tensor]:
  """The tensors of the state dict in `tree`, looking through at most `depth` wrappers."""
  found = {}
  for wrapper in WRAPPERS if depth else ():
    inner = tree.get(wrapper)
    if isinstance(inner, dict) and (tensors := _tensors_of(inner, depth - 1)):
      found[wrapper] = tensors
  if len(found) > 1:
    raise TorchFileError(
      f"it holds {len(found)} state dicts, under {' and '.join(found)}, and which is meant is not "
      "clear. Re-save the one you want alone."
    )
  if found:
    return found.popitem()[1]
  return {key: value for key, value in tree.items() if isinstance(value, _Tensor)}


def _state_dict(tree: Any, budget: int) -> dict[str, _Tensor]:
  if not isinstance(tree, dict):
    raise TorchFileError(f"it holds one {type(tree).__name__.strip('_')}, a state dict expected.")
  tensors = _tensors_of(tree, _WRAPPER_DEPTH)
  if not tensors:
    raise TorchFileError(
      f"it holds no tensors, nor a dictionary of tensors under {', '.join(WRAPPERS)}; its keys: "
      f"{_short(list(tree)[:8])}. Re-save the state dict alone."
    )
  for key in tensors:
    if not isinstance(key, str):
      raise TorchFileError(f"a tensor has the key {key}, a string expected. {_ADVICE}")
  if (total := sum(tensor.nbytes for tensor in tensors.values())) > budget:
    raise TorchFileError(
      f"its tensors would fill {_short(total)} bytes, more than the {budget} that a file of its "
      "size is allowed: they repeat the elements of small storages. Re-save them as copies."
    )
  return tensors


def _from_stream(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
  if _Machine(file).load() != _STREAM_MAGIC:
    raise TorchFileError(f"it is a pickle, but none of PyTorch's. {_ADVICE}")
  version = _Machine(file).load()
  if type(version) is not int or version != _STREAM_VERSION:
    # A container is not shown: one that repeats itself can take forever to print.
    found = _short(version) if type(version) is int else f"a {type(version).__name__}"
    raise TorchFileError(f"its version is {found}, {_STREAM_VERSION} expected.")
  match _Machine(file).load():
    case {"protocol_version": 1001, "little_endian": True}:
      pass
    case {"little_endian": False}:
      raise TorchFileError(f"it was written on a big-endian machine: not supported. {_ADVICE}")
    case _:
      raise TorchFileError("its system record is damaged.")
  machine = _Machine(file)
  tensors = _state_dict(machine.load(), _budget(size))
  keys = _Machine(file).load()
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise TorchFileError("its list of storages is damaged.")
  if len(set(keys)) != len(keys) or set(keys) != set(machine.storages):
    raise TorchFileError(
      f"it lists {len(set(keys))} storages in {len(keys)} entries and its tensors name "
      f"{len(machine.storages)}, not the same ones: the file is damaged."
    )
  needed = {tensor.storage.key for tensor in tensors.values()}
  raw = {}
  for key in keys:
    storage = machine.storages[key]
    (numel,) = struct.unpack("<q", _take(file, 8))
    if numel != storage.numel:
      raise TorchFileError(
        f"storage {_short(key)} has {numel} elements, {_short(storage.numel)} expected: the file is damaged."
      )
    if storage.nbytes > (left := size - file.tell()):
      raise TorchFileError(
        f"the file is truncated: storage {_short(key)} has {storage.nbytes} bytes, {left} are left."
      )
    if key in needed:
      raw[key] = _take(file, storage.nbytes)
    else:
      file.seek(storage.nbytes, os.SEEK_CUR)
  if left := size - file.tell():
    raise TorchFileError(f"{left} bytes follow its end: the file is damaged.")
  return {key: tensor.array(raw[tensor.storage.key]) for key, tensor in tensors.items()}


def _from_archive(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
  file.seek(max(size - 22, 0))
  if file.read(4) != b"PK\x05\x06":
    raise TorchFileError("it does not end as a zip archive does: it is truncated, or bytes follow.")
  try:
    with zipfile.ZipFile(file) as archive:
      return _from_members(archive, _budget(size))
  except TorchFileError:
    raise
  except (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(ValueError, OverflowError, NotImplementedError, RuntimeError),
  ) as error:
    raise TorchFileError(f"its zip archive is damaged: {error}") from error


def _from_members(archive: zipfile.ZipFile, budget: int) -> dict[str, np.ndarray]:
  members = {info.filename: info for info in archive.infolist()}
  if len(members) != len(archive.infolist()):
    raise TorchFileError("its zip archive has members of the same name: the file is damaged.")
  if min((info.header_offset for info in members.values()), default=0):
    raise TorchFileError("other bytes lie before its zip archive: the file is damaged.")
  for name, info in members.items():
    stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    if info.flag_bits & 1 or not (stored or info.compress_type == zipfile.ZIP_DEFLATED):
      raise TorchFileError(f"its member {_short(name)} is neither stored nor deflated. {_ADVICE}")
  if (total := sum(info.file_size for info in members.values())) > budget:
    raise TorchFileError(
      f"its members would unpack to {total} bytes, more than the {budget} that a file of its size "
      "is allowed. Unpack it and pack it without compression."
    )
  roots = [n.removesuffix("/data.pkl") for n in members if n.endswith("/data.pkl")]
  if len(roots) != 1:
    raise TorchFileError(
      f"it is a zip archive with {len(roots)} members data.pkl, where PyTorch writes one. {_ADVICE}"
    )
  root = roots[0]
  if f"{root}/constants.pkl" in members:
    raise TorchFileError(f"it is a TorchScript program, not a state dict. {_ADVICE}")

  def content(name: str) -> bytes:
    if f"{root}/{name}" not in members:
      raise TorchFileError(f"its zip archive lacks the member {_short(name)}: the file is damaged.")
    return archive.read(members[f"{root}/{name}"])

  version = content("version").strip()
  if not (version.isdigit() and len(version) < 4 and int(version) in _ARCHIVE_VERSIONS):
    raise TorchFileError(
      f"its version is {_short(version)}, {_ARCHIVE_VERSIONS[0]} to {_ARCHIVE_VERSIONS[-1]} expected."
    )
  # Files from before PyTorch 2.1 name no byte order; they come from little-endian machines.
  if f"{root}/byteorder" in members and (order := content("byteorder")) != b"little":
    raise TorchFileError(f"its byte order is {_short(order)}, little expected. {_ADVICE}")
  pickled = io.BytesIO(content("data.pkl"))
  machine = _Machine(pickled)
  tensors = _state_dict(machine.load(), budget)
  if left := len(pickled.read()):
    raise TorchFileError(f"{left} bytes follow the end of its data.pkl: the file is damaged.")
  for key, storage in machine.storages.items():
    member = members.get(f"{root}/data/{key}")
    if member is None or member.file_size != storage.nbytes:
      raise TorchFileError(
        f"storage {_short(key)} has {member.file_size if member else 'no'} bytes, "
        f"{_short(storage.nbytes)} expected: the file is damaged."
      )
  needed = {tensor.storage.key for tensor in tensors.values()}
  raw = {key: content(f"data/{key}") for key in needed}
  return {key: tensor.array(raw[tensor.storage.key]) for key, tensor in tensors.items()}


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
  result: dict[str, Any] = {}
  for key, value in pairs:
    if key in result:
      raise TorchFileError(f"its header has the key {_short(key)} twice: the file is damaged.")
    result[key] = value
  return result


def _from_safetensors(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
  (header_size,) = struct.unpack("<Q", _take(file, 8))
  if header_size > min(size - 8, _DESCRIPTION_BYTES):
    raise TorchFileError(
      f"its header would have {header_size} bytes, of {size - 8} left and {_DESCRIPTION_BYTES} allowed: "
      "it is truncated, or no safetensors file."
    )
  try:
    header = json.loads(_take(file, header_size).decode(), object_pairs_hook=_unique)
  except TorchFileError:
    raise
  except (ValueError, RecursionError) as error:
    raise TorchFileError(f"its header is no JSON: {_short(str(error))}") from error
  if not isinstance(header, dict):
    raise TorchFileError("its header is no dictionary: the file is damaged.")
  header.pop("__metadata__", None)
  tensors = {}
  for key, entry in header.items():
    match entry:
      case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
        _sizes((*shape, begin, end)) and len(shape) <= _DIMENSIONS
      ):
        if dtype not in _SAFETENSORS_DTYPES:
          raise TorchFileError(
            f"tensor {_short(key)} has the dtype {_short(dtype)}; known: "
            f"{', '.join(_SAFETENSORS_DTYPES)}. Re-save it as one of these."
          )
      case _:
        raise TorchFileError(
          f"tensor {_short(key)} is not described as tensors are: it is damaged."
        )
    spec = _SAFETENSORS_DTYPES[dtype]
    _require_possible(shape)
    if math.prod(shape) * spec.stored.itemsize != end - begin:
      raise TorchFileError(
        f"tensor {_short(key)} of shape {_short(shape)} and dtype {dtype} has "
        f"{_short(end - begin)} bytes: the file is damaged."
      )
    tensors[key] = (begin, end, spec, shape)
  reached = 0
  # Back to back, without holes or overlaps, the format demands: so nothing can hide in it.
  for key, (begin, end, *_) in sorted(tensors.items(), key=lambda item: item[1][:2]):
    if begin != reached:
      raise TorchFileError(
        f"tensor {_short(key)} begins at byte {_short(begin)}, {reached} expected: it is damaged."
      )
    reached = end
  if reached != size - 8 - header_size:
    raise TorchFileError(
      f"its tensors fill {_short(reached)} bytes and {size - 8 - header_size} are there: it is "
      "truncated, or bytes follow its end."
    )
  if not tensors:
    raise TorchFileError("it holds no tensors.")
  arrays = {}
  for key, (begin, end, spec, shape) in tensors.items():
    file.seek(8 + header_size + begin)
    stored = np.frombuffer(_take(file, end - begin), spec.stored).reshape(shape)
    arrays[key] = spec.values(stored)
  return arrays


def _budget(size: int) -> int:
  """Bytes that a file of `size` bytes may unpack to, by compression or by repeated elements."""
  return 16 * size + (64 << 20)


def _without_prefix(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  if all(key.startswith(prefix) and key != prefix for key in arrays):
    return {key.removeprefix(prefix): array for key, array in arrays.items()}
  return arrays


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """The state dict in a PyTorch or safetensors checkpoint.

  A state dict that lies under `state_dict`, `model`, `module` or `model_state` (at most three deep)
  is taken from there, whatever else lies beside it: epochs, arguments, an optimizer. Entries that
  are not tensors are left out. A prefix `module.` that all keys share, as data-parallel training
  puts it, is taken off.

  Args:
    path: of the file; its format follows from its content, not from its name.

  Returns:
    Arrays by key, in the file's order: C-ordered, writable, each with memory of its own even where
    the file shares it. dtypes are the file's, but bfloat16, which NumPy lacks, becomes float32
    (every value is exact); float16 stays. A scalar has shape `()`.

  Raises:
    TorchFileError: the file is damaged, of another format or byte order, holds no state dict or
      more than one, or asks for a name that no tensor needs. The message names the file, and
      nothing of the file was run.
    OSError: the file cannot be opened.
  """
  with open(path, "rb") as file:
    size = os.fstat(file.fileno()).st_size
    start = file.read(9)
    file.seek(0)
    try:
      if start.startswith(b"PK\x03\x04"):
        arrays = _from_archive(file, size)
      elif start[8:] == b"{":
        arrays = _from_safetensors(file, size)
      elif start.startswith(pickle.PROTO):
        arrays = _from_stream(file, size)
      else:
        raise TorchFileError(
          f"it begins with {start!r} and has {size} bytes: neither a PyTorch checkpoint nor a "
          "safetensors file. See that the download is whole."
        )
    except TorchFileError as error:
      raise TorchFileError(f"{os.fspath(path)}: {error}") from error
  return _without_prefix(arrays, "module.")
