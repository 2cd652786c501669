"""Paths as users write them: local, in a bucket, or refused; none becomes another folder."""

import pathlib

from etils import epath
import pytest

from hybrid_video import errors, paths


@pytest.mark.parametrize(
  "text",
  [
    "s3://bucket/run", "hdfs://host/run", "http://host/run", "https://host/run", "gs:/bucket/run",
    "gs:/typo", "GS://bucket/run", "file:///tmp/run", "runs/gs://bucket/run", "./s3://bucket/run",
    "://run", "az://box/run", "hf://run/x", "ram://run",
  ],
)  # fmt: skip
def test_other_addresses_are_refused_and_become_no_folder(text, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(paths.PathError, match=r"^--workdir is .*gs://BUCKET/FOLDER"):
    paths.resolve(text, "--workdir")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "text", ["gs://", "gs:///run", "gs://Bucket/run", "gs://b/run", "gs://buc ket/run", "gs://bucket"]
)
def test_a_bucket_that_cannot_be_is_refused(text):
  with pytest.raises(paths.PathError, match="gs://BUCKET/FOLDER"):
    paths.resolve(text, "--workdir")


@pytest.mark.parametrize("text", ["gs://bucket/../run", "gs://bucket/a/./b", "gs://bucket/.."])
def test_dots_in_a_bucket_are_refused_since_they_would_be_names_there(text):
  with pytest.raises(paths.PathError, match=r"no `\.` or `\.\.`"):
    paths.resolve(text, "--workdir")


def test_a_bucket_stays_one():
  path = paths.resolve("gs://bucket//runs/own/", "--workdir")
  assert str(path) == "gs://bucket/runs/own"
  assert str(path / "checkpoints") == "gs://bucket/runs/own/checkpoints"
  # What was resolved once may be resolved again.
  assert paths.resolve(path, "--workdir") == path
  assert isinstance(path, epath.Path) and paths.is_remote(path)


def test_local_paths_are_absolute_with_the_home_folder_in_place_of_its_sign(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  assert paths.resolve("runs/x", "--workdir") == tmp_path / "runs/x"
  assert paths.resolve("~/runs", "--workdir") == tmp_path / "home/runs"
  assert paths.resolve(pathlib.Path("a:b/c~"), "--workdir") == tmp_path / "a:b/c~"
  assert not paths.is_remote(paths.resolve("x", "--workdir"))


def test_a_user_that_does_not_exist_is_refused_and_becomes_no_folder():
  with pytest.raises(paths.PathError, match="home folder of that user is not known"):
    paths.resolve("~nobody_of_this_name/runs", "--workdir")


@pytest.mark.parametrize("text", ["/gs/bucket/run", "/hf/run", "/s3"])
def test_a_folder_that_etils_takes_for_a_bucket_is_refused(text):
  assert "://" in str(epath.Path(text))
  with pytest.raises(paths.PathError, match="at the root of the disk would be taken for"):
    paths.resolve(text, "--workdir")


def test_what_has_to_be_local_is_refused_in_a_bucket_with_what_to_do():
  with pytest.raises(paths.PathError, match=r"--videos .*videos are decoded.*gcloud storage cp"):
    paths.local("gs://bucket/videos", "--videos", "videos are decoded from local files")
  with pytest.raises(paths.PathError, match="no other kind of address"):
    paths.local("s3://bucket/videos", "--videos", "videos are decoded from local files")
  assert paths.local("/videos", "--videos", "") == pathlib.Path("/videos")


def test_a_bucket_without_the_package_for_it_names_the_extra(monkeypatch):
  def missing(module, extra, purpose):
    raise errors.MissingExtraError(f"{purpose} {module} {extra}")

  monkeypatch.setattr(errors, "require", missing)
  with pytest.raises(errors.MissingExtraError, match=r"--workdir=gs://bucket/run .* gcs"):
    paths.resolve("gs://bucket/run", "--workdir")
