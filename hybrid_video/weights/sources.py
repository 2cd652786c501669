"""Where pretrained weights come from: known names, URLs, and the folder that keeps downloads.

In: a local path, a URL, or a known name (`SOURCES`). Out: the path of a complete file, with its
SHA-256 checked wherever one is published.

A download grows as `<file>.part` and is renamed once it is whole and checked, so that nothing at
the final path is ever half-written. A lock on the `.part` file itself keeps processes apart: it
vanishes with its holder, leaves no file of its own behind, and passes with the rename. Locks are
POSIX ones.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import http.client
import logging
import os
import pathlib
import re
import shutil
from typing import Any, BinaryIO
import urllib.error
import urllib.parse
import urllib.request

import tqdm

CACHE_VARIABLE = "HYBRID_VIDEO_CACHE"
DEFAULT_CACHE = "~/.cache/hybrid_video/weights"
TIMEOUT_SECONDS = 30.0

_CHUNK_BYTES = 1 << 18
_WEB_SCHEMES = ("http", "https")
_HUB_NAME = re.compile(r"-([0-9a-f]{8,64})\.[A-Za-z0-9]+$")

log = logging.getLogger("hybrid_video")


class SourceError(ValueError):
  """Weights that cannot be had; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """One published file of weights.

  Attributes:
    name: what `locate` knows it by.
    url: where it is downloaded from.
    sha256_prefix: how the file's SHA-256 begins, lower-case hex; None where none is published.
    model: the architecture, a name of `hybrid_video.models`.
    num_classes: width of the logits; None for a pretraining model, which has none.
    frames: frames in a clip in training.
    licence: what is known of the terms; weights often state none of their own.
    origin: the page or file that says all this.
  """

  name: str
  url: str
  sha256_prefix: str | None
  model: str
  num_classes: int | None
  frames: int
  licence: str
  origin: str

  @property
  def file(self) -> str:
    """Its file name in the cache."""
    if self.sha256_prefix:
      return _url_name(self.url)
    # Hugging Face calls every model's weights the same.
    return self.name.replace("/", "-") + pathlib.PurePosixPath(_url_name(self.url)).suffix


_IG65M = "https://github.com/moabitcoin/ig65m-pytorch"
_HUGGING_FACE = "https://huggingface.co/MCG-NJU"


def _torchvision(model: str, prefix: str) -> Source:
  return Source(
    name=f"{model}/kinetics400",
    url=f"https://download.pytorch.org/models/{model}-{prefix}.pth",
    sha256_prefix=prefix,
    model=model,
    num_classes=400,
    frames=16,
    licence="none stated for the weights; torchvision's code is BSD-3-Clause",
    origin="https://github.com/pytorch/vision, torchvision/models/video/resnet.py",
  )


def _ig65m(name: str, prefix: str, trained: str, frames: int, num_classes: int) -> Source:
  return Source(
    name=f"r2plus1d_34/{name}",
    url=f"{_IG65M}/releases/download/v1.0.0/r2plus1d_34_clip{frames}_{trained}-{prefix}.pth",
    sha256_prefix=prefix,
    model="r2plus1d_34",
    num_classes=num_classes,
    frames=frames,
    licence="not known for the weights; the code that publishes them is MIT",
    origin=_IG65M,
  )


def _videomae(size: str, trained: str, repository: str, num_classes: int | None) -> Source:
  return Source(
    name=f"videomae_{size}/{trained}",
    url=f"{_HUGGING_FACE}/{repository}/resolve/main/model.safetensors",
    sha256_prefix=None,
    model=f"videomae_{size}",
    num_classes=num_classes,
    frames=16,
    licence="CC-BY-NC 4.0",
    origin=f"{_HUGGING_FACE}/{repository}",
  )


SOURCES: dict[str, Source] = {
  source.name: source
  for source in (
    _torchvision("r2plus1d_18", "91a641e6"),
    _torchvision("r3d_18", "b3b3357e"),
    _torchvision("mc3_18", "a90a0ba3"),
    _ig65m("ig65m_clip8", "9bae36ae", "ig65m_from_scratch", 8, 487),
    _ig65m("ig65m_clip32", "449a7af9", "ig65m_from_scratch", 32, 359),
    _ig65m("kinetics_clip8", "0aa0550b", "ft_kinetics_from_ig65m", 8, 400),
    _ig65m("kinetics_clip32", "ade133f1", "ft_kinetics_from_ig65m", 32, 400),
    # VideoMAE's own files lie on Google Drive, which has no lasting direct URL; these are
    # the copies under its authors' name on Hugging Face, with Hugging Face's key names.
    _videomae("small", "kinetics400", "videomae-small-finetuned-kinetics", 400),
    _videomae("base", "kinetics400", "videomae-base-finetuned-kinetics", 400),
    _videomae("large", "kinetics400", "videomae-large-finetuned-kinetics", 400),
    _videomae("base", "ssv2", "videomae-base-finetuned-ssv2", 174),
    _videomae("base", "pretraining", "videomae-base", None),
    _videomae("large", "pretraining", "videomae-large", None),
  )
}


