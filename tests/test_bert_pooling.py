import functools

from flax import nnx
from golden import reference_weights
from golden.bert_pooling import BATCH, GOLDEN, WIDTH, errors, kept_keys, reference, tokens_of
from golden.comparison import relative_error
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video import models, weights
from hybrid_video.models import bert_pooling, layers

SMALL = {"blocks": 1, "width": 4, "frames": 4, "heads": 2}


@pytest.mark.parametrize("count", [2, 4, 8])
def test_pooled_features_are_those_of_the_reference_with_and_without_a_mask(count):
  assert max(errors(count).values()) < 1e-5
  assert relative_error(GOLDEN[f"tokens{count}_masked"], GOLDEN[f"tokens{count}"]) > 1e-2


def test_gradients_under_a_mask_are_those_of_the_reference():
  pooling = reference(4)
  probe = reference_weights.clips((BATCH, WIDTH), seed=1)
  gradients = jax.jit(jax.grad(lambda x: (pooling.attend(x, kept_keys(4))[:, 0] * probe).sum()))
  gradient = gradients(tokens_of(4))
  assert relative_error(gradient, GOLDEN["tokens4_masked_gradient"]) < 1e-5


def test_the_norm_divides_by_the_unbiased_deviation_plus_epsilon():
  norm = bert_pooling.LayerNorm(3)
  norm.scale[...], norm.bias[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 0.0, 5.0])
  np.testing.assert_allclose(norm(jnp.array([-2.0, 0.0, 2.0])), [-1, 0, 8], rtol=1e-5, atol=1e-6)
  # A deviation as small as epsilon halves the result; inside the root it would vanish.
  np.testing.assert_allclose(norm(1e-6 * jnp.array([-1.0, 0.0, 1.0])), [-0.5, 0, 6.5], rtol=1e-4)


