"""R(2+1)D-18 on Kinetics-400 from nothing, by torchvision's recipe.

python main.py --config=configs/kinetics.py --config.data_dir=DIR --workdir=runs/kinetics

After the colon: another model of that recipe, r3d_18 or mc3_18. Published: 57.5 % of clips and 67.46 % of videos
(torchvision's R(2+1)D-18). There 64 GPUs have 24 clips each, 5 of each video an epoch, at 15 frames a second and
a rate of 0.64; the rate here follows the batch.

Hours of its 45 epochs of 5 clips a video, estimated: about 8 on one v5e-8 (from the compiled step of 64 clips on
v5e:2x2), 16 on one H100 (at the 943 clips/s measured there).
"""

import ml_collections

from hybrid_video import configuration, recipes


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The experiment for one model.

  Raises:
    SettingError: there is no such model; the message names the nearest.
  """
  chosen = configuration.arguments(options, "model", {"model": "r2plus1d_18"})
  config = configuration.default_config()
  config.dataset = "kinetics"
  configuration.use_model(config, chosen["model"])
  recipes.apply(config, "torchvision")
  config.batch_size, config.optimizer.rate_for_batch = 24 * 64, 24
  config.clip.mode, config.clip.stride, config.clip.rate = "stride", 1, 15.0
  config.clip.repeats = 5
  return config.lock()
