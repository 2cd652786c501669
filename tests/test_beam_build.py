"""Apache Beam's build against the local one, and what can go wrong on the way to the workers.

Without Beam, the tests that need it are skipped; requirements-dev.txt has it.
"""

import os
import pathlib
import sys

from conftest import made_experiment, moving_square
import pytest
import tensorflow_datasets as tfds
from test_builder import SMALL, break_file, build, few_videos, path_of, tree
from test_builder import decoded as decoded

from hybrid_video import datasets, errors
from hybrid_video.datasets import (
  beam_build,
  builder,
  file_identity,
  hmdb51,
  listing,
  made_actions,
  preparation,
  record_files,
)
from hybrid_video.datasets.records import Records
from hybrid_video.settings import SettingError

# The part of DirectRunner that needs nothing from the network.
RUNNER = "runner=FnApiRunner"


@pytest.fixture
def beam():
  return pytest.importorskip("apache_beam")


@pytest.fixture
def listed(tmp_path, monkeypatch):
  monkeypatch.setattr(builder, "SHARD_VIDEOS", 3)
  return few_videos(tmp_path / "data", 7)


def build_by_beam(listed: listing.Listing, folder: pathlib.Path, **changes) -> Records:
  options = {"workers": None, "store_shards": beam_build.storing(RUNNER), **changes}
  return build(listed, folder, **options)


def same_files(one: Records, other: Records) -> dict[str, bytes]:
  """The files of two sets of records, which are the same byte for byte."""
  first, second = (tree(pathlib.Path(records.folder)) for records in (one, other))
  assert sorted(first) == sorted(second)
  assert [name for name in first if first[name] != second[name]] == []
  return first


# The same records.


def test_records_index_and_metadata_are_those_of_the_local_build(beam, listed, tmp_path, capsys):
  break_file(path_of(listed, 1), "truncated")
  break_file(path_of(listed, 3), "text")
  missing = listed.videos[5].name
  path_of(listed, 5).unlink()
  listed = hmdb51.read(listed.folder, official=False)
  with pytest.raises(builder.MissingVideosError, match="2 listed videos cannot be used") as error:
    build_by_beam(listed, tmp_path / "beam", missing_allowed=(missing,))
  assert "cut short" in str(error.value) and "not a video" in str(error.value)
  assert "6/6" in capsys.readouterr().err
  by_beam = build_by_beam(listed, tmp_path / "beam", allow_missing=True)
  assert (len(by_beam), len(by_beam.broken), by_beam.missing) == (4, 2, (missing,))
  stored = same_files(by_beam, build(listed, tmp_path / "local", allow_missing=True))
  assert sum(name.endswith(".index.npz") for name in stored) == 2


def test_file_names_that_are_no_text_reach_the_workers(beam, tmp_path):
  made_actions.write_avi(tmp_path / "made.avi", moving_square(3), 25)
  for name in (b"hop/a\xff.avi", b"hop/b\n$<.avi", "nod/c\u202e.avi".encode()):
    path = tmp_path / "data" / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((tmp_path / "made.avi").read_bytes())
  listed = datasets.read("folder", tmp_path / "data")
  by_beam = build_by_beam(listed, tmp_path / "beam")
  assert len(by_beam) == 3
  same_files(by_beam, build(listed, tmp_path / "local"))


def test_whole_record_files_stay_and_only_the_others_are_stored(beam, listed, tmp_path):
  local = build(listed, tmp_path / "local")
  stored = build(listed, tmp_path / "beam")
  folder = pathlib.Path(stored.folder)
  (lost,) = folder.glob("*-00001-of-00003")
  (folder / f"{lost.name}.index.npz").unlink()
  whole = [path for path in folder.glob("*-of-00003") if path != lost]
  times = {path: path.stat().st_mtime_ns for path in whole}
  by_beam = build_by_beam(listed, tmp_path / "beam")
  assert times == {path: path.stat().st_mtime_ns for path in whole}
  same_files(by_beam, local)


