"""Where a model looks: maps are of the weights that were used, and drawn where they belong."""

import io
import os
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from programs import starting
import pytest
from scipy import ndimage

import hybrid_video
from hybrid_video import attribution, models
from hybrid_video.attribution import covering, drawing
from hybrid_video.models import attention, perceiver, relevance, target

HYBRID = {"cnn_blocks": 1, "cnn_width": 4, "width": 4, "self_heads": 2, "head_dim": 4}
MODELS = {
  "crossed": (
    "hybrid",
    {**HYBRID, "latents": 5, "cross_heads": 2, "cross_blocks": 2, "self_blocks": 2},
  ),
  "one cross": ("hybrid", {**HYBRID, "latents": 5, "self_blocks": 1}),
  "self only": ("hybrid", {**HYBRID, "cross_blocks": 0, "self_blocks": 2}),
  "CNN": ("r2plus1d_18", {"blocks": 1, "width": 4}),
  "BERT": ("r2plus1d_18_bert", {"blocks": 1, "width": 4, "frames": 6, "heads": 2}),
  "VideoMAE": (
    "videomae_small",
    {"width": 12, "depth": 2, "heads": 2, "frames": 6, "image_size": 16, "init_scale": 1.0},
  ),
}
CLASSES = np.array([2, 0], np.int32)


def model_of(which, **options):
  name, given = MODELS[which]
  model = models.create(name, num_classes=3, seed=1, **given, **options)
  model.eval()
  return model


def clips_of(count=2):
  return np.random.default_rng(0).standard_normal((count, 6, 16, 16, 3)).astype(np.float32)


def with_model(model, function, *inputs):
  """`function(model, *inputs)`, compiled."""
  graphdef, *variables = models.split(model)
  compiled = jax.jit(lambda variables, *inputs: function(nnx.merge(graphdef, *variables), *inputs))
  return compiled(variables, *inputs)


def logits_of(model, clips):
  return np.asarray(with_model(model, lambda model, clips: model(clips), clips))


def features_of(model, clips):
  return np.asarray(with_model(model, lambda model, clips: model.cnn(clips), clips))


def seen_by(model, clips):
  """Logits for clips, the weights behind these, and the gradients by them."""

  def explained(model, clips):
    seen = relevance.explain(model, clips, jnp.asarray(CLASSES[: len(clips)]))
    return seen.logits, seen.weights, seen.gradients

  return with_model(model, explained, clips)


@pytest.mark.parametrize(("which", "calls"), [("crossed", 4), ("BERT", 1), ("VideoMAE", 2)])
def test_the_weights_are_those_behind_the_logits_and_sum_to_one(which, calls):
  model = model_of(which)
  logits, weights, _ = seen_by(model, clips_of())
  assert len(weights) == calls
  for of_call in weights:
    assert of_call.dtype == jnp.float32 and of_call.min() >= 0
    np.testing.assert_allclose(of_call.sum(-1), 1.0, rtol=1e-5)
  np.testing.assert_allclose(logits, logits_of(model, clips_of()), rtol=1e-4, atol=1e-5)


def test_weights_times_values_are_the_attentions_output():
  layer = perceiver.Attention(6, 10, 2, 4, dtype=jnp.float32, rng=np.random.default_rng(0))
  rng = np.random.default_rng(1)
  x, context = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 6), (2, 7, 10)))
  seen = []
  with attention.observed(lambda weights: seen.append(weights) or weights):
    layer(x, context)
  value = (context @ np.asarray(layer.to_kv.kernel[...]))[..., 8:].reshape(2, 7, 2, 4)
  mixed = np.stack([np.asarray(seen[0][:, head]) @ value[:, :, head] for head in range(2)], axis=2)
  expected = mixed.reshape(2, 3, 8) @ np.asarray(layer.to_out.kernel[...]) + layer.to_out.bias[...]
  # Nobody looks any more.
  np.testing.assert_allclose(layer(x, context), expected, rtol=1e-5, atol=1e-5)
  assert len(seen) == 1


def test_gradients_of_weights_are_the_logits_slopes():
  model, clips = model_of("BERT"), clips_of(1)
  place, small = (0, 1, 0, 2), 1e-2

  def logit(model, clips, offset):
    with attention.observed(lambda weights: weights.at[place].add(offset)):
      return model(clips)[0, CLASSES[0]]

  low, high = (with_model(model, logit, clips, offset) for offset in (-small, small))
  gradients = seen_by(model, clips)[2]
  np.testing.assert_allclose(gradients[0][place], (high - low) / (2 * small), rtol=2e-2)


def as_shares(values):
  return (values / values.sum(-1, keepdims=True)).reshape(len(values), -1)


def map_named(maps, name):
  return next(found for found in maps if found.name == name).values


