"""Masked pretraining of the hybrid: nothing hidden is read, any position can be asked for, a classifier takes it."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video import models, weights
from hybrid_video.models import hybrid_pretraining, layers, masking, sparse, video_resnet
from hybrid_video.models.model_error import ModelError

ENCODER = {
  "cnn_width": 4, "latents": 4, "width": 16, "self_heads": 2, "head_dim": 8, "multiplier": 2, "bands": 2,
}  # fmt: skip
CLIP = {"frames": 4, "image_size": 32, "decoder_width": 12, "decoder_heads": 3}
RATIO = 0.5


def make(seed=0, **options):
  return models.create(
    "hybrid_pretraining", seed=seed, **{**ENCODER, **CLIP, "mask_ratio": RATIO, **options}
  )


def clips(batch=2):
  return jnp.asarray(np.random.default_rng(0).normal(size=(batch, 4, 32, 32, 3)), jnp.float32)


def mask(model, batch=2, seed=1):
  return masking.tube_mask(jax.random.key(seed), batch, model.grid, model.mask_ratio)


@pytest.mark.parametrize("hidden", hybrid_pretraining.HIDDEN)
@pytest.mark.parametrize(
  "options",
  [
    {"cnn_blocks": 4, "mask_patch": (2, 8, 8)},
    # A cell of the map is as large as a patch.
    pytest.param({"cnn_blocks": 8, "mask_patch": (2, 16, 16)}, marks=pytest.mark.slow),
    {"cnn_blocks": 8, "mask_patch": (4, 16, 16), "cross_blocks": 2, "self_blocks": 2},
    {"cnn_blocks": 0, "patch": (2, 4, 4), "mask_patch": (2, 8, 8)},
    {"cnn_blocks": 2, "cnn": "r3d_18", "mask_patch": (2, 8, 8), "remat": "blocks"},
    pytest.param(
      {"cnn_blocks": 4, "mask_patch": (2, 8, 8), "cross_blocks": 0, "width": 8, "pool": "mean"},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_no_masked_pixel_reaches_a_prediction(hidden, options):
  model = make(hidden=hidden, **options)
  # Statistics of a batch could carry them too.
  model.train()
  visible, masked = mask(model)
  graphdef, params, batch_stats = models.split(model)

  def error(clips):
    return jnp.square(nnx.merge(graphdef, params, batch_stats)(clips, visible, masked)).sum()

  reach = masking.cut(jnp.abs(jax.jit(jax.grad(error))(clips())), model.patch)
  reach = np.asarray(reach.reshape(2, -1, reach.shape[-1]).sum(-1))
  assert not np.take_along_axis(reach, np.asarray(masked), 1).any()
  assert np.take_along_axis(reach, np.asarray(visible), 1).all()


def _trunk(**options):
  options = {"blocks": 4, "width": 4, **options}
  return video_resnet.Trunk(rng=np.random.default_rng(0), **options)


def _seen(*shape, share=0.5):
  return jnp.asarray(np.random.default_rng(3).random(shape) < share, jnp.float32)


@pytest.mark.parametrize("training", [True, False])
def test_where_all_is_seen_a_sparse_trunk_is_the_ordinary_one(training):
  trunk = _trunk()
  trunk.train() if training else trunk.eval()
  graphdef, params, batch_stats = models.split(trunk)

  def run(seen):
    model = nnx.merge(graphdef, params, batch_stats)
    with sparse.only(seen):
      return model(clips()), models.split(model)[2]

  (features, stats), (expected, plain) = (
    jax.jit(run)(jnp.ones((2, 4, 4))),
    jax.jit(lambda: run(None))(),
  )
  np.testing.assert_allclose(features, expected, atol=1e-3 if training else 1e-5)
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-4), stats, plain
  )


@pytest.mark.parametrize("name", ["r2plus1d_18", "r3d_18", "r2plus1d_18_hara"])
def test_every_map_is_zero_where_nothing_is_seen(name):
  trunk = _trunk(architecture=name, blocks=2)
  for norm in (
    module for _, module in nnx.iter_modules(trunk) if isinstance(module, layers.BatchNorm)
  ):
    norm.bias[...] = jnp.full(norm.bias[...].shape, 0.3)
  trunk.train()
  seen = _seen(2, 4, 4)
  with sparse.only(seen):
    maps = trunk.outputs(clips() * sparse.spread(seen, clips()))
  for of_block in maps:
    hidden = np.broadcast_to(1 - np.asarray(sparse.spread(seen, of_block)), of_block.shape) == 1
    assert not np.asarray(of_block)[hidden].any()
    assert np.asarray(of_block)[~hidden].any()


def test_statistics_are_of_what_is_seen_alone():
  x = np.random.default_rng(0).normal(2, 3, (3, 5, 8, 8, 6)).astype(np.float32)
  seen = np.array(_seen(3, 4, 4))
  # A clip of which nothing is seen has no part in it.
  seen[2] = 0
  norm = layers.BatchNorm(6)
  with sparse.only(jnp.asarray(seen)):
    y = norm(jnp.asarray(x))
  active = np.broadcast_to(seen.repeat(2, 1).repeat(2, 2)[:, None] == 1, x.shape[:-1])
  mean, var = x[active].mean(0), x[active].var(0)
  expected = np.where(active[..., None], (x - mean) / np.sqrt(var + 1e-5), 0)
  np.testing.assert_allclose(y, expected, atol=1e-4)
  np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-4)
  np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x[active].var(0, ddof=1), rtol=1e-4)


def test_a_decoder_and_masks_at_published_width_have_their_counts():
  model = nnx.eval_shape(lambda: models.create("hybrid_pretraining"))
  counts = models.parameter_counts(models.split(model)[1])
  assert (counts["cnn"], counts["attention"], counts["decoder"]) == (
    31_300_125,
    7_623_118,
    4_992_000,
  )
  assert model.grid == (8, 7, 7)
  visible, masked = masking.tube_mask(jax.random.key(0), 1, model.grid, model.mask_ratio)
  assert (visible.shape, masked.shape) == ((1, 104), (1, 288))


def test_predictions_follow_the_positions_that_are_asked_for():
  model = make(cnn_blocks=4, mask_patch=(2, 8, 8))
  model.eval()
  visible, masked = mask(model)
  predictions = model(clips(), visible, masked)
  assert predictions.shape == (2, masked.shape[1], 2 * 8 * 8 * 3)
  turned = model(clips(), visible, masked[:, ::-1])
  np.testing.assert_allclose(turned[:, ::-1], predictions, atol=1e-5)
  # One latent code answers differently at different places.
  assert float(jnp.abs(predictions[:, 0] - predictions[:, -1]).max()) > 1e-3


def test_latents_read_the_cells_that_are_seen_where_they_are():
  """A map whose every cell says where it is, in place of the trunk's."""
  model = make(cnn_blocks=4, mask_patch=(2, 16, 16), image_size=32)
  features = jnp.arange(2 * 8 * 8, dtype=jnp.float32).reshape(1, 2, 8, 8, 1)
  tokens, positions = model._read(features, jnp.array([[0, 3]]))
  rows = np.arange(4)
  first = (8 * rows[:, None] + rows).ravel()
  expected = np.concatenate([first, first + 36, first + 64, first + 100])
  np.testing.assert_array_equal(np.sort(tokens[0, :, 0]), np.sort(expected))
  everywhere = hybrid_pretraining.perceiver.fourier_positions((2, 8, 8), 2, 10.0)
  np.testing.assert_array_equal(positions[0], everywhere[np.asarray(tokens[0, :, 0], int)])


