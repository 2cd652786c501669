"""Masked pretraining shares the loop, the step and the checkpoint of classification."""

import json

from conftest import run_training, small_demo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video import experiment, reporting, sharding
from hybrid_video.models import masking
from hybrid_video.models.model_error import ModelError
from hybrid_video.report import writers
from hybrid_video.tasks import registry
import input_pipeline

MODELS = ("videomae_small_pretraining", "hybrid_pretraining")


def _config(videos, records, model=MODELS[0]):
  config = small_demo(videos, records)
  config.model.name = model
  if model == "hybrid_pretraining":
    config.model.mask_patch, config.model.mask_ratio = (2, 8, 8), 0.75
  else:
    config.model.cnn_blocks = config.model.cnn_width = config.model.latents = None
    config.model.width, config.model.depth, config.model.heads = 16, 2, 2
  config.model.decoder_width, config.model.decoder_depth, config.model.decoder_heads = 8, 1, 2
  config.clip.crop, config.clip.frames = 32, 4
  return config


@pytest.fixture(scope="module", params=MODELS)
def task(request):
  chosen = experiment.from_config(_config("", "", request.param))
  return registry.create(chosen, 8, sharding.make_mesh())


@pytest.mark.parametrize(
  "model",
  ["videomae_small_pretraining", pytest.param("hybrid_pretraining", marks=pytest.mark.slow)],
)
def test_a_run_pretrains_and_evaluates(made_folder, finished, tmp_path, model):
  _, workdir, _ = finished
  config = _config(made_folder, workdir / "records", model)
  config.validation_share, config.validation.probe_every_epochs = 0.5, 1.0
  outcome = run_training(config, tmp_path / "straight")
  steps = outcome["step"]
  assert set(outcome["test"]) == {"loss", "videos", "clips", "shuffled_loss", "probe_top1"}
  # Predicting zero costs 511/512 a value where no patch is flat.
  assert 0.3 < outcome["test"]["loss"] < 1.5
  assert "masked patches" in outcome["protocol"]
  history = writers.read_history(tmp_path / "straight")
  assert all("train/top1" not in line for line in history)
  # Labels tell how far it is, and do nothing else.
  probed = [line["validation/probe_top1"] for line in history if "validation/loss" in line]
  assert len(probed) == 2 and history[-1]["step"] == steps
  assert all(0 <= accuracy <= 1 for accuracy in (*probed, outcome["test"]["probe_top1"]))
  with np.load(tmp_path / "straight" / "predictions.npz") as predictions:
    assert predictions["view_loss"].shape == (outcome["test"]["clips"],)
    assert predictions["view_loss"].mean() == pytest.approx(outcome["test"]["loss"], rel=1e-5)
  assert json.loads((tmp_path / "straight" / "results.json").read_text()) == outcome
  # Its page shows what was hidden and what is predicted.
  page = reporting.run(tmp_path / "straight", input_pipeline).read_text()
  assert "Reconstructions" in page and "data:image/png;base64," in page


def _batch(size=3):
  rng = np.random.default_rng(0)
  return {
    "clips": rng.integers(0, 256, (size, 4, 32, 32, 3), np.uint8),
    "labels": np.zeros(size, np.int32),
    "mirrored": np.zeros(size, bool),
  }


def test_no_masked_pixel_reaches_a_prediction(task):
  params, batch_stats = task.initial_variables()
  batch = _batch()
  _, visible, masked = task.prepare(batch, jax.random.key(3))
  model = task.merge(params, batch_stats)
  clips = jnp.asarray(batch["clips"], jnp.float32) / 255
  squares = jax.jit(jax.grad(lambda clips: jnp.square(model(clips, visible, masked)).sum()))
  gradient = squares(clips)
  moved = masking.cut(jnp.abs(gradient), model.patch)
  moved = np.asarray(moved.reshape(3, -1, moved.shape[-1]).sum(-1))
  for clip in range(3):
    assert not moved[clip, masked[clip]].any()
    assert moved[clip, visible[clip]].all()


