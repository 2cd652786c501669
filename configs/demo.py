"""The demo: made videos of eight actions that differ in motion alone, learned by a narrow model.

python main.py --config=configs/demo.py --workdir=runs/demo

Two CPU cores take a few minutes. Another model is one flag, at a width that suits the small frames:
--config.model.name=r2plus1d_18; another recipe stands after a colon: configs/demo.py:study.
"""

import ml_collections

from hybrid_video import experiment, recipes


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The demo, from video making to report.

  Raises:
    SettingError: there is no such recipe; the message names the nearest.
  """
  chosen = experiment.arguments(options, "recipe", {"recipe": "scratch"})
  config = experiment.default_config()
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
  experiment.use_model(
    config,
    "hybrid",
    cnn_blocks=4,
    cnn_width=8,
    latents=16,
    width=64,
    self_heads=4,
    head_dim=16,
    multiplier=2,
  )
  for name in ("r2plus1d_18", "r2plus1d_34", "r3d_18", "mc3_18"):
    experiment.preset_model(config, name, width=8)
  for name in ("videomae_small", "videomae_base", "videomae_large"):
    experiment.preset_model(config, name, width=96, depth=4, heads=4)
    experiment.preset_model(
      config,
      f"{name}_pretraining",
      width=96,
      depth=4,
      heads=4,
      decoder_width=48,
      decoder_depth=2,
      decoder_heads=4,
      mask_ratio=0.75,
    )
  recipes.apply(config, chosen["recipe"])
  config.eval_batch_size = 32
  config.log_every_steps = 50
  config.checkpoint_every_epochs = 5.0
  config.evaluate_shuffled = True
  return config.lock()
