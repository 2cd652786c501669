"""An interpreter of the pickles in PyTorch files, which runs nothing that they ask for.

In: an open file at the beginning of a pickle. Out: the object that it describes, in containers,
numbers, texts and descriptions of tensors, and a `Foreign` in the place of everything else.

A small machine knows the names that tensors are written with. For any other name there is a
placeholder, which is never imported, called or filled: its arguments and state are read over. Beside
foreign calls that shuts out what a subclass of `pickle.Unpickler` cannot: hashes of deeply nested
tuples, which overflow the stack, and memo numbers that allocate gigabytes.

Format: https://docs.python.org/3/library/pickletools.html.
"""

from collections.abc import Callable
import pickle
import pickletools
import struct
from typing import Any, BinaryIO

from hybrid_video.weights.torch_tensors import (
  ADVICE,
  GLOBALS,
  Foreign,
  Function,
  Storage,
  StorageType,
  described,
  set_item,
  short,
)
from hybrid_video.weights.weights_errors import WeightsFileError

# Descriptions of real tensors are kilobytes; a byte of a hostile one can cost a container of 64.
_DESCRIPTION_BYTES = 8 << 20
# No name is longer: what is, such as the curves of a training, is read over and does not count.
_LONGEST_NAME = 64 << 10
_LONGEST_NUMBER = 255
_INSTRUCTIONS = {op.code.encode("latin-1"): op.name for op in pickletools.opcodes}


def take(file: BinaryIO, count: int) -> bytes:
  """Exactly `count` bytes, which the caller knows to be no more than the file could have."""
  content = file.read(count)
  if len(content) != count:
    raise WeightsFileError(f"the file is truncated: {count} bytes expected, {len(content)} left.")
  return content


