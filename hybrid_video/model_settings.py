"""A model and all its options, from what was chosen, presets, and the defaults of its class.

In: names and values. Out: `ModelSettings`, checked.
"""

from collections.abc import Callable, Mapping
import dataclasses
import types
import typing
from typing import Any, Self

from hybrid_video import errors, models
from hybrid_video.models import masking
from hybrid_video.sampling.clip_settings import Sampling
from hybrid_video.settings import SettingError

_MODEL_KEYS = ("name", "dtype")


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """A model and all its options.

  Attributes:
    name: one of `models.MODELS`.
    dtype: one of `models.DTYPES`, of the arithmetic.
    options: every option of the model's class, by name.
  """

  name: str
  dtype: str
  options: Mapping[str, Any]

  def to_json(self) -> dict[str, Any]:
    """One dict of name, dtype and options."""
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items()}
    return {"name": self.name, "dtype": self.dtype, **options}

  @classmethod
  def resolve(cls, chosen: Mapping[str, Any], preset: Mapping[str, Any]) -> Self:
    """A model from what was chosen, over a preset, over the class's own defaults.

    Args:
      chosen: `name`, and options; None is not chosen. An option of another model is an error.
      preset: options that the experiment's file gives this model.

    Raises:
      SettingError: an unknown model, dtype or option; the message has the right ones.
    """
    name, dtype = chosen["name"], chosen.get("dtype") or "float32"
    if name not in models.MODELS:
      raise SettingError(
        f"--config.model.name is {name!r}, and there is no such model."
        f"{errors.nearest(name, models.MODELS)} Models: {', '.join(models.MODELS)}."
      )
    if dtype not in models.DTYPES:
      raise SettingError(
        f"--config.model.dtype is {dtype!r}: expected one of {', '.join(models.DTYPES)}."
      )
    known = models.options(name)
    given = {k: v for k, v in chosen.items() if k not in _MODEL_KEYS and v is not None}
    for option in (*given, *preset):
      try:
        models.check_option(name, option)
      except models.ModelError as error:
        raise SettingError(f"--config.model.{option} cannot be set: {error}") from error
    values = {**{k: p.default for k, p in known.items()}, **preset, **given}
    options = {
      option: _typed(f"--config.model.{option}", value, known[option].annotation)
      for option, value in values.items()
    }
    return cls(name, dtype, types.MappingProxyType(options))


def named(
  chosen: Mapping[str, Any],
  init_from: str,
  model_of: Callable[[str], Mapping[str, Any]] | None,
) -> Mapping[str, Any]:
  """What was chosen, over the model of the weights to start from where none was named.

  Args:
    chosen: `name`, "" where it is that of the weights, and options.
    init_from: the weights.
    model_of: (weights) to their model's name and options; None where they cannot be asked.

  Raises:
    SettingError: there are no weights to ask.
  """
  if chosen["name"]:
    return chosen
  if not init_from or model_of is None:
    raise SettingError(
      "--config.model.name is not set: it is that of --config.init_from, a work directory or published "
      "weights. Set that, or name the model."
    )
  given = {name: value for name, value in chosen.items() if value not in (None, "")}
  return {**model_of(init_from), **given}


def _typed(path: str, value: Any, annotation: Any) -> Any:
  """An option's value in a type that its annotation names."""
  allowed = kinds(annotation)
  if value is None and type(None) in typing.get_args(annotation):
    return None
  if isinstance(value, tuple | list):
    value = tuple(value)
  if float in allowed and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not isinstance(value, tuple(allowed)) or (isinstance(value, bool) and bool not in allowed):
    names = " or ".join(kind.__name__ for kind in allowed)
    raise SettingError(f"{path} is {value!r}: expected {names}.")
  return value


def kinds(annotation: Any) -> list[type]:
  """The plain types that an annotation allows, None left out."""
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    members = typing.get_args(annotation)
    return [kind for member in members if member is not type(None) for kind in kinds(member)]
  return [typing.get_origin(annotation) or annotation]


def check_clips(
  name: str, options: Mapping[str, Any], clip: Sampling, evaluation: Sampling
) -> None:
  """Checks that a model takes clips, and that a mask hides some of their patches and leaves some.

  Args:
    name: of the model.
    options: its options.
    clip, evaluation: the clips of training and of evaluation.

  Raises:
    SettingError: it does not; the message has the setting, and what the model takes.
  """
  for clips in (clip, evaluation):
    try:
      grid = models.clip_grid(name, options, clips.frames, clips.crop)
    except models.ModelError as error:
      raise SettingError(
        f"{clips.path('frames')} is {clips.frames} and {clips.path('crop')} is {clips.crop}, which {name} "
        f"cannot take. {error}"
      ) from error
    if grid and "mask_ratio" in options:
      ratio = options["mask_ratio"]
      try:
        masking.masked_cells(grid, ratio)
      except models.ModelError as error:
        raise SettingError(f"--config.model.mask_ratio is {ratio:g}. {error}") from error
  trained, tested = ((of.frames, of.crop) for of in (clip, evaluation))
  if models.task_of(name) == models.PRETRAINING and trained != tested:
    raise SettingError(
      f"{evaluation.path('frames')} and {evaluation.path('crop')} are {tested}, those of training {trained}: "
      f"{name} has masks of one size. Leave the evaluation's unset. A classifier that starts from it takes clips "
      "of other lengths."
    )
