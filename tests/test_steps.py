"""The pure training step on one device and on four, and what it compiles to."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import defaults
from hybrid_video import (
  augmentation,
  compilation,
  experiment,
  models,
  optimizers,
  scoring,
  sharding,
  steps,
)
from hybrid_video import state as training_state
from hybrid_video.tasks import classification, pixels

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
STATISTICS = ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
NORMALIZE = pixels.normalizer(*STATISTICS)
RATE, SEED = np.float32(1e-2), np.uint32(0)


def _task(augment=None, seed=0, **options):
  build = functools.partial(
    models.create, "hybrid", num_classes=4, seed=seed, **{**OPTIONS, **options}
  )
  return classification.make(build, *STATISTICS, augment)


def _optimizer():
  return optimizers.make_optimizer(optimizers.OptimizerSettings(name="adamw"))


def _state(task, mesh, optimizer=None):
  return training_state.create(optimizer or _optimizer(), mesh, *task.initial_variables())


def _batches(count, size=8):
  rng = np.random.default_rng(0)
  return [
    {
      "clips": rng.integers(0, 256, (size, 4, 24, 24, 3), np.uint8),
      "labels": rng.integers(0, 4, size, np.int32),
      "mirrored": rng.integers(0, 2, size).astype(bool),
    }
    for _ in range(count)
  ]


def _run(devices, task, state=None, count=3, batches=None):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  if state is None:
    state = _state(task, mesh)
  state = jax.device_put(state, sharding.replicated(mesh))
  step = jax.jit(functools.partial(steps.train_step, task=task, optimizer=_optimizer()))
  losses = []
  for batch in batches or _batches(count):
    state, sums = step(state, sharding.put_batch(batch, mesh), RATE, SEED)
    losses.append(float(sums["loss"]))
  return state, losses


def test_four_devices_give_the_losses_of_one():
  task = _task()
  assert len(jax.devices()) == 4
  one, losses_of_one = _run(1, task)
  four, losses_of_four = _run(4, task)
  np.testing.assert_allclose(losses_of_four, losses_of_one, rtol=2e-4)
  statistics = zip(
    jax.tree.leaves(one["batch_stats"]), jax.tree.leaves(four["batch_stats"]), strict=True
  )
  for a, b in statistics:
    np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)


def test_the_same_state_and_batch_give_the_same_bits_again():
  task = _task()
  first, _ = _run(1, task)
  again, _ = _run(1, task)
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)


def test_every_parameter_of_the_attention_and_the_cnn_gets_a_gradient():
  # The source study's cross attention was never trained; here nothing may be left out.
  before, _ = _task().initial_variables()
  after = _run(1, _task(), count=2)[0]["params"]
  unchanged = [
    jax.tree_util.keystr(path)
    for (path, a), b in zip(
      jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=True
    )
    if np.array_equal(a, b)
  ]
  assert unchanged == []


def _one_update(task, options, devices=1, count=2):
  """The state after some updates of 8 clips, by SGD, and the sums of each."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  optimizer = optimizers.make_optimizer(optimizers.OptimizerSettings(name="sgd", momentum=0.9))
  averaged = options.ema_decay > 0
  state = training_state.create(optimizer, mesh, *task.initial_variables(), averaged=averaged)
  step = steps.jitted(task, optimizer, options, mesh, state)
  sums = []
  for batch in _batches(count):
    state, of_step = step(state, sharding.put_batch(batch, mesh), RATE, SEED)
    sums.append(jax.device_get(of_step))
  return jax.device_get(state), sums


def _assert_near(after, before, rtol=1e-4):
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


