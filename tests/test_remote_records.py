"""Records on a file system that Python does not know, TensorFlow's own in memory (ram://)."""

from collections.abc import Iterator
import os
import types
from typing import IO

from etils import epath
import numpy as np
import pytest
import tensorflow as tf

from hybrid_video import datasets
from hybrid_video.datasets import builder, records, tfds_metadata
from hybrid_video.decoding import storing, worker_pool
from hybrid_video.sampling import plans
from hybrid_video.sampling.clip_settings import ClipSettings, EvaluationSettings
import input_pipeline

SETTINGS = ClipSettings(frames=8, crop=32, crop_mode="multi_scale")
VIEWS = EvaluationSettings(frames=8, crop=32)
SCALE = storing.StoredScale(38, 50, 90)


@epath.register_path_cls("ram://")
class RamPath:
  """What `etils.epath` has for gs:// and others, for TensorFlow's file system in memory."""

  def __init__(self, path: str):
    self._path = path

  def __fspath__(self) -> str:
    return self._path

  def joinpath(self, *names: str) -> "RamPath":
    return RamPath("/".join([self._path, *names]))

  def __truediv__(self, name: str) -> "RamPath":
    return self.joinpath(name)

  @property
  def name(self) -> str:
    return self._path.rsplit("/", 1)[1]

  def with_name(self, name: str) -> "RamPath":
    return RamPath(os.path.dirname(self._path)) / name

  def iterdir(self) -> Iterator["RamPath"]:
    return (self / name for name in tf.io.gfile.listdir(self._path))

  def exists(self) -> bool:
    return tf.io.gfile.exists(self._path)

  def stat(self) -> types.SimpleNamespace:
    status = tf.io.gfile.stat(self._path)
    return types.SimpleNamespace(length=status.length, mtime=status.mtime_nsec / 1e9)

  def open(self, mode: str) -> IO[bytes]:
    return tf.io.gfile.GFile(self._path, mode)

  def read_bytes(self) -> bytes:
    with self.open("rb") as file:
      return file.read()

  def write_bytes(self, data: bytes) -> None:
    # ram:// appends to a file that exists.
    self.unlink(missing_ok=True)
    with self.open("wb") as file:
      file.write(data)

  def mkdir(self, parents: bool, exist_ok: bool) -> None:
    assert parents and exist_ok
    tf.io.gfile.makedirs(self._path)

  def replace(self, target: "RamPath") -> None:
    tf.io.gfile.rename(self._path, os.fspath(target), overwrite=True)

  def unlink(self, missing_ok: bool) -> None:
    assert missing_ok
    if self.exists():
      tf.io.gfile.remove(self._path)


@pytest.fixture
def remote(made_folder, tmp_path, monkeypatch):
  """Stores the made videos in ram://."""

  def metadata(of: records.Records, *_):
    # TFDS's own writer knows local paths, gs:// and s3:// only.
    (epath.Path(of.folder) / "dataset_info.json").write_bytes(b"{}")

  monkeypatch.setattr(tfds_metadata, "write", metadata)
  listed = datasets.read("made_actions", made_folder)
  return lambda: builder.build(listed, f"ram://{tmp_path.name}", SCALE)


def test_remote_records_give_the_same_batches_as_local_ones(remote, made_records):
  stored = remote()
  assert not stored.is_local
  assert stored.names.tolist() == made_records.names.tolist()
  video_ids = np.arange(len(stored))

  def batches(of: records.Records):
    return input_pipeline.training_batches(
      of, video_ids, SETTINGS, batch_size=4, first_step=2, steps=6, seed=1
    )

  for there, here in zip(batches(stored), batches(made_records), strict=True):
    for name in ("labels", "video_ids", "mirrored"):
      np.testing.assert_array_equal(there[name], here[name])
    # Resizing rounds differently here and there.
    np.testing.assert_allclose(there["clips"].astype(int), here["clips"], atol=1)
  views = plans.evaluation_views(stored, video_ids, VIEWS)
  pairs = zip(
    input_pipeline.evaluation_batches(stored, views, VIEWS, batch_size=8),
    input_pipeline.evaluation_batches(made_records, views, VIEWS, batch_size=8),
    strict=True,
  )
  for there, here in pairs:
    for name in here:
      np.testing.assert_array_equal(there[name], here[name])


def test_whole_remote_records_are_not_built_again(remote, monkeypatch):
  first = remote()

  def no_decoding(*_args, **_options):
    raise AssertionError("videos are decoded again")

  monkeypatch.setattr(worker_pool, "store_videos", no_decoding)
  assert remote().names.tolist() == first.names.tolist()


def test_a_remote_record_is_the_one_that_tensorflow_reads_in_order(remote):
  stored = remote()
  in_order = list(tf.data.TFRecordDataset(stored.shards).as_numpy_iterator())
  for video_id in (0, 13, len(stored) - 1):
    assert stored.read_record(video_id) == in_order[video_id]


def test_a_damaged_remote_record_is_named(remote):
  stored = remote()
  shard = epath.Path(stored.shards[0])
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 0xFF
  shard.write_bytes(bytes(data))
  views = plans.evaluation_views(stored, np.arange(len(stored)), VIEWS)
  with pytest.raises(records.RecordsError, match="damaged") as error:
    list(input_pipeline.evaluation_batches(stored, views, VIEWS, batch_size=8))
  assert stored.folder in str(error.value)


def test_a_file_system_that_is_not_known_is_an_error_before_anything_is_decoded(
  made_folder, monkeypatch
):
  monkeypatch.setattr(worker_pool, "store_videos", None)
  listed = datasets.read("made_actions", made_folder)
  with pytest.raises(builder.StorageError, match="is not known") as error:
    builder.build(listed, "cloud://somewhere", SCALE)
  assert "cloud://somewhere" in str(error.value) and "--config.records_dir" in str(error.value)
