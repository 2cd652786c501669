"""Inductive bias: accuracy against the share of training videos, hybrid against CNN against VideoMAE.

python main.py --config=configs/studies/inductive_bias.py --config.data_dir=DIR --workdir=runs/inductive_bias

After a colon: hmdb51 (the default), ucf101, folder or demo; `width=narrow` and `recipe=NAME` may follow.
Shares are of whole groups; what a smaller share has, a larger one has too.
"""

import ml_collections

from hybrid_video.study import architectures, configured, scales
from hybrid_video.study.settings import Row

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The study at a scale.

  Raises:
    SettingError: there is no such scale, width or recipe; the message names the nearest.
  """
  config, scale = scales.base(options)
  rows = []
  for name in (architectures.HYBRID, architectures.CNN, architectures.VIDEOMAE):
    for share in SHARES:
      label = architectures.LABELS[name]
      own = architectures.settings(name, is_narrow=scale.is_narrow)
      rows.append(
        Row(
          f"{name}_share{100 * share:g}",
          f"{label}, {100 * share:g} % of the training videos",
          {**own, "training_share": share},
          axes={"architecture": label, "training_share": share},
        )
      )
  configured.use_study(
    config,
    "Inductive bias",
    "How many videos does each architecture need?",
    rows,
    forms=("corrected",),
    at_once=scale.at_once,
  )
  return config.lock()
