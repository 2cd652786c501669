from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import demo, hmdb51, hmdb51_small
from hybrid_video import experiment, models
from hybrid_video.models import layers, perceiver, video_resnet

NARROW = {
  "cnn_blocks": 4,
  "cnn_width": 8,
  "latents": 6,
  "width": 16,
  "self_heads": 2,
  "head_dim": 8,
  "multiplier": 2,
}
# cnn, attention, head, total with 51 classes. Every configuration of the project stands here.
PARAMETERS = {
  "cnn8_cross1_self6": (31_300_125, 28_630_478, 27_187, 59_957_790),
  "cnn8_cross1_self2": (31_300_125, 11_824_590, 27_187, 43_151_902),
  "cnn8_cross1_self1": (31_300_125, 7_623_118, 27_187, 38_950_430),
  "cnn7_cross1_self1": (17_137_693, 7_623_118, 27_187, 24_787_998),
  "cnn6_cross1_self6": (7_804_601, 28_597_198, 27_187, 36_428_986),
  "cnn4_cross1_self6": (1_929_865, 28_580_558, 27_187, 30_537_610),
  "cnn4_cross2_self12": (1_929_865, 57_029_532, 27_187, 58_986_584),
  "cnn8_cross1": (31_300_125, 3_421_134, 27_187, 34_748_446),
  "cnn8_self1": (31_300_125, 4_201_984, 27_187, 35_529_296),
  "baseline": (31_300_125, 0, 26_163, 31_326_288),
}


def counts(config, num_classes: int) -> tuple[int, ...]:
  of = experiment.from_config(config)
  model = nnx.eval_shape(
    lambda: models.create(
      of.model.name, num_classes=num_classes, dtype=of.model.dtype, **of.model_options
    )
  )
  return tuple(models.parameter_counts(models.split(model)[1]).values())


@pytest.mark.parametrize("row", hmdb51.ROWS)
def test_every_row_of_the_study_has_its_exact_parameter_count(row):
  assert counts(hmdb51.get_config(row), 51) == PARAMETERS[row]


def test_the_small_configurations_have_their_parameter_counts():
  assert counts(hmdb51_small.get_config(), 51) == (491_918, 253_838, 3_443, 749_199)
  assert counts(demo.get_config(), 8) == (31_278, 71_822, 648, 103_748)


def test_the_baseline_of_400_classes_is_torchvisions():
  assert counts(hmdb51.get_config("baseline"), 400) == (31_300_125, 0, 205_200, 31_505_325)


@pytest.mark.parametrize(
  ("name", "num_classes", "cnn", "total"),
  [
    ("r3d_18", 400, 33_166_272, 33_371_472),
    ("mc3_18", 400, 11_490_240, 11_695_440),
    ("r2plus1d_34", 400, 63_491_975, 63_697_175),
    ("r2plus1d_34", 359, 63_491_975, 63_676_142),
    ("r2plus1d_34", 487, 63_491_975, 63_741_806),
    ("r2plus1d_34", 51, 63_491_975, 63_518_138),
    ("r2plus1d_18_hara", 700, 33_215_964, 33_575_064),
  ],
)
def test_the_other_video_resnets_have_their_exact_parameter_counts(name, num_classes, cnn, total):
  model = nnx.eval_shape(lambda: models.create(name, num_classes=num_classes))
  parameters = models.parameter_counts(models.split(model)[1])
  assert (parameters["cnn"], parameters["total"]) == (cnn, total)


@pytest.mark.parametrize(
  ("blocks", "expected"),
  [
    (1, 237_489),
    (2, 459_505),
    (3, 1_043_465),
    (4, 1_929_865),
    (5, 4_262_329),
    (6, 7_804_601),
    (7, 17_137_693),
    (8, 31_300_125),
  ],
)
def test_the_cnn_has_its_exact_parameter_count_at_every_cut(blocks, expected):
  model = nnx.eval_shape(lambda: models.create("r2plus1d_18", num_classes=51, blocks=blocks))
  assert models.parameter_counts(models.split(model)[1])["cnn"] == expected


