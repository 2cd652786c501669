import contextlib
import io

from flax import nnx
from golden import reference_weights
from golden import videomae as golden
from golden.comparison import relative_error
from golden.videomae import SMALL_CLIP, TINY, TINY_DECODER, flat
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import interpolate

from hybrid_video import models
from hybrid_video.models import masking, patches, videomae, videomae_pretraining
from hybrid_video.models.model_error import ModelError

SHALLOW = {**TINY, "depth": 1}
GRID = (2, 2, 2)
# Encoder with patch embedding and final norm, pretraining, classifiers of 51 and of 400 classes.
PARAMETERS = {
  "small": (21_879_936, 24_029_376, 21_899_571, 22_033_936),
  "base": (86_227_200, 94_210_944, 86_266_419, 86_534_800),
  "large": (303_860_736, 317_782_016, 303_913_011, 304_270_736),
}


class NoDraws(np.random.Generator):
  """Gives zeros without memory: counting parameters needs no values."""

  def __init__(self):
    super().__init__(np.random.PCG64(0))

  def random(self, size=None, dtype=np.float64, out=None):
    return np.broadcast_to(dtype(0.5), size)

  def standard_normal(self, size=None, dtype=np.float64, out=None):
    return np.broadcast_to(dtype(0), size)


def _rng() -> np.random.Generator:
  return np.random.default_rng(0)


def _clips(batch: int = 2) -> jax.Array:
  return jnp.asarray(reference_weights.clips((batch, 4, 32, 32, 3)))


def _tokens(batch: int = 2, seed: int = 0) -> tuple[jax.Array, jax.Array]:
  """Visible and masked tokens."""
  return masking.tube_mask(jax.random.key(seed), batch, GRID, 0.75)


def _mask(visible: jax.Array, masked: jax.Array) -> np.ndarray:
  """The same as bool `[B, N]`; every token must be exactly one of the two."""
  mask = np.full((len(visible), visible.shape[1] + masked.shape[1]), 2)
  np.put_along_axis(mask, np.asarray(visible), 0, axis=1)
  np.put_along_axis(mask, np.asarray(masked), 1, axis=1)
  assert mask.max() < 2
  return mask.astype(bool)


def _pixels(clips: jax.Array) -> jax.Array:
  return clips * jnp.array(videomae.IMAGENET_STD) + jnp.array(videomae.IMAGENET_MEAN)


@pytest.mark.parametrize("kind", ["classifier", "first_token"])
@pytest.mark.parametrize("name", golden.REFERENCES)
def test_the_classifier_gives_the_logits_of_hugging_face(name, kind):
  assert golden.classifier_errors(name, kind)["logits"] < 1e-5


@pytest.mark.parametrize("name", golden.REFERENCES)
def test_pretraining_gives_the_predictions_and_the_loss_of_hugging_face(name):
  assert max(golden.pretraining_errors(name).values()) < 1e-5


@pytest.mark.parametrize("size", PARAMETERS)
def test_every_size_has_its_published_parameter_count(size):
  def counts(build):
    return models.parameter_counts(models.split(nnx.eval_shape(build))[1])

  encoder, pretraining, *classifiers = PARAMETERS[size]
  counted = counts(
    lambda: videomae_pretraining.VideoMAEForPreTraining(size=size, decoder_depth=4, rng=NoDraws())
  )
  assert (counted["attention"], counted["total"]) == (encoder, pretraining)
  for num_classes, total in zip((51, 400), classifiers, strict=True):
    counted = counts(lambda n=num_classes: videomae.VideoMAE(n, size=size, rng=NoDraws()))
    width = videomae.SIZES[size].width
    assert counted["total"] == total
    assert counted["head"] == 2 * width + num_classes * (width + 1)


def test_the_decoders_of_large_and_huge_are_twelve_blocks_deep():
  depths = {name: size.decoder_depth for name, size in videomae.SIZES.items()}
  assert depths == {"small": 4, "base": 4, "large": 12, "huge": 12}


