"""Names of archives and of their members: which files are archives, and where contents may go.

In: file names, and member names as archives have them. Out: folder names and paths that stay below
the folder that they are put in, whatever an archive says.
"""

import pathlib
import re

from hybrid_video import files
from hybrid_video.datasets.archives import failures

SUFFIXES = (".rar", ".zip", ".tar", ".tar.gz", ".tgz")
# Ends the name of the file that says from which archive a folder was unpacked.
NOTE = ".note"

_LATER_VOLUME = re.compile(r"\.part0*(?!0*1\.rar$)\d+\.rar$", re.IGNORECASE)
_FIRST_VOLUME = re.compile(r"\.part0*1(?=\.rar$)", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")
_SEPARATORS = re.compile(r"[/\\:\0]")
_UNNAMED = "unnamed"


def is_archive(name: str) -> bool:
  """Whether a file name is that of an archive, or of the first of its volumes."""
  return name.lower().endswith(SUFFIXES) and not _LATER_VOLUME.search(name)


def first_of_later(name: str) -> str | None:
  """Of a later volume, the archive's name without suffix and number; None for another file."""
  later = _LATER_VOLUME.search(name)
  return name[: later.start()] if later else None


def stem(name: str) -> str:
  """An archive's name without suffix and volume number: any text, ".." among others."""
  name = _FIRST_VOLUME.sub("", name)
  longest_first = sorted(SUFFIXES, key=len, reverse=True)
  suffix = next(suffix for suffix in longest_first if name.lower().endswith(suffix))
  return name[: -len(suffix)]


def folder_name(name: str) -> str:
  """The name of the folder for an archive's contents: its stem, made safe.

  It is always one component of a path that names a folder directly below its parent (not "..", not
  "", no drive, no dots at its end), and not the name of unfinished work or of a note.
  """
  return _safe(stem(name))


def _safe(own: str) -> str:
  safe = _SEPARATORS.sub("_", own).rstrip(".")
  if safe.endswith((files.PART, NOTE)):
    return f"{safe}_"
  return safe or _UNNAMED


def by_hand_names(own: str) -> set[str]:
  """The names of folders that an archive may have been unpacked into by hand.

  Args:
    own: its stem. It is one of them where it names a folder directly below its parent; the others are
      what `folder_name` makes of it.
  """
  is_component = own not in ("", ".", "..") and "/" not in own and "\0" not in own
  return {_safe(own), own} if is_component else {_safe(own)}


def volumes(path: pathlib.Path) -> list[pathlib.Path]:
  """The files of an archive: the file itself, and its later volumes where it has any."""
  beside = path.parent.iterdir
  if _FIRST_VOLUME.search(path.name):
    pattern = re.compile(re.escape(stem(path.name)) + r"\.part\d+\.rar", re.IGNORECASE)
    return sorted(file for file in beside() if pattern.fullmatch(file.name))
  if path.suffix.lower() == ".rar":
    pattern = re.compile(re.escape(stem(path.name)) + r"\.[r-z]\d\d", re.IGNORECASE)
    return [path, *sorted(file for file in beside() if pattern.fullmatch(file.name))]
  return [path]


def member_path(name: str, label: str) -> pathlib.PurePosixPath:
  """The path of a member that is a file: below the folder that it is put in.

  Args:
    name: as the archive has it.
    label: the archive, for messages.

  Raises:
    ArchiveError: it would leave the folder, or names no file.
  """
  components = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
  if name[:1] in ("/", "\\") or ".." in components or "\0" in name or _DRIVE.match(name):
    raise failures.ArchiveError(
      f"{label}: the member {name!r} would be written outside of its folder. Do not trust this "
      "archive: get it from the data set's authors."
    )
  if not components:
    raise failures.ArchiveError(
      f"{label}: found a file named {name!r}, expected a name: the archive is damaged. Download it "
      "again."
    )
  return pathlib.PurePosixPath(*components)


def is_added_by_macos(path: pathlib.PurePosixPath) -> bool:
  """Whether a member is what macOS adds to archives."""
  return path.parts[0] == "__MACOSX" or path.name == ".DS_Store" or path.name.startswith("._")
