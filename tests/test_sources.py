import contextlib
import hashlib
import http.server
import logging
import pathlib
import random
import re
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

from hybrid_video.weights import sources

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"weights-{SHA256[:8]}.pth"
ROOT = pathlib.Path(__file__).parent.parent


class Server:
  """A web server for one test: what it shall do wrong, and what it was asked for and sent."""

  def __init__(self, port: int):
    self.address = f"http://127.0.0.1:{port}"
    self.content = CONTENT
    self.etag: str | None = '"first"'
    self.ranges = True
    self.heeds_if_range = True
    self.sends_first_range = False
    self.excess = b""
    self.break_off_after: int | None = None
    self.seconds_a_chunk = 0.0
    self.content_type = "application/octet-stream"
    self.says_length = True
    self.chunked = False
    self.ranges_asked: list[str | None] = []
    self.bytes_sent = 0
    self.counting = threading.Lock()

  def url(self, name: str = NAME) -> str:
    return f"{self.address}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
  server: "ServerThread"
  protocol_version = "HTTP/1.1"

  def do_GET(self) -> None:
    play = self.server.play
    with play.counting:
      play.ranges_asked.append(self.headers["Range"])
    self.close_connection = True
    action, _, rest = self.path[1:].partition("/")
    if action == "missing":
      self.answer(404)
    elif action == "redirect":
      self.answer(302, Location=f"/{rest}")
    elif action == "redirect-to-ftp":
      self.answer(302, Location="ftp://127.0.0.1/file")
    else:
      self.send_file(play)

  def send_file(self, play: Server) -> None:
    headers = {"Content-Type": play.content_type}
    if play.etag:
      headers["ETag"] = play.etag
    start = 0
    asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
    same = not play.heeds_if_range or self.headers["If-Range"] in (None, play.etag)
    if asked and play.ranges and same:
      start, total = 0 if play.sends_first_range else int(asked[1]), len(play.content)
      if start >= total:
        self.answer(416, **{"Content-Range": f"bytes */{total}"})
        return
      headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
    body = play.content[start:]
    if play.chunked:
      headers["Transfer-Encoding"] = "chunked"
    elif play.says_length:
      headers["Content-Length"] = str(len(body))
    self.answer(206 if "Content-Range" in headers else 200, **headers)
    if play.break_off_after is not None:
      body = body[: play.break_off_after]
    body += play.excess
    with contextlib.suppress(ConnectionError):
      for at in range(0, len(body), 20_000):
        piece = body[at : at + 20_000]
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if play.chunked else piece)
        with play.counting:
          play.bytes_sent += len(piece)
        time.sleep(play.seconds_a_chunk)
      if play.chunked and play.break_off_after is None:
        self.wfile.write(b"0\r\n\r\n")

  def answer(self, status: int, **headers: str) -> None:
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key, value)
    if status >= 300:
      self.send_header("Content-Length", "0")
    self.end_headers()

  def log_message(self, *_):
    pass


class ServerThread(http.server.ThreadingHTTPServer):
  play: Server


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  with ServerThread(("127.0.0.1", 0), Handler) as running:
    running.play = Server(running.server_port)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running.play
    running.shutdown()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
  folder = tmp_path / "cache"
  monkeypatch.setenv(sources.CACHE_VARIABLE, str(folder))
  return folder


@pytest.fixture
def logged(caplog):
  logger = logging.getLogger("hybrid_video")
  logger.addHandler(caplog.handler)
  with caplog.at_level(logging.INFO, logger="hybrid_video"):
    yield caplog
  logger.removeHandler(caplog.handler)


def locate(source) -> pathlib.Path:
  return sources.locate(str(source), progress=False)


def leave_part(cache: pathlib.Path, content: bytes, name: str = NAME) -> pathlib.Path:
  cache.mkdir(parents=True, exist_ok=True)
  part = cache / f"{name}.part"
  part.write_bytes(content)
  return part