def test_the_network_of_hara_halves_all_sides_once_more():
  model = nnx.eval_shape(lambda: models.create("r2plus1d_18_hara", num_classes=700))
  model.eval()
  assert model.cnn.stem.conv.spatial.kernel.shape == (1, 7, 7, 3, 110)
  assert model.cnn.stem.conv.temporal.kernel.shape == (7, 1, 1, 110, 64)
  graphdef, *state = nnx.split(model.cnn, nnx.Param, nnx.BatchStat)
  for frames, out in ((16, 1), (64, 4), (17, 2)):
    clips = jax.ShapeDtypeStruct((2, frames, 112, 112, 3), jnp.float32)
    shape = jax.eval_shape(lambda s, x: nnx.merge(graphdef, *s)(x), state, clips).shape
    assert shape == (2, out, 4, 4, 512)
    assert model.cnn.frames_out(frames) == out


def test_the_max_pool_takes_the_largest_of_each_window():
  x = np.random.default_rng(0).standard_normal((1, 5, 4, 7, 2)).astype(np.float32)
  pooled = video_resnet.max_pool(jnp.asarray(x))
  assert pooled.shape == (1, 3, 2, 4, 2)
  for t, h, w in np.ndindex(3, 2, 4):
    window = x[0, max(2 * t - 1, 0) : 2 * t + 2, max(2 * h - 1, 0) : 2 * h + 2]
    expected = window[:, :, max(2 * w - 1, 0) : 2 * w + 2].max((0, 1, 2))
    np.testing.assert_array_equal(pooled[0, t, h, w], expected)


def test_the_numbers_of_the_study_follow_from_its_modules():
  # One cross module, one self block, and the CLS token and head, counted apart by hand.
  latents, self_block, cls, head = 131_072, 4_201_472, 512, 27_187

  def cross(channels):
    return 3_218_432 + 130 * (channels + 39)

  assert PARAMETERS["cnn8_cross1_self6"][1] == latents + cross(512) + 6 * self_block + cls
  assert PARAMETERS["cnn6_cross1_self6"][1] == latents + cross(256) + 6 * self_block + cls
  assert PARAMETERS["cnn4_cross2_self12"][1] == latents + 2 * cross(128) + 12 * self_block + cls
  assert PARAMETERS["cnn8_cross1"][1] == latents + cross(512)
  assert {row[2] for row in PARAMETERS.values()} == {head, 26_163}


@pytest.mark.parametrize(
  ("blocks", "shape"),
  [(1, (16, 56, 56, 64)), (4, (8, 28, 28, 128)), (6, (4, 14, 14, 256)), (8, (2, 7, 7, 512))],
)
def test_a_full_size_clip_gives_the_published_feature_map(blocks, shape):
  model = nnx.eval_shape(lambda: models.create("r2plus1d_18", num_classes=51, blocks=blocks))
  model.eval()
  graphdef, *state = nnx.split(model.cnn, nnx.Param, nnx.BatchStat)
  clips = jax.ShapeDtypeStruct((2, 16, 112, 112, 3), jnp.float32)
  out = jax.eval_shape(lambda s, x: nnx.merge(graphdef, *s)(x), state, clips)
  assert out.shape == (2, *shape)


def test_odd_sizes_round_up():
  model = models.create("r2plus1d_18", num_classes=3, blocks=8, width=4)
  model.eval()
  out = jax.eval_shape(lambda clips: model.cnn(clips), jnp.zeros((1, 9, 23, 33, 3)))
  assert out.shape == (1, 2, 2, 3, 32)


