"""Archives as they are published: HMDB51's RAR of RARs, UCF101's RAR and ZIP, and others.

In: a data folder with `.rar`, `.zip`, `.tar`, `.tar.gz` or `.tgz` files at its top level. Out: the
same folder, with what they hold in `unpacked/`, one sub-folder an archive, archives within them
unpacked as well.

Which archives are unpacked:

- Each is unpacked once. `unpacked/NAME.note` says from which file (its volumes, bytes and time of
  change); an archive that changed since is unpacked anew.
- What a user has unpacked by hand is not unpacked again, since two files of one name would then
  meet. An archive is left alone beside a folder of its name without suffix that is not empty
  (`brush_hair.rar` beside `brush_hair/`), and so is one within an archive where such a folder lies
  anywhere in the data folder and has videos in it. Of the rest, a member is left out where a file of its name and size
  lies anywhere in the data folder; members of one archive that share their name must agree in the
  folder above as well.
- What lies in `unpacked/` under an archive's name without a note is taken as the user's own.

An archive within an archive goes to a folder of its name, unless it brings that folder itself.
Members that macOS adds (`__MACOSX`, `.DS_Store`, `._*`) are left out.

Nothing is half-done: an archive is unpacked as `unpacked/NAME.part`, which readers pass over, and
renamed when every member is there with its checksum right (a plain TAR has none). RAR members that
are stored need no other program, compressed ones need one that `rarfile` knows: unrar, unar, 7-Zip
or bsdtar.
"""

from collections import Counter
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import fcntl
import gzip
import io
import json
import logging
import lzma
import os
import pathlib
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
import typing
from typing import IO, Any
import zipfile
import zlib

import rarfile
import tqdm

from hybrid_video.datasets import listing

SUFFIXES = (".rar", ".zip", ".tar", ".tar.gz", ".tgz")
UNPACKED = "unpacked"

