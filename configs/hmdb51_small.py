"""A narrow hybrid on real HMDB51 clips: a check of a data folder that two CPU cores can run.

python main.py --config=configs/hmdb51_small.py --config.data_dir=DIR --workdir=RUN

With a handful of clips (--config.allow_missing=True) it learns them by heart in two minutes.
"""

import ml_collections

from configs import hmdb51


def get_config() -> ml_collections.ConfigDict:
  """The study's `cnn8_cross1_self1` at an eighth of its width, evaluated on both lists."""
  config = hmdb51.get_config("cnn8_cross1_self1").unlock()
  config.model.cnn_width = 8
  config.model.latents = 16
  config.model.width = 64
  config.optimizer.schedule = "cosine"
  config.batch_size = 6
  config.log_every_steps = 10
  config.checkpoint_every_epochs = 50.0
  config.evaluate_train = True
  return config.lock()