def test_one_seed_gives_the_same_initial_values_and_another_seed_others():
  def leaves(seed):
    model = models.create("hybrid", num_classes=3, seed=seed, **NARROW)
    return jax.tree.leaves(models.split(model)[1])

  first, again, other = leaves(0), leaves(0), leaves(1)
  assert all((a == b).all() for a, b in zip(first, again, strict=True))
  assert any((a != b).any() for a, b in zip(first, other, strict=True))


def _randomised(name: str = "hybrid", **options) -> nnx.Module:
  """A model whose every parameter and statistic is random, so that none hides behind 0 or 1."""
  model = models.create(name, num_classes=5, **{**(NARROW if name == "hybrid" else {}), **options})
  graphdef, params, batch_stats = models.split(model)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda p: p + 0.2 * rng.standard_normal(p.shape).astype(np.float32), params)
  batch_stats = jax.tree.map(
    lambda s: jnp.asarray(rng.uniform(0.5, 1.5, s.shape), jnp.float32), batch_stats
  )
  model = nnx.merge(graphdef, params, batch_stats)
  model.eval()
  return model


def _logits(model: nnx.Module, clips: jax.Array) -> jax.Array:
  return jax.jit(lambda clips: model(clips))(clips)


def _clips(batch: int = 2, frames: int = 8, size: int = 32) -> jax.Array:
  return jax.random.normal(jax.random.key(0), (batch, frames, size, size, 3))


@pytest.mark.parametrize(
  ("cross", "self_attention", "pool"),
  [(1, 0, "mean"), (1, 2, "cls"), (1, 2, "mean"), (2, 4, "cls"), (2, 2, "mean")],
)
def test_the_order_of_tokens_with_their_positions_changes_nothing(cross, self_attention, pool):
  model = _randomised(cross_blocks=cross, self_blocks=self_attention, pool=pool)
  tokens = jax.random.normal(jax.random.key(1), (2, 30, model.cnn.out_channels))
  positions = jnp.asarray(perceiver.fourier_positions((2, 3, 5), 6, 10.0))
  order = np.random.default_rng(0).permutation(30)
  straight = model.classify(model.attention.attend(tokens, positions))
  permuted = model.classify(model.attention.attend(tokens[:, order], positions[order]))
  np.testing.assert_allclose(permuted, straight, rtol=2e-4, atol=2e-5)
  moved = model.classify(model.attention.attend(tokens[:, order], positions))
  assert not np.allclose(moved, straight, atol=1e-3)


def test_reversed_time_changes_the_logits():
  for name in ("hybrid", "r2plus1d_18"):
    model = _randomised(name, **({"width": 8} if name == "r2plus1d_18" else {}))
    straight, reversed_ = _logits(model, _clips()), _logits(model, _clips()[:, ::-1])
    assert not np.allclose(straight, reversed_, atol=1e-3)


def test_one_clips_logits_take_nothing_from_another_clip():
  model = _randomised(self_blocks=2)
  gradient = jax.jit(jax.grad(lambda clips: model(clips)[0].sum()))(_clips(3))
  assert (gradient[1:] == 0).all()
  assert (gradient[0] != 0).any()


def test_self_attention_alone_reads_the_tokens_without_positions():
  model = _randomised(cross_blocks=0, self_blocks=1, pool="mean", use_cls=True, width=16)
  features = jax.random.normal(jax.random.key(1), (1, 2, 2, 2, model.cnn.out_channels))
  shuffled = features.reshape(1, 8, -1)[:, ::-1].reshape(features.shape)
  assert model.attention(features).shape == (1, 9, 16)
  np.testing.assert_allclose(
    model.classify(model.attention(features)), model.classify(model.attention(shuffled)), rtol=1e-4
  )


