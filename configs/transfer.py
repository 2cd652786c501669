"""From a larger set to a small one: the head alone first (a linear probe), then everything at a smaller rate.

python main.py --config=configs/transfer.py:hmdb51 --config.init_from=runs/ucf101 --config.data_dir=DIR --workdir=runs/hmdb51

After the colon: hmdb51 (the default), ucf101, kinetics, folder or made_actions. `init_from` is a work directory,
an exported file, or published weights such as r2plus1d_18/kinetics400; the model and its options are those of it.
Weights that do not say theirs need model=NAME as well: configs/transfer.py:folder,model=videomae_base.
Hours of R(2+1)D-18 on HMDB51, estimated: 0.03 of training on one v5e-8 or one H100, so that reading the videos for the
first time takes longest. Published from Kinetics: 74.5 %, mean of the three splits (arXiv:1711.11248).
made_actions is narrow, for two CPU cores: the textured look, of whose training films a tenth is labelled.

UCF101, then HMDB51:
python main.py --config=configs/videos.py:ucf101,recipe=scratch --config.data_dir=UCF101 --workdir=runs/ucf101 && python main.py --config=configs/transfer.py:hmdb51 --config.init_from=runs/ucf101 --config.data_dir=HMDB51 --workdir=runs/hmdb51

Kinetics from its lists, then HMDB51:
python main.py --config=configs/kinetics.py --config.data_dir=KINETICS --workdir=runs/kinetics && python main.py --config=configs/transfer.py:hmdb51 --config.init_from=runs/kinetics --config.data_dir=HMDB51 --workdir=runs/hmdb51

Made videos, then others, on two CPU cores:
python main.py --config=configs/demo.py --workdir=runs/plain && python main.py --config=configs/transfer.py:made_actions --config.init_from=runs/plain --workdir=runs/textured

An own folder, then another:
python main.py --config=configs/videos.py:folder,recipe=scratch --config.data_dir=LARGE --workdir=runs/large && python main.py --config=configs/transfer.py:folder --config.init_from=runs/large --config.data_dir=SMALL --workdir=runs/small
"""

import ml_collections

from hybrid_video import configuration, errors, experiment, narrow, recipes
from hybrid_video.settings import SettingError

DATASETS = ("hmdb51", "ucf101", "kinetics", "folder", "made_actions")


def get_config(options: str = "") -> ml_collections.ConfigDict:
  """The second training of a transfer, on one data set.

  Raises:
    SettingError: there is no such data set or model; the message names the nearest.
  """
  chosen = configuration.arguments(options, "dataset", {"dataset": "hmdb51", "model": ""})
  dataset = chosen["dataset"]
  if dataset not in DATASETS:
    raise SettingError(
      f"There is no data set {dataset!r} to transfer to.{errors.nearest(dataset, DATASETS)} Data sets: "
      f"{', '.join(DATASETS)}."
    )
  config = configuration.default_config()
  config.dataset = dataset
  recipes.apply(config, "transfer")
  if dataset == "made_actions":
    _made(config)
  # "" is that of `init_from`.
  config.model.name = ""
  if model := chosen["model"]:
    configuration.use_model(config, model, **config.presets.get(model, {}))
  return config.lock()


def _made(config: ml_collections.ConfigDict) -> None:
  """The textured look, with few labels: many short epochs."""
  narrow.made_videos(config, films=100)
  narrow.models(config)
  # The demo's films have another seed: their motion is not to come again.
  config.made_look, config.made_seed, config.training_share = "textured", 1, 0.1
  # Other crops than the whole would hide the small shapes.
  config.clip.crop_mode = experiment.Experiment().clip.crop_mode
  config.epochs, config.optimizer.head_first_epochs = 40.0, 8.0
  config.optimizer.learning_rate = 2e-3
  config.evaluate_shuffled = True