def describe() -> list[dict[str, str]]:
  """The known weights as rows of a table, column heading to text, in the order of `SOURCES`."""
  return [
    {
      "name": source.name,
      "model": source.model,
      "classes": "none" if source.num_classes is None else str(source.num_classes),
      "frames": str(source.frames),
      "SHA-256 begins": source.sha256_prefix or "not published",
      "licence": source.licence,
      "origin": source.origin,
    }
    for source in SOURCES.values()
  ]


def locate(
  source: str, *, cache_dir: pathlib.Path | None = None, progress: bool = True
) -> pathlib.Path:
  """A complete local file of weights, downloaded first if need be.

  Args:
    source: a known name, an http(s) or file URL, or a local path. A name of `SOURCES` comes before
      a file of that name; write `./name` for the file.
    cache_dir: folder for downloads; by default the environment's HYBRID_VIDEO_CACHE, else
      `~/.cache/hybrid_video/weights`.
    progress: whether to show a bar with bytes, rate and time left during a download.

  Returns:
    The file's path. A file in the cache is hashed at every call: that costs about a second for
    300 MB, and sees what a stamp of an earlier check cannot: a wrong file put there by hand, and
    damage since.

  Raises:
    SourceError: no such name or file, a scheme other than http, https and file, a failed download,
      a full disk, or a wrong SHA-256. Where a download failed, the message names the file to put
      in place by hand.
  """
  if source in SOURCES:
    return _cached(_known(SOURCES[source], cache_dir), progress)
  if "://" in source:
    url = urllib.parse.urlsplit(source)
    if url.scheme == "file":
      return _local(_file_url_path(source))
    if url.scheme not in _WEB_SCHEMES:
      raise SourceError(
        f"Weights cannot be had from {source!r}: the scheme is {url.scheme!r}, and only http, "
        "https and file are read. Download it by hand and give the file's path."
      )
    for known in SOURCES.values():
      if known.url == source:
        return _cached(_known(known, cache_dir), progress)
    return _cached(_unknown(source, cache_dir), progress)
  path = pathlib.Path(source).expanduser()
  if path.exists() or source.startswith(("/", "~", ".")) or path.suffix:
    return _local(path)
  close = difflib.get_close_matches(source, SOURCES, n=3, cutoff=0.4)
  proposal = f" Did you mean {' or '.join(close)}?" if close else ""
  raise SourceError(
    f"{source!r} is no known name, and no file {path.absolute()} exists.{proposal} Known names: "
    f"{', '.join(SOURCES)}."
  )


@dataclasses.dataclass(frozen=True)
class _Download:
  """A URL, the file it becomes, and how that file's SHA-256 begins, if that is known."""

  url: str
  path: pathlib.Path
  sha256_prefix: str | None

  @property
  def part(self) -> pathlib.Path:
    return self.path.with_name(self.path.name + ".part")

  @property
  def etag_file(self) -> pathlib.Path:
    return self.path.with_name(self.path.name + ".part.etag")

  def etag(self) -> str | None:
    """The server's name for the version that the `.part` file is the beginning of."""
    try:
      return self.etag_file.read_text(encoding="latin-1") or None
    except FileNotFoundError:
      return None

  def discard(self) -> None:
    self.etag_file.unlink(missing_ok=True)
    self.part.unlink(missing_ok=True)

  def failure(self, reason: str) -> SourceError:
    """An error that says what went wrong and how to do without the network."""
    check = (
      f"its SHA-256 begins {self.sha256_prefix}" if self.sha256_prefix else "no hash is published"
    )
    return SourceError(
      f"{self.url} could not be downloaded: {reason}. Try again, or download it by hand on any "
      f"machine and save it as {self.path} ({check}), or give its path instead of the URL: a local "
      "file is taken as it is."
    )


def _cache_folder(cache_dir: pathlib.Path | None) -> pathlib.Path:
  folder = cache_dir or pathlib.Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)
  return folder.expanduser().absolute()


