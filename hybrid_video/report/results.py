"""What a finished run leaves for people and programs: results.json, predictions, and a summary."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import hashlib
import io
import json
import logging
import os
import pathlib
from typing import TYPE_CHECKING, Any

from etils import epath
import jax
import numpy as np

from hybrid_video import errors, files, sharding
from hybrid_video.report.results_file import RESULTS as RESULTS
from hybrid_video.tasks import Evaluation

if TYPE_CHECKING:
  from hybrid_video.datasets.records import Records

log = logging.getLogger("hybrid_video")

PREDICTIONS, TENSORBOARD = "predictions.npz", "tensorboard"


class WorkdirError(errors.UserError):
  """A work directory that cannot be written to."""


class ReportError(WorkdirError):
  """A report of which something that people or programs need was not made."""


def make_folder(path: pathlib.Path) -> pathlib.Path:
  """Makes a folder for results, with those above it, and gives it.

  Raises:
    WorkdirError: it cannot be made.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise WorkdirError(
      f"{path}: the folder cannot be made ({error.strerror}). Name another --workdir."
    ) from error
  return path


@contextlib.contextmanager
def writing(path: os.PathLike | str) -> Iterator[None]:
  """Names the file that could not be written in the block.

  Raises:
    WorkdirError: there is no room, no permission, or whatever the system says.
  """
  try:
    yield
  except OSError as error:
    raise WorkdirError(
      f"{errors.printable(path)}: cannot be written ({error.strerror or error}). Make room, or set "
      "--workdir to a folder that you may write to; the same command goes on from here."
    ) from error


class Parts:
  """Parts of a report, made one by one: what fails is named at once, and again at the end."""

  def __init__(self) -> None:
    self._missing: dict[str, errors.UserError | None] = {}

  def lacks(self, path: os.PathLike | str) -> bool:
    """Whether a file could not be made."""
    return errors.printable(path) in self._missing

  @contextlib.contextmanager
  def making(self, path: os.PathLike | str, *, needed: bool = False) -> Iterator[None]:
    """Whatever stops the block is logged, and costs this file alone.

    Args:
      path: what the block makes; what failed before may be tried again.
      needed: whether a report without it is a failure. Only a `UserError` is then taken.
    """
    name = errors.printable(path)
    try:
      with writing(path):
        yield
    except errors.UserError as error:
      self._missing[name] = error if needed else None
      log.warning("Not made: %s", error if name in str(error) else f"{name}: {error}")
    except Exception as error:
      if needed:
        raise
      self._missing[name] = None
      log.warning("Not made: %s: %s: %s", name, type(error).__name__, error)
    else:
      self._missing.pop(name, None)

  def finish(self) -> None:
    """Says what is missing.

    Raises:
      ReportError: something needed is.
    """
    if not self._missing:
      return
    missing = f"Not made: {', '.join(self._missing)}. The same command makes them."
    if of_needed := [error for error in self._missing.values() if error]:
      raise ReportError(missing) from of_needed[0]
    log.warning("%s All results stand.", missing)


def params_digest(params: dict[str, Any]) -> str:
  """SHA-256 over the parameters: path, type, shape and bytes of each, in order of their paths.

  On several hosts, all processes have to ask for it.
  """
  digest = hashlib.sha256()
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
  for name in sorted(named):
    leaf = sharding.on_host(named[name])
    digest.update(f"{name} {leaf.dtype.str} {leaf.shape} ".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def write(workdir: os.PathLike | str, results: dict[str, Any]) -> pathlib.Path:
  """Writes results.json whole or not at all, and gives its path."""
  path = epath.Path(workdir) / RESULTS
  files.write_json(path, results)
  return path


def about(videos: "Records", video_ids: np.ndarray) -> dict[str, Any]:
  """What is known of videos without decoding them, for `predictions.npz`.

  Args:
    videos: the index.
    video_ids: those wanted, `[V]`.

  Returns:
    `names`, `groups`, `identities` (digests of name, class and file), text `[V]`; `seconds`, float64
    `[V]`; `tag_names` text `[T]` and `tags` text `[V, T]`, "" where a video lacks one; and `data`, a
    digest of all identities and groups.
  """
  names, labels, groups, digests = (
    getattr(videos, column)[video_ids].tolist()
    for column in ("names", "labels", "groups", "file_digest")
  )
  identities = [
    hashlib.sha256(json.dumps([name, videos.class_names[label], digest]).encode()).hexdigest()[:16]
    for name, label, digest in zip(names, labels, digests, strict=True)
  ]
  tags = [json.loads(text or "{}") for text in videos.tags[video_ids].tolist()]
  tag_names = list(dict.fromkeys(name for of_video in tags for name in of_video))
  rows = [[str(of_video.get(name, "")) for name in tag_names] for of_video in tags]
  data = hashlib.sha256(json.dumps([identities, groups]).encode()).hexdigest()
  return {
    "names": np.asarray(names, np.str_),
    "groups": np.asarray(groups, np.str_),
    "identities": np.asarray(identities, np.str_),
    "seconds": np.asarray(videos.num_frames[video_ids] / videos.fps[video_ids], np.float64),
    "tag_names": np.asarray(tag_names, np.str_),
    "tags": np.asarray(rows, np.str_).reshape(len(names), len(tag_names)),
    "data": data,
  }


def write_predictions(
  workdir: os.PathLike | str,
  evaluation: Evaluation,
  about: Mapping[str, np.ndarray],
  class_names: Sequence[str],
  protocol: Mapping[str, Any],
) -> pathlib.Path:
  """Writes predictions.npz, from which any metric can be computed later.

  Args:
    workdir: where.
    evaluation: of the test list.
    about: of its videos, see `about`.
    class_names: by class id.
    protocol: what has to be the same where numbers are compared, see `evaluate.Evaluator.compared`.

  Returns:
    Its path. It holds what `about` gives, `class_names`, `protocol` as JSON, and the evaluation's
    arrays; `analysis.predictions` reads it.
  """
  path = epath.Path(workdir) / PREDICTIONS
  buffer = io.BytesIO()
  # `np.savez` seeks, which files in a bucket cannot.
  np.savez(
    buffer,
    class_names=np.asarray(class_names, np.str_),
    protocol=np.array(files.as_json(protocol)),
    **{**about, **evaluation.arrays},  # type: ignore[arg-type]
  )
  with files.whole_file(path) as part:
    part.write_bytes(buffer.getvalue())
  return path


def summary(results: dict[str, Any]) -> str:
  """A few lines for the console: what was evaluated and what came out."""
  lines = []
  for which, words in (
    ("train", "train list"),
    ("validation", "validation list"),
    ("test", "test list"),
    ("test_raw", "test list, raw parameters"),
  ):
    if which not in results:
      continue
    numbers = results[which]
    scores = f"loss {numbers['loss']:.4f}"
    if "video_top1" in numbers:
      scores = (
        f"video top-1 {100 * numbers['video_top1']:.2f} %, top-5 {100 * numbers['video_top5']:.2f} % "
        f"({numbers['videos']} videos); clip top-1 {100 * numbers['clip_top1']:.2f} % "
        f"({numbers['clips']} clips); {scores}"
      )
    lines.append(f"{words}, split {results['split']}: {scores}")
    if "probe_top1" in numbers:
      lines.append(f"  linear probe on frozen features: {100 * numbers['probe_top1']:.2f} %")
    if "shuffled_video_top1" in numbers:
      lines.append(
        "  with each clip's frames in random order: video top-1 "
        f"{100 * numbers['shuffled_video_top1']:.2f} %"
      )
  return "\n".join(lines)
