import argparse
import collections
import datetime
import enum
import functools
import io
import json
import os
import pathlib
import pickle
import pickletools
import random
import re
import struct
import sys
import uuid
import zipfile

import numpy as np
import pytest

from hybrid_video import errors
from hybrid_video.weights import WeightsFileError, reading, torch_checkpoints, torch_pickle

GOLDEN = pathlib.Path(__file__).parent / "golden" / "torch_files"
FILES = {
  "stream.pth": "values.npz",
  "archive.pth": "values.npz",
  "tensors.safetensors": "values.npz",
  "stream_wrapped.pth": "module.npz",
  "archive_wrapped.pth": "module.npz",
  "stream_training.pth": "module.npz",
  "archive_training.pth": "module.npz",
}
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
SYSTEM = {"protocol_version": 1001, "little_endian": True}


def prelude(system=SYSTEM, version=1001) -> bytes:
  return MAGIC + pickle.dumps(version, 2) + pickle.dumps(system, 2)


def stream(pickled: bytes, storages: dict[str, np.ndarray], **options) -> bytes:
  """A stream checkpoint around the pickle of its object."""
  data = [struct.pack("<q", values.size) + values.tobytes() for values in storages.values()]
  return b"".join([prelude(**options), pickled, pickle.dumps(list(storages), 2), *data])


