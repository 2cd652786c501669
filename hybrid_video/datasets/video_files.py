"""The videos among a folder's files: by name where a name says it, by content where none does.

In: a folder, or its files. Out: `VideoFiles`, which finds videos by name or by path and says what
every other file is.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
import functools
import logging
import os
import pathlib
import unicodedata

from hybrid_video import errors
from hybrid_video.datasets import file_kinds
from hybrid_video.datasets.listing import ListingError, Video

log = logging.getLogger("hybrid_video")


class VideoFiles:
  """The video files among some files.

  The suffix of a listed name may differ from the file's, so converted videos match too. A file
  whose kind no name tells is opened by FFmpeg, in another process, and only where it matters.
  """

  def __init__(self, paths: Iterable[pathlib.Path], fold: Callable[[str], str] = str):
    """Indexes the files.

    Args:
      paths: files of any kind.
      fold: makes names equal that mean one file, such as `str.casefold`.
    """
    self._fold = fold
    self._kinds = {path: file_kinds.kind(path) for path in paths}
    self._reasons: dict[pathlib.Path, str] = {}
    self._by_stem: dict[str, list[pathlib.Path]] = {}
    for path, kind in self._kinds.items():
      if kind in ("video", ""):
        self._by_stem.setdefault(self.fold(file_kinds.stem(path.name)), []).append(path)

  @functools.cached_property
  def paths(self) -> list[pathlib.Path]:
    """All videos, those included that only their content tells."""
    return self._videos_among(self._kinds)

  def named(self, name: str) -> pathlib.Path | None:
    """The file with a name, in whichever folder; None where there is none.

    Raises:
      ListingError: there are two.
    """
    return only(self.alike(name))

  def alike(self, name: str) -> list[pathlib.Path]:
    """The videos with a name but for the suffix, in whichever folder.

    A list that names it tells a file of unknown kind for a video, unless another has the name.
    """
    paths = self._by_stem.get(self.fold(file_kinds.stem(name)), [])
    return [path for path in paths if self._kinds[path]] or paths

  def fold(self, text: str) -> str:
    """A name in the form in which names are compared, whichever way its accents are written."""
    # macOS writes a letter and its accent where lists mostly have one sign.
    return self._fold(text if text.isascii() else unicodedata.normalize("NFC", text))

  def unused(
    self, videos: Iterable[Video], lists: Collection[pathlib.Path] = ()
  ) -> tuple[list[pathlib.Path], list[tuple[pathlib.Path, str]]]:
    """The files that no listed video has.

    Args:
      videos: as listed.
      lists: files that were read as lists.

    Returns:
      (video files; other files and what they are, such as "not a video (picture)").
    """
    used = {os.path.abspath(video.path) for video in videos if video.path}
    used |= {os.path.abspath(path) for path in lists}
    left = [path for path in self._kinds if os.path.abspath(path) not in used]
    videos_left = self._videos_among(left)
    others = {*left} - {*videos_left}
    return videos_left, [(path, self._reason(path)) for path in left if path in others]

  def _videos_among(self, paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    paths = list(paths)
    unknown = [path for path in paths if not self._kinds[path] and path not in self._reasons]
    if unknown:
      # FFmpeg is of no use to a process that only knows names.
      from hybrid_video.decoding import probing

      log.info(
        "Files whose names do not tell whether they are videos, to be opened: %d", len(unknown)
      )
      self._reasons |= dict(zip(unknown, probing.why_no_videos(unknown), strict=True))
    return [path for path in paths if self._kinds[path] == "video" or self._reasons.get(path) == ""]

  def _reason(self, path: pathlib.Path) -> str:
    if self._kinds[path]:
      return f"not a video ({self._kinds[path]})"
    return f"cannot be opened as a video: {self._reasons[path]}"


def only(paths: Sequence[pathlib.Path]) -> pathlib.Path | None:
  """The one of some files; None where there is none.

  Raises:
    ListingError: there are two.
  """
  if len(paths) > 1:
    raise ListingError(
      f"{errors.printable(paths[0])} and {errors.printable(paths[1])}: two files of one name. Remove "
      "one."
    )
  return paths[0] if paths else None


def beside_videos(
  files: Iterable[tuple[pathlib.Path, str]],
  videos: Iterable[Video],
  folder: pathlib.Path,
) -> list[tuple[pathlib.Path, str]]:
  """Of the files that are no videos, those in folders of listed videos; the data folder is none.

  What lies elsewhere, such as annotations, is not where a video is looked for.
  """
  parents = {video.path.parent for video in videos if video.path} - {folder}
  return [(path, reason) for path, reason in files if path.parent in parents]
