"""Long temporal dependency: the class is the order of two short events with a still gap between them.

python main.py --config=configs/studies/temporal_dependency.py:demo --workdir=runs/temporal_dependency

The videos are made at every scale. `demo` is narrow, for two CPU cores: all gaps at 16 frames, and 32 and
64 frames at the longest gap. Each clip has one frame of each equal segment of the whole video.
"""

import ml_collections

from hybrid_video.study import architectures, configured, scales
from hybrid_video.study.settings import Row

GAPS, FRAMES = (0.0, 0.5, 1.0, 2.0, 4.0), (16, 32, 64)
# The longer, the more slowly an architecture learns without a gap: from few videos, attention on patches
# takes several times as many epochs as a CNN, of which each takes a fraction of the time.
_DEMO_EPOCHS = {
  architectures.CNN: 8.0,
  architectures.BERT: 8.0,
  architectures.HYBRID: 14.0,
  architectures.VIDEOMAE: 50.0,
  architectures.PERCEIVER: 50.0,
}


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The study at a scale.

  Raises:
    SettingError: there is no such scale, width or recipe; the message names the nearest.
  """
  config, scale = scales.base(options)
  config.dataset = "made_events"
  config.clip.mode = "segments"
  # Mirrored, one class becomes another.
  config.clip.flip = False
  if scale.is_demo:
    config.made_films = 96
  else:
    config.made_films = 400
  rows = []
  for name, label in architectures.LABELS.items():
    for frames in FRAMES:
      for gap in GAPS:
        if scale.is_demo and frames > FRAMES[0] and gap < GAPS[-1]:
          continue
        own = {
          **architectures.settings(name, is_narrow=scale.is_narrow),
          "made_gap_seconds": gap,
          # Videos of other gaps are other videos; rows of one gap share them.
          "data_dir": f"{{workdir}}/videos_gap{gap:g}",
          "clip.frames": frames,
        }
        if scale.is_demo:
          own["epochs"] = _DEMO_EPOCHS[name]
        axes: dict[str, float | str] = {"architecture": label, "gap_seconds": gap, "frames": frames}
        words = f"{label}, gap {gap:g} s, {frames} frames"
        rows.append(Row(f"{name}_gap{gap:g}_frames{frames}", words, own, axes=axes))
  configured.use_study(
    config,
    "Long temporal dependency",
    "How far apart may two events be before a model can no longer tell their order?",
    rows,
    seeds=(0,) if scale.is_demo else (0, 1, 2),
    forms=("corrected",),
    at_once=scale.at_once,
    # At each gap and length, whether attention helps.
    asks=[
      (row.name, row.name.replace(architectures.HYBRID, architectures.CNN, 1))
      for row in rows
      if row.name.startswith(architectures.HYBRID)
    ],
  )
  return config.lock()
