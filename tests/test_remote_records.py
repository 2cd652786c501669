"""Records on a file system that Python does not know, TensorFlow's own in memory (ram://)."""

import numpy as np
import pytest
import tensorflow as tf

from hybrid_video import datasets
from hybrid_video.datasets import builder, records, video_files
import input_pipeline

SETTINGS = input_pipeline.ClipSettings(frames=8, crop=32, crop_mode="multi_scale")
SCALE = video_files.StoredScale(38, 50)


@pytest.fixture
def remote(made_folder, tmp_path, monkeypatch):
  """The made videos, stored in ram://, and how they were stored."""

  def metadata(found, *_):
    # TFDS's own writer knows local paths, gs:// and s3:// only.
    with tf.io.gfile.GFile(f"{found.folder}/dataset_info.json", "w") as file:
      file.write("{}")

  monkeypatch.setattr(builder, "_write_metadata", metadata)
  listed = datasets.read("made_actions", made_folder)
  place = f"ram://{tmp_path.name}"
  return lambda: builder.build(listed, place, SCALE)


def test_remote_records_give_the_same_batches_as_local_ones(remote, made_records):
  found = remote()
  assert not found.is_local
  assert found.names.tolist() == made_records.names.tolist()
  places = np.arange(len(found))

  def batches(of: records.Records):
    return input_pipeline.training_batches(
      of, places, SETTINGS, batch_size=4, first_step=2, steps=6, seed=1
    )

  for there, here in zip(batches(found), batches(made_records), strict=True):
    for name in ("labels", "places", "flips"):
      np.testing.assert_array_equal(there[name], here[name])
    # Resizing rounds differently here and there.
    np.testing.assert_allclose(there["clips"].astype(int), here["clips"], atol=1)
  plan = input_pipeline.plan_evaluation(found, places, SETTINGS)
  pairs = zip(
    input_pipeline.evaluation_batches(found, plan, SETTINGS, batch_size=8),
    input_pipeline.evaluation_batches(made_records, plan, SETTINGS, batch_size=8),
    strict=True,
  )
  for there, here in pairs:
    for name in here:
      np.testing.assert_array_equal(there[name], here[name])


def test_whole_remote_records_are_not_built_again(remote, monkeypatch):
  first = remote()

  def no_decoding(*_args, **_options):
    raise AssertionError("videos are decoded again")

  monkeypatch.setattr(video_files, "store_videos", no_decoding)
  assert remote().names.tolist() == first.names.tolist()


def test_a_damaged_remote_record_is_named(remote):
  found = remote()
  with tf.io.gfile.GFile(found.shards[0], "rb") as file:
    data = bytearray(file.read())
  data[len(data) // 2] ^= 0xFF
  # ram:// appends to a file that is there.
  tf.io.gfile.remove(found.shards[0])
  with tf.io.gfile.GFile(found.shards[0], "wb") as file:
    file.write(bytes(data))
  plan = input_pipeline.plan_evaluation(found, np.arange(len(found)), SETTINGS)
  with pytest.raises(records.RecordsError, match="damaged") as error:
    list(input_pipeline.evaluation_batches(found, plan, SETTINGS, batch_size=8))
  assert found.folder in str(error.value)