def test_initial_values_are_those_of_the_original_code():
  wide = {**SMALL_CLIP, "width": 192, "depth": 1, "heads": 3}
  classifier = flat(videomae.VideoMAE(400, **wide, rng=_rng()))
  pretraining = flat(
    videomae_pretraining.VideoMAEForPreTraining(
      **wide, decoder_width=96, decoder_depth=1, decoder_heads=3, rng=_rng()
    )
  )
  qkv = ("attention", "blocks", "0", "attn", "qkv", "kernel")
  assert float(classifier[qkv].std()) == pytest.approx(0.02, rel=0.02)
  assert float(classifier["head", "linear", "kernel"].std()) == pytest.approx(2e-5, rel=0.02)
  assert float(jnp.abs(pretraining[qkv]).max()) == pytest.approx((6 / (4 * 192)) ** 0.5, rel=1e-3)
  assert float(jnp.abs(pretraining["decoder", "embed", "kernel"]).max()) == pytest.approx(
    192**-0.5, rel=1e-3
  )
  mask_token = pretraining["decoder", "mask_token"]
  assert 0.008 < float(mask_token.std()) < 0.013
  assert float(jnp.abs(mask_token).max()) <= 0.02
  # Nothing is on a device before the sharding is known.
  assert all(isinstance(leaf, np.ndarray) for leaf in [*classifier.values(), *pretraining.values()])
  for name in ("q_bias", "v_bias"):
    assert (classifier["attention", "blocks", "0", "attn", name] == 0).all()


def test_positions_are_sines_and_cosines_of_the_flattened_index():
  table = videomae.sinusoid_positions(1568, 6)
  angles = [37 / 10_000 ** (2 * pair / 6) for pair in range(3)]
  expected = [f(angle) for angle in angles for f in (np.sin, np.cos)]
  np.testing.assert_allclose(table[37], expected, rtol=1e-6)
  np.testing.assert_array_equal(videomae.sinusoid_positions(392, 6), table[:392])


def test_patches_come_in_the_order_time_row_column_with_channels_fastest():
  shape = (1, 4, 32, 48, 3)
  clips = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
  cut = videomae.patches(clips)
  assert cut.shape == (1, 12, 1536)
  for index, cell in enumerate(np.ndindex(2, 2, 3)):
    t, h, w = np.array(cell) * (2, 16, 16)
    expected = clips[0, t : t + 2, h : h + 16, w : w + 16].ravel()
    np.testing.assert_array_equal(cut[0, index], expected)


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float32"])
@pytest.mark.parametrize("patch", [(2, 16, 16), (1, 8, 16), (4, 4, 4)])
def test_a_product_gathers_the_very_values_of_each_patch(patch, dtype):
  rng = np.random.default_rng(0)
  clips = jnp.asarray(rng.integers(0, 256, (2, 4, 32, 48, 3), np.uint8))
  if dtype != "uint8":
    clips = ((clips - 127.3) / 57.1).astype(dtype)
  gathered, moved = (form(clips, patch) for form in (patches._gathered, patches._moved))
  assert gathered.dtype == moved.dtype == clips.dtype
  np.testing.assert_array_equal(gathered, moved)


@pytest.mark.parametrize(
  ("grid", "ratio", "cells"),
  [((8, 14, 14), 0.9, 176), ((8, 7, 7), 0.9, 44), ((8, 14, 14), 0.75, 147), ((8, 7, 7), 0.75, 36)],
)
def test_a_tube_mask_hides_the_published_number_of_cells_at_all_times(grid, ratio, cells):
  visible, masked = masking.tube_mask(jax.random.key(0), 5, grid, ratio)
  assert visible.dtype == masked.dtype == jnp.int32
  assert (jnp.diff(visible, axis=1) > 0).all() and (jnp.diff(masked, axis=1) > 0).all()
  tubes = _mask(visible, masked).reshape(5, *grid)
  assert (tubes == tubes[:, :1]).all()
  assert (tubes[:, 0].sum((1, 2)) == cells).all()
  assert len(np.unique(tubes[:, 0].reshape(5, -1), axis=0)) == 5
  assert masked.shape == (5, 8 * cells)
  assert visible.shape[1] + masked.shape[1] == np.prod(grid)


