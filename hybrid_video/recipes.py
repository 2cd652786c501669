"""Training recipes by name: the settings that belong together, for any model and data set.

In: a config and a name. Out: the config with that recipe's optimizer, schedule, length and crops.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from hybrid_video import errors
from hybrid_video.settings import SettingError

# The source study's hybrids: Adam with L2, a fifth of the rate every 10 epochs.
_STUDY: Mapping[str, Any] = {
  "optimizer.name": "adam",
  "optimizer.learning_rate": 1e-3,
  "optimizer.weight_decay": 1e-5,
  "optimizer.schedule": "step",
  "optimizer.step_epochs": 10.0,
  "optimizer.step_factor": 0.2,
  "epochs": 100.0,
  "batch_size": 8,
}
# Settings by their path in the config.
RECIPES: dict[str, Mapping[str, Any]] = {
  "study": _STUDY,
  # As the source study's hybrids were trained in fact: what reads the feature map never moved.
  "study_random_cross": {**_STUDY, "optimizer.freeze": ("attention/latents", "attention/cross")},
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
  # torchvision's R(2+1)D-18 on Kinetics, where the rate was 0.01 a GPU of 24 clips.
  "torchvision": {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule": "multi_step",
    "optimizer.milestone_epochs": (20.0, 30.0, 40.0),
    "optimizer.step_factor": 0.1,
    "optimizer.warmup_epochs": 10.0,
    "optimizer.warmup_start": 1e-3,
    "epochs": 45.0,
    "batch_size": 24,
  },
  # R(2+1)D-34 of IG-65M on HMDB51, as microsoft/computervision-recipes fine-tunes it: two batches of 8 clips
  # an update, and a tenth of the rate for the last third.
  "ig65m": {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 1e-4,
    "optimizer.momentum": 0.95,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule": "step",
    "optimizer.step_epochs": 32.0,
    "optimizer.step_factor": 0.1,
    "clip.crop_mode": "random_resized",
    "clip.area": (0.6, 1.0),
    "epochs": 48.0,
    "batch_size": 16,
    "micro_batches": 2,
  },
  # R(2+1)D + BERT, whose schedule is a plateau's there: AdamW on everything, 128 clips a step.
  "bert": {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-5,
    "optimizer.weight_decay": 1e-3,
    "optimizer.schedule": "cosine",
    "clip.crop_mode": "multi_scale",
    "epochs": 200.0,
    "batch_size": 128,
    "micro_batches": 16,
  },
  # VideoMAE's masked pretraining; only clips, steps and masks tell models apart.
  "masked_pretraining": {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1.5e-4,
    "optimizer.rate_for_batch": 256,
    "optimizer.beta2": 0.95,
    "optimizer.weight_decay": 0.05,
    "optimizer.no_decay": ("norms", "biases", "positions", "tokens"),
    "optimizer.schedule": "cosine",
    "optimizer.warmup_epochs": 40.0,
    "optimizer.warmup_reaches_rate": True,
    "optimizer.final_rate": 1e-5,
    "clip.crop_mode": "multi_scale",
    "clip.flip": False,
    "clip.repeats": 4,
    "epochs": 800.0,
    "batch_size": 256,
  },
  # VideoMAE's fine-tuning on UCF101: 5e-4 for 256 clips, and 1e-5 in the end.
  "videomae_fine_tuning": {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 5e-4,
    "optimizer.rate_for_batch": 256,
    "optimizer.weight_decay": 0.05,
    "optimizer.no_decay": ("norms", "biases", "positions", "tokens"),
    "optimizer.layer_decay": 0.7,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_epochs": 5.0,
    "optimizer.warmup_reaches_rate": True,
    "optimizer.final_rate": 1e-5,
    "augmentation.mixup": 0.8,
    "augmentation.cutmix": 1.0,
    "augmentation.label_smoothing": 0.1,
    "augmentation.randaugment_layers": 4,
    "augmentation.erasing": 0.25,
    "epochs": 100.0,
    "batch_size": 32,
  },
  # From a run on a larger set: a linear probe, then everything, at a tenth of the head's rate (Kumar et al. 2022,
  # arXiv:2202.10054: a random head would pull the features away before it has learnt to use them).
  "transfer": {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-3,
    "optimizer.part_rates.cnn": 0.1,
    "optimizer.part_rates.attention": 0.1,
    "optimizer.weight_decay": 0.05,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_epochs": 1.0,
    "optimizer.clip_norm": 1.0,
    "optimizer.head_first_epochs": 4.0,
    "clip.crop_mode": "multi_scale",
    "epochs": 24.0,
    "batch_size": 8,
  },
  # From scratch, for attention models: decoupled decay, warm-up, clipped gradients. Attention learns at
  # 0.3 of the CNN's rate; what other shares gave stands in docs/models.md.
  "scratch": {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 2e-3,
    "optimizer.part_rates.attention": 0.3,
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
