"""What goes wrong with an archive or its disk, as a message that says what to do.

In: exceptions of the libraries and the system. Out: `ArchiveError`.
"""

from collections.abc import Iterator
import contextlib
import errno
import gzip
import lzma
import pathlib
import shutil
import tarfile
import zipfile
import zlib

import rarfile

from hybrid_video.datasets import listing

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_INSTALL = (
  "install one of unrar, unar or bsdtar (`apt install unar` on Debian and Ubuntu, `brew install "
  "unar` on macOS, `conda install -c conda-forge unrar` without root)"
)
_UNREADABLE = (
  rarfile.Error,
  zipfile.BadZipFile,
  tarfile.TarError,
  gzip.BadGzipFile,
  zlib.error,
  lzma.LZMAError,
  EOFError,
  UnicodeDecodeError,  # a damaged name in a ZIP
  NotImplementedError,
)


class ArchiveError(listing.ListingError):
  """An archive that cannot be unpacked; the message says why and what to do."""


class DiskFullError(ArchiveError):
  """A disk that is full, or would be."""


@contextlib.contextmanager
def explained(label: str, folder: pathlib.Path) -> Iterator[None]:
  """Turns what goes wrong with an archive, or with a disk, into an `ArchiveError`.

  Args:
    label: the archive's path, for messages.
    folder: where it is unpacked.
  """
  try:
    yield
  except ArchiveError:
    raise
  except rarfile.RarCannotExec as error:
    raise ArchiveError(
      f"{label} has compressed files, and no extractor is installed: {_INSTALL}."
    ) from error
  except rarfile.NeedFirstVolume as error:
    raise ArchiveError(
      f"{label} is a later volume of an archive. Put the first one beside it, and all others."
    ) from error
  except _UNREADABLE as error:
    raise ArchiveError(
      f"{label}: found it damaged or incomplete ({error}), expected a whole archive. Download it "
      "again and compare its checksum; if that is right, the extractor in use may not know this kind "
      f"of RAR (7-Zip without its RAR module does not): {_INSTALL}."
    ) from error
  except OSError as error:
    if error.errno in _DISK_FULL:
      raise DiskFullError(
        f"{label} cannot be unpacked: the disk of {folder} is full. Make room, or put the archive "
        "into a folder on another disk."
      ) from error
    raise ArchiveError(
      f"{label} cannot be unpacked into {folder}: {error.strerror or error}"
      f"{f' ({error.filename})' if error.filename else ''}. Make that folder writable, or put the "
      "archive into one that is."
    ) from error


def check_space(label: str, folder: pathlib.Path, needed: int) -> None:
  """Checks that the disk of a folder has as many bytes free as an archive needs.

  Raises:
    DiskFullError: it has not.
  """
  if needed > shutil.disk_usage(folder).free:
    raise disk_full(label, folder, needed)


def disk_full(label: str, folder: pathlib.Path, needed: int) -> DiskFullError:
  """The error of an archive that needs more bytes than the disk of a folder has free."""
  return DiskFullError(
    f"{label} needs {needed / 1e6:.1f} MB to be unpacked, and the disk of {folder} has "
    f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free. Make room, or put the archive into a "
    "folder on another disk."
  )
