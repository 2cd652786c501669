"""Downloads of large files: weights and archives of videos.

In: a URL, the path for its file, and its checksum where one is published. Out: the complete file,
checked.

A download grows as `<file>.part` and is renamed once it is whole and checked, so that nothing at
the final path is ever half-written; what arrived before an interruption is kept and the next call
goes on from there. A lock on the `.part` file lets one process download at a time: it ends with its
holder, leaves no file of its own behind, and passes with the rename. Locks are POSIX ones.
"""

import contextlib
import dataclasses
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

from hybrid_video import buckets, errors, files, paths

TIMEOUT_SECONDS = 30.0
WEB_SCHEMES = ("http", "https")

_CHUNK_BYTES, _OBJECT_CHUNK_BYTES = 1 << 18, 1 << 24
_ALGORITHMS = {"sha256": "SHA-256", "md5": "MD5"}

log = logging.getLogger("hybrid_video")


class DownloadError(errors.UserError):
  """A file that cannot be downloaded; the message says why and what to do.

  Attributes:
    reason: why, in a few words, for a message about several URLs.
  """

  def __init__(self, message: str, reason: str):
    super().__init__(message)
    self.reason = reason


class ChecksumError(DownloadError):
  """A file that is not the published one; the message has both checksums."""


@dataclasses.dataclass(frozen=True)
class Checksum:
  """The beginning of a file's SHA-256 or MD5, or all of it.

  Attributes:
    algorithm: "sha256" or "md5".
    begins: hex digits; lower case after construction.

  Raises:
    ValueError: another algorithm, no hex digits, or more of them than the algorithm has.
  """

  algorithm: str
  begins: str

  def __post_init__(self) -> None:
    if self.algorithm not in _ALGORITHMS:
      raise ValueError(f"The checksum {self.algorithm!r} is none of {', '.join(_ALGORITHMS)}.")
    digits = 2 * hashlib.new(self.algorithm, usedforsecurity=False).digest_size
    if not re.fullmatch(f"[0-9a-fA-F]{{1,{digits}}}", self.begins):
      raise ValueError(
        f"{self.begins!r} is no {self.title}: expected up to {digits} digits of 0 to 9 and a to f."
      )
    object.__setattr__(self, "begins", self.begins.lower())

  @property
  def title(self) -> str:
    """The algorithm's name for people."""
    return _ALGORITHMS[self.algorithm]

  def accepts(self, digest: str) -> bool:
    """Whether a whole digest, lower-case hex, is this one."""
    return digest.startswith(self.begins)

  def __str__(self) -> str:
    return f"{self.title} begins {self.begins}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download:
  """A URL and the file it becomes.

  Attributes:
    url: http, https or gs.
    path: for the file.
    checksum: of the whole file; None where none is published.
    other_folder: advice for a full disk: how to set another folder.
    alternative: what the user can do instead of saving the file by hand; "" if nothing.
  """

  url: str
  path: pathlib.Path
  checksum: Checksum | None
  other_folder: str
  alternative: str = ""

  @property
  def part(self) -> pathlib.Path:
    """The file while it is incomplete."""
    return self.path.with_name(self.path.name + files.PART)

  @property
  def etag_file(self) -> pathlib.Path:
    """Holds which version the `.part` file is the beginning of, and the URL that named it."""
    return self.part.with_name(self.part.name + ".etag")

  def etag(self) -> str | None:
    """The server's name for the version that the `.part` file is the beginning of."""
    try:
      text = self.etag_file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
      return None
    url, _, etag = text.partition("\n")
    # Another server names the same bytes otherwise.
    return etag if etag and url == self.url else None

  def remember_etag(self, etag: str) -> None:
    """Notes the version that the `.part` file will be the beginning of."""
    files.write_text(self.etag_file, f"{self.url}\n{etag}")

  def discard(self) -> None:
    """Removes what has arrived so far."""
    self.etag_file.unlink(missing_ok=True)
    self.part.unlink(missing_ok=True)

  def failure(self, reason: str, kind: type[DownloadError] = DownloadError) -> DownloadError:
    """An error that says what went wrong and how to get the file by hand."""
    check = f"its {self.checksum}" if self.checksum else "no hash is published"
    return kind(
      f"{self.url} could not be downloaded: {reason}. Try again, or download it by hand on any "
      f"machine and save it as {self.path} ({check}){self.alternative}.",
      reason,
    )


