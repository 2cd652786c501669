"""What a user has unpacked by hand, so that no video is there twice.

In: a data folder and an archive's members. Out: the members that are not there yet, and why others
are left out.
"""

from collections import Counter
from collections.abc import Iterable
import contextlib
import os
import pathlib
from typing import Any

from hybrid_video import files
from hybrid_video.datasets import file_kinds, listing
from hybrid_video.datasets.archives import names, reading

# Why a member is left out, as a note's JSON has it: [folder], [file, bytes], or [folder above,
# file, bytes].
Reason = list[Any]


class OwnFiles:
  """Files and folders in a data folder apart from `unpacked`."""

  def __init__(self) -> None:
    self._files: set[tuple[str, int]] = set()
    self._files_in: set[tuple[str, str, int]] = set()
    self._folders: set[str] = set()

  @classmethod
  def below(cls, folder: pathlib.Path) -> "OwnFiles":
    """Walks through the folder; links are followed, but never in a circle."""
    own = cls()
    for parent, folders, file_names in files.walk(folder):
      at_top = pathlib.Path(parent) == folder
      folders[:] = [name for name in folders if not (at_top and name == listing.UNPACKED)]
      if not at_top and any(map(file_kinds.is_video, file_names)):
        own._folders.add(os.path.basename(parent))
      for name in file_names:
        with contextlib.suppress(OSError):
          size = os.stat(os.path.join(parent, name)).st_size
          own._files.add((name, size))
          own._files_in.add((os.path.basename(parent), name, size))
    return own

  def missing(self, members: Iterable[reading.Member]) -> tuple[list[reading.Member], list[Reason]]:
    """Of an archive's members, those that are not there; and why the others are left out."""
    members = list(members)
    counts = Counter(member.path.name for member in members)
    wanted, left_out = [], []
    for member in members:
      reason = self._reason(member, is_only=counts[member.path.name] == 1)
      if reason is None:
        wanted.append(member)
      else:
        left_out.append(reason)
    return wanted, left_out

  def _reason(self, member: reading.Member, is_only: bool) -> Reason | None:
    """Why a member is left out, None if it is not; `is_only`: no other member has its name."""
    if member.is_archive:
      own = names.by_hand_names(names.stem(member.path.name)) & self._folders
      if own:
        return [min(own)]
    if is_only and (member.path.name, member.bytes) in self._files:
      return [member.path.name, member.bytes]
    in_folder = (member.path.parent.name, member.path.name, member.bytes)
    return list(in_folder) if in_folder in self._files_in else None

  def still_has(self, left_out: Iterable[Reason]) -> bool:
    """Whether all that a note gives as reasons is still there."""
    tables: dict[int, set[Any]] = {1: self._folders, 2: self._files, 3: self._files_in}
    return all(
      (reason[0] if len(reason) == 1 else tuple(reason)) in tables[len(reason)]
      for reason in left_out
    )


def has_contents(folder: pathlib.Path) -> bool:
  """Whether there is a folder with anything in it."""
  return folder.is_dir() and any(folder.iterdir())
