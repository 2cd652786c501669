"""The pure steps on one device and on four, and what they compile to."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video import (
  augmentation,
  checkpoints,
  compilation,
  models,
  optimizers,
  sharding,
  steps,
)

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


RATE, SEED = np.float32(1e-2), np.uint32(0)


def _optimizer():
  return optimizers.make_optimizer(optimizers.OptimizerSettings(name="adamw"))


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
    functools.partial(steps.train_step, network=network, optimizer=optimizer, augment=augment)
  )
  losses = []
  for batch in batches or _batches(count):
    state, parts = step(state, sharding.put_batch(batch, mesh), RATE, SEED)
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


def _experiment(epochs, seed, **settings):
  """A step, its state and what it is given at the fourth step of an experiment, as `train` does it."""
  made = optimizers.OptimizerSettings(name="adamw", weight_decay=0.1, **settings)
  schedule = optimizers.make_schedule(made, steps=10 * epochs, steps_per_epoch=10)
  optimizer = optimizers.make_optimizer(made)
  network = _network(seed=seed)
  step = jax.jit(
    functools.partial(steps.train_step, network=network, optimizer=optimizer), donate_argnums=0
  )
  return step, steps.init_state(network, optimizer), (schedule(3), np.uint32(seed))


EXPERIMENTS = [
  {"epochs": 2, "seed": 0, "learning_rate": 1e-2, "schedule": "cosine"},
  {"epochs": 7, "seed": 0, "learning_rate": 1e-2, "schedule": "cosine"},
  {"epochs": 2, "seed": 2**32 - 1, "learning_rate": 1e-2, "schedule": "cosine"},
  {"epochs": 2, "seed": 0, "learning_rate": 3.0, "schedule": "step", "warmup_epochs": 1.0},
]


def test_another_length_seed_rate_or_schedule_is_the_same_program():
  (batch,) = _batches(1)
  texts = set()
  for experiment in EXPERIMENTS:
    step, state, inputs = _experiment(**experiment)
    texts.add(step.lower(state, batch, *inputs).as_text())
  assert len(texts) == 1


def test_a_compiled_step_takes_every_rate_and_seed_without_compiling_again():
  step, state, _ = _experiment(**EXPERIMENTS[0])
  inputs = [_experiment(**experiment)[2] for experiment in EXPERIMENTS]
  (batch,) = _batches(1)
  # The state comes from one program, later from the step itself.
  with compilation.counted() as compiled:
    for given in inputs:
      state, _ = step(state, batch, *given)
  assert compiled.programs == 1 and compiled.seconds > 0


def test_the_rate_scales_the_update_and_the_seed_moves_dropout():
  step, _, _ = _experiment(**EXPERIMENTS[0])
  (batch,) = _batches(1)

  def update(rate, seed):
    state = steps.init_state(_network(), _optimizer())
    before = jax.device_get(state["params"])
    after = step(state, batch, np.float32(rate), np.uint32(seed))[0]["params"]
    return np.concatenate(
      [
        (b - a).ravel()
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
      ]
    )

  once = update(1e-2, 0)
  np.testing.assert_allclose(update(2e-2, 0), 2 * once, atol=1e-6)
  assert not update(0.0, 0).any()
  assert not np.array_equal(update(1e-2, 1), once)


def test_a_donated_state_gives_all_its_memory_to_the_next():
  mesh = sharding.make_mesh()
  step, state, inputs = _experiment(**EXPERIMENTS[0])
  state = jax.device_put(state, sharding.replicated(mesh))
  # Warnings are errors here: XLA warns of what it cannot use.
  after, _ = step(state, sharding.put_batch(_batches(1)[0], mesh), *inputs)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_a_state_starts_with_one_program_beside_the_models_own():
  network, optimizer = _network(), _optimizer()
  model = network.build()
  with compilation.counted() as compiled:
    steps.init_state(network, optimizer, model)
  assert compiled.programs == 1
