"""Transfer: trained on a larger set, then on few labels of another, beside from scratch.

python main.py --config=configs/studies/transfer.py:demo --workdir=runs/transfer

`demo` is narrow and for two CPU cores: made actions of the plain look, then a tenth of the training films of the
textured one. After the colon also hmdb51 (the default; its larger set is UCF101), ucf101 (Kinetics'
lists) or folder (another folder), and larger=DIR, the folder of the larger set; --config.data_dir is that of the
small one, of which all labels are used unless --config.training_share says otherwise.
"""

from typing import Any

import ml_collections

from hybrid_video import configuration, recipes
from hybrid_video.study import configured, scales
from hybrid_video.study.settings import Row

# The larger set of each scale, of which a model sees every label first.
LARGER = {"hmdb51": "ucf101", "ucf101": "kinetics", "folder": "folder", "demo": "made_actions"}
MODELS = {"hybrid": "hybrid, 1 cross + 1 self", "cnn": "R(2+1)D-18"}
_NAMES = {"hybrid": "hybrid", "cnn": "r2plus1d_18"}
SCRATCH, FINE_TUNED, HEAD_FIRST = "scratch", "fine_tuned", "head_first"
_WORDS = {
  SCRATCH: "from scratch",
  FINE_TUNED: "fine-tuned, all at once",
  HEAD_FIRST: "fine-tuned, head first",
}


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The study at a scale.

  Raises:
    SettingError: there is no such scale, width or recipe; the message names the nearest.
  """
  config, scale = scales.base(options, larger="{workdir}/large")
  if scale.is_demo:
    # A run takes two to three minutes on one core.
    config.made_films, config.made_look, config.training_share = 80, "textured", 0.1
    config.epochs, config.validation.every_epochs = 40.0, 5.0
    configuration.preset_model(config, "hybrid", **{**config.presets["hybrid"], "cnn_blocks": 4})
  rows, asks = [], []
  for model, label in MODELS.items():
    own = {"model.name": _NAMES[model]}
    larger = Row(
      f"{model}_larger",
      f"{label}, the larger set itself",
      own | _larger(scale),
      axes={"model": label, "start": "the larger set itself"},
      forms=("corrected",),
    )
    rows.append(larger)
    for start in (SCRATCH, FINE_TUNED, *((HEAD_FIRST,) if model == "hybrid" else ())):
      row = Row(
        f"{model}_{start}",
        f"{label}, {_WORDS[start]}",
        own | ({} if start == SCRATCH else _transfer(scale, start)),
        axes={"model": label, "start": _WORDS[start]},
        forms=("corrected",),
        starts_from="" if start == SCRATCH else larger.name,
      )
      rows.append(row)
      if start != SCRATCH:
        asks.append((row.name, f"{model}_{SCRATCH}"))
  asks.append((f"hybrid_{HEAD_FIRST}", f"hybrid_{FINE_TUNED}"))
  configured.use_study(
    config,
    "From a larger set to a small one",
    "What is training on another, larger set worth where few videos have a label?",
    rows,
    forms=("corrected",),
    at_once=scale.at_once,
    asks=asks,
  )
  return config.lock()


def _larger(scale: scales.Scale) -> dict[str, Any]:
  """The larger set, every label of it."""
  if scale.is_demo:
    return {
      "made_look": "plain",
      "made_seed": 1,
      "made_films": 64,
      "data_dir": "{workdir}/videos_plain",
      "training_share": 1.0,
      "epochs": 16.0,
    }
  return {
    "dataset": LARGER[scale.name],
    "data_dir": scale.own["larger"],
    "training_share": 1.0,
  }


def _transfer(scale: scales.Scale, start: str) -> dict[str, Any]:
  """The recipe of a transfer, at the study's length and crops."""
  recipe = recipes.RECIPES["transfer"]
  settings = {
    path: value
    for path, value in recipe.items()
    if path.startswith("optimizer.") and path != "optimizer.head_first_epochs"
  }
  if scale.is_demo:
    settings["optimizer.learning_rate"] = 2e-3
  if start == HEAD_FIRST:
    settings["optimizer.head_first_epochs"] = 8.0 if scale.is_demo else 16.0
  return settings
