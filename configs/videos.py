"""Fine-tuning R(2+1)D-18 on any data set: UCF101, Kinetics-style lists, or a folder of own videos.

python main.py --config=configs/videos.py:folder --config.data_dir=DIR --workdir=RUN

The part after the colon is the data set: folder, kinetics, ucf101, hmdb51 or hmdb51_layout. With
--config.init_from=r2plus1d_18/kinetics400 it starts from published weights. Learning rate and crop
scales are those usual for fine-tuning on small sets.
"""

import ml_collections

from configs import defaults
from hybrid_video import datasets


def get_config(dataset: str = "folder") -> ml_collections.ConfigDict:
  """The experiment on one data set.

  Raises:
    ValueError: there is no such data set; the message names the nearest.
  """
  datasets.check_name(dataset)
  config = defaults.get_config()
  config.dataset = dataset
  config.model = defaults.model("r2plus1d_18")
  config.epochs = 48.0
  config.optimizer.name = "sgd"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 1e-4
  config.optimizer.warmup_epochs = 2.0
  config.clip.crop_mode = "multi_scale"
  return config.lock()