def archive(members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", compression) as writer:
    for name, content in members.items():
      writer.writestr(name, content)
  return file.getvalue()


def members(name: str) -> dict[str, bytes]:
  with zipfile.ZipFile(GOLDEN / name) as reader:
    return {member: reader.read(member) for member in reader.namelist()}


def instructions(value, protocol=2) -> bytes:
  """Those of a value's pickle, without its beginning, its end, and what nothing refers to."""
  return pickletools.optimize(pickle.dumps(value, protocol))[2:-1]


def tensor(offset, shape, strides, *, key="0", numel=6, storage="torch\nFloatStorage") -> bytes:
  """The instructions of one tensor, as PyTorch writes them."""
  described = [instructions(value) for value in (offset, shape, strides)]
  name, count = (instructions(value) for value in (key, numel))
  storage = (
    b"(X\x07\x00\x00\x00storagec" + storage.encode() + b"\n" + name + b"X\x03\x00\x00\x00cpu"
  )
  call = b"ctorch._utils\n_rebuild_tensor_v2\n("
  return call + storage + count + b"NtQ" + b"".join(described) + b"\x89}tR"


def one(entry: bytes, key="w") -> bytes:
  return b"\x80\x02}" + instructions(key) + entry + b"s."


SIX = {"0": np.arange(6, dtype=np.float32)}


@pytest.fixture
def put(tmp_path):
  def write(content: bytes) -> pathlib.Path:
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    return path

  return write


def refusal(path) -> str:
  with pytest.raises(WeightsFileError) as caught:
    reading.read(path)
  assert str(caught.value).startswith(f"{path}: ")
  return str(caught.value)


@pytest.mark.parametrize(("name", "expected"), FILES.items())
def test_a_file_of_pytorch_gives_exactly_what_pytorch_holds(name, expected):
  arrays = reading.read(GOLDEN / name)
  known = np.load(GOLDEN / expected)
  assert set(arrays) == set(known.files)
  for key, array in arrays.items():
    assert (array.dtype, array.shape) == (known[key].dtype, known[key].shape), key
    assert array.tobytes() == known[key].tobytes(), key
    assert isinstance(array, np.ndarray), key
    assert array.flags.c_contiguous and array.flags.writeable, key


@pytest.mark.parametrize("name", ["stream.pth", "archive.pth", "archive_wrapped.pth"])
def test_keys_come_in_the_order_of_the_state_dict(name):
  assert list(reading.read(GOLDEN / name)) == np.load(GOLDEN / FILES[name]).files


@pytest.mark.parametrize("name", ["stream.pth", "archive.pth"])
def test_arrays_of_a_shared_storage_do_not_share_memory(name):
  arrays = reading.read(GOLDEN / name)
  before = arrays["same"].copy()
  arrays["base"][:] = 0
  arrays["expanded"][0, 0] = 0
  np.testing.assert_array_equal(arrays["same"], before)
  assert arrays["expanded"][0, 1] != 0


def test_the_format_follows_from_the_content_not_from_the_name(put):
  assert "base" in reading.read(put((GOLDEN / "tensors.safetensors").read_bytes()))
  assert "base" in reading.read(put((GOLDEN / "archive.pth").read_bytes()))


def test_a_deflated_archive_reads_as_a_stored_one(put):
  path = put(archive(members("archive.pth"), zipfile.ZIP_DEFLATED))
  known = reading.read(GOLDEN / "archive.pth")
  arrays = reading.read(path)
  assert {k: v.tobytes() for k, v in arrays.items()} == {k: v.tobytes() for k, v in known.items()}


def test_text_that_python_2_wrote_as_bytes_is_read(put):
  path = put(stream(b"\x80\x02}U\x01w" + tensor(1, (2, 2), (3, 1)) + b"s.", SIX))
  np.testing.assert_array_equal(reading.read(path)["w"], [[1, 2], [4, 5]])


def test_the_older_rebuild_function_is_known(put):
  entry = tensor(0, (2,), (1,)).replace(b"_rebuild_tensor_v2", b"_rebuild_tensor")
  path = put(stream(one(entry.replace(b"\x89}tR", b"tR")), SIX))
  np.testing.assert_array_equal(reading.read(path)["w"], [0, 1])


def test_bytes_of_a_bool_other_than_0_and_1_are_true(put):
  flags = tensor(0, (3,), (1,), numel=3, storage="torch\nBoolStorage")
  path = put(stream(one(flags), {"0": np.array([0, 2, 255], np.uint8)}))
  assert reading.read(path)["w"].tobytes() == b"\x00\x01\x01"


class Call:
  def __init__(self, function, *arguments):
    self.call = (function, arguments)

  def __reduce__(self):
    return self.call


def hostile_pickles(target: str) -> dict[str, tuple[bytes, str]]:
  command = f"touch {target}"
  text = b"X" + struct.pack("<I", len(command)) + command.encode()
  plant = ("open", (target, "w"))
  return {
    "reduce": (pickle.dumps({"w": Call(os.system, command)}, 2), f"{os.name}.system"),
    "stack global": (pickle.dumps({"w": Call(os.system, command)}, 4), f"{os.name}.system"),
    "os": (b"\x80\x02cos\nsystem\n" + text + b"\x85R.", "os.system"),
    "eval": (pickle.dumps(Call(eval, f"{plant[0]}{plant[1]!r}"), 4), "builtins.eval"),
    "getattr": (pickle.dumps(Call(getattr, "", "join"), 4), "builtins.getattr"),
    "nested attribute": (
      b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93" + text + b"\x85R.",
      "torch.serialization.os.system",
    ),
    "nested below an allowed module": (
      b"\x80\x02ctorch._utils\n_rebuild_tensor.__globals__\n.",
      "torch._utils._rebuild_tensor.__globals__",
    ),
    "allowed name of another module": (b"\x80\x02cos\nSize\n)R.", "os.Size"),
    "storage from bytes": (
      b"\x80\x02ctorch.storage\n_load_from_bytes\n.",
      "torch.storage._load_from_bytes",
    ),
    "namespace": (pickle.dumps({"args": argparse.Namespace(lr=0.1)}, 2), "argparse.Namespace"),
    "numpy scalar": (pickle.dumps({"best": np.float64(0.5)}, 2), "scalar"),
    "extension code": (b"\x80\x02\x82\x01.", "EXT1"),
    "new object": (b"\x80\x02]]\x81.", "NEWOBJ"),
    "new object of a class": (b"\x80\x02cos\nPathLike\n)\x81.", "os.PathLike"),
    "result of a result": (b"\x80\x02cos\ngetcwd\n)R)R.", "os.getcwd"),
    "instance": (b"\x80\x02(ios\nsystem\n.", "INST"),
  }


@pytest.mark.parametrize("kind", hostile_pickles(""))
@pytest.mark.parametrize("container", ["bare pickle", "stream", "archive"])
def test_a_foreign_name_or_instruction_is_refused_by_name_and_not_run(
  kind, container, put, tmp_path
):
  target = tmp_path / "planted"
  pickled, name = hostile_pickles(str(target))[kind]
  content = {
    "bare pickle": pickled,
    "stream": stream(pickled, {}),
    "archive": archive({"a/data.pkl": pickled, "a/version": b"3\n"}),
  }[container]
  message = refusal(put(content))
  assert name in message
  assert "refused" in message and "safetensors" in message
  assert not target.exists()


class Colors(enum.Enum):
  RED = 1


class WithNewArguments:
  """Pickled by NEWOBJ_EX, with a state."""

  def __new__(cls, *arguments, **names):
    return super().__new__(cls)

  def __getnewargs_ex__(self):
    return ((1,), {"name": 2})


def with_itself() -> WithNewArguments:
  thing = WithNewArguments()
  thing.others = [(thing, {thing}, frozenset([thing]))]
  return thing


BESIDE = {
  "namespace": argparse.Namespace(lr=0.1, betas=(0.9, 0.999), output=pathlib.PurePosixPath("x")),
  "counter": collections.Counter("aab"),
  "sets": [set(), {1, "a"}, frozenset({(1, 2)})],
  "ordered": collections.OrderedDict(a=1, b=collections.OrderedDict()),
  "defaults": collections.defaultdict(list, loss=[0.1]),
  "deque": collections.deque([1, 2]),
  "keys": {(1, (2, 3)): 1, 0.5: 2, None: 3, True: 4, b"a": 5, argparse.Namespace: 6, 2**80: 7},
  "numpy": {"best": np.float64(0.5), "curve": np.arange(3.0), "names": np.array(["a", None])},
  "times": [datetime.datetime(2026, 1, 2), datetime.timedelta(1), uuid.UUID(int=1)],
  "enum": Colors.RED,
  "partial": functools.partial(max, 1, key=len),
  "functions": [len, os.path.join, print, Colors],
  "class": WithNewArguments(),
  "bytes": [b"abc", bytearray(b"abc"), bytes(1 << 17), "\u00e9" * (1 << 17)],
  "numbers": [2**31, -(2**63), 2**2000, 1.5, True, None, complex(1, 2), range(3), slice(1)],
  "itself": with_itself(),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_stands_beside_the_weights_is_read_over(kind, protocol, put):
  beside = instructions(BESIDE[kind], protocol)
  inner = wrap(tensor(0, (6,), (1,)), "w")[2:-1]
  for entries in (
    b"X\x04\x00\x00\x00args" + beside + b"X\x05\x00\x00\x00model" + inner,
    b"X\x05\x00\x00\x00model" + inner + b"X\x04\x00\x00\x00args" + beside,
  ):
    pickled = b"\x80" + bytes([protocol]) + b"}(" + entries + b"u."
    parts = {"a/data.pkl": pickled, "a/version": b"3", "a/data/0": SIX["0"].tobytes()}
    for content in (stream(pickled, SIX), archive(parts)):
      arrays = reading.read(put(content))
      np.testing.assert_array_equal(arrays.pop("w"), SIX["0"])
      assert not arrays


def test_what_python_2_wrote_beside_the_weights_is_read_over(put):
  # A NumPy number: its bytes are a text there.
  scalar = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nU\x02f8K\x00K\x01\x87RU\x02\xff\xfetR"
  inner = wrap(tensor(0, (6,), (1,)), "w", "model")[2:-1]
  pickled = b"\x80\x02" + inner + b"U\x04best" + scalar + b"s."
  assert list(reading.read(put(stream(pickled, SIX)))) == ["w"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_an_object_beside_the_weights_is_neither_imported_nor_called(
  protocol, put, tmp_path, monkeypatch
):
  planted = tmp_path / "planted"
  (tmp_path / "evil_module.py").write_text(f"open({str(planted)!r}, 'w')\nclass Evil: pass\n")
  monkeypatch.syspath_prepend(tmp_path)
  command = instructions(Call(os.system, f"touch {planted}"), protocol)
  imported = b"cevil_module\nEvil\n)\x81}b"
  inner = wrap(tensor(0, (6,), (1,)), "w", "model")[2:-1]
  for beside in (command, imported):
    pickled = b"\x80\x04" + inner + b"X\x04\x00\x00\x00args" + beside + b"s."
    assert list(reading.read(put(stream(pickled, SIX)))) == ["w"]
  assert not planted.exists()
  assert "evil_module" not in sys.modules


@pytest.mark.parametrize("wrappers", [(), ("model",)])
def test_an_object_among_the_weights_is_refused_by_its_name(wrappers, put):
  entries = instructions("w") + tensor(0, (6,), (1,)) + instructions("odd")
  for odd, name in (
    (argparse.Namespace(), "argparse.Namespace"),
    (np.zeros(2), "numpy"),
    ({1}, "set"),
  ):
    pickled = wrap(b"}(" + entries + instructions(odd) + b"u", *wrappers)
    message = refusal(put(stream(pickled, SIX)))
    assert "'odd'" in message and name in message and "refused" in message
  # So is a tensor of a kind that is not known.
  sparse = tensor(0, (6,), (1,)).replace(b"_rebuild_tensor_v2", b"_rebuild_sparse_tensor")
  message = refusal(put(stream(wrap(sparse, "odd", *wrappers), SIX)))
  assert "_rebuild_sparse_tensor" in message


def test_a_tensor_with_attributes_is_a_tensor_and_one_of_a_subclass_is_not(put):
  def typed(name: bytes) -> bytes:
    function, arguments = tensor(0, (6,), (1,)).split(b"_v2\n")
    call = function + b"_v2\n" + name + arguments.removesuffix(b"R")
    return b"ctorch._tensor\n_rebuild_from_type_v2\n(" + call + b"}tR"

  path = put(stream(one(typed(b"ctorch\nTensor\n")), SIX))
  np.testing.assert_array_equal(reading.read(path)["w"], SIX["0"])
  message = refusal(put(stream(one(typed(b"ctorchao.quantized\nInt4\n")), SIX)))
  assert "torchao.quantized.Int4" in message


def test_a_moving_average_is_taken_only_where_there_is_nothing_else(put, logged):
  plain, average = (instructions(key) for key in ("model", "model_ema"))
  weights = wrap(tensor(0, (2,), (1,)), "w")[2:-1]
  averaged = wrap(tensor(2, (2,), (1,)), "w")[2:-1]
  both = b"\x80\x02}(" + average + averaged + plain + weights + b"u."
  np.testing.assert_array_equal(reading.read(put(stream(both, SIX)))["w"], [0, 1])
  assert "those under model are taken, not those under model_ema" in logged.text
  alone = b"\x80\x02}" + average + averaged + b"s."
  np.testing.assert_array_equal(reading.read(put(stream(alone, SIX)))["w"], [2, 3])
  assert "those under model_ema are taken, a moving average" in logged.text


def test_a_module_pickled_whole_is_refused(put):
  module = b"(X\x06\x00\x00\x00modulecnets\nNet\nNNtQ)\x81}b"
  assert "one nets.Net, a state dict" in refusal(put(stream(b"\x80\x02" + module + b".", {})))
  message = refusal(put(stream(wrap(module, "model"), {})))
  assert "Under model lies an object of nets.Net that was pickled whole" in message


@pytest.mark.parametrize(
  "pickled",
  [
    b"\x80\x02]r\xff\xff\xff\xff0.",
    b"\x80\x02X\xff\xff\xff\xff.",
    b"\x80\x02T\xff\xff\xff\xff.",
    b"\x80\x04\x95" + b"\xff" * 8 + b"C\x01.",
    b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
    b"\x80\x02}" + b")" + b"q\x00h\x00h\x00\x86" * 200 + b"Ns.",
    b"\x80\x02ctorch\nSize\n)" + b"\x85" * 200_000 + b"\x85R.",
    b"\x80\x02h\x07.",
    b"\x80\x02.",
    b"\x80\x02R.",
    b"\x80\x02]]b.",
    b"\x80\x02NN\x86a.",
    b"\x80\x02u.",
    b"\x80\x02\x8b\xff\xff\xff\x7f.",
    b"\x80\x02\x8b\xff\xff\xff\xff.",
    b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    b"\x80\x04\x8e" + b"\xff" * 8 + b".",
    b"\x80\x05\x96" + b"\xff" * 8 + b".",
    b"\x80\x02}(" + b"2" * 10 + b"u.",
    b"\x80\x02]\x90.",
    b"\x80\x04](K\x01\x90.",
    b"\x80\x02" + b"1" * 3 + b".",
    b"\x80\x02ca\nb\n" + b"q\x00h\x00h\x00\x81" * 200 + b".",
    b"\x80\x04\x8f(" + b")" + b"\x85" * 200_000 + b"\x90.",
    b"\x80\x04(" + b")" + b"\x85" * 200_000 + b"\x91.",
  ],
  ids=lambda pickled: repr(pickled[:12]),
)
def test_a_pickle_that_would_exhaust_memory_or_stack_is_refused(pickled, put):
  refusal(put(prelude() + pickled))


def test_a_pickle_longer_than_any_state_dict_is_refused_where_the_limit_is(put, monkeypatch):
  monkeypatch.setattr(torch_pickle, "_DESCRIPTION_BYTES", 1 << 20)
  path = put(prelude() + b"\x80\x02" + b"]" * (1 << 20) + b".")
  assert "more than 1 MiB" in refusal(path)


@pytest.mark.parametrize(
  ("offset", "shape", "strides"),
  [
    (6, (1,), (1,)),
    (0, (7,), (1,)),
    (0, (2, 3), (4, 1)),
    (2**70, (1,), (1,)),
    (0, (2,), (2**70,)),
    (0, (2**40, 2**40), (0, 0)),
  ],
)
def test_a_tensor_may_not_reach_beyond_its_storage(offset, shape, strides, put):
  message = refusal(put(stream(one(tensor(offset, shape, strides)), SIX)))
  assert "reaches beyond" in message or "impossible shape" in message


@pytest.mark.parametrize(
  ("offset", "shape", "strides"),
  [(-1, (1,), (1,)), (0, (2,), (-1,)), (0, (2,), (1, 1)), (0, 2, 1), (0, (True,), (1,))],
)
def test_a_tensor_with_impossible_geometry_is_refused(offset, shape, strides, put):
  message = refusal(put(stream(one(tensor(offset, shape, strides)), SIX)))
  assert "not described" in message


def test_an_expanded_tensor_may_not_fill_the_memory(put):
  message = refusal(put(stream(one(tensor(0, (2**34,), (0,))), SIX)))
  assert "re-save" in message.lower() and str(2**36) in message


def test_an_empty_tensor_and_the_stride_of_a_single_element_may_be_anything(put):
  content = stream(
    b"\x80\x02}(X\x01\x00\x00\x00a"
    + tensor(100, (0, 2**33), (5, 2**40))
    + b"X\x01\x00\x00\x00b"
    + tensor(5, (1, 1), (2**70, 0))
    + b"u.",
    SIX,
  )
  arrays = reading.read(put(content))
  assert arrays["a"].shape == (0, 2**33)
  assert arrays["b"].tolist() == [[5.0]]


def test_the_declared_size_of_a_storage_must_be_there(put):
  whole = stream(one(tensor(0, (6,), (1,), numel=2**40)), SIX)
  assert "6 elements, 1099511627776 expected" in refusal(put(whole))
  data = struct.pack("<q", 2**40) + SIX["0"].tobytes()
  assert "24 are left" in refusal(put(whole[:-32] + data))
  parts = members("archive.pth")
  parts["archive/data/0"] += b"0000"
  assert "storage '0'" in refusal(put(archive(parts)))
  del parts["archive/data/0"]
  assert "no bytes" in refusal(put(archive(parts)))


def test_one_storage_may_not_have_two_sizes(put):
  pair = tensor(0, (6,), (1,)) + tensor(0, (6,), (1,), numel=5)
  pickled = b"\x80\x02](" + pair + b"e."
  assert "24 bytes in one place and 20" in refusal(put(stream(pickled, SIX)))


@pytest.mark.parametrize("keys", [[], ["1"], ["0", "0"], ["0", "1"], [0], "0"])
def test_the_list_of_storages_must_be_that_of_the_tensors(keys, put):
  content = prelude() + one(tensor(0, (6,), (1,))) + pickle.dumps(keys, 2)
  assert "storages" in refusal(put(content + struct.pack("<q", 6) + SIX["0"].tobytes()))


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_or_one_with_more_behind_is_refused(name, put):
  content = (GOLDEN / name).read_bytes()
  for length in (0, 1, 7, 8, 9, 30, len(content) // 2, len(content) - 1):
    refusal(put(content[:length]))
  refusal(put(content + b"\x00"))
  refusal(put(content + content))


def test_a_changed_byte_of_an_archives_data_is_noticed(put):
  content = bytearray((GOLDEN / "archive.pth").read_bytes())
  content[content.index(members("archive.pth")["archive/data/0"])] ^= 1
  assert "CRC" in refusal(put(bytes(content)))


def test_a_decompression_bomb_is_refused_before_it_unpacks(put):
  parts = {"a/data.pkl": one(tensor(0, (1,), (1,))), "a/data/0": bytes(128 << 20)}
  assert "would unpack to" in refusal(put(archive(parts, zipfile.ZIP_DEFLATED)))


def test_a_big_endian_file_is_refused(put):
  system = {**SYSTEM, "little_endian": False}
  assert "big-endian" in refusal(put(stream(one(tensor(0, (6,), (1,))), SIX, system=system)))
  parts = {**members("archive.pth"), "archive/byteorder": b"big"}
  assert "byte order is b'big'" in refusal(put(archive(parts)))


def test_an_unknown_version_is_refused(put):
  assert "version is 1002" in refusal(put(stream(b"", {}, version=1002)))
  endless = b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b"."
  assert "version is a tuple" in refusal(put(MAGIC + endless))
  parts = {**members("archive.pth"), "archive/version": b"11"}
  assert "version is b'11'" in refusal(put(archive(parts)))


def test_other_zip_archives_are_refused(put):
  assert "0 members data.pkl" in refusal(put(archive({"a.txt": b""})))
  parts = members("archive.pth")
  script = {**parts, "archive/constants.pkl": b""}
  assert "TorchScript" in refusal(put(archive(script)))
  twice = {**parts, "other/data.pkl": parts["archive/data.pkl"]}
  assert "2 members data.pkl" in refusal(put(archive(twice)))
  assert "neither stored nor deflated" in refusal(put(archive(parts, zipfile.ZIP_LZMA)))
  del parts["archive/version"]
  assert "has no member 'version'" in refusal(put(archive(parts)))


def test_what_is_no_checkpoint_is_refused_with_its_first_bytes(put):
  assert "b'<!DOCTYPE'" in refusal(put(b"<!DOCTYPE html>"))


def test_a_file_that_is_missing_or_a_folder_is_refused_in_words(tmp_path):
  assert "No such file" in refusal(tmp_path / "none.pth")
  assert "Is a directory" in refusal(tmp_path)
  assert issubclass(WeightsFileError, errors.UserError)


def wrap(pickled: bytes, *keys: str) -> bytes:
  for key in keys:
    pickled = b"}" + instructions(key) + pickled + b"s"
  return b"\x80\x02" + pickled + b"."


@pytest.mark.parametrize("wrapper", (*torch_checkpoints.WRAPPERS, *torch_checkpoints.AVERAGES))
def test_wrappers_are_looked_through_three_deep(wrapper, put):
  entry = tensor(0, (6,), (1,))
  assert list(reading.read(put(stream(wrap(entry, "w", wrapper), SIX)))) == ["w"]
  thrice = wrap(entry, "w", wrapper, "model", "module")
  assert list(reading.read(put(stream(thrice, SIX)))) == ["w"]
  refusal(put(stream(wrap(entry, "w", wrapper, "model", "module", "model"), SIX)))


def test_a_dictionary_that_holds_itself_ends(put):
  assert "no tensors" in refusal(put(stream(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.", {})))


def test_two_state_dicts_in_one_file_are_refused(put):
  inner = wrap(tensor(0, (6,), (1,)), "w")[2:-1]
  both = b"X\x05\x00\x00\x00model" + inner + b"X\x0a\x00\x00\x00state_dict" + inner
  assert "state_dict and model" in refusal(put(stream(b"\x80\x02}(" + both + b"u.", SIX)))


def test_an_entry_that_is_no_tensor_is_left_out_and_a_file_without_any_refused(put):
  entries = b"X\x01\x00\x00\x00w" + tensor(0, (6,), (1,)) + b"X\x05\x00\x00\x00epochK\x03"
  assert list(reading.read(put(stream(b"\x80\x02}(" + entries + b"u.", SIX)))) == ["w"]
  assert "its keys: ['epoch']" in refusal(put(stream(pickle.dumps({"epoch": 3}, 2), {})))
  assert "one list" in refusal(put(stream(pickle.dumps([3], 2), {})))
  assert "key 3" in refusal(put(stream(one(tensor(0, (6,), (1,)), key=3), SIX)))


def test_a_prefix_that_not_all_keys_share_stays(put):
  pair = b"".join(instructions(key) + tensor(0, (6,), (1,)) for key in ("module.a", "fc.b"))
  arrays = reading.read(put(stream(b"\x80\x02}(" + pair + b"u.", SIX)))
  assert list(arrays) == ["module.a", "fc.b"]


def safetensors(header, data: bytes) -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, dtype="F32", shape=(2,)) -> dict:
  return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
  ("header", "message"),
  [
    ({"a": entry(0, 8), "b": entry(4, 12)}, "invalid offset for tensor `b`"),
    ({"a": entry(0, 8), "b": entry(12, 20)}, "invalid offset for tensor `b`"),
    ({"a": entry(4, 12)}, "invalid offset for tensor `a`"),
    ({"a": entry(0, 8)}, "not fully covered"),
    ({"a": entry(0, 8), "b": entry(8, 24, shape=(4,))}, "not fully covered"),
    ({"a": entry(0, 8, shape=(3,))}, "invalid shape"),
    ({"a": entry(8, 0)}, "invalid offset for tensor `a`"),
    ({"a": entry(0, 2**80, shape=(2**78,))}, "damaged or truncated"),
    ({"a": entry(0, 0, shape=(0, 2**80))}, "damaged or truncated"),
    ({"a": entry(0, 16), "b": entry(16, 16, shape=(0, 2**62))}, "damaged or truncated"),
    ({"a": entry(0, 16, shape=(1,) * 80 + (4,))}, "damaged or truncated"),
    ({"a": entry(0, 16, dtype="F8_E4M3", shape=(16,))}, "the type F8_E4M3; known: BF16, "),
    ({"a": entry(0, 8, shape=(-2,))}, "invalid JSON"),
    ({"a": {"dtype": "F32"}}, "missing field `shape`"),
    ({"a": 3}, "invalid type"),
    ({}, "not fully covered"),
    (b'{"a": 1, "a": 2}', "invalid type"),
    (b"{" * 100_000, "invalid JSON"),
    (b'{"a": ' + b"[" * 100_000, "invalid JSON"),
    (b'{"a": ' + b"9" * 10_000 + b"}", "invalid JSON"),
    (b'{"\xff": 1}', "invalid UTF-8"),
  ],
)
def test_a_safetensors_header_that_does_not_fit_its_data_is_refused(header, message, put):
  assert message in refusal(put(safetensors(header, bytes(16))))


def test_a_safetensors_header_longer_than_its_file_is_refused(put):
  assert "truncated" in refusal(put(struct.pack("<Q", 2**60) + b'{"a": 3}'))


def test_a_safetensors_file_without_tensors_is_refused(put):
  assert "no tensors" in refusal(put(safetensors({}, b"")))


def test_the_texts_of_a_header_are_read_without_its_arrays(put):
  header = {"__metadata__": {"classes": "[]"}, "a": entry(0, 16, dtype="F8_E4M3", shape=(16,))}
  path = put(safetensors(header, bytes(16)))
  assert reading.read_metadata(path) == {"classes": "[]"}
  assert reading.read_metadata(GOLDEN / "archive.pth") == {}
  assert reading.read_metadata(GOLDEN / "stream.pth") == {}
  path.write_bytes(safetensors({"a": entry(0, 16, shape=(4,))}, bytes(16)))
  assert reading.read_metadata(path) == {}
  path.write_bytes(safetensors(header, bytes(15)))
  with pytest.raises(WeightsFileError, match=r"checkpoint\.pth: .*damaged or truncated"):
    reading.read_metadata(path)


def mutations(content: bytes, count: int, seed: int):
  """Copies with a few bytes changed, cut short, or with a piece moved."""
  rng = random.Random(seed)
  for _ in range(count):
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
      changed[rng.randrange(len(changed))] = rng.randrange(256)
    kind = rng.random()
    if kind < 0.2:
      del changed[rng.randrange(len(changed)) :]
    elif kind < 0.3:
      at, source = rng.randrange(len(changed)), rng.randrange(len(changed))
      changed[at:at] = changed[source : source + rng.randrange(40)]
    yield bytes(changed)


def assert_well_formed_or_refused(path: pathlib.Path) -> bool:
  try:
    arrays = reading.read(path)
  except WeightsFileError as error:
    assert re.match(re.escape(str(path)), str(error))
    return False
  assert arrays
  for key, array in arrays.items():
    assert isinstance(key, str) and isinstance(array, np.ndarray)
    assert array.nbytes < 1 << 27
  return True


@pytest.mark.parametrize("name", FILES)
def test_random_damage_is_refused_or_gives_arrays(name, put):
  content = (GOLDEN / name).read_bytes()
  read = [assert_well_formed_or_refused(put(c)) for c in mutations(content, 400, seed=0)]
  assert read.count(False) > 100


@pytest.mark.parametrize("name", ["archive.pth", "archive_wrapped.pth"])
def test_random_damage_of_a_pickle_whose_checksum_is_right_is_refused_or_gives_arrays(name, put):
  parts = members(name)
  pickled = next(member for member in parts if member.endswith("/data.pkl"))
  for changed in mutations(parts[pickled], 300, seed=1):
    assert_well_formed_or_refused(put(archive({**parts, pickled: changed})))
