"""Clip length: accuracy, multiply-accumulates, memory and speed at 8 to 128 frames, for each architecture.

python main.py --config=configs/studies/clip_length.py:demo --workdir=runs/clip_length

The videos are made at every scale: the class is the order of two events 4 s apart, of which each lasts 0.4 s. A clip
has one frame of each equal segment of the whole video, 6 s: with 8 frames, every 0.75 s. Long clips are
rematerialized.
"""

import ml_collections

from hybrid_video.study import architectures, configured, scales
from hybrid_video.study.settings import Row

FRAMES = (8, 16, 32, 64, 128)
COMPARED = (
  architectures.CNN,
  architectures.BERT,
  architectures.HYBRID,
  architectures.VIDEOMAE,
)
_GAP = 4.0
# With attention the order is learnt more slowly.
_DEMO_EPOCHS = {
  architectures.CNN: 8.0,
  architectures.BERT: 8.0,
  architectures.HYBRID: 14.0,
  architectures.VIDEOMAE: 14.0,
}
# From so many frames on, activations are computed again in the backward pass.
_REMAT_FROM = 64


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The study at a scale.

  Raises:
    SettingError: there is no such scale, width or recipe; the message names the nearest.
  """
  config, scale = scales.base(options)
  config.dataset, config.made_gap_seconds = "made_events", _GAP
  config.data_dir = "{workdir}/videos"
  config.clip.mode = "segments"
  # Mirrored, one class becomes another.
  config.clip.flip = False
  config.made_films = 96 if scale.is_demo else 400
  rows = []
  for name in COMPARED:
    label = architectures.LABELS[name]
    for frames in FRAMES:
      own = {
        **architectures.settings(name, is_narrow=scale.is_narrow),
        "clip.frames": frames,
        "model.remat": "blocks" if frames >= _REMAT_FROM else "none",
      }
      if scale.is_demo:
        own["epochs"] = _DEMO_EPOCHS[name]
      rows.append(
        Row(
          f"{name}_frames{frames}",
          f"{label}, {frames} frames",
          own,
          axes={"architecture": label, "frames": frames},
        )
      )
  configured.use_study(
    config,
    "Clip length",
    "What do longer clips bring, and what do they cost?",
    rows,
    seeds=(0,) if scale.is_demo else (0, 1, 2),
    forms=("corrected",),
    at_once=scale.at_once,
  )
  return config.lock()
