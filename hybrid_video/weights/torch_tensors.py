"""What a PyTorch file says of its tensors, and the arrays that they become.

In: the names that a file may ask for, with their arguments. Out: descriptions of tensors, checked
against their storages; with a storage's bytes, NumPy arrays.
"""

from collections.abc import Iterable
import dataclasses
import math
from typing import Any

import numpy as np

from hybrid_video.weights.weights_errors import WeightsFileError

ADVICE = (
  "If you trust its origin, load it where PyTorch is installed and re-save its state dict as "
  "safetensors (safetensors.torch.save_file)."
)
_DIMENSIONS = 32
_TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")


def short(value: Any) -> str:
  """A value for an error message, in ASCII and at most 80 characters."""
  text = ascii(value)
  return text if len(text) <= 80 else text[:77] + "..."


@dataclasses.dataclass(frozen=True)
class DType:
  """A type of elements, by PyTorch's name, and the NumPy type that they are stored as."""

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


_BFLOAT16 = DType("bfloat16", np.dtype("<u2"))
_BOOL = DType("bool", np.dtype("u1"))
_FLOATS_AND_INTEGERS = {
  name: DType(name, np.dtype(name).newbyteorder("<"))
  for name in (
    *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
  )
}
_DTYPES = {**_FLOATS_AND_INTEGERS, "bfloat16": _BFLOAT16, "bool": _BOOL}
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
# Their tensors are placeholders; a storage's bytes are counted all the same, to find the next one.
_UNREADABLE_STORAGES = {
  "ComplexFloatStorage": DType("complex64", np.dtype("V8")),
  "ComplexDoubleStorage": DType("complex128", np.dtype("V16")),
  "QInt8Storage": DType("qint8", np.dtype("V1")),
  "QUInt8Storage": DType("quint8", np.dtype("V1")),
  "QInt32Storage": DType("qint32", np.dtype("V4")),
}


@dataclasses.dataclass(frozen=True)
class StorageType:
  """What the name of a storage class stands for."""

  dtype: DType


@dataclasses.dataclass(frozen=True)
class Storage:
  """A run of elements that tensors share, without its bytes."""

  key: str
  dtype: DType
  numel: int

  @property
  def nbytes(self) -> int:
    """Bytes that it has in the file."""
    return self.numel * self.dtype.stored.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage: offset and strides in elements."""

  storage: Storage
  dtype: DType
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


class Foreign:
  """What stands for a thing that no tensor is made of: a class, a function, or what one would give.

  It has the name that the file asks for and nothing else: no argument and no state is kept, so that
  nothing can be looked up in it or called.
  """

  __slots__ = ("name",)

  def __init__(self, name: str):
    self.name = name


def described(value: Any) -> str:
  """What a value of a pickle is, for an error message: its type's name, in ASCII."""
  return short(value.name)[1:-1] if isinstance(value, Foreign) else type(value).__name__.strip("_")


class Function:
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
            set_item(result, key, value)
          case _:
            raise WeightsFileError("an OrderedDict is not made of pairs: the file is damaged.")
    case _:
      raise WeightsFileError("an OrderedDict has arguments it cannot have: the file is damaged.")
  return result


def _default_dict(*arguments: Any) -> dict[Any, Any]:
  # What makes its defaults is of no use: every item is in the file.
  return _ordered_dict(*arguments[1:])


def set_item(container: dict[Any, Any], key: Any, value: Any) -> None:
  """Puts an item into a dictionary.

  Texts and small whole numbers are its keys as they are. Any other key, which no state dict has,
  becomes a `Foreign`: the hash of a deeply nested tuple would overflow the stack.
  """
  if type(key) is str or (type(key) is int and abs(key) < 1 << 31):
    container[key] = value
  else:
    container[Foreign(described(key))] = value


def _sizes(values: Any) -> bool:
  return isinstance(values, tuple) and all(type(n) is int and n >= 0 for n in values)


def _require_possible(shape: Iterable[int]) -> None:
  # NumPy refuses such sizes even beside a zero.
  if math.prod(max(n, 1) for n in shape) > 1 << 56:
    raise WeightsFileError(
      f"a tensor has the impossible shape {short(shape)}: the file is damaged."
    )