_PART = ".part"
_NOTE = ".note"
_CHUNK_BYTES = 1 << 20
_MAX_DEPTH = 4
_LATER_VOLUME = re.compile(r"\.part0*(?!0*1\.rar$)\d+\.rar$", re.IGNORECASE)
_FIRST_VOLUME = re.compile(r"\.part0*1(?=\.rar$)", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")
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

log = logging.getLogger("hybrid_video")


class ArchiveError(listing.ListingError):
  """An archive that cannot be unpacked; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class _Member:
  """A file in an archive: its path in it, bytes unpacked, and the library's record of it."""

  path: pathlib.PurePosixPath
  bytes: int
  record: Any
  compressed: bool

  @property
  def is_archive(self) -> bool:
    return _is_archive(self.path.name)


@dataclasses.dataclass
class _Opened:
  """An open archive, whichever its form.

  Attributes:
    label: its path, or that of the archive it lies in and its own there, for messages.
    members: its files, in its order; macOS's additions left out.
    open: a stream of a member; reading it to its end checks its checksum.
    passed: all members' streams in one pass, each to be used before the next; None where members
      are best opened one by one.
  """

  label: str
  members: list[_Member]
  open: Callable[[_Member], IO[bytes]]
  passed: Callable[[], Iterator[tuple[_Member, IO[bytes]]]] | None = None


def unpacked(folder: pathlib.Path, *, progress: bool = True) -> pathlib.Path:
  """Unpacks the archives at the top level of a data folder, each once.

  Args:
    folder: the data folder; none of its files is changed. One that does not exist is given back.
    progress: whether to show a bar with bytes, rate and time left for each archive.

  Returns:
    `folder`, which now has the archives' contents in `folder/unpacked`.

  Raises:
    ArchiveError: an archive is damaged, cut short, encrypted, lacks a volume, is none, has a member
      that would leave the folder or is a link, or needs an extractor that is not installed; the
      disk is full or the folder not writable. Nothing half-unpacked is left then.
  """
  if not folder.is_dir():
    return folder
  found = sorted(path for path in folder.iterdir() if _is_outer(path))
  _refuse_orphans(folder, found)
  by_stem: dict[str, pathlib.Path] = {}
  for path in found:
    other = by_stem.setdefault(_stem(path.name).casefold(), path)
    if other != path:
      raise ArchiveError(
        f"{other} and {path.name} would both be unpacked into {folder / UNPACKED / _stem(path.name)}."
        " Rename one of them, or remove one if they hold the same."
      )
  beside: _Beside | None = None
  for path in found:
    target = folder / UNPACKED / _stem(path.name)
    # The walk through the folder is made only where the note does not settle it.
    if _is_done(path, target, lambda: _Beside.of(folder)):
      continue
    beside = beside or _Beside.of(folder)
    by_hand = folder / _stem(path.name)
    if _holds_something(by_hand) or (_holds_something(target) and not _note(target).exists()):
      by_hand = by_hand if _holds_something(by_hand) else target
      log.info(
        "%s is not unpacked: %s is taken for its contents. Remove that folder to have it unpacked.",
        path,
        by_hand,
      )
      continue
    _unpack_outer(path, target, beside, progress)
  return folder


def _is_archive(name: str) -> bool:
  return name.lower().endswith(SUFFIXES) and not _LATER_VOLUME.search(name)


def _is_outer(path: pathlib.Path) -> bool:
  return _is_archive(path.name) and not path.name.startswith(".") and path.is_file()


def _refuse_orphans(folder: pathlib.Path, found: list[pathlib.Path]) -> None:
  stems = {_stem(path.name) for path in found}
  for path in sorted(folder.iterdir()):
    later = _LATER_VOLUME.search(path.name)
    stem = path.name[: later.start()] if later else ""
    if later and stem not in stems and not _holds_something(folder / stem):
      raise ArchiveError(
        f"{path} is a later volume of an archive whose first volume is missing. Put "
        f"{stem}.part1.rar into {folder}."
      )


def _stem(name: str) -> str:
  """An archive's name without suffix and volume number."""
  name = _FIRST_VOLUME.sub("", name)
  suffix = next(
    suffix for suffix in sorted(SUFFIXES, key=len)[::-1] if name.lower().endswith(suffix)
  )
  return name[: -len(suffix)]


def _note(target: pathlib.Path) -> pathlib.Path:
  return target.with_name(target.name + _NOTE)


def _holds_something(folder: pathlib.Path) -> bool:
  return folder.is_dir() and any(folder.iterdir())


def _identity(path: pathlib.Path) -> list[list[Any]]:
  """Name, bytes and time of change of an archive, and of the later volumes where it has any."""
  stem = _stem(path.name)
  volumes = [path]
  if _FIRST_VOLUME.search(path.name):
    later = re.compile(re.escape(stem) + r"\.part\d+\.rar", re.IGNORECASE)
    volumes = sorted(file for file in path.parent.iterdir() if later.fullmatch(file.name))
  elif path.suffix.lower() == ".rar":
    later = re.compile(re.escape(stem) + r"\.[r-z]\d\d", re.IGNORECASE)
    volumes += sorted(file for file in path.parent.iterdir() if later.fullmatch(file.name))
  return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in volumes]


def _is_done(path: pathlib.Path, target: pathlib.Path, beside: Callable[[], "_Beside"]) -> bool:
  """Whether the archive was unpacked, and what was left out of it still lies in the folder."""
  try:
    note = json.loads(_note(target).read_text(encoding="utf-8"))
    same = note["archive"] == _identity(path) and target.is_dir()
    left_out = note["left_out"]
  except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
    return False
  return same and (not left_out or beside().still_has(left_out))


class _Beside:
  """What lies in a data folder apart from `unpacked`: what a user has unpacked by hand."""

  def __init__(self) -> None:
    self.files: set[tuple[str, int]] = set()
    self.files_in: set[tuple[str, str, int]] = set()
    self.folders: set[str] = set()

  @classmethod
  def of(cls, folder: pathlib.Path) -> "_Beside":
    """Walks through the folder, links followed."""
    beside = cls()
    for place, folders, names in os.walk(folder, followlinks=True):
      top = pathlib.Path(place) == folder
      folders[:] = [
        name for name in folders if not name.endswith(_PART) and not (top and name == UNPACKED)
      ]
      if not top and any(name.lower().endswith(listing.VIDEO_SUFFIXES) for name in names):
        beside.folders.add(os.path.basename(place))
      for name in names:
        with contextlib.suppress(OSError):
          size = os.stat(os.path.join(place, name)).st_size
          beside.files.add((name, size))
          beside.files_in.add((os.path.basename(place), name, size))
    return beside

  def evidence(self, member: _Member, is_only: bool) -> list[Any] | None:
    """What makes a member superfluous, in a form for the note; None if nothing does.

    Args:
      member: of an archive.
      is_only: whether no other member of the archive bears its name.
    """
    if member.is_archive and _stem(member.path.name) in self.folders:
      return [_stem(member.path.name)]
    if is_only and (member.path.name, member.bytes) in self.files:
      return [member.path.name, member.bytes]
    found = (member.path.parent.name, member.path.name, member.bytes)
    return list(found) if found in self.files_in else None

  def still_has(self, left_out: list[list[Any]]) -> bool:
    """Whether all that the note names is still there."""
    tables: dict[int, set[Any]] = {1: self.folders, 2: self.files, 3: self.files_in}
    return all(
      (found[0] if len(found) == 1 else tuple(found)) in tables[len(found)] for found in left_out
    )


