"""Unpacking what is not unpacked yet, each archive whole or not at all.

In: a data folder. Out: the same folder with its archives' contents in `unpacked/`.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import shutil
import tempfile
from typing import IO, Any
import unicodedata

import tqdm

from hybrid_video import errors, files
from hybrid_video.datasets import listing
from hybrid_video.datasets.archives import by_hand, failures, names, reading

_MAX_DEPTH = 4

log = logging.getLogger("hybrid_video")


def unpacked(folder: pathlib.Path, *, progress: bool = True) -> pathlib.Path:
  """Unpacks the archives at the top level of a data folder, each once.

  Args:
    folder: the data folder; none of its files is changed. One that does not exist is returned as it
      is.
    progress: whether to show a bar with bytes, rate and time left for each archive.

  Returns:
    `folder`, which now has the archives' contents in `folder/unpacked`.

  Raises:
    ArchiveError: an archive is damaged, cut short, encrypted, has a volume missing, is no archive,
      has a member that would leave the folder or is a link, or needs an extractor that is not
      installed; the disk is full or the folder not writable. Nothing half-unpacked is left then.
  """
  if not os.path.isdir(folder):
    return folder
  targets = _targets(folder)
  own_files: by_hand.OwnFiles | None = None
  for path, target in targets.items():
    with failures.explained(errors.printable(path), target.parent):
      # The walk through the folder is made only where the note does not settle it.
      if _is_done(path, target, lambda: by_hand.OwnFiles.below(folder)):
        continue
      own_files = own_files or by_hand.OwnFiles.below(folder)
      if own := _unpacked_by_hand(path, target):
        log.info(
          "%s is not unpacked: %s is taken for its contents. Remove that folder to have it "
          "unpacked.",
          path,
          own,
        )
        continue
      _unpack_outer(path, target, own_files, progress)
  return folder


def _targets(folder: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
  """The archives at the top level of a folder, and the folders for their contents.

  Raises:
    ArchiveError: two have one folder, or a first volume is missing.
  """
  try:
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
  except OSError as error:
    raise failures.ArchiveError(
      f"{folder}: the folder cannot be read ({error.strerror}). Make it readable, or set "
      "--config.data_dir to another one."
    ) from error
  archives = [path for path in paths if names.is_archive(path.name) and path.is_file()]
  _check_volumes(paths, {names.stem(path.name) for path in archives})
  targets: dict[pathlib.Path, pathlib.Path] = {}
  by_name: dict[str, pathlib.Path] = {}
  for path in archives:
    targets[path] = folder / listing.UNPACKED / names.folder_name(path.name)
    # Some file systems know no difference of case or of Unicode form.
    name = unicodedata.normalize("NFC", targets[path].name).casefold()
    other = by_name.setdefault(name, path)
    if other != path:
      raise failures.ArchiveError(
        f"{other} and {path.name} would both be unpacked into {targets[path]}. Rename one of them, "
        "or remove one if they contain the same."
      )
  return targets


def _check_volumes(paths: list[pathlib.Path], stems: set[str]) -> None:
  for path in paths:
    stem = names.first_of_later(path.name)
    if stem is not None and stem not in stems and not _folder_beside(path.parent, stem):
      raise failures.ArchiveError(
        f"{path} is a later volume of an archive whose first volume is missing. Put "
        f"{stem}.part1.rar into {path.parent}."
      )


def _folder_beside(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
  """The folder beside an archive that the user has unpacked it into, if there is one."""
  own = names.by_hand_names(stem) - {listing.UNPACKED}
  return next((folder / name for name in sorted(own) if by_hand.has_contents(folder / name)), None)


def _unpacked_by_hand(path: pathlib.Path, target: pathlib.Path) -> pathlib.Path | None:
  """The folder of the user's own that is taken for an archive's contents, if there is one."""
  if beside := _folder_beside(path.parent, names.stem(path.name)):
    return beside
  return target if by_hand.has_contents(target) and not _note(target).exists() else None


def _note(target: pathlib.Path) -> pathlib.Path:
  return target.with_name(target.name + names.NOTE)


def _identity(path: pathlib.Path) -> list[list[Any]]:
  """Name, bytes and time of change of each of an archive's files."""
  stats = [(file.name, file.stat()) for file in names.volumes(path)]
  return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _is_done(
  path: pathlib.Path, target: pathlib.Path, own_files: Callable[[], by_hand.OwnFiles]
) -> bool:
  """Whether the archive was unpacked, and what was left out of it is still in the folder."""
  try:
    note = json.loads(_note(target).read_text(encoding="utf-8"))
    same = note["archive"] == _identity(path) and target.is_dir()
    left_out = note["left_out"]
  except (OSError, ValueError, KeyError, TypeError):
    return False
  return same and (not left_out or own_files().still_has(left_out))


def _unpack_outer(
  path: pathlib.Path, target: pathlib.Path, own_files: by_hand.OwnFiles, progress: bool
) -> None:
  label = errors.printable(path)
  with reading.opened(path, label) as archive:
    wanted, left_out = own_files.missing(archive.members)
    if archive.members and not wanted:
      log.info("%s is not unpacked: all its files are in %s already.", path, path.parent)
      return
    needed = _needed_bytes(archive, wanted, own_files, depth=1)
    identity = _identity(path)
    target.parent.mkdir(exist_ok=True)
    with _locked(target.parent):
      if _is_done(path, target, lambda: own_files):
        return
      with _whole_folder(target, label, needed) as part:
        log.info("Unpacking %s into %s", path, target)
        with tqdm.tqdm(
          total=needed.contents,
          unit="B",
          unit_scale=True,
          unit_divisor=1024,
          desc=errors.printable(path.name),
          disable=not progress,
        ) as bar:
          left_out += _unpack(archive, wanted, part, own_files, bar, depth=1)
        # What has a note is ours to replace; it goes only when the new one is whole.
        _remove(target)
        files.write_json(_note(target), {"archive": identity, "left_out": left_out})


