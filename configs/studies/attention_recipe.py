"""How attention on a whole CNN learns from scratch: initial latents and attention's share of the rate.

python main.py --config=configs/studies/attention_recipe.py:demo --workdir=runs/attention_recipe

The recipe is the baseline's throughout (AdamW 3e-4, cosine, no warm-up). Rows are chosen among by their
validation lists, which the report draws; `demo` has a quarter of the published widths.
"""

import ml_collections

from hybrid_video import configuration
from hybrid_video.study import architectures, configured, scales
from hybrid_video.study.settings import Row

# Standard deviation of the initial latents, factor on attention's rate.
RECIPES = ((1.0, 1.0), (0.02, 3.0), (0.02, 1.0), (0.02, 0.3), (0.02, 0.1))


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The study at a scale.

  Raises:
    SettingError: there is no such scale, width or recipe; the message names the nearest.
  """
  config, scale = scales.base(options)
  config.optimizer.name = "adamw"
  config.optimizer.schedule = "cosine"
  config.optimizer.learning_rate, config.optimizer.weight_decay = 3e-4, 0.05
  config.optimizer.warmup_epochs, config.optimizer.clip_norm = 0.0, 0.0
  config.epochs, config.batch_size = 16.0, 10
  quarter: dict[str, int] = {}
  if scale.is_demo:
    config.made_films = 80
    config.stored.height, config.stored.width, config.clip.crop = 44, 58, 40
    configuration.preset_model(config, "r2plus1d_18", width=16)
    quarter = {"cnn_width": 16, "width": 128, "latents": 256, "head_dim": 32, "multiplier": 4}
  baseline = architectures.settings(architectures.CNN, is_narrow=scale.is_narrow)
  rows = [Row("baseline", architectures.LABELS[architectures.CNN], baseline)]
  for std, factor in RECIPES:
    own = {
      **architectures.settings(architectures.HYBRID, is_narrow=scale.is_narrow),
      **{f"model.{option}": value for option, value in quarter.items()},
      "model.latent_std": std,
      "optimizer.part_rates.attention": factor,
    }
    rows.append(Row(f"latents{std:g}_rate{factor:g}", f"latents {std:g}, rate x {factor:g}", own))
  configured.use_study(
    config,
    "How attention learns from scratch",
    "Which initial latents, and which share of the learning rate, let attention on a CNN learn?",
    rows,
    seeds=(0,) if scale.is_demo else (0, 1, 2),
    forms=("corrected",),
    at_once=scale.at_once,
  )
  return config.lock()
