"""Settings groups: types, ranges, names and JSON, each error with the setting's path and value."""

import dataclasses
import json
import math
from typing import ClassVar

import pytest

from hybrid_video.errors import UserError
from hybrid_video.settings import SettingError, Settings, setting


@dataclasses.dataclass(frozen=True)
class Inner(Settings):
  PATH: ClassVar[str] = "inner"

  rate: float = setting(0.5, above=0, below=1)
  kind: str = setting("plain", choices=("plain", "striped"))
  scales: tuple[float, ...] = setting((1.0, 0.5), above=0, at_most=1)
  area: tuple[float, float] = setting((0.5, 1.0), above=0, at_most=1)

  def validate(self) -> None:
    if self.area[0] > self.area[1]:
      raise SettingError(f"{self.path('area')} is {self.area}: expected ascending numbers.")


@dataclasses.dataclass(frozen=True)
class Outer(Settings):
  count: int = setting(4, at_least=1)
  enabled: bool = setting(False)
  limit: int | None = setting(None, at_least=1)
  size: int | tuple[int, int] = setting(8, at_least=1)
  inner: Inner = setting(Inner)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("rate", 1.0, "--config.inner.rate is 1: expected a finite number above 0 below 1."),
    ("rate", math.nan, "--config.inner.rate is nan: expected a finite number above 0 below 1."),
    ("rate", 0.0, "--config.inner.rate is 0: expected a finite number above 0 below 1."),
    ("rate", math.inf, "--config.inner.rate is inf: expected a finite number above 0 below 1."),
    ("rate", -math.inf, "--config.inner.rate is -inf: expected a finite number above 0 below 1."),
    ("rate", None, "--config.inner.rate is None: expected a number."),
    ("rate", "0.5", "--config.inner.rate is '0.5': expected a number."),
    ("rate", True, "--config.inner.rate is True: expected a number."),
    (
      "kind",
      "stripes",
      "--config.inner.kind is 'stripes': expected one of plain, striped. Did you mean striped?",
    ),
    ("kind", 3, "--config.inner.kind is 3: expected a text."),
    (
      "scales",
      (0.5, 2.0),
      "--config.inner.scales[1] is 2: expected a finite number above 0 up to 1.",
    ),
    (
      "scales",
      (0.5, math.nan),
      "--config.inner.scales[1] is nan: expected a finite number above 0 up to 1.",
    ),
    ("scales", (0.5, "1"), "--config.inner.scales[1] is '1': expected a number."),
    ("scales", 0.5, "--config.inner.scales is 0.5: expected several values, such as (a, b)."),
    ("area", (0.5,), "--config.inner.area is (0.5,): expected 2 values."),
    ("area", (0.9, 0.1), "--config.inner.area is (0.9, 0.1): expected ascending numbers."),
  ],
)
def test_a_value_that_cannot_be_used_is_refused_by_path_and_value(name, value, message):
  with pytest.raises(SettingError) as error:
    Inner(**{name: value})
  assert str(error.value) == message
  assert isinstance(error.value, UserError)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("count", 0, "--config.count is 0: expected a whole number of 1 or more."),
    ("count", 1.5, "--config.count is 1.5: expected a whole number."),
    ("count", True, "--config.count is True: expected a whole number."),
    ("enabled", 1, "--config.enabled is 1: expected True or False."),
    ("limit", 0, "--config.limit is 0: expected a whole number of 1 or more."),
    ("limit", "8", "--config.limit is '8': expected a whole number."),
    ("size", 0, "--config.size is 0: expected a whole number of 1 or more."),
    ("size", (8, 0), "--config.size[1] is 0: expected a whole number of 1 or more."),
    ("size", (8, 8, 8), "--config.size is (8, 8, 8): expected 2 values."),
    ("inner", 3, "--config.inner is 3: expected Inner."),
  ],
)
def test_a_group_without_a_path_is_named_by_its_fields_alone(name, value, message):
  with pytest.raises(SettingError) as error:
    Outer(**{name: value})
  assert str(error.value) == message


def test_values_take_their_declared_types():
  settings = Inner(scales=[1, 0.25], area=[0.25, 1])
  assert settings.scales == (1.0, 0.25)
  assert settings.area == (0.25, 1.0)
  assert {type(value) for value in (*settings.scales, *settings.area)} == {float}
  rate = Inner(rate=0.25).rate
  assert type(rate) is float and rate == 0.25


def test_a_value_may_have_any_type_of_its_union():
  assert Outer().limit is None
  assert Outer(limit=3).limit == 3
  assert Outer(size=3).size == 3
  assert Outer(size=[3, 4]).size == (3, 4)


def test_settings_cannot_be_changed():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Outer().count = 5


def test_nested_mappings_become_settings_and_json_leads_back():
  settings = Outer.from_mapping({"count": 7, "inner": {"rate": 0.25, "scales": [0.5]}})
  assert settings == Outer(count=7, inner=Inner(rate=0.25, scales=(0.5,)))
  values = settings.to_json()
  assert values == {
    "count": 7,
    "enabled": False,
    "limit": None,
    "size": 8,
    "inner": {"rate": 0.25, "kind": "plain", "scales": [0.5], "area": [0.5, 1.0]},
  }
  assert Outer.from_mapping(json.loads(json.dumps(values))) == settings


def test_a_group_that_is_settings_already_is_taken_as_it_is():
  inner = Inner(rate=0.25)
  assert Outer.from_mapping({"inner": inner}).inner is inner


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (
      {"inner": {"scale": (1.0,)}},
      "There is no setting --config.inner.scale. Did you mean scales?",
    ),
    ({"coutn": 3}, "There is no setting --config.coutn. Did you mean count?"),
    ({"zzz": 3}, "There is no setting --config.zzz."),
    (
      {"inner": {"rate": 2}},
      "--config.inner.rate is 2: expected a finite number above 0 below 1.",
    ),
  ],
)
def test_a_mapping_that_does_not_fit_is_refused_with_path_and_nearest_name(values, message):
  with pytest.raises(SettingError) as error:
    Outer.from_mapping(values)
  assert str(error.value) == message


def test_a_default_out_of_range_is_refused_too():
  @dataclasses.dataclass(frozen=True)
  class Wrong(Settings):
    share: float = setting(2.0, at_most=1)

  with pytest.raises(SettingError, match=r"--config\.share is 2: expected a finite number up to 1"):
    Wrong()
