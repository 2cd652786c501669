"""The index of records: what damage it notices, what it hands out, how it reads."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from hybrid_video.datasets import builder, hmdb51, records
from hybrid_video.decoding import jpeg_stripes, storing
from hybrid_video.sampling import plans
from hybrid_video.sampling.clip_settings import EvaluationSettings
import input_pipeline

SCALE = storing.StoredScale(38, 50, 90)


@pytest.fixture(scope="module")
def own(made_folder, tmp_path_factory):
  """Records of the made videos that a test may damage and fix again."""
  folder = str(tmp_path_factory.mktemp("own"))
  return builder.build(hmdb51.read(made_folder, official=False), folder, SCALE, workers=2)


def rebuilt(own: records.Records, made_folder: pathlib.Path) -> records.Records:
  folder = pathlib.Path(own.folder).parents[2]
  return builder.build(hmdb51.read(made_folder, official=False), str(folder), SCALE, workers=2)


def digest_of(own: records.Records) -> str:
  index = np.load(f"{own.shards[0]}.index.npz", allow_pickle=False)
  return str(index["about"][1])


def test_damage_anywhere_in_an_index_file_is_noticed(own):
  path = pathlib.Path(f"{own.shards[0]}.index.npz")
  whole, digest = path.read_bytes(), digest_of(own)
  rng = np.random.default_rng(0)
  try:
    assert records.read_shard_index(own.shards[0], digest) is not None
    for at in [0, len(whole) - 1, *rng.integers(0, len(whole), 300).tolist()]:
      damaged = bytearray(whole)
      damaged[at] ^= 1 << int(rng.integers(8))
      path.write_bytes(damaged)
      assert records.read_shard_index(own.shards[0], digest) is None
    for length in [0, 1, 3, 4, 5, *rng.integers(0, len(whole), 20).tolist()]:
      path.write_bytes(whole[:length])
      assert records.read_shard_index(own.shards[0], digest) is None
  finally:
    path.write_bytes(whole)


def test_an_index_counts_for_its_own_record_file_alone(own):
  path, digest = pathlib.Path(own.shards[0]), digest_of(own)
  assert records.read_shard_index(str(path), digest) is not None
  assert records.read_shard_index(str(path), "0" * 64) is None
  data = path.read_bytes()
  try:
    path.write_bytes(data[:-1])
    assert records.read_shard_index(str(path), digest) is None
    path.write_bytes(data + b"\0")
    assert records.read_shard_index(str(path), digest) is None
    path.unlink()
    assert records.read_shard_index(str(path), digest) is None
  finally:
    path.write_bytes(data)


def test_a_flipped_byte_is_reported_when_its_frame_is_read_and_never_trained_on(own, made_folder):
  path, video_id, frame = pathlib.Path(own.shards[0]), 5, 3
  row = own.first_frame[video_id] + frame
  at = int(own.offset[video_id] + own.scan_at[row] + own.scan_bytes[row] // 2)
  data = path.read_bytes()
  before = own.read_stripe(video_id, np.array([frame]))
  flipped = bytearray(data)
  flipped[at] ^= 1
  # In video_id, as a failing disk would: the length stays.
  path.write_bytes(flipped)
  assert len(rebuilt(own, made_folder)) == len(own)
  with pytest.raises(records.RecordsError, match="Delete this file") as error:
    own.read_stripe(video_id, np.array([frame]))
  assert str(path) in str(error.value) and own.names[video_id] in str(error.value)
  # Other frames and other videos are whole.
  own.read_stripe(video_id, np.array([frame + 1]))
  own.read_stripe(video_id + 1, np.array([frame]))
  with pytest.raises(records.RecordsError, match="Delete this file"):
    own.read_record(video_id)
  # Also by way of the batches, in threads and in TensorFlow's own operations.
  settings = EvaluationSettings(frames=4, crop=24)
  views = plans.evaluation_views(own, np.array([video_id]), settings)
  views.clips.frames[:] = frame
  with pytest.raises(records.RecordsError, match="Delete this file"):
    list(input_pipeline.evaluation_batches(own, views, settings, batch_size=1))
  with pytest.raises(tf.errors.DataLossError):
    own.stripe(tf.constant(video_id, tf.int64), tf.constant([frame], tf.int64))
  # What the message says to do helps, and gives the same file again.
  path.unlink()
  again = rebuilt(own, made_folder)
  assert again.read_stripe(video_id, np.array([frame])) == before
  assert path.read_bytes() == data


def test_a_record_file_that_vanishes_while_it_is_read_is_named(own):
  path = pathlib.Path(own.shards[0])
  hidden = path.with_suffix(".hidden")
  path.rename(hidden)
  try:
    for read in (lambda: own.read_stripe(0, np.array([0])), lambda: own.read_record(0)):
      with pytest.raises(records.RecordsError, match="stores it again") as error:
        read()
      assert str(path) in str(error.value)
  finally:
    hidden.rename(path)


def test_both_ways_of_reading_give_the_same_bytes_in_any_order(own):
  rng = np.random.default_rng(1)
  for video_id in rng.permutation(len(own))[:8].tolist():
    frames = rng.integers(0, own.num_frames[video_id], 5)
    graph = own.stripe(tf.constant(video_id, tf.int64), tf.constant(frames))
    assert own.read_stripe(video_id, frames) == graph.numpy()


def test_a_record_read_at_its_offset_is_the_one_that_tensorflow_reads_in_order(own):
  in_order = list(tf.data.TFRecordDataset(own.shards).as_numpy_iterator())
  assert len(in_order) == len(own)
  for video_id in (17, 0, len(own) - 1, 5):
    assert own.read_record(video_id) == in_order[video_id]
    assert own.record(tf.constant(video_id, tf.int64)).numpy() == in_order[video_id]


def test_a_header_is_the_one_that_a_videos_frames_begin_with(own):
  for video_id in (3, 11):
    (frame,) = own.read_frames(video_id, np.array([2]))
    header = own.header(video_id)
    assert jpeg_stripes.parse(frame) == header
    assert (header.height, header.width) == (own.height[video_id], own.width[video_id])
    assert own.rows[video_id] == header.rows == 48