def _unpack_outer(
  path: pathlib.Path, target: pathlib.Path, beside: _Beside, progress: bool
) -> None:
  part = target.with_name(target.name + _PART)
  with _errors_of(str(path), target.parent), _opened(path, str(path)) as archive:
    wanted, left_out = _wanted(archive, beside)
    if archive.members and not wanted:
      log.info("%s is not unpacked: all its files lie in %s already.", path, path.parent)
      return
    contents, spare = _needed_bytes(archive, wanted, beside, depth=1)
    identity = _identity(path)
    target.parent.mkdir(exist_ok=True)
    with _locked(target.parent):
      if _is_done(path, target, lambda: beside):
        return
      _remove(part)
      _check_space(path, target.parent, contents + spare)
      log.info("Unpacking %s into %s", path, target)
      try:
        part.mkdir()
        with tqdm.tqdm(
          total=contents,
          unit="B",
          unit_scale=True,
          unit_divisor=1024,
          desc=path.name,
          disable=not progress,
        ) as bar:
          left_out += _unpack(archive, wanted, part, beside, bar, depth=1)
        # Whatever bears the note is ours to replace; it goes only when the new one is whole.
        _remove(target)
        _note(target).write_text(
          json.dumps({"archive": identity, "left_out": left_out}), encoding="utf-8"
        )
        part.rename(target)
      except BaseException as error:
        with contextlib.suppress(OSError):
          _remove(part)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
          raise _disk_full(path, target.parent, contents + spare) from error
        raise


