"""TFDS's own ways to the stored records: names, configs, splits, sequential and random access."""

import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from hybrid_video import datasets, errors
from hybrid_video.datasets import builder, hmdb51, records, splits, tfds_builders
from hybrid_video.decoding import storing, worker_pool

ROOT = pathlib.Path(__file__).parent.parent
# How the session's records of the made videos are stored.
CONFIG = "38x50-q90"
TRAIN, TEST = "split1_train", "split2_test"


@pytest.fixture(scope="module")
def records_dir(made_records) -> pathlib.Path:
  return pathlib.Path(made_records.folder).parents[2]


@pytest.fixture(scope="module")
def made(records_dir) -> tfds.core.DatasetBuilder:
  return tfds.builder("made_actions", data_dir=records_dir)


@pytest.fixture(scope="module")
def several(made_folder, tmp_path_factory) -> pathlib.Path:
  """The made videos at two scales, and some of them once more at one of these."""
  folder = tmp_path_factory.mktemp("several")
  listed = datasets.read("made_actions", made_folder)
  for scale in (storing.StoredScale(24, 32), storing.StoredScale(24, 0, 60)):
    builder.build(listed, str(folder), scale, workers=2)
  few = datasets.listing.make("made_actions", listed.folder, listed.videos[:6])
  builder.build(few, str(folder), storing.StoredScale(24, 32), workers=2)
  return folder


def names(data: tf.data.Dataset) -> list[str]:
  return [example["name"].decode() for example in data.as_numpy_iterator()]


def read_names(of: tfds.core.DatasetBuilder, split, **options) -> list[str]:
  decoders = tfds.decode.PartialDecoding({"name": tfds.features.Text()})
  return names(of.as_dataset(split=split, decoders=decoders, **options))


# Names.


def test_importing_the_data_sets_registers_their_builders_without_tensorflow():
  script = """
import sys
import hybrid_video.datasets
import tensorflow_datasets as tfds
names = {tfds.builder_cls(name).DATASET: name for name in sys.argv[1:]}
assert set(names) == set(hybrid_video.datasets.READERS), names
assert "tensorflow" not in sys.modules
# TFDS's own builder of this name is still there.
assert tfds.builder_cls("ucf101").__module__.startswith("tensorflow_datasets.")
assert {"hmdb51", "hybrid_video_ucf101", "ucf101", "mnist"} <= set(tfds.list_builders())
"""
  ours = ["hybrid_video_ucf101" if name == "ucf101" else name for name in datasets.READERS]
  command = [sys.executable, "-W", "error", "-c", script, *ours]
  subprocess.run(command, check=True, cwd=ROOT)


def test_a_builder_is_found_by_name_and_reads_what_is_stored(made, made_records):
  assert isinstance(made, tfds_builders.MadeActions)
  assert made.data_dir == made_records.folder and made.builder_config_name == CONFIG
  assert made.info.full_name == f"made_actions/{CONFIG}/{builder.VERSION}"
  assert made.is_prepared()
  made.download_and_prepare()
  assert made.info.features["label"].names == list(made_records.class_names)
  assert made.info.dataset_size == made_records.record_bytes
  examples = list(made.as_dataset(split="videos").as_numpy_iterator())
  assert len(examples) == len(made_records)
  for name, column in {
    "label": made_records.labels,
    "fps": made_records.fps,
    "split_codes": made_records.split_codes,
  }.items():
    np.testing.assert_array_equal([example[name] for example in examples], column)
  for name, column in {"name": made_records.names, "group": made_records.groups}.items():
    assert [example[name].decode() for example in examples] == column.tolist()
  for video_id in (0, 7, len(made_records) - 1):
    video = examples[video_id]["video"]
    assert len(video) == made_records.num_frames[video_id]
    (frame,) = made_records.read_frames(video_id, np.array([3]))
    np.testing.assert_array_equal(video[3], tf.io.decode_jpeg(frame))


def test_the_index_is_the_one_that_the_build_gave(made, made_records):
  for name in ("dataset", "folder", "class_names", "shards", "jpeg_quality", "missing", "broken"):
    assert getattr(made.records, name) == getattr(made_records, name)
  for name in ("names", "groups", "labels", "offset", "scan_crc", "header_ids", "first_frame"):
    np.testing.assert_array_equal(getattr(made.records, name), getattr(made_records, name))