def _known(source: Source, cache_dir: pathlib.Path | None) -> _Download:
  return _Download(source.url, _cache_folder(cache_dir) / source.file, source.sha256_prefix)


def _unknown(url: str, cache_dir: pathlib.Path | None) -> _Download:
  name = _url_name(url)
  hub = _HUB_NAME.search(name)
  if not hub:
    # Without a hash in it a name may well stand at the end of two URLs.
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
  return _Download(url, _cache_folder(cache_dir) / name, hub.group(1) if hub else None)


def _url_name(url: str) -> str:
  """The last part of a URL's path, of characters that any file system takes."""
  name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
  return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[-128:] or "weights"


def _file_url_path(url: str) -> pathlib.Path:
  parts = urllib.parse.urlsplit(url)
  if parts.netloc not in ("", "localhost"):
    raise SourceError(
      f"{url!r} names the machine {parts.netloc!r}; a file URL reads this machine's files only and "
      "has three slashes: file:///folder/file."
    )
  return pathlib.Path(urllib.request.url2pathname(parts.path))


def _local(path: pathlib.Path) -> pathlib.Path:
  if path.is_dir():
    raise SourceError(f"{path} is a folder; give the file of weights in it.")
  if not path.is_file():
    raise SourceError(
      f"There is no file {path.absolute()}. Give the path of a file of weights, its URL, or one of "
      f"the known names: {', '.join(SOURCES)}."
    )
  return path


def _cached(download: _Download, progress: bool) -> pathlib.Path:
  """The download's file from the cache, fetched first if it is not there."""
  try:
    if not download.path.is_file():
      download.path.parent.mkdir(parents=True, exist_ok=True)
      if _fetch(download, progress):
        return download.path
    found = _sha256(download.path)
  except OSError as error:
    raise download.failure(
      f"{error.strerror or error} (in {download.path.parent}; ${CACHE_VARIABLE} names another folder)"
    ) from error
  if not found.startswith(download.sha256_prefix or ""):
    raise SourceError(
      f"{download.path} is not the file that {download.url} gives: its SHA-256 is {found} and "
      f"should begin {download.sha256_prefix}. Delete it, and it is downloaded again."
    )
  _report(download, found)
  return download.path


def _fetch(download: _Download, progress: bool) -> bool:
  """Downloads under a lock; False if another process brought the file in the meantime."""
  while not download.path.is_file():
    with download.part.open("ab") as file:
      _lock(file, download)
      if not _is_still(file, download.part):
        continue
      if download.path.is_file():
        download.discard()
        continue
      try:
        _transfer(download, file, _resumable_bytes(download, file), progress)
        file.flush()
        os.fsync(file.fileno())
        found = _sha256(download.part)
        if not found.startswith(download.sha256_prefix or ""):
          download.discard()
          raise download.failure(
            f"what it gives has the SHA-256 {found}, which should begin {download.sha256_prefix}"
          )
      except SourceError:
        if _size(file) == 0:
          download.discard()
        raise
      download.etag_file.unlink(missing_ok=True)
      download.part.rename(download.path)
    _report(download, found)
    return True
  return False


def _lock(file: BinaryIO, download: _Download) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    log.info("Another process is downloading %s; waiting for it.", download.path)
    fcntl.flock(file, fcntl.LOCK_EX)


def _is_still(file: BinaryIO, path: pathlib.Path) -> bool:
  """Whether the path still names the open file, or the last holder of the lock took it away."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False


def _size(file: BinaryIO) -> int:
  file.flush()
  return os.fstat(file.fileno()).st_size


def _resumable_bytes(download: _Download, file: BinaryIO) -> int:
  # With neither a hash nor an ETag, the halves of two versions could be joined unseen.
  return _size(file) if download.sha256_prefix or download.etag() else 0


class _WebRedirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects to the web only, and never from https to http."""

  def redirect_request(
    self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
  ) -> urllib.request.Request | None:
    scheme = urllib.parse.urlsplit(newurl).scheme
    if scheme not in _WEB_SCHEMES or (req.type == "https" and scheme == "http"):
      raise urllib.error.HTTPError(
        req.full_url, code, f"redirect to {newurl}, which is not followed", headers, fp
      )
    return super().redirect_request(req, fp, code, msg, headers, newurl)


