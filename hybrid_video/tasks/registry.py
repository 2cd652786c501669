"""An experiment's task: its model, pixel statistics and augmentation put together."""

import functools

import jax

from hybrid_video import augmentation, models
from hybrid_video.experiment import Experiment
from hybrid_video.tasks import Task, classification, pixels, pretraining


def create(experiment: Experiment, num_classes: int, mesh: jax.sharding.Mesh) -> Task:
  """What the experiment's model is trained for, as functions.

  Args:
    experiment: model, pixel statistics, augmentation.
    num_classes: of the data set.
    mesh: the devices that augmentation is spread over.

  Raises:
    UserError: model options that do not fit together.
  """
  build = functools.partial(
    models.create,
    experiment.model.name,
    num_classes=num_classes,
    seed=experiment.seed,
    dtype=experiment.model.dtype,
    **experiment.model_options,
  )
  if experiment.task == pretraining.NAME:
    return pretraining.make(build, experiment.mean, experiment.std)
  augment = augmentation.make_augment(
    experiment.augmentation,
    mesh=mesh,
    normalize=pixels.normalizer(experiment.mean, experiment.std),
    num_classes=num_classes,
  )
  aggregation = experiment.evaluation.aggregation
  return classification.make(build, experiment.mean, experiment.std, augment, aggregation)
