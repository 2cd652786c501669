"""Google Cloud Storage on loopback, its JSON API as far as TensorFlow, tensorstore, google-cloud-storage and
etils speak it: objects with generations and preconditions, uploads at once and in pieces, lists, ranges.

TensorFlow knows Google's own addresses alone, over TLS: it gets there by a proxy, which this server is too,
with a certificate of its own.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import email
import http.server
import json
import os
import pathlib
import re
import ssl
import subprocess
import sys
import threading
import time
from typing import Any
import urllib.parse
import urllib.request

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOSTS = ("storage.googleapis.com", "www.googleapis.com")
BUCKET = "bucket-of-tests"
CERTIFICATE = "certificate.pem"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclasses.dataclass
class Object:
  data: bytes
  generation: int
  updated: float


class _Contents:
  """The buckets, by name: objects by name."""

  def __init__(self) -> None:
    self.lock = threading.RLock()
    self.buckets: dict[str, dict[str, Object]] = {BUCKET: {}}
    self.uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
    self.denied = False
    self._generation = 1000

  def put(self, bucket: str, name: str, data: bytes) -> Object:
    self._generation += 1
    made = Object(bytes(data), self._generation, time.time())
    self.buckets[bucket][name] = made
    return made


class Store:
  """The bucket as a test sees it, in a process of its own: TensorFlow waits for answers with Python held."""

  def __init__(self, address: str):
    self._address = address

  def _ask(self, method: str, path: str, data: bytes = b"") -> bytes:
    request = urllib.request.Request(f"{self._address}{path}", data or None, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=20) as answer:
      return answer.read()

  def names(self, prefix: str = "") -> list[str]:
    """The objects whose names begin so."""
    items: list[dict[str, str]] = []
    token = ""
    while True:
      asked = urllib.parse.urlencode({"prefix": prefix, "pageToken": token})
      page = json.loads(self._ask("GET", f"/storage/v1/b/{BUCKET}/o?{asked}"))
      items += page.get("items", [])
      token = page.get("nextPageToken", "")
      if not token:
        return [item["name"] for item in items]

  def _path(self, name: str) -> str:
    return f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe='')}"

  def read(self, name: str) -> bytes:
    return self._ask("GET", f"{self._path(name)}?alt=media")

  def generation(self, name: str) -> int:
    return int(json.loads(self._ask("GET", self._path(name)))["generation"])

  def put(self, name: str, data: bytes) -> None:
    asked = urllib.parse.urlencode({"uploadType": "media", "name": name})
    self._ask("POST", f"/upload/storage/v1/b/{BUCKET}/o?{asked}", data)

  def set(self, what: str, value: str = "") -> None:
    """Changes the server: `clear`, `deny` (1 or ""), or `age` (an object by an hour)."""
    self._ask("POST", f"/test/{what}?{urllib.parse.urlencode({'value': value})}")


class _Refused(Exception):
  def __init__(self, status: int, reason: str):
    super().__init__(reason)
    self.status = status


def _described(bucket: str, name: str, found: Object) -> dict[str, Any]:
  time_of = datetime.datetime.fromtimestamp(found.updated, datetime.UTC)
  text = time_of.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
  return {
    "kind": "storage#object",
    "id": f"{bucket}/{name}/{found.generation}",
    "name": name,
    "bucket": bucket,
    "generation": str(found.generation),
    "metageneration": "1",
    "size": str(len(found.data)),
    "updated": text,
    "timeCreated": text,
  }


class Handler(http.server.BaseHTTPRequestHandler):
  server: "_Server"
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True

  def log_message(self, *_):
    pass

  def do_CONNECT(self) -> None:
    self.send_response(200)
    self.end_headers()
    self.wfile.flush()
    self.connection = self.server.context.wrap_socket(self.connection, server_side=True)
    self.rfile = self.connection.makefile("rb", self.rbufsize)
    self.wfile = self.connection.makefile("wb", 0)
    self.close_connection = False

  def finish(self) -> None:
    with contextlib.suppress(OSError):
      super().finish()
    if isinstance(self.connection, ssl.SSLSocket):
      self.connection.close()

  def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
    self.send_response(status)
    self.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(body)

  def _json(self, value: Any, status: int = 200) -> None:
    self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

  def _handle(self) -> None:
    self.body = self._request_body()
    url = urllib.parse.urlsplit(self.path)
    self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    parts = [urllib.parse.unquote(part) for part in url.path.lstrip("/").split("/")]
    try:
      with self.server.store.lock:
        self._route(url.path, parts)
    except _Refused as error:
      if error.status == 304:
        # It has no body by definition.
        self._answer(304)
        return
      self._json({"error": {"code": error.status, "message": str(error)}}, error.status)

  def _request_body(self) -> bytes:
    # TensorFlow says its length, too, and sends it in chunks.
    if self.headers.get("Transfer-Encoding") == "chunked":
      chunks = []
      while size := int(self.rfile.readline(), 16):
        chunks.append(self.rfile.read(size))
        self.rfile.readline()
      self.rfile.readline()
      return b"".join(chunks)
    length = int(self.headers.get("Content-Length") or 0)
    return self.rfile.read(length) if length else b""

  do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _handle

  def _route(self, path: str, parts: list[str]) -> None:
    if parts[0] == "test":
      return self._test(parts[1], self.query.get("value", ""))
    if self.server.store.denied:
      raise _Refused(403, "does not have storage.objects access")
    if parts[0] in ("upload", "resumable", "download"):
      kind, parts = parts[0], parts[1:]
    else:
      kind = ""
    if parts[:3] != ["storage", "v1", "b"]:
      # Without the JSON API: BUCKET/OBJECT.
      return self._read(parts[0], "/".join(parts[1:]))
    bucket = parts[3]
    if bucket not in self.server.store.buckets:
      raise _Refused(404, "The specified bucket does not exist.")
    if kind == "upload":
      return self._upload(bucket)
    if len(parts) == 4:
      return self._json({"kind": "storage#bucket", "name": bucket, "id": bucket})
    if len(parts) == 5 and self.command == "GET":
      return self._list(bucket)
    # A slash within a name is escaped.
    names = re.split(r"/o/", path, maxsplit=1)[1].split("/")
    name = urllib.parse.unquote(names[0])
    if "rewriteTo" in names or "copyTo" in names:
      return self._rewrite(bucket, name, names)
    if "compose" in names:
      return self._compose(bucket, name)
    if self.command == "DELETE":
      return self._delete(bucket, name)
    if kind == "download" or self.query.get("alt") == "media":
      return self._read(bucket, name)
    return self._json(_described(bucket, name, self._found(bucket, name)))

  def _test(self, what: str, value: str) -> None:
    store = self.server.store
    if what == "clear":
      store.buckets[BUCKET].clear()
    elif what == "deny":
      store.denied = bool(value)
    else:
      store.buckets[BUCKET][value].updated -= 3600
    self._answer(204)

  def _found(self, bucket: str, name: str) -> Object:
    found = self.server.store.buckets.get(bucket, {}).get(name)
    if found is None:
      raise _Refused(404, f"No such object: {bucket}/{name}")
    wanted = self.query.get("generation")
    if wanted and int(wanted) != found.generation:
      raise _Refused(404, f"No such object: {bucket}/{name}")
    self._check(found)
    return found

  def _check(self, found: Object | None, query: dict[str, str] | None = None) -> None:
    query = self.query if query is None else query
    generation = found.generation if found else 0
    if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
      raise _Refused(412, "At least one of the pre-conditions you specified did not hold.")
    if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
      raise _Refused(304, "Not Modified")

  def _read(self, bucket: str, name: str) -> None:
    found = self._found(bucket, name)
    headers = {"x_goog_generation": str(found.generation), "ETag": f'"{found.generation}"'}
    asked = _RANGE.fullmatch(self.headers.get("Range") or "")
    if not asked:
      return self._answer(200, found.data, **headers)
    first, size = int(asked[1]), len(found.data)
    last = min(int(asked[2]) if asked[2] else size - 1, size - 1)
    if first >= size:
      raise _Refused(416, "The requested range cannot be satisfied.")
    headers["Content_Range"] = f"bytes {first}-{last}/{size}"
    return self._answer(206, found.data[first : last + 1], **headers)

  def _list(self, bucket: str) -> None:
    prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
    entries: dict[str, Any] = {}
    for name, found in sorted(self.server.store.buckets[bucket].items()):
      start, end = self.query.get("startOffset", ""), self.query.get("endOffset")
      if not name.startswith(prefix) or name < start or (end and name >= end):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        entries[prefix + rest.partition(delimiter)[0] + delimiter] = None
      else:
        entries[name] = _described(bucket, name, found)
    after = self.query.get("pageToken", "")
    names = [name for name in sorted(entries) if name > after]
    most = min(int(self.query.get("maxResults") or 1000), self.server.page)
    page = names[:most]
    answer: dict[str, Any] = {"kind": "storage#objects"}
    if items := [entries[name] for name in page if entries[name]]:
      answer["items"] = items
    if prefixes := [name for name in page if not entries[name]]:
      answer["prefixes"] = prefixes
    if len(names) > most:
      answer["nextPageToken"] = page[-1]
    self._json(answer)

  def _upload(self, bucket: str) -> None:
    store, kind = self.server.store, self.query.get("uploadType")
    if "upload_id" in self.query:
      return self._piece(self.query["upload_id"])
    name = self.query.get("name", "")
    if kind == "resumable":
      name = name or json.loads(self.body or b"{}")["name"]
      number = str(len(store.uploads))
      store.uploads[number] = (bucket, name, self.query, bytearray())
      scheme = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
      path = f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
      return self._answer(200, Location=f"{scheme}://{self.headers['Host']}{path}")
    data = self.body
    if kind == "multipart":
      head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
      boundary = email.message_from_bytes(head).get_boundary()
      _, first, second, _ = data.split(f"--{boundary}".encode())
      name = name or json.loads(first.partition(b"\r\n\r\n")[2])["name"]
      data = second.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
    return self._finish_upload(bucket, name, self.query, data)

  def _finish_upload(self, bucket: str, name: str, query: dict[str, str], data: bytes) -> None:
    self._check(self.server.store.buckets[bucket].get(name), query)
    self._json(_described(bucket, name, self.server.store.put(bucket, name, data)))

  def _piece(self, number: str) -> None:
    bucket, name, query, data = self.server.store.uploads[number]
    asked = _CONTENT_RANGE.fullmatch(self.headers.get("Content-Range") or "")
    if asked and asked[1] is not None:
      data[int(asked[1]) :] = self.body
    elif not asked:
      data[:] = self.body
    if asked and (asked[3] == "*" or len(data) < int(asked[3])):
      return self._answer(308, **({"Range": f"bytes=0-{len(data) - 1}"} if data else {}))
    return self._finish_upload(bucket, name, query, bytes(data))

  def _rewrite(self, bucket: str, name: str, names: list[str]) -> None:
    data = self._found(bucket, name).data
    target, to = names[names.index("b") + 1], urllib.parse.unquote(names[-1])
    made = _described(target, to, self.server.store.put(target, to, data))
    size = str(len(data))
    done = {"done": True, "totalBytesRewritten": size, "objectSize": size, "resource": made}
    self._json({"kind": "storage#rewriteResponse", **done} if "rewriteTo" in names else made)

  def _compose(self, bucket: str, name: str) -> None:
    sources = json.loads(self.body)["sourceObjects"]
    data = b"".join(self.server.store.buckets[bucket][source["name"]].data for source in sources)
    self._json(_described(bucket, name, self.server.store.put(bucket, name, data)))

  def _delete(self, bucket: str, name: str) -> None:
    self._found(bucket, name)
    del self.server.store.buckets[bucket][name]
    self._answer(204)


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  store: _Contents
  context: ssl.SSLContext
  # Objects in one answer of a list.
  page = 1000

  def handle_error(self, *_):
    # A client that was killed.
    pass


def _certificate(folder: pathlib.Path) -> pathlib.Path:
  """Writes a key and a certificate for Google's addresses that is its own authority."""
  key = ec.generate_private_key(ec.SECP256R1())
  name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTS[0])])
  now = datetime.datetime.now(datetime.UTC)
  certificate = (
    x509.CertificateBuilder()
    .subject_name(name)
    .issuer_name(name)
    .public_key(key.public_key())
    .serial_number(x509.random_serial_number())
    .not_valid_before(now - datetime.timedelta(days=1))
    .not_valid_after(now + datetime.timedelta(days=1))
    .add_extension(x509.SubjectAlternativeName([*map(x509.DNSName, HOSTS)]), critical=False)
    .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    .sign(key, hashes.SHA256())
  )
  encoding = serialization.Encoding.PEM
  private = key.private_bytes(
    encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
  )
  file = folder / CERTIFICATE
  file.write_bytes(certificate.public_bytes(encoding) + private)
  return file


