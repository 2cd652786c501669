"""Training recipes by name: the settings that belong together, for any model and data set.

In: a config and a name. Out: the config with that recipe's optimizer, schedule, length and crops.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from hybrid_video import errors
from hybrid_video.settings import SettingError

# Settings by their path in the config.
RECIPES: dict[str, Mapping[str, Any]] = {
  # The source study's hybrids: Adam with L2, a fifth of the rate every 10 epochs.
  "study": {
    "optimizer.name": "adam",
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 1e-5,
    "optimizer.schedule": "step",
    "optimizer.step_epochs": 10.0,
    "optimizer.step_factor": 0.2,
    "epochs": 100.0,
    "batch_size": 8,
  },
  # The source study's baseline.
  "study_baseline": {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 1e-3,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-5,
    "optimizer.schedule": "step",
    "optimizer.step_epochs": 10.0,
    "optimizer.step_factor": 0.1,
    "epochs": 100.0,
    "batch_size": 8,
  },
  # What is usual for fine-tuning a pretrained CNN on a small set.
  "fine_tuning": {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 1e-3,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_epochs": 2.0,
    "clip.crop_mode": "multi_scale",
    "epochs": 48.0,
    "batch_size": 8,
  },
  # From scratch, for attention models: decoupled decay, warm-up, clipped gradients.
  "scratch": {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 2e-3,
    "optimizer.weight_decay": 0.05,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_epochs": 1.0,
    "optimizer.clip_norm": 1.0,
    "epochs": 25.0,
    "batch_size": 8,
  },
}


def apply(config: ml_collections.ConfigDict, name: str) -> None:
  """Sets a recipe's values in a config.

  Raises:
    SettingError: there is no such recipe; the message has the nearest.
  """
  if name not in RECIPES:
    raise SettingError(
      f"There is no recipe {name!r}.{errors.nearest(name, RECIPES)} Recipes: {', '.join(RECIPES)}."
    )
  with config.unlocked():
    config.update_from_flattened_dict(RECIPES[name])