def test_the_builder_of_ucf101_reads_its_folder(made_folder, tmp_path):
  listed = datasets.read("made_actions", made_folder)
  few = datasets.listing.make("ucf101", listed.folder, listed.videos[:3])
  stored = builder.build(few, str(tmp_path), storing.StoredScale(24, 32), workers=1)
  one = tfds.builder("hybrid_video_ucf101", data_dir=tmp_path)
  assert one.data_dir == stored.folder
  assert read_names(one, "videos") == stored.names.tolist()
  (path,) = one.info.splits["videos"].filepaths
  assert str(path) == stored.shards[0]


# Splits.


def test_splits_are_the_official_lists(made, made_records):
  known = ["train", "test", "unused"]
  expected = ["videos", *(f"split{i}_{name}" for i in (1, 2, 3) for name in known)]
  assert list(made.info.splits) == expected
  for number in (1, 2, 3):
    for name, code in zip(known, (splits.TRAIN, splits.TEST, splits.UNUSED), strict=True):
      split = f"split{number}_{name}"
      video_ids = splits.with_code(made_records, number, code)
      assert made.info.splits[split].num_examples == len(video_ids)
      assert len(made.as_dataset(split=split)) == len(video_ids)
      assert read_names(made, split) == made_records.names[video_ids].tolist()
  assert made.info.splits[TRAIN].num_examples == 24
  assert made.info.splits["split1_test"].num_examples == 8


def test_splits_can_be_sliced_and_added(made, made_records):
  train = splits.with_code(made_records, 1, splits.TRAIN)
  test = splits.with_code(made_records, 2, splits.TEST)
  everything = np.arange(len(made_records))
  expected = {
    "videos[:10]": everything[:10],
    "videos[-3:]": everything[-3:],
    "videos[0shard]": everything,
    "all": everything,
    f"{TRAIN}[5:9]": train[5:9],
    f"{TRAIN}[:25%]": train[:6],
    f"{TRAIN}[20:] + {TEST}": np.concatenate([train[20:], test]),
    f"{TEST}+all": np.concatenate([test, everything]),
  }
  for split, video_ids in expected.items():
    np.testing.assert_array_equal(made.info.splits.video_ids(split), video_ids)
    assert made.info.splits[split].num_examples == len(video_ids)
  assert read_names(made, f"{TRAIN}[5:9]") == made_records.names[train[5:9]].tolist()
  halves = [made.info.splits.video_ids(half) for half in tfds.even_splits(TRAIN, 2)]
  np.testing.assert_array_equal(np.concatenate(halves), train)
  with pytest.raises(ValueError, match="Unknown split 'split4_train'"):
    made.as_dataset(split="split4_train")


def test_where_a_list_lies_in_the_record_files_is_right_for_tfds_own_reader(made_folder, tmp_path):
  original = builder.SHARD_VIDEOS
  builder.SHARD_VIDEOS = 5
  try:
    listed = hmdb51.read(made_folder, official=False)
    builder.build(listed, str(tmp_path), storing.StoredScale(24, 32), workers=2)
  finally:
    builder.SHARD_VIDEOS = original
  of = tfds.builder("hmdb51_layout", data_dir=tmp_path)
  assert of.info.splits["videos"].num_shards == 7
  for split in (TRAIN, TEST, f"{TRAIN}[3:17]", "videos", "videos[4:11]"):
    records_of_list = []
    for one in of.info.splits[split].file_instructions:
      data = tf.data.TFRecordDataset(one.filename).skip(one.skip).take(one.take)
      records_of_list += list(data.as_numpy_iterator())
    video_ids = of.info.splits.video_ids(split).tolist()
    assert records_of_list == [of.records.read_record(video_id) for video_id in video_ids]
    assert sum(of.info.splits[split].shard_lengths) == len(video_ids)


# Sequential access.


def test_load_gives_several_splits_and_pairs(records_dir, made_records):
  train, test = tfds.load(
    "made_actions", split=[TRAIN, TEST], data_dir=records_dir, as_supervised=True
  )
  assert (len(train), len(test)) == (24, 8)
  video, label = next(iter(train))
  video_id = splits.with_code(made_records, 1, splits.TRAIN)[0]
  assert video.shape == (made_records.num_frames[video_id], 38, 50, 3)
  assert label == made_records.labels[video_id]
  assert set(tfds.load("made_actions", data_dir=records_dir)) >= {"videos", TRAIN, TEST}


