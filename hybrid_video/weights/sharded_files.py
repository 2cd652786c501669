"""Weights that Hugging Face's libraries saved: a folder, and the index of several files in it.

In: a path as a user gives it, or an index. Out: the path of the file to read, or the files that an
index names with the keys that each holds.

Format: https://huggingface.co/docs/transformers/big_models, "Sharded checkpoints".
"""

import json
import os
import pathlib
import re

from hybrid_video import errors
from hybrid_video.weights.weights_errors import WeightsFileError

# What a folder has its weights in, the first that is there.
FILES = (
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
# No separator of any system, and nothing that is hidden or leads upwards.
_PLAIN_NAME = re.compile(r"\w[\w.-]*")
# The largest known have a few hundred kilobytes.
_INDEX_BYTES = 64 << 20


def in_folder(folder: os.PathLike | str) -> pathlib.Path | None:
  """The file of weights in a folder, or the index of several; None where there is none."""
  paths = (pathlib.Path(folder) / name for name in FILES)
  return next((path for path in paths if path.is_file()), None)


def check_is_whole(path: os.PathLike | str) -> None:
  """Refuses one of several files, by its name.

  Raises:
    WeightsFileError: it is; the message has the index to give.
  """
  path = pathlib.Path(path)
  shard = _SHARD.fullmatch(path.name)
  if shard and int(shard["count"]) > 1:
    index = path.with_name(f"{shard['stem']}{shard['suffix']}.index.json")
    raise WeightsFileError(
      f"{errors.printable(path)} is one of {int(shard['count'])} files that the weights are in: give "
      f"their index, {errors.printable(index)}, or their folder."
    )


def is_index(start: bytes) -> bool:
  """Whether a file's first 9 bytes may be those of an index, which is JSON.

  A safetensors file may begin with the same letter, in the length of its header, but has a zero there.
  """
  return start[:1] == b"{" and b"\0" not in start


def read_index(path: os.PathLike | str) -> dict[pathlib.Path, set[str]]:
  """The files that an index names, in its order, with the keys that it says are in each.

  Args:
    path: of the index; the files lie beside it.

  Raises:
    WeightsFileError: it is no index, is too large, names no file, or one that is not in its folder.
      The message does not name the index.
  """
  folder = pathlib.Path(path).parent
  with open(path, "rb") as file:
    content = file.read(_INDEX_BYTES + 1)
  if len(content) > _INDEX_BYTES:
    raise WeightsFileError(f"it is larger than an index can be, {_INDEX_BYTES >> 20} MiB.")
  try:
    names = json.loads(content)["weight_map"]
  except (ValueError, RecursionError, TypeError, KeyError) as error:
    raise WeightsFileError(
      "it is no index of weights: JSON with a `weight_map`, keys to files, is expected. Give a file of "
      "weights, or the index of several."
    ) from error
  if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
    raise WeightsFileError(
      "its `weight_map` is damaged: it is expected to have a file for each key."
    )
  if not names:
    raise WeightsFileError("its `weight_map` is empty: it holds no weights.")
  shards: dict[pathlib.Path, set[str]] = {}
  for key, name in names.items():
    if not _PLAIN_NAME.fullmatch(name):
      raise WeightsFileError(
        f"it names the file {name!a}, expected a file in its folder, such as "
        "'model-00001-of-00002.safetensors'. Download the weights again from where you trust."
      )
    shards.setdefault(folder / name, set()).add(key)
  missing = [shard.name for shard in shards if not shard.is_file()]
  if missing:
    raise WeightsFileError(
      f"{len(missing)} of the {len(shards)} files that it names are not in {errors.printable(folder)}: "
      f"{errors.shown(missing)}. Put them there."
    )
  return shards


def check_keys(shard: pathlib.Path, keys: set[str], expected: set[str]) -> None:
  """Sees that a file holds what the index says.

  Args:
    shard: its path.
    keys: of its arrays.
    expected: those that the index says are in it.

  Raises:
    WeightsFileError: a key is missing, or one more there.
  """
  for what, those in (("has not", expected - keys), ("has besides", keys - expected)):
    if those:
      raise WeightsFileError(
        f"its file {shard.name} {what} {errors.shown(sorted(those))}: index and "
        "files are not of one network. Download them again."
      )
