"""What makes a training fit two CPU cores: narrow models, and made videos of small frames.

In: a config. Out: the config with presets of all models, or with the demo's data set.
"""

import ml_collections

from hybrid_video import configuration

# Without cross attention, the hybrid needs its CNN's 64 channels.
_HYBRID = {
  "cnn_width": 8,
  "latents": 16,
  "width": 64,
  "self_heads": 4,
  "head_dim": 16,
  "multiplier": 2,
}
_VIDEOMAE = {"width": 96, "depth": 4, "heads": 4}
_DECODER = {"decoder_width": 48, "decoder_depth": 2, "decoder_heads": 4, "mask_ratio": 0.75}


def models(config: ml_collections.ConfigDict) -> None:
  """Presets of an eighth of the published widths, for every model."""
  configuration.preset_model(config, "hybrid", **_HYBRID)
  configuration.preset_model(config, "hybrid_pretraining", **_HYBRID, **_DECODER)
  for name in ("r2plus1d_18", "r2plus1d_34", "r3d_18", "mc3_18"):
    configuration.preset_model(config, name, width=8)
  for name in ("r2plus1d_18_bert", "r2plus1d_34_bert"):
    # Of 64 channels, the published dropout of 0.8 leaves too few to learn from.
    configuration.preset_model(config, name, width=8, heads=4, dropout=0.0)
  for name in ("videomae_small", "videomae_base", "videomae_large"):
    configuration.preset_model(config, name, **_VIDEOMAE)
    configuration.preset_model(config, f"{name}_pretraining", **_VIDEOMAE, **_DECODER)


def made_videos(config: ml_collections.ConfigDict, films: int) -> None:
  """Made videos of small frames, in the work directory."""
  config.dataset = "made_actions"
  config.data_dir = "{workdir}/videos"
  config.records_dir = "{workdir}/records"
  config.made_films = films
  config.stored.height, config.stored.width = 38, 50
  # Frames this small have little to lose.
  config.stored.jpeg_quality = 90
  config.clip.crop = 32
  # Mirrored, one class becomes another.
  config.clip.flip = False
  config.eval_batch_size = 32
  config.checkpoint_every_epochs = 5.0
