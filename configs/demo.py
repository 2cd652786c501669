"""The embedded default: made videos of eight actions that differ in motion alone.

python main.py --config=configs/demo.py --workdir=runs/demo

A narrow hybrid learns them on two CPU cores in a few minutes.
"""

import ml_collections

from configs import defaults


def get_config() -> ml_collections.ConfigDict:
  """The demo, from video making to report."""
  config = defaults.get_config()
  config.dataset = "made_actions"
  config.data_dir = "{workdir}/videos"
  config.records_dir = "{workdir}/records"
  config.made_films = 80
  config.stored.height, config.stored.width = 38, 50
  # Frames this small have little to lose.
  config.stored.jpeg_quality = 90
  config.clip.crop = 32
  # Mirrored, one class becomes another.
  config.clip.flip = False
  config.model = defaults.model(
    "hybrid",
    cnn_blocks=4,
    cnn_width=8,
    latents=16,
    width=64,
    self_heads=4,
    head_dim=16,
    multiplier=2,
  )
  config.epochs = 25.0
  config.batch_size = 8
  config.eval_batch_size = 32
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 2e-3
  config.optimizer.weight_decay = 0.05
  config.optimizer.warmup_epochs = 1.0
  config.optimizer.clip_norm = 1.0
  config.log_every_steps = 50
  config.checkpoint_every_epochs = 5.0
  config.evaluate_shuffled = True
  return config.lock()
