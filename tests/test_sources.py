import re
import types

import pytest
from test_downloads import names_in
from web_server import CONTENT, NAME, SHA256

from hybrid_video import downloads
from hybrid_video.weights import sources


@pytest.fixture
def cache(tmp_path, monkeypatch):
  folder = tmp_path / "cache"
  monkeypatch.setenv(sources.CACHE_VARIABLE, str(folder))
  return folder


def locate(source):
  return sources.locate(str(source), progress=False)


def test_a_file_put_into_the_cache_by_hand_stands_for_a_download(cache):
  cache.mkdir()
  (cache / NAME).write_bytes(CONTENT)
  assert locate(f"http://127.0.0.1:1/{NAME}") == cache / NAME


def test_a_wrong_file_in_the_cache_is_refused_and_not_deleted(cache):
  cache.mkdir()
  (cache / NAME).write_bytes(CONTENT[:-1])
  with pytest.raises(sources.SourceError, match=f"should begin {SHA256[:8]}. Delete it"):
    locate(f"http://127.0.0.1:1/{NAME}")
  assert (cache / NAME).exists()


def test_the_argument_for_the_cache_comes_before_the_environment(server, cache, tmp_path):
  path = sources.locate(server.url(), cache_dir=tmp_path / "other", progress=False)
  assert path == tmp_path / "other" / NAME
  assert not cache.exists()


def test_a_failed_download_says_that_a_path_serves_as_well(server, cache):
  with pytest.raises(sources.SourceError) as error:
    locate(server.url(f"missing/{NAME}"))
  for expected in ("HTTP 404", str(cache / NAME), "or give its path instead of the URL"):
    assert expected in str(error.value)


def test_a_redirect_is_followed_and_the_first_url_names_the_file(server, cache):
  assert locate(server.url(f"redirect/there/{NAME}")) == cache / NAME
  assert (cache / NAME).read_bytes() == CONTENT


def test_a_file_without_a_known_hash_is_taken_and_its_own_hash_logged(server, cache, logged):
  path = locate(server.url("model.safetensors"))
  assert path.read_bytes() == CONTENT
  assert path.name.endswith("-model.safetensors")
  assert f"was not verified, since no hash of it is published; its SHA-256 is {SHA256}" in (
    logged.text
  )


def test_two_urls_that_end_alike_have_two_files(server, cache):
  one = locate(server.url("one/model.safetensors"))
  server.content = b"other"
  two = locate(server.url("two/model.safetensors"))
  assert (one.read_bytes(), two.read_bytes()) == (CONTENT, b"other")


def test_a_full_disk_is_reported_before_the_download(server, cache, monkeypatch):
  monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
  with pytest.raises(sources.SourceError, match=r"0 MB free .* \$HYBRID_VIDEO_CACHE"):
    locate(server.url())
  assert names_in(cache) == []


def test_a_cache_that_cannot_be_made_is_reported_with_its_folder(server, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(sources.SourceError, match=r"could not be downloaded: .*file/cache"):
    sources.locate(server.url(), cache_dir=tmp_path / "file" / "cache", progress=False)


def test_a_local_file_is_given_back_as_it_is(tmp_path, monkeypatch):
  (tmp_path / "a b.pth").write_bytes(b"x")
  monkeypatch.chdir(tmp_path)
  assert locate(tmp_path / "a b.pth") == tmp_path / "a b.pth"
  assert locate("a b.pth").samefile(tmp_path / "a b.pth")
  assert locate((tmp_path / "a b.pth").as_uri()) == tmp_path / "a b.pth"


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("./nothing", "There is no file .*/nothing"),
    ("nothing.pth", "There is no file .*/nothing.pth"),
    ("file:///nothing/here", "There is no file /nothing/here"),
    (".", "is a folder"),
    ("file://elsewhere/file.pth", "names the machine 'elsewhere'"),
    ("ftp://127.0.0.1/file.pth", "the scheme is 'ftp', and only http, https, gs and file"),
    ("http://", r"http:// could not be downloaded: .*no host given"),
    ("r2plus1d_18/kinetic400", "Did you mean r2plus1d_18/kinetics400"),
    ("r2plus1d_34/ig65m_clip16", "Did you mean r2plus1d_34/ig65m_clip"),
    ("zebra", "no known name, and no file .*/zebra exists. Known names: r2plus1d_18/kinetics400"),
  ],
)
def test_a_source_that_is_none_says_what_was_looked_for(source, message, cache):
  with pytest.raises(sources.SourceError, match=message):
    locate(source)