def fetch(download: Download, *, progress: bool = True) -> pathlib.Path:
  """The download's file, downloaded first if it is not there.

  Args:
    download: what to download, and where to.
    progress: whether to show a bar with bytes, rate and time left.

  Returns:
    `download.path`. A file that is there already is hashed at every call: that costs about a
    second for 300 MB, and notices what a stamp of an earlier check cannot: a wrong file put there
    by hand, and later damage.

  Raises:
    ChecksumError: what the URL gives, which is then removed, or the file that was there before,
      which is left as it is, has another checksum.
    DownloadError: a failed download or a full disk.
  """
  try:
    if not download.path.is_file():
      download.path.parent.mkdir(parents=True, exist_ok=True)
      if _download(download, progress):
        return download.path
    actual = digest(download.path, download.checksum)
  except OSError as error:
    raise download.failure(
      f"{error.strerror or error} (in {download.path.parent}; {download.other_folder})"
    ) from error
  if download.checksum and not download.checksum.accepts(actual):
    reason = (
      f"its {download.checksum.title} is {actual} and should begin {download.checksum.begins}"
    )
    raise ChecksumError(
      f"{download.path} is not the file that {download.url} gives: {reason}. Delete it, and it is "
      "downloaded again.",
      reason,
    )
  _report(download, actual)
  return download.path


def digest(path: pathlib.Path, checksum: Checksum | None = None) -> str:
  """A file's digest by the checksum's algorithm, SHA-256 without one: lower-case hex.

  Raises:
    OSError: the file cannot be read.
  """
  # MD5 only serves to notice damage, for files that have no better checksum published.
  new = hashlib.new(checksum.algorithm if checksum else "sha256", usedforsecurity=False)
  with path.open("rb") as file:
    return hashlib.file_digest(file, lambda: new).hexdigest()


def _download(download: Download, progress: bool) -> bool:
  """Downloads under a lock; False if another process finished the file in the meantime."""
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
        actual = digest(download.part, download.checksum)
        if download.checksum and not download.checksum.accepts(actual):
          download.discard()
          raise download.failure(
            f"what it gives has the {download.checksum.title} {actual}, which should begin "
            f"{download.checksum.begins}, and was removed",
            ChecksumError,
          )
      except DownloadError:
        if _size(file) == 0:
          download.discard()
        raise
      download.etag_file.unlink(missing_ok=True)
      download.part.rename(download.path)
    _report(download, actual)
    return True
  return False


def _lock(file: BinaryIO, download: Download) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    log.info("Another process is downloading %s; waiting for it.", download.path)
    fcntl.flock(file, fcntl.LOCK_EX)


def _is_still(file: BinaryIO, path: pathlib.Path) -> bool:
  """Whether the path still names the open file: the last holder of the lock may have moved it."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False


def _size(file: BinaryIO) -> int:
  file.flush()
  return os.fstat(file.fileno()).st_size


def _resumable_bytes(download: Download, file: BinaryIO) -> int:
  # With neither a hash nor an ETag, the halves of two versions could be joined unnoticed.
  return _size(file) if download.checksum or download.etag() else 0


class _WebRedirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects to the web only, and never from https to http."""

  def redirect_request(
    self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
  ) -> urllib.request.Request | None:
    scheme = urllib.parse.urlsplit(newurl).scheme
    if scheme not in WEB_SCHEMES or (req.type == "https" and scheme == "http"):
      raise urllib.error.HTTPError(
        req.full_url, code, f"redirect to {newurl}, which is not followed", headers, fp
      )
    return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclasses.dataclass(frozen=True)
class _ContentRange:
  """A Content-Range (RFC 9110, 14.4): each number None where it is not said."""

  first: int | None = None
  last: int | None = None
  total: int | None = None

  @classmethod
  def of(cls, headers: Any) -> "_ContentRange":
    """Reads it from an answer's headers."""
    text = (headers.get("Content-Range") or "").strip()
    match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", text)
    if not match:
      return cls()
    return cls(*(int(number) if number and number != "*" else None for number in match.groups()))

  def continues(self, offset: int, length: int | None) -> bool:
    """Whether a body of `length` bytes (None: unknown) goes on at `offset`, by these numbers.

    Without a total it is not known whether the body goes on to the file's end.
    """
    if self.first is None or self.last is None or self.total is None:
      return False
    fits = self.first == offset and self.first <= self.last < self.total
    return fits and length in (None, self.last - self.first + 1)


