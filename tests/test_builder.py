"""The builder and what can go wrong, and every data set from its files to batches of clips."""

import contextlib
from fractions import Fraction
import json
import os
import pathlib
import pwd
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile

import av
from conftest import (
  REAL_CLIPS,
  REAL_LISTS,
  made_clip_name,
  moving_square,
  small_file_system,
  without_permissions,
  write_lists,
)
import numpy as np
import programs
import pytest
from rar_files import archive
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info
from test_mutated_videos import mutate
from web_server import serving

from hybrid_video import datasets, files, locks
from hybrid_video.datasets import (
  builder,
  hmdb51,
  listing,
  made_actions,
  mirrors,
  records,
  splits,
  tfds_metadata,
)
from hybrid_video.decoding import storing, worker_pool
from hybrid_video.sampling import plans
from hybrid_video.sampling.clip_settings import ClipSettings, EvaluationSettings
import input_pipeline

GOLF, BOW, WAVE = REAL_LISTS
FRAMES = {GOLF: 89, BOW: 81, WAVE: 72}
SCALE = storing.StoredScale(56, 75, 90, stretch=True)
SMALL = storing.StoredScale(24, 32)
ROOT = pathlib.Path(__file__).parent.parent
CLIP = ClipSettings(frames=4, window_seconds=0.5, crop=24)


def prepare(
  dataset: str, folder: pathlib.Path, records_dir: pathlib.Path, test_share: float = 0.2, **changes
) -> records.Records:
  listed = datasets.read(dataset, folder, test_share=test_share)
  return builder.build(listed, str(records_dir), **{"scale": SCALE, **changes})


def few_videos(folder: pathlib.Path, count: int = 10) -> listing.Listing:
  """Clips of three classes, of 2 frames and more, each of another length."""
  lists: dict[str, tuple[str, tuple[int, ...]]] = {}
  (folder / "videos").mkdir(parents=True, exist_ok=True)
  for i in range(count):
    action = ("hop", "nod", "skip")[i % 3]
    name = made_clip_name(action, i, f"film{i % 2}")
    lists[name] = (action, (1, 2, 1) if i % 2 else (2, 1, 1))
    if not (folder / "videos" / name).exists():
      made_actions.write_avi(folder / "videos" / name, moving_square(2 + i), 25)
  write_lists(folder / "lists", lists)
  return hmdb51.read(folder, official=False)


@pytest.fixture
def listed(tmp_path):
  return few_videos(tmp_path / "data")


@pytest.fixture
def two_a_file(monkeypatch):
  monkeypatch.setattr(builder, "SHARD_VIDEOS", 2)


@pytest.fixture
def decoded(monkeypatch):
  """The names of the files that were given to the decoders, as they were given."""
  names: list[str] = []
  original = worker_pool.store_videos

  def noting(paths, *arguments, **options):
    names.extend(path.name for path in paths)
    return original(paths, *arguments, **options)

  monkeypatch.setattr(worker_pool, "store_videos", noting)
  return names


def build(listed: listing.Listing, folder: pathlib.Path, **changes) -> records.Records:
  return builder.build(listed, str(folder), SMALL, **{"workers": 1, **changes})


def tree(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
  }


def names_of(listed: listing.Listing) -> list[str]:
  return [video.name for video in listed.videos]


def path_of(listed: listing.Listing, i: int) -> pathlib.Path:
  path = listed.videos[i].path
  assert path is not None
  return path


def infos(folder: pathlib.Path) -> list[pathlib.Path]:
  return list(folder.rglob("dataset_info.json"))


def check_clips(of: records.Records, clip: ClipSettings = CLIP, crops: int = 1) -> None:
  """Takes every view of every video and a few training batches."""
  video_ids = np.arange(len(of))
  sampling = {"frames": clip.frames, "window_seconds": clip.window_seconds, "crop": clip.crop}
  settings = EvaluationSettings(crops=crops, **sampling)
  views = plans.evaluation_views(of, video_ids, settings)
  batches = list(input_pipeline.evaluation_batches(of, views, settings, batch_size=4))
  labels = np.concatenate([batch["labels"] for batch in batches])[: len(views)]
  assert labels.tolist() == of.labels[views.video_ids[views.rows]].tolist()
  assert sum(batch["mask"].sum() for batch in batches) == len(views)
  shape = (4, clip.frames, clip.crop, clip.crop, 3)
  training = input_pipeline.training_batches(
    of, video_ids, clip, batch_size=4, first_step=0, steps=3, seed=0
  )
  for batch in [*batches, *training]:
    assert batch["clips"].shape == shape and batch["clips"].dtype == np.uint8
    assert batch["clips"].std() > 1


# What is stored.


