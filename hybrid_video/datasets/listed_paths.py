r"""Where the videos of a list lie: paths of this machine, of another one, and Windows' paths.

In: paths as lists have them. Out: the file of each, or None.

- A path is absolute, or relative to its list's folder or the data folder, or the last components of
  a file's path. It may be written with Windows' backslashes.
- An absolute path of another machine (`/home/anna/kinetics/run/x.mp4`, `C:\data\run\x.mp4`,
  `\\server\share\run\x.mp4`) leads to the file whose path ends like it: with as many components as
  any, and never with the bare name alone where that could be another video.
- A prefix of listed paths can be replaced by one of this machine.
- A relative path never leads out of the data folder; an absolute one may.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
import dataclasses
import os
import pathlib
import re

from hybrid_video import errors
from hybrid_video.datasets import file_kinds
from hybrid_video.datasets.listing import ListingError
from hybrid_video.datasets.video_files import VideoFiles, only

_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclasses.dataclass(frozen=True)
class ListedPath:
  """A path in a list.

  Attributes:
    text: as it is written.
    source: its file and line, for messages.
    start: the folder of its list, where relative paths start.
  """

  text: str
  source: str
  start: pathlib.Path


class Finder:
  """Finds the videos that lists name by their paths."""

  def __init__(self, folder: pathlib.Path, video_files: VideoFiles, replace_prefix: str = ""):
    r"""Takes what is there.

    Args:
      folder: the data folder.
      video_files: its videos.
      replace_prefix: `OLD=NEW`: listed paths that begin with the folder OLD begin with NEW here, such
        as `C:\data=/mnt/data`; "" for none.

    Raises:
      ListingError: `replace_prefix` has another form.
    """
    self._folder = folder
    self._files = video_files
    old, equals, new = replace_prefix.partition("=")
    if replace_prefix and not (equals and old.strip() and new.strip()):
      raise ListingError(
        f"--config.replace_prefix is {replace_prefix!r}, expected OLD=NEW, the beginning of paths in "
        "the lists and what it is here, such as /home/anna/videos=/data/videos."
      )
    self._old, self._new = _plain(old.strip()).rstrip("/"), os.path.expanduser(new.strip())
    # By the letters of paths: `..` after a link would lead elsewhere.
    self._top = os.path.abspath(folder)

  def name(self, text: str) -> str:
    """The name of a video by its listed path: without the data folder's own path, on any machine."""
    replaced = self._replaced(text)
    below = replaced.removeprefix(os.path.join(self._top, ""))
    return pathlib.PurePosixPath(below).as_posix()

  def stem(self, text: str) -> str:
    """The last component of a listed path, without its video suffix."""
    return file_kinds.stem(self._replaced(text))

  def is_file(self, text: str, start: pathlib.Path) -> bool:
    """Whether a file has exactly this path, from the folder of its list or the data folder."""
    replaced = self._replaced(text)
    return any(os.path.isfile(folder / replaced) for folder in (start, self._folder))

  def leads_to_file(self, text: str, start: pathlib.Path) -> bool:
    """Whether a path may be a video's: a file has it, or a video its last component."""
    return self.is_file(text, start) or bool(self._files.alike(self._replaced(text)))

  def find(self, listed: Sequence[ListedPath]) -> list[pathlib.Path | None]:
    """The files of all paths of a data set's lists, None where there is none.

    Raises:
      ListingError: a relative path leads out of the data folder, two files end like a path, no file
        was found for any, or no path begins with the prefix to replace.
    """
    if self._old and not any(self._begins(_plain(path.text)) for path in listed):
      shown = errors.printable(listed[0].text) if listed else "nothing"
      raise ListingError(
        f"{self._folder}: no path in the lists begins with {self._old}, which "
        f"--config.replace_prefix is to replace; they name {shown}, for one. Change it, or leave it "
        "out."
      )
    texts = [self._replaced(path.text) for path in listed]
    found = [self._here(path, text) for path, text in zip(listed, texts, strict=True)]
    if not all(found):
      layout = _Layout(texts, self._files.fold)
      found = [
        path or self._elsewhere(text, layout) for path, text in zip(found, texts, strict=True)
      ]
    if listed and not any(found):
      raise ListingError(self._none_found(texts))
    return found

  def _begins(self, plain: str) -> bool:
    return f"{plain}/".startswith(f"{self._old}/")

  def _replaced(self, text: str) -> str:
    """A path with `/` between its components, and this machine's prefix."""
    plain = _plain(text)
    if self._old and self._begins(plain):
      return os.path.join(self._new, plain[len(self._old) :].lstrip("/"))
    # Elsewhere than on Windows a name may hold a backslash.
    return text if plain != text and os.path.isfile(self._folder / text) else plain

  def _here(self, listed: ListedPath, text: str) -> pathlib.Path | None:
    """The file at exactly this path.

    Raises:
      ListingError: a relative path leads out of the data folder.
    """
    if _is_absolute(text):
      # Of `pathlib` this would raise an error for a name that is too long.
      return pathlib.Path(text) if os.path.isfile(text) else None
    starts = dict.fromkeys((os.path.abspath(listed.start), self._top))
    places = [os.path.normpath(os.path.join(start, text)) for start in starts]
    inside = [place for place in places if place.startswith(os.path.join(self._top, ""))]
    if not inside:
      raise ListingError(
        f"{listed.source}: {errors.printable(listed.text)} leads out of the data folder "
        f"{self._folder}. Name videos below it, or by absolute paths."
      )
    for place in inside:
      if os.path.isfile(place):
        return self._folder / os.path.relpath(place, self._top)
    return None

  def _elsewhere(self, text: str, layout: "_Layout") -> pathlib.Path | None:
    """The file whose path ends like a listed one's.

    Raises:
      ListingError: there are two.
    """
    above = layout.above(text)
    depths = {
      path: _common(above, list(map(self._files.fold, path.parts[-2::-1])))
      for path in self._files.alike(text)
    }
    if not _is_absolute(text):
      return only([path for path, depth in depths.items() if depth == len(above)])
    fitting = {
      path: depth
      for path, depth in depths.items()
      if not layout.is_another(path.relative_to(self._folder), depth)
    }
    most = max(fitting.values(), default=0)
    best = [path for path, depth in fitting.items() if depth == most]
    if most:
      return only(best)
    # By the name alone only where it is the only one, here and in the lists.
    return best[0] if len(depths) == 1 and best and layout.is_only(text) else None

  def _none_found(self, texts: Sequence[str]) -> str:
    message = (
      f"{self._folder}: none of the {len(texts)} listed videos is there, such as "
      f"{errors.printable(texts[0])}. Put the video files into this folder, at any depth, under the "
      "names in the lists."
    )
    shared = _shared(pathlib.PurePosixPath(text).parent for text in texts)
    if self._old or shared is None:
      return message
    example = self._folder / pathlib.PurePosixPath(texts[0]).relative_to(shared)
    return (
      f"{message} The lists name {errors.printable(texts[0])}, which would be "
      f"{errors.printable(example)} here. Where the videos lie in another folder, set "
      f"--config.replace_prefix={errors.printable(shared)}=FOLDER."
    )


