"""Attention depth: the source study's first table, 1, 2 and 6 self attention blocks, and its baseline.

One more row leaves the cross attention at random values, as the source did, and corrects all else.

python main.py --config=configs/studies/attention_depth.py --config.data_dir=DIR --workdir=runs/depth

After a colon: hmdb51 (the default), ucf101, folder or demo, which makes its videos and takes an hour on two
CPU cores; `width=narrow` and `recipe=NAME` may follow.
"""

import ml_collections

from hybrid_video.study import configured, scales, source

ROWS = ("baseline", "cnn8_cross1_self1", "cnn8_cross1_self2", "cnn8_cross1_self6")


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The study at a scale.

  Raises:
    SettingError: there is no such scale, width or recipe; the message names the nearest.
  """
  config, scale = scales.base(options)
  rows = [source.row(name, own_recipe=scale.own_recipe) for name in ROWS]
  frozen = source.frozen(rows[1])
  configured.use_study(
    config,
    "Attention depth",
    "Does attention on top of all CNN blocks help, and how deep should it be?",
    [*rows, frozen],
    at_once=scale.at_once,
    asks=[(rows[1].name, frozen.name), *((row.name, source.BASELINE) for row in rows[1:])],
  )
  return config.lock()
