"""What all rows of a shipped study have in common: the data set, widths and recipe that a word stands for.

In: what stands after a study config's colon, such as `demo` or `folder,width=narrow`. Out: a config, and
what was chosen.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections

from hybrid_video import configuration, errors, narrow, recipes
from hybrid_video.settings import SettingError

SCALES = ("hmdb51", "ucf101", "folder", "demo")
WIDTHS = ("published", "narrow")
# Trains a run in two to three minutes on two cores.
_DEMO_FILMS, _DEMO_EPOCHS = 48, 20.0


@dataclasses.dataclass(frozen=True)
class Scale:
  """What was chosen after the colon.

  Attributes:
    name: one of `SCALES`.
    is_narrow: whether models have a fraction of the published widths.
    recipe: one of `recipes.RECIPES`.
    own: what a study takes beside these, by name.
  """

  name: str
  is_narrow: bool
  recipe: str
  own: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def is_demo(self) -> bool:
    """Whether it is for two CPU cores."""
    return self.name == "demo"

  @property
  def at_once(self) -> int:
    """How many runs train at the same time on CPUs: narrow models keep no second core busy."""
    return 2 if self.is_narrow else 1

  @property
  def own_recipe(self) -> bool:
    """Whether the source's baseline keeps the source's recipe for it."""
    return self.recipe == "study"


def base(
  options: str, preset: Mapping[str, Any] | None = None, **own: str
) -> tuple[ml_collections.ConfigDict, Scale]:
  """The settings of all rows.

  Args:
    options: `SCALE,width=narrow,recipe=NAME`, each optional; SCALE is hmdb51 by default.
    preset: the hybrid's options that hold for all of a study's rows.
    **own: names that this study takes too, and their values if they are not given.

  Raises:
    SettingError: a scale, width or recipe that there is not; the message has the nearest.
  """
  chosen = configuration.arguments(
    options, "scale", {"scale": "hmdb51", "width": "", "recipe": "", **own}
  )
  name = chosen["scale"]
  if name not in SCALES:
    raise SettingError(
      f"There is no scale {name!r}.{errors.nearest(name, SCALES)} Scales: {', '.join(SCALES)}."
    )
  width = chosen["width"] or ("narrow" if name == "demo" else "published")
  if width not in WIDTHS:
    raise SettingError(f"width={width} after the config's colon: expected {' or '.join(WIDTHS)}.")
  recipe = chosen["recipe"] or ("scratch" if width == "narrow" else "study")
  scale = Scale(name, width == "narrow", recipe, {option: chosen[option] for option in own})
  config = configuration.default_config()
  config.records_dir = "{workdir}/records"
  if scale.is_demo:
    narrow.made_videos(config, films=_DEMO_FILMS)
  else:
    config.dataset = name
  if scale.is_narrow:
    narrow.models(config)
  configuration.use_model(
    config, "hybrid", **{**config.presets.get("hybrid", {}), **(preset or {})}
  )
  recipes.apply(config, scale.recipe)
  if scale.is_demo:
    config.epochs = _DEMO_EPOCHS
    config.validation.train_videos = 0
  return config, scale
