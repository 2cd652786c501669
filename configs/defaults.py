"""Every setting there is, with its default.

python main.py --config=configs/defaults.py --config.data_dir=DIR --workdir=RUN

The settings, their meanings and ranges stand in the classes of `hybrid_video/experiment.py`; this
config is made from them. An experiment is a file beside this one: it takes these, changes some, and
locks the result.
"""

import ml_collections

from hybrid_video import configuration


def get_config() -> ml_collections.ConfigDict:
  """The defaults: HMDB51, split 1, the source study's clips, R(2+1)D-18."""
  return configuration.default_config().lock()