def test_what_is_stored_already_is_taken_from_there_on_workers_too(beam, listed, tmp_path, decoded):
  build(listed, tmp_path / "beam")
  made_actions.write_avi(path_of(listed, 4), moving_square(40), 25)
  listed = hmdb51.read(listed.folder, official=False)
  decoded.clear()
  by_beam = build_by_beam(listed, tmp_path / "beam")
  assert decoded == [path_of(listed, 4).name]
  same_files(by_beam, build(listed, tmp_path / "local"))


def test_the_setting_reaches_the_pipeline_and_a_relative_folder_the_workers(
  beam, listed, tmp_path, monkeypatch
):
  break_file(path_of(listed, 1), "truncated")
  monkeypatch.chdir(tmp_path)
  options = {"dataset": "hmdb51_layout", "data_dir": "data", "allow_missing": True}
  by_beam, local = (
    preparation.load_records(
      made_experiment(records_dir=folder, beam_pipeline_options=setting, **options), tmp_path
    )
    for folder, setting in (("beam", RUNNER), ("local", ""))
  )
  assert len(by_beam.broken) == 1
  same_files(by_beam, local)


def test_tfds_own_options_reach_the_pipeline(beam, listed, tmp_path):
  config = tfds.download.DownloadConfig(
    manual_dir=listed.folder,
    beam_options=beam.options.pipeline_options.PipelineOptions([]),
    beam_runner="FnApiRunner",
  )
  of = tfds.builder("hmdb51_layout/24x32-q75", data_dir=tmp_path / "beam")
  of.download_and_prepare(download_config=config)
  assert of.info.splits["videos"].num_examples == 7
  same_files(of.records, build(listed, tmp_path / "local"))


@pytest.mark.slow
def test_workers_in_processes_of_their_own_store_the_same(beam, listed, tmp_path):
  options = "runner=DirectRunner,direct_num_workers=2,direct_running_mode=multi_processing"
  by_beam = build_by_beam(listed, tmp_path / "beam", store_shards=beam_build.storing(options))
  same_files(by_beam, build(listed, tmp_path / "local"))


# What goes wrong.


def test_a_worker_that_does_not_see_the_videos_ends_the_build(beam, listed, tmp_path):
  """They would all count as broken."""
  gone = tmp_path / "elsewhere.avi"
  videos = [*listed.videos[:2], listing.Video("x", "hop", "x", (1, 1, 1), gone)]
  contents = [file_identity.Content(1, 1, "")] * 3
  shard = record_files.Shard(str(tmp_path / "records.tfrecord"), videos, contents, "digest")
  with pytest.raises(beam_build.BeamError, match="does not see this video") as error:
    next(beam_build.storing(RUNNER)([shard], listed, record_files.Decoder(SMALL)))
  assert str(gone) in str(error.value) and "[while running" not in str(error.value)
  assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("records*"))


def test_a_folder_that_workers_do_not_share_is_named(beam, listed, tmp_path, monkeypatch):
  monkeypatch.setattr(beam_build, "_store_shard", _store_nothing)
  with pytest.raises(beam_build.BeamError, match="to a folder that all workers share"):
    build_by_beam(listed, tmp_path / "beam")


def _store_nothing(line: bytes, **_) -> None:
  """As a worker that writes to a disk of its own."""


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("--runner=FnApiRunner", "expected Beam's flags without dashes"),
    ("runner=FnApiRunner,", "'' between commas"),
    ("runner=FnApiRunner, streaming", "' streaming' between commas"),
    ("direct_num_workers=two", "argument --direct_num_workers: invalid int value: 'two'"),
  ],
)
def test_options_that_are_none_are_refused(beam, text, reason):
  with pytest.raises(SettingError) as error:
    beam_build.pipeline_options(text)
  assert "--config.beam_pipeline_options" in str(error.value) and reason in str(error.value)


def test_an_unknown_runner_is_named_with_the_known(beam, listed, tmp_path):
  with pytest.raises(beam_build.BeamError, match=r"NoSuch.*DataflowRunner"):
    build_by_beam(listed, tmp_path, store_shards=beam_build.storing("runner=NoSuch"))


def test_only_storing_needs_beam(listed, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(errors.MissingExtraError, match=r"pip install 'hybrid-video\[beam\]'"):
    build_by_beam(listed, tmp_path)
  build(listed, tmp_path)
  assert len(build_by_beam(listed, tmp_path)) == 7