def test_a_classifier_takes_trunk_and_attention():
  pretrained = make(seed=1, cnn_blocks=4, mask_patch=(2, 8, 8))
  _, params, batch_stats = models.split(pretrained)
  model = models.create("hybrid", num_classes=3, cnn_blocks=4, **ENCODER)
  ported = weights.load_trees(model, params, batch_stats, source="pretraining")
  assert ported.fresh == ("head",)
  _, taken, _ = models.split(model)
  for part in ("cnn", "attention"):
    jax.tree.map(np.testing.assert_array_equal, taken[part], params[part])
  # A CNN of the same blocks takes the trunk.
  cnn = models.create("r2plus1d_18", num_classes=3, blocks=4, width=4)
  ported = weights.load_trees(cnn, params, batch_stats, source="p", replace_head=True)
  assert ported.fresh == ("head",)
  _, taken, _ = models.split(cnn)
  jax.tree.map(np.testing.assert_array_equal, taken["cnn"], params["cnn"])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"cnn_blocks": 8, "mask_patch": (2, 8, 8)}, "no multiple of the 16 x 16 pixels"),
    ({"hidden": "zeros"}, "hidden='zeros' is none of sparse, replaced"),
    ({"decoder_heads": 5}, "decoder_width=12 does not divide among decoder_heads=5"),
    ({"mask_patch": (2, 16, 16), "mask_ratio": 0.1}, "does not split a grid of 2 x 2 cells"),
    ({"mask_patch": (3, 16, 16)}, "frames of 4 is not a multiple"),
  ],
)
def test_options_that_do_not_fit_are_refused(options, message):
  with pytest.raises(ModelError, match=message):
    make(**options)
