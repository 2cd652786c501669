import hashlib
import json
import logging
import re

import pytest
from test_downloads import names_in
from web_server import CONTENT, SHA256, serving

from hybrid_video import downloads
from hybrid_video.datasets import listing, mirrors

NAME = "clips.rar"


@pytest.fixture
def two_servers(monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  with serving() as one, serving() as two:
    yield one, two


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "data"


@pytest.fixture
def warnings_logged(caplog):
  logger = logging.getLogger("hybrid_video")
  logger.addHandler(caplog.handler)
  with caplog.at_level(logging.WARNING, logger="hybrid_video"):
    yield caplog
  logger.removeHandler(caplog.handler)


def know(monkeypatch, *urls: str, checksum=("sha256", SHA256), size=300_000) -> None:
  """Makes a data set `small` of one archive the only one known."""
  expected = downloads.Checksum(*checksum) if checksum else None
  archive = mirrors.Archive(NAME, urls, expected, size)
  monkeypatch.setattr(mirrors, "ARCHIVES", {"small": (archive,)})


def fetch(folder, mirrors_file=None):
  return mirrors.fetch("small", folder, mirrors_file, progress=False)


def test_an_archive_comes_from_the_first_url_that_gives_it(two_servers, folder, monkeypatch):
  one, two = two_servers
  know(monkeypatch, one.url(NAME), two.url(NAME))
  assert fetch(folder) == [folder / NAME]
  assert (folder / NAME).read_bytes() == CONTENT
  assert names_in(folder) == [NAME]
  assert two.ranges_asked == []


def test_an_archive_in_the_folder_is_used_without_a_request(two_servers, folder, monkeypatch):
  one, _ = two_servers
  know(monkeypatch, one.url(NAME), size=None)
  folder.mkdir()
  (folder / NAME).write_bytes(b"put here by hand")
  assert fetch(folder) == [folder / NAME]
  assert one.ranges_asked == []
  assert (folder / NAME).read_bytes() == b"put here by hand"


def test_an_archive_of_another_size_is_used_with_a_warning(folder, monkeypatch, warnings_logged):
  know(monkeypatch, "http://127.0.0.1:1/x")
  folder.mkdir()
  (folder / NAME).write_bytes(CONTENT[:-1])
  fetch(folder)
  assert f"has {len(CONTENT) - 1} bytes, and the published file has {len(CONTENT)}" in (
    warnings_logged.text
  )


def test_a_url_that_fails_is_reported_and_the_next_one_is_tried(
  two_servers, folder, monkeypatch, warnings_logged
):
  one, two = two_servers
  one.content_type = "text/html"
  know(monkeypatch, one.url(f"missing/{NAME}"), one.url(NAME), two.url(NAME))
  fetch(folder)
  assert (folder / NAME).read_bytes() == CONTENT
  for url, reason in ((one.url(f"missing/{NAME}"), "HTTP 404"), (one.url(NAME), "a web page")):
    assert re.search(f"{re.escape(url)}: .*{reason}", warnings_logged.text)


def test_what_one_server_has_given_is_completed_from_the_next(two_servers, folder, monkeypatch):
  one, two = two_servers
  one.break_off_after, two.etag = 100_000, '"another"'
  know(monkeypatch, one.url(NAME), two.url(NAME))
  fetch(folder)
  assert (folder / NAME).read_bytes() == CONTENT
  assert two.bytes_sent == len(CONTENT) - 100_000


def test_a_server_is_not_given_up_for_what_another_one_began(two_servers, folder, monkeypatch):
  one, two = two_servers
  one.content, one.break_off_after = CONTENT[::-1], 100_000
  know(monkeypatch, one.url(NAME), two.url(NAME))
  fetch(folder)
  assert (folder / NAME).read_bytes() == CONTENT
  assert two.ranges_asked == ["bytes=100000-", None]


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_after_a_wrong_checksum_the_next_url_is_tried_and_both_digests_are_reported(
  two_servers, folder, monkeypatch, warnings_logged, algorithm
):
  one, two = two_servers
  one.content = CONTENT[::-1]
  right = hashlib.new(algorithm, CONTENT).hexdigest()
  know(monkeypatch, one.url(NAME), two.url(NAME), checksum=(algorithm, right))
  fetch(folder)
  assert (folder / NAME).read_bytes() == CONTENT
  assert hashlib.new(algorithm, one.content).hexdigest() in warnings_logged.text
  assert right in warnings_logged.text


def test_where_no_url_gives_it_each_is_named_with_its_reason(two_servers, folder, monkeypatch):
  one, two = two_servers
  two.content = b"other"
  know(monkeypatch, one.url(f"missing/{NAME}"), two.url(NAME))
  with pytest.raises(mirrors.MirrorError) as error:
    fetch(folder)
  assert isinstance(error.value, listing.ListingError)
  lines = str(error.value).splitlines()
  assert lines[1].strip() == f"{one.url(f'missing/{NAME}')}: HTTP 404 Not Found"
  assert two.url(NAME) in lines[2]
  assert hashlib.sha256(b"other").hexdigest() in lines[2]
  assert f"put the file {NAME} into {folder}. Its SHA-256 begins {SHA256}" in lines[3]
  assert names_in(folder) == []


def test_the_other_archives_are_fetched_where_one_is_unavailable(two_servers, folder, monkeypatch):
  one, _ = two_servers
  archives = (
    mirrors.Archive("lost.rar", (one.url("missing/lost.rar"),), None),
    mirrors.Archive(NAME, (one.url(NAME),), None),
  )
  monkeypatch.setattr(mirrors, "ARCHIVES", {"small": archives})
  with pytest.raises(mirrors.MirrorError, match=r"^lost.rar cannot be downloaded"):
    fetch(folder)
  assert names_in(folder) == [NAME]


def test_a_users_urls_come_first_with_their_checksum(two_servers, folder, monkeypatch, tmp_path):
  one, two = two_servers
  two.content = b"a newer version"
  know(monkeypatch, one.url(NAME))
  file = tmp_path / "mirrors.json"
  md5 = hashlib.md5(two.content).hexdigest()
  file.write_text(json.dumps({NAME: {"urls": [two.url(NAME)], "md5": md5}}))
  fetch(folder, file)
  assert (folder / NAME).read_bytes() == two.content
  assert one.ranges_asked == []


def test_the_known_checksum_holds_for_a_users_urls_without_one(
  two_servers, folder, monkeypatch, tmp_path
):
  one, two = two_servers
  two.content = b"not the archive"
  know(monkeypatch, one.url(NAME))
  file = tmp_path / "mirrors.json"
  file.write_text(json.dumps({NAME: {"urls": [two.url(NAME)]}}))
  fetch(folder, file)
  assert (folder / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "is not JSON"),
    ('["x"]', r'found \["x"\], expected'),
    ('{"clip.rar": {"urls": ["http://a/b"]}}', "no known archive. Did you mean clips.rar"),
    ('{"clips.rar": ["http://a/b"]}', r"clips.rar: found \[.*expected"),
    ('{"clips.rar": {"urls": ["http://a/b"], "sha1": "00"}}', "sha1.*expected"),
    ('{"clips.rar": {"urls": "http://a/b"}}', "expected a list of URLs"),
    ('{"clips.rar": {"urls": []}}', "expected a list of URLs"),
    ('{"clips.rar": {"urls": ["file:///a"]}}', "expected http://"),
    ('{"clips.rar": {"urls": ["http://[a/b"]}}', "expected http://"),
    ('{"clips.rar": {"urls": ["http://a"], "sha256": "0", "md5": "0"}}', "both sha256 and md5"),
    ('{"clips.rar": {"urls": ["http://a"], "md5": "xyz"}}', "'xyz' is no MD5"),
    (None, "cannot be read: No such file"),
  ],
)
def test_a_mirrors_file_of_another_form_is_refused(folder, monkeypatch, tmp_path, text, message):
  know(monkeypatch, "http://127.0.0.1:1/x")
  file = tmp_path / "mirrors.json"
  if text is not None:
    file.write_text(text)
  with pytest.raises(mirrors.MirrorError, match=message) as error:
    fetch(folder, file)
  assert str(file) in str(error.value)


def test_an_unknown_data_set_names_the_nearest(folder):
  with pytest.raises(mirrors.MirrorError, match=r"'hmdb_51'.*Did you mean hmdb51\?"):
    mirrors.fetch("hmdb_51", folder)


def test_the_official_archives_are_known_by_the_names_and_sums_others_publish():
  known = {archive.name: archive for of in mirrors.ARCHIVES.values() for archive in of}
  assert {name: archive.checksum.begins[:8] for name, archive in known.items()} == {
    # torchvision, prototype/datasets/_builtin/hmdb51.py and ucf101.py
    "hmdb51_org.rar": "9e714a0d",
    "test_train_splits.rar": "229c94f8",
    "UCF101.rar": "ca8dfadb",
    "UCF101TrainTestSplits-RecognitionTask.zip": "5c0d1a53",
  }
  for name, archive in known.items():
    assert len(archive.checksum.begins) == 64
    assert all(url.endswith(f"/{name}") for url in archive.urls)
