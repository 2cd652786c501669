"""Fine-tuning any model on any data set: UCF101, Kinetics-style lists, or a folder of own videos.

python main.py --config=configs/videos.py:folder --config.data_dir=DIR --workdir=RUN

The part after the colon is the data set: folder, kinetics, ucf101, hmdb51 or hmdb51_layout; a model
and a recipe may follow: configs/videos.py:ucf101,model=videomae_base,recipe=scratch. With
--config.init_from=r2plus1d_18/kinetics400 training starts from published weights. Learning rate and
crop scales are those usual for fine-tuning on small sets.
"""

import ml_collections

from hybrid_video import configuration, recipes


def get_config(options: str = "folder") -> ml_collections.ConfigDict:
  """The experiment on one data set.

  Raises:
    SettingError: there is no such model or recipe; the message names the nearest.
  """
  chosen = configuration.arguments(
    options,
    "dataset",
    {"dataset": "folder", "model": "r2plus1d_18", "recipe": "fine_tuning"},
  )
  config = configuration.default_config()
  config.dataset = chosen["dataset"]
  configuration.use_model(config, chosen["model"])
  recipes.apply(config, chosen["recipe"])
  return config.lock()
