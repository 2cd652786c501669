"""The mode `export`: a checkpoint to one file, for this project, PyTorch and others to read.

In: a work directory alone. Out: `model.safetensors`, with what the model is in its header.
"""

import logging
import os
import pathlib

from hybrid_video import checkpoints, files, loading, models, weights
from hybrid_video.checkpoint_description import how_to_fine_tune

log = logging.getLogger("hybrid_video")

FILE = "model.safetensors"


def run(workdir: pathlib.Path, *, checkpoint: os.PathLike | str | None = None) -> pathlib.Path:
  """Writes a checkpoint's model as `model.safetensors`, whole or not at all.

  The video ResNets have torchvision's names, other models ours (docs/models.md). The header holds
  experiment and class names, so that the file serves --mode=predict and `hybrid_video.load`.

  Args:
    workdir: where the file goes.
    checkpoint: a work directory or one of its checkpoints; the default is `workdir`.

  Returns:
    The file's path.

  Raises:
    UserError: there is no checkpoint, or the file cannot be written.
  """
  trained = loading.load(workdir if checkpoint is None else checkpoint)
  description = loading.description_of(trained)
  header = {**description.to_json(), "step": trained.step, "averaged": trained.averaged}
  metadata = {loading.METADATA_KEY: files.as_json(header)}
  workdir.mkdir(parents=True, exist_ok=True)
  path = weights.save(trained.model, workdir / FILE, metadata)
  log.info("Exported %s: %s", checkpoints.words(trained.step, averaged=trained.averaged), path)
  if description.experiment.task == models.PRETRAINING:
    log.info("%s", how_to_fine_tune(description, str(path)))
  return path
