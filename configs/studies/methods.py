"""The compared methods: R(2+1)D, R(2+1)D + BERT, VideoMAE, the hybrid, and Perceiver without a CNN.

python main.py --config=configs/studies/methods.py --config.data_dir=DIR --workdir=runs/methods

After a colon: hmdb51 (the default), ucf101, folder or demo; `width=narrow` and `recipe=NAME` may follow.
"""

import ml_collections

from hybrid_video.study import architectures, configured, scales
from hybrid_video.study.settings import Row


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The study at a scale.

  Raises:
    SettingError: there is no such scale, width or recipe; the message names the nearest.
  """
  config, scale = scales.base(options)
  rows = [
    Row(name, label, architectures.settings(name, is_narrow=scale.is_narrow))
    for name, label in architectures.LABELS.items()
  ]
  configured.use_study(
    config,
    "Methods",
    "Which way of reading time is best on the same videos?",
    rows,
    forms=("corrected",),
    at_once=scale.at_once,
    asks=[(architectures.HYBRID, row.name) for row in rows if row.name != architectures.HYBRID],
  )
  return config.lock()