def _transfer(download: Download, file: BinaryIO, offset: int, progress: bool) -> None:
  """Appends the bytes from `offset` on, or starts over where the server cannot go on for sure."""
  if download.url.startswith(paths.BUCKETS):
    _copy(download, file, progress)
    return
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
      is_whole = _ContentRange.of(error.headers).total == offset
      is_whole = is_whole and _is_same_version(download, error.headers)
    if not is_whole:
      _transfer(download, file, 0, progress)
    return
  except (OSError, http.client.HTTPException, ValueError) as error:
    raise download.failure(_reason(error)) from error
  with response:
    if response.status == http.HTTPStatus.OK:
      _start_over(download, file, response.headers.get("ETag"))
      _receive(download, response, file, response.length, progress)
      return
    if response.status != http.HTTPStatus.PARTIAL_CONTENT or not offset:
      raise download.failure(f"HTTP {response.status} {response.reason}")
    sent = _ContentRange.of(response.headers)
    if sent.continues(offset, response.length) and _is_same_version(download, response.headers):
      _receive(download, response, file, sent.total, progress)
      return
  _transfer(download, file, 0, progress)


def _is_same_version(download: Download, headers: Any) -> bool:
  """Whether an answer is of the version that the `.part` file is the beginning of.

  Some servers ignore If-Range and send the rest of another version. Where a hash is published, it
  notices that, so only an ETag that says otherwise counts; where none is, the ETag must be there.
  """
  etag, sent = download.etag(), headers.get("ETag")
  if download.checksum:
    return etag is None or sent in (None, etag)
  return sent is not None and sent == etag


def _start_over(download: Download, file: BinaryIO, etag: str | None) -> None:
  download.etag_file.unlink(missing_ok=True)
  file.truncate(0)
  # A weak ETag does not promise the same bytes, and If-Range must not carry it (RFC 9110, 13.1.5).
  if etag and not etag.startswith("W/"):
    download.remember_etag(etag)


def _receive(
  download: Download,
  response: http.client.HTTPResponse,
  file: BinaryIO,
  total: int | None,
  progress: bool,
) -> None:
  """Appends the response's body to the file, up to `total` bytes in all."""
  if response.headers.get_content_type() == "text/html":
    raise download.failure("the server answers with a web page, not with a file")
  if total is None and not response.chunked and not download.checksum:
    raise download.failure(
      "neither its length nor its hash is known, so that a broken transfer would not be noticed"
    )
  size = _size(file)
  log.info("Downloading %s to %s", download.url, download.path)
  if total is not None:
    _check_room(download, total - size)
  with _bar(download, total, size, progress) as bar:
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


def _check_room(download: Download, missing: int) -> None:
  free = shutil.disk_usage(download.path.parent).free
  if missing > free:
    raise download.failure(
      f"the disk of {download.path.parent} has {free / 1e6:.0f} MB free and {missing / 1e6:.0f} MB are "
      f"missing; make room, or {download.other_folder}"
    )


def _bar(download: Download, total: int | None, size: int, progress: bool) -> tqdm.tqdm:
  return tqdm.tqdm(
    total=total,
    initial=size,
    unit="B",
    unit_scale=True,
    unit_divisor=1024,
    desc=errors.printable(download.path.name),
    disable=not progress,
  )


def _copy(download: Download, file: BinaryIO, progress: bool) -> None:
  """Copies an object of a bucket, from its start."""
  source = os.fspath(paths.resolve(download.url, "The URL"))
  file.truncate(0)
  log.info("Downloading %s to %s", download.url, download.path)
  try:
    with buckets.opened(source) as (there, total, _):
      _check_room(download, total)
      with _bar(download, total, 0, progress) as bar:
        while chunk := there.read(_OBJECT_CHUNK_BYTES):
          file.write(chunk)
          bar.update(len(chunk))
  except OSError as error:
    if error.filename != source:
      # Of the disk here.
      raise
    raise download.failure(str(error.strerror)) from error
  if _size(file) != total or not total:
    raise download.failure(f"{_size(file)} of {total} bytes arrived")


def _reason(error: Exception) -> str:
  cause = getattr(error, "reason", error)
  if isinstance(cause, TimeoutError):
    return f"no answer in {TIMEOUT_SECONDS:.0f} seconds"
  return str(cause) or type(cause).__name__


def _report(download: Download, actual: str) -> None:
  if not download.checksum:
    log.warning(
      "%s was not verified, since no hash of it is published; its SHA-256 is %s",
      download.path,
      actual,
    )