def _serve(folder: pathlib.Path) -> None:
  """Serves until its parent ends or closes its input."""
  with _Server(("127.0.0.1", 0), Handler) as server:
    server.store = _Contents()
    server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.context.load_cert_chain(_certificate(folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
    server.shutdown()


@contextlib.contextmanager
def serving(folder: pathlib.Path) -> Iterator[tuple[Store, dict[str, str]]]:
  """A store on loopback, and the environment in which programs use it.

  Args:
    folder: for the certificate.
  """
  command = [sys.executable, __file__, os.fspath(folder)]
  with subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  ) as server:
    assert server.stdin is not None and server.stdout is not None
    address = f"http://127.0.0.1:{int(server.stdout.readline())}"
    environment = {
      "STORAGE_EMULATOR_HOST": address,
      "TENSORSTORE_GCS_HTTP_URL": address,
      "https_proxy": address,
      "HTTPS_PROXY": address,
      "no_proxy": "127.0.0.1,localhost",
      "CURL_CA_BUNDLE": os.fspath(folder / CERTIFICATE),
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
      "NO_GCE_CHECK": "true",
      "GOOGLE_CLOUD_PROJECT": "project",
    }
    try:
      yield Store(address), environment
    finally:
      server.stdin.close()
      try:
        server.wait(10)
      except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
  _serve(pathlib.Path(sys.argv[1]))