def _remove(path: pathlib.Path) -> None:
  if path.is_symlink() or path.is_file():
    path.unlink()
  elif path.exists():
    shutil.rmtree(path)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """Keeps processes of one machine apart; network file systems may not know such locks."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      log.info("Another process is unpacking into %s; waiting for it.", folder)
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
      log.info("%s cannot be locked; only one process may unpack there at a time.", folder)
    yield
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _errors_of(label: str, place: pathlib.Path) -> Iterator[None]:
  """Turns what goes wrong with an archive, or with the disk, into an `ArchiveError`."""
  try:
    yield
  except ArchiveError:
    raise
  except rarfile.RarCannotExec as error:
    raise ArchiveError(
      f"{label} has compressed files, and no extractor is found: {_INSTALL}."
    ) from error
  except rarfile.NeedFirstVolume as error:
    raise ArchiveError(
      f"{label} is a later volume of an archive. Put the first one beside it, and all others."
    ) from error
  except _UNREADABLE as error:
    raise ArchiveError(
      f"{label}: found it damaged or incomplete ({error}), expected a whole archive. Download it "
      "again and compare its checksum; if that is right, the extractor in use may lack this kind "
      f"of RAR (7-Zip without its RAR part does): {_INSTALL}."
    ) from error
  except OSError as error:
    if error.errno in _DISK_FULL:
      # Told of where it is known how much is needed.
      raise
    raise ArchiveError(
      f"{label} cannot be unpacked into {place}: {error.strerror or error}"
      f"{f' ({error.filename})' if error.filename else ''}. Make that folder writable, or put the "
      "archive into one that is."
    ) from error


def _megabytes(count: int) -> str:
  return f"{count / 1e6:.1f} MB"


def _free_bytes(place: pathlib.Path) -> int:
  return shutil.disk_usage(place).free


def _check_space(path: pathlib.Path, place: pathlib.Path, needed: int) -> None:
  if needed > _free_bytes(place):
    raise _disk_full(path, place, needed)


def _disk_full(path: pathlib.Path, place: pathlib.Path, needed: int) -> ArchiveError:
  return ArchiveError(
    f"{path} needs {_megabytes(needed)} to be unpacked, and the disk of {place} has "
    f"{_megabytes(_free_bytes(place))} free. Make room, or put the archive into a folder on another "
    "disk."
  )


def _wanted(archive: _Opened, beside: _Beside) -> tuple[list[_Member], list[list[Any]]]:
  """The members to unpack, and what makes the others superfluous."""
  names = Counter(member.path.name for member in archive.members)
  wanted, left_out = [], []
  for member in archive.members:
    found = beside.evidence(member, names[member.path.name] == 1)
    if found is None:
      wanted.append(member)
    else:
      left_out.append(found)
  return wanted, left_out


def _needed_bytes(
  archive: _Opened, wanted: list[_Member], beside: _Beside, depth: int
) -> tuple[int, int]:
  """Bytes that the contents take, and those of the largest archive that lies on disk meanwhile.

  A stored archive within the archive is looked into where it lies, so that a missing extractor or
  a full disk is found before anything is written; one in a compressed form counts as it is.
  """
  contents = spare = 0
  for member in wanted:
    if member.compressed and isinstance(member.record, rarfile.RarInfo):
      _extractor()
    if not member.is_archive:
      contents += member.bytes
      continue
    within, more = member.bytes, 0
    if not member.compressed and archive.passed is None:
      label = f"{archive.label}/{member.path}"
      with archive.open(member) as stream, _opened(stream, label) as nested:
        _check_depth(label, depth)
        inner, _ = _wanted(nested, beside)
        within, more = _needed_bytes(nested, inner, beside, depth + 1)
    contents += within
    spare = max(spare, member.bytes + more)
  return contents, spare


def _check_depth(label: str, depth: int) -> None:
  if depth >= _MAX_DEPTH:
    raise ArchiveError(
      f"{label} lies {depth} archives deep, expected at most {_MAX_DEPTH - 1}. Unpack it by hand."
    )


def _unpack(
  archive: _Opened,
  wanted: list[_Member],
  place: pathlib.Path,
  beside: _Beside,
  bar: "tqdm.tqdm",
  depth: int,
) -> list[list[Any]]:
  """Writes members below `place`; what was left out of archives within is given back."""
  left_out = []
  chosen = {member.path for member in wanted}
  streams = (
    archive.passed()
    if archive.passed
    else ((member, contextlib.closing(archive.open(member))) for member in wanted)
  )
  for member, opened in streams:
    if member.path not in chosen:
      continue
    label = f"{archive.label}/{member.path}"
    path = place / member.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _errors_of(label, place.parent), opened as stream:
      if not member.is_archive:
        _copy(stream, path, member.bytes, bar)
        continue
      _check_depth(label, depth)
      # Beside its contents, so that it counts for the same disk and goes with the `.part` folder.
      with tempfile.NamedTemporaryFile(dir=place, suffix=_PART) as copy:
        _copy(stream, pathlib.Path(copy.name), member.bytes, None)
        with _opened(pathlib.Path(copy.name), label) as nested:
          inner, more = _wanted(nested, beside)
          left_out += more
          if member.compressed or archive.passed:
            # Only now is it known what it holds.
            contents, _ = _needed_bytes(nested, inner, beside, depth + 1)
            _check_space(pathlib.Path(label), place, contents)
            bar.total += contents - member.bytes
          own = pathlib.PurePosixPath(_stem(member.path.name))
          brings_it = bool(inner) and all(file.path.parts[:1] == own.parts for file in inner)
          inside = path.parent if brings_it else path.parent / own
          inside.mkdir(exist_ok=True)
          left_out += _unpack(nested, inner, inside, beside, bar, depth + 1)
  return left_out


def _copy(stream: IO[bytes], path: pathlib.Path, size: int, bar: "tqdm.tqdm | None") -> None:
  written = 0
  if bar is not None and path.exists():
    raise ArchiveError(
      f"{path.name} is there twice: in an archive, and beside it or in another one, both in "
      f"{path.parent.name}. Unpack the archive by hand."
    )
  with path.open("wb") as file:
    while chunk := stream.read(_CHUNK_BYTES):
      file.write(chunk)
      written += len(chunk)
      if bar is not None:
        bar.update(len(chunk))
  if written != size:
    raise EOFError(f"{written} of {size} bytes")


def _safe_path(name: str, label: str) -> pathlib.PurePosixPath | None:
  """A member's path, which stays below the folder it is put in; None for the folder itself."""
  parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
  if name[:1] in ("/", "\\") or ".." in parts or "\0" in name or _DRIVE.match(name):
    raise ArchiveError(
      f"{label}: the member {name!r} would be written outside of its folder. Do not trust this "
      "archive: get it from the data set's authors."
    )
  return pathlib.PurePosixPath(*parts) if parts else None