def test_shuffling_takes_single_videos_and_follows_the_seed(made):
  def order(seed: int) -> list[str]:
    config = tfds.ReadConfig(shuffle_seed=seed, shuffle_reshuffle_each_iteration=False)
    return read_names(made, TRAIN, shuffle_files=True, read_config=config)

  straight = read_names(made, TRAIN)
  assert order(1) == order(1) != order(2)
  assert order(1) != straight and sorted(order(1)) == sorted(straight)


def test_what_else_tfds_can_be_asked_for(made, made_records):
  train = splits.with_code(made_records, 1, splits.TRAIN)
  context = tf.distribute.InputContext(num_input_pipelines=3, input_pipeline_id=1)
  config = tfds.ReadConfig(input_context=context, add_tfds_id=True)
  decoders = {"video": tfds.decode.SkipDecoding()}
  data = made.as_dataset(split=TRAIN, read_config=config, decoders=decoders)
  examples = list(data.as_numpy_iterator())
  assert [e["name"].decode() for e in examples] == made_records.names[train[1::3]].tolist()
  file = pathlib.Path(made_records.shards[0]).name
  assert [e["tfds_id"].decode() for e in examples] == [f"{file}__{i}" for i in train[1::3]]
  frames = np.arange(made_records.num_frames[train[1]])
  assert examples[0]["video"].tolist() == made_records.read_frames(int(train[1]), frames)
  repeated = tfds.ReadConfig(repeat_filenames=True)
  assert (
    made.as_dataset(split=TRAIN, read_config=repeated).cardinality() == tf.data.INFINITE_CARDINALITY
  )


# Random access.


def test_random_access_gives_what_sequential_access_gives(made):
  source = made.as_data_source(TRAIN)
  sequence = list(made.as_dataset(split=TRAIN).as_numpy_iterator())
  assert len(source) == len(sequence) == 24
  order = np.random.default_rng(0).permutation(24).tolist()
  for i, several in zip(order, source.__getitems__(order), strict=True):
    one = source[i]
    assert set(one) == set(several) == set(sequence[i])
    for name, value in sequence[i].items():
      np.testing.assert_array_equal(one[name], several[name])
      if name != "video":
        np.testing.assert_array_equal(one[name], value)
    assert one["video"].shape == sequence[i]["video"].shape and one["video"].dtype == np.uint8
    # Without TensorFlow, TFDS decodes JPEG by another library, whose transform rounds differently.
    assert np.abs(one["video"].astype(int) - sequence[i]["video"]).max() <= 8
  assert [example["name"] for example in source] == [example["name"] for example in sequence]
  with pytest.raises(IndexError):
    source[24]


