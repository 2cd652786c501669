"""VideoMAE's recipe: masked pretraining without labels, then fine-tuning. For VideoMAE and for the hybrid.

python main.py --config=configs/videomae.py:pretrain --config.dataset=folder --config.data_dir=DIR --workdir=runs/pretrained
python main.py --config=configs/videomae.py:finetune --config.data_dir=DIR --config.init_from=runs/pretrained --workdir=runs/finetuned

After the colon: pretrain, finetune, pretrain_demo or finetune_demo; then model=NAME, a classifier of models
whose pretraining has the name NAME_pretraining. `_demo` is narrow, on made videos, for two CPU cores. Without
`init_from`, `finetune` starts from scratch; with videomae_base/kinetics400, from published weights.

Published on HMDB51 (arXiv:2203.12602): 62.6 % pretrained on its own videos, 73.3 % on Kinetics-400.
Hours on HMDB51, estimated: pretraining, 800 epochs of 4 clips a video, 2.4 on one v5e-8 and 2 on one H100; fine-tuning
0.7 and 0.6. The v5e's are of --mode=plan --topology=v5e:2x4, the H100's from the 33 ms measured of 32 clips forward, by
multiply-accumulates.
"""

from typing import Any

import ml_collections

from hybrid_video import configuration, errors, narrow, recipes
from hybrid_video.settings import SettingError

STAGES = ("pretrain", "finetune", "pretrain_demo", "finetune_demo")


def get_config(options: str = "pretrain") -> ml_collections.ConfigDict:
  """A stage of the recipe, for a model.

  Raises:
    SettingError: there is no such stage or model; the message has the nearest.
  """
  chosen = configuration.arguments(options, "stage", {"stage": "pretrain", "model": ""})
  stage, _, demo = chosen["stage"].partition("_")
  if chosen["stage"] not in STAGES:
    raise SettingError(
      f"There is no stage {chosen['stage']!r}.{errors.nearest(chosen['stage'], STAGES)} Stages: "
      f"{', '.join(STAGES)}."
    )
  model = chosen["model"] or ("videomae_small" if demo else "videomae_base")
  config = configuration.default_config()
  if demo:
    narrow.made_videos(config, films=60)
    narrow.models(config)
    _finer(config)
  else:
    config.dataset = "hmdb51"
    config.clip.mode, config.clip.stride = "stride", 4
    if not model.startswith("hybrid"):
      config.stored.height, config.stored.width, config.clip.crop = 240, 0, 224
  name = f"{model}_pretraining" if stage == "pretrain" else model
  configuration.use_model(config, name, **config.presets.get(name, {}))
  if stage == "pretrain":
    _pretrain(config, bool(demo))
  else:
    _finetune(config, bool(demo))
  return config.lock()


def _finer(config: ml_collections.ConfigDict) -> None:
  """Presets of finer patches, of which small frames have enough; the hybrid is cut where its map is as fine."""
  own: dict[str, dict[str, Any]] = {
    "videomae_small": {"patch": (2, 8, 8)},
    "hybrid": {"cnn_blocks": 4},
    # Made backgrounds are flat and still: normalized, their patches are noise, and as they are, they hide what moves.
    "videomae_small_pretraining": {"patch": (2, 8, 8), "targets": "motion", "decoder_width": 96},
    "hybrid_pretraining": {
      "cnn_blocks": 4,
      "mask_patch": (2, 8, 8),
      "targets": "motion",
    },
  }
  for name, options in own.items():
    configuration.preset_model(config, name, **{**config.presets[name], **options})


def _pretrain(config: ml_collections.ConfigDict, demo: bool) -> None:
  recipes.apply(config, "masked_pretraining")
  config.evaluation.clips = 1
  if demo:
    # A step of the hybrid takes twice as long, and it needs half as many.
    config.epochs = 30.0 if config.model.name.startswith("hybrid") else 60.0
    config.batch_size = 16
    config.optimizer.learning_rate, config.optimizer.rate_for_batch = 1e-3, 0
    config.optimizer.warmup_epochs = 2.0
    config.clip.crop_mode, config.clip.repeats = "random", 2
    config.checkpoint_every_epochs = 10.0


def _finetune(config: ml_collections.ConfigDict, demo: bool) -> None:
  if demo:
    # Of few and small videos: MixUp and its like spare overfitting on large sets, and hide the small shapes.
    recipes.apply(config, "scratch")
    config.training_share, config.epochs = 0.1, 60.0
    config.optimizer.no_decay = recipes.RECIPES["videomae_fine_tuning"]["optimizer.no_decay"]
    config.optimizer.learning_rate = 1e-3
    config.optimizer.part_rates.attention = 1.0
    config.validation.train_videos = 0
    return
  recipes.apply(config, "videomae_fine_tuning")
  config.clip.crop_mode, config.clip.area, config.clip.repeats = "random_resized", (0.08, 1.0), 2
  config.evaluation.clips, config.evaluation.crops = 5, 3