class Machine:
  """Interprets one pickle: containers, numbers, strings and tensors, the rest as placeholders.

  Keys of dictionaries are strings or small integers, so that no hash can recurse. Its storages are
  named, and their bytes read later.

  Attributes:
    storages: by key, all that its tensors lie in.
    foreign: by name, all that has a placeholder.
  """

  def __init__(self, file: BinaryIO):
    self.file = file
    self.left = _DESCRIPTION_BYTES
    self.stack: list[Any] = []
    self.outer: list[list[Any]] = []
    self.memo: dict[int, Any] = {}
    self.storages: dict[str, Storage] = {}
    self.foreign: dict[str, Foreign] = {}

  def load(self) -> Any:
    """Runs up to the pickle's end, where the file is left, and returns the object made."""
    try:
      while (opcode := self.take(1)) != pickle.STOP:
        self.step(opcode)
    except (IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
      raise WeightsFileError(f"its pickle is damaged ({type(error).__name__}).") from error
    if self.outer or len(self.stack) != 1:
      raise WeightsFileError("its pickle ends in the middle of an object: the file is damaged.")
    return self.stack.pop()

  def take(self, count: int) -> bytes:
    """The next bytes of the pickle."""
    self.left -= count
    if self.left < 0:
      raise WeightsFileError(
        f"its pickle has more than {_DESCRIPTION_BYTES >> 20} MiB, far more than a state dict needs. "
        f"{ADVICE}"
      )
    return take(self.file, count)

  def number(self, form: str) -> Any:
    """The next number, in a form of the module `struct`."""
    return struct.unpack(form, self.take(struct.calcsize(form)))[0]

  def counted(self, form: str) -> bytes | Foreign:
    """The next bytes, whose count stands before them in that form; a placeholder for very many."""
    count = self.number(form)
    if count <= _LONGEST_NAME:
      return self.take(count)
    for start in range(0, count, _LONGEST_NAME):
      take(self.file, min(_LONGEST_NAME, count - start))
    return Foreign("bytes")

  def line(self) -> str:
    """The text up to the next newline."""
    read = bytearray()
    while (byte := self.take(1)) != b"\n":
      read += byte
    return read.decode()

  def to_mark(self) -> list[Any]:
    """Takes off the stack what lies above the last mark."""
    items, self.stack = self.stack, self.outer.pop()
    return items

  def global_name(self, module: Any, name: Any) -> Any:
    """What stands for a name of a module."""
    if type(module) is not str or type(name) is not str:
      raise WeightsFileError("its pickle has a name that is no text: the file is damaged.")
    if (module, name) in GLOBALS:
      return GLOBALS[module, name]
    whole = f"{module}.{name}"
    return self.foreign.setdefault(whole, Foreign(whole))

  def persistent(self, identity: Any) -> Storage | Foreign:
    """The storage of that description, or the class of a module that was pickled whole."""
    match identity:
      case ("module", Foreign() as kind, *_):
        return kind
      case ("storage", StorageType(dtype), str(key), str(), int(numel)) | (
        "storage",
        StorageType(dtype),
        str(key),
        str(),
        int(numel),
        None,
      ) if numel >= 0:
        storage = Storage(key, dtype, numel)
      case ("storage", Foreign() as kind, *_):
        raise WeightsFileError(
          f"a storage has the type {described(kind)}, which is not known here. {ADVICE}"
        )
      case ("storage", StorageType(), str(), str(), int(), tuple()):
        raise WeightsFileError(f"a storage is a view of another, as before PyTorch 0.4. {ADVICE}")
      case _:
        raise WeightsFileError("a storage is not described as storages are: the file is damaged.")
    known = self.storages.setdefault(key, storage)
    if known.nbytes != storage.nbytes:
      raise WeightsFileError(
        f"storage {short(key)} has {known.nbytes} bytes in one place and {short(storage.nbytes)} "
        "in another: the file is damaged."
      )
    return storage

  def items_into(self, container: Any, items: list[Any]) -> None:
    """Puts keys and values, by turns, into a dictionary."""
    if isinstance(container, Foreign):
      return
    if type(container) is not dict or len(items) % 2:
      raise WeightsFileError("its pickle sets items where it cannot: the file is damaged.")
    for key, value in zip(items[::2], items[1::2], strict=True):
      set_item(container, key, value)

  def values_into(self, container: Any, values: list[Any]) -> None:
    """Appends values to a list."""
    if isinstance(container, Foreign):
      return
    if type(container) is not list:
      raise WeightsFileError("its pickle appends where it cannot: the file is damaged.")
    container.extend(values)

  def call(self, function: Any, arguments: Any) -> Any:
    """What one of `torch_tensors`' functions gives; a placeholder for what a placeholder would."""
    if isinstance(function, Foreign):
      return function
    if not isinstance(function, Function) or type(arguments) is not tuple:
      raise WeightsFileError(
        f"its pickle calls a {described(function)}, which is no function: refused. {ADVICE}"
      )
    return function.call(*arguments)

  def step(self, opcode: bytes) -> None:
    """Carries out one instruction."""
    if opcode in _CONSTANTS:
      self.stack.append(_CONSTANTS[opcode])
    elif opcode in _VALUES:
      self.stack.append(_VALUES[opcode](self))
    elif opcode in _ACTIONS:
      _ACTIONS[opcode](self)
    else:
      raise WeightsFileError(
        f"its pickle has the instruction {_INSTRUCTIONS.get(opcode, opcode)}, which is not among "
        f"those tensors are written with: refused. {ADVICE}"
      )


# What most instructions do is to put a value on the stack: one of these,
_CONSTANTS: dict[bytes, Any] = {
  pickle.NONE: None,
  pickle.NEWTRUE: True,
  pickle.NEWFALSE: False,
  pickle.EMPTY_TUPLE: (),
}


def _text(form: str) -> Callable[[Machine], str | Foreign]:
  def value(machine: Machine) -> str | Foreign:
    content = machine.counted(form)
    return content if isinstance(content, Foreign) else content.decode("utf-8", "surrogatepass")

  return value


def _text_or_bytes(form: str) -> Callable[[Machine], str | bytes | Foreign]:
  # Python 2 has one type for both.
  def value(machine: Machine) -> str | bytes | Foreign:
    content = machine.counted(form)
    try:
      return content if isinstance(content, Foreign) else content.decode()
    except UnicodeDecodeError:
      return content

  return value


def _bytes(form: str) -> Callable[[Machine], bytes | Foreign]:
  return lambda machine: machine.counted(form)


def _whole_number(form: str) -> Callable[[Machine], int]:
  def value(machine: Machine) -> int:
    count = machine.number(form)
    if not 0 <= count <= _LONGEST_NUMBER:
      raise WeightsFileError(f"its pickle has a number of {count} bytes: the file is damaged.")
    return int.from_bytes(machine.take(count), "little", signed=True)

  return value


def _number(form: str) -> Callable[[Machine], Any]:
  return lambda machine: machine.number(form)


def _popped_tuple(count: int) -> Callable[[Machine], tuple]:
  return lambda machine: tuple([machine.stack.pop() for _ in range(count)][::-1])


def _named(machine: Machine) -> Any:
  module, name = machine.line(), machine.line()
  return machine.global_name(module, name)


def _named_by_stack(machine: Machine) -> Any:
  name, module = machine.stack.pop(), machine.stack.pop()
  return machine.global_name(module, name)


def _called(machine: Machine) -> Any:
  arguments, function = machine.stack.pop(), machine.stack.pop()
  return machine.call(function, arguments)


def _new_object(machine: Machine) -> Any:
  arguments, kind = machine.stack.pop(), machine.stack.pop()
  if not isinstance(kind, Foreign | Function):
    raise WeightsFileError(
      f"its pickle has the instruction NEWOBJ for a {described(kind)}, which is no class: refused. "
      f"{ADVICE}"
    )
  return machine.call(kind, arguments)


def _new_object_by_names(machine: Machine) -> Any:
  machine.stack.pop()
  return _new_object(machine)


# or one that a function makes of what follows the instruction or lies on the stack.
_VALUES: dict[bytes, Callable[[Machine], Any]] = {
  pickle.EMPTY_LIST: lambda machine: [],
  pickle.EMPTY_DICT: lambda machine: {},
  pickle.EMPTY_SET: lambda machine: Foreign("set"),
  pickle.BININT: _number("<i"),
  pickle.BININT1: _number("<B"),
  pickle.BININT2: _number("<H"),
  pickle.LONG1: _whole_number("<B"),
  pickle.LONG4: _whole_number("<i"),
  pickle.BINFLOAT: _number(">d"),
  pickle.SHORT_BINUNICODE: _text("<B"),
  pickle.BINUNICODE: _text("<I"),
  pickle.BINUNICODE8: _text("<Q"),
  pickle.SHORT_BINSTRING: _text_or_bytes("<B"),
  pickle.BINSTRING: _text_or_bytes("<I"),
  pickle.SHORT_BINBYTES: _bytes("<B"),
  pickle.BINBYTES: _bytes("<I"),
  pickle.BINBYTES8: _bytes("<Q"),
  pickle.BYTEARRAY8: _bytes("<Q"),
  pickle.TUPLE1: _popped_tuple(1),
  pickle.TUPLE2: _popped_tuple(2),
  pickle.TUPLE3: _popped_tuple(3),
  pickle.BINGET: lambda machine: machine.memo[machine.number("<B")],
  pickle.LONG_BINGET: lambda machine: machine.memo[machine.number("<I")],
  pickle.GLOBAL: _named,
  pickle.STACK_GLOBAL: _named_by_stack,
  pickle.REDUCE: _called,
  pickle.NEWOBJ: _new_object,
  pickle.NEWOBJ_EX: _new_object_by_names,
  pickle.BINPERSID: lambda machine: machine.persistent(machine.stack.pop()),
}


def _check_protocol(machine: Machine) -> None:
  if (version := machine.number("<B")) not in range(2, 6):
    raise WeightsFileError(f"its pickle is of protocol {version}, 2 to 5 expected. {ADVICE}")


def _mark(machine: Machine) -> None:
  machine.outer.append(machine.stack)
  machine.stack = []


def _make_tuple(machine: Machine) -> None:
  values = machine.to_mark()
  machine.stack.append(tuple(values))


def _pop(machine: Machine) -> None:
  if machine.stack:
    machine.stack.pop()
  else:
    machine.to_mark()


def _make_frozen_set(machine: Machine) -> None:
  machine.to_mark()
  machine.stack.append(Foreign("frozenset"))


def _append(machine: Machine) -> None:
  value = machine.stack.pop()
  machine.values_into(machine.stack[-1], [value])


def _append_all(machine: Machine) -> None:
  values = machine.to_mark()
  machine.values_into(machine.stack[-1], values)


def _add_all(machine: Machine) -> None:
  machine.to_mark()
  if not isinstance(machine.stack[-1], Foreign):
    raise WeightsFileError("its pickle adds to a set where there is none: the file is damaged.")


def _set_one(machine: Machine) -> None:
  value, key = machine.stack.pop(), machine.stack.pop()
  machine.items_into(machine.stack[-1], [key, value])


def _set_all(machine: Machine) -> None:
  items = machine.to_mark()
  machine.items_into(machine.stack[-1], items)


def _remember(form: str) -> Callable[[Machine], None]:
  def action(machine: Machine) -> None:
    machine.memo[machine.number(form)] = machine.stack[-1]

  return action


def _remember_next(machine: Machine) -> None:
  machine.memo[len(machine.memo)] = machine.stack[-1]


def _drop_state(machine: Machine) -> None:
  # A module's state dict carries its versions as an attribute, `_metadata`.
  machine.stack.pop()
  if not isinstance(machine.stack[-1], dict | Foreign):
    raise WeightsFileError(f"it gives a state to what has none. {ADVICE}")


# The others change what is there.
_ACTIONS: dict[bytes, Callable[[Machine], Any]] = {
  pickle.PROTO: _check_protocol,
  pickle.FRAME: _number("<Q"),
  pickle.MARK: _mark,
  pickle.POP: _pop,
  pickle.POP_MARK: lambda machine: machine.to_mark(),
  pickle.DUP: lambda machine: machine.stack.append(machine.stack[-1]),
  pickle.TUPLE: _make_tuple,
  pickle.FROZENSET: _make_frozen_set,
  pickle.APPEND: _append,
  pickle.APPENDS: _append_all,
  pickle.ADDITEMS: _add_all,
  pickle.SETITEM: _set_one,
  pickle.SETITEMS: _set_all,
  pickle.BINPUT: _remember("<B"),
  pickle.LONG_BINPUT: _remember("<I"),
  pickle.MEMOIZE: _remember_next,
  pickle.BUILD: _drop_state,
}