def _files(records: list[tuple[str, int, Any, bool, bool]], label: str) -> list[_Member]:
  """Members from (name, bytes, record, is_link, compressed) of files and links."""
  members: dict[pathlib.PurePosixPath, _Member] = {}
  for name, size, record, is_link, compressed in records:
    path = _safe_path(name, label)
    if is_link:
      raise ArchiveError(
        f"{label}: the member {name!r} is a link or a device, expected files only. Unpack the "
        "archive by hand if you trust it."
      )
    if path is None or path.parts[0] == "__MACOSX":
      continue
    if path.name == ".DS_Store" or path.name.startswith("._"):
      continue
    if path in members:
      raise ArchiveError(f"{label} has two members {name!r}. Unpack the archive by hand.")
    members[path] = _Member(path, size, record, compressed)
  return list(members.values())


@contextlib.contextmanager
def _opened(source: pathlib.Path | IO[bytes], label: str) -> Iterator[_Opened]:
  """Opens an archive by what it begins with, whatever its name says."""
  if isinstance(source, pathlib.Path):
    with source.open("rb") as file:
      start = file.read(1024)
  else:
    start = source.read(1024)
    source.seek(0)
  if start.startswith((rarfile.RAR_ID, rarfile.RAR5_ID)):
    opened = _opened_rar(source, label)
  elif start.startswith(b"PK"):
    opened = _opened_zip(source, label)
  elif start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
    opened = _opened_tar(source, label)
  else:
    what = "an empty file"
    if re.match(rb"\s*(<!doctype|<html|<\?xml|<head|<!--)", start, re.IGNORECASE):
      what = "a web page, such as a server sends in place of a file that it no longer has"
    elif start:
      what = f"a file that begins {start[:8]!r}"
    raise ArchiveError(
      f"{label} is not an archive: found {what}, expected a RAR, ZIP or TAR file. Remove it and "
      "download it anew, from another server if need be."
    )
  with _errors_of(label, pathlib.Path(label).parent), opened as archive:
    yield archive


@contextlib.contextmanager
def _opened_rar(source: pathlib.Path | IO[bytes], label: str) -> Iterator[_Opened]:
  try:
    archive = rarfile.RarFile(source, errors="strict")
  except rarfile.BadRarFile as error:
    if "volume" in str(error):
      raise ArchiveError(
        f"{label} goes on in another volume, which is missing or no such ({error}). Put all "
        "volumes into one folder."
      ) from error
    raise
  with archive:
    if archive.needs_password():
      raise ArchiveError(
        f"{label} is encrypted, expected one without a password. Unpack it by hand."
      )
    records = archive.infolist()
    single = len(archive.volumelist()) == 1 and isinstance(source, pathlib.Path)
    size = source.stat().st_size if isinstance(source, pathlib.Path) else 0
    for info in records:
      if single and info.header_offset + info.header_size + info.compress_size > size:
        raise ArchiveError(
          f"{label} is cut short: found {size} bytes, and {info.filename!r} alone goes on to byte "
          f"{info.header_offset + info.header_size + info.compress_size}. Download it again."
        )
    members = _files(
      [
        (
          info.filename,
          info.file_size,
          info,
          info.is_symlink() or _is_rar_link(info),
          info.compress_type != rarfile.RAR_M0,
        )
        for info in records
        if not info.is_dir()
      ],
      label,
    )
    # One run of the extractor serves them all, where one a file would go through a solid archive
    # from its start each time. Copies are not in its output, and nothing but CRC-32 is checked in
    # it.
    one_run = any(member.compressed for member in members) and all(
      info.CRC is not None and not info.file_redir for info in records if info.is_file()
    )
    yield _Opened(
      label,
      members,
      lambda member: archive.open(member.record),
      (lambda: _one_run(archive, members)) if one_run else None,
    )


