"""Typed settings: frozen dataclasses whose every value is checked and named by its full path.

A group of settings derives from `Settings`, says where it stands on the command line (`PATH`), and
declares each field by `setting`: its default, its range and what it means. Nothing here knows
ConfigDicts; `experiment` turns them into settings.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import types
import typing
from typing import Any, ClassVar, Self

from hybrid_video import errors


class SettingError(errors.UserError):
  """A setting's value that cannot be used; the message has its path, value and range."""


def setting(
  default: Any,
  *,
  at_least: float | None = None,
  above: float | None = None,
  at_most: float | None = None,
  below: float | None = None,
  choices: tuple[str, ...] = (),
) -> Any:
  """A field of a `Settings` class with its default and its range.

  Args:
    default: its value unless set; a `Settings` class stands for that group's defaults.
    at_least, above, at_most, below: bounds of a number, or of every number of a tuple.
    choices: the texts that it may be.
  """
  limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
  metadata = {**limits, "choices": choices}
  if isinstance(default, type):
    return dataclasses.field(default_factory=default, metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


class Settings:
  """Base of the groups: checks every value when one is made.

  Attributes:
    PATH: what stands before a field's name on the command line, such as `optimizer`.
  """

  PATH: ClassVar[str] = ""

  def __post_init__(self) -> None:
    hints = typing.get_type_hints(type(self))
    for field in dataclasses.fields(self):  # type: ignore[arg-type]
      value = _checked(self.path(field.name), getattr(self, field.name), hints[field.name], field)
      object.__setattr__(self, field.name, value)
    self.validate()

  def validate(self) -> None:
    """Checks what holds between fields; groups override it.

    Raises:
      SettingError: values that do not fit together.
    """

  @classmethod
  def path(cls, name: str) -> str:
    """A field's full name on the command line, such as `--config.optimizer.momentum`."""
    return ".".join(part for part in ("--config", cls.PATH, name) if part)

  def to_json(self) -> dict[str, Any]:
    """Nested dicts, lists, numbers and texts."""
    return _to_json(dataclasses.asdict(self))  # type: ignore[call-overload]

  @classmethod
  def from_mapping(cls, values: Mapping[str, Any]) -> Self:
    """Settings of nested mappings; fields that are not in them keep their defaults.

    Raises:
      SettingError: a name that this group does not have (the message has the nearest), or a value
        out of range.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    chosen = {}
    for name, value in values.items():
      if name not in known:
        raise SettingError(f"There is no setting {cls.path(name)}.{errors.nearest(name, known)}")
      hint = hints[name]
      if isinstance(hint, type) and issubclass(hint, Settings) and not isinstance(value, hint):
        value = hint.from_mapping(value)
      chosen[name] = value
    return cls(**chosen)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested mappings as one, by paths such as `optimizer.momentum`.

  Args:
    values: nested mappings.
    prefix: stands before every path.
  """
  paths: dict[str, Any] = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      paths |= flat(value, f"{prefix}{name}.")
    else:
      paths[f"{prefix}{name}"] = value
  return paths


def differing(
  first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
  """What two mappings have otherwise: (name, of the first, of the second), "nothing" where it lacks."""
  for name in dict.fromkeys((*first, *second)):
    one, other = first.get(name, "nothing"), second.get(name, "nothing")
    if one != other:
      yield name, one, other


def _to_json(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {name: _to_json(item) for name, item in value.items()}
  return [_to_json(item) for item in value] if isinstance(value, tuple | list) else value


def _expected(field: dataclasses.Field, kind: str) -> str:
  limits = field.metadata
  words = {
    "at_least": "of {:g} or more",
    "above": "above {:g}",
    "at_most": "up to {:g}",
    "below": "below {:g}",
  }
  bounds = [words[name].format(limits[name]) for name in words if limits.get(name) is not None]
  return " ".join([kind, *bounds])


def _checked(path: str, value: Any, hint: Any, field: dataclasses.Field) -> Any:
  """The value in its declared type, checked.

  Raises:
    SettingError: another type, or out of range.
  """
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if value is None:
      return None
    for kind in kinds[:-1]:
      if _is_a(value, kind):
        return _checked(path, value, kind, field)
    return _checked(path, value, kinds[-1], field)
  if typing.get_origin(hint) is tuple:
    arguments = typing.get_args(hint)
    if not isinstance(value, tuple | list):
      raise SettingError(f"{path} is {value!r}: expected several values, such as (a, b).")
    if arguments[-1] is Ellipsis:
      kinds = [arguments[0]] * len(value)
    else:
      kinds = list(arguments)
      if len(value) != len(kinds):
        raise SettingError(f"{path} is {value!r}: expected {len(kinds)} values.")
    return tuple(
      _checked(f"{path}[{i}]", item, kind, field)
      for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
    )
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if isinstance(hint, type) and not _is_a(value, hint):
    raise SettingError(f"{path} is {value!r}: expected {_KINDS.get(hint, hint.__name__)}.")
  if isinstance(value, float | int) and not isinstance(value, bool):
    _check_number(path, value, field)
  choices = field.metadata.get("choices")
  if choices and value not in choices:
    raise SettingError(
      f"{path} is {value!r}: expected one of {', '.join(choices)}."
      f"{errors.nearest(str(value), choices)}"
    )
  return value


_KINDS = {float: "a number", int: "a whole number", bool: "True or False", str: "a text"}


def _is_a(value: Any, kind: Any) -> bool:
  if typing.get_origin(kind) is tuple:
    return isinstance(value, tuple | list)
  if kind is float:
    return isinstance(value, float | int) and not isinstance(value, bool)
  if kind is int:
    return isinstance(value, int) and not isinstance(value, bool)
  return not isinstance(kind, type) or isinstance(value, kind)


def _check_number(path: str, value: float, field: dataclasses.Field) -> None:
  limits = field.metadata
  fits = (
    math.isfinite(value)
    and (limits.get("at_least") is None or value >= limits["at_least"])
    and (limits.get("above") is None or value > limits["above"])
    and (limits.get("at_most") is None or value <= limits["at_most"])
    and (limits.get("below") is None or value < limits["below"])
  )
  if not fits:
    kind = "a whole number" if isinstance(value, int) else "a finite number"
    raise SettingError(f"{path} is {value:g}: expected {_expected(field, kind)}.")
