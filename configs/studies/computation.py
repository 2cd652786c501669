"""Computation: accuracy against multiply-accumulates and clips/s, over cuts of the CNN and clip lengths.

python main.py --config=configs/studies/computation.py --config.data_dir=DIR --workdir=runs/computation

After a colon: hmdb51 (the default), ucf101, folder or demo; `width=narrow` and `recipe=NAME` may follow.
Clips/s are those of each run's own test list on the machine that ran it.
"""

import ml_collections

from hybrid_video.study import configured, scales, source
from hybrid_video.study.settings import Row

CUTS, FRAMES = (4, 6, 8), (8, 16, 32)


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The study at a scale.

  Raises:
    SettingError: there is no such scale, width or recipe; the message names the nearest.
  """
  config, scale = scales.base(options)
  rows = []
  for frames in FRAMES:
    for blocks in CUTS:
      chosen = source.hybrid_options(f"cnn{blocks}_cross1_self1")
      for kind, label, own in (
        ("cnn", "CNN", {"model.name": "r2plus1d_18", "model.blocks": blocks}),
        (
          "hybrid",
          "hybrid",
          {"model.name": "hybrid", **{f"model.{k}": v for k, v in chosen.items()}},
        ),
      ):
        rows.append(
          Row(
            f"{kind}{blocks}_frames{frames}",
            f"{label} of {blocks} blocks, {frames} frames",
            {**own, "clip.frames": frames},
            axes={"architecture": label, "cnn_blocks": blocks, "frames": frames},
          )
        )
  configured.use_study(
    config,
    "Computation",
    "What does attention on a cut CNN save, and what does that cost?",
    rows,
    forms=("corrected",),
    at_once=scale.at_once,
  )
  return config.lock()