def _is_rar_link(info: rarfile.RarInfo) -> bool:
  return bool(info.file_redir) and info.file_redir[0] != rarfile.RAR5_XREDIR_FILE_COPY


class _Slice(io.RawIOBase):
  """One member's bytes of the stream of all; reaching its end checks its CRC-32."""

  def __init__(self, stream: IO[bytes], info: rarfile.RarInfo):
    self._stream = stream
    self._info = info
    self._left = info.file_size
    self._crc = 0

  def read(self, size: int = -1) -> bytes:
    """Up to `size` bytes; none at the member's end."""
    wanted = self._left if size < 0 else min(size, self._left)
    chunk = self._stream.read(wanted)
    self._left -= len(chunk)
    self._crc = zlib.crc32(chunk, self._crc)
    if len(chunk) < wanted:
      raise rarfile.BadRarFile(f"the extractor gave {self._left} bytes too few")
    if chunk and not self._left and self._crc != self._info.CRC:
      raise rarfile.BadRarFile(f"CRC-32 is {self._crc:08x}, expected {self._info.CRC:08x}")
    return chunk

  def pass_over(self) -> None:
    """Reads what is left of the member."""
    while self.read(_CHUNK_BYTES):
      pass


def _extractor() -> rarfile.ToolSetup:
  """How to call the extractor that is installed; `RarCannotExec` if none is."""
  try:
    # 7-Zip is often there without its RAR part, and says so only when it fails.
    return rarfile.tool_setup(sevenzip=False, sevenzip2=False)
  except rarfile.RarCannotExec:
    return rarfile.tool_setup()


def _one_run(
  archive: rarfile.RarFile, members: list[_Member]
) -> Iterator[tuple[_Member, IO[bytes]]]:
  """Members from one run of the extractor, which prints one after another."""
  by_name = {member.record.filename: member for member in members}
  tool = _extractor()
  command = tool.open_cmdline(None, str(archive.filename))
  if command[0] == rarfile.BSDTAR_TOOL:
    # rarfile puts `--` between -f and the name, where bsdtar takes it for the name.
    command.remove("--")
  with subprocess.Popen(
    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
  ) as process:
    try:
      assert process.stdout is not None
      for info in archive.infolist():
        if info.is_dir():
          continue
        piece = _Slice(process.stdout, info)
        if info.filename in by_name:
          yield by_name[info.filename], typing.cast(IO[bytes], piece)
        if not piece.closed:
          piece.pass_over()
    finally:
      process.kill()


@contextlib.contextmanager
def _opened_zip(source: pathlib.Path | IO[bytes], label: str) -> Iterator[_Opened]:
  try:
    archive = zipfile.ZipFile(source, metadata_encoding="utf-8")
  except UnicodeDecodeError:
    archive = zipfile.ZipFile(source)
  with archive:
    records = [info for info in archive.infolist() if not info.is_dir()]
    if any(info.flag_bits & 1 for info in records):
      raise ArchiveError(
        f"{label} is encrypted, expected one without a password. Unpack it by hand."
      )
    members = _files(
      [
        (
          info.filename,
          info.file_size,
          info,
          stat.S_ISLNK(info.external_attr >> 16),
          info.compress_type != zipfile.ZIP_STORED,
        )
        for info in records
      ],
      label,
    )
    yield _Opened(label, members, lambda member: archive.open(member.record))


@contextlib.contextmanager
def _opened_tar(source: pathlib.Path | IO[bytes], label: str) -> Iterator[_Opened]:
  with (
    source.open("rb") if isinstance(source, pathlib.Path) else contextlib.nullcontext(source)
  ) as file:
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:gz" if compressed else "r:") as archive:
      records = [info for info in archive.getmembers() if not info.isdir()]
      # The library takes a broken header for the end of the archive.
      assert archive.fileobj is not None
      archive.fileobj.seek(archive.offset)
      if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end mark at byte {archive.offset}")
      # gzip's checksum comes last, and nothing is written before it was reached.
      while archive.fileobj.read(_CHUNK_BYTES):
        pass
      members = _files(
        [(info.name, info.size, info, not info.isreg(), compressed) for info in records], label
      )
      yield _Opened(label, members, lambda member: _tar_stream(archive, member))


def _tar_stream(archive: tarfile.TarFile, member: _Member) -> IO[bytes]:
  stream = archive.extractfile(member.record)
  assert stream is not None, "_files takes regular files only"
  return stream
