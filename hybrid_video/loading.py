"""A trained model to use: from a work directory, a checkpoint, or an exported file.

In: a path. Out: the model in evaluation mode, its class names, and what makes clips of videos.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video import checkpoints, models, paths, tasks, weights
from hybrid_video.checkpoints import CheckpointError, Description, SavedModel
from hybrid_video.decoding import storing
from hybrid_video.decoding.clip_decoder import ClipDecoder
from hybrid_video.experiment import Experiment
from hybrid_video.sampling import plans
from hybrid_video.tasks import pixels
from hybrid_video.weights import sources

# The key of the description in the header of an exported file.
METADATA_KEY = "hybrid_video"


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """Videos to what the model reads, the same as in evaluation.

  Attributes:
    experiment: stored scale, windows, crops and pixel statistics.
  """

  experiment: Experiment

  def __call__(self, path: os.PathLike | str) -> jax.Array:
    """Every view of a video file, normalized float32 `[views, T, H, W, 3]`.

    Raises:
      UserError: the file is no video, or broken.
    """
    return self.normalize(self.views(path))

  def views(self, path: os.PathLike | str) -> np.ndarray:
    """Every view of a video file, uint8 `[views, T, H, W, 3]`.

    Raises:
      UserError: the file is no video, or broken.
    """
    evaluation = self.experiment.evaluation
    video = storing.StoredVideos([storing.store_video(path, self.experiment.stored)])
    views = plans.evaluation_views(video, np.array([0]), evaluation)
    with ClipDecoder(video, evaluation.crop) as decoder:
      return decoder.decode(views.clips)

  def normalize(self, clips: np.ndarray | jax.Array) -> jax.Array:
    """uint8 `[..., H, W, 3]` to float32 of about zero mean and unit deviation."""
    normalize = pixels.normalizer(self.experiment.mean, self.experiment.std)
    return normalize(jnp.asarray(clips))


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A model that is ready for `model(preprocess("video.mp4"))`.

  Attributes:
    model: normalized clips `[B, T, H, W, 3]` to logits `[B, classes]`, an NNX module in evaluation
      mode.
    class_names: by class id.
    preprocess: a video file to normalized clips.
    experiment: every setting of the run that made it.
    step: training steps behind it; 0 for a file that does not say.
    averaged: whether its parameters are moving averages.
  """

  model: nnx.Module
  class_names: tuple[str, ...]
  preprocess: Preprocessing
  experiment: Experiment
  step: int
  averaged: bool = False


def read(path: os.PathLike | str) -> SavedModel:
  """Parameters and description from a work directory, a checkpoint, or an exported file.

  Raises:
    CheckpointError: there is none, or the file has no description.
  """
  file = paths.resolve(path, "The checkpoint")
  if paths.is_remote(file) and file.is_file():
    # Arrays are mapped from a local file.
    file = sources.locate(os.fspath(file))
  if not file.is_file():
    return checkpoints.read(file)
  description = description_in(file)
  if description is None:
    raise CheckpointError(
      f"{file}: the file does not say which experiment it belongs to. Give a work directory, or a "
      "file that --mode=export wrote; published weights are for --config.init_from."
    )
  model = build(description)
  weights.load_pretrained(model, file)
  _, params, batch_stats = models.split(model)
  header = _metadata_of(file)
  step, averaged = int(header.get("step", 0)), bool(header.get("averaged", False))
  return SavedModel(description, params, batch_stats, step, str(file), averaged)


def _metadata_of(file: pathlib.Path) -> dict[str, Any]:
  """What --mode=export wrote into a file's header; {} of any other file.

  Raises:
    CheckpointError: it is damaged.
  """
  metadata = weights.read_metadata(file)
  if METADATA_KEY not in metadata:
    return {}
  try:
    values = json.loads(metadata[METADATA_KEY])
  except json.JSONDecodeError as error:
    raise CheckpointError(
      f"{file}: its description is not JSON ({error}). Export it again."
    ) from error
  return values if isinstance(values, dict) else {"layout": None}


def description_in(file: pathlib.Path) -> Description | None:
  """What an exported file says of its model; None of any other file of weights.

  Raises:
    CheckpointError: it is damaged, or of another layout.
  """
  values = _metadata_of(file)
  return Description.from_json(values, str(file)) if values else None


def build(description: Description) -> nnx.Module:
  """A fresh model of a description, with initial values."""
  experiment = description.experiment
  return models.create(
    experiment.model.name,
    num_classes=len(description.class_names),
    seed=experiment.seed,
    dtype=experiment.model.dtype,
    **experiment.model_options,
  )


def description_of(trained: "TrainedModel") -> Description:
  """What a trained model is."""
  return Description(trained.experiment, trained.class_names)


def load(path: os.PathLike | str) -> TrainedModel:
  """A trained model from a work directory, one of its checkpoints, or an exported file.

  Args:
    path: such as `runs/demo`, `runs/demo/best`, `runs/demo/checkpoints/1400` or
      `runs/demo/model.safetensors`.

  Raises:
    UserError: there is no model; the message says what was found and what to do.
  """
  saved = read(path)
  description = saved.description
  _, evaluation, _ = tasks.definitions(lambda: build(description))
  model = nnx.merge(evaluation, saved.params, saved.batch_stats)
  experiment = description.experiment
  return TrainedModel(
    model,
    description.class_names,
    Preprocessing(experiment),
    experiment,
    saved.step,
    saved.averaged,
  )