def _plain_task(*, normalized=True, dropped=False, mixed=False):
  """A linear classifier with batch statistics, dropout and MixUp of its own, that compiles at once."""

  def initial_variables():
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(3, 4)).astype(np.float32) for name in ("cnn", "head")}
    return weights, {"mean": np.zeros(3, np.float32)}

  def prepare(batch, key):
    pixels = (batch["clips"].mean((1, 2, 3)) - 127) / 2
    targets = jax.nn.one_hot(batch["labels"], 4)
    if mixed:
      order = jax.random.permutation(key, len(pixels))
      pixels, targets = (0.7 * rows + 0.3 * rows[order] for rows in (pixels, targets))
    return pixels, targets

  def loss(params, batch_stats, prepared, key):
    pixels, targets = prepared
    mean = pixels.mean(0)
    if normalized:
      pixels = pixels - mean
    if dropped:
      pixels *= jax.random.bernoulli(key, 0.5, pixels.shape)
    logits = pixels @ (params["cnn"] * params["head"])
    sums = {
      "loss": -jnp.sum(jax.nn.log_softmax(logits) * targets),
      "count": jnp.float32(len(pixels)),
    }
    return sums, {"mean": 0.9 * batch_stats["mean"] + 0.1 * mean}

  return dataclasses.replace(
    _task(), initial_variables=initial_variables, prepare=prepare, loss=loss
  )


def test_a_batch_in_parts_is_the_same_update():
  # MixUp pairs clips of the whole batch, and nothing here depends on what else is in a part.
  task = _plain_task(normalized=False, mixed=True)
  for devices in (1, 2):
    whole, sums_of_whole = _one_update(task, steps.StepOptions(), devices)
    parts, sums_of_parts = _one_update(task, steps.StepOptions(micro_batches=4), devices)
    _assert_near(parts["params"], whole["params"])
    _assert_near(sums_of_parts, sums_of_whole)


def test_parts_have_statistics_and_dropout_of_their_own():
  for task in (_plain_task(), _plain_task(normalized=False, dropped=True)):
    whole, _ = _one_update(task, steps.StepOptions())
    parts, _ = _one_update(task, steps.StepOptions(micro_batches=2))
    assert not np.allclose(parts["params"]["cnn"], whole["params"]["cnn"], rtol=1e-4)
    # A part's rows are the same whatever devices it is spread over.
    spread, _ = _one_update(task, steps.StepOptions(micro_batches=2), devices=4)
    _assert_near(spread["params"], parts["params"])
  # Each part moves the running mean, so that two parts move it twice.
  first = (_batches(1)[0]["clips"].mean((1, 2, 3)) - 127) / 2
  mean = np.zeros(3)
  for part in (first[::2], first[1::2]):
    mean = 0.9 * mean + 0.1 * part.mean(0)
  state, _ = _one_update(task, steps.StepOptions(micro_batches=2), count=1)
  np.testing.assert_allclose(state["batch_stats"]["mean"], mean, rtol=1e-3)


def test_averages_begin_with_the_first_step_and_follow_it():
  options = steps.StepOptions(ema_decay=0.75)
  seen = [_one_update(_plain_task(), options, count=count)[0] for count in (1, 2, 3)]
  (first, second, third) = (
    jax.tree.leaves({name: state[name] for name in ("params", "batch_stats")}) for state in seen
  )
  for average, a, b, c in zip(jax.tree.leaves(seen[-1]["ema"]), third, first, second, strict=True):
    expected = 0.75 * (0.75 * b + 0.25 * c) + 0.25 * a
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)


def test_what_is_frozen_stays_and_has_no_norm():
  frozen, sums = _one_update(_plain_task(), steps.StepOptions(freeze=("cnn",)))
  _, everything = _one_update(_plain_task(), steps.StepOptions())
  assert 0 < sums[0]["gradient_norm"] < everything[0]["gradient_norm"]
  np.testing.assert_array_equal(
    frozen["params"]["cnn"], _plain_task().initial_variables()[0]["cnn"]
  )


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_what_the_step_alone_freezes_neither_decays_nor_drifts_in_its_average(name):
  mesh = sharding.make_mesh(jax.devices()[:1])
  optimizer = optimizers.make_optimizer(optimizers.OptimizerSettings(name=name, weight_decay=0.1))
  task, options = _plain_task(), steps.StepOptions(freeze=("cnn",), ema_decay=0.9)
  before = task.initial_variables()[0]
  state = training_state.create(optimizer, mesh, *task.initial_variables(), averaged=True)
  step = steps.jitted(task, optimizer, options, mesh, state)
  for batch in _batches(3):
    state, _ = step(state, sharding.put_batch(batch, mesh), RATE, SEED)
  for params in (state["params"], state["ema"]["params"]):
    np.testing.assert_array_equal(params["cnn"], before["cnn"])
    assert not np.array_equal(params["head"], before["head"])


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