def test_rollout_without_latents_is_the_product_of_half_weights_and_half_identities():
  for which, read in (("VideoMAE", slice(None)), ("self only", slice(1))):
    model, clips = model_of(which), clips_of()
    _, weights, _ = seen_by(model, clips)
    product = np.eye(weights[0].shape[-1])
    for of_block in weights:
      product = (np.asarray(of_block).mean(1) + np.eye(of_block.shape[-1])) / 2 @ product
    np.testing.assert_allclose(product.sum(-1), 1.0, rtol=1e-5)
    tokens = product[:, read].mean(1)[:, which == "self only" :]
    rollout = map_named(attribution.maps(model, clips), "attention rollout")
    np.testing.assert_allclose(rollout.reshape(2, -1), as_shares(tokens), rtol=1e-4)


def test_rollout_with_latents_is_what_the_cls_token_reads_of_what_they_read():
  model, clips = model_of("one cross"), clips_of()
  _, (of_cross, of_self), _ = seen_by(model, clips)
  through = np.einsum("bl,blm->bm", of_self.mean(1)[:, 0, 1:], of_cross.mean(1))
  found = attribution.maps(model, clips)
  np.testing.assert_allclose(found[0].values.reshape(2, -1), as_shares(through), rtol=1e-4)
  crossed = map_named(found, "cross attention 1")
  assert crossed.shape == (2, 1, 5, *found[0].values.shape[1:])
  np.testing.assert_allclose(crossed.reshape(of_cross.shape), of_cross, rtol=1e-5)


def test_what_flows_to_each_output_sums_to_one_over_groups_with_a_cls_token():
  model, clips = model_of("crossed"), clips_of()
  shares = [of_call.mean(1) for of_call in seen_by(model, clips)[1]]
  flow = model.attention.flow(shares, shares[0].shape[-1], lambda past, new: (past + new) / 2)
  assert flow.shape[:2] == (2, 6) and flow.min() >= 0
  np.testing.assert_allclose(flow.sum(-1), 1.0, rtol=1e-5)


def test_grad_cam_of_a_mean_and_a_linear_head_is_the_heads_own_weights():
  # Zhou et al. 2016 (arXiv:1512.04150).
  model, clips = model_of("CNN"), clips_of()
  features = features_of(model, clips)
  kernel = np.asarray(model.head.kernel[...])[:, CLASSES].T
  expected = np.einsum("btyxc,bc->btyx", features, kernel) / features[0, ..., 0].size
  (found,) = attribution.maps(model, clips, CLASSES)
  np.testing.assert_allclose(found.values, np.maximum(expected, 0), rtol=1e-3, atol=1e-7)
  assert found.values.max() > 0


def test_grad_cam_weighs_channels_by_the_logits_slope_along_each():
  model, clips = model_of("BERT"), clips_of()
  features = features_of(model, clips)

  def slopes_of(model, features):
    def logits(offset):
      return model.from_features(features + offset)[jnp.arange(2), CLASSES]

    # Layers in the form of a CPU have no forward-mode derivatives.
    with target.traced_for([]):
      return jax.jacfwd(logits)(jnp.zeros(features.shape[-1]))

  slopes = np.asarray(with_model(model, slopes_of, features))
  slopes = slopes / features[0, ..., 0].size
  expected = np.maximum(np.einsum("btyxc,bc->btyx", features, slopes), 0)
  found, over_time = attribution.maps(model, clips, CLASSES)
  np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-6)
  assert over_time.values.shape == (2, 2, 1 + features.shape[1])
  np.testing.assert_allclose(over_time.values.sum(-1), 1.0, rtol=1e-5)


def test_a_clips_maps_are_its_own_of_the_predicted_class_and_change_no_model():
  model, clips = model_of("VideoMAE", remat="blocks"), clips_of()
  before = logits_of(model, clips)
  found = attribution.maps(model, clips)
  for one, same in zip(
    found, attribution.maps(model, clips[1:], before[1:].argmax(1)), strict=True
  ):
    np.testing.assert_allclose(one.values[1:], same.values, rtol=1e-4, atol=1e-7)
  assert model.attention.remat == "blocks"
  np.testing.assert_array_equal(logits_of(model, clips), before)


def test_a_model_without_classes_is_refused():
  model = models.create(
    "videomae_small_pretraining", width=12, depth=1, heads=2, image_size=32, decoder_depth=1
  )
  with pytest.raises(models.ModelError, match="no classes"):
    attribution.maps(model, clips_of())