class _Layout:
  """The folders and names that lists speak of, to tell what a file is not."""

  def __init__(self, texts: Sequence[str], fold: Callable[[str], str]):
    self._fold = fold
    self._stems = Counter(map(self._stem, texts))
    self._folders = {(depth, name) for text in texts for depth, name in enumerate(self.above(text))}

  def above(self, text: str) -> list[str]:
    """The folders above a listed path, from the file upwards."""
    return [self._fold(part) for part in text.split("/")[-2::-1] if part not in ("", ".", "..")]

  def is_only(self, text: str) -> bool:
    """Whether no other listed path has this file name, whatever its suffix."""
    return self._stems[self._stem(text)] == 1

  def is_another(self, path: pathlib.Path, depth: int) -> bool:
    """Whether a file lies in another folder of the lists than a path that ends like its own.

    Of `/old/run/1.mp4` and `/old/walk/1.mp4`, the file `walk/1.mp4` is never the first.

    Args:
      path: of the file, in the data folder.
      depth: how many of the folders above it are the listed ones.
    """
    parts = path.parts[-2::-1]
    return depth < len(parts) and (depth, self._fold(parts[depth])) in self._folders

  def _stem(self, text: str) -> str:
    return self._fold(file_kinds.stem(text))


def _plain(text: str) -> str:
  """A path with `/` between its components, whoever wrote it."""
  return text.replace("\\", "/")


def _is_absolute(text: str) -> bool:
  return text.startswith("/") or bool(_WINDOWS.match(text))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
  """How many names two lists have in common at their beginning."""
  pairs = enumerate(zip(one, other, strict=False))
  return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _shared(folders: Iterable[pathlib.PurePosixPath]) -> pathlib.PurePosixPath | None:
  """The folder that all folders lie in; None where there is none but the root."""
  folders = list(folders)
  shared = folders[0]
  for folder in folders:
    while not folder.is_relative_to(shared):
      shared = shared.parent
  return shared if shared.name else None
