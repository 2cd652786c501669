"""R(2+1)D-34 + BERT on HMDB51: 64 frames of 112 pixels, IG-65M's weights in the trunk.

python main.py --config=configs/bert.py --config.data_dir=DIR --workdir=runs/bert

After the colon: the data set, and model=r2plus1d_18_bert for the smaller one, which starts from Kinetics.
Published: 85.10 % on HMDB51 and 98.69 % on UCF101, mean of the three splits (Kalfaoglu et al. 2020,
arXiv:2008.01232), with 32-frame clips of IG-65M.

Hours of its 200 epochs, estimated: about 2.5 on one v5e-8 (from the plan of configs/ig65m.py), 2 on one H100 (from the
943 clips/s measured of R(2+1)D-18), both by multiply-accumulates, those of rematerializing with them.
"""

import ml_collections

from hybrid_video import configuration, recipes

# What each trunk starts from.
WEIGHTS = {
  "r2plus1d_34_bert": "r2plus1d_34/ig65m_clip32",
  "r2plus1d_18_bert": "r2plus1d_18/kinetics400",
}


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The experiment on one data set.

  Raises:
    SettingError: there is no such model; the message names the nearest.
  """
  chosen = configuration.arguments(
    options, "dataset", {"dataset": "hmdb51", "model": "r2plus1d_34_bert"}
  )
  config = configuration.default_config()
  config.dataset = chosen["dataset"]
  configuration.use_model(config, chosen["model"])
  recipes.apply(config, "bert")
  config.clip.frames, config.clip.mode, config.clip.stride = 64, "stride", 1
  config.model.remat = "blocks"
  config.init_from = WEIGHTS.get(chosen["model"], "")
  return config.lock()
