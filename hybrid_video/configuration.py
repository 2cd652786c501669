"""What the files in `configs/` are made with: every setting there is, models with presets, arguments.

In: the settings classes, where each default stands once. Out: a ConfigDict, which the command line changes and
`experiment.from_config` reads.
"""

from collections.abc import Mapping
import dataclasses
import functools
import typing
from typing import Any

import ml_collections
from ml_collections import config_dict

from hybrid_video import errors, models
from hybrid_video.experiment import DEFAULT_MODEL, Experiment
from hybrid_video.model_settings import ModelSettings, kinds
from hybrid_video.sampling.clip_settings import Sampling
from hybrid_video.settings import SettingError, Settings


def default_config() -> ml_collections.ConfigDict:
  """Every setting there is with its default, as a locked-to-be ConfigDict.

  `model` holds the options of all models, unset; `presets` has what an experiment gives a model
  when that is chosen, see `use_model`.
  """
  config = _config_of(Experiment)
  # Set by the model, and by the clip, unless they are set here.
  for name in ("mean", "std"):
    config[name] = config_dict.placeholder(tuple)
  for field in dataclasses.fields(Sampling):
    config.evaluation[field.name] = config_dict.placeholder(type(field.default))
  model = ml_collections.ConfigDict({"name": DEFAULT_MODEL, "dtype": "float32"})
  for option, kind in _all_model_options().items():
    model[option] = config_dict.placeholder(kind)
  config.model = model
  config.presets = ml_collections.ConfigDict()
  return config


def _config_of(settings: type[Settings]) -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  hints = typing.get_type_hints(settings)
  for field in dataclasses.fields(settings):  # type: ignore[arg-type]
    hint = hints[field.name]
    if isinstance(hint, type) and issubclass(hint, Settings):
      config[field.name] = _config_of(hint)
    elif hint is not ModelSettings:
      default = field.default
      config[field.name] = config_dict.placeholder(kinds(hint)[0]) if default is None else default
  return config


@functools.cache
def _all_model_options() -> dict[str, type]:
  """Every option of every model, with its type."""
  options: dict[str, type] = {}
  for name in models.MODELS:
    for option, parameter in models.options(name).items():
      options.setdefault(option, kinds(parameter.annotation)[0])
  return options


def use_model(config: ml_collections.ConfigDict, name: str, **options: Any) -> None:
  """Chooses a config's model, with options that hold for it as long as it is chosen.

  Raises:
    SettingError: there is no such model or option; the message has the nearest names.
  """
  preset_model(config, name, **options)
  config.model.name = name


def preset_model(config: ml_collections.ConfigDict, name: str, **options: Any) -> None:
  """Options that a model has in this experiment when `--config.model.name` chooses it.

  Raises:
    SettingError: there is no such model or option; the message has the nearest names.
  """
  ModelSettings.resolve({"name": name}, options)
  with config.unlocked():
    config.presets[name] = ml_collections.ConfigDict(options)


def arguments(text: str, first: str, defaults: Mapping[str, str]) -> dict[str, str]:
  """The part after the colon of `--config=configs/FILE.py:VALUE,NAME=VALUE`.

  Args:
    text: such as `ucf101,recipe=study`; may be empty.
    first: the name of the value that stands without one.
    defaults: every name there is, and its value if it is not given.

  Raises:
    SettingError: a name that there is not; the message has the nearest.
  """
  values = dict(defaults)
  for position, part in enumerate(part for part in text.split(",") if part):
    name, equals, value = part.partition("=")
    if not equals and position == 0:
      name, value = first, part
    if name not in defaults or not value:
      raise SettingError(
        f"{part!r} after the config's colon: expected NAME=VALUE with NAME one of "
        f"{', '.join(defaults)}.{errors.nearest(name, defaults)}"
      )
    values[name] = value
  return values
