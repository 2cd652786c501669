"""Cross and self attention: the source study's third table, each alone and both.

python main.py --config=configs/studies/cross_and_self.py --config.data_dir=DIR --workdir=runs/cross_and_self

After a colon: hmdb51 (the default), ucf101, folder or demo; `width=narrow` and `recipe=NAME` may follow.
"""

import ml_collections

from hybrid_video.study import configured, scales, source

ROWS = ("baseline", "cnn8_cross1", "cnn8_self1", "cnn8_cross1_self1")


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The study at a scale.

  Raises:
    SettingError: there is no such scale, width or recipe; the message names the nearest.
  """
  config, scale = scales.base(options)
  configured.use_study(
    config,
    "Cross and self attention",
    "What does each of the two attentions add?",
    [source.row(name, own_recipe=scale.own_recipe) for name in ROWS],
    at_once=scale.at_once,
    asks=[(name, source.BASELINE) for name in ROWS[1:]],
  )
  return config.lock()
