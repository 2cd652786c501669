"""Every setting there is, with the value that most experiments share.

An experiment is a file beside this one: it takes these, changes some, and locks the result.
"""

import typing
from typing import Any

import ml_collections
from ml_collections import config_dict

from hybrid_video import models


def model(name: str, **options: Any) -> ml_collections.ConfigDict:
  """All settings of a model: its name, dtype, and every option of its class.

  Raises:
    ValueError: there is no such model or option; the message has the nearest names.
  """
  known = models.options(name)
  for option in options:
    if option not in known:
      raise ValueError(
        f"The model {name!r} has no option {option!r}.{models.nearest(option, list(known))}"
      )
  config = ml_collections.ConfigDict({"name": name, "dtype": "float32"})
  for option, parameter in known.items():
    value = options.get(option, parameter.default)
    if value is None:
      # An option that may be left open: it keeps its type for the command line.
      value = config_dict.placeholder(typing.get_args(parameter.annotation)[0])
    config[option] = value
  return config


def get_config() -> ml_collections.ConfigDict:
  """The defaults: HMDB51, split 1, the source study's clips, Kinetics' pixel statistics."""
  config = ml_collections.ConfigDict()
  config.seed = 0

  # Data. "{workdir}" in a path stands for the work directory.
  config.dataset = "hmdb51"  # hmdb51 | hmdb51_layout | ucf101 | kinetics | folder | made_actions
  config.data_dir = ""  # folder of the videos and their lists, or of the archives that hold them
  config.download = False  # hmdb51, ucf101: fetch the official archives into data_dir first
  config.mirrors = ""  # a JSON file of more places to fetch them from
  config.records_dir = ""  # "" is ~/tensorflow_datasets
  config.allow_missing = False  # go on although listed videos are missing or broken, any of them
  config.missing_allowed = ()  # names of videos that may be missing or broken
  config.made_films = 0  # made_actions: how many films to make
  config.test_share = 0.2  # folder: share of the groups held out for the test
  config.split = 1  # official split, from 1
  config.validation_share = 0.0  # share of the training list's groups carved out for validation
  config.data_service = ""  # address of a tf.data service dispatcher; "" is this process
  # width 0 keeps the aspect ratio, with height the short side's.
  config.stored = ml_collections.ConfigDict({"height": 128, "width": 171, "jpeg_quality": 75})
  config.clip = ml_collections.ConfigDict(
    {
      "frames": 16,
      "mode": "seconds",  # seconds | stride | segments, see hybrid_video/clips.py
      "window_seconds": 2.0,
      "stride": 1,  # mode stride: positions from frame to frame
      "rate": 0.0,  # positions a second; 0 is the video's own rate
      "short": "fit",  # fit | loop | last: what a video shorter than the window does
      "crop": 112,
      "crop_mode": "random",  # random | multi_scale | random_resized
      "scales": (1.0, 0.875, 0.75, 0.66),
      "area": (0.5, 1.0),
      "aspect": (3 / 4, 4 / 3),
      "flip": True,
      "eval_clips": 0,  # windows a video; 0 is the fewest that cover it
      "eval_crops": 1,  # 1 | 3
    }
  )
  # On the device, the same for all frames of a clip, on top of crop and flip.
  config.augmentation = ml_collections.ConfigDict(
    {
      "label_smoothing": 0.0,
      "mixup": 0.0,  # alpha; 0 is off
      "cutmix": 0.0,  # alpha; 0 is off
      "mix_probability": 1.0,
      "mix_switch": 0.5,  # CutMix's share where both are on
      "brightness": 0.0,
      "contrast": 0.0,
      "saturation": 0.0,
      "hue": 0.0,  # at most 0.5
      "jitter_probability": 1.0,
      "randaugment_layers": 0,  # 0 is off
      "randaugment_magnitude": 7.0,  # 0 to 10
      "randaugment_std": 0.5,
      "randaugment_probability": 0.5,
      "erasing": 0.0,  # probability
      "erasing_min_area": 0.02,
      "erasing_max_area": 1 / 3,
      "erasing_aspect": 0.3,  # to its inverse
      "erasing_noise": True,  # False is the mean colour
    }
  )
  config.mean = (0.43216, 0.394666, 0.37645)
  config.std = (0.22803, 0.22145, 0.216989)

  # Model: `name` and the options of its class, see hybrid_video/models.
  config.model = model("r2plus1d_18")

  # Weights to start from: a known name (hybrid_video/weights/sources.py), a URL or a file.
  config.init_from = ""
  config.replace_head = True  # a head of another number of classes starts fresh

  # Training.
  config.epochs = 100.0
  config.batch_size = 8  # over all devices
  config.eval_batch_size = 16
  config.optimizer = ml_collections.ConfigDict(
    {
      "name": "adam",  # adam | adamw | sgd
      "learning_rate": 1e-3,
      "weight_decay": 0.0,
      "momentum": 0.9,
      "schedule": "cosine",  # constant | cosine | step
      "warmup_epochs": 0.0,
      "step_epochs": 10.0,
      "step_factor": 0.1,
      "clip_norm": 0.0,
      "freeze": (),  # parts that are not trained, such as ("cnn",) or ("cnn/stem", "cnn/layer1")
    }
  )
  config.log_every_steps = 50
  config.checkpoint_every_epochs = 1.0
  config.keep_checkpoints = 2
  config.profile = False

  # Evaluation, after the last step.
  config.evaluate_shuffled = False  # once more with each clip's frames in random order
  config.evaluate_train = False  # on the training list too
  return config