def _content_range(headers: Any) -> tuple[int | None, int | None]:
  """First byte and total of a Content-Range, each None where it is not said (RFC 9110, 14.4)."""
  match = re.fullmatch(
    r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", (headers.get("Content-Range") or "").strip()
  )
  if not match:
    return None, None
  first, total = match.groups()
  return int(first) if first else None, int(total) if total != "*" else None


def _transfer(download: _Download, file: BinaryIO, offset: int, progress: bool) -> None:
  """Appends the bytes from `offset` on, or writes all anew where the server will not resume."""
  headers = {"User-Agent": "hybrid-video"}
  etag = download.etag()
  if offset:
    headers["Range"] = f"bytes={offset}-"
    if etag:
      headers["If-Range"] = etag
  opener = urllib.request.build_opener(_WebRedirects)
  try:
    request = urllib.request.Request(download.url, headers=headers)
    response = opener.open(request, timeout=TIMEOUT_SECONDS)
  except urllib.error.HTTPError as error:
    with contextlib.closing(error):
      if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
        raise download.failure(f"HTTP {error.code} {error.reason}") from error
      total = _content_range(error.headers)[1]
    if total != offset:
      _transfer(download, file, 0, progress)
    return
  except (OSError, http.client.HTTPException, ValueError) as error:
    raise download.failure(_reason(error)) from error
  with response:
    if response.status == http.HTTPStatus.PARTIAL_CONTENT and offset:
      first, total = _content_range(response.headers)
      if total is None and response.length is not None:
        total = offset + response.length
      # Some servers pass over If-Range and send the rest of another version.
      if first == offset and etag in (None, response.headers.get("ETag", etag)):
        _receive(download, response, file, total, progress)
        return
    elif response.status == http.HTTPStatus.OK:
      _start_anew(download, file, response.headers.get("ETag"))
      _receive(download, response, file, response.length, progress)
      return
    else:
      raise download.failure(f"HTTP {response.status} {response.reason}")
  _transfer(download, file, 0, progress)


def _start_anew(download: _Download, file: BinaryIO, etag: str | None) -> None:
  download.etag_file.unlink(missing_ok=True)
  file.truncate(0)
  # A weak ETag does not promise the same bytes, and If-Range must not carry it (RFC 9110, 13.1.5).
  if etag and not etag.startswith("W/"):
    download.etag_file.write_text(etag, encoding="latin-1")


def _receive(
  download: _Download,
  response: http.client.HTTPResponse,
  file: BinaryIO,
  total: int | None,
  progress: bool,
) -> None:
  """Appends the response's body to the file, up to `total` bytes in all."""
  if response.headers.get_content_type() == "text/html":
    raise download.failure("the server answers with a web page, not with a file")
  if total is None and not response.chunked and not download.sha256_prefix:
    raise download.failure(
      "neither its length nor its hash is known, so that a broken transfer would not be seen"
    )
  size = _size(file)
  log.info("Downloading %s to %s", download.url, download.path)
  free = shutil.disk_usage(download.path.parent).free
  if total is not None and total - size > free:
    raise download.failure(
      f"the disk of {download.path.parent} has {free / 1e6:.0f} MB free and {(total - size) / 1e6:.0f} "
      f"MB are missing; make room, or name another folder in ${CACHE_VARIABLE}"
    )
  with tqdm.tqdm(
    total=total,
    initial=size,
    unit="B",
    unit_scale=True,
    unit_divisor=1024,
    desc=download.path.name,
    disable=not progress,
  ) as bar:
    while total is None or size < total:
      # No more than was announced, whatever the server sends after it.
      wanted = _CHUNK_BYTES if total is None else min(_CHUNK_BYTES, total - size)
      try:
        chunk = response.read1(wanted)
      except (OSError, http.client.HTTPException) as error:
        raise download.failure(f"{_reason(error)} after {size} bytes, which are kept") from error
      if not chunk:
        break
      file.write(chunk)
      size += len(chunk)
      bar.update(len(chunk))
  if size == 0:
    raise download.failure("the server gives an empty file")
  if total is not None and size < total:
    raise download.failure(
      f"the connection ended after {size} of {total} bytes, which are kept: the next attempt goes "
      "on from there"
    )


def _reason(error: Exception) -> str:
  cause = getattr(error, "reason", error)
  if isinstance(cause, TimeoutError):
    return f"no answer in {TIMEOUT_SECONDS:.0f} seconds"
  return str(cause) or type(cause).__name__


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _report(download: _Download, sha256: str) -> None:
  if not download.sha256_prefix:
    log.warning(
      "%s was not verified, since no hash of it is published; its SHA-256 is %s",
      download.path,
      sha256,
    )
