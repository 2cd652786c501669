"""Google's metadata server, on loopback."""

from collections.abc import Iterator
import contextlib
from http import server
import threading


@contextlib.contextmanager
def serving(values: dict[str, str]) -> Iterator[str]:
  """Serves values by their keys, which may change meanwhile; gives HOST:PORT."""

  class Handler(server.BaseHTTPRequestHandler):
    def do_GET(self):
      value = values.get(self.path.removeprefix("/computeMetadata/v1/"))
      asked_rightly = self.headers.get("Metadata-Flavor") == "Google"
      self.send_response(403 if not asked_rightly else 404 if value is None else 200)
      self.end_headers()
      if asked_rightly and value is not None:
        self.wfile.write(value.encode())

    def log_message(self, *_):
      pass

  with server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    try:
      yield f"127.0.0.1:{running.server_port}"
    finally:
      running.shutdown()
