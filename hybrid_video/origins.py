"""What a training starts from, beside its arrays: which model, trained on which classes of which data set.

In: `init_from`. Out: a description, an `Origin` that is written into the work directory at the first start, and
the model for a config that has that of its start. Nothing reads the start again later: it may be gone by then.
"""

from collections.abc import Mapping
import dataclasses
import json
import logging
import os
import pathlib
from typing import Any, Self

from etils import epath

from hybrid_video import (
  checkpoint_files,
  checkpoints,
  class_identity,
  errors,
  files,
  loading,
  models,
  shared_classes,
)
from hybrid_video.checkpoint_description import FREE_OPTIONS, Description
from hybrid_video.experiment import Experiment
from hybrid_video.settings import SettingError
from hybrid_video.weights import sharded_files, sources

log = logging.getLogger("hybrid_video")

FILE = "started_from.json"
# Data sets that are anyone's: the folder tells them apart.
_OWN = ("folder", "kinetics", "hmdb51_layout")
# Hugging Face's description of a model, beside its weights; LABEL_0 is its word for no name.
_HUB_DESCRIPTION, _HUB_NAMELESS = "config.json", "LABEL_0"


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a run started from.

  Attributes:
    source: its `init_from`, as written.
    data: which data set that was trained on, in words; "" where nothing says so.
    class_names: that it was trained to tell apart; () where it had no labels, or nothing says so.
  """

  source: str
  data: str
  class_names: tuple[str, ...]

  def to_json(self) -> dict[str, Any]:
    """The attributes by name."""
    return {**dataclasses.asdict(self), "class_names": list(self.class_names)}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> Self:
    """The origin that `to_json` described.

    Raises:
      KeyError, TypeError: it is none.
    """
    return cls(str(values["source"]), str(values["data"]), tuple(map(str, values["class_names"])))

  def described(self, experiment: Experiment, class_names: tuple[str, ...]) -> dict[str, Any]:
    """For `results.json`: `source`, `data`, `classes` (their number) and `shared`, names there by class here.

    Args:
      experiment: of the run that started from it.
      class_names: of its data set. Of the same set nothing is shared: that is no transfer.
    """
    is_same = self.data == data_in_words(experiment) and not class_identity.differences(
      self.class_names, class_names
    )
    shared = {} if is_same else shared_classes.shared(self.class_names, class_names)
    return {
      "source": self.source,
      "data": self.data,
      "classes": len(self.class_names),
      "same_data": is_same,
      "shared": {name: list(theirs) for name, theirs in shared.items()},
    }


def for_results(
  origin: Origin | None, experiment: Experiment, class_names: tuple[str, ...]
) -> dict[str, Any]:
  """`started_from` for `results.json`, see `Origin.described`; {} where nothing is known."""
  return {} if origin is None else {"started_from": origin.described(experiment, class_names)}


def in_words(described: Mapping[str, Any], classes: int) -> str:
  """A sentence on what a run started from.

  Args:
    described: of `Origin.described`.
    classes: of the run's own data set.
  """
  trained_on = described["data"] or "a data set that is not known"
  begin = f"Started from {errors.printable(described['source'])}, trained on {errors.printable(trained_on)}"
  if described["same_data"]:
    return f"{begin}, the same data set."
  if not described["classes"]:
    return f"{begin}, without class names."
  count = len(described["shared"])
  if not count:
    return f"{begin}: none of the {classes} classes is among its {described['classes']}."
  return (
    f"{begin}: {count} of {classes} classes {'is' if count == 1 else 'are'} also among its "
    f"{described['classes']}, which blurs what the transfer means."
  )


def data_in_words(experiment: Experiment) -> str:
  """Which data set an experiment is on: what tells it from others of its name stands behind it."""
  dataset = experiment.dataset
  if dataset.startswith("made_"):
    gap = f", gap {experiment.made_gap_seconds:g} s" if dataset == "made_events" else ""
    return f"{dataset} ({experiment.made_look}, seed {experiment.made_seed}{gap})"
  if dataset in _OWN:
    return f"{dataset} ({epath.Path(experiment.data_dir).name})"
  return dataset


def of(experiment: Experiment) -> Origin | None:
  """What an experiment starts from; None of random values, and of pretraining, which has no classes.

  Raises:
    UserError: it cannot be read.
  """
  source = experiment.init_from
  if not source or experiment.task == models.PRETRAINING:
    return None
  if description := description_of(source):
    theirs = description.experiment
    has_labels = theirs.task != models.PRETRAINING
    return Origin(source, data_in_words(theirs), description.class_names if has_labels else ())
  published = sources.published(source)
  if published:
    names = sources.class_names(published.classes) if published.classes else ()
    return Origin(source, published.classes or published.name.partition("/")[2], names)
  return Origin(source, "", names_beside(sources.locate(source)) or ())


def description_of(source: str) -> Description | None:
  """What a run or an exported file says of its model, without its arrays; None of other weights.

  Raises:
    UserError: there is no such run, or none of its checkpoints can be read.
  """
  folder = sources.path_of(source)
  if folder is None:
    return None
  if not is_run(folder):
    return loading.description_in(sources.locate(source))
  chosen = checkpoint_files.candidates(folder)
  for candidate in chosen.folders:
    try:
      return checkpoint_files.read_stored(candidate).description
    except checkpoint_files.Damaged as error:
      damage = error
  raise checkpoints.CheckpointError(
    f"{errors.printable(folder)}: the checkpoint is damaged ({damage}). Start from another."
  )


def is_run(folder: epath.Path) -> bool:
  """Whether a path names a run's checkpoints, and no weights as others store them.

  A run's folder may have an exported file beside its checkpoints.
  """
  if checkpoint_files.names_run(folder):
    return True
  has_checkpoints = (folder / checkpoints.FOLDER).is_dir()
  return folder.is_dir() and (has_checkpoints or sharded_files.in_folder(folder) is None)


def names_beside(path: pathlib.Path) -> tuple[str, ...] | None:
  """The class names in the Hugging Face `config.json` beside a file of weights; None where it has none."""
  try:
    by_id = json.loads(hub_description(path).read_bytes())["id2label"]
    names = tuple(by_id[str(i)] for i in range(len(by_id)))
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None
  usable = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
  return names if usable and names and names[0] != _HUB_NAMELESS else None


def hub_description(path: pathlib.Path) -> pathlib.Path:
  """Where Hugging Face's libraries describe a file of weights."""
  return path.with_name(_HUB_DESCRIPTION)


