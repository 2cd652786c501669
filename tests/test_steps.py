"""The pure steps on one device and on four."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video import augmentation, checkpoints, models, optimizers, sharding, steps

OPTIONS = {
  "cnn_blocks": 3,
  "cnn_width": 4,
  "latents": 4,
  "width": 16,
  "self_heads": 2,
  "head_dim": 8,
  "multiplier": 2,
  "dropout": 0.1,
}


def _network(**options):
  build = functools.partial(models.create, "hybrid", num_classes=4, **{**OPTIONS, **options})
  return steps.make_network(build, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))


def _optimizer():
  settings = optimizers.OptimizerSettings(name="adamw", learning_rate=1e-2, schedule="constant")
  schedule = optimizers.make_schedule(settings, steps=10, steps_per_epoch=1)
  return optimizers.make_optimizer(settings, schedule)


def _batches(count, size=8):
  rng = np.random.default_rng(0)
  return [
    {
      "clips": rng.integers(0, 256, (size, 4, 24, 24, 3), np.uint8),
      "labels": rng.integers(0, 4, size, np.int32),
      "flips": rng.integers(0, 2, size).astype(bool),
    }
    for _ in range(count)
  ]


def _run(devices, network, state=None, count=3, augment=None, batches=None):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  optimizer = _optimizer()
  state = steps.init_state(network, optimizer) if state is None else state
  state = jax.device_put(state, sharding.replicated(mesh))
  if isinstance(augment, augmentation.AugmentationSettings):
    augment = augmentation.make_augment(
      augment, mesh=mesh, normalise=network.normalise, num_classes=4
    )
  step = jax.jit(
    functools.partial(
      steps.train_step, network=network, optimizer=optimizer, seed=0, augment=augment
    )
  )
  losses = []
  for batch in batches or _batches(count):
    state, parts = step(state, sharding.put_batch(batch, mesh))
    losses.append(float(parts["loss"]))
  return state, losses


def test_four_devices_give_the_losses_of_one():
  network = _network()
  assert len(jax.devices()) == 4
  one, losses_of_one = _run(1, network)
  four, losses_of_four = _run(4, network)
  np.testing.assert_allclose(losses_of_four, losses_of_one, rtol=2e-4)
  stats = zip(
    jax.tree.leaves(one["batch_stats"]), jax.tree.leaves(four["batch_stats"]), strict=True
  )
  for a, b in stats:
    np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)


def test_the_same_state_and_batch_give_the_same_bits_again():
  network = _network()
  first, _ = _run(1, network)
  again, _ = _run(1, network)
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_checkpoint_of_one_device_goes_on_on_four(tmp_path):
  network = _network()
  state, _ = _run(1, network, count=1)
  kept = checkpoints.Checkpoints(tmp_path, {"model": "a"}, keep=1)
  kept.save(1, state)
  kept.close()
  mesh = sharding.make_mesh()
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.replicated(mesh)),
    state,
  )
  restored = checkpoints.Checkpoints(tmp_path, {"model": "a"}, keep=1).restore(abstract)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
    np.testing.assert_array_equal(a, b)
    assert b.sharding.is_fully_replicated and len(b.sharding.device_set) == 4
  _, losses = _run(4, network, state=restored, count=1)
  _, expected = _run(1, network, state=state, count=1)
  np.testing.assert_allclose(losses, expected, rtol=2e-4)


def test_every_parameter_of_the_attention_and_the_cnn_gets_a_gradient():
  # The source study's cross attention was never trained; here nothing may be left out.
  before = steps.init_state(_network(), _optimizer())["params"]
  after = _run(1, _network(), count=2)[0]["params"]
  still = [
    jax.tree_util.keystr(path)
    for (path, a), b in zip(
      jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=True
    )
    if np.array_equal(a, b)
  ]
  assert still == []


AUGMENTED = augmentation.AugmentationSettings(
  label_smoothing=0.1,
  mixup=0.8,
  cutmix=1.0,
  brightness=0.4,
  contrast=0.4,
  saturation=0.4,
  hue=0.1,
  randaugment_layers=2,
  erasing=0.5,
)


def test_augmented_training_is_the_same_on_any_number_of_devices():
  # Dropout's own draws are not in question here.
  network = _network(dropout=0.0)
  state, losses = _run(1, network, count=2, augment=AUGMENTED)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))
  np.testing.assert_allclose(_run(4, network, count=2, augment=AUGMENTED)[1], losses, rtol=2e-4)


def test_dropout_draws_the_same_beside_augmentation_whose_keys_are_its_own():
  network = _network(dropout=0.5)
  seen = []

  def only_watches(clips, labels, key):
    jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
    return network.normalise(clips), None

  plain, _ = _run(1, network)
  found, _ = _run(1, network, augment=only_watches)
  jax.effects_barrier()
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
    np.testing.assert_array_equal(a, b)
  dropout = [jax.random.fold_in(jax.random.key(0), step) for step in range(3)]
  others = [tuple(jax.random.key_data(key).tolist()) for key in dropout]
  assert len(seen) == 3
  assert len({*seen, *others}) == 6


def test_soft_labels_train_as_the_hard_labels_they_hold():
  network = _network(dropout=0.0)

  def of_the_next_class(clips, labels, key):
    return network.normalise(clips), jax.nn.one_hot((labels + 1) % 4, 4)

  # The second loss shows the first gradient.
  _, found = _run(1, network, count=2, augment=of_the_next_class)
  batches = [{**b, "labels": (b["labels"] + 1) % 4} for b in _batches(2)]
  _, expected = _run(1, network, batches=batches)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_evaluation_neither_drops_nor_depends_on_the_rest_of_the_batch():
  network = _network(dropout=0.5)
  state, _ = _run(1, network)
  predict = jax.jit(functools.partial(steps.predict_step, network=network))
  clips = _batches(1)[0]["clips"]
  logits = predict(state["params"], state["batch_stats"], clips)
  other = clips.copy()
  other[1:] = 0
  np.testing.assert_allclose(
    predict(state["params"], state["batch_stats"], other)[0], logits[0], rtol=1e-4, atol=1e-5
  )


def test_clips_are_normalised_per_channel():
  network = steps.make_network(
    functools.partial(models.create, "r2plus1d_18", num_classes=2, blocks=1, width=4),
    (0.5, 0.25, 0.0),
    (0.5, 0.25, 1.0),
  )
  found = network.normalise(jnp.array([[0, 255, 51]], jnp.uint8))
  np.testing.assert_allclose(found, [[-1.0, 3.0, 0.2]], rtol=1e-6)


@pytest.mark.parametrize(("size", "advice"), [(6, "4 or 8"), (3, "take 4"), (0, "take 4")])
def test_a_batch_that_does_not_divide_among_devices_is_refused(size, advice):
  with pytest.raises(ValueError, match=advice):
    sharding.check_batch_size(size, sharding.make_mesh())


def test_another_models_checkpoint_is_refused_with_the_differences(tmp_path):
  first = {"model": {"name": "hybrid", "width": 16}, "classes": ["a", "b"]}
  kept = checkpoints.Checkpoints(tmp_path, first, keep=1)
  kept.save(1, {"w": jnp.ones(3)})
  kept.close()
  checkpoints.Checkpoints(tmp_path, first, keep=1).close()
  second = {"model": {"name": "hybrid", "width": 32, "bands": 6}, "classes": ["a", "b"]}
  with pytest.raises(checkpoints.CheckpointError) as error:
    checkpoints.Checkpoints(tmp_path, second, keep=1)
  message = str(error.value)
  assert "model.width: 16 there, 32 asked for" in message
  assert "model.bands: nothing there, 6 asked for" in message
  assert "classes" not in message
  assert "--workdir" in message


def test_restoring_from_an_empty_work_directory_says_to_train_first(tmp_path):
  kept = checkpoints.Checkpoints(tmp_path, {}, keep=1)
  with pytest.raises(checkpoints.CheckpointError, match="Train first"):
    kept.restore({"w": jnp.ones(3)})


def test_a_network_is_the_same_function_as_its_module():
  options = {**OPTIONS, "dropout": 0.0}
  module = models.create("hybrid", num_classes=4, **options)
  network = _network(dropout=0.0)
  state = steps.init_state(network, _optimizer())
  clips = _batches(1, size=2)[0]["clips"]
  module.eval()
  graphdef, *variables = nnx.split(module, nnx.Param, nnx.BatchStat)
  direct = jax.jit(lambda v, x: nnx.merge(graphdef, *v)(network.normalise(x)))(variables, clips)
  np.testing.assert_allclose(
    steps.predict_step(state["params"], state["batch_stats"], clips, network=network),
    direct,
    rtol=1e-4,
    atol=1e-5,
  )