def _augmented_task(devices):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  augment = augmentation.make_augment(AUGMENTED, mesh=mesh, normalize=NORMALIZE, num_classes=4)
  # Dropout's own draws are another test's.
  return _task(augment, dropout=0.0)


@pytest.mark.slow
def test_augmented_training_is_the_same_on_any_number_of_devices():
  state, losses = _run(1, _augmented_task(1), count=2)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))
  np.testing.assert_allclose(_run(4, _augmented_task(4), count=2)[1], losses, rtol=2e-4)


def test_dropout_draws_the_same_beside_augmentation_whose_keys_are_its_own():
  seen = []

  def only_watches(clips, labels, key):
    jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
    return NORMALIZE(clips), None

  plain, _ = _run(1, _task(dropout=0.5))
  watched, _ = _run(1, _task(only_watches, dropout=0.5))
  jax.effects_barrier()
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(watched), strict=True):
    np.testing.assert_array_equal(a, b)
  dropout = [jax.random.fold_in(jax.random.key(0), step) for step in range(3)]
  others = [tuple(jax.random.key_data(key).tolist()) for key in dropout]
  assert len(seen) == 3
  assert len({*seen, *others}) == 6


def test_soft_labels_train_as_the_hard_labels_they_hold():
  def of_the_next_class(clips, labels, key):
    return NORMALIZE(clips), jax.nn.one_hot((labels + 1) % 4, 4)

  # The second loss shows the first gradient.
  _, soft = _run(1, _task(of_the_next_class, dropout=0.0), count=2)
  batches = [{**b, "labels": (b["labels"] + 1) % 4} for b in _batches(2)]
  _, hard = _run(1, _task(dropout=0.0), batches=batches)
  np.testing.assert_allclose(soft, hard, rtol=1e-4)


def test_evaluation_neither_drops_nor_depends_on_the_rest_of_the_batch():
  task = _task(dropout=0.5)
  state, _ = _run(1, task)
  outputs = jax.jit(task.outputs)
  clips = _batches(1)[0]["clips"]
  logits = outputs(state["params"], state["batch_stats"], {"clips": clips})["logits"]
  other = clips.copy()
  other[1:] = 0
  of_other = outputs(state["params"], state["batch_stats"], {"clips": other})["logits"]
  np.testing.assert_allclose(of_other[0], logits[0], rtol=1e-4, atol=1e-5)


