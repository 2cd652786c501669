"""What all rows of a shipped study have in common: the data set, widths and recipe that a word stands for.

In: what stands after a study config's colon, such as `demo` or `folder,width=narrow`. Out: a config, and
what was chosen.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections

from hybrid_video import errors, experiment, recipes
from hybrid_video.settings import SettingError

SCALES = ("hmdb51", "ucf101", "folder", "demo")
WIDTHS = ("published", "narrow")
_VIDEO_RESNETS = ("r2plus1d_18", "r2plus1d_34", "r3d_18", "mc3_18")
_VIDEOMAE = ("videomae_small", "videomae_base", "videomae_large")
# Trains a run in two to three minutes on two cores.
_DEMO_FILMS, _DEMO_EPOCHS = 48, 20.0


@dataclasses.dataclass(frozen=True)
class Scale:
  """What was chosen after the colon.

  Attributes:
    name: one of `SCALES`.
    is_narrow: whether models have a fraction of the published widths.
    recipe: one of `recipes.RECIPES`.
  """

  name: str
  is_narrow: bool
  recipe: str

  @property
  def is_demo(self) -> bool:
    """Whether it is for two CPU cores."""
    return self.name == "demo"

  @property
  def own_recipe(self) -> bool:
    """Whether the source's baseline keeps the source's recipe for it."""
    return self.recipe == "study"


def base(
  options: str, preset: Mapping[str, Any] | None = None
) -> tuple[ml_collections.ConfigDict, Scale]:
  """The settings of all rows.

  Args:
    options: `SCALE,width=narrow,recipe=NAME`, each optional; SCALE is hmdb51 by default.
    preset: the hybrid's options that hold for all of a study's rows.

  Raises:
    SettingError: a scale, width or recipe that there is not; the message has the nearest.
  """
  chosen = experiment.arguments(options, "scale", {"scale": "hmdb51", "width": "", "recipe": ""})
  name = chosen["scale"]
  if name not in SCALES:
    raise SettingError(
      f"There is no scale {name!r}.{errors.nearest(name, SCALES)} Scales: {', '.join(SCALES)}."
    )
  width = chosen["width"] or ("narrow" if name == "demo" else "published")
  if width not in WIDTHS:
    raise SettingError(f"width={width} after the config's colon: expected {' or '.join(WIDTHS)}.")
  scale = Scale(
    name, width == "narrow", chosen["recipe"] or ("scratch" if width == "narrow" else "study")
  )
  config = experiment.default_config()
  config.dataset = "made_actions" if scale.is_demo else name
  config.records_dir = "{workdir}/records"
  if scale.is_narrow:
    _narrow(config)
  experiment.use_model(config, "hybrid", **{**config.presets.get("hybrid", {}), **(preset or {})})
  recipes.apply(config, scale.recipe)
  if scale.is_demo:
    _demo(config)
  return config, scale


def _narrow(config: ml_collections.ConfigDict) -> None:
  """An eighth of the published widths; without cross attention the hybrid needs its CNN's 64 channels."""
  experiment.preset_model(
    config, "hybrid", cnn_width=8, latents=16, width=64, self_heads=4, head_dim=16, multiplier=2
  )
  for name in _VIDEO_RESNETS:
    experiment.preset_model(config, name, width=8)
  for name in ("r2plus1d_18_bert", "r2plus1d_34_bert"):
    experiment.preset_model(config, name, width=8, heads=4)
  for name in _VIDEOMAE:
    experiment.preset_model(config, name, width=96, depth=4, heads=4)


def _demo(config: ml_collections.ConfigDict) -> None:
  """Made videos, as in `configs/demo.py`, and fewer of them."""
  config.data_dir = "{workdir}/videos"
  config.made_films = _DEMO_FILMS
  config.stored.height, config.stored.width, config.stored.jpeg_quality = 38, 50, 90
  config.clip.crop = 32
  # Mirrored, one class becomes another.
  config.clip.flip = False
  config.epochs = _DEMO_EPOCHS
  config.eval_batch_size = 32
  config.validation.train_videos = 0
  config.checkpoint_every_epochs = 5.0