def test_each_video_is_stored_once_with_all_that_is_known_of_it(real_folder, tmp_path):
  stored = prepare("hmdb51_layout", real_folder, tmp_path / "records")
  assert stored.class_names == ("golf", "shoot_bow", "wave")
  assert stored.names.tolist() == [GOLF, BOW, WAVE]
  assert stored.labels.tolist() == [0, 1, 2]
  assert stored.groups.tolist()[2] == "RATRACE"
  assert json.loads(stored.tags[2])["quality"] == "goo"
  assert stored.num_frames.tolist() == list(FRAMES.values())
  assert stored.fps.tolist() == [30.0, 30.0, 30.0]
  assert stored.split_codes.tolist() == [list(REAL_LISTS[name][1]) for name in stored.names]
  assert set(stored.height.tolist()) == {56} and set(stored.width.tolist()) == {75}
  assert not stored.missing and not stored.broken and not stored.unlisted
  check_clips(stored)


def test_class_ids_are_the_lists_numbers_and_unused_files_are_told(tmp_path, logged):
  folder = tmp_path / "data"
  (folder / "videos").mkdir(parents=True)
  for i in range(3):
    made_actions.write_avi(folder / "videos" / f"{i}.avi", moving_square(2 + i), 25)
  (folder / "videos" / "notes.txt").touch()
  for name, line in {"train": "videos/0.avi 2", "val": "1.avi 2", "test": "2.avi 2"}.items():
    (folder / f"{name}.csv").write_text(f"{line}\n")
  (folder / "labels.csv").write_text("id,name\n2,ape\n0,zebra\n1,mole\n")
  stored = prepare("kinetics", folder, tmp_path / "records", scale=SMALL, workers=1)
  assert stored.class_names == ("zebra", "mole", "ape") and stored.labels.tolist() == [2, 2, 2]
  assert stored.ignored == (("videos/notes.txt", "not a video (text)"),)
  assert "1 file(s) are not used: videos/notes.txt: not a video (text)" in logged.text
  lists = splits.list_indices(stored, 1, 0.0)
  names = {which: stored.names[video_ids].tolist() for which, video_ids in lists.items()}
  assert names == {
    "train": ["videos/0.avi"],
    "validation": ["1.avi"],
    "test": ["2.avi"],
    "unused": [],
  }
  # As TFDS has them.
  read = tfds.builder("kinetics", data_dir=tmp_path / "records")
  assert read.info.features["label"].names == ["zebra", "mole", "ape"]
  assert read.info.splits["split1_validation"].num_examples == 1
  assert read.records.ignored == stored.ignored
  # Another order of classes is never taken for this one.
  (folder / "labels.csv").write_text("id,name\n2,mole\n0,ape\n1,zebra\n")
  again = prepare("kinetics", folder, tmp_path / "records", scale=SMALL, workers=1)
  assert again.class_names == ("ape", "zebra", "mole") and again.folder != stored.folder


def test_a_class_name_with_a_line_end_is_one_class_for_tfds(tmp_path):
  videos = [
    listing.Video(label, label, label, (1,), tmp_path / label) for label in ("hop\nskip", "nod")
  ]
  described = tfds_metadata.features(listing.make("folder", tmp_path, videos))
  described["label"].save_metadata(str(tmp_path), feature_name="label")
  read = tfds.features.ClassLabel()
  read.load_metadata(str(tmp_path), feature_name="label")
  assert read.names == [r"hop\nskip", "nod"]


def test_tfds_itself_reads_the_records(real_folder, tmp_path):
  (real_folder / "videos" / "extra.avi").symlink_to(REAL_CLIPS / WAVE)
  stored = prepare("hmdb51_layout", real_folder, tmp_path / "records")
  read = tfds.builder_from_directory(stored.folder)
  assert read.info.splits["videos"].num_examples == 3
  assert read.info.metadata["unlisted"] == ["videos/extra.avi"]
  assert read.info.features["label"].names == ["golf", "shoot_bow", "wave"]
  examples = list(tfds.as_numpy(read.as_dataset(split="videos", shuffle_files=False)))
  assert [example["name"].decode() for example in examples] == [GOLF, BOW, WAVE]
  assert [example["video"].shape for example in examples] == [
    (count, 56, 75, 3) for count in FRAMES.values()
  ]
  assert examples[0]["split_codes"].tolist() == list(REAL_LISTS[GOLF][1])
  assert (examples[2]["label"], examples[2]["fps"]) == (2, 30.0)
  # The frames that TFDS decodes are those that the pipeline cuts its clips from.
  settings = EvaluationSettings(frames=1, window_seconds=0.03, crop=56, clips=1)
  views = plans.evaluation_views(stored, np.array([2]), settings)
  (batch,) = input_pipeline.evaluation_batches(stored, views, settings, batch_size=1)
  frame = examples[2]["video"][views.clips.frames[0, 0], :, 9:65].astype(float)
  assert np.abs(frame - batch["clips"][0, 0]).mean() < 6


