"""The demo: made videos of eight actions that differ in motion alone, learned by a narrow model.

python main.py --config=configs/demo.py --workdir=runs/demo

Two CPU cores take a few minutes. Another model is one flag, at a width that suits the small frames:
--config.model.name=r2plus1d_18; another recipe stands after a colon: configs/demo.py:study.
"""

import ml_collections

from hybrid_video import configuration, narrow, recipes


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The demo, from video making to report.

  Raises:
    SettingError: there is no such recipe; the message names the nearest.
  """
  chosen = configuration.arguments(options, "recipe", {"recipe": "scratch"})
  config = configuration.default_config()
  narrow.made_videos(config, films=80)
  narrow.models(config)
  configuration.use_model(config, "hybrid", **config.presets.hybrid, cnn_blocks=4)
  recipes.apply(config, chosen["recipe"])
  config.log_every_steps = 50
  config.evaluate_shuffled = True
  return config.lock()
