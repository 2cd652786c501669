import contextlib
import hashlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types

from conftest import without_permissions
import pytest
from web_server import CONTENT, NAME, SHA256, Server, serving

from hybrid_video import downloads, errors

ROOT = pathlib.Path(__file__).parent.parent
ENVIRONMENT = {
  **os.environ,
  "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
  "no_proxy": "127.0.0.1",
}


@pytest.fixture
def cache(tmp_path):
  return tmp_path / "cache"


def download_of(url: str, folder: pathlib.Path, **values) -> downloads.Download:
  """A download under the URL's name, whose hash is known if that is the name with a hash."""
  name = url.rpartition("/")[2]
  values.setdefault("checksum", downloads.Checksum("sha256", SHA256[:8]) if name == NAME else None)
  return downloads.Download(url=url, path=folder / name, other_folder="look around", **values)


def fetch(url: str, folder: pathlib.Path, **values) -> pathlib.Path:
  return downloads.fetch(download_of(url, folder, **values), progress=False)


def leave_part(cache: pathlib.Path, content: bytes, name: str = NAME) -> pathlib.Path:
  cache.mkdir(parents=True, exist_ok=True)
  part = cache / f"{name}.part"
  part.write_bytes(content)
  return part


def names_in(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def test_a_download_arrives_whole_and_leaves_nothing_beside_it(server, cache):
  path = fetch(server.url(), cache)
  assert path == cache / NAME
  assert path.read_bytes() == CONTENT
  assert names_in(cache) == [NAME]


def test_a_file_in_the_cache_needs_no_request(server, cache):
  fetch(server.url(), cache)
  server.ranges_asked.clear()
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  assert server.ranges_asked == []


def test_a_resumed_download_asks_only_for_the_rest(server, cache):
  leave_part(cache, CONTENT[:123_456])
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  assert server.ranges_asked == ["bytes=123456-"]
  assert server.bytes_sent == len(CONTENT) - 123_456


def test_a_server_that_ignores_ranges_sends_everything_again(server, cache):
  server.ranges = False
  leave_part(cache, b"x" * 123_456)
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  assert server.bytes_sent == len(CONTENT)
  assert names_in(cache) == [NAME]


def test_a_server_that_sends_another_range_is_asked_for_everything(server, cache):
  server.sends_first_range = True
  leave_part(cache, CONTENT[:123_456])
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  assert server.ranges_asked == ["bytes=123456-", None]


def test_bytes_beyond_the_announced_length_are_left_out(server, cache):
  server.excess = b"x" * 5000
  assert fetch(server.url("model.bin"), cache).read_bytes() == CONTENT


def test_a_part_that_is_already_whole_is_only_renamed(server, cache):
  leave_part(cache, CONTENT)
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  assert server.bytes_sent == 0


def test_a_part_longer_than_the_file_is_discarded(server, cache):
  leave_part(cache, CONTENT + b"more")
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  assert server.ranges_asked == [f"bytes={len(CONTENT) + 4}-", None]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_transfer_cut_off_is_kept_and_the_next_call_completes_it(server, cache, chunked):
  server.break_off_after, server.chunked = 100_000, chunked
  with pytest.raises(downloads.DownloadError, match=r"after 100000 .*which are kept"):
    fetch(server.url(), cache)
  assert not (cache / NAME).exists()
  assert (cache / f"{NAME}.part").read_bytes() == CONTENT[:100_000]
  server.break_off_after = None
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  assert server.ranges_asked == [None, "bytes=100000-"]
  assert names_in(cache) == [NAME]


def test_a_wrong_hash_removes_the_part_and_says_both_hashes(server, cache):
  server.content = CONTENT[::-1]
  actual = hashlib.sha256(server.content).hexdigest()
  with pytest.raises(downloads.DownloadError, match=f"{actual}, which should begin {SHA256[:8]}"):
    fetch(server.url(), cache)
  assert names_in(cache) == []


def test_a_part_of_another_file_is_noticed_by_the_hash_and_does_not_come_back(server, cache):
  leave_part(cache, b"x" * 1000)
  with pytest.raises(downloads.DownloadError, match="should begin"):
    fetch(server.url(), cache)
  assert fetch(server.url(), cache).read_bytes() == CONTENT


def test_an_unreachable_server_is_named_with_the_file_to_fetch_by_hand(cache, monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  with socket.create_server(("127.0.0.1", 0)) as taken:
    url = f"http://127.0.0.1:{taken.getsockname()[1]}/{NAME}"
  with pytest.raises(downloads.DownloadError) as error:
    fetch(url, cache)
  for expected in (url, "Connection refused", str(cache / NAME), f"begins {SHA256[:8]}"):
    assert expected in str(error.value)
  assert isinstance(error.value, errors.UserError)


def test_a_server_that_falls_silent_is_given_up(server, cache, monkeypatch):
  monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 0.5)
  server.seconds_a_chunk = 1.5
  server.content = CONTENT[:40_000]
  with pytest.raises(downloads.DownloadError, match=r"no answer in .* after 20000 bytes"):
    fetch(server.url(), cache)
  assert (cache / f"{NAME}.part").stat().st_size == 20_000


def test_the_same_part_is_resumed_at_another_server_that_names_its_version_otherwise(server, cache):
  server.break_off_after = 100_000
  with pytest.raises(downloads.DownloadError, match="which are kept"):
    fetch(server.url(), cache)
  with serving() as mirror:
    mirror.etag = '"mirror"'
    assert fetch(mirror.url(), cache).read_bytes() == CONTENT
    assert mirror.ranges_asked == ["bytes=100000-"]
    assert mirror.bytes_sent == len(CONTENT) - 100_000
  assert names_in(cache) == [NAME]


def test_an_md5_is_checked_where_no_better_checksum_is_published(server, cache):
  right = hashlib.md5(CONTENT).hexdigest()
  fetch(server.url("data.rar"), cache, checksum=downloads.Checksum("md5", right.upper()))
  with pytest.raises(
    downloads.ChecksumError, match=f"data.rar.*MD5 is {right} and should begin {'0' * 32}"
  ):
    fetch(server.url("data.rar"), cache, checksum=downloads.Checksum("md5", "0" * 32))
  assert names_in(cache) == ["data.rar"]


@pytest.mark.parametrize(
  ("algorithm", "digits", "message"),
  [
    ("crc32", "ab", "'crc32' is none of sha256, md5"),
    ("md5", "0" * 33, "is no MD5: expected up to 32 digits"),
    ("sha256", "xyz", "'xyz' is no SHA-256: expected up to 64 digits"),
    ("sha256", "", "is no SHA-256"),
  ],
)
def test_an_impossible_checksum_is_refused(algorithm, digits, message):
  with pytest.raises(ValueError, match=message):
    downloads.Checksum(algorithm, digits)


@pytest.mark.parametrize(
  ("path", "reason"),
  [
    (f"missing/{NAME}", "HTTP 404 Not Found"),
    (f"redirect-to-ftp/{NAME}", "redirect to ftp://127.0.0.1/file, which is not followed"),
  ],
)
def test_a_refusal_says_the_status_and_what_to_put_where_by_hand(server, cache, path, reason):
  with pytest.raises(downloads.DownloadError) as error:
    fetch(server.url(path), cache)
  for expected in (server.url(path), reason, str(cache / NAME), f"begins {SHA256[:8]}"):
    assert expected in str(error.value)
  assert error.value.reason.endswith(reason)
  assert names_in(cache) == []


def test_a_redirect_is_followed_with_the_range_that_is_missing(server, cache):
  leave_part(cache, CONTENT[:1000])
  assert fetch(server.url(f"redirect/there/{NAME}"), cache).read_bytes() == CONTENT
  assert server.ranges_asked == ["bytes=1000-"] * 2


def test_a_full_disk_is_reported_before_the_download(server, cache, monkeypatch):
  monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
  with pytest.raises(downloads.DownloadError, match=r"0 MB free .* look around"):
    fetch(server.url(), cache)
  assert names_in(cache) == []


def test_a_cache_that_cannot_be_written_is_named_with_what_to_set(server):
  with tempfile.TemporaryDirectory() as text:
    closed = pathlib.Path(text)
    closed.chmod(0o555)
    with (
      without_permissions(),
      pytest.raises(
        downloads.DownloadError, match=rf"Permission denied \(in {closed}.*look around"
      ),
    ):
      fetch(server.url(), closed)
    closed.chmod(0o755)


def test_a_file_whose_hash_was_checked_is_not_reported(server, cache, logged):
  fetch(server.url(), cache)
  assert "not verified" not in logged.text


@pytest.mark.parametrize(
  ("etag", "heeds_if_range", "resumed"),
  [
    ('"first"', True, True),
    ('"second"', True, False),
    ('"second"', False, False),
    ('W/"first"', True, False),
    (None, True, False),
  ],
)
def test_without_a_hash_only_the_same_version_is_resumed(
  server, cache, etag, heeds_if_range, resumed
):
  server.break_off_after = 100_000
  server.etag = '"first"' if etag == '"second"' else etag
  with pytest.raises(downloads.DownloadError, match="after 100000"):
    fetch(server.url("model.bin"), cache)
  server.break_off_after, server.etag, server.heeds_if_range = None, etag, heeds_if_range
  server.content = CONTENT if resumed else CONTENT[::-1]
  server.bytes_sent = 0
  path = fetch(server.url("model.bin"), cache)
  assert path.read_bytes() == server.content
  assert names_in(cache) == [path.name]
  assert len(server.ranges_asked) == (2 if heeds_if_range else 3)
  if resumed:
    assert server.bytes_sent == len(CONTENT) - 100_000


def broken_off(server: Server, cache: pathlib.Path) -> None:
  """Leaves the first 100000 bytes of a file without a published hash, and their version."""
  server.break_off_after = 100_000
  with pytest.raises(downloads.DownloadError, match="after 100000"):
    fetch(server.url("model.bin"), cache)
  assert names_in(cache) == ["model.bin.part", "model.bin.part.etag"]
  server.break_off_after = None
  server.ranges_asked.clear()


def test_a_rest_that_does_not_name_its_version_is_never_joined_to_another_beginning(server, cache):
  broken_off(server, cache)
  server.content, server.etag, server.heeds_if_range = CONTENT[::-1], None, False
  assert fetch(server.url("model.bin"), cache).read_bytes() == CONTENT[::-1]
  assert server.ranges_asked == ["bytes=100000-", None]
  assert names_in(cache) == ["model.bin"]


@pytest.mark.parametrize("etag", [None, '"second"'])
def test_a_new_version_as_long_as_the_old_ones_beginning_is_downloaded(server, cache, etag):
  broken_off(server, cache)
  server.content, server.etag = CONTENT[::-1][:100_000], etag
  server.heeds_if_range = False
  assert fetch(server.url("model.bin"), cache).read_bytes() == CONTENT[::-1][:100_000]
  assert server.ranges_asked == ["bytes=100000-", None]


@pytest.mark.parametrize(
  "content_range",
  [
    None,
    "bytes 0-{last}/{total}",
    "bytes 99999-{last}/{total}",
    "bytes 100001-{last}/{total}",
    "bytes {first}-{first}/{total}",
    "bytes {first}-{total}/{total}",
    "bytes {first}-{last}/{first}",
    "bytes {first}-{last}/*",
    "bytes */{total}",
    "items {first}-{last}/{total}",
  ],
)
def test_a_rest_whose_range_is_another_one_or_unclear_is_not_joined(server, cache, content_range):
  broken_off(server, cache)
  server.content_range = content_range
  assert fetch(server.url("model.bin"), cache).read_bytes() == CONTENT
  assert server.ranges_asked == ["bytes=100000-", None]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_rest_of_the_same_version_is_joined_also_where_its_length_is_not_said(
  server, cache, chunked
):
  broken_off(server, cache)
  server.chunked = chunked
  assert fetch(server.url("model.bin"), cache).read_bytes() == CONTENT
  assert server.ranges_asked == ["bytes=100000-"]


def test_a_download_of_unknown_length_without_a_hash_is_refused(server, cache):
  server.says_length = False
  with pytest.raises(downloads.DownloadError, match="neither its length nor its hash"):
    fetch(server.url("model.bin"), cache)
  assert fetch(server.url(), cache).read_bytes() == CONTENT


def test_a_chunked_download_needs_no_length(server, cache):
  server.chunked = True
  assert fetch(server.url("model.bin"), cache).read_bytes() == CONTENT


def test_a_web_page_in_place_of_a_file_is_refused(server, cache):
  server.content_type = "text/html; charset=utf-8"
  with pytest.raises(downloads.DownloadError, match="a web page"):
    fetch(server.url("model.bin"), cache)
  assert names_in(cache) == []


def test_an_empty_file_is_refused(server, cache):
  server.content = b""
  with pytest.raises(downloads.DownloadError, match="an empty file"):
    fetch(server.url("model.bin"), cache)
  assert names_in(cache) == []


def test_a_disk_that_fills_up_meanwhile_is_reported_with_its_folder(server, cache):
  # A limit on the size of files stands in for a disk: the write itself fails.
  code = (
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
    "import pathlib; import test_downloads;"
    f"test_downloads.fetch({server.url()!r}, pathlib.Path({str(cache)!r}))"
  )
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert f"DownloadError: {server.url()} could not be downloaded: File too large (in {cache}" in (
    result.stderr
  )
  assert names_in(cache) == [f"{NAME}.part", f"{NAME}.part.etag"]


def test_threads_that_want_one_file_download_it_once(server, cache, logged):
  server.seconds_a_chunk = 0.02
  sizes, contents, done = set(), [], threading.Event()

  def watch():
    while not done.is_set():
      with contextlib.suppress(FileNotFoundError):
        sizes.add((cache / NAME).stat().st_size)

  watcher = threading.Thread(target=watch)
  workers = [
    threading.Thread(target=lambda: contents.append(fetch(server.url(), cache).read_bytes()))
    for _ in range(4)
  ]
  for thread in (watcher, *workers):
    thread.start()
  for thread in workers:
    thread.join()
  done.set()
  watcher.join()
  assert contents == [CONTENT] * 4
  assert server.bytes_sent == len(CONTENT)
  assert sizes <= {len(CONTENT)}
  assert names_in(cache) == [NAME]
  assert "Another process is downloading" in logged.text


@pytest.fixture
def start_process(start_program):
  """Starts a process that downloads what a server has into a folder."""
  code = "import pathlib, sys, test_downloads; test_downloads.fetch(sys.argv[1], pathlib.Path(sys.argv[2]))"

  def start_process(server: Server, folder: pathlib.Path) -> subprocess.Popen:
    return start_program(
      "-c", code, server.url(), folder, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )

  return start_process


def wait_for(condition) -> None:
  deadline = time.monotonic() + 15
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_a_process_waits_for_the_download_of_another(server, cache, start_process):
  server.seconds_a_chunk = 0.03
  other = start_process(server, cache)
  wait_for(lambda: server.bytes_sent)
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  assert other.wait(20) == 0
  assert server.bytes_sent == len(CONTENT)
  assert len(server.ranges_asked) == 1


def test_a_killed_process_leaves_a_part_that_the_next_one_completes(server, cache, start_process):
  server.seconds_a_chunk = 0.2
  part = cache / f"{NAME}.part"
  other = start_process(server, cache)
  wait_for(lambda: part.exists() and part.stat().st_size)
  other.kill()
  other.wait()
  size = part.stat().st_size
  assert not (cache / NAME).exists()
  server.seconds_a_chunk = 0.0
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  assert server.ranges_asked == [None, f"bytes={size}-"]


def test_a_waiting_process_takes_over_where_the_first_one_fails(server, cache):
  server.seconds_a_chunk, server.break_off_after = 0.05, 60_000
  raised = []

  def first():
    with pytest.raises(downloads.DownloadError) as error:
      fetch(server.url(), cache)
    raised.append(error.value)

  thread = threading.Thread(target=first)
  thread.start()
  wait_for(lambda: server.bytes_sent)
  server.break_off_after = None
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  thread.join()
  assert len(raised) == 1
  assert server.ranges_asked == [None, "bytes=60000-"]


def test_a_waiting_process_starts_over_where_the_first_one_got_a_wrong_file(server, cache):
  server.seconds_a_chunk, server.content = 0.03, CONTENT[::-1]
  raised = []

  def first():
    with pytest.raises(downloads.DownloadError) as error:
      fetch(server.url(), cache)
    raised.append(str(error.value))

  thread = threading.Thread(target=first)
  thread.start()
  wait_for(lambda: server.bytes_sent)
  server.content = CONTENT
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  thread.join()
  assert "should begin" in raised[0]
  assert names_in(cache) == [NAME]


def test_a_file_that_arrives_while_the_lock_is_taken_is_not_downloaded_again(
  server, cache, monkeypatch
):
  monkeypatch.setattr(downloads, "_lock", lambda *_: (cache / NAME).write_bytes(CONTENT))
  assert fetch(server.url(), cache).read_bytes() == CONTENT
  assert server.ranges_asked == []
  assert names_in(cache) == [NAME]


def test_the_progress_bar_shows_bytes_and_goes_on_from_the_part(server, cache, capsys):
  leave_part(cache, CONTENT[:150_000])
  downloads.fetch(download_of(server.url(), cache))
  output = capsys.readouterr().err
  assert f"{NAME}:  50%" in output
  assert re.search(r"100%.*293k/293k \[.*B/s\]", output)