def test_other_files_lists_or_scales_are_other_records(listed, tmp_path):
  def folder(listed, scale=SMALL):
    return builder.records_folder(listed, str(tmp_path / "records"), scale)

  first = folder(listed)
  assert folder(few_videos(listed.folder)) == first
  scales = [storing.StoredScale(24, 0), storing.StoredScale(24, 32, 60)]
  scaled = [folder(listed, scale) for scale in scales]
  path = path_of(listed, 3)
  made_actions.write_avi(path, moving_square(40), 25)
  grown = folder(hmdb51.read(listed.folder, official=False))
  split_file = next(listed.folder.rglob("hop_test_split2.txt"))
  split_file.write_text(split_file.read_text().replace(" 1 ", " 0 "))
  relisted = folder(hmdb51.read(listed.folder, official=False))
  assert len({first, *scaled, grown, relisted}) == 5


def test_decoding_shows_a_bar_and_runs_in_several_processes(listed, tmp_path, capsys, monkeypatch):
  asked = []
  original = worker_pool.store_videos
  monkeypatch.setattr(
    worker_pool,
    "store_videos",
    lambda *arguments, **limits: asked.append(arguments[2]) or original(*arguments, **limits),
  )
  two = build(listed, tmp_path / "two", workers=2)
  bar = capsys.readouterr().err
  assert "Decoding videos" in bar and "10/10" in bar
  assert asked == [2]
  one = build(listed, tmp_path / "one")
  assert tree(pathlib.Path(one.folder)) == tree(pathlib.Path(two.folder))


def test_whole_records_are_neither_decoded_nor_written_again(listed, tmp_path, decoded):
  first = build(listed, tmp_path)
  times = {path: path.stat().st_mtime_ns for path in pathlib.Path(first.folder).iterdir()}
  assert sorted(decoded) == sorted(names_of(listed))
  decoded.clear()
  again = build(listed, tmp_path)
  assert decoded == []
  assert times == {path: path.stat().st_mtime_ns for path in pathlib.Path(first.folder).iterdir()}
  assert again.names.tolist() == first.names.tolist()


# What is interrupted.

_BUILD = """
import pathlib, sys, time
from hybrid_video.datasets import builder, hmdb51, records
from hybrid_video.decoding import storing

def main():
  folder, records_dir, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
  builder.SHARD_VIDEOS = 2
  original, calls = records.ShardIndex.add, []

  def add(self, *arguments, **known):
    original(self, *arguments, **known)
    calls.append(1)
    if len(calls) == stop:
      print("in the middle", flush=True)
      time.sleep(600)

  records.ShardIndex.add = add
  listed = hmdb51.read(pathlib.Path(folder), official=False)
  stored = builder.build(listed, records_dir, storing.StoredScale(24, 32), workers=2)
  print("built", len(stored), len(calls), flush=True)

if __name__ == "__main__":
  main()
"""


@contextlib.contextmanager
def building(
  listed: listing.Listing, tmp_path: pathlib.Path, records_dir: pathlib.Path, stop: int = 0
):
  """A build in a process of its own, which leads a group; all of it is gone afterwards."""
  script = tmp_path / "build.py"
  script.write_text(_BUILD)
  with programs.starting() as start:
    yield start(script, listed.folder, records_dir, stop, stderr=subprocess.DEVNULL)


def group_ends(leader: int, seconds: float) -> bool:
  """Whether no process of a group is left after a while."""
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    try:
      os.killpg(leader, 0)
    except ProcessLookupError:
      return True
    time.sleep(0.05)
  return False


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_interrupted_goes_on_and_ends_as_if_it_had_not_been(
  sent, listed, tmp_path, two_a_file, decoded
):
  records_dir = tmp_path / "records"
  with building(listed, tmp_path, records_dir, stop=5) as process:
    assert process.stdout.readline() == "in the middle\n"
    if sent == signal.SIGINT:
      # As Ctrl-C does, to the whole group.
      os.killpg(process.pid, sent)
    else:
      process.kill()
    assert process.wait(30) != 0
    assert group_ends(process.pid, 20)
  (folder,) = {path.parent for path in records_dir.rglob("*.tfrecord*")}
  parts = list(folder.glob("*.part"))
  assert len(parts) == (1 if sent == signal.SIGKILL else 0)
  # It never passes for whole.
  assert not infos(records_dir)
  with pytest.raises(dataset_info.DatasetInfoFileError):
    tfds.builder_from_directory(folder)
  whole = {path: path.stat().st_mtime_ns for path in folder.glob("*.tfrecord-?????-of-00005")}
  assert len(whole) == 2
  # What was left half written is cleared away once nobody can still be writing it.
  for part in parts:
    os.utime(part, (0, 0))
  stored = build(listed, records_dir)
  assert decoded == names_of(listed)[4:]
  assert all(path.stat().st_mtime_ns == then for path, then in whole.items())
  straight = build(listed, tmp_path / "straight")
  assert tree(pathlib.Path(stored.folder)) == tree(pathlib.Path(straight.folder))
  assert tfds.builder_from_directory(folder).info.splits["videos"].num_examples == 10


