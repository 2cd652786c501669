"""What a training starts from: fresh values, published weights, or another run's model.

In: a task and what its model is. Out: parameters and batch statistics on the host.
"""

import pathlib

from hybrid_video import checkpoints, loading, models, weights
from hybrid_video.checkpoints import Description
from hybrid_video.tasks import Task, Tree
from hybrid_video.weights import sharded_files, sources


def variables(task: Task, description: Description) -> tuple[Tree, Tree]:
  """Parameters and batch statistics before the first step, nested dicts of NumPy arrays.

  Args:
    task: what is trained.
    description: of the model; its experiment's `init_from` says where weights come from, if any.

  Raises:
    UserError: the weights are unavailable, or do not fit the model.
  """
  experiment = description.experiment
  source = experiment.init_from
  if not source:
    return task.initial_variables()
  model = loading.build(description)
  folder = pathlib.Path(source).expanduser()
  if folder.is_dir() and not _is_published(folder):
    saved = checkpoints.read(folder)
    weights.load_trees(
      model,
      saved.params,
      saved.batch_stats,
      source=saved.source,
      replace_head=experiment.replace_head,
    )
  else:
    weights.load_pretrained(model, sources.locate(source), replace_head=experiment.replace_head)
  _, params, batch_stats = models.split(model)
  return params, batch_stats


def _is_published(folder: pathlib.Path) -> bool:
  """Whether a folder has weights in files, as Hugging Face's have, and no run's checkpoints.

  A run's folder may have an exported file beside its checkpoints.
  """
  has_checkpoints = (folder / checkpoints.FOLDER).is_dir()
  return not has_checkpoints and sharded_files.in_folder(folder) is not None
