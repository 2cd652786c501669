"""The index of records: what damage it notices, what it hands out, how files come to be whole."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from hybrid_video.datasets import builder, hmdb51, listing, records, video_files
import input_pipeline

SCALE = video_files.StoredScale(38, 50)


@pytest.fixture(scope="module")
def own(made_folder, tmp_path_factory):
  """Records of the made videos that a test may damage and mend again."""
  place = str(tmp_path_factory.mktemp("own"))
  return builder.build(hmdb51.read(made_folder, official=False), place, SCALE, workers=2)


def rebuilt(own: records.Records, made_folder: pathlib.Path) -> records.Records:
  place = pathlib.Path(own.folder).parents[2]
  return builder.build(hmdb51.read(made_folder, official=False), str(place), SCALE, workers=2)


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


def test_a_flipped_byte_is_told_when_its_frame_is_read_and_never_trained_on(own, made_folder):
  path, place, frame = pathlib.Path(own.shards[0]), 5, 3
  row = own.first_frame[place] + frame
  at = int(own.offset[place] + own.scan_at[row] + own.scan_bytes[row] // 2)
  data = path.read_bytes()
  before = own.read_stripe(place, np.array([frame]))
  flipped = bytearray(data)
  flipped[at] ^= 1
  # In place, as a failing disk would: the length stays.
  path.write_bytes(flipped)
  assert len(rebuilt(own, made_folder)) == len(own)
  with pytest.raises(records.RecordsError, match="Delete this file") as error:
    own.read_stripe(place, np.array([frame]))
  assert str(path) in str(error.value) and own.names[place] in str(error.value)
  # Other frames and other videos are whole.
  own.read_stripe(place, np.array([frame + 1]))
  own.read_stripe(place + 1, np.array([frame]))
  # Also by way of the batches, in threads and in TensorFlow's own operations.
  settings = input_pipeline.ClipSettings(frames=4, crop=24)
  plan = input_pipeline.plan_evaluation(own, np.array([place]), settings)
  plan.frames[:] = frame
  with pytest.raises(records.RecordsError, match="Delete this file"):
    list(input_pipeline.evaluation_batches(own, plan, settings, batch_size=1))
  with pytest.raises(tf.errors.DataLossError):
    own.stripe(tf.constant(place, tf.int64), tf.constant([frame], tf.int64))
  # What the message says to do helps, and gives the same file again.
  path.unlink()
  again = rebuilt(own, made_folder)
  assert again.read_stripe(place, np.array([frame])) == before
  assert path.read_bytes() == data


def test_a_record_file_that_vanishes_while_it_is_read_is_named(own):
  path = pathlib.Path(own.shards[0])
  hidden = path.with_suffix(".hidden")
  path.rename(hidden)
  try:
    with pytest.raises(records.RecordsError, match="makes it anew") as error:
      own.read_stripe(0, np.array([0]))
    assert str(path) in str(error.value)
  finally:
    hidden.rename(path)


def test_both_ways_of_reading_give_the_same_bytes_in_any_order(own):
  rng = np.random.default_rng(1)
  for place in rng.permutation(len(own))[:8].tolist():
    frames = rng.integers(0, own.num_frames[place], 5)
    graph = own.stripe(tf.constant(place, tf.int64), tf.constant(frames))
    assert own.read_stripe(place, frames) == graph.numpy()


def test_official_lists_are_selected_by_split(own):
  for split in (1, 2, 3):
    train, test = own.select(split, listing.TRAIN), own.select(split, listing.TEST)
    assert len(train) == 24 and len(test) == 8
    assert not set(own.groups[train]) & set(own.groups[test])
  with pytest.raises(ValueError, match="1 to 3"):
    own.select(4, listing.TRAIN)
  with pytest.raises(ValueError, match="1 to 3"):
    own.select(0, listing.TRAIN)


def test_validation_groups_are_whole_and_never_move(own):
  everything = np.arange(len(own))
  few, more = (own.validation_groups(everything, share) for share in (0.3, 0.8))
  assert not (few & ~more).any()
  for group in np.unique(own.groups):
    assert len(set(more[own.groups == group].tolist())) == 1
  half = own.validation_groups(everything[::2], 0.8)
  np.testing.assert_array_equal(half, more[::2])
  assert not own.validation_groups(everything, 0.0).any()


def test_a_file_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / "file"
  path.write_bytes(b"old")

  def broken_off() -> None:
    with records.whole_file(str(path)) as part:
      pathlib.Path(part).write_bytes(b"half")
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    broken_off()
  assert path.read_bytes() == b"old"
  with records.whole_file(str(path)) as one, records.whole_file(str(path)) as two:
    assert one != two
    pathlib.Path(one).write_bytes(b"one")
    pathlib.Path(two).write_bytes(b"two")
  assert path.read_bytes() == b"one"
  assert os.listdir(tmp_path) == ["file"]
