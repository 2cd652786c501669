"""Where arrays live, and a training step whose state is split among devices."""

import functools

import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from hybrid_video import models, optimizers, sharding, steps
from hybrid_video import state as training_state
from hybrid_video.tasks import classification

STATISTICS = ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))


@pytest.mark.parametrize(
  ("shape", "spec"),
  [
    ((256, 128), ("fsdp",)),
    ((128, 256), (None, "fsdp")),
    # Of several axes as long, the last.
    ((128, 128), (None, "fsdp")),
    ((3, 3, 3, 64, 128), (None, None, None, None, "fsdp")),
    # The longest axis is odd: the next one.
    ((257, 64), (None, "fsdp")),
    # No axis divides, or the array is small.
    ((257, 65), ()),
    ((128, 126), ()),
    ((4096,), ()),
    ((), ()),
  ],
)
def test_the_longest_axis_that_divides_is_split_and_small_arrays_are_copied(shape, spec):
  mesh = sharding.make_mesh(fsdp=2)
  assert sharding.state_sharding(shape, mesh).spec == PartitionSpec(*spec)


def test_without_an_fsdp_axis_the_state_is_copied_everywhere():
  mesh = sharding.make_mesh()
  assert dict(mesh.shape) == {"data": 4, "fsdp": 1}
  assert sharding.state_sharding((1024, 1024), mesh).is_fully_replicated


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_a_batch_is_split_among_all_devices(fsdp):
  mesh = sharding.make_mesh(fsdp=fsdp)
  rows = np.arange(16, dtype=np.int32).reshape(8, 2)
  placed = sharding.put_batch({"rows": rows}, mesh)["rows"]
  assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2)}
  np.testing.assert_array_equal(placed, rows)


@pytest.mark.parametrize("fsdp", [0, 3, 8])
def test_devices_that_do_not_divide_are_refused(fsdp):
  with pytest.raises(sharding.ShardingError, match=f"4 devices .* groups of {fsdp}"):
    sharding.make_mesh(fsdp=fsdp)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_sizes():
  mesh = sharding.make_mesh(fsdp=2)
  sharding.check_batch_size(8, mesh, "--config.batch_size")
  with pytest.raises(sharding.ShardingError, match=r"--config\.batch_size is 6: .* to 4 or 8\."):
    sharding.check_batch_size(6, mesh, "--config.batch_size")
  with pytest.raises(sharding.ShardingError, match=r"--config\.batch_size is 3: .* to 4\."):
    sharding.check_batch_size(3, mesh, "--config.batch_size")


def _task():
  build = functools.partial(
    models.create,
    "hybrid",
    num_classes=4,
    seed=0,
    cnn_blocks=1,
    cnn_width=4,
    latents=4,
    width=16,
    self_heads=2,
    head_dim=8,
    multiplier=2,
    dropout=0.0,
  )
  return classification.make(build, *STATISTICS)


def _batch():
  rng = np.random.default_rng(0)
  return {
    "clips": rng.integers(0, 256, (4, 4, 24, 24, 3), np.uint8),
    "labels": rng.integers(0, 4, 4, np.int32),
    "mirrored": np.zeros(4, bool),
  }


def _two_steps(task, fsdp=2):
  """The loss before the first step and after it, and the state after both."""
  mesh = sharding.make_mesh(fsdp=fsdp)
  optimizer = optimizers.make_optimizer(optimizers.OptimizerSettings(name="adamw"))
  state = training_state.create(optimizer, mesh, *task.initial_variables())
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  step = jax.jit(
    functools.partial(steps.train_step, task=task, optimizer=optimizer),
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
  losses = []
  for _ in range(2):
    state, sums = step(state, sharding.put_batch(_batch(), mesh), np.float32(1e-2), np.uint32(0))
    losses.append(float(sums["loss"]))
  return losses, state


@pytest.fixture
def split_small_arrays(monkeypatch):
  """Lowers the size from which arrays are split: the tests' model has only small ones."""
  monkeypatch.setattr(sharding, "_SMALLEST_SPLIT", 64)


def test_a_state_split_in_two_gives_the_losses_of_a_copied_one(split_small_arrays):
  task = _task()
  copied_losses, copied = _two_steps(task, fsdp=1)
  split_losses, split = _two_steps(task, fsdp=2)
  np.testing.assert_allclose(split_losses, copied_losses, rtol=2e-4)
  assert copied_losses[0] != copied_losses[1]
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(copied))
  for name in ("params", "opt_state"):
    divided = [leaf for leaf in jax.tree.leaves(split[name]) if "fsdp" in leaf.sharding.spec]
    assert divided
    assert all(2 * leaf.addressable_shards[0].data.size == leaf.size for leaf in divided)


def test_a_new_state_lies_as_its_description_says_and_holds_the_initial_values(split_small_arrays):
  task, mesh = _task(), sharding.make_mesh(fsdp=2)
  optimizer = optimizers.make_optimizer(optimizers.OptimizerSettings(name="adamw"))
  params, batch_stats = task.initial_variables()
  state = training_state.create(optimizer, mesh, params, batch_stats)
  described = training_state.abstract(task, optimizer, mesh)
  assert jax.tree.structure(state) == jax.tree.structure(described)
  for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(described), strict=True):
    assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
    assert leaf.sharding == wanted.sharding == sharding.state_sharding(leaf.shape, mesh)
  for name, initial in (("params", params), ("batch_stats", batch_stats)):
    for leaf, value in zip(jax.tree.leaves(state[name]), jax.tree.leaves(initial), strict=True):
      np.testing.assert_array_equal(leaf, value)