def test_bfloat16_arithmetic_stays_near_float32_and_parameters_stay_float32():
  wide = _randomised()
  narrow = _randomised(dtype="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(models.split(narrow)[1])} == {jnp.dtype("float32")}
  a, b = _logits(wide, _clips()), _logits(narrow, _clips())
  assert b.dtype == jnp.float32
  np.testing.assert_allclose(a, b, atol=0.1 * float(jnp.abs(a).max()))


def test_dropout_follows_its_key_and_is_off_in_evaluation():
  model = models.create("hybrid", num_classes=3, dropout=0.5, **NARROW)
  model.train()
  graphdef, *state = models.split(model)

  @jax.jit
  def logits(state, key):
    return nnx.merge(graphdef, *state)(_clips(), rngs=nnx.Rngs(dropout=jax.random.key(key)))

  np.testing.assert_array_equal(logits(state, 0), logits(state, 0))
  assert not np.allclose(logits(state, 0), logits(state, 1))
  model.eval()
  # No key is asked for.
  assert _logits(model, _clips()).shape == (2, 3)


def test_batch_norm_stores_the_unbiased_variance_and_normalizes_with_the_biased_one():
  x = np.random.default_rng(0).normal(3.0, 2.0, (4, 3, 2, 2, 5)).astype(np.float32)
  norm = layers.BatchNorm(5, epsilon=1e-3, momentum=0.9)
  norm.scale[...], norm.bias[...] = jnp.arange(1.0, 6.0), jnp.arange(5.0)
  y = norm(jnp.asarray(x))
  mean, axes = x.mean((0, 1, 2, 3)), (0, 1, 2, 3)
  expected = (x - mean) / np.sqrt(x.var(axes) + 1e-3) * np.arange(1, 6) + np.arange(5)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var(axes, ddof=1), rtol=1e-5)
  norm.eval()
  expected = x * np.asarray(norm.scale[...]) / np.sqrt(np.asarray(norm.var[...]) + 1e-3)
  assert np.allclose(np.diff(norm(jnp.asarray(x)) - expected, axis=0), 0, atol=1e-3)


def test_a_fresh_batch_norm_trains_inside_a_compiled_function():
  x = np.random.default_rng(0).normal(3.0, 2.0, (4, 3, 2, 2, 5)).astype(np.float32)
  fresh, eager = layers.BatchNorm(5), layers.BatchNorm(5)

  @jax.jit
  def mean_after(x):
    inside = nnx.merge(*nnx.split(fresh), copy=True)
    inside(x)
    return inside.mean[...]

  eager(jnp.asarray(x))
  np.testing.assert_allclose(mean_after(x), eager.mean[...], rtol=1e-5)
  assert not np.any(fresh.mean[...])


@pytest.mark.parametrize("options", [{}, {"pool": "mean", "self_blocks": 0}, {"cross_heads": 2}])
def test_a_video_read_in_parts_is_read_as_a_whole(options):
  model = models.create("hybrid", num_classes=3, **{**NARROW, "cnn_blocks": 1, **options})
  model.eval()
  parts = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4, 16, 16, 3)), jnp.float32)
  reading = model.nothing_read(2)
  for clips in parts:
    reading = model.read(reading, clips)
  # All tokens at once, each part's with its own positions.
  stack = model.attention
  features = [model.cnn(clips) for clips in parts]
  tokens = jnp.concatenate([of.reshape(2, -1, of.shape[-1]) for of in features], axis=1)
  positions = jnp.asarray(np.concatenate([stack.positions(of.shape[1:4]) for of in features]))
  whole = model.classify(stack.attend(tokens, positions))
  np.testing.assert_allclose(model.answer(reading), whole, atol=1e-5)
  # Of one part it is the ordinary answer; the order of parts changes nothing.
  alone = model.answer(model.read(model.nothing_read(2), parts[0]))
  np.testing.assert_allclose(alone, model(parts[0]), atol=1e-5)
  turned = model.nothing_read(2)
  for clips in parts[::-1]:
    turned = model.read(turned, clips)
  np.testing.assert_allclose(model.answer(turned), whole, atol=1e-5)