@pytest.mark.parametrize(
  ("frames", "attention"), [(16, 3_154_432), (32, 3_155_456), (64, 3_157_504)]
)
def test_the_classifier_has_its_exact_parameter_count(frames, attention):
  model = nnx.eval_shape(
    lambda: bert_pooling.BertClassifier(51, frames=frames, rng=np.random.default_rng(0))
  )
  counts = models.parameter_counts(models.split(model)[1])
  assert model.attention.max_tokens == frames // 8
  assert attention == 3_152_384 + WIDTH + WIDTH * (1 + frames // 8)
  assert (counts["cnn"], counts["attention"], counts["head"]) == (31_300_125, attention, 26_163)


def _pooling(tokens: int = 4, **options) -> bert_pooling.BertPooling:
  options = {"heads": 2, "rng": np.random.default_rng(0), **options}
  return bert_pooling.BertPooling(16, tokens, **options)


def test_nothing_flows_from_a_masked_token_to_any_other():
  pooling = _pooling()
  pooling.eval()
  kept = jnp.array([[True, False, True, False], [True, True, True, True]])
  flow = jax.jit(jax.jacobian(lambda x: pooling.attend(x, kept)))(tokens_of(4, 2, 16))
  # [clip, output token, clip, input token]; output 0 is CLS.
  reached = np.asarray(jnp.abs(flow).max((2, 5)))
  assert (reached[0, :, 1] == 0).all() and (reached[1, :, 0] == 0).all()
  own = np.eye(5, 4, -1, dtype=bool)
  np.testing.assert_array_equal(reached[0, :, 0] > 0, own | np.asarray(kept[0]))
  assert (reached[1, :, 1] > 0).all()


def test_a_clip_with_every_token_masked_still_has_its_cls_token_and_nothing_else():
  pooling = _pooling()
  pooling.eval()
  out = pooling.attend(tokens_of(4, 2, 16), jnp.zeros((2, 4), bool))[:, 0]
  other = pooling.attend(7.0 - tokens_of(4, 2, 16), jnp.zeros((2, 4), bool))[:, 0]
  np.testing.assert_array_equal(out, other)
  assert np.isfinite(out).all() and (jnp.abs(out).max() > 0)
  pooling.cls[...] = 1.0 - pooling.cls[...]
  moved = pooling.attend(tokens_of(4, 2, 16), jnp.zeros((2, 4), bool))[:, 0]
  assert not np.allclose(out, moved, atol=1e-3)


def test_training_masks_by_the_drawn_keys_and_keeps_four_fifths():
  visible = bert_pooling.draw_visible_keys(jax.random.key(0), (4000, 8), 0.8)
  assert abs(float(visible.mean()) - 0.8) < 0.01
  assert (np.abs(np.asarray(visible.mean(0)) - 0.8) < 0.03).all()
  # Tokens are masked one by one, not clip by clip.
  assert abs(float((visible.sum(1) == 8).mean()) - 0.8**8) < 0.03

  # What training draws is what it uses: a token's gradient vanishes as often as it is masked.
  pooling = _pooling(8, dropout=0.0)

  @jax.jit
  @jax.grad
  def gradients(tokens):
    return pooling(tokens, nnx.Rngs(dropout=jax.random.key(3)))[:, 0].sum()

  gradient = gradients(tokens_of(8, 1000, 16))
  reached = np.asarray(jnp.abs(gradient).max(-1) > 0)
  assert abs(reached.mean() - 0.8) < 0.02
  assert 0 < reached.all(1).mean() < 0.3


def test_evaluation_needs_no_key_and_training_follows_its_own():
  pooling = _pooling(dropout=0.0)
  tokens = tokens_of(4, 64, 16)

  def trained(seed):
    return pooling(tokens, nnx.Rngs(dropout=jax.random.key(seed)))

  np.testing.assert_array_equal(trained(0), trained(0))
  assert not np.allclose(trained(0), trained(1))
  with pytest.raises(ValueError, match=r"rngs=nnx\.Rngs\(dropout=key\)"):
    pooling(tokens)
  pooling.eval()
  np.testing.assert_array_equal(pooling(tokens), pooling(tokens))
  np.testing.assert_array_equal(pooling(tokens), trained(0))
  np.testing.assert_array_equal(pooling(tokens), pooling.attend(tokens, None)[:, 0])
  pooling.train()
  assert not np.allclose(trained(0), pooling.attend(tokens, None)[:, 0])


def test_the_last_dropout_covers_the_pooled_features_and_keeps_their_mean():
  pooling = _pooling(dropout=0.1, key_keep=1.0)
  pooled = jax.jit(lambda x, key: pooling(x, nnx.Rngs(dropout=key)))(
    jnp.broadcast_to(tokens_of(4, 1, 16), (4000, 4, 16)), jax.random.key(0)
  )
  # Only the dropout after the block can zero a feature: all before it is inside the residual.
  assert abs(float((pooled == 0).mean()) - 0.1) < 0.01
  pooling.eval()
  whole = pooling(tokens_of(4, 1, 16))[0]
  np.testing.assert_allclose(pooled.mean(0), whole, atol=0.15 * float(jnp.abs(whole).max()))


def test_dropout_works_at_six_places_and_the_mask_has_a_key_of_its_own():
  pooling = _pooling()

  @jax.jit
  def keys_drawn(tokens):
    rngs = nnx.Rngs(dropout=jax.random.key(0))
    pooling(tokens, rngs)
    return rngs.dropout.count[...]

  assert keys_drawn(tokens_of(4, 2, 16)) == 7


def test_the_order_of_tokens_matters():
  pooling = _pooling()
  pooling.positions[...] = 10.0 * pooling.positions[...]
  pooling.eval()
  tokens = tokens_of(4, 2, 16)
  assert not np.allclose(pooling(tokens), pooling(tokens[:, ::-1]), atol=1e-4)
  pooling.positions[...] = jnp.zeros_like(pooling.positions[...])
  np.testing.assert_allclose(pooling(tokens), pooling(tokens[:, ::-1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_clips_of_other_lengths_take_positions_between_the_learned_ones(count):
  """As a model of that length would whose table is interpolated by NumPy."""
  pooling = _pooling()
  pooling.eval()
  of_cls, table = np.split(np.asarray(pooling.positions[...]), [1])
  at = np.linspace(0, len(table) - 1, count) if count > 1 else [0.0]
  between = [np.interp(at, np.arange(len(table)), column) for column in table.T]
  longer = _pooling(count)
  longer.eval()
  for name in ("cls", "norm1", "norm2", "self_attention", "expand", "contract"):
    setattr(longer, name, getattr(pooling, name))
  longer.positions[...] = jnp.asarray(np.concatenate([of_cls, np.stack(between, 1)]), jnp.float32)
  tokens = tokens_of(count, 2, 16)
  np.testing.assert_allclose(pooling(tokens), longer(tokens), rtol=1e-5, atol=1e-6)


@functools.cache
def _classifier(dtype=jnp.float32) -> bert_pooling.BertClassifier:
  return bert_pooling.BertClassifier(7, dtype=dtype, rng=np.random.default_rng(0), **SMALL)


def _clips(frames: int = 4, batch: int = 2) -> jax.Array:
  return jnp.asarray(reference_weights.clips((batch, frames, 8, 8, 3)))


def test_the_classifier_learns_through_every_parameter():
  model = _classifier()
  graphdef, params, batch_stats = models.split(model)

  @jax.jit
  def gradients(params):
    def loss(params):
      logits = nnx.merge(graphdef, params, batch_stats)(
        _clips(batch=4), nnx.Rngs(dropout=jax.random.key(2))
      )
      return jnp.square(logits).sum(), logits

    return jax.grad(loss, has_aux=True)(params)

  found, logits = gradients(params)
  assert logits.shape == (4, 7) and logits.dtype == jnp.float32
  for path, leaf in nnx.traversals.flatten_mapping(found).items():
    # Softmax takes no notice of a shift of all scores, so the keys' bias is idle by design.
    if path[-2:] != ("to_k", "bias"):
      assert (jnp.abs(leaf) > 0).any(), path


def test_bfloat16_logits_stay_near_float32_and_parameters_wide():
  wide, narrow = (nnx.clone(_classifier(dtype)) for dtype in (jnp.float32, jnp.bfloat16))
  assert {leaf.dtype for leaf in jax.tree.leaves(models.split(narrow)[1])} == {jnp.dtype("float32")}
  wide.eval(), narrow.eval()
  a, b = (jax.jit(lambda clips, m=m: m(clips))(_clips()) for m in (wide, narrow))
  assert b.dtype == jnp.float32
  np.testing.assert_allclose(a, b, atol=0.1 * float(jnp.abs(a).max()))


def test_the_head_starts_at_xavier_uniform_values_and_zero_biases():
  kernel = layers.xavier_uniform(np.random.default_rng(0), (512, 51))
  bound = np.sqrt(6 / 563)
  assert 0.99 * bound < float(jnp.abs(kernel).max()) <= bound
  np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)
  head = _classifier().head
  assert (head.bias[...] == 0).all() and float(jnp.abs(head.kernel[...]).max()) > 0


def test_weights_of_other_lengths_are_interpolated(caplog):
  short, long = (
    models.create(
      "r2plus1d_18_bert", num_classes=3, blocks=3, width=4, heads=2, frames=frames, seed=seed
    )
    for frames, seed in ((6, 1), (12, 2))
  )
  _, params, batch_stats = models.split(short)
  with caplog.at_level("INFO", "hybrid_video"):
    weights.load_trees(long, params, batch_stats, source="a run")
  assert "a run: positions of 3 moments are interpolated to 6" in caplog.text
  theirs, ours = (
    np.asarray(params["attention"]["positions"]),
    np.asarray(long.attention.positions[...]),
  )
  np.testing.assert_allclose(ours[[0, 1, -1]], theirs[[0, 1, -1]])
  between = [np.interp(np.linspace(0, 2, 6), range(3), column) for column in theirs[1:].T]
  np.testing.assert_allclose(ours[1:], np.stack(between, 1), rtol=1e-5, atol=1e-7)


def test_a_classifier_takes_clips_of_any_length():
  model = bert_pooling.BertClassifier(7, blocks=3, width=4, frames=4, rng=np.random.default_rng(0))
  model.eval()
  assert model.attention.max_tokens == 2
  assert jax.eval_shape(lambda clips: model(clips), _clips(3)).shape == (2, 7)
  for frames in (2, 8):
    assert jax.eval_shape(lambda clips: model(clips), _clips(frames)).shape == (2, 7)


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (lambda: _pooling(heads=3), "16 channels do not divide evenly among 3"),
    (lambda: _pooling(0), "at least 1 token"),
    (lambda: _pooling(key_keep=0.0), "key_keep=0.0 is not a chance"),
    (lambda: _pooling(key_keep=1.2), "key_keep=1.2 is not a chance"),
    (lambda: _pooling().attend(jnp.zeros((1, 4, 8)), None), "tokens of 8 channels .* built for 16"),
    (
      lambda: bert_pooling.BertClassifier(3, frames=0, rng=np.random.default_rng(0)),
      "at least 1 frame",
    ),
  ],
)
def test_options_that_do_not_fit_are_refused(build, message):
  with pytest.raises(ValueError, match=message):
    build()
