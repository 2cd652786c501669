"""Experiments: made from configs in one place, checked before a file is touched, kept as JSON."""

import functools
import json
import operator
import pathlib
import subprocess
import sys

import pytest

from configs import defaults, demo, hmdb51, hmdb51_small, videomae, videos
from hybrid_video import configuration, datasets, experiment, models, recipes
from hybrid_video.experiment import Experiment
from hybrid_video.settings import SettingError

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = {
  "defaults": defaults.get_config,
  "demo": demo.get_config,
  "hmdb51": hmdb51.get_config,
  "hmdb51_small": hmdb51_small.get_config,
  "videos": videos.get_config,
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("model", models.MODELS)
def test_every_model_is_one_flag_with_every_config(config, model):
  chosen = CONFIGS[config]()
  chosen.model.name = model
  made = experiment.from_config(chosen)
  assert made.model.name == model
  # A model that follows its clips fits the config's.
  options = made.model_options
  if model.startswith("videomae"):
    assert (options["frames"], options["image_size"]) == (made.clip.frames, made.clip.crop)
  if model.endswith("bert"):
    assert options["frames"] == made.clip.frames


@pytest.mark.parametrize("config", CONFIGS)
def test_an_experiment_comes_back_from_its_json(config):
  made = experiment.from_config(CONFIGS[config]())
  text = json.dumps(made.to_json(), allow_nan=False)
  back = Experiment.from_json(json.loads(text))
  assert back.to_json() == made.to_json()
  assert (back.clip, back.evaluation, back.optimizer) == (
    made.clip,
    made.evaluation,
    made.optimizer,
  )
  assert back.model.options == made.model.options


@pytest.mark.parametrize(("before", "now"), [(False, "none"), (True, "blocks")])
def test_rematerialization_was_a_yes_or_no_once(before, now):
  values = experiment.from_config(CONFIGS["demo"]()).to_json()
  values["model"]["remat"] = before
  assert Experiment.from_json(values).model.options["remat"] == now


def test_the_defaults_are_those_of_the_classes():
  made = experiment.from_config(defaults.get_config())
  assert made.to_json() == Experiment().to_json()
  assert tuple(datasets.READERS) == experiment.DATASETS


def test_settings_keep_their_types_on_the_command_line():
  config = defaults.get_config()
  for name, value in (("epochs", "many"), ("split", 1.5), ("allow_missing", "yes")):
    with pytest.raises((TypeError, ValueError)):
      config[name] = value


BAD_VALUES = [
  ("log_every_steps", 0, "expected a whole number of 1 or more"),
  ("seed", -1, "expected a whole number of 0 or more"),
  ("std", (0.2, 0.0, 0.2), "std[1] is 0: expected a finite number above 0"),
  ("mean", (0.4, 0.4, float("nan")), "mean[2] is nan: expected a finite number"),
  ("mean", (0.4, 0.4), "expected 3 values"),
  ("optimizer.learning_rate", float("nan"), "expected a finite number of 0 or more"),
  ("optimizer.name", "adan", "Did you mean"),
  ("optimizer.schedule", "linear", "expected one of constant, cosine, multi_step, step"),
  ("optimizer.momentum", 1.0, "below 1"),
  ("clip.frames", 0, "1 or more"),
  ("clip.area", (0.9, 0.1), "ascending"),
  ("evaluation.crops", 2, "expected 1 or 3"),
  ("stored.jpeg_quality", 100, "up to 95"),
  ("augmentation.hue", 0.7, "up to 0.5"),
  ("validation_share", 1.0, "below 1"),
  ("test_share", 0.0, "above 0"),
  ("training_share", 0.0, "above 0"),
  ("folds", 5, "expected 2 or more, and the data set folder"),
  ("batch_size", 0, "1 or more"),
  ("epochs", 0.0, "above 0"),
  ("checkpoint_every_epochs", 0.0, "above 0"),
  ("keep_checkpoints", 0, "1 or more"),
  ("dataset", "hmdb52", "Did you mean hmdb51"),
  ("split", 0, "1 or more"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD_VALUES)
def test_a_value_out_of_range_is_named_by_its_full_path(path, value, message):
  config = defaults.get_config()
  group, _, name = path.rpartition(".")
  target = config[group] if group else config
  with config.unlocked():
    target[name] = value
  with pytest.raises(SettingError) as error:
    experiment.from_config(config)
  assert str(error.value).startswith((f"--config.{path} is ", f"--config.{path}["))
  assert message in str(error.value)


def test_an_option_of_another_model_is_refused_with_the_right_ones():
  config = demo.get_config()
  config.model.name = "r2plus1d_18"
  config.model.latents = 8
  with pytest.raises(SettingError) as error:
    experiment.from_config(config)
  message = str(error.value)
  assert message.startswith("--config.model.latents") and "It is one of hybrid" in message
  assert "blocks, width, dropout" in message
  config.model.latents = None
  assert experiment.from_config(config).model.options["width"] == 8
  config.model.name = "hybird"
  with pytest.raises(SettingError, match=r"--config\.model\.name is 'hybird'.*Did you mean hybrid"):
    experiment.from_config(config)


def test_what_is_chosen_comes_before_a_preset_and_that_before_the_default():
  config = demo.get_config()
  options = experiment.from_config(config).model.options
  assert (options["latents"], options["bands"]) == (16, 6)
  config.model.latents = 3
  assert experiment.from_config(config).model.options["latents"] == 3
  assert experiment.from_config(demo.get_config()).model.options["latents"] == 16
  with pytest.raises(SettingError, match="latents"):
    config.model.name = "mc3_18"
    experiment.from_config(config)


def test_an_option_of_another_type_is_refused():
  with pytest.raises(SettingError, match=r"--config\.model\.latents is 'x': expected int"):
    experiment.ModelSettings.resolve({"name": "hybrid", "latents": "x"}, {})
  with pytest.raises(SettingError, match=r"--config\.model\.dtype is 'float16'"):
    experiment.ModelSettings.resolve({"name": "hybrid", "dtype": "float16"}, {})
  chosen = experiment.ModelSettings.resolve({"name": "hybrid", "max_freq": (4, 8, 8)}, {})
  assert chosen.options["max_freq"] == (4, 8, 8)


def test_evaluation_follows_the_training_clip_unless_it_is_set():
  config = defaults.get_config()
  config.clip.frames, config.clip.crop = 32, 96
  made = experiment.from_config(config)
  assert (made.evaluation.frames, made.evaluation.crop) == (32, 96)
  config.evaluation.frames = 8
  config.evaluation.mode = "segments"
  config.evaluation.clips = 10
  made = experiment.from_config(config)
  assert (made.evaluation.frames, made.evaluation.crop, made.clip.frames) == (8, 96, 32)
  assert (made.evaluation.mode, made.clip.mode) == ("segments", "seconds")
  assert made.evaluation.describe_views().startswith(
    "10 evenly spaced windows: one frame of each of 8"
  )


def test_pixel_statistics_are_the_models_unless_they_are_set():
  config = defaults.get_config()
  assert experiment.from_config(config).mean == (0.43216, 0.394666, 0.37645)
  config.model.name = "videomae_base"
  assert experiment.from_config(config).mean == (0.485, 0.456, 0.406)
  config.mean = (0.45, 0.45, 0.45)
  made = experiment.from_config(config)
  assert made.mean == (0.45, 0.45, 0.45) and made.std == (0.229, 0.224, 0.225)


def test_rows_models_data_sets_and_recipes_are_chosen_after_the_colon():
  made = experiment.from_config(videos.get_config("ucf101,model=hybrid,recipe=study"))
  assert (made.dataset, made.model.name, made.optimizer.name) == ("ucf101", "hybrid", "adam")
  made = experiment.from_config(hmdb51.get_config("cnn8_self1,recipe=fine_tuning"))
  assert made.model.options["cross_blocks"] == 0 and made.optimizer.name == "sgd"
  assert made.clip.crop_mode == "multi_scale"
  assert experiment.from_config(demo.get_config("study")).optimizer.schedule == "step"
  for get_config, text, message in (
    (videos.get_config, "ucf101,recipe=studdy", "Did you mean study"),
    (videos.get_config, "ucf101,modle=hybrid", "Did you mean model"),
    (videos.get_config, "ucf101,model=hybird", "Did you mean hybrid"),
    (hmdb51.get_config, "cnn8_cros1_self6", "Did you mean cnn8_cross1_self6"),
  ):
    with pytest.raises(SettingError, match=message):
      get_config(text)


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_every_recipe_makes_an_experiment(recipe):
  config = defaults.get_config()
  recipes.apply(config, recipe)
  assert config.is_locked
  if config.optimizer.head_first_epochs:
    config.init_from = "runs/large"
  made = experiment.from_config(config).to_json()
  for path, value in recipes.RECIPES[recipe].items():
    stored = functools.reduce(operator.getitem, path.split("."), made)
    assert (tuple(stored) if isinstance(value, tuple) else stored) == value


def test_decoding_processes_start_without_jax_or_tensorflow():
  code = (
    "import sys, hybrid_video.command, hybrid_video.decoding.worker_pool\n"
    "print([m for m in ('jax', 'flax', 'tensorflow', 'tensorflow_datasets') if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"


def test_a_model_without_classes_is_validated_by_its_loss():
  config = configuration.default_config()
  config.model.name = "videomae_small_pretraining"
  config.validation.metric = "loss"
  assert experiment.from_config(config).validation.metric_of("pretraining") == "loss"
  config.validation.metric = "video_top1"
  with pytest.raises(SettingError, match=r"validation\.metric is 'video_top1'.*no classes"):
    experiment.from_config(config)


@pytest.mark.parametrize(
  ("options", "given", "message"),
  [
    ("pretrain", {"model.mask_ratio": 1.0}, r"model\.mask_ratio is 1\..*14 x 14 .* to below 1"),
    ("pretrain", {"model.mask_ratio": 0.004}, r"mask_ratio is 0\.004\..*from 0\.0051"),
    ("pretrain,model=hybrid", {"model.mask_ratio": 0.0}, r"mask_ratio is 0\..*7 x 7 cells"),
    ("pretrain", {"clip.frames": 5}, r"--config\.clip\.frames is 5 .*2 frames: .* to 4 or 6"),
    ("pretrain,model=hybrid", {"clip.frames": 1}, r"clip\.frames is 1 .* to 2, or a multiple"),
    (
      "finetune",
      {"clip.crop": 100},
      r"--config\.clip\.crop is 100, which videomae_base .*96 or 112",
    ),
    ("finetune", {"evaluation.frames": 9}, r"--config\.evaluation\.frames is 9 .* to 8 or 10"),
    ("pretrain", {"evaluation.frames": 8}, r"are \(8, 224\), those of training \(16, 224\)"),
  ],
)
def test_clips_and_masks_that_a_model_cannot_take_are_refused_before_data_are_read(
  options, given, message
):
  config = videomae.get_config(options)
  config.update_from_flattened_dict(given)
  with pytest.raises(SettingError, match=message):
    experiment.from_config(config)


def test_a_classifier_is_tested_on_clips_of_other_lengths_than_it_was_trained_on():
  config = videomae.get_config("finetune")
  config.evaluation.frames = 32
  assert experiment.from_config(config).evaluation.frames == 32
  hybrid = videomae.get_config("finetune,model=hybrid")
  hybrid.clip.frames, hybrid.evaluation.crop = 5, 100
  assert experiment.from_config(hybrid).clip.frames == 5