def test_several_cross_attentions_cannot_read_in_one_pass():
  for options in ({"cross_blocks": 2, "self_blocks": 2}, {"cross_blocks": 0, "width": 8}):
    model = models.create("hybrid", num_classes=3, **{**NARROW, "cnn_blocks": 1, **options})
    with pytest.raises(models.ModelError, match="one pass by one cross attention"):
      model.nothing_read(1)


def test_positions_mean_a_share_of_the_clip_or_a_time():
  options = {
    "cnn_blocks": 1,
    "cnn_width": 4,
    "latents": 2,
    "width": 8,
    "self_heads": 1,
    "head_dim": 4,
    "bands": 3,
  }
  own, absolute = (
    models.create("hybrid", num_classes=2, time_cells=cells, **options).attention
    for cells in (0, 8)
  )
  of_8, of_16 = own.positions((8, 2, 2)), absolute.positions((16, 2, 2))
  np.testing.assert_array_equal(absolute.positions((8, 2, 2)), of_8)
  # A longer clip begins as a shorter one does, and goes on beyond.
  np.testing.assert_array_equal(of_16[: 8 * 4], of_8)
  assert of_16.max() > 1.5 and own.positions((16, 2, 2)).max() <= 1


def test_fourier_positions_are_sines_cosines_and_the_position_on_each_axis():
  positions = perceiver.fourier_positions((2, 1, 3), bands=2, max_freq=10.0)
  assert positions.shape == (6, perceiver.fourier_channels(2)) == (6, 15)
  # Cell (1, 0, 2): coordinates 1, -1 (an axis of one cell) and 1; frequencies 1 and 5.
  for axis, coordinate in enumerate((1.0, -1.0, 1.0)):
    angles = np.pi * np.array([1.0, 5.0]) * coordinate
    expected = [*np.sin(angles), *np.cos(angles), coordinate]
    np.testing.assert_allclose(positions[5, 5 * axis : 5 * axis + 5], expected, atol=1e-6)


def test_the_mid_width_keeps_the_parameters_of_a_full_convolution():
  assert [video_resnet.mid_channels(*c) for c in [(64, 64), (64, 128), (128, 128), (512, 512)]] == [
    144,
    230,
    288,
    1152,
  ]


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("hybird", {}, "Did you mean hybrid"),
    ("hybrid", {"latent": 3}, "Did you mean latents"),
    ("hybrid", {"dtype": "bfloat"}, "Did you mean bfloat16"),
    ("hybrid", {"cnn_blocks": 9}, "1 to 8 blocks, not after 9"),
    ("hybrid", {"cnn_width": 0}, "at least 1 channel"),
    ("hybrid", {"cross_blocks": 0, "self_blocks": 0}, "at least one is needed"),
    ("hybrid", {"cross_blocks": 2, "self_blocks": 3}, "do not divide evenly"),
    ("hybrid", {"self_blocks": 0}, "use pool='mean'"),
    ("hybrid", {"pool": "max"}, "none of cls, mean"),
    ("hybrid", {"pool": "cls", "use_cls": False}, "use_cls cannot be False"),
    ("hybrid", {"cross_blocks": 0, "width": 64}, "set the attention width to 512"),
  ],
)
def test_options_that_do_not_fit_are_refused_in_words(name, options, message):
  with pytest.raises(models.ModelError, match=message):
    nnx.eval_shape(lambda: models.create(name, num_classes=5, **options))


def test_a_model_for_its_shapes_alone_has_them_and_draws_nothing():
  def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

  options = {"num_classes": 3, "cnn_width": 4, "latents": 4, "width": 16}
  drawn = models.split(models.create("hybrid", **options))[1]
  with models.shapes_only():
    empty = models.split(models.create("hybrid", **options))[1]
  assert shapes(empty) == shapes(drawn)
  kernel = empty["cnn"]["stem"]["conv"]["spatial"]["kernel"]
  assert not np.asarray(kernel).any()
  again = models.split(models.create("hybrid", **options))[1]
  jax.tree.map(np.testing.assert_array_equal, again, drawn)