def test_tube_masks_follow_their_key_and_hide_every_cell_alike():
  masks = [_mask(*masking.tube_mask(jax.random.key(k), 2000, (1, 3, 3), 0.5)) for k in (0, 0, 1)]
  np.testing.assert_array_equal(masks[0], masks[1])
  assert (masks[0] != masks[2]).any()
  np.testing.assert_allclose(masks[0].mean(0), 4 / 9, atol=0.05)


def test_predicting_zero_costs_511_of_512_and_predicting_the_target_nothing():
  _, masked = _tokens()
  targets = masking.patch_targets(_clips(), masked)
  assert targets.shape == (2, 6, 1536)
  zero = masking.clip_losses(jnp.zeros_like(targets), targets)
  assert zero.shape == (2,)
  np.testing.assert_allclose(zero, 511 / 512, rtol=1e-5)
  assert (masking.clip_losses(targets, targets) == 0.0).all()


def test_each_clips_loss_is_its_own():
  _, masked = _tokens()
  targets = masking.patch_targets(_clips(), masked)
  losses = masking.clip_losses(targets.at[1].add(2.0), targets)
  np.testing.assert_allclose(losses, [0.0, 4.0], rtol=1e-5)


def test_targets_are_the_masked_patches_normalized_by_channel_in_pixels():
  pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
  masked = jnp.full((2, 1), 5)
  targets = masking.patch_targets(jnp.asarray(pixels), masked).reshape(2, 512, 3)
  # Token 5 is the second time slot, first row, second column.
  patch = pixels[:, 2:4, :16, 16:].reshape(2, 512, 3) / 255.0
  expected = (patch - patch.mean(1, keepdims=True)) / patch.std(1, ddof=1, keepdims=True)
  np.testing.assert_allclose(targets, expected, atol=1e-4)
  floats = masking.patch_targets(jnp.asarray(pixels / 255.0, jnp.float32), masked)
  np.testing.assert_allclose(floats.reshape(2, 512, 3), targets, atol=1e-4)


def test_a_flat_patch_has_a_finite_target():
  targets = masking.patch_targets(jnp.zeros((1, 4, 32, 32, 3)), _tokens(1)[1])
  assert bool(jnp.isfinite(targets).all())


def test_masked_pixels_never_reach_the_predictions():
  model = videomae_pretraining.VideoMAEForPreTraining(**SHALLOW, **TINY_DECODER, rng=_rng())
  visible, masked = _tokens(1)
  gradient = jax.jit(jax.grad(lambda clips: jnp.square(model(clips, visible, masked)).sum()))(
    _clips(1)
  )
  reach = jnp.abs(videomae.patches(gradient)).max(-1)
  assert (reach[0, masked] == 0).all()
  assert (reach[0, visible] > 0).all()


def test_one_clips_predictions_and_logits_take_nothing_from_another_clip():
  pretraining = videomae_pretraining.VideoMAEForPreTraining(**SHALLOW, **TINY_DECODER, rng=_rng())
  classifier = videomae.VideoMAE(3, **SHALLOW, init_scale=1.0, rng=_rng())
  tokens = _tokens(3)
  for run in (lambda clips: pretraining(clips, *tokens), classifier):
    gradient = jax.jit(jax.grad(lambda clips, run=run: jnp.square(run(clips)[0]).sum()))(_clips(3))
    assert (gradient[1:] == 0).all()
    assert (gradient[0] != 0).any()


