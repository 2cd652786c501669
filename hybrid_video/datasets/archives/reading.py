"""Open archives, whatever their format: members, and streams that check what they give.

In: a file, or a stream within another archive. Out: an `Archive` of safe members.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import io
import pathlib
import re
import stat
import subprocess
import tarfile
import typing
from typing import IO, Any
import zipfile
import zlib

import rarfile

from hybrid_video.datasets.archives import failures, names

CHUNK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"

Source = pathlib.Path | IO[bytes]


@dataclasses.dataclass(frozen=True)
class Member:
  """A file in an archive.

  Attributes:
    path: below the folder that the archive is unpacked into.
    bytes: unpacked.
    record: the library's own entry.
    is_compressed: whether it is not merely stored.
    needs_extractor: whether another program must unpack it.
  """

  path: pathlib.PurePosixPath
  bytes: int
  record: Any
  is_compressed: bool
  needs_extractor: bool = False

  @property
  def is_archive(self) -> bool:
    """Whether it is an archive itself."""
    return names.is_archive(self.path.name)


@dataclasses.dataclass(frozen=True)
class Archive:
  """An open archive, whatever its format.

  Attributes:
    label: its path, or that of the archive around it and its own in there, for messages.
    members: its files in their order, without what macOS adds.
    open: a stream of a member; reading it to its end checks its checksum.
    in_one_pass: all members' streams one after another, each to be read before the next; None where
      members are best opened one by one.
  """

  label: str
  members: list[Member]
  open: Callable[[Member], IO[bytes]]
  in_one_pass: Callable[[], Iterator[tuple[Member, IO[bytes]]]] | None = None

  def streams(self, wanted: Iterable[Member]) -> Iterator[tuple[Member, IO[bytes]]]:
    """The streams of some members, each to be read and closed before the next."""
    if self.in_one_pass is None:
      for member in wanted:
        yield member, self.open(member)
      return
    paths = {member.path for member in wanted}
    for member, stream in self.in_one_pass():
      if member.path in paths:
        yield member, stream


class _Entry(typing.NamedTuple):
  """A file or link as an archive lists it."""

  name: str
  bytes: int
  record: Any
  is_link: bool
  is_compressed: bool
  needs_extractor: bool = False


def _members(entries: Iterable[_Entry], label: str) -> list[Member]:
  """Safe members.

  Raises:
    ArchiveError: one would leave its folder, is a link, or comes twice.
  """
  members: dict[pathlib.PurePosixPath, Member] = {}
  for entry in entries:
    path = names.member_path(entry.name, label)
    if entry.is_link:
      raise failures.ArchiveError(
        f"{label}: the member {entry.name!r} is a link or a device, expected files only. Unpack the "
        "archive by hand if you trust it."
      )
    if names.is_added_by_macos(path):
      continue
    if path in members:
      raise failures.ArchiveError(
        f"{label} has two members {entry.name!r}. Unpack the archive by hand."
      )
    members[path] = Member(
      path, entry.bytes, entry.record, entry.is_compressed, entry.needs_extractor
    )
  return list(members.values())


@contextlib.contextmanager
def opened(source: Source, label: str) -> Iterator[Archive]:
  """Opens an archive by what it begins with, whatever its name says.

  Args:
    source: a file, or a stream that can seek.
    label: its path, for messages.

  Raises:
    ArchiveError: it is no archive, is damaged, cut short or encrypted, needs another volume, or has
      a member that is not safe.
  """
  if isinstance(source, pathlib.Path):
    with source.open("rb") as file:
      start = file.read(1024)
  else:
    start = source.read(1024)
    source.seek(0)
  if start.startswith((rarfile.RAR_ID, rarfile.RAR5_ID)):
    archive = _rar(source, label)
  elif start.startswith(b"PK"):
    archive = _zip(source, label)
  elif start.startswith(_GZIP) or start[257:262] == b"ustar":
    archive = _tar(source, label)
  else:
    raise _not_an_archive(start, label)
  with failures.explained(label, pathlib.Path(label).parent), archive as value:
    yield value


def _not_an_archive(start: bytes, label: str) -> failures.ArchiveError:
  what = "an empty file"
  if re.match(rb"\s*(<!doctype|<html|<\?xml|<head|<!--)", start, re.IGNORECASE):
    what = "a web page, such as a server sends in place of a file that it no longer has"
  elif start:
    what = f"a file that begins {start[:8]!r}"
  return failures.ArchiveError(
    f"{label} is not an archive: found {what}, expected a RAR, ZIP or TAR file. Remove it and "
    "download it again, from another server if need be."
  )


def _encrypted(label: str) -> failures.ArchiveError:
  return failures.ArchiveError(
    f"{label} is encrypted, expected one without a password. Unpack it by hand."
  )


@contextlib.contextmanager
def _rar(source: Source, label: str) -> Iterator[Archive]:
  try:
    archive = rarfile.RarFile(source, errors="strict")
  except rarfile.BadRarFile as error:
    if "volume" in str(error):
      raise failures.ArchiveError(
        f"{label} continues in another volume, which is missing or not part of it ({error}). Put all "
        "volumes into one folder."
      ) from error
    raise
  with archive:
    if archive.needs_password():
      raise _encrypted(label)
    records = [info for info in archive.infolist() if not info.is_dir()]
    if isinstance(source, pathlib.Path) and len(archive.volumelist()) == 1:
      _check_length(source, records, label)
    members = _members(map(_rar_entry, records), label)
    # One run of the extractor serves them all, where one a file would go through a solid archive
    # from its start each time. Copies are not in its output, and nothing but CRC-32 is checked in
    # it.
    one_run = any(member.needs_extractor for member in members) and all(
      info.CRC is not None and not info.file_redir for info in records if info.is_file()
    )
    yield Archive(
      label,
      members,
      lambda member: archive.open(member.record),
      (lambda: _one_run(archive, members)) if one_run else None,
    )


def _rar_entry(info: rarfile.RarInfo) -> _Entry:
  # RAR5 has more kinds of links than the library calls so.
  is_copy = info.file_redir and info.file_redir[0] == rarfile.RAR5_XREDIR_FILE_COPY
  is_link = info.is_symlink() or bool(info.file_redir and not is_copy)
  is_compressed = info.compress_type != rarfile.RAR_M0
  return _Entry(info.filename, info.file_size, info, is_link, is_compressed, is_compressed)


def _check_length(path: pathlib.Path, records: list[rarfile.RarInfo], label: str) -> None:
  size = path.stat().st_size
  for info in records:
    end = info.header_offset + info.header_size + info.compress_size
    if end > size:
      raise failures.ArchiveError(
        f"{label} is cut short: found {size} bytes, and {info.filename!r} alone goes on to byte "
        f"{end}. Download it again."
      )


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

  def skip(self) -> None:
    """Reads the rest of the member."""
    while self.read(CHUNK_BYTES):
      pass


def extractor() -> rarfile.ToolSetup:
  """How to call the extractor that is installed.

  Raises:
    rarfile.RarCannotExec: none is.
  """
  try:
    # 7-Zip is often installed without its RAR module, and says so only when it fails.
    return rarfile.tool_setup(sevenzip=False, sevenzip2=False)
  except rarfile.RarCannotExec:
    return rarfile.tool_setup()


def _one_run(archive: rarfile.RarFile, members: list[Member]) -> Iterator[tuple[Member, IO[bytes]]]:
  """Members from one run of the extractor, which prints one after another."""
  by_name = {member.record.filename: member for member in members}
  command = extractor().open_cmdline(None, str(archive.filename))
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
          piece.skip()
    finally:
      process.kill()


@contextlib.contextmanager
def _zip(source: Source, label: str) -> Iterator[Archive]:
  try:
    archive = zipfile.ZipFile(source, metadata_encoding="utf-8")
  except UnicodeDecodeError:
    archive = zipfile.ZipFile(source)
  with archive:
    # `is_dir` of the library fails for a name that is empty.
    records = [info for info in archive.infolist() if not info.filename.endswith("/")]
    if any(info.flag_bits & 1 for info in records):
      raise _encrypted(label)
    entries = (
      _Entry(
        info.filename,
        info.file_size,
        info,
        is_link=stat.S_ISLNK(info.external_attr >> 16),
        is_compressed=info.compress_type != zipfile.ZIP_STORED,
      )
      for info in records
    )
    yield Archive(label, _members(entries, label), lambda member: archive.open(member.record))


@contextlib.contextmanager
def _tar(source: Source, label: str) -> Iterator[Archive]:
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(source.open("rb")) if isinstance(source, pathlib.Path) else source
    is_compressed = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    mode: typing.Literal["r:gz", "r:"] = "r:gz" if is_compressed else "r:"
    archive = stack.enter_context(tarfile.open(fileobj=file, mode=mode))
    records = [info for info in archive.getmembers() if not info.isdir()]
    # The library takes a broken header for the end of the archive.
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
      raise tarfile.ReadError(f"no end mark at byte {archive.offset}")
    # gzip's checksum comes last, and nothing is written before it was reached.
    while archive.fileobj.read(CHUNK_BYTES):
      pass
    entries = (
      _Entry(info.name, info.size, info, not info.isreg(), is_compressed) for info in records
    )
    yield Archive(label, _members(entries, label), lambda member: _tar_stream(archive, member))


def _tar_stream(archive: tarfile.TarFile, member: Member) -> IO[bytes]:
  stream = archive.extractfile(member.record)
  assert stream is not None, "_members takes regular files only"
  return stream
