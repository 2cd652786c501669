import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hybrid_video import optimizers
from hybrid_video.settings import SettingError


def _schedule(steps=100, steps_per_epoch=10, **settings):
  made = optimizers.OptimizerSettings(learning_rate=1.0, **settings)
  return optimizers.make_schedule(made, steps=steps, steps_per_epoch=steps_per_epoch)


def test_step_decay_multiplies_after_every_so_many_epochs():
  schedule = _schedule(schedule="step", step_epochs=2, step_factor=0.2)
  rates = [float(schedule(step)) for step in (0, 19, 20, 39, 40)]
  assert rates == pytest.approx([1.0, 1.0, 0.2, 0.2, 0.04])


def test_cosine_rises_for_the_warm_up_and_ends_at_zero():
  schedule = _schedule(schedule="cosine", warmup_epochs=1)
  rates = [float(schedule(step)) for step in (0, 5, 10, 55, 100)]
  assert rates == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0], abs=1e-6)


_STEPS, _PER_EPOCH, _WARMUP, _RATE = 40, 3.5, 7, 0.3


@pytest.mark.parametrize(
  ("name", "after"),
  [
    ("constant", optax.constant_schedule(_RATE)),
    ("cosine", optax.cosine_decay_schedule(_RATE, _STEPS - _WARMUP)),
    # Three epochs are 10.5 steps, and Python rounds to the even number.
    ("step", optax.exponential_decay(_RATE, 10, 0.2, staircase=True)),
  ],
)
def test_schedules_are_those_of_optax_at_every_step_and_float32(name, after):
  settings = optimizers.OptimizerSettings(
    schedule=name, learning_rate=_RATE, warmup_epochs=2, step_epochs=3, step_factor=0.2
  )
  schedule = optimizers.make_schedule(settings, steps=_STEPS, steps_per_epoch=_PER_EPOCH)
  rates = [schedule(step) for step in range(_STEPS + 2)]
  assert {type(rate) for rate in rates} == {np.float32}
  theirs = optax.join_schedules([optax.linear_schedule(0.0, _RATE, _WARMUP), after], [_WARMUP])
  expected = theirs(jnp.arange(_STEPS + 2))
  np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-7)


def _first_update(name, gradient, parameter, **settings):
  optimizer = optimizers.make_optimizer(optimizers.OptimizerSettings(name=name, **settings))
  params = {"w": jnp.array(parameter)}
  updates, _ = optimizer.update({"w": jnp.array(gradient)}, optimizer.init(params), params)
  return parameter + 0.1 * float(updates["w"])


def test_weight_decay_is_l2_in_sgd_and_decoupled_in_adamw():
  # SGD: 2 - 0.1 (3 + 0.5 * 2). Adam scales the first step to 0.1 whatever the L2 term;
  # AdamW adds 0.1 * 0.5 * 2.
  assert _first_update("sgd", 3.0, 2.0, weight_decay=0.5) == pytest.approx(1.6)
  assert _first_update("adam", 3.0, 2.0, weight_decay=0.5) == pytest.approx(1.9, rel=1e-5)
  assert _first_update("adamw", 3.0, 2.0, weight_decay=0.5) == pytest.approx(1.8, rel=1e-5)


def test_clipping_scales_a_large_gradient_to_the_norm():
  assert _first_update("sgd", 50.0, 0.0, clip_norm=2.0) == pytest.approx(-0.2)
  assert _first_update("sgd", 1.5, 0.0, clip_norm=2.0) == pytest.approx(-0.15)


def test_an_unknown_schedule_is_refused():
  with pytest.raises(SettingError) as error:
    _schedule(schedule="linear")
  assert "--config.optimizer.schedule is 'linear': expected one of constant, cosine, step." in str(
    error.value
  )


@pytest.mark.parametrize(("steps", "per_epoch"), [(100, 10.0), (4, 3.5), (1, 0.2)])
def test_a_warm_up_as_long_as_the_training_is_refused_with_one_that_fits(steps, per_epoch):
  def schedule(warmup_epochs):
    settings = optimizers.OptimizerSettings(warmup_epochs=warmup_epochs)
    return optimizers.make_schedule(settings, steps=steps, steps_per_epoch=per_epoch)

  message = (
    rf"--config\.optimizer\.warmup_epochs is 10: a warm-up of \d+ steps .* training of {steps} .*"
    r"Set --config\.optimizer\.warmup_epochs=(\S+), .* --config\.epochs above 10\."
  )
  with pytest.raises(optimizers.OptimizerError, match=message) as error:
    schedule(10.0)
  advised = re.search(message, str(error.value))
  assert advised
  schedule(float(advised[1]))


def test_an_unknown_optimizer_is_refused():
  with pytest.raises(
    SettingError,
    match=r"--config\.optimizer\.name is 'lion': expected one of adam, adamw, sgd\.",
  ):
    optimizers.OptimizerSettings(name="lion")


def test_a_part_to_freeze_that_the_model_lacks_is_refused_with_the_nearest():
  optimizer = optimizers.make_optimizer(optimizers.OptimizerSettings(freeze=("cnn/layer9",)))
  params = {"cnn": {"layer1": {"w": jnp.zeros(2)}}, "head": {"w": jnp.zeros(2)}}
  with pytest.raises(
    optimizers.OptimizerError,
    match=r"--config\.optimizer\.freeze names 'cnn/layer9'.*Did you mean cnn/layer1\?",
  ):
    optimizer.init(params)


@pytest.mark.parametrize(
  ("name", "theirs"),
  [
    ("sgd", lambda rate: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rate, 0.9))),
    ("adam", lambda rate: optax.chain(optax.add_decayed_weights(0.1), optax.adam(rate))),
    ("adamw", lambda rate: optax.adamw(rate, weight_decay=0.1)),
  ],
)
def test_a_rate_applied_after_the_optimizer_trains_as_optax_with_the_schedule_inside(name, theirs):
  settings = optimizers.OptimizerSettings(name=name, weight_decay=0.1, warmup_epochs=2)
  schedule = optimizers.make_schedule(settings, steps=12, steps_per_epoch=2)
  ours = optimizers.make_optimizer(settings)
  rates = jnp.array([schedule(step) for step in range(12)])
  reference = theirs(lambda count: rates[count])
  rng = np.random.default_rng(0)
  a = b = {"w": jnp.array(rng.standard_normal(5), jnp.float32)}
  state, expected_state = ours.init(a), reference.init(b)
  for step in range(12):
    rate = schedule(step)
    gradients = {"w": jnp.array(rng.standard_normal(5), jnp.float32)}
    updates, state = ours.update(gradients, state, a)
    a = optax.apply_updates(a, jax.tree.map(lambda u, rate=rate: rate * u, updates))
    updates, expected_state = reference.update(gradients, expected_state, b)
    b = optax.apply_updates(b, updates)
  np.testing.assert_allclose(a["w"], b["w"], rtol=1e-6)
