"""R(2+1)D-34 from IG-65M on HMDB51 or UCF101: the strongest CNN that the source compares with.

python main.py --config=configs/ig65m.py --config.data_dir=DIR --workdir=runs/ig65m

After the colon: the data set. Published: 79.8 to 82.8 % on HMDB51, split 1
(microsoft/computervision-recipes); from Kinetics 74.5 %, mean of three splits (Tran et al. 2018,
arXiv:1711.11248).

Hours of its 48 epochs, estimated: 0.22 on one v5e-8 (--mode=plan --topology=v5e:2x4), 0.2 on one H100 (from the 943
clips/s measured of R(2+1)D-18, by multiply-accumulates).
"""

import ml_collections

from hybrid_video import configuration, recipes


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The experiment on one data set.

  Raises:
    SettingError: an argument that there is not.
  """
  chosen = configuration.arguments(options, "dataset", {"dataset": "hmdb51"})
  config = configuration.default_config()
  config.dataset = chosen["dataset"]
  configuration.use_model(config, "r2plus1d_34")
  recipes.apply(config, "ig65m")
  config.clip.frames, config.clip.mode, config.clip.stride = 32, "stride", 1
  config.init_from = "r2plus1d_34/ig65m_clip32"
  return config.lock()
