"""What Google Cloud Storage does for objects that no file system does: versions, and leases on them.

In: an object's path. Out: a stream of one version of it; or a lease, which is an object that is created by
one process alone and renewed by it.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import os
import threading
import time
from typing import Any, BinaryIO

from hybrid_video import errors, paths

# A lease that was not renewed for so long has lost its holder.
LEASE_SECONDS = 60.0
_RENEWALS = 4
_CHUNK_BYTES = 1 << 24
_TIMEOUT_SECONDS = 20.0


@contextlib.contextmanager
def opened(path: str) -> Iterator[tuple[BinaryIO, int, int]]:
  """One version of an object: (a stream of it, its size in bytes, its generation).

  TensorFlow's file system remembers sizes for a while, and would mix two versions.

  Args:
    path: `gs://BUCKET/NAME`.

  Raises:
    OSError: there is none, or it cannot be read; in the block too.
  """
  from google.api_core import exceptions
  from google.cloud import storage

  bucket, name = _parts(path)
  with _as_os_errors(path):
    blob = storage.Client().bucket(bucket).get_blob(name, timeout=_TIMEOUT_SECONDS)
  if blob is None:
    raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
  try:
    with blob.open("rb", chunk_size=_CHUNK_BYTES, if_generation_match=blob.generation) as stream:
      yield stream, blob.size, blob.generation
  except (exceptions.GoogleAPIError, exceptions.PreconditionFailed) as error:
    raise OSError(errno.EIO, _line(error), path) from error


def _parts(path: str) -> tuple[str, str]:
  """The names of the bucket and of the object in it."""
  bucket, _, name = path.removeprefix(paths.BUCKETS).partition("/")
  return bucket, name


class Lease:
  """An object that exists while its holder renews it.

  Times are those of the bucket against this host's clock, so clocks must agree to a few seconds.
  """

  def __init__(self, path: str, text: bytes):
    """Prepares it; `take` takes it.

    Args:
      path: `gs://BUCKET/NAME`.
      text: what it says to others, which no other process writes.

    Raises:
      OSError: there are no credentials.
    """
    from google.cloud import storage

    self._path, self._text = path, text
    bucket, self._name = _parts(path)
    with _as_os_errors(path):
      self._bucket = storage.Client().bucket(bucket)
    self._generation = 0
    self._ended = threading.Event()
    self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)

  def take(self, has_ended: Callable[[bytes], bool]) -> bytes | None:
    """Takes the lease, or gives what its holder says.

    Args:
      has_ended: tells by what the holder says whether it is gone.

    Raises:
      OSError: the bucket cannot be reached, read or written to.
    """
    from google.api_core import exceptions

    while True:
      with contextlib.suppress(exceptions.PreconditionFailed):
        self._write(0)
        break
      there = self._read()
      if there is None:
        continue
      text, generation, updated = there
      if text == self._text:
        # Written at an attempt whose answer was lost.
        self._generation = generation
        break
      if time.time() - updated < LEASE_SECONDS and not has_ended(text):
        return text
      # Of several that find it abandoned, one gets it.
      with contextlib.suppress(exceptions.PreconditionFailed):
        self._write(generation)
        break
    self._renewing.start()
    return None

  def _read(self) -> tuple[bytes, int, float] | None:
    """The object's text, its generation, and when it was written; None where it has just changed.

    Raises:
      OSError: it cannot be read.
    """
    from google.api_core import exceptions

    try:
      with _as_os_errors(self._path):
        blob = self._bucket.get_blob(self._name, timeout=_TIMEOUT_SECONDS)
        if blob is None:
          return None
        text = blob.download_as_bytes(if_generation_match=blob.generation, timeout=_TIMEOUT_SECONDS)
    except (exceptions.PreconditionFailed, FileNotFoundError):
      return None
    return text, blob.generation, blob.updated.timestamp()

  def _write(self, generation: int) -> None:
    """Writes the object in place of a generation of it; 0 is none.

    Raises:
      PreconditionFailed: it has another generation.
      OSError: it cannot be written.
    """
    blob = self._bucket.blob(self._name)
    with _as_os_errors(self._path):
      blob.upload_from_string(
        self._text,
        content_type="application/json",
        if_generation_match=generation,
        timeout=_TIMEOUT_SECONDS,
      )
    self._generation = blob.generation

  def _renew(self) -> None:
    while not self._ended.wait(LEASE_SECONDS / _RENEWALS):
      # A network may be away for a while.
      with contextlib.suppress(OSError):
        self._renew_once()

  def _renew_once(self) -> None:
    from google.api_core import exceptions

    try:
      self._write(self._generation)
    except exceptions.PreconditionFailed:
      there = self._read()
      if there is not None and there[0] == self._text:
        self._generation = there[1]
        return
      # This process was not heard of for so long that another one took it: both would write.
      line = f"Error: {self._path} was not renewed in time, and another process has taken it.\n"
      os.write(2, line.encode())
      os._exit(1)

  def give_back(self) -> None:
    """Removes the object, if it is still this process's."""
    from google.api_core import exceptions

    self._ended.set()
    self._renewing.join()
    gone = (exceptions.PreconditionFailed, exceptions.NotFound, OSError)
    with contextlib.suppress(*gone), _as_os_errors(self._path):
      self._bucket.blob(self._name).delete(
        if_generation_match=self._generation, timeout=_TIMEOUT_SECONDS
      )


@contextlib.contextmanager
def _as_os_errors(path: str) -> Iterator[None]:
  """What goes wrong with a bucket as an `OSError` whose reason fits into one line."""
  from google.api_core import exceptions
  from google.auth import exceptions as auth

  kept: Any = (exceptions.PreconditionFailed,)
  try:
    yield
  except kept:
    raise
  except exceptions.NotFound as error:
    raise OSError(errno.ENOENT, f"there is no such bucket: {_line(error)}", path) from error
  except auth.GoogleAuthError as error:
    what = "no credentials for Google Cloud: `gcloud auth application-default login`, or a service "
    raise OSError(errno.EACCES, f"{what}account on the machine; {_line(error)}", path) from error
  except (exceptions.GoogleAPIError, OSError, ValueError) as error:
    raise OSError(errno.EIO, _line(error), path) from error


def _line(error: Exception) -> str:
  return errors.printable(" ".join(str(getattr(error, "message", "") or error).split())[:300])