def model_of(source: str, workdir: os.PathLike | str | None = None) -> dict[str, Any]:
  """The classifier of a run, an exported file or published weights: `name` and the options that shape it.

  Of a run that pretrains, it is the classifier that takes its encoder.

  Args:
    source: what a training starts from.
    workdir: of that training: one that goes on has its model there, and its start may be gone.

  Raises:
    SettingError: the weights do not say which model they are.
    UserError: they cannot be read.
  """
  goes_on = workdir is not None and _has_checkpoints(workdir)
  description = description_of(os.fspath(workdir) if goes_on and workdir else source)
  if description is None:
    if published := sources.published(source):
      return {"name": models.classifier_of(published.model)}
    raise SettingError(
      f"--config.init_from is {source!r}, weights that do not say which model of hybrid_video they are: name "
      "it after the config's colon, model=NAME."
    )
  model = description.experiment.model
  name = models.classifier_of(model.name)
  known = models.options(name)
  options = {key: value for key, value in model.options.items() if key not in FREE_OPTIONS}
  return {"name": name, **{key: value for key, value in options.items() if key in known}}


def _has_checkpoints(workdir: os.PathLike | str) -> bool:
  return bool(checkpoint_files.steps(epath.Path(workdir) / checkpoints.FOLDER))


def record(workdir: os.PathLike | str, origin: Origin | None) -> None:
  """Writes what a run starts from into its work directory; what an earlier run left there goes."""
  file = epath.Path(workdir) / FILE
  if origin is not None:
    files.write_json(file, origin.to_json())
  else:
    file.unlink(missing_ok=True)


def recorded(place: os.PathLike | str) -> Origin | None:
  """What the run of a work directory, or of a checkpoint in one, started from; None where nothing says so."""
  path = epath.Path(place)
  workdir = path.parent.parent if path.parent.name == checkpoints.FOLDER else path
  file = workdir / FILE
  try:
    return Origin.from_json(json.loads(file.read_bytes()))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    log.warning(
      "%s cannot be read (%s): the report will not say what the run started from", file, error
    )
    return None
