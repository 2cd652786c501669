"""CNN depth: the source study's second table, attention on top of fewer and fewer CNN blocks.

python main.py --config=configs/studies/cnn_depth.py --config.data_dir=DIR --workdir=runs/cnn_depth

After a colon: hmdb51 (the default), ucf101, folder or demo; `width=narrow` and `recipe=NAME` may follow.
"""

import ml_collections

from hybrid_video.study import configured, scales, source

ROWS = (
  "baseline",
  "cnn8_cross1_self1",
  "cnn7_cross1_self1",
  "cnn6_cross1_self6",
  "cnn4_cross1_self6",
  "cnn4_cross2_self12",
)


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The study at a scale.

  Raises:
    SettingError: there is no such scale, width or recipe; the message names the nearest.
  """
  config, scale = scales.base(options)
  configured.use_study(
    config,
    "CNN depth",
    "How many CNN blocks can attention replace?",
    [source.row(name, own_recipe=scale.own_recipe) for name in ROWS],
    at_once=scale.at_once,
    asks=[(name, source.BASELINE) for name in ROWS[1:]],
  )
  return config.lock()
