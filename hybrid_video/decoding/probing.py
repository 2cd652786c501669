"""Which files of unknown kind are videos: FFmpeg says, in processes that a file cannot harm others with.

In: paths of files that may be anything. Out: for each, "" or why it is no video. Nothing is decoded.
"""

from collections.abc import Callable, Sequence
import contextlib
import os
from typing import Any

from hybrid_video import errors
from hybrid_video.decoding import storing, video_reader, worker_pool

# A process that starts takes longer than a file.
_FILES_A_PROCESS = 64


def _check(path: str, scale: storing.StoredScale, progress: Callable[[], None]) -> Any:
  """What a process does with a path; there is nothing to store."""
  video_reader.check_video(path)


def why_no_videos(paths: Sequence[os.PathLike | str]) -> list[str]:
  """For each file "" where it has a main video stream, or else why it is no video, in a few words.

  No process is started where there is no file.

  Raises:
    WorkerError: a decoding process does not start.
  """
  if not paths:
    return []
  # At most one a core: more are not started than files need.
  workers = max(1, min(os.cpu_count() or 1, len(paths) // _FILES_A_PROCESS))
  results = worker_pool.store_videos(paths, storing.StoredScale(), workers, store=_check)
  with contextlib.closing(results):
    return [
      _reason(paths[index], result) if isinstance(result, str) else "" for index, result in results
    ]


def _reason(path: os.PathLike | str, message: str) -> str:
  """The reason in an error's message, without the file's name and the advice."""
  reason = message.removeprefix(f"{errors.printable(path)}: ")
  return reason.partition(". ")[0].removesuffix(".")