def test_every_parameter_takes_part_in_the_pretraining_loss():
  model = videomae_pretraining.VideoMAEForPreTraining(**SHALLOW, **TINY_DECODER, rng=_rng())
  graphdef, params, _ = models.split(model)
  clips = _clips()

  @jax.jit
  def gradients(params, visible, masked):
    def loss(params):
      predictions = nnx.merge(graphdef, params)(clips, visible, masked)
      targets = masking.patch_targets(_pixels(clips), masked)
      return masking.clip_losses(predictions, targets).mean()

    return jax.grad(loss)(params)

  assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradients(params, *_tokens())))


def test_the_order_of_clips_and_their_masks_changes_nothing():
  model = videomae_pretraining.VideoMAEForPreTraining(**SHALLOW, **TINY_DECODER, rng=_rng())
  run = jax.jit(lambda clips, visible, masked: model(clips, visible, masked))
  visible, masked = _tokens(3)
  straight = run(_clips(3), visible, masked)
  backwards = run(_clips(3)[::-1], visible[::-1], masked[::-1])[::-1]
  np.testing.assert_allclose(straight, backwards, rtol=1e-4, atol=1e-5)


def test_drop_path_drops_whole_clips_by_key_keeps_the_mean_and_is_off_in_evaluation():
  block = videomae.transformer_blocks(
    16, 2, 2, drop_path=0.5, epsilon=1e-6, init=videomae.normal_002, dtype=jnp.float32, rng=_rng()
  )["1"]
  x = jnp.ones((4000, 2, 3))
  dropped = block.drop_path(x, rngs=nnx.Rngs(dropout=jax.random.key(0)))
  assert set(np.unique(dropped)) == {0.0, 2.0}
  assert (dropped == dropped[:, :1, :1]).all()
  assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)

  model = videomae.VideoMAE(3, **TINY, drop_path=0.5, init_scale=1.0, rng=_rng())
  model.train()

  @jax.jit
  def logits(key):
    return model(_clips(8), rngs=nnx.Rngs(dropout=jax.random.key(key)))

  np.testing.assert_array_equal(logits(0), logits(0))
  assert not np.allclose(logits(0), logits(1))
  with pytest.raises(ValueError, match="no `rngs` argument"):
    model(_clips(8))
  model.eval()
  plain = videomae.VideoMAE(3, **TINY, init_scale=1.0, rng=_rng())
  # No key is asked for.
  ours, expected = jax.jit(lambda clips: (model(clips), plain(clips)))(_clips(8))
  np.testing.assert_array_equal(ours, expected)


def test_the_drop_rate_rises_linearly_from_none():
  model = videomae.VideoMAE(3, **{**TINY, "depth": 5}, drop_path=0.2, rng=_rng())
  rates = [model.attention.blocks[str(i)].drop_path.rate for i in range(5)]
  np.testing.assert_allclose(rates, [0.0, 0.05, 0.1, 0.15, 0.2])


def test_bfloat16_arithmetic_stays_near_float32_and_keeps_parameters_wide():
  def outputs(dtype):
    shared = {"dtype": dtype, "rng": _rng()}
    classifier = videomae.VideoMAE(3, **TINY, init_scale=1.0, **shared)
    pretraining = videomae_pretraining.VideoMAEForPreTraining(**TINY, **TINY_DECODER, **shared)
    for model in (classifier, pretraining):
      assert {leaf.dtype for leaf in flat(model).values()} == {jnp.dtype("float32")}
    tokens = _tokens()
    return jax.jit(lambda clips: (classifier(clips), pretraining(clips, *tokens)))(_clips())

  for wide, narrow in zip(outputs(jnp.float32), outputs(jnp.bfloat16), strict=True):
    assert narrow.dtype == jnp.float32
    assert 0 < relative_error(narrow, np.asarray(wide)) < 0.05


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"size": "bases"}, "no VideoMAE of size 'bases'. Known: small, base, large, huge"),
    ({"heads": 5}, "width=48 does not divide among heads=5"),
    ({"depth": 0}, "depth=0 of a VideoMAE is at least 1"),
    ({"frames": 5}, "frames of 5 is not a multiple of a patch's 2 frames.*to 4"),
    ({"image_size": 40}, "height of 40 is not a multiple of a patch's 16 pixels.*to 32"),
  ],
)
def test_options_that_do_not_fit_are_refused_in_words(options, message):
  with pytest.raises(ModelError, match=message):
    videomae.VideoMAE(3, **{**TINY, **options}, rng=_rng())