def test_clips_are_normalized_per_channel():
  normalize = pixels.normalizer((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
  normalized = normalize(jnp.array([[0, 255, 51]], jnp.uint8))
  np.testing.assert_allclose(normalized, [[-1.0, 3.0, 0.2]], rtol=1e-6)


@pytest.mark.parametrize(
  ("size", "advice"), [(6, "Set it to 4 or 8"), (3, "Set it to 4"), (0, "Set it to 4")]
)
def test_a_batch_that_does_not_divide_among_devices_is_refused(size, advice):
  with pytest.raises(sharding.ShardingError, match=f"--config.batch_size is {size}.*{advice}"):
    sharding.check_batch_size(size, sharding.make_mesh(), "--config.batch_size")


def test_a_task_is_the_same_function_as_its_module():
  module = models.create("hybrid", num_classes=4, **{**OPTIONS, "dropout": 0.0})
  task = _task(dropout=0.0)
  params, batch_stats = task.initial_variables()
  clips = _batches(1, size=2)[0]["clips"]
  module.eval()
  graphdef, *variables = nnx.split(module, nnx.Param, nnx.BatchStat)
  direct = jax.jit(lambda v, x: nnx.merge(graphdef, *v)(NORMALIZE(x)))(variables, clips)
  merged = task.merge(params, batch_stats)(NORMALIZE(clips))
  for logits in (task.outputs(params, batch_stats, {"clips": clips})["logits"], merged):
    np.testing.assert_allclose(logits, direct, rtol=1e-4, atol=1e-5)


def _experiment(epochs, seed, **settings):
  """A step, its state and what it is given at the fourth step of an experiment, as in `train`."""
  chosen = optimizers.OptimizerSettings(name="adamw", weight_decay=0.1, **settings)
  schedule = optimizers.make_schedule(chosen, steps=10 * epochs, steps_per_epoch=10)
  optimizer = optimizers.make_optimizer(chosen)
  task = _plain_task(dropped=True)
  step = jax.jit(
    functools.partial(steps.train_step, task=task, optimizer=optimizer), donate_argnums=0
  )
  state = _state(task, sharding.make_mesh(jax.devices()[:1]), optimizer)
  return step, state, (schedule(3), np.uint32(seed))


EXPERIMENTS = [
  {"epochs": 2, "seed": 0, "learning_rate": 1e-2, "schedule": "cosine"},
  {"epochs": 7, "seed": 0, "learning_rate": 1e-2, "schedule": "cosine"},
  {"epochs": 2, "seed": 2**32 - 1, "learning_rate": 1e-2, "schedule": "cosine"},
  {"epochs": 2, "seed": 0, "learning_rate": 3.0, "schedule": "step", "warmup_epochs": 1.0},
]


def test_another_length_seed_rate_or_schedule_is_the_same_program():
  (batch,) = _batches(1)
  texts = set()
  for chosen in EXPERIMENTS:
    step, state, inputs = _experiment(**chosen)
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
    _, state, _ = _experiment(**EXPERIMENTS[0])
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
  step, _, inputs = _experiment(**EXPERIMENTS[0])
  state = _state(_plain_task(), mesh)
  # Warnings are errors here: XLA warns of what it cannot use.
  after, _ = step(state, sharding.put_batch(_batches(1)[0], mesh), *inputs)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_a_state_starts_with_one_program():
  task, optimizer, mesh = _task(), _optimizer(), sharding.make_mesh()
  params, batch_stats = task.initial_variables()
  # What a model starts from is on the host until the state's sharding places it.
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((params, batch_stats)))
  with compilation.counted() as compiled:
    state = training_state.create(optimizer, mesh, params, batch_stats)
  assert compiled.programs == 1
  abstract = training_state.abstract(task, optimizer, mesh)
  for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
    assert (leaf.shape, leaf.dtype, leaf.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)


def test_on_a_cpu_blocks_that_are_computed_again_take_less_memory_than_kept_ones():
  mesh = sharding.make_mesh(jax.devices()[:1])
  optimizer = optimizers.make_optimizer(optimizers.OptimizerSettings(name="sgd"))

  def temporary_bytes(remat):
    options = {"width": 48, "depth": 6, "heads": 2, "image_size": 64, "remat": remat}
    build = functools.partial(models.create, "videomae_small", num_classes=3, **options)
    task = classification.make(build, *STATISTICS)
    config = defaults.get_config()
    config.update_from_flattened_dict(
      {"batch_size": 4, "clip.crop": 64, "model.name": "videomae_small", "model.remat": remat}
    )
    chosen = experiment.from_config(config)
    state = training_state.abstract(task, optimizer, mesh)
    step = steps.jitted(task, optimizer, steps.StepOptions.of(chosen), mesh, state)
    compiled = step.lower(*steps.shapes(chosen, mesh, state)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary_bytes("blocks") < 0.75 * temporary_bytes("none")


def test_steps_and_evaluation_are_compiled_with_the_options_of_their_devices(monkeypatch):
  # The compiler's complaint shows that it was told.
  monkeypatch.setattr(compilation, "options", lambda mesh: {"xla_cpu_gone_for_long": False})
  mesh, task, (batch,) = sharding.make_mesh(), _task(), _batches(1)
  params, batch_stats = task.initial_variables()
  state = _state(task, mesh)
  step = steps.jitted(task, _optimizer(), steps.StepOptions(), mesh, state)
  lowered = step.lower(state, sharding.put_batch(batch, mesh), RATE, SEED)
  with pytest.raises(jax.errors.JaxRuntimeError, match="xla_cpu_gone_for_long"):
    lowered.compile()
  evaluated = {"clips": batch["clips"], "clip_indices": np.arange(8, dtype=np.int32)}
  with pytest.raises(jax.errors.JaxRuntimeError, match="xla_cpu_gone_for_long"):
    next(scoring.Scorer(task, mesh).outputs(params, batch_stats, [evaluated]))