def test_two_builds_at_once_end_with_the_same_whole_records(listed, tmp_path, two_a_file):
  records_dir = tmp_path / "records"
  with (
    building(listed, tmp_path, records_dir) as one,
    building(listed, tmp_path, records_dir) as two,
  ):
    printed = [process.communicate(timeout=120)[0] for process in (one, two)]
    assert [process.returncode for process in (one, two)] == [0, 0]
  assert all(text.startswith("built 10 ") for text in printed)
  straight = build(listed, tmp_path / "straight")
  (folder,) = {path.parent for path in records_dir.rglob("*.tfrecord*")}
  assert tree(folder) == tree(pathlib.Path(straight.folder))


def test_a_second_build_waits_for_the_first_and_decodes_nothing(
  listed, tmp_path, two_a_file, decoded, logged
):
  folder = pathlib.Path(builder.records_folder(listed, str(tmp_path), SMALL))
  building_it = threading.Event()

  def first():
    with locks.hold(folder, "storing records"):
      building_it.set()
      time.sleep(0.5)
      # What stands for another process's build: the same files, made elsewhere.
      shutil.copytree(straight.folder, folder, dirs_exist_ok=True)

  straight = build(listed, tmp_path / "straight")
  decoded.clear()
  thread = threading.Thread(target=first)
  thread.start()
  building_it.wait()
  stored = build(listed, tmp_path)
  thread.join()
  assert stored.folder == str(folder) and len(stored) == 10
  assert not decoded
  assert f"{folder} is in use by process {os.getpid()}" in logged.text
  assert "(storing records); waiting for it" in logged.text


