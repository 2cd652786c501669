"""What a checkpoint's model is, beside its arrays, and whether another one is the same.

In: an experiment and class names, or the JSON of a checkpoint or of an exported file. Out: a
`Description`, and the differences between two.
"""

from collections.abc import Mapping
import dataclasses
import logging
from typing import Any, Self

import hybrid_video
from hybrid_video import class_identity, errors, models, settings
from hybrid_video.experiment import Experiment

log = logging.getLogger("hybrid_video")

# Written into every description; raised when the items of a checkpoint or their meaning change.
LAYOUT = 3
# What models can be read of; the one before had no checksums and no averages.
READABLE = (2, LAYOUT)
# Options of a model that change neither its parameters nor what they mean.
FREE_OPTIONS = ("dtype", "dropout", "remat", "freeze_statistics")


class CheckpointError(errors.UserError):
  """A checkpoint that is missing, damaged, of another layout, or of another model."""


@dataclasses.dataclass(frozen=True)
class Description:
  """What a model is, beside its parameters.

  Attributes:
    experiment: every setting of the run that made it.
    class_names: by class id.
    version: of this package.
  """

  experiment: Experiment
  class_names: tuple[str, ...]
  version: str = hybrid_video.__version__

  def to_json(self) -> dict[str, Any]:
    """Nested dicts, lists, numbers and texts."""
    return {
      "layout": LAYOUT,
      "version": self.version,
      "experiment": self.experiment.to_json(),
      "class_names": list(self.class_names),
    }

  @classmethod
  def from_json(cls, values: Any, source: str) -> Self:
    """The description that `to_json` wrote.

    Args:
      values: parsed JSON.
      source: where it stands, for messages.

    Raises:
      CheckpointError: it is of another layout, or holds settings that this version does not know.
    """
    if not isinstance(values, Mapping) or values.get("layout") not in READABLE:
      written = values.get("version", "?") if isinstance(values, Mapping) else "?"
      raise CheckpointError(other_layout(source, written))
    try:
      return cls(
        Experiment.from_json(values["experiment"]),
        tuple(values["class_names"]),
        values["version"],
      )
    except (errors.UserError, KeyError, TypeError) as error:
      raise CheckpointError(
        f"{source} was written by version {values.get('version', '?')} of hybrid_video and cannot be "
        f"read by version {hybrid_video.__version__}: {error}. Use that version, or export the "
        "model with it (--mode=export) and load the file."
      ) from error


def other_layout(source: str, version: str) -> str:
  """That a checkpoint is of a layout which is not read, and how to go on."""
  return (
    f"{source} was written by version {version} of hybrid_video, in a layout that version "
    f"{hybrid_video.__version__} does not read. Go on with version {version}; or export the model "
    "with it (--mode=export) and start here from the file: --config.init_from=model.safetensors."
  )


def shape_of_checkpoint(description: Description) -> dict[str, Any]:
  """All but the classes that decides which parameters and optimizer state there are; flat."""
  experiment = description.experiment
  model = {
    f"model.{name}": value
    for name, value in experiment.model.to_json().items()
    if name not in FREE_OPTIONS
  }
  optimizer = experiment.optimizer
  return {
    **model,
    "optimizer.name": optimizer.name,
    "optimizer.has_momentum": optimizer.name == "sgd" and optimizer.momentum > 0,
    "optimizer.freeze": list(optimizer.freeze),
  }


def check_same_model(saved: Description, wanted: Description, source: str) -> None:
  """Refuses a checkpoint of another model, optimizer or set of classes.

  Raises:
    CheckpointError: with every difference.
  """
  differences = [
    f"  {difference}"
    for difference in _differences(shape_of_checkpoint(saved), shape_of_checkpoint(wanted))
  ]
  if of_classes := class_identity.differences(saved.class_names, wanted.class_names):
    differences.append(f"  classes: {of_classes}")
  if differences:
    raise CheckpointError(
      f"{source} holds another model's checkpoint:\n"
      + "\n".join(differences)
      + "\nName another --workdir, or set the values (and name the data) that made it."
    )


def how_to_fine_tune(description: Description, source: str) -> str:
  """What makes a classifier of a pretrained model, as sentences with the command.

  Args:
    description: of a model of masked pretraining.
    source: its checkpoint.
  """
  name = description.experiment.model.name
  classifier = models.classifier_of(name)
  return (
    f"{source} holds {name}, pretrained without labels: it has no classes. Fine-tune it first, with videos that "
    f"have classes and the same options of the model: --config=configs/videomae.py:finetune,model={classifier} "
    f"--config.dataset=folder --config.data_dir=FOLDER --config.init_from={source} --workdir=ANOTHER_FOLDER"
  )


def check_same_task(saved: Description, wanted: Experiment, source: str) -> None:
  """Refuses a checkpoint of a model that was trained for something else.

  What has no classes is evaluated by its loss, and the log says what would give it some.

  Raises:
    CheckpointError: with what to do.
  """
  there, here = saved.experiment, wanted
  if there.task == here.task:
    if here.task == models.PRETRAINING:
      log.info("Evaluating the loss alone. %s", how_to_fine_tune(saved, source))
    return
  if there.task == models.PRETRAINING:
    raise CheckpointError(how_to_fine_tune(saved, source))
  raise CheckpointError(
    f"{source} holds {there.model.name}, which was trained for {there.task}, and {here.model.name} is for "
    f"{here.task}. Leave --config out, or name another --checkpoint."
  )


def optimizer_differences(saved: Description, wanted: Description) -> str:
  """The optimizer's settings that differ, as a sentence; "" where none does."""
  there, here = (one.experiment.optimizer for one in (saved, wanted))
  prefix = f"{there.PATH}."
  differences = _differences(
    *({prefix + name: value for name, value in one.to_json().items()} for one in (there, here))
  )
  return f" Its optimizer is another one: {', '.join(differences)}." if differences else ""


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
  differing = sorted(settings.differing(there, here), key=lambda each: each[0])
  return [f"{name}: {one} there, {other} asked for" for name, one, other in differing]