@dataclasses.dataclass(frozen=True)
class _Needed:
  """Bytes that contents take, and those of the largest archive that is on the disk meanwhile."""

  contents: int
  spare: int


@contextlib.contextmanager
def _whole_folder(target: pathlib.Path, label: str, needed: _Needed) -> Iterator[pathlib.Path]:
  """Gives a new folder to fill; when the block ends, it gets the target's name.

  If the block raises, the folder is removed.
  """
  part = target.with_name(target.name + files.PART)
  _remove(part)
  failures.check_space(label, target.parent, needed.contents + needed.spare)
  try:
    with failures.explained(label, target.parent):
      part.mkdir()
      yield part
      part.rename(target)
  except BaseException as error:
    with contextlib.suppress(OSError):
      _remove(part)
    if isinstance(error, failures.DiskFullError):
      raise failures.disk_full(label, target.parent, needed.contents + needed.spare) from error
    raise


def _remove(path: pathlib.Path) -> None:
  if path.is_symlink() or path.is_file():
    path.unlink()
  elif path.exists():
    shutil.rmtree(path)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """One process of this machine at a time; network file systems may not know such locks."""
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


def _needed_bytes(
  archive: reading.Archive, wanted: list[reading.Member], own_files: by_hand.OwnFiles, depth: int
) -> _Needed:
  """What some members take on the disk.

  A stored archive within the archive is read in place, so that a missing extractor or a full disk
  is noticed before anything is written; a compressed one counts as it is.
  """
  contents = spare = 0
  for member in wanted:
    if member.needs_extractor:
      reading.extractor()
    if not member.is_archive:
      contents += member.bytes
      continue
    within = _Needed(member.bytes, 0)
    if not member.is_compressed and archive.in_one_pass is None:
      label = f"{archive.label}/{errors.printable(member.path)}"
      with archive.open(member) as stream, reading.opened(stream, label) as nested:
        _check_depth(label, depth)
        inner, _ = own_files.missing(nested.members)
        within = _needed_bytes(nested, inner, own_files, depth + 1)
    contents += within.contents
    spare = max(spare, member.bytes + within.spare)
  return _Needed(contents, spare)


def _check_depth(label: str, depth: int) -> None:
  if depth >= _MAX_DEPTH:
    raise failures.ArchiveError(
      f"{label} is {depth} archives deep, expected at most {_MAX_DEPTH - 1}. Unpack it by hand."
    )


def _unpack(
  archive: reading.Archive,
  wanted: list[reading.Member],
  folder: pathlib.Path,
  own_files: by_hand.OwnFiles,
  bar: "tqdm.tqdm",
  depth: int,
) -> list[by_hand.Reason]:
  """Writes members below a folder, those of archives within the archive too.

  Returns:
    Why members of the archives within it are left out.
  """
  left_out = []
  for member, opened in archive.streams(wanted):
    label = f"{archive.label}/{errors.printable(member.path)}"
    path = folder / member.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with failures.explained(label, folder.parent), opened as stream:
      if not member.is_archive:
        _copy(stream, path, member.bytes, bar)
        continue
      _check_depth(label, depth)
      # Beside its contents, so that it is on the same disk and goes with the `.part` folder.
      with tempfile.NamedTemporaryFile(dir=folder, suffix=files.PART) as copy:
        _copy(stream, pathlib.Path(copy.name), member.bytes, None)
        with reading.opened(pathlib.Path(copy.name), label) as nested:
          inner, more = own_files.missing(nested.members)
          left_out += more
          if member.is_compressed or archive.in_one_pass:
            # Only now is it known what it contains.
            contents = _needed_bytes(nested, inner, own_files, depth + 1).contents
            failures.check_space(label, folder, contents)
            bar.total += contents - member.bytes
          inside = _folder_within(path, inner)
          inside.mkdir(exist_ok=True)
          left_out += _unpack(nested, inner, inside, own_files, bar, depth + 1)
  return left_out


def _folder_within(path: pathlib.Path, inner: list[reading.Member]) -> pathlib.Path:
  """The folder for an archive within an archive: one of its name, unless it brings that itself."""
  own = names.folder_name(path.name)
  brings_it = bool(inner) and all(member.path.parts[0] == own for member in inner)
  return path.parent if brings_it else path.parent / own


def _copy(stream: IO[bytes], path: pathlib.Path, size: int, bar: "tqdm.tqdm | None") -> None:
  written = 0
  if bar is not None and path.exists():
    raise failures.ArchiveError(
      f"{errors.printable(path.name)} is there twice: in an archive, and beside it or in another one, "
      f"both in {errors.printable(path.parent.name)}. Unpack the archive by hand."
    )
  with path.open("wb") as file:
    while chunk := stream.read(reading.CHUNK_BYTES):
      file.write(chunk)
      written += len(chunk)
      if bar is not None:
        bar.update(len(chunk))
  if written != size:
    raise EOFError(f"{written} of {size} bytes")
