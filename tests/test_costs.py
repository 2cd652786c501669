import types

import jax
import jax.numpy as jnp
import pytest

from hybrid_video.models import costs, target


@pytest.mark.parametrize(
  ("name", "options", "clip", "expected"),
  [
    # The head reads one averaged vector whatever the number of frames: 512 x 400 = 204,800.
    ("r2plus1d_18", {}, (16, 112, 112), 40_519_080_960),
    ("r2plus1d_18", {}, (8, 112, 112), (40_519_080_960 - 204_800) // 2 + 204_800),
  ],
)
def test_a_network_costs_its_published_multiply_accumulates(name, options, clip, expected):
  assert costs.of_model(name, clip, 400, **options) == expected


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_forms_that_a_device_takes_change_no_count(platform):
  options = {"blocks": 3, "width": 32}
  counts = {costs.of_model("r2plus1d_18", (4, 32, 32), 5, **options)}
  with target.traced_for([types.SimpleNamespace(platform=platform)]):
    counts.add(costs.of_model("r2plus1d_18", (4, 32, 32), 5, **options))
  assert len(counts) == 1


@pytest.mark.parametrize(
  ("name", "clip", "giga"),
  [
    ("r3d_18", (16, 112, 112), 40.697),
    ("mc3_18", (16, 112, 112), 43.343),
    ("r2plus1d_34", (8, 112, 112), 38.089),
    ("r2plus1d_34", (32, 112, 112), 152.356),
  ],
)
def test_the_other_networks_cost_their_published_billions(name, clip, giga):
  assert costs.of_model(name, clip, 400) / 1e9 == pytest.approx(giga, abs=5e-4)


def test_products_are_counted_through_jit_remat_and_batches():
  def two(x, y):
    return jax.jit(jnp.matmul)(x, y) + jax.checkpoint(jnp.matmul)(x, y)

  x, y = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))
  assert costs.multiply_accumulates(two, x, y) == 2 * 3 * 4 * 5 * 6


def test_a_scans_products_count_as_often_as_it_runs():
  def scanned(x):
    return jax.lax.scan(lambda carry, row: (carry @ row, None), jnp.ones((2, 5)), x)[0]

  assert costs.multiply_accumulates(scanned, jnp.ones((7, 5, 5))) == 7 * 2 * 5 * 5
