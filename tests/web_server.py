"""A web server on loopback that misbehaves in chosen ways, for tests of downloads."""

import contextlib
import hashlib
import http.server
import random
import re
import threading
import time

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"weights-{SHA256[:8]}.pth"


class Server:
  """A web server for one test: what it does wrong, what it was asked for, and what it sent."""

  def __init__(self, port: int):
    self.address = f"http://127.0.0.1:{port}"
    self.content = CONTENT
    self.etag: str | None = '"first"'
    self.ranges = True
    self.heeds_if_range = True
    self.sends_first_range = False
    self.content_range: str | None = "bytes {first}-{last}/{total}"
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
    status, start = 200, 0
    asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
    same = not play.heeds_if_range or self.headers["If-Range"] in (None, play.etag)
    if asked and play.ranges and same:
      start, total = 0 if play.sends_first_range else int(asked[1]), len(play.content)
      if start >= total:
        etag = {"ETag": play.etag} if play.etag else {}
        self.answer(416, **{"Content-Range": f"bytes */{total}"}, **etag)
        return
      status = 206
      if play.content_range is not None:
        headers["Content-Range"] = play.content_range.format(
          first=start, last=total - 1, total=total
        )
    body = play.content[start:]
    if play.chunked:
      headers["Transfer-Encoding"] = "chunked"
    elif play.says_length:
      headers["Content-Length"] = str(len(body))
    self.answer(status, **headers)
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


@contextlib.contextmanager
def serving():
  """A web server for one test."""
  with ServerThread(("127.0.0.1", 0), Handler) as running:
    running.play = Server(running.server_port)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
      yield running.play
    finally:
      running.shutdown()
      thread.join()