def test_a_decoder_whose_heads_do_not_divide_its_width_is_refused():
  with pytest.raises(ModelError, match="decoder_width=32 does not divide among decoder_heads=3"):
    videomae_pretraining.VideoMAEForPreTraining(
      **TINY, decoder_width=32, decoder_heads=3, rng=_rng()
    )


@pytest.mark.parametrize("shape", [(8, 32, 32), (4, 32, 48), (2, 64, 32)])
def test_clips_of_another_size_have_positions_between_those_of_the_own(shape):
  """Each axis by itself, as SciPy interpolates the table of the grid."""
  model = videomae.VideoMAE(3, **TINY, rng=_rng())
  encoder = model.attention
  clips = jnp.zeros((1, *shape, 3))
  grid = videomae.token_grid(*shape)
  table = videomae.sinusoid_positions(8, encoder.width).reshape(2, 2, 2, -1)
  ends = [
    np.linspace(0, own - 1, count) if count > 1 else [0.0]
    for own, count in zip((2, 2, 2), grid, strict=True)
  ]
  between = interpolate.RegularGridInterpolator([np.arange(2)] * 3, table)
  expected = between(np.stack(np.meshgrid(*ends, indexing="ij"), -1)).reshape(1, -1, encoder.width)
  np.testing.assert_allclose(encoder._positions(clips), expected, atol=1e-6)
  model.eval()
  assert model(clips).shape == (1, 3)


def test_clips_that_patches_do_not_divide_are_refused():
  model = videomae.VideoMAE(3, **TINY, rng=_rng())
  with pytest.raises(ModelError, match="frames of 3 is not a multiple of a patch's 2 frames"):
    model(jnp.zeros((1, 3, 32, 32, 3)))


def test_patches_of_clips_that_do_not_divide_are_refused():
  for shape, name in (((1, 3, 32, 32, 3), "frames"), ((1, 4, 32, 30, 3), "width")):
    with pytest.raises(ValueError, match=f"A clip's {name} of 3"):
      videomae.patches(jnp.zeros(shape))
  with pytest.raises(ValueError, match=r"expected \[B, T, H, W, 3\]"):
    videomae.patches(jnp.zeros((4, 32, 32, 3)))


def test_masks_that_do_not_fit_are_refused():
  model = videomae_pretraining.VideoMAEForPreTraining(**TINY, **TINY_DECODER, rng=_rng())
  visible, masked = _tokens()
  message = (
    r"Visible tokens \(2, 2\) and masked tokens \(2, 5\) came with 2 clips that have 8 tokens"
  )
  with pytest.raises(ValueError, match=message):
    model(_clips(), visible, masked[:, 1:])
  with pytest.raises(ValueError, match=r"masked tokens \(1, 6\) came with 2 clips"):
    model(_clips(), visible, masked[:1])
  with pytest.raises(ValueError, match="at least one of them visible and one masked"):
    model(_clips(), jnp.zeros((2, 0), jnp.int32), jnp.tile(jnp.arange(8), (2, 1)))
  with pytest.raises(ValueError, match=r"Masked tokens \(1, 6\) came with 2 clips"):
    masking.patch_targets(_clips(), masked[:1])
  with pytest.raises(ValueError, match="Pixels of type int32: uint8 or floats"):
    masking.patch_targets(_clips().astype(jnp.int32), masked)
  with pytest.raises(ValueError, match="both take the same mask"):
    masking.clip_losses(jnp.zeros((1, 2, 3)), jnp.zeros((1, 3, 3)))
  for ratio in (0.1, 1.0, -1.0, float("nan")):
    with pytest.raises(ModelError, match="at least one must be hidden"):
      masking.tube_mask(jax.random.key(0), 1, GRID, ratio)
    with pytest.raises(ModelError, match="at least one must be hidden"):
      videomae_pretraining.VideoMAEForPreTraining(
        **TINY, **TINY_DECODER, mask_ratio=ratio, rng=_rng()
      )


