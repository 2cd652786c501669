"""What all sets of made videos share: writing a set in HMDB51's layout. `made_scenes` draws.

In: what draws a clip of a class and a film (`MadeSet`). Out: a folder of AVI files and split files,
read like HMDB51 itself.
"""

from collections.abc import Callable, Mapping
from concurrent import futures
import contextlib
import dataclasses
from fractions import Fraction
import functools
import json
import multiprocessing
import os
import pathlib
import shutil
import time
from typing import Any
import uuid

import av
import numpy as np
import tqdm

from hybrid_video import errors, files
from hybrid_video.datasets import hmdb51, splits
from hybrid_video.decoding import parent_watch

# Of the films, in each split.
_TEST_SHARE = 0.3
FRAME_RATES = (12, 15, 20, 24, 30)
SPLITS_FOLDER = "testTrainMulti_7030_splits"
# A folder in the making that has not changed for so long was left by an interrupted process.
_LEFTOVER_SECONDS = 60 * 60


class MadeVideosError(errors.UserError):
  """Videos that cannot be made there; the message has the folder and what to do."""


@dataclasses.dataclass(frozen=True)
class MadeSet:
  """What a set of made videos is.

  Attributes:
    name: the data set's.
    class_names: in their order.
    note: beside the number of films, what tells this set from others of its name; JSON.
    render: draws the clip of a class and a film: (frames, each uint8 `[H, W, 3]`; frames a second).
      Processes are sent it.
  """

  name: str
  class_names: tuple[str, ...]
  note: Mapping[str, Any]
  render: Callable[[str, int], tuple[list[np.ndarray], int]]


def write_avi(path: os.PathLike | str, frames: list[np.ndarray], fps: int) -> None:
  """Writes uint8 RGB frames `[H, W, 3]` as MPEG-4 in AVI, the codec of HMDB51's own files."""
  with av.open(str(path), "w", format="avi") as container:
    stream = container.add_stream("mpeg4", rate=Fraction(fps))
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.bit_rate = 1_500_000
    stream.thread_count = 1
    for array in frames:
      frame = av.VideoFrame.from_ndarray(array, format="rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def clip_name(label: str, film: int) -> str:
  """The file name of a film's clip of a class, in HMDB51's form."""
  return f"film{film:03d}_{label}_f_nm_np1_fr_goo_0.avi"


def _write_film(folder: pathlib.Path, made: MadeSet, film: int) -> None:
  for label in made.class_names:
    frames, fps = made.render(label, film)
    write_avi(folder / label / clip_name(label, film), frames, fps)


def test_films(films: int) -> int:
  """How many of some films each split tests; the others are for training."""
  return round(_TEST_SHARE * films)


def _split_codes(films: int, split: int) -> list[int]:
  # A film is for training or for the test as a whole; splits test other films.
  order = np.random.default_rng([films, split]).permutation(films)
  codes = np.full(films, splits.TRAIN)
  codes[order[: test_films(films)]] = splits.TEST
  return codes.tolist()


def _is_made(folder: pathlib.Path, note: dict) -> bool:
  """Whether the folder holds the set that `note` describes.

  Raises:
    MadeVideosError: it holds something else.
  """
  if not folder.exists():
    return False
  note_path = folder / "made.json"
  try:
    present = json.loads(note_path.read_text()) if note_path.is_file() else None
  except ValueError:
    present = None
  if present == note:
    return True
  raise MadeVideosError(
    f"{errors.printable(folder)}: expected the made videos {note}, found "
    f"{present or 'something else'}. Remove the folder or name another."
  )


def _remove_leftovers(folder: pathlib.Path) -> None:
  """Removes what interrupted processes left beside `folder`; living ones write all the time."""
  for part in folder.parent.glob(f"*{files.PART}"):
    if not part.name.startswith(f"{folder.name}."):
      continue
    with contextlib.suppress(OSError):
      changed = max(path.stat().st_mtime for path in (part, *part.glob("videos/*")))
      if time.time() - changed > _LEFTOVER_SECONDS:
        shutil.rmtree(part, ignore_errors=True)


def _write_set(folder: pathlib.Path, made: MadeSet, films: int, workers: int | None) -> None:
  for label in made.class_names:
    (folder / "videos" / label).mkdir(parents=True)
  write = functools.partial(_write_film, folder / "videos", made)
  workers = min(workers or os.cpu_count() or 1, films)
  if workers > 1:
    context = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(
      workers, mp_context=context, initializer=parent_watch.end_with_parent
    )
    try:
      # Not `map`, which cancels what is left itself: the pool may be marking the same as broken.
      writing = futures.as_completed([pool.submit(write, film) for film in range(films)])
      for written in tqdm.tqdm(writing, total=films, unit=" films", desc="Making videos"):
        written.result()
    except BaseException:
      # Nobody wants what they are at any more.
      for process in multiprocessing.active_children():
        process.kill()
      raise
    finally:
      pool.shutdown(cancel_futures=True)
  else:
    list(map(write, range(films)))
  (folder / SPLITS_FOLDER).mkdir()
  for split in range(1, hmdb51.NUM_SPLITS + 1):
    codes = _split_codes(films, split)
    for label in made.class_names:
      lines = [f"{clip_name(label, film)} {codes[film]} \n" for film in range(films)]
      (folder / SPLITS_FOLDER / f"{label}_test_split{split}.txt").write_text("".join(lines))


def make(folder: os.PathLike | str, made: MadeSet, films: int, workers: int | None = None) -> bool:
  """Writes the set, one clip for each class and film, unless it is there already.

  The folder appears when it is whole: it is written beside its place, under a name that no other
  process uses, and renamed. If two processes make the same set at once, the first one's stays.

  Args:
    folder: where to; holds `videos/CLASS/*.avi`, the split files, and a note of how it was made.
    made: what the set is.
    films: backgrounds; 7 in 10 are for training, 3 in 10 for the test, in each of three splits.
    workers: processes; the default is one a core.

  Returns:
    Whether the folder is new.

  Raises:
    MadeVideosError: too few films for both lists, the folder holds something else, or it cannot
      be written.
  """
  if films < 4:
    raise MadeVideosError(
      f"{films} films are too few for a training and a test list: make 4 or more."
    )
  folder = pathlib.Path(folder)
  note = {made.name: {"films": films, **made.note}}
  part = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{files.PART}")
  try:
    if _is_made(folder, note):
      return False
    _remove_leftovers(folder)
    try:
      _write_set(part, made, films, workers)
      (part / "made.json").write_text(json.dumps(note, indent=2))
      return _rename(part, folder, note)
    finally:
      shutil.rmtree(part, ignore_errors=True)
  except OSError as error:
    raise MadeVideosError(
      f"{errors.printable(folder)}: the videos cannot be made there ({error.strerror or error}). "
      "Make room or fix the permissions there, or name another folder."
    ) from error
  except futures.BrokenExecutor as error:
    raise MadeVideosError(
      f"{errors.printable(folder)}: a process that makes videos ended early. Check this machine's "
      "memory; a script needs `if __name__ == '__main__':` around its work."
    ) from error


def _rename(part: pathlib.Path, folder: pathlib.Path, note: dict) -> bool:
  """Gives a whole set its name and says whether it got it: another process may have been first."""
  try:
    part.rename(folder)
  except OSError:
    if _is_made(folder, note):
      return False
    raise
  return True
