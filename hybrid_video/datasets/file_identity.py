"""What tells the content of a video file from another's, without reading all of it.

In: paths of video files. Out: for each its `Content`, by which the builder knows what is stored already
and what has changed since.
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import hashlib
import os
import pathlib

from hybrid_video import errors
from hybrid_video.decoding.storing import file_digest

# Of each end of a file. Headers and indices of all containers begin or end within it.
_END_BYTES = 64 * 1024
# Files are often on a disk far away: reading waits more than it computes.
_THREADS = 16


class ContentError(errors.UserError):
  """A listed video file that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Content:
  """A file's content, as far as it was read.

  Attributes:
    size: bytes.
    modified: when the file was written, in nanoseconds; a file with another time and the same digest
      may still be another one, unless all of it was read.
    digest: of the size and both ends of the file, or of all of it.
  """

  size: int
  modified: int
  digest: str


def contents_of(paths: Sequence[pathlib.Path], *, whole: bool) -> list[Content]:
  """The contents of files, in order.

  Args:
    paths: of the files.
    whole: whether all of each file is read.

  Raises:
    ContentError: a file has gone, or cannot be read.
  """
  if not paths:
    return []
  with futures.ThreadPoolExecutor(min(_THREADS, len(paths))) as pool:
    return list(pool.map(lambda path: _content_of(path, whole), paths))


def _content_of(path: pathlib.Path, whole: bool) -> Content:
  try:
    with path.open("rb") as file:
      status = os.fstat(file.fileno())
      if whole:
        return Content(status.st_size, status.st_mtime_ns, file_digest(path))
      digest = hashlib.blake2b(str(status.st_size).encode(), digest_size=16)
      digest.update(file.read(_END_BYTES))
      if status.st_size > _END_BYTES:
        file.seek(max(_END_BYTES, status.st_size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
  except OSError as error:
    raise ContentError(
      f"{errors.printable(path)}: the listed video cannot be read ({error.strerror}). Check the data "
      "folder and run the same command again."
    ) from error
  return Content(status.st_size, status.st_mtime_ns, digest.hexdigest())