def test_the_registry_builds_pretraining_models_and_says_what_models_are_for():
  options = {"width": 48, "depth": 1, "heads": 3, "decoder_depth": 1}
  model = models.create(
    "videomae_small_pretraining", num_classes=7, frames=4, image_size=32, mask_ratio=0.6, **options
  )
  assert model.mask_ratio == 0.6
  assert models.create("videomae_small_pretraining", **options).mask_ratio == 0.9
  tasks = {name: models.task_of(name) for name in models.MODELS}
  assert tasks.pop("videomae_small_pretraining") == tasks.pop("videomae_base_pretraining")
  assert tasks.pop("videomae_large_pretraining") == "pretraining"
  assert tasks.pop("hybrid_pretraining") == "pretraining"
  assert set(tasks.values()) == {"classification"}


def test_a_model_follows_its_clips_and_has_its_own_pixel_statistics():
  assert models.clip_options("videomae_base", 8, 112) == {"frames": 8, "image_size": 112}
  assert models.clip_options("videomae_base_pretraining", 8, 112) == {
    "frames": 8,
    "image_size": 112,
  }
  assert models.clip_options("r2plus1d_18_bert", 8, 112) == {"frames": 8}
  assert models.clip_options("hybrid", 8, 112) == {}
  model = nnx.eval_shape(lambda: models.create("videomae_small", num_classes=2, depth=1))
  assert model.attention.clip_shape == (16, 224, 224, 3)
  others = {"videomae": (0.485, 0.229), "r2plus1d_18_hara": (0.4345, 0.2768)}
  for name in models.MODELS:
    mean, std = models.pixel_statistics(name)
    expected = (values for start, values in others.items() if name.startswith(start))
    assert (mean[0], std[0]) == next(expected, (0.43216, 0.22803))


def test_names_options_and_class_counts_that_do_not_fit_are_refused_with_what_would():
  for call in (models.task_of, models.pixel_statistics, models.options):
    with pytest.raises(ModelError, match=r"no model 'videomae_bas'. Did you mean videomae_base"):
      call("videomae_bas")
  with pytest.raises(ModelError, match=r"no option 'image_size'. It is one of videomae_small, "):
    models.create("hybrid", num_classes=2, image_size=112)
  with pytest.raises(ModelError, match="num_classes=None classes: give at least 1"):
    models.create("hybrid")


@pytest.mark.parametrize("remat", ["blocks", "convolutions_saved"])
@pytest.mark.parametrize("kind", ["classifier", "pretraining"])
def test_rematerialized_blocks_give_the_same_outputs_and_gradients(kind, remat):
  """With dropout of paths: what is computed again draws what was drawn before."""
  visible, masked = _tokens()

  def result(remat):
    if kind == "classifier":
      model = videomae.VideoMAE(5, **TINY, drop_path=0.5, remat=remat, rng=_rng())
    else:
      sizes = {**SHALLOW, **TINY_DECODER}
      model = videomae_pretraining.VideoMAEForPreTraining(**sizes, remat=remat, rng=_rng())
    model.train()
    graphdef, params, _ = models.split(model)

    def loss(params):
      merged = nnx.merge(graphdef, params)
      if kind == "classifier":
        return jnp.square(merged(_clips(), rngs=nnx.Rngs(dropout=jax.random.key(3)))).sum()
      return jnp.square(merged(_clips(), visible, masked)).sum()

    with contextlib.redirect_stdout(io.StringIO()) as told:
      jax.ad_checkpoint.print_saved_residuals(loss, params)
    return told.getvalue().count("\n"), jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params))

  (plain, expected), (recomputed, found) = result("none"), result(remat)
  assert recomputed < plain
  for a, b in zip(expected, found, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * float(jnp.abs(a).max()))