# Statistics of half a batch are others, so that the hybrid's loss is no such sum.
@pytest.mark.parametrize("task", MODELS[:1], indirect=True)
def test_the_loss_is_a_sum_that_is_divided_once(task):
  params, batch_stats = task.initial_variables()
  batch = _batch(4)
  prepared = task.prepare(batch, jax.random.key(3))
  loss = jax.jit(task.loss)
  sums, _ = loss(params, batch_stats, prepared, jax.random.key(0))
  halves = [
    loss(params, batch_stats, [part[rows] for part in prepared], jax.random.key(0))[0]
    for rows in (slice(0, 2), slice(2, 4))
  ]
  assert float(sums["count"]) == 4
  np.testing.assert_allclose(sums["loss"], halves[0]["loss"] + halves[1]["loss"], rtol=1e-5)


def test_evaluations_masks_follow_from_the_clip_and_not_from_the_batch(task):
  params, batch_stats = task.initial_variables()
  batch = _batch(4)
  indices = np.array([5, 6, 7, 8], np.int32)
  outputs = jax.jit(task.outputs)
  whole = outputs(params, batch_stats, {"clips": batch["clips"], "clip_indices": indices})["loss"]
  turned = outputs(
    params, batch_stats, {"clips": batch["clips"][::-1], "clip_indices": indices[::-1]}
  )["loss"]
  np.testing.assert_allclose(turned[::-1], whole, rtol=1e-5)


@pytest.mark.parametrize("kind", masking.TARGETS)
def test_a_reconstruction_of_the_truth_is_the_clip(kind):
  clips = jnp.asarray(_batch(2)["clips"])
  _, masked = masking.tube_mask(jax.random.key(0), 2, (2, 4, 4), 0.5)
  targets = masking.patch_targets(clips, masked, (2, 8, 8), kind=kind)
  seen, drawn = masking.reconstruct(clips, targets, masked, (2, 8, 8), kind=kind)
  shown = clips.astype(int)
  if kind == masking.MOTION:
    # Around grey.
    motion = np.clip(127.5 + clips - clips.mean(1, keepdims=True), 0, 255)
    kept = (seen == clips).all(-1, keepdims=True)
    shown = np.where(kept, clips, motion)
  np.testing.assert_allclose(drawn.astype(int), shown, atol=1)
  # What is hidden is grey, and nothing else.
  changed = masking.cut((seen != clips).astype(jnp.float32), (2, 8, 8)).reshape(2, 32, -1).mean(-1)
  hidden = np.zeros((2, 32), bool)
  np.put_along_axis(hidden, np.asarray(masked), True, axis=1)
  assert (np.asarray(changed)[hidden] > 0.9).all() and not np.asarray(changed)[~hidden].any()


def test_targets_of_motion_are_zero_where_nothing_moves():
  frames = np.random.default_rng(0).integers(0, 255, (2, 4, 16, 16, 3), np.uint8)
  frames[:, :, :, :8] = frames[:, :1, :, :8]
  _, masked = masking.tube_mask(jax.random.key(1), 2, (2, 2, 2), 0.5)
  targets = masking.patch_targets(jnp.asarray(frames), masked, (2, 8, 8), kind="motion")
  still = np.asarray(masked) % 2 == 0
  assert np.abs(targets[still]).max() < 1e-6 and (np.abs(targets[~still]).mean(-1) > 0.1).all()
  pixels = frames / 255
  expected = masking.cut(jnp.asarray(pixels - pixels.mean(1, keepdims=True)), (2, 8, 8))
  of_masked = np.take_along_axis(np.asarray(expected).reshape(2, 8, -1), masked[..., None], axis=1)
  np.testing.assert_allclose(targets, of_masked / masking.CONTRAST, atol=1e-5)
  with pytest.raises(ModelError, match="targets='moton' is none of normalized, pixels, motion"):
    masking.checked_targets("moton")