def names_in(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def test_a_download_arrives_whole_and_leaves_nothing_beside_it(server, cache):
  path = locate(server.url())
  assert path == cache / NAME
  assert path.read_bytes() == CONTENT
  assert names_in(cache) == [NAME]


def test_a_file_in_the_cache_needs_no_request(server, cache):
  locate(server.url())
  server.ranges_asked.clear()
  assert locate(server.url()).read_bytes() == CONTENT
  assert server.ranges_asked == []


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


def test_a_resumed_download_asks_only_for_the_rest(server, cache):
  leave_part(cache, CONTENT[:123_456])
  assert locate(server.url()).read_bytes() == CONTENT
  assert server.ranges_asked == ["bytes=123456-"]
  assert server.bytes_sent == len(CONTENT) - 123_456


def test_a_server_that_ignores_ranges_sends_everything_anew(server, cache):
  server.ranges = False
  leave_part(cache, b"x" * 123_456)
  assert locate(server.url()).read_bytes() == CONTENT
  assert server.bytes_sent == len(CONTENT)
  assert names_in(cache) == [NAME]


def test_a_server_that_sends_another_range_is_asked_for_everything(server, cache):
  server.sends_first_range = True
  leave_part(cache, CONTENT[:123_456])
  assert locate(server.url()).read_bytes() == CONTENT
  assert server.ranges_asked == ["bytes=123456-", None]


def test_bytes_beyond_the_announced_length_are_left_out(server, cache):
  server.excess = b"x" * 5000
  assert locate(server.url("model.bin")).read_bytes() == CONTENT


def test_a_part_that_is_already_whole_is_only_renamed(server, cache):
  leave_part(cache, CONTENT)
  assert locate(server.url()).read_bytes() == CONTENT
  assert server.bytes_sent == 0


def test_a_part_longer_than_the_file_is_thrown_away(server, cache):
  leave_part(cache, CONTENT + b"more")
  assert locate(server.url()).read_bytes() == CONTENT
  assert server.ranges_asked == [f"bytes={len(CONTENT) + 4}-", None]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_transfer_cut_off_is_kept_and_the_next_call_completes_it(server, cache, chunked):
  server.break_off_after, server.chunked = 100_000, chunked
  with pytest.raises(sources.SourceError, match=r"after 100000 .*which are kept"):
    locate(server.url())
  assert not (cache / NAME).exists()
  assert (cache / f"{NAME}.part").read_bytes() == CONTENT[:100_000]
  server.break_off_after = None
  assert locate(server.url()).read_bytes() == CONTENT
  assert server.ranges_asked == [None, "bytes=100000-"]
  assert names_in(cache) == [NAME]


def test_a_wrong_hash_removes_the_part_and_says_both_hashes(server, cache):
  server.content = CONTENT[::-1]
  found = hashlib.sha256(server.content).hexdigest()
  with pytest.raises(sources.SourceError, match=f"{found}, which should begin {SHA256[:8]}"):
    locate(server.url())
  assert names_in(cache) == []


def test_a_part_of_another_file_is_found_by_the_hash_and_does_not_come_back(server, cache):
  leave_part(cache, b"x" * 1000)
  with pytest.raises(sources.SourceError, match="should begin"):
    locate(server.url())
  assert locate(server.url()).read_bytes() == CONTENT


@pytest.mark.parametrize(
  ("path", "reason"),
  [
    (f"missing/{NAME}", "HTTP 404 Not Found"),
    (f"redirect-to-ftp/{NAME}", "redirect to ftp://127.0.0.1/file, which is not followed"),
  ],
)
def test_a_refusal_says_the_status_and_what_to_put_where_by_hand(server, cache, path, reason):
  with pytest.raises(sources.SourceError) as error:
    locate(server.url(path))
  for expected in (server.url(path), reason, str(cache / NAME), f"begins {SHA256[:8]}"):
    assert expected in str(error.value)
  assert names_in(cache) == []


def test_an_unreachable_server_is_named_with_the_file_to_fetch_by_hand(cache, monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  with socket.create_server(("127.0.0.1", 0)) as taken:
    url = f"http://127.0.0.1:{taken.getsockname()[1]}/{NAME}"
  with pytest.raises(sources.SourceError) as error:
    locate(url)
  for expected in (url, "Connection refused", str(cache / NAME), f"begins {SHA256[:8]}"):
    assert expected in str(error.value)


def test_a_server_that_falls_silent_is_given_up(server, cache, monkeypatch):
  monkeypatch.setattr(sources, "TIMEOUT_SECONDS", 0.5)
  server.seconds_a_chunk = 1.5
  server.content = CONTENT[:40_000]
  with pytest.raises(sources.SourceError, match=r"no answer in .* after 20000 bytes"):
    locate(server.url())
  assert (cache / f"{NAME}.part").stat().st_size == 20_000


def test_a_redirect_is_followed_and_the_first_url_names_the_file(server, cache):
  leave_part(cache, CONTENT[:1000])
  assert locate(server.url(f"redirect/there/{NAME}")) == cache / NAME
  assert server.ranges_asked == ["bytes=1000-"] * 2
  assert (cache / NAME).read_bytes() == CONTENT


def test_a_file_without_a_known_hash_is_taken_and_its_own_hash_logged(server, cache, logged):
  path = locate(server.url("model.safetensors"))
  assert path.read_bytes() == CONTENT
  assert path.name.endswith("-model.safetensors")
  assert f"was not verified, since no hash of it is published; its SHA-256 is {SHA256}" in (
    logged.text
  )


def test_a_file_whose_hash_was_checked_is_not_reported(server, cache, logged):
  locate(server.url())
  assert "not verified" not in logged.text


def test_two_urls_that_end_alike_have_two_files(server, cache):
  one = locate(server.url("one/model.safetensors"))
  server.content = b"other"
  two = locate(server.url("two/model.safetensors"))
  assert (one.read_bytes(), two.read_bytes()) == (CONTENT, b"other")


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
  with pytest.raises(sources.SourceError, match="after 100000"):
    locate(server.url("model.bin"))
  server.break_off_after, server.etag, server.heeds_if_range = None, etag, heeds_if_range
  server.content = CONTENT if resumed else CONTENT[::-1]
  server.bytes_sent = 0
  path = locate(server.url("model.bin"))
  assert path.read_bytes() == server.content
  assert names_in(cache) == [path.name]
  assert len(server.ranges_asked) == (2 if heeds_if_range else 3)
  if resumed:
    assert server.bytes_sent == len(CONTENT) - 100_000


def test_a_download_whose_end_could_not_be_told_is_refused(server, cache):
  server.says_length = False
  with pytest.raises(sources.SourceError, match="neither its length nor its hash"):
    locate(server.url("model.bin"))
  assert locate(server.url()).read_bytes() == CONTENT


def test_a_chunked_download_needs_no_length(server, cache):
  server.chunked = True
  assert locate(server.url("model.bin")).read_bytes() == CONTENT


def test_a_web_page_in_place_of_a_file_is_refused(server, cache):
  server.content_type = "text/html; charset=utf-8"
  with pytest.raises(sources.SourceError, match="a web page"):
    locate(server.url("model.bin"))
  assert names_in(cache) == []


def test_an_empty_file_is_refused(server, cache):
  server.content = b""
  with pytest.raises(sources.SourceError, match="an empty file"):
    locate(server.url("model.bin"))
  assert names_in(cache) == []


def test_a_full_disk_is_told_before_the_download(server, cache, monkeypatch):
  monkeypatch.setattr(sources.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
  with pytest.raises(sources.SourceError, match=r"0 MB free .* \$HYBRID_VIDEO_CACHE"):
    locate(server.url())
  assert names_in(cache) == []


def test_a_disk_that_fills_up_meanwhile_is_told_with_its_folder(server, cache):
  # A limit on the size of files stands in for a disk: the write itself fails.
  code = (
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
    "from hybrid_video.weights import sources;"
    f"sources.locate({server.url()!r}, progress=False)"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert f"SourceError: {server.url()} could not be downloaded: File too large (in {cache}" in (
    result.stderr
  )
  assert names_in(cache) == [f"{NAME}.part", f"{NAME}.part.etag"]


def test_a_cache_that_cannot_be_made_is_told_with_its_folder(server, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(sources.SourceError, match=r"could not be downloaded: .*file/cache"):
    sources.locate(server.url(), cache_dir=tmp_path / "file" / "cache", progress=False)


def test_threads_that_want_one_file_download_it_once(server, cache, logged):
  server.seconds_a_chunk = 0.02
  sizes, found, done = set(), [], threading.Event()

  def watch():
    while not done.is_set():
      with contextlib.suppress(FileNotFoundError):
        sizes.add((cache / NAME).stat().st_size)

  watcher = threading.Thread(target=watch)
  workers = [
    threading.Thread(target=lambda: found.append(locate(server.url()).read_bytes()))
    for _ in range(4)
  ]
  for thread in (watcher, *workers):
    thread.start()
  for thread in workers:
    thread.join()
  done.set()
  watcher.join()
  assert found == [CONTENT] * 4
  assert server.bytes_sent == len(CONTENT)
  assert sizes <= {len(CONTENT)}
  assert names_in(cache) == [NAME]
  assert "Another process is downloading" in logged.text


def start_process(server: Server) -> subprocess.Popen:
  code = "import sys; from hybrid_video.weights import sources; sources.locate(sys.argv[1])"
  return subprocess.Popen(
    [sys.executable, "-c", code, server.url()], cwd=ROOT, stderr=subprocess.DEVNULL
  )


def wait_for(condition) -> None:
  deadline = time.monotonic() + 15
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_a_process_waits_for_the_download_of_another(server, cache):
  server.seconds_a_chunk = 0.03
  with start_process(server) as other:
    wait_for(lambda: server.bytes_sent)
    assert locate(server.url()).read_bytes() == CONTENT
    assert other.wait() == 0
  assert server.bytes_sent == len(CONTENT)
  assert len(server.ranges_asked) == 1


def test_a_killed_process_leaves_a_part_that_the_next_one_completes(server, cache):
  server.seconds_a_chunk = 0.2
  part = cache / f"{NAME}.part"
  with start_process(server) as other:
    wait_for(lambda: part.exists() and part.stat().st_size)
    other.kill()
  kept = part.stat().st_size
  assert not (cache / NAME).exists()
  server.seconds_a_chunk = 0.0
  assert locate(server.url()).read_bytes() == CONTENT
  assert server.ranges_asked == [None, f"bytes={kept}-"]


def test_a_waiting_process_takes_over_where_the_first_one_fails(server, cache):
  server.seconds_a_chunk, server.break_off_after = 0.05, 60_000
  errors = []

  def first():
    with pytest.raises(sources.SourceError) as error:
      locate(server.url())
    errors.append(error.value)

  thread = threading.Thread(target=first)
  thread.start()
  wait_for(lambda: server.bytes_sent)
  server.break_off_after = None
  assert locate(server.url()).read_bytes() == CONTENT
  thread.join()
  assert len(errors) == 1
  assert server.ranges_asked == [None, "bytes=60000-"]


def test_a_waiting_process_starts_anew_where_the_first_one_got_a_wrong_file(server, cache):
  server.seconds_a_chunk, server.content = 0.03, CONTENT[::-1]
  errors = []

  def first():
    with pytest.raises(sources.SourceError) as error:
      locate(server.url())
    errors.append(str(error.value))

  thread = threading.Thread(target=first)
  thread.start()
  wait_for(lambda: server.bytes_sent)
  server.content = CONTENT
  assert locate(server.url()).read_bytes() == CONTENT
  thread.join()
  assert "should begin" in errors[0]
  assert names_in(cache) == [NAME]


def test_a_file_that_arrives_while_the_lock_is_taken_is_not_downloaded_again(
  server, cache, monkeypatch
):
  monkeypatch.setattr(sources, "_lock", lambda *_: (cache / NAME).write_bytes(CONTENT))
  assert locate(server.url()).read_bytes() == CONTENT
  assert server.ranges_asked == []
  assert names_in(cache) == [NAME]


def test_the_progress_bar_shows_bytes_and_goes_on_from_the_part(server, cache, capsys):
  leave_part(cache, CONTENT[:150_000])
  sources.locate(server.url())
  shown = capsys.readouterr().err
  assert f"{NAME}:  50%" in shown
  assert re.search(r"100%.*293k/293k \[.*B/s\]", shown)


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
    ("ftp://127.0.0.1/file.pth", "the scheme is 'ftp', and only http, https and file"),
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