def test_a_map_is_drawn_linear_between_the_centres_of_its_cells():
  values, shape = np.random.default_rng(0).random((2, 3, 1)), (7, 8, 5)
  centres = [
    (np.arange(n) + 0.5) * cells / n - 0.5 for n, cells in zip(shape, values.shape, strict=True)
  ]
  grid = np.meshgrid(*centres, indexing="ij")
  expected = ndimage.map_coordinates(values, grid, order=1, mode="nearest")
  np.testing.assert_allclose(drawing.upsample(values, shape), expected, rtol=1e-12)


def test_frames_are_grey_where_a_map_is_zero_and_yellow_where_it_is_largest():
  clip = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
  values = np.zeros((2, 4, 4))
  grey = attribution.overlay(clip, values)
  assert (grey == grey[..., :1]).all()
  values[1, 0, 3] = 0.01
  drawn = attribution.overlay(clip, values)
  red, green, blue = drawn[3, 1, 14].astype(int)
  assert min(red, green) > blue + 40
  np.testing.assert_array_equal(drawn[0], grey[0])


def test_a_film_strip_has_each_shown_frame_above_itself():
  clip = np.zeros((16, 32, 32, 3), np.uint8)
  with Image.open(io.BytesIO(attribution.film_strip(clip, np.ones((2, 2, 2))))) as picture:
    assert picture.format == "PNG" and picture.size == (8 * 96 + 7 * 4, 2 * 96 + 4)


def test_only_marked_cells_are_covered():
  rng = np.random.default_rng(0)
  values = rng.random((2, 2, 2, 2))
  marked = covering.most_marked(values, 0.25)
  assert (marked.sum((1, 2, 3)) == 2).all()
  assert all(values[i][marked[i]].min() > values[i][~marked[i]].max() for i in range(2))
  clips = rng.random((2, 4, 8, 8, 3))
  covered = covering.cover(clips, marked)
  inside = marked.repeat(2, axis=1).repeat(4, axis=2).repeat(4, axis=3)
  np.testing.assert_array_equal(covered[~inside], clips[~inside])
  for clip, cells, original in zip(covered, inside, clips, strict=True):
    np.testing.assert_allclose(clip[cells], np.tile(original.mean((0, 1, 2)), (cells.sum(), 1)))


def test_a_true_map_falls_below_chance_and_a_wrong_one_does_not():
  rng = np.random.default_rng(0)
  looked_at = rng.random((8, 4, 4, 4)) < 0.2
  at = looked_at.repeat(2, axis=2).repeat(2, axis=3)
  clips = rng.random((8, 4, 8, 8, 3)) - 0.5 + at[..., None]

  def probabilities(clips):
    inside = (clips.mean(-1) * at).sum((1, 2, 3)) / at.sum((1, 2, 3))
    return np.stack([1 - inside, inside], axis=1)

  classes = np.ones(8, int)
  true = covering.falls(
    probabilities, clips, classes, looked_at + 0.1 * rng.random(at.shape)[..., ::2, ::2]
  )
  assert true.random.shape == (5, 8)
  assert true.marked.mean() > 3 * true.random.mean() > 0
  wrong = covering.falls(probabilities, clips, classes, 1.0 - looked_at)
  assert wrong.marked.mean() < wrong.random.mean()


# Trained as a user would; small CNNs are cut so that their last map has places to tell apart.
TRAINED = {
  "hybrid": ["--config.epochs=25.0"],
  "r2plus1d_18": ["--config.model.blocks=4", "--config.epochs=10.0"],
}


def falls_of(workdir):
  """What covering does to a trained demo's test videos, one clip each."""
  trained = hybrid_video.load(workdir)
  with np.load(workdir / "predictions.npz") as predictions:
    names, labels = predictions["names"][::3], predictions["labels"][::3]
  files = {path.name: path for path in (workdir / "videos").rglob("*.avi")}
  videos = [files[pathlib.Path(str(name)).name] for name in names]
  clips = np.concatenate([np.asarray(trained.preprocess(path)[:1]) for path in videos])

  graphdef, *variables = models.split(trained.model)
  score = jax.jit(lambda variables, clips: jax.nn.softmax(nnx.merge(graphdef, *variables)(clips)))
  found = attribution.maps(trained.model, clips, labels)[0]
  return covering.falls(lambda shown: score(variables, shown), clips, labels, found.values)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_covering_what_a_trained_model_looks_at_lowers_its_score_more_than_chance(name, tmp_path):
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  with starting() as start:
    flags = [f"--workdir={tmp_path}", f"--config.model.name={name}", *TRAINED[name]]
    process = start("main.py", "--config=configs/demo.py", *flags, env=environment)
    process.communicate(timeout=1800)
    assert process.returncode == 0
  assert (tmp_path / "figures" / "where_the_model_looks.png").exists()
  falls = falls_of(tmp_path)
  assert falls.marked.mean() > falls.random.mean(1).max() + 0.03, str(falls)
