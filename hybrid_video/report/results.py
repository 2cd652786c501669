"""What a finished run leaves for people and programs: results.json, predictions, and a summary."""

from collections.abc import Sequence
import hashlib
import logging
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from hybrid_video import errors, files, models, sharding
from hybrid_video.compilation import Compilations
from hybrid_video.tasks import Evaluation

log = logging.getLogger("hybrid_video")

RESULTS = "results.json"
PREDICTIONS = "predictions.npz"


class WorkdirError(errors.UserError):
  """A work directory that cannot be written to."""


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
  path = pathlib.Path(workdir) / RESULTS
  files.write_json(path, results)
  return path


def write_predictions(
  workdir: os.PathLike | str,
  evaluation: Evaluation,
  names: np.ndarray,
  class_names: Sequence[str],
) -> pathlib.Path:
  """Writes predictions.npz, from which any metric can be computed later.

  Args:
    workdir: where.
    evaluation: of the test list.
    names: of its videos, `[V]`.
    class_names: by class id.

  Returns:
    Its path. It holds `names` `[V]`, `class_names`, and the evaluation's arrays.
  """
  path = pathlib.Path(workdir) / PREDICTIONS
  with files.whole_file(path) as part, part.open("wb") as file:
    np.savez(
      file,
      names=np.asarray(names, np.str_),
      class_names=np.asarray(class_names, np.str_),
      **evaluation.arrays,  # type: ignore[arg-type]
    )
  return path


def finish(
  workdir: pathlib.Path,
  outcome: dict[str, Any],
  params: dict[str, Any],
  compiled: Compilations,
  began: float,
) -> None:
  """Adds what the run cost to its outcome, writes results.json and says where everything is.

  Args:
    workdir: where.
    outcome: of the evaluation; completed in place.
    params: the model's parameters.
    compiled: programs compiled in the run.
    began: when the run began, of `time.monotonic`.
  """
  outcome["parameters"] = models.parameter_counts(params)
  outcome["compilation"] = compiled.as_numbers()
  outcome["seconds"] = round(time.monotonic() - began, 1)
  if jax.process_index() == 0:
    path = write(workdir, outcome)
    log.info("%s", summary(outcome))
    log.info("Compiled in all: %s", compiled)
    log.info("Results: %s", path)
    log.info("Predictions: %s", workdir / PREDICTIONS)


def summary(results: dict[str, Any]) -> str:
  """A few lines for the console: what was evaluated and what came out."""
  lines = []
  for which in ("train", "validation", "test"):
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
    lines.append(f"{which} list, split {results['split']}: {scores}")
    if "shuffled_video_top1" in numbers:
      lines.append(
        "  with each clip's frames in random order: video top-1 "
        f"{100 * numbers['shuffled_video_top1']:.2f} %"
      )
  return "\n".join(lines)
