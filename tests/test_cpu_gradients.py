"""Gradients that CPUs compute in a form of their own are those of the plain form, and cost no more with depth."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video.models import layers, residual, target, videomae


def gradients(function, *arguments):
  """Of the sum of a function, as a CPU computes them and in the plain form."""

  def both(*arguments):
    return jax.grad(lambda *of: jnp.sin(function(*of)).sum(), tuple(range(len(arguments))))(
      *arguments
    )

  of_cpu = jax.jit(lambda *of: both(*of))(*arguments)
  with target.traced_for([]):
    plain = jax.jit(lambda *of: both(*of))(*arguments)
  return of_cpu, plain


@pytest.mark.parametrize(("fan_in", "fan_out"), [(24, 40), (40, 24)])
def test_a_linear_layer_has_the_plain_gradients(fan_in, fan_out):
  rng = np.random.default_rng(0)
  layer = layers.Linear(fan_in, fan_out, rng=rng)

  def outputs(x, kernel):
    return nnx.merge(nnx.graphdef(layer), {"kernel": kernel, "bias": layer.bias[...]})(x)

  x = rng.standard_normal((2, 30, fan_in), np.float32)
  found, plain = gradients(outputs, x, layer.kernel[...])
  for one, other in zip(found, plain, strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)


def test_a_residual_sum_has_the_plain_gradients():
  x, scale = np.random.default_rng(1).standard_normal((2, 3, 5, 7), np.float32)

  def twice(x, scale):
    x = residual.add(x, x * scale)
    return residual.add(x, jnp.tanh(x))

  found, plain = gradients(twice, x, scale)
  for one, other in zip(found, plain, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_a_gradient_that_is_not_a_number_stays_one():
  x = np.full((2, 3), np.nan, np.float32)
  found, _ = gradients(lambda x: residual.add(x, x), x)
  assert np.isnan(found[0]).all()


def test_what_is_not_a_number_in_one_clip_reaches_no_other():
  x = np.ones((2, 3), np.float32)
  x[0, 0] = np.nan
  total = np.asarray(jax.jit(residual.add)(x, x))
  np.testing.assert_array_equal(total, x + x)
  found, _ = gradients(lambda x: residual.add(x, x), x)
  np.testing.assert_array_equal(np.isnan(found[0]), np.isnan(x))


def test_a_deeper_network_adds_up_no_gradient_again():
  def additions(depth):
    blocks = videomae.transformer_blocks(
      16,
      depth,
      2,
      epsilon=1e-6,
      init=videomae.normal_002,
      dtype=jnp.float32,
      rng=np.random.default_rng(0),
    )
    graphdef, params = nnx.split(blocks)

    def loss(params, x):
      return videomae.through_blocks(nnx.merge(graphdef, params), x).sum()

    x = jnp.zeros((2, 12, 16))
    text = jax.jit(jax.grad(loss)).lower(params, x).compile().as_text()
    return text.count(" add(")

  # A wall between them makes all blocks alike; where each sums up all above it, the later ones add more.
  few, some, many = additions(2), additions(4), additions(6)
  assert many - some == pytest.approx(some - few, rel=0.1)
