import pathlib

from conftest import REAL_CLIPS, REAL_LISTS, made_clip_name, moving_square, write_lists
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from hybrid_video.datasets import made_actions, records, video_files
from hybrid_video.datasets.hmdb51 import hmdb51_dataset_builder as hmdb51
import input_pipeline

GOLF, BOW, WAVE = REAL_LISTS
SCALE = video_files.StoredScale(56, 75)


def prepare(folder: pathlib.Path, place: pathlib.Path, *, allow_missing: bool = False):
  return input_pipeline.prepare(
    dataset="hmdb51",
    data_dir=str(folder),
    records_dir=str(place),
    scale=SCALE,
    allow_missing=allow_missing,
    made_films=0,
    seed=0,
  )


def test_each_video_is_stored_once_with_all_that_is_known_of_it(real_folder, tmp_path):
  found = prepare(real_folder, tmp_path / "records")
  assert found.class_names == ("golf", "shoot_bow", "wave")
  assert found.names.tolist() == [GOLF, BOW, WAVE]
  assert found.labels.tolist() == [0, 1, 2]
  assert found.films.tolist()[2] == "RATRACE"
  assert found.num_frames.tolist() == [89, 81, 72]
  assert found.fps.tolist() == [30.0, 30.0, 30.0]
  assert found.split_codes.tolist() == [list(REAL_LISTS[name][1]) for name in found.names]
  assert found.frame_size == (56, 75)


def test_tfds_itself_reads_the_records(real_folder, tmp_path):
  prepare(real_folder, tmp_path / "records")
  config = hmdb51.make_config(real_folder, SCALE)
  builder = hmdb51.Builder(config=config, data_dir=tmp_path / "records")
  example = list(tfds.as_numpy(builder.as_dataset(split="videos")))[2]
  assert example["video"].shape == (72, 56, 75, 3)
  assert example["tags"]["quality"] == b"goo"
  assert example["name"].decode() == WAVE


def test_a_record_is_fetched_by_place_whatever_was_read_before(made_records):
  for place in (31, 0, 17):
    example = made_records.fetch(tf.constant(place))
    assert example["name"].numpy().decode() == made_records.names[place]
    assert len(example["video"]) == made_records.num_frames[place]


def test_official_lists_are_selected_by_split(real_folder, tmp_path):
  found = prepare(real_folder, tmp_path / "records")
  names = {
    (split, which): set(found.names[input_pipeline.select(found, split, which)])
    for split, which in [(1, "train"), (2, "train"), (2, "test"), (3, "train"), (3, "test")]
  }
  assert names == {
    (1, "train"): {GOLF, BOW, WAVE},
    (2, "train"): {GOLF},
    (2, "test"): {BOW, WAVE},
    (3, "train"): {BOW, WAVE},
    (3, "test"): {GOLF},
  }
  with pytest.raises(ValueError, match="test list of split 1 has no video"):
    input_pipeline.select(found, 1, "test")
  with pytest.raises(ValueError, match="splits are 1 to 3"):
    input_pipeline.select(found, 4, "test")


def test_missing_videos_are_counted_and_named_before_anything_is_decoded(real_folder, tmp_path):
  (real_folder / "videos" / WAVE).unlink()
  with pytest.raises(hmdb51.MissingVideosError, match="1 of the 3 listed videos") as error:
    prepare(real_folder, tmp_path / "records")
  assert WAVE in str(error.value)
  assert "--config.allow_missing=True" in str(error.value)
  assert not list((tmp_path / "records").rglob("*.tfrecord*"))
  found = prepare(real_folder, tmp_path / "records", allow_missing=True)
  assert found.missing == (WAVE,)
  assert found.names.tolist() == [GOLF, BOW]
  assert found.class_names == ("golf", "shoot_bow", "wave")
  # Records that were made by leave do not pass for whole ones afterwards.
  with pytest.raises(hmdb51.MissingVideosError, match="1 listed videos are not in the records"):
    prepare(real_folder, tmp_path / "records")


def test_all_broken_videos_are_named_at_once(real_folder, tmp_path):
  for name in (WAVE, GOLF):
    (real_folder / "videos" / name).unlink()
  (real_folder / "videos" / WAVE).write_bytes((REAL_CLIPS / WAVE).read_bytes()[:5000])
  (real_folder / "videos" / GOLF).write_bytes(b"")
  with pytest.raises(hmdb51.MissingVideosError, match="2 of 3 video files cannot") as error:
    prepare(real_folder, tmp_path / "records")
  assert WAVE in str(error.value)
  assert GOLF in str(error.value)
  assert "cut short" in str(error.value)
  # What stopped half way never passes for a data set.
  assert not list((tmp_path / "records").rglob("dataset_info.json"))
  found = prepare(real_folder, tmp_path / "records", allow_missing=True)
  assert found.names.tolist() == [BOW]
  assert set(found.broken) == {WAVE, GOLF}
  assert "empty" in found.broken[GOLF]


def test_other_files_in_the_folder_mean_other_records(real_folder, tmp_path):
  before = hmdb51.make_config(real_folder, SCALE).name
  assert hmdb51.make_config(real_folder, SCALE).name == before
  (real_folder / "videos" / WAVE).unlink()
  (real_folder / "videos" / WAVE).symlink_to(REAL_CLIPS / GOLF)
  assert hmdb51.make_config(real_folder, SCALE).name != before


def test_a_video_of_one_frame_is_trained_on_as_its_frame_repeated(tmp_path):
  name = made_clip_name("still")
  folder = tmp_path / "set"
  write_lists(folder, {name: ("still", (1, 1, 1))})
  made_actions.write_avi(folder / name, moving_square(1), 25)
  found = prepare(folder, tmp_path / "records")
  settings = input_pipeline.ClipSettings(crop=48)
  plan = input_pipeline.plan_evaluation(found, np.array([0]), settings)
  (batch,) = input_pipeline.evaluation_batches(found, plan, settings, batch_size=1)
  assert batch["clips"].shape == (1, 16, 48, 48, 3)
  assert (batch["clips"] == batch["clips"][:, :1]).all()


def test_a_damaged_record_is_reported_with_its_folder(real_folder, tmp_path):
  prepare(real_folder, tmp_path / "records")
  (shard,) = (tmp_path / "records").rglob("*.tfrecord*")
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 0xFF
  shard.write_bytes(data)
  (shard.parent / "index.npz").unlink()
  with pytest.raises(records.RecordsError, match="damaged") as error:
    prepare(real_folder, tmp_path / "records")
  assert str(shard.parent) in str(error.value)
