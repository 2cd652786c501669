"""Label efficiency: pretrained without labels on all training videos, then fine-tuned with a share of the labels.

python main.py --config=configs/studies/label_efficiency.py:demo --workdir=runs/label_efficiency

Each model is pretrained once a seed, and fine-tuned beside the same model from scratch. `demo` is narrow, on made
videos. After the colon also hmdb51 (the default), ucf101 or folder, and more_videos=DIR,
a folder of videos that are pretrained on too.
"""

from typing import Any

import ml_collections

from configs import videomae
from hybrid_video.settings import flat
from hybrid_video.study import configured, scales
from hybrid_video.study.settings import Row

SHARES = (0.1, 0.25, 1.0)
# Of the fine-tuning, narrow: fewer videos are shown more often.
_EPOCHS = {0.1: 60.0, 0.25: 40.0, 1.0: 20.0}
# The study's own, whatever a stage says.
_DATA = ("dataset", "data_dir", "records_dir", "made_films", "training_share")
LABELS = {"videomae": "VideoMAE", "hybrid": "hybrid, 1 cross + 1 self"}


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The study at a scale.

  Raises:
    SettingError: there is no such scale, width or recipe; the message names the nearest.
  """
  _, scale = scales.base(options, more_videos="")
  stage = "_demo" if scale.is_narrow else ""
  names = {"videomae": "videomae_small" if scale.is_narrow else "videomae_base", "hybrid": "hybrid"}
  config = videomae.get_config(f"finetune{stage}")
  with config.unlocked():
    if not scale.is_demo:
      config.dataset, config.records_dir = scale.name, "{workdir}/records"
    config.training_share = 1.0
  rows, asks = [], []
  for name, label in LABELS.items():
    of_pretraining = _settings(f"pretrain{stage},model={names[name]}", config)
    if more_videos := scale.own["more_videos"]:
      of_pretraining |= {"more_videos": more_videos, "records_dir": "{workdir}/records_pretraining"}
    before = Row(
      f"{name}_pretraining", f"{label}, pretraining", of_pretraining, forms=("corrected",)
    )
    rows.append(before)
    own = _settings(f"finetune{stage},model={names[name]}", config)
    for share in SHARES:
      own["training_share"] = share
      if scale.is_narrow:
        own["epochs"] = _EPOCHS[share]
      for start, first in (("scratch", ""), ("pretrained", before.name)):
        row = Row(
          f"{name}_{start}_share{100 * share:g}",
          f"{label}, {start}, {100 * share:g} % labelled",
          dict(own),
          axes={"model": label, "start": start, "training_share": 100 * share},
          forms=("corrected",),
          starts_from=first,
        )
        rows.append(row)
      asks.append((rows[-1].name, rows[-2].name))
  configured.use_study(
    config,
    "Label efficiency",
    "What is pretraining without labels worth where few videos have one?",
    rows,
    forms=("corrected",),
    at_once=scale.at_once,
    asks=asks,
  )
  return config.lock()


def _settings(options: str, base: ml_collections.ConfigDict) -> dict[str, Any]:
  """What a stage of the recipe sets otherwise than the study's base, by path."""
  of_stage, common = (flat(of.to_dict()) for of in (videomae.get_config(options), base))
  return {
    path: value
    for path, value in of_stage.items()
    if path in common and value != common[path] and path not in _DATA
  }
