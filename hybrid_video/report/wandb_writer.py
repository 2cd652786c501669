"""Metrics for Weights & Biases, where a project is set and its package is installed.

In: scalars of a step. Out: a run of that service, the same one however often training is resumed. Its
own environment variables hold, such as WANDB_MODE=offline, WANDB_API_KEY and WANDB_ENTITY.
"""

from collections.abc import Mapping
import json
import logging
import os
from typing import Any
import uuid

from etils import epath

from hybrid_video import errors, files, paths
from hybrid_video.experiment import Experiment
from hybrid_video.report import results, scalar_writer

log = logging.getLogger("hybrid_video")

RUN_FILE = "wandb.json"


class WandbError(errors.UserError):
  """Weights & Biases cannot be used; the message says why."""


def _run_id(workdir: epath.Path, project: str) -> str:
  """The id of the work directory's run in a project, made up and stored at its first start."""
  path = workdir / RUN_FILE
  if path.exists():
    try:
      stored = json.loads(path.read_text())
      if stored["project"] == project:
        return str(stored["id"])
    except (ValueError, KeyError, TypeError):
      log.warning("%s cannot be read: Weights & Biases gets a new run", path)
  made = uuid.uuid4().hex[:12]
  with results.writing(path):
    files.write_json(path, {"project": project, "id": made})
  return made


class WandbWriter(scalar_writer.ScalarsWriter):
  """Sends scalars to a run of Weights & Biases.

  A step that was sent before its run was stopped is sent again with the same values after resuming;
  the service keeps the first.
  """

  def __init__(self, workdir: os.PathLike | str, experiment: Experiment):
    """Starts or resumes the run.

    Args:
      workdir: where its id and the service's own files are.
      experiment: `wandb_project`, and all settings to show.

    Raises:
      MissingExtraError: its package is not installed.
      WandbError: it cannot start.
    """
    super().__init__()
    folder, project = epath.Path(workdir), experiment.wandb_project
    path = experiment.path("wandb_project")
    wandb = errors.require("wandb", "wandb", path)
    try:
      self._run = wandb.init(
        project=project,
        id=_run_id(folder, project),
        name=folder.name,
        resume="allow",
        # The service's files are on a local disk, in its usual place, where the work directory is not.
        dir=None if paths.is_remote(folder) else os.fspath(folder),
        config=experiment.to_json(),
      )
    except (wandb.Error, OSError) as error:
      raise WandbError(
        f"Weights & Biases cannot start for {path}={project}: {error}. Log in with `wandb login`, set "
        "WANDB_MODE=offline, or leave the setting out."
      ) from error

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Sends the scalars of a step; those of a failing service are lost, with one warning."""
    if self._run is None:
      return
    try:
      self._run.log({name: float(value) for name, value in scalars.items()}, step=step)
    except Exception as error:
      # Whatever a service on the net does, training goes on.
      log.warning("Weights & Biases gets nothing from step %d on: %s", step, error)
      self._run = None

  def close(self) -> None:
    """Sends what is left and ends the run."""
    if self._run is not None:
      self._run.finish()
