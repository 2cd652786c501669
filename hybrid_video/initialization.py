"""What a training starts from: fresh values, published weights, or another run's model.

In: a task and what its model is. Out: parameters and batch statistics on the host. A head is kept
only where the weights' class names are known to be the model's.
"""

from collections.abc import Iterator
import contextlib
import pathlib

from hybrid_video import (
  checkpoints,
  class_identity,
  errors,
  loading,
  models,
  origins,
  phases,
  weights,
)
from hybrid_video.checkpoint_description import FREE_OPTIONS, Description
from hybrid_video.experiment import Experiment
from hybrid_video.tasks import Task, Tree
from hybrid_video.weights import Classes, sources

_SAME = "same"
_SETTING = Experiment.path("init_classes")


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
  if folder is not None and origins.is_run(folder):
    saved = checkpoints.read(folder)
    classes = _classes(description, saved.description.class_names, saved.source)
    with _with_model_of(saved.description.experiment, experiment):
      ported = weights.load_trees(
        model,
        saved.params,
        saved.batch_stats,
        source=saved.source,
        replace_head=replace_head,
        classes=classes,
      )
      _check_trunk(ported, experiment)
  else:
    path = sources.locate(source)
    classes = _classes(description, *_names_of(source, path))
    ported = weights.load_pretrained(model, path, replace_head=replace_head, classes=classes)
    _check_trunk(ported, experiment)
  _, params, batch_stats = models.split(model)
  return params, batch_stats


def _check_trunk(ported: weights.Ported, experiment: Experiment) -> None:
  """Refuses to train a head alone on what is random.

  Raises:
    PortingError: parts that the weights have nothing for.
  """
  fresh = [part for part in ported.fresh if part != phases.HEAD]
  first = experiment.optimizer.head_first_epochs
  if fresh and first:
    raise weights.PortingError(
      f"{errors.printable(experiment.init_from)} has nothing for {errors.shown(fresh)} of "
      f"{experiment.model.name}: at random values, nothing is learnt on it in the first {first:g} epochs, which "
      f"train the head alone. Start from a run of this model, or set {experiment.optimizer.path('head_first_epochs')}=0."
    )


@contextlib.contextmanager
def _with_model_of(theirs: Experiment, ours: Experiment) -> Iterator[None]:
  """Adds to an error of weights that do not fit what would make this model the run's own."""
  try:
    yield
  except weights.PortingError as error:
    there, here = (
      {key: value for key, value in one.model.to_json().items() if key not in FREE_OPTIONS}
      for one in (theirs, ours)
    )
    known = models.options(ours.model.name) if there["name"] == here["name"] else there
    flags = [
      f"--config.model.{name}={value}"
      for name, value in there.items()
      if (name == "name" or name in known) and here.get(name) != value and value is not None
    ]
    if not flags:
      raise
    raise weights.PortingError(
      f"{error}\nThe run's model is {there['name']}; set {' '.join(flags)} for the same one (with "
      "configs/transfer.py it is the run's own unless model=NAME follows the colon)."
    ) from error


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
  return origins.names_beside(path), errors.printable(origins.hub_description(path))