def test_random_access_of_slices_of_all_splits_and_of_bytes(made, records_dir, made_records):
  assert set(made.as_data_source()) == set(made.info.splits)
  two = made.as_data_source([f"{TRAIN}[:3]", TEST])
  assert [len(source) for source in two] == [3, 8]
  raw = made.as_data_source("videos", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
  assert raw[5] == made_records.read_record(5)
  source = tfds.data_source("made_actions", split=TEST, data_dir=records_dir)
  assert source[2]["name"] == two[1][2]["name"]
  # Frames as they are stored, for those who decode some of them.
  method = tfds.decode.DeserializeMethod.DESERIALIZE_NO_DECODE
  example = made.as_data_source(TEST, deserialize_method=method)[2]
  video_id = int(splits.with_code(made_records, 2, splits.TEST)[2])
  (frame,) = made_records.read_frames(video_id, np.array([4]))
  assert example.features.feature["video"].bytes_list.value[4] == frame


def test_random_access_can_be_sent_to_other_processes(made):
  source = made.as_data_source(TEST)
  sent = pickle.loads(pickle.dumps(source))
  assert len(sent) == len(source)
  np.testing.assert_array_equal(sent[3]["video"], source[3]["video"])


# Configs.


def test_a_config_is_a_scale_and_the_only_one_is_the_default(several):
  short = tfds.builder("made_actions/24short-q60", data_dir=several)
  assert short.builder_config_name == "24short-q60"
  assert short.records.jpeg_quality == 60 and len(short.records) == 32
  folders = sorted(path.name for path in (several / "made_actions").glob("24x32-q75-*"))
  assert len(folders) == 2
  lengths = []
  for folder in folders:
    one = tfds.builder(f"made_actions/{folder}", data_dir=several)
    assert isinstance(one, tfds_builders.MadeActions)
    assert one.info.full_name == f"made_actions/{folder}/{builder.VERSION}"
    lengths.append(one.info.splits["videos"].num_examples)
  assert sorted(lengths) == [6, 32]
  for config, choices in {"": [*folders, "24short-q60"], "/24x32-q75": folders}.items():
    with pytest.raises(tfds_builders.ConfigError, match="several sets") as error:
      tfds.builder(f"made_actions{config}", data_dir=several)
    assert all(choice in str(error.value) for choice in choices)


def test_an_unknown_config_is_an_error_with_the_nearest(records_dir):
  for config in ("38x50-q9O", "38x50-q90-0123456789ab", "38x50"):
    with pytest.raises(tfds_builders.ConfigError, match="there is no config") as error:
      tfds.builder(f"made_actions/{config}", data_dir=records_dir)
    assert f"Did you mean {CONFIG}?" in str(error.value)
  assert issubclass(tfds_builders.ConfigError, errors.UserError)


def test_what_is_not_stored_says_how_to_store_it(records_dir, tmp_path):
  for of, scale in {
    tfds.builder("hmdb51", data_dir=tmp_path): "128x171-q75",
    tfds.builder("made_actions/48short-q80", data_dir=records_dir): "48short-q80",
  }.items():
    assert not of.is_prepared() and not of.info.splits
    for call in (of.download_and_prepare, of.as_dataset, of.as_data_source, lambda: of.records):  # noqa: B023
      with pytest.raises(
        tfds_builders.NotStoredError, match=f"not stored at the scale {scale}"
      ) as error:
        call()
    assert "main.py --mode=inspect" in str(error.value)
  assert "--config.stored.height=48 --config.stored.width=0" in str(error.value)
  assert issubclass(tfds_builders.NotStoredError, errors.UserError)
  with pytest.raises(tfds_builders.NotStoredError):
    tfds.load("hmdb51", split=TRAIN, data_dir=tmp_path)


def test_a_folder_of_videos_is_stored_by_download_and_prepare(made_folder, tmp_path, monkeypatch):
  config = tfds.download.DownloadConfig(manual_dir=made_folder)
  data = tfds.load(
    "hmdb51_layout/24x32-q50",
    split=TRAIN,
    data_dir=tmp_path,
    download_and_prepare_kwargs={"download_config": config},
  )
  assert len(data) == 24
  assert next(iter(data))["video"].shape[1:] == (24, 32, 3)
  monkeypatch.setattr(worker_pool, "store_videos", None)
  again = tfds.builder("hmdb51_layout", data_dir=tmp_path)
  again.download_and_prepare(download_config=config)
  assert again.info.splits[TRAIN].num_examples == 24


# Damage.


def test_damage_is_reported_by_both_kinds_of_access(made_folder, tmp_path):
  listed = hmdb51.read(made_folder, official=False)
  stored = builder.build(listed, str(tmp_path), storing.StoredScale(24, 32), workers=2)
  path = pathlib.Path(stored.shards[0])
  data = bytearray(path.read_bytes())
  data[int(stored.offset[3] + stored.length[3] // 2)] ^= 1
  path.write_bytes(data)
  of = tfds.builder("hmdb51_layout", data_dir=tmp_path)
  source = of.as_data_source("videos")
  assert source[2]["name"].decode() == stored.names[2]
  with pytest.raises(records.RecordsError, match="Delete this file"):
    source[3]
  with pytest.raises(tf.errors.DataLossError):
    list(of.as_dataset(split="videos[3:4]"))
  path.with_name(f"{path.name}.index.npz").unlink()
  with pytest.raises(records.RecordsError, match="index is missing or damaged"):
    _ = tfds.builder("hmdb51_layout", data_dir=tmp_path).info.splits