def test_a_known_name_is_downloaded_from_its_url_to_its_own_file(server, cache, monkeypatch):
  values = {"model": "m", "num_classes": 4, "frames": 8, "licence": "none", "origin": "here"}
  known = {
    "m/hashed": sources.Source(
      name="m/hashed", url=server.url(), sha256_prefix=SHA256[:8], **values
    ),
    "m/plain": sources.Source(
      name="m/plain", url=server.url("model.safetensors"), sha256_prefix=None, **values
    ),
  }
  monkeypatch.setattr(sources, "SOURCES", known)
  assert locate("m/hashed") == cache / NAME
  assert locate("m/plain") == cache / "m-plain.safetensors"
  assert locate(server.url("model.safetensors")) == cache / "m-plain.safetensors"
  assert len(server.ranges_asked) == 2
  server.content = b"changed"
  (cache / NAME).unlink()
  with pytest.raises(sources.SourceError, match="should begin"):
    locate("m/hashed")


def test_every_known_source_has_a_file_of_its_own_and_the_hash_its_name_says():
  files = [source.file for source in sources.SOURCES.values()]
  assert len(set(files)) == len(files)
  for name, source in sources.SOURCES.items():
    assert source.name == name
    assert source.url.startswith("https://")
    if source.sha256_prefix:
      assert re.search(r"-([0-9a-f]{8})\.pth$", source.url)[1] == source.sha256_prefix


def test_the_known_sources_are_the_published_ones():
  rows = {row["name"]: row for row in sources.describe()}
  # Files and classes as their publishers list them.
  published = {
    "r2plus1d_18/kinetics400": ("r2plus1d_18-91a641e6.pth", "400"),
    "r3d_18/kinetics400": ("r3d_18-b3b3357e.pth", "400"),
    "mc3_18/kinetics400": ("mc3_18-a90a0ba3.pth", "400"),
    "r2plus1d_34/ig65m_clip8": ("r2plus1d_34_clip8_ig65m_from_scratch-9bae36ae.pth", "487"),
    "r2plus1d_34/ig65m_clip32": ("r2plus1d_34_clip32_ig65m_from_scratch-449a7af9.pth", "359"),
    "r2plus1d_34/kinetics_clip8": (
      "r2plus1d_34_clip8_ft_kinetics_from_ig65m-0aa0550b.pth",
      "400",
    ),
    "r2plus1d_34/kinetics_clip32": (
      "r2plus1d_34_clip32_ft_kinetics_from_ig65m-ade133f1.pth",
      "400",
    ),
    "videomae_small/kinetics400": ("videomae_small-kinetics400.safetensors", "400"),
    "videomae_base/kinetics400": ("videomae_base-kinetics400.safetensors", "400"),
    "videomae_large/kinetics400": ("videomae_large-kinetics400.safetensors", "400"),
    "videomae_base/ssv2": ("videomae_base-ssv2.safetensors", "174"),
    "videomae_base/pretraining": ("videomae_base-pretraining.safetensors", "none"),
    "videomae_large/pretraining": ("videomae_large-pretraining.safetensors", "none"),
  }
  assert list(rows) == list(published)
  for name, (file, classes) in published.items():
    assert (sources.SOURCES[name].file, rows[name]["classes"]) == (file, classes)
  assert "CC-BY-NC 4.0" in rows["videomae_base/kinetics400"]["licence"]
