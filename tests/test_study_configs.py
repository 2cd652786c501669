"""The shipped studies: every row can be trained, published numbers and exact parameters are the source's."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import PARAMETERS

from configs import hmdb51
from hybrid_video import configuration, experiment, models
from hybrid_video.models import perceiver
from hybrid_video.settings import differing as differing_settings
from hybrid_video.settings import flat
from hybrid_video.study import configured, scales, source

NAMES = (
  "attention_depth",
  "cnn_depth",
  "cross_and_self",
  "methods",
  "temporal_dependency",
  "inductive_bias",
  "computation",
  "attention_recipe",
  "label_efficiency",
  "clip_length",
  "transfer",
)
# What the data of some studies need beside what all have.
NEEDED = {
  "temporal_dependency": "made_gap_seconds",
  "clip_length": "made_gap_seconds",
  "inductive_bias": "training_share",
}


def config_of(name, options=""):
  if (setting := NEEDED.get(name)) and setting not in configuration.default_config():
    pytest.skip(f"there is no setting {setting}")
  return importlib.import_module(f"configs.studies.{name}").get_config(options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", ["", "ucf101", "demo", "folder,width=narrow"])
def test_every_run_of_every_study_is_an_experiment_and_its_model_fits(name, options):
  config = config_of(name, options)
  # A flag holds for all rows.
  config.optimizer.eps = 1e-7
  study = configured.study_of(config)
  assert len({run.folder for run in study.runs}) == len(study.runs)
  assert {run.experiment.optimizer.eps for run in study.runs} == {1e-7}
  # Published widths take long to draw, and `test_models` counts them.
  for run in study.runs[: len(study.rows)] if options == "demo" else ():
    of = run.experiment
    model = jax.eval_shape(
      lambda of=of: models.split(
        models.create(of.model.name, num_classes=8, dtype=of.model.dtype, **of.model_options)
      )[1]
    )
    assert models.parameter_counts(model)["total"] > 0


@pytest.mark.parametrize("name", ["attention_depth", "cnn_depth", "cross_and_self"])
def test_the_sources_tables_have_its_models_and_numbers(name):
  study = configured.study_of(config_of(name))
  for run in study.runs:
    row = run.row.name.removesuffix("_frozen")
    single = experiment.from_config(hmdb51.get_config(row))
    model, expected = run.experiment.model.to_json(), single.model.to_json()
    if run.form == "as_published" and model["name"] == "hybrid":
      assert model.pop("latent_std") == 1.0 != expected.pop("latent_std")
    assert (model, run.experiment.epochs) == (expected, single.epochs)
    trained = {**run.experiment.optimizer.to_json(), "freeze": []}
    assert trained == single.optimizer.to_json()
  rows = {run.row.name.removesuffix("_frozen") for run in study.runs}
  assert rows <= PARAMETERS.keys() == source.PUBLISHED.keys()


def test_what_training_the_cross_attention_is_worth_is_a_row_that_differs_in_nothing_else():
  config = config_of("attention_depth", "demo")
  frozen = [run for run in configured.study_of(config).runs if run.row.name.endswith("_frozen")]
  assert {run.form for run in frozen} == {"corrected"}
  trained = [
    run
    for run in configured.study_of(config).runs
    if run.row.name == "cnn8_cross1_self1" and run.form == "corrected"
  ]
  for one, other in zip(frozen, trained, strict=True):
    ours, theirs = one.experiment.to_json(), other.experiment.to_json()
    assert ours["optimizer"].pop("freeze") == ["attention/latents", "attention/cross"]
    assert theirs["optimizer"].pop("freeze") == []
    assert ours == theirs
  config.study.forms = ("as_published",)
  config.study.rows = ("cnn8_cross1_self1_frozen",)
  with pytest.raises(ValueError, match="no row that is chosen has one of these forms"):
    configured.study_of(config)


@pytest.mark.parametrize("options", ["demo", "", "folder"])
def test_a_transfer_starts_from_another_set_and_differs_from_scratch_in_nothing_it_is_tested_on(
  options,
):
  study = configured.study_of(config_of("transfer", options))
  by_row = {run.row.name: run for run in study.runs if run.seed == 0}
  for model in ("hybrid", "cnn"):
    larger, scratch = by_row[f"{model}_larger"], by_row[f"{model}_scratch"]
    tuned = by_row[f"{model}_fine_tuned"]
    assert tuned.experiment.init_from == f"{{workdir}}/{larger.folder}"
    assert larger.experiment.init_from == scratch.experiment.init_from == ""
    assert larger.experiment.model == scratch.experiment.model == tuned.experiment.model
    assert larger.experiment.training_share == 1 and larger.experiment.data_dir.startswith(
      "{workdir}"
    )
    ours, theirs = (flat(run.experiment.to_json()) for run in (tuned, scratch))
    differing = {path.partition(".")[0] for path, _, _ in differing_settings(ours, theirs)}
    assert differing == {"init_from", "optimizer"}
  head_first = by_row["hybrid_head_first"].experiment.optimizer
  assert 0 < head_first.head_first_epochs < by_row["hybrid_head_first"].experiment.epochs
  if options == "demo":
    looks = {run.row.name: run.experiment.made_look for run in study.runs}
    assert looks["hybrid_larger"] == "plain" and looks["hybrid_fine_tuned"] == "textured"
    assert by_row["cnn_scratch"].experiment.training_share == 0.1
  assert ("hybrid_fine_tuned", "hybrid_scratch") in study.asks


def test_published_numbers_are_the_sources():
  # Loss of training, loss and accuracy of the list that chose the epoch.
  expected = {
    "baseline": (0.5385, 1.118, 0.7270),
    "cnn8_cross1": (0.2096, 1.368, 0.7047),
    "cnn8_cross1_self1": (0.1199, 1.271, 0.7034),
    "cnn4_cross2_self12": (2.715, 3.22, 0.2815),
  }
  for name, numbers in expected.items():
    row = source.row(name, own_recipe=True)
    assert tuple(row.published[key] for key in ("train_loss", "loss", "video_top1")) == numbers
    assert "HMDB51 split 1" in row.source


def test_what_stands_after_the_colon_is_checked():
  for text, message in (("dmeo", "Did you mean demo"), ("width=wide", "published or narrow")):
    with pytest.raises(ValueError, match=message):
      scales.base(text)


def test_without_cnn_blocks_the_tokens_are_patches_of_pixels():
  options = {"width": 16, "latents": 4, "self_heads": 2, "head_dim": 8, "self_blocks": 2}
  model = models.create("hybrid", num_classes=3, cnn_blocks=0, patch=(2, 4, 8), **options)
  model.eval()
  rng = np.random.default_rng(0)
  clips = rng.standard_normal((2, 4, 8, 16, 3)).astype(np.float32)
  # A patch at a time, as a loop takes them: frames, rows, columns, channels.
  tokens = [
    [
      clips[b, t : t + 2, y : y + 4, x : x + 8].ravel()
      for t in (0, 2)
      for y in (0, 4)
      for x in (0, 8)
    ]
    for b in range(2)
  ]
  positions = jnp.asarray(perceiver.fourier_positions((2, 2, 2), 6, 10.0))
  expected = model.classify(model.attention.attend(jnp.asarray(np.array(tokens)), positions))
  np.testing.assert_allclose(model(jnp.asarray(clips)), expected, rtol=1e-5, atol=1e-6)
  params = models.split(model)[1]
  assert models.parameter_counts(params)["cnn"] == 0
  # Latents, tokens of 192 values and 39 positions: 192 + 39 channels in the norm and keys and values.
  assert params["attention"]["cross"]["0"]["attention"]["to_kv"]["kernel"].shape == (231, 16)
  with pytest.raises(models.ModelError, match="not a multiple of its patches"):
    model(jnp.zeros((1, 3, 8, 16, 3)))
