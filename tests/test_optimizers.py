import jax.numpy as jnp
import optax
import pytest

from hybrid_video import optimizers


def _schedule(steps=100, steps_per_epoch=10, **settings):
  made = optimizers.OptimizerSettings(learning_rate=1.0, **settings)
  return optimizers.make_schedule(made, steps=steps, steps_per_epoch=steps_per_epoch)


def test_step_decay_multiplies_after_every_so_many_epochs():
  schedule = _schedule(schedule="step", step_epochs=2, step_factor=0.2)
  found = [float(schedule(step)) for step in (0, 19, 20, 39, 40)]
  assert found == pytest.approx([1.0, 1.0, 0.2, 0.2, 0.04])


def test_cosine_rises_for_the_warm_up_and_ends_at_zero():
  schedule = _schedule(schedule="cosine", warmup_epochs=1)
  found = [float(schedule(step)) for step in (0, 5, 10, 55, 100)]
  assert found == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0], abs=1e-6)


def _first_update(name, gradient, parameter, **settings):
  made = optimizers.OptimizerSettings(name=name, learning_rate=0.1, schedule="constant", **settings)
  schedule = optimizers.make_schedule(made, steps=10, steps_per_epoch=1)
  optimizer = optimizers.make_optimizer(made, schedule)
  params = {"w": jnp.array(parameter)}
  updates, _ = optimizer.update({"w": jnp.array(gradient)}, optimizer.init(params), params)
  return float(optax.apply_updates(params, updates)["w"])


def test_weight_decay_is_l2_in_sgd_and_decoupled_in_adamw():
  # SGD: 2 - 0.1 (3 + 0.5 * 2). Adam scales the first step to 0.1 whatever the L2 term;
  # AdamW adds 0.1 * 0.5 * 2.
  assert _first_update("sgd", 3.0, 2.0, weight_decay=0.5) == pytest.approx(1.6)
  assert _first_update("adam", 3.0, 2.0, weight_decay=0.5) == pytest.approx(1.9, rel=1e-5)
  assert _first_update("adamw", 3.0, 2.0, weight_decay=0.5) == pytest.approx(1.8, rel=1e-5)


def test_clipping_scales_a_large_gradient_to_the_norm():
  assert _first_update("sgd", 50.0, 0.0, clip_norm=2.0) == pytest.approx(-0.2)
  assert _first_update("sgd", 1.5, 0.0, clip_norm=2.0) == pytest.approx(-0.15)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"schedule": "linear"}, "no schedule 'linear'"),
    ({"warmup_epochs": 10}, "warm-up of 100 steps"),
  ],
)
def test_a_schedule_that_cannot_be_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    _schedule(**settings)


def test_an_unknown_optimiser_is_refused():
  with pytest.raises(ValueError, match="no optimiser 'lion'"):
    optimizers.make_optimizer(
      optimizers.OptimizerSettings(name="lion"), optax.constant_schedule(0.1)
    )
