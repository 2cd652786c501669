"""Weights in several files with an index, and in a folder as Hugging Face's libraries write it."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from hybrid_video import checkpoints, configuration, experiment, initialization, models, weights
from hybrid_video.weights import WeightsFileError, reading, sources

GOLDEN = pathlib.Path(__file__).parent / "golden" / "torch_files"
PARTS = {
  "model-00001-of-00002.safetensors": {"stem.0.weight": np.arange(3, dtype=np.float32)},
  "model-00002-of-00002.safetensors": {
    "layer1.0.conv1.0.weight": np.ones((2, 2), np.float16),
    "fc.bias": np.zeros(2, np.float64),
  },
}
INDEX = "model.safetensors.index.json"


def write(folder: pathlib.Path, parts=PARTS, weight_map=None) -> pathlib.Path:
  """Several files and their index, whose path is returned."""
  for name, arrays in parts.items():
    safetensors.numpy.save_file(arrays, folder / name)
  if weight_map is None:
    weight_map = {key: name for name, arrays in parts.items() for key in arrays}
  index = folder / INDEX
  index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
  return index


def refusal(path: pathlib.Path) -> str:
  with pytest.raises(WeightsFileError) as caught:
    reading.read(path)
  return str(caught.value)


@pytest.mark.parametrize("give", ["index", "folder"])
def test_several_files_are_one_state_dict(give, tmp_path):
  index = write(tmp_path)
  arrays = reading.read(index if give == "index" else tmp_path)
  expected = {key: array for part in PARTS.values() for key, array in part.items()}
  assert arrays.keys() == expected.keys()
  for key, array in expected.items():
    assert arrays[key].dtype == array.dtype
    np.testing.assert_array_equal(arrays[key], array)
  assert sources.locate(str(tmp_path)) == index
  assert sources.locate(str(index)) == index


def test_files_of_pytorch_have_an_index_too(tmp_path):
  content = (GOLDEN / "archive.pth").read_bytes()
  (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(content)
  keys = reading.read(GOLDEN / "archive.pth")
  weight_map = dict.fromkeys(keys, "pytorch_model-00001-of-00001.bin")
  index = tmp_path / "pytorch_model.bin.index.json"
  index.write_text(json.dumps({"weight_map": weight_map}))
  assert list(reading.read(tmp_path)) == list(keys)


def test_a_prefix_is_that_of_all_files_together(tmp_path):
  parts = {
    name: {f"module.{key}": array for key, array in part.items()} for name, part in PARTS.items()
  }
  assert "fc.bias" in reading.read(write(tmp_path, parts))


def test_one_of_several_files_names_the_index(tmp_path):
  write(tmp_path)
  message = refusal(tmp_path / "model-00002-of-00002.safetensors")
  assert "one of 2 files" in message and str(tmp_path / INDEX) in message
  alone = tmp_path / "model-00001-of-00001.safetensors"
  safetensors.numpy.save_file(PARTS["model-00001-of-00002.safetensors"], alone)
  assert list(reading.read(alone)) == ["stem.0.weight"]


def test_a_missing_file_is_named_and_so_is_a_damaged_one(tmp_path):
  index = write(tmp_path)
  part = tmp_path / "model-00002-of-00002.safetensors"
  part.write_bytes(part.read_bytes()[:-1])
  message = refusal(index)
  assert str(index) in message and f"{part}: the safetensors file is damaged" in message
  part.unlink()
  message = refusal(index)
  assert "1 of the 2 files" in message and part.name in message


@pytest.mark.parametrize(
  "name",
  [
    "../other/model.safetensors",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b.safetensors",
    "a\\b.safetensors",
    "a\nb.safetensors",
    ".hidden",
  ],
)
def test_an_index_names_only_files_beside_it(name, tmp_path):
  folder = tmp_path / "folder"
  (tmp_path / "other").mkdir()
  folder.mkdir()
  safetensors.numpy.save_file({"w": np.zeros(1)}, tmp_path / "other" / "model.safetensors")
  message = refusal(write(folder, weight_map={"w": name}))
  assert "expected a file in its folder" in message
  assert "\n" not in message.removeprefix(str(folder))


def test_an_index_and_files_that_do_not_agree_are_refused(tmp_path):
  names = list(PARTS)
  weight_map = {"stem.0.weight": names[0], "fc.bias": names[1]}
  message = refusal(write(tmp_path, weight_map=weight_map))
  assert f"its file {names[1]} has besides layer1.0.conv1.0.weight" in message
  keys = dict.fromkeys(PARTS[names[1]], names[1])
  message = refusal(write(tmp_path, weight_map={**keys, "other.weight": names[1]}))
  assert f"its file {names[1]} has not other.weight" in message


@pytest.mark.parametrize(
  "content",
  ["{", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "{" * 99999],
)
def test_other_json_is_refused(content, tmp_path):
  (tmp_path / "config.json").write_text(content)
  message = refusal(tmp_path / "config.json")
  assert str(tmp_path / "config.json") in message and "weight" in message


def test_an_index_that_names_itself_ends(tmp_path):
  message = refusal(write(tmp_path, {}, {"w": INDEX}))
  assert "neither a PyTorch checkpoint nor a safetensors" in message


def test_a_folder_without_weights_is_refused_in_words(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(
    sources.SourceError, match=r"is a folder and has none of model\.safetensors, "
  ):
    sources.locate(str(tmp_path))


def test_a_run_starts_from_a_folder_of_files_but_from_its_own_by_checkpoints(tmp_path):
  model = models.create("r2plus1d_18", num_classes=2, seed=1, width=4)
  weights.save(model, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text("{}")
  config = configuration.default_config()
  config.model.name, config.model.width = "r2plus1d_18", 4
  config.init_from = str(tmp_path)
  description = checkpoints.Description(experiment.from_config(config), ("a", "b"))
  params, _ = initialization.variables(None, description)
  kernel = model.cnn.stem.conv.spatial.kernel[...]
  np.testing.assert_array_equal(params["cnn"]["stem"]["conv"]["spatial"]["kernel"], kernel)
  # An exported file beside checkpoints does not come before them.
  (tmp_path / checkpoints.FOLDER).mkdir()
  with pytest.raises(checkpoints.CheckpointError):
    initialization.variables(None, description)