def _rebuild(
  storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any, metadata: Any
) -> Tensor | Foreign:
  if isinstance(dtype, Foreign):
    return dtype
  if not (
    isinstance(storage, Storage)
    and _sizes((offset,))
    and _sizes(shape)
    and _sizes(strides)
    and len(shape) == len(strides) <= _DIMENSIONS
  ):
    raise WeightsFileError("a tensor is not described as tensors are: the file is damaged.")
  if metadata:
    raise WeightsFileError(
      f"a tensor of storage {storage.key!r} is a lazy conjugate or negative view. {ADVICE}"
    )
  dtype = dtype or storage.dtype
  if dtype in _UNREADABLE_STORAGES.values():
    return Foreign(f"torch.{dtype.name}")
  itemsize = dtype.stored.itemsize
  _require_possible(shape)
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
  if 0 not in shape and (last + 1) * itemsize > storage.nbytes:
    raise WeightsFileError(
      f"a tensor of shape {short(shape)}, offset {short(offset)} and strides {short(strides)} "
      f"reaches beyond the {storage.nbytes // itemsize} elements of its storage {storage.key!r}: "
      "the file is damaged."
    )
  return Tensor(storage, dtype, offset, shape, strides)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor | Foreign:
  return _rebuild(storage, offset, shape, strides, None, None)


def _rebuild_tensor_v2(
  storage: Any,
  offset: Any,
  shape: Any,
  strides: Any,
  requires_grad: Any,
  hooks: Any,
  metadata: Any = None,
) -> Tensor | Foreign:
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
) -> Tensor | Foreign:
  if not isinstance(dtype, DType | Foreign):
    raise WeightsFileError("a tensor is not described as tensors are: the file is damaged.")
  return _rebuild(storage, offset, shape, strides, dtype, metadata)


def _rebuild_parameter(
  data: Any, requires_grad: Any, hooks: Any, state: Any = None
) -> Tensor | Foreign:
  if not isinstance(data, Tensor | Foreign):
    raise WeightsFileError("a parameter is not made of a tensor: the file is damaged.")
  return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
  # A tensor that carries attributes, or of a subclass, whose meaning is not known.
  if isinstance(kind, Foreign) and kind.name not in _TENSOR_CLASSES:
    return kind
  if not isinstance(function, Function) or type(arguments) is not tuple:
    raise WeightsFileError("a tensor is not described as tensors are: the file is damaged.")
  return function.call(*arguments)


def _size(sizes: Any = ()) -> tuple[int, ...]:
  if not _sizes(sizes):
    raise WeightsFileError("a torch.Size is not made of sizes: the file is damaged.")
  return sizes


# Every name that means something, and what it gets: never the thing of that name. For any other there
# is a `Foreign`.
GLOBALS: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): Function(_ordered_dict),
  ("collections", "defaultdict"): Function(_default_dict),
  ("torch._utils", "_rebuild_tensor"): Function(_rebuild_tensor),
  ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor_v2),
  ("torch._utils", "_rebuild_tensor_v3"): Function(_rebuild_tensor_v3),
  ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
  ("torch._utils", "_rebuild_parameter_with_state"): Function(_rebuild_parameter),
  ("torch._tensor", "_rebuild_from_type_v2"): Function(_rebuild_from_type),
  ("torch", "Size"): Function(_size),
  **{("torch", name): dtype for name, dtype in _DTYPES.items()},
  **{
    (module, name): StorageType(dtype)
    for module in ("torch", "torch.cuda")
    for name, dtype in {
      **{name: _DTYPES[dtype] for name, dtype in _TYPED_STORAGES.items()},
      **_UNREADABLE_STORAGES,
    }.items()
  },
  # Counted in bytes; a tensor over one brings its own dtype. The name moved between releases.
  **{
    (module, name): StorageType(_DTYPES["uint8"])
    for module in ("torch", "torch.storage")
    for name in ("UntypedStorage", "_UntypedStorage")
  },
}