def test_records_whose_owner_has_no_name_are_read(listed, tmp_path, monkeypatch, decoded):
  build(listed, tmp_path)
  decoded.clear()

  def nobody(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

  # As in a container that runs as a number.
  monkeypatch.setattr(pwd, "getpwuid", nobody)
  assert len(build(listed, tmp_path)) == 10
  assert not decoded


def test_a_record_file_that_another_build_is_writing_is_left_alone(listed, tmp_path):
  folder = pathlib.Path(builder.records_folder(listed, str(tmp_path), SMALL))
  folder.mkdir(parents=True)
  (folder / f"x{files.PART}").write_bytes(b"half")
  build(listed, tmp_path)
  assert (folder / f"x{files.PART}").read_bytes() == b"half"


# Files that fail.


def break_file(path: pathlib.Path, how: str) -> None:
  data = path.read_bytes()
  path.unlink()
  if how == "truncated":
    path.write_bytes(data[: len(data) // 2])
  elif how == "corrupt":
    at = data.index(b"movi") + 40
    path.write_bytes(data[:at] + bytes(x ^ 0xA5 for x in data[at:]))
  elif how == "empty":
    path.write_bytes(b"")
  elif how == "text":
    path.write_text("<html>404 Not Found</html>")
  elif how == "no frame":
    with av.open(str(path), "w", format="avi") as container:
      stream = container.add_stream("mpeg4", rate=25)
      stream.width = stream.height = 64
      container.start_encoding()
  elif how == "audio only":
    with av.open(str(path), "w", format="avi") as container:
      sound = container.add_stream("pcm_s16le", rate=8000)
      sound.layout = "mono"
      frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
      frame.sample_rate = 8000
      container.mux(sound.encode(frame))
      container.mux(sound.encode(None))


def test_videos_that_fail_are_reported_together_and_affect_no_other(tmp_path, two_a_file):
  few_videos(tmp_path / "data", 12)
  listed = few_videos(tmp_path / "data", 12)
  ways = ["truncated", "corrupt", "empty", "text", "no frame", "audio only"]
  broken = dict(zip([1, 2, 4, 6, 7, 9], ways, strict=True))
  for i, how in broken.items():
    break_file(path_of(listed, i), how)
  names = [listed.videos[i].name for i in broken]
  with pytest.raises(builder.MissingVideosError, match="6 listed videos cannot be used") as error:
    build(listed, tmp_path / "records")
  assert names[0] in str(error.value) and "--config.missing_allowed" in str(error.value)
  assert "--config.allow_missing=True" in str(error.value)
  stored = build(listed, tmp_path / "records", allow_missing=True)
  assert list(stored.broken) == names
  assert all(str(path_of(listed, i)) in stored.broken[listed.videos[i].name] for i in broken)
  reasons = dict(zip(ways, stored.broken.values(), strict=True))
  assert "cut short" in reasons["truncated"]
  assert "empty" in reasons["empty"]
  assert "not a video" in reasons["text"]
  assert "no video stream" in reasons["audio only"]
  assert stored.names.tolist() == [name for name in names_of(listed) if name not in names]
  check_clips(stored, ClipSettings(frames=4, crop=16))
  # TFDS's metadata has them too.
  metadata = tfds.builder_from_directory(stored.folder).info.metadata
  assert metadata["broken"] == stored.broken


def test_videos_may_be_allowed_to_fail_by_name_and_no_other(listed, tmp_path):
  for i in (2, 7):
    break_file(path_of(listed, i), "truncated")
  one, other = (listed.videos[i].name for i in (2, 7))
  with pytest.raises(builder.MissingVideosError, match="1 listed videos cannot") as error:
    build(listed, tmp_path / "records", missing_allowed=(one,))
  assert f": {other}." in str(error.value)
  stored = build(listed, tmp_path / "records", missing_allowed=(one, other))
  assert set(stored.broken) == {one, other}
  # What was allowed once is not allowed for ever.
  with pytest.raises(builder.MissingVideosError, match="2 listed videos cannot"):
    build(listed, tmp_path / "records")


def test_missing_videos_are_reported_before_anything_is_decoded(listed, tmp_path, decoded):
  names = names_of(listed)
  for i in (0, 4):
    path_of(listed, i).unlink()
  options = {"folder": listed.folder, "records_dir": tmp_path / "records"}
  with pytest.raises(builder.MissingVideosError, match="2 listed videos are missing") as error:
    prepare("hmdb51_layout", **options)
  assert names[0] in str(error.value) and names[4] in str(error.value)
  assert str(listed.folder) in str(error.value)
  with pytest.raises(builder.MissingVideosError, match="1 listed videos are missing"):
    prepare("hmdb51_layout", **options, missing_allowed=(names[0],))
  assert not decoded and not (tmp_path / "records").exists()
  stored = prepare("hmdb51_layout", **options, missing_allowed=(names[0], names[4]))
  assert set(stored.missing) == {names[0], names[4]}
  assert len(stored) == 8 and stored.class_names == ("hop", "nod", "skip")
  with pytest.raises(builder.MissingVideosError, match="2 listed videos are missing"):
    prepare("hmdb51_layout", **options)


def test_a_broken_file_that_is_fixed_at_its_size_is_decoded_again(
  listed, tmp_path, two_a_file, decoded
):
  path = path_of(listed, 4)
  whole = path.read_bytes()
  break_file(path, "corrupt")
  assert path.stat().st_size == len(whole)
  with pytest.raises(builder.MissingVideosError):
    build(listed, tmp_path)
  path.write_bytes(whole)
  decoded.clear()
  stored = build(listed, tmp_path)
  assert len(stored) == 10 and not stored.broken
  # The other video of the record file is taken from there.
  assert decoded == names_of(listed)[4:5]


def test_nothing_but_broken_videos_is_a_clear_error(listed, tmp_path):
  for i in range(10):
    break_file(path_of(listed, i), "empty")
  with pytest.raises(records.RecordsError, match="no video is stored") as error:
    build(listed, tmp_path / "records", allow_missing=True)
  assert "the file is empty" in str(error.value)
  assert not infos(tmp_path / "records")


def test_a_data_set_of_mutated_videos_ends_with_each_stored_or_broken(tmp_path):
  rng = np.random.default_rng(7)
  whole = {}
  for kind, frames in (("walk", 12), ("run", 20)):
    made_actions.write_avi(tmp_path / "whole.avi", moving_square(frames), 25)
    whole[kind] = (tmp_path / "whole.avi").read_bytes()
  for kind, data in whole.items():
    (tmp_path / "data" / kind).mkdir(parents=True)
    for i in range(30):
      content = data if i % 10 == 0 else mutate(data, rng)
      (tmp_path / "data" / kind / f"{i:02d}.avi").write_bytes(content)
  started = time.monotonic()
  stored = prepare(
    "folder", tmp_path / "data", tmp_path / "records", scale=SMALL, allow_missing=True
  )
  assert time.monotonic() - started < 60
  assert len(stored) + len(stored.broken) == 60
  assert not set(stored.names.tolist()) & set(stored.broken)
  assert len(stored) >= 6 and len(stored.broken) >= 6
  assert all(reason.strip() for reason in stored.broken.values())


# Folders and disks that fail.


def test_a_full_disk_is_reported_with_what_is_free_and_the_build_continues_afterwards(
  listed, tmp_path, two_a_file, decoded, monkeypatch
):
  original, opened = tf.io.TFRecordWriter, []

  class Filling(original):
    def write(self, record):
      opened.append(1)
      if len(opened) > 5:
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
      super().write(record)

  with monkeypatch.context() as patch:
    patch.setattr(tf.io, "TFRecordWriter", Filling)
    with pytest.raises(builder.StorageError, match="No space left on device") as error:
      build(listed, tmp_path)
  assert "GiB free there" in str(error.value) and "--config.records_dir" in str(error.value)
  assert not infos(tmp_path) and not list(tmp_path.rglob("*.part"))
  decoded.clear()
  assert len(build(listed, tmp_path)) == 10
  assert decoded == names_of(listed)[4:]


@contextlib.contextmanager
def largest_file(size: int):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_system_refuses_is_reported_and_leaves_no_half_file(listed, tmp_path):
  small = tmp_path / "records"
  with largest_file(4096), pytest.raises(builder.StorageError, match="cannot be written") as error:
    build(listed, small)
  assert "too large" in str(error.value)
  assert not infos(small) and not [path for path in small.rglob("*") if path.is_file()]
  assert len(build(listed, small)) == 10


def test_a_real_small_file_system_that_fills_up(listed, tmp_path, two_a_file):
  disk = tmp_path / "disk"
  with small_file_system(disk, "64k") as resize:
    with pytest.raises(builder.StorageError, match=r"(?i)no space left.*0\.0 GiB free"):
      build(listed, disk)
    whole = set(disk.rglob("*.index.npz"))
    assert whole and not infos(disk) and not list(disk.rglob("*.part"))
    resize("8m")
    stored = build(listed, disk)
    straight = build(listed, tmp_path / "straight")
    assert tree(pathlib.Path(stored.folder)) == tree(pathlib.Path(straight.folder))


@pytest.mark.parametrize("lost", ["record", "cut record", "index", "damaged index"])
def test_only_the_record_file_that_is_damaged_is_stored_again(
  lost, listed, tmp_path, two_a_file, decoded
):
  stored = build(listed, tmp_path)
  folder = pathlib.Path(stored.folder)
  before = tree(folder)
  shard = pathlib.Path(stored.shards[3])
  path = shard if "record" in lost else shard.with_name(shard.name + ".index.npz")
  data = path.read_bytes()
  if lost in ("record", "index"):
    path.unlink()
  else:
    path.write_bytes(data[:-7] if lost == "cut record" else data[:50] + b"?" + data[51:])
  # TFDS's metadata is still there: it does not make it whole.
  assert infos(tmp_path)
  decoded.clear()
  again = build(listed, tmp_path)
  assert decoded == names_of(listed)[6:8]
  assert tree(folder) == before
  assert again.names.tolist() == stored.names.tolist()
  check_clips(again, ClipSettings(frames=4, crop=16))


def test_metadata_that_is_gone_is_written_again_without_decoding(listed, tmp_path, decoded):
  stored = build(listed, tmp_path)
  before = tree(pathlib.Path(stored.folder))
  (info,) = infos(tmp_path)
  info.unlink()
  decoded.clear()
  build(listed, tmp_path)
  assert decoded == []
  assert tree(pathlib.Path(stored.folder)) == before


def test_a_records_folder_that_is_a_file_is_reported(listed, tmp_path):
  (tmp_path / "records").write_text("mine")
  with pytest.raises(builder.StorageError, match=r"--config\.records_dir") as error:
    build(listed, tmp_path / "records")
  assert str(tmp_path / "records") in str(error.value)
  assert (tmp_path / "records").read_text() == "mine"


@pytest.mark.parametrize(("mode", "what"), [(0o555, "written"), (0o000, "written|read")])
def test_a_records_folder_without_permissions_is_reported(mode, what):
  with tempfile.TemporaryDirectory() as text:
    os.chmod(text, 0o755)
    folder = pathlib.Path(text) / "records"
    folder.mkdir(mode=mode)
    os.chmod(folder, mode)
    listed = few_videos(pathlib.Path(text) / "data", 3)
    match = rf"cannot be ({what}): .*(?i:permission denied)"
    with without_permissions(), pytest.raises(builder.StorageError, match=match) as error:
      builder.build(listed, str(folder), SMALL, workers=1)
    assert str(folder) in str(error.value)


# Every data set, from its files to clips.


def test_hmdb51_from_its_archives_within_archives(tmp_path):
  folder = tmp_path / "data"
  folder.mkdir()
  classes = {
    f"{label}.rar": archive({f"{label}/{name}": (REAL_CLIPS / name).read_bytes()})
    for name, (label, _) in REAL_LISTS.items()
  }
  write_lists(tmp_path / "testTrainMulti_7030_splits", REAL_LISTS)
  lists = {
    f"testTrainMulti_7030_splits/{path.name}": path.read_bytes()
    for path in (tmp_path / "testTrainMulti_7030_splits").iterdir()
  }
  (folder / "hmdb51_org.rar").write_bytes(archive(classes))
  (folder / "test_train_splits.rar").write_bytes(archive(lists, version=3))
  stored = prepare("hmdb51_layout", folder, tmp_path / "records")
  assert dict(zip(stored.names.tolist(), stored.num_frames.tolist(), strict=True)) == FRAMES
  assert not stored.unlisted
  check_clips(stored)
  # The official data set is not what three clips can pass for.
  with pytest.raises(listing.ListingError, match="not HMDB51's official lists"):
    prepare("hmdb51", folder, tmp_path / "records")


def test_hmdb51_that_is_downloaded_first(tmp_path, monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  videos = {
    f"{label}/{name}": (REAL_CLIPS / name).read_bytes() for name, (label, _) in REAL_LISTS.items()
  }
  write_lists(tmp_path / "splits", REAL_LISTS)
  lists = {f"splits/{path.name}": path.read_bytes() for path in (tmp_path / "splits").iterdir()}
  with serving() as one, serving() as two:
    one.content, two.content = archive(videos), archive(lists)
    nowhere = "http://127.0.0.1:9/nothing"
    known = [mirrors.Archive(name, (nowhere,), None) for name in ("videos.rar", "lists.rar")]
    monkeypatch.setattr(mirrors, "ARCHIVES", {"hmdb51_layout": tuple(known)})
    urls = {"videos.rar": {"urls": [one.url("a")]}, "lists.rar": {"urls": [two.url("b")]}}
    (tmp_path / "mirrors.json").write_text(json.dumps(urls))
    for turn in range(2):
      mirrors.fetch("hmdb51_layout", tmp_path / "data", tmp_path / "mirrors.json")
      stored = prepare("hmdb51_layout", tmp_path / "data", tmp_path / "records")
      assert stored.names.tolist() == [GOLF, BOW, WAVE]
      # Nothing is asked for again.
      assert len(one.ranges_asked) == 1, turn


def write_clip(
  path: pathlib.Path, codec: str, size: tuple[int, int], rate: Fraction, count: int, sound: bool
) -> None:
  """A clip of a moving square, of (height, width), with a silent sound track if `sound`."""
  height, width = size
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    stream.thread_count = 1
    track = container.add_stream("aac", rate=16000, layout="mono") if sound else None
    for i in range(count):
      pixels = np.zeros((height, width, 3), np.uint8)
      pixels[10:30, 2 * i : 2 * i + 20] = 255
      container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    container.mux(stream.encode(None))
    if track is not None:
      silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
      silence.sample_rate = 16000
      container.mux(track.encode(silence))
      container.mux(track.encode(None))


def write_mixed(folder: pathlib.Path) -> dict[str, tuple[tuple[int, int], Fraction]]:
  """Clips of other sizes, rates, containers and codecs; upright, lying, with sound and without."""
  folder.mkdir(parents=True)
  kinds = {
    "a.mp4": ((48, 64), Fraction(25), "libx264", True),
    "b.mp4": ((96, 64), Fraction(30000, 1001), "mpeg4", True),
    "c.avi": ((60, 120), Fraction(15), "mpeg4", False),
    "d.mkv": ((64, 64), Fraction(12), "libx264", True),
  }
  for name, (size, rate, codec, sound) in kinds.items():
    write_clip(folder / name, codec, size, rate, 20, sound)
  return {name: (size, rate) for name, (size, rate, _, _) in kinds.items()}


def test_kinetics_lists_over_videos_of_all_sizes_and_rates(tmp_path):
  kinds = write_mixed(tmp_path / "data" / "clips")
  (tmp_path / "data" / "train.csv").write_text("clips/a.mp4 0\nclips/b.mp4 1\nclips/c.avi 0\n")
  (tmp_path / "data" / "val.csv").write_text("clips/d.mkv 1\n")
  (tmp_path / "data" / "labels.txt").write_text("walking the dog\njuggling\n")
  keep_aspect = storing.StoredScale(40, 0)
  stored = prepare("kinetics", tmp_path / "data", tmp_path / "records", scale=keep_aspect)
  assert stored.class_names == ("walking the dog", "juggling")
  by_name = {name.rsplit("/")[-1]: i for i, name in enumerate(stored.names.tolist())}
  assert set(by_name) == set(kinds)
  for name, ((height, width), rate) in kinds.items():
    i = by_name[name]
    assert stored.fps[i] == pytest.approx(float(rate), rel=1e-3)
    assert stored.num_frames[i] == 20
    assert min(stored.height[i], stored.width[i]) == 40
    assert stored.width[i] / stored.height[i] == pytest.approx(width / height, rel=0.02)
  assert splits.select(stored, 1, "test").tolist() == [by_name["d.mkv"]]
  check_clips(stored)
  for mode in ("multi_scale", "random_resized"):
    check_clips(stored, ClipSettings(frames=4, crop=32, crop_mode=mode), crops=3)
  # TFDS reads frames of several sizes as well.
  read = tfds.builder_from_directory(stored.folder).as_dataset(split="videos", shuffle_files=False)
  sizes = [example["video"].shape[1:3] for example in tfds.as_numpy(read)]
  assert sizes == list(zip(stored.height.tolist(), stored.width.tolist(), strict=True))


def test_ucf101_with_a_few_videos_is_referred_to_the_data_set_folder(tmp_path):
  folder = tmp_path / "data"
  folder.mkdir()
  (folder / "classInd.txt").write_text("1 Archery\n")
  made_actions.write_avi(folder / "v_Archery_g01_c01.avi", moving_square(4), 25)
  for split in "123":
    (folder / f"trainlist0{split}.txt").write_text("Archery/v_Archery_g01_c01.avi 1\n")
    (folder / f"testlist0{split}.txt").write_text("Archery/v_Archery_g02_c01.avi\n")
  with pytest.raises(listing.ListingError, match="not UCF101's official lists") as error:
    prepare("ucf101", folder, tmp_path / "records")
  assert "1 classes in classInd.txt, expected 101" in str(error.value)
  assert "--config.dataset=folder" in str(error.value)
  assert not (tmp_path / "records").exists()


def own_videos(folder: pathlib.Path) -> list[str]:
  """Two classes, whose names and those of clips hold what file names may hold."""
  names = ["hop & skip/a (1).mp4", "hop & skip/ü 動.mp4", "nod/b#2.mp4", "nod/c.mp4", "nod/d.mp4"]
  for i, name in enumerate(names):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    size = [(48, 64), (64, 48), (40, 80), (64, 64), (50, 60)][i]
    write_clip(folder / name, "mpeg4", size, Fraction(20), 10 + i, sound=False)
  return names


def test_a_folder_of_own_videos(tmp_path):
  names = own_videos(tmp_path / "data")
  keep_aspect = storing.StoredScale(32, 0)
  options = {"scale": keep_aspect, "test_share": 0.3}
  stored = prepare("folder", tmp_path / "data", tmp_path / "records", **options)
  assert sorted(stored.names.tolist()) == sorted(names)
  assert stored.class_names == ("hop & skip", "nod")
  assert len(set(zip(stored.height.tolist(), stored.width.tolist(), strict=True))) > 2
  test = splits.select(stored, 1, "test")
  train = splits.select(stored, 1, "train")
  assert sorted([*test.tolist(), *train.tolist()]) == list(range(5))
  check_clips(stored)


@pytest.mark.parametrize("form", ["zip of all", "zip with a folder", "tar a class"])
def test_a_folder_of_own_videos_in_archives(form, tmp_path):
  names = own_videos(tmp_path / "made")
  folder = tmp_path / "data"
  folder.mkdir()
  if form == "tar a class":
    for label in ("hop & skip", "nod"):
      with tarfile.open(folder / f"{label}.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "made" / label, label)
  else:
    above = "set/" if form == "zip with a folder" else ""
    with zipfile.ZipFile(folder / "set.zip", "w") as packed:
      for name in names:
        packed.write(tmp_path / "made" / name, above + name)
  options = {"scale": SMALL, "test_share": 0.0}
  stored = prepare("folder", folder, tmp_path / "records", **options)
  assert stored.class_names == ("hop & skip", "nod")
  assert sorted(name.rsplit("/", 1)[-1] for name in stored.names.tolist()) == sorted(
    name.rsplit("/", 1)[-1] for name in names
  )
  check_clips(stored)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_text_are_stored_and_read(tmp_path):
  names = own_videos(tmp_path / "data")
  odd = os.fsencode(tmp_path / "data" / "nod") + b"/caf\xe9.mp4"
  os.rename(tmp_path / "data" / names[3], odd)
  broken = os.fsencode(tmp_path / "data" / "nod") + b"/bro\xffken.mp4"
  pathlib.Path(os.fsdecode(broken)).write_bytes(b"no video")
  options = {"scale": SMALL, "test_share": 0.0, "allow_missing": True}
  stored = prepare("folder", tmp_path / "data", tmp_path / "records", **options)
  assert "nod/caf\\xe9.mp4" in stored.names.tolist()
  assert len(stored.broken) == 1
  assert tfds.builder_from_directory(stored.folder).info.splits["videos"].num_examples == 5
  check_clips(stored)


def test_a_video_of_one_frame_is_shown_as_that_frame_repeated(tmp_path):
  name = made_clip_name("still")
  folder = tmp_path / "set"
  write_lists(folder, {name: ("still", (1, 1, 1))})
  made_actions.write_avi(folder / name, moving_square(1), 25)
  stored = prepare("hmdb51_layout", folder, tmp_path / "records")
  settings = EvaluationSettings(crop=48)
  views = plans.evaluation_views(stored, np.array([0]), settings)
  (batch,) = input_pipeline.evaluation_batches(stored, views, settings, batch_size=1)
  assert batch["clips"].shape == (1, 16, 48, 48, 3)
  assert (batch["clips"] == batch["clips"][:, :1]).all()


def test_an_unknown_data_set_is_an_error_with_the_nearest(tmp_path):
  with pytest.raises(listing.ListingError, match="Did you mean kinetics"):
    prepare("kinetic", tmp_path, tmp_path / "records")


def test_lists_are_selected_and_empty_ones_are_errors(real_folder, tmp_path):
  stored = prepare("hmdb51_layout", real_folder, tmp_path / "records")
  names = {
    (split, which): set(stored.names[splits.select(stored, split, which)])
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
    splits.select(stored, 1, "test")
  with pytest.raises(ValueError, match="no training video of these classes: golf"):
    splits.check_training_classes(stored, 3)
