"""A narrow hybrid on real HMDB51 clips: a check of a data folder that two CPU cores can run.

python main.py --config=configs/hmdb51_small.py --config.data_dir=DIR --workdir=RUN

With a handful of clips (--config.allow_missing=True) it learns them by heart in two minutes.
"""

import ml_collections

from hybrid_video import configuration, recipes


def get_config() -> ml_collections.ConfigDict:
  """The study's `cnn8_cross1_self1` at an eighth of its width, evaluated on both lists."""
  config = configuration.default_config()
  configuration.use_model(config, "hybrid", cnn_width=8, latents=16, width=64)
  configuration.preset_model(config, "r2plus1d_18", width=8)
  recipes.apply(config, "study")
  config.optimizer.schedule = "cosine"
  config.batch_size = 6
  config.log_every_steps = 10
  config.checkpoint_every_epochs = 50.0
  config.evaluate_train = True
  return config.lock()
