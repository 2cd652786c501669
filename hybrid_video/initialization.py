"""What a training starts from: fresh values, published weights, or another run's model.

In: a task and what its model is. Out: parameters and batch statistics on the host. A head is kept
only where the weights' class names are known to be the model's.
"""

import json
import pathlib

from etils import epath

from hybrid_video import (
  checkpoint_files,
  checkpoints,
  class_identity,
  errors,
  loading,
  models,
  weights,
)
from hybrid_video.checkpoints import Description
from hybrid_video.experiment import Experiment
from hybrid_video.tasks import Task, Tree
from hybrid_video.weights import Classes, sharded_files, sources

_SAME = "same"
_SETTING = Experiment.path("init_classes")
# Hugging Face's description of a model, beside its weights; LABEL_0 is its word for no name.
_HUB_DESCRIPTION, _HUB_NAMELESS = "config.json", "LABEL_0"


def variables(task: Task, description: Description) -> tuple[Tree, Tree]:
  """Parameters and batch statistics before the first step, nested dicts of NumPy arrays.

  Args:
    task: what is trained.
    description: of the model; its experiment's `init_from` says where weights come from, if any.

  Raises:
    UserError: the weights or the names of their classes are unavailable, or do not fit the model.
  """
  experiment = description.experiment
  source = experiment.init_from
  if not source:
    return task.initial_variables()
  model = loading.build(description)
  folder = sources.path_of(source)
  replace_head = experiment.replace_head
  if folder is not None and _is_run(folder):
    saved = checkpoints.read(folder)
    classes = _classes(description, saved.description.class_names, saved.source)
    weights.load_trees(
      model,
      saved.params,
      saved.batch_stats,
      source=saved.source,
      replace_head=replace_head,
      classes=classes,
    )
  else:
    path = sources.locate(source)
    classes = _classes(description, *_names_of(source, path))
    weights.load_pretrained(model, path, replace_head=replace_head, classes=classes)
  _, params, batch_stats = models.split(model)
  return params, batch_stats


def _classes(description: Description, theirs: tuple[str, ...] | None, source: str) -> Classes:
  """The classes of the model and of the weights; what `init_classes` says comes first."""
  chosen = description.experiment.init_classes
  if chosen == _SAME:
    theirs, source = description.class_names, f"{_SETTING}={_SAME}"
  elif chosen:
    theirs = _listed(chosen)
    source = f"{_SETTING}={errors.printable(chosen)}"
  return Classes(description.class_names, theirs, source)


def _listed(chosen: str) -> tuple[str, ...]:
  """The names of a list that comes with the package, or of a file."""
  if chosen in sources.CLASS_LISTS:
    return sources.class_names(chosen)
  path = pathlib.Path(chosen).expanduser()
  if not path.is_file():
    near = errors.nearest(chosen, [*sources.CLASS_LISTS, _SAME])
    raise class_identity.ClassNamesError(
      f"{_SETTING} is {errors.printable(chosen)}: expected {', '.join(sources.CLASS_LISTS)}, {_SAME}, "
      f"or a text file with one class name a line, and there is no such file.{near}"
    )
  return class_identity.read_names(path)


def _names_of(source: str, path: pathlib.Path) -> tuple[tuple[str, ...] | None, str]:
  """The class names of a file of weights by id, None where nothing says them; and what says so.

  A published file has the list of its data set, an exported one has them in its header, and Hugging
  Face's lie in a `config.json` beside the weights.
  """
  published = sources.published(source)
  if published:
    names = sources.class_names(published.classes) if published.classes else None
    return names, f"the published list {published.classes}"
  described = loading.description_in(path)
  if described:
    return described.class_names, errors.printable(path)
  beside = path.with_name(_HUB_DESCRIPTION)
  return _hub_names(beside), errors.printable(beside)


def _hub_names(path: pathlib.Path) -> tuple[str, ...] | None:
  """The names in a Hugging Face `config.json`; None where it has none."""
  try:
    by_id = json.loads(path.read_bytes())["id2label"]
    names = tuple(by_id[str(i)] for i in range(len(by_id)))
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None
  usable = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
  return names if usable and names and names[0] != _HUB_NAMELESS else None


def _is_run(folder: epath.Path) -> bool:
  """Whether a path names a run's checkpoints, and no weights as others store them."""
  if checkpoint_files.names_run(folder):
    return True
  return folder.is_dir() and not _is_published(folder)


def _is_published(folder: epath.Path) -> bool:
  """Whether a folder has weights in files, as Hugging Face's have, and no run's checkpoints.

  A run's folder may have an exported file beside its checkpoints.
  """
  has_checkpoints = (folder / checkpoints.FOLDER).is_dir()
  return not has_checkpoints and sharded_files.in_folder(folder) is not None
