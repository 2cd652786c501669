"""Optimizers and schedules: PyTorch's own over 20 steps in float64, groups by name, refusals."""

import functools
import pathlib
import re

from flax import nnx, traverse_util
from golden import optimizer_cases, reference_weights
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hybrid_video import augmentation, metrics, models, optimizers, sharding, steps
from hybrid_video.optimizers import groups
from hybrid_video.settings import SettingError
from hybrid_video.tasks import Task

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "optimizers.npz")
ALL_KINDS = ("norms", "biases", "positions", "latents", "tokens")


def _made(given):
  return optimizers.OptimizerSettings.from_mapping(
    {name: value for name, value in given.items() if name != "ema_decay"}
  )


@pytest.mark.parametrize("name", optimizer_cases.SCHEDULES)
def test_schedules_are_those_of_pytorch_at_every_step(name):
  schedule = optimizers.make_schedule(
    _made(optimizer_cases.SCHEDULES[name]),
    steps=optimizer_cases.STEPS,
    steps_per_epoch=optimizer_cases.STEPS_PER_EPOCH,
  )
  rates = np.array([schedule(step) for step in range(optimizer_cases.STEPS)])
  assert rates.dtype == np.float32
  np.testing.assert_array_equal(rates, GOLDEN[f"schedule/{name}"].astype(np.float32))


@functools.cache
def _task():
  """The reference's small model; its batch's clips are rows and its labels shares."""

  def initial_variables():
    values = {
      name: reference_weights.value(name, shape).astype(np.float64)
      for name, shape in optimizer_cases.SHAPES.items()
    }
    return traverse_util.unflatten_dict(values, sep="/"), {"running": np.zeros(6)}

  # The step around it runs as it stands: twenty of them take less than compiling one.
  @jax.jit
  def loss(params, batch_stats, prepared, key):
    losses, running = optimizer_cases.run_model(
      jnp,
      traverse_util.flatten_dict(params, sep="/"),
      batch_stats["running"],
      prepared["clips"],
      prepared["labels"],
    )
    return {"loss": losses.sum(), "count": jnp.float64(len(losses))}, {"running": running}

  return Task(
    name="",
    initial_variables=initial_variables,
    prepare=lambda batch, key: batch,
    loss=loss,
    outputs=None,
    summarize=None,
    merge=None,
    protocol="",
  )


def _trained_in_float64(given):
  """Losses before each step, and the state after all of them."""
  settings, task = _made(given), _task()
  optimizer = optimizers.make_optimizer(settings)
  options = steps.StepOptions(ema_decay=given.get("ema_decay", 0.0), freeze=settings.freeze)
  shape = (optimizer_cases.STEPS, optimizer_cases.BATCH)
  inputs = reference_weights.clips((*shape, 4)).astype(np.float64)
  labels = optimizer_cases.labels(np.random.default_rng(1), shape)
  schedule = optimizers.make_schedule(settings, steps=optimizer_cases.STEPS, steps_per_epoch=2)
  params, batch_stats = jax.tree.map(jnp.asarray, task.initial_variables())
  state = {
    "step": jnp.int32(0),
    "params": params,
    "batch_stats": batch_stats,
    "opt_state": optimizer.init(params),
    "skipped": jnp.int32(0),
    "ema": {"params": params, "batch_stats": batch_stats} if options.ema_decay else {},
  }
  losses = []
  for i in range(optimizer_cases.STEPS):
    batch = {
      "clips": jnp.asarray(inputs[i]),
      "labels": jnp.eye(optimizer_cases.CLASSES)[labels[i]],
    }
    state, sums = steps.train_step(
      state, batch, schedule(i), np.uint32(0), task=task, optimizer=optimizer, options=options
    )
    losses.append(float(sums["loss"] / sums["count"]))
  return losses, state


def _vector(params):
  values = traverse_util.flatten_dict(params, sep="/")
  return np.concatenate([values[name].ravel() for name in optimizer_cases.SHAPES])


@pytest.mark.parametrize("case", optimizer_cases.CASES)
def test_twenty_steps_are_those_of_pytorch_in_float64(case):
  with jax.enable_x64(True):
    losses, state = _trained_in_float64(optimizer_cases.CASES[case])
  close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)
  close(losses, GOLDEN[f"{case}/losses"])
  close(_vector(state["params"]), GOLDEN[f"{case}/params"])
  if state["ema"]:
    close(_vector(state["ema"]["params"]), GOLDEN[f"{case}/ema_params"])
    close(state["ema"]["batch_stats"]["running"], GOLDEN[f"{case}/ema_running"])


def test_label_smoothing_alone_is_pytorchs():
  augment = augmentation.make_augment(
    augmentation.AugmentationSettings(label_smoothing=optimizer_cases.SMOOTHING),
    mesh=sharding.make_mesh(jax.devices()[:1]),
    normalize=lambda clips: clips,
    num_classes=optimizer_cases.CLASSES,
  )
  shape = (optimizer_cases.BATCH, optimizer_cases.CLASSES)
  labels = optimizer_cases.labels(np.random.default_rng(2), shape[:1])
  _, targets = augment(jnp.zeros((shape[0], 1, 1, 1, 3)), jnp.array(labels), jax.random.key(0))
  logits = reference_weights.clips(shape)
  sums = metrics.sums(logits, labels, jnp.ones(shape[0]), targets)
  np.testing.assert_allclose(sums["loss"] / sums["count"], GOLDEN["smoothed_loss"], rtol=1e-6)


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
def test_schedules_from_zero_to_past_the_end_are_those_of_optax(name, after):
  settings = optimizers.OptimizerSettings(
    schedule=name, learning_rate=_RATE, warmup_epochs=2, step_epochs=3, step_factor=0.2
  )
  schedule = optimizers.make_schedule(settings, steps=_STEPS, steps_per_epoch=_PER_EPOCH)
  rates = [schedule(step) for step in range(_STEPS + 2)]
  assert {type(rate) for rate in rates} == {np.float32}
  theirs = optax.join_schedules([optax.linear_schedule(0.0, _RATE, _WARMUP), after], [_WARMUP])
  expected = theirs(jnp.arange(_STEPS + 2))
  np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-7)


def test_an_unknown_schedule_is_refused():
  with pytest.raises(SettingError) as error:
    optimizers.OptimizerSettings(schedule="linear")
  assert (
    "--config.optimizer.schedule is 'linear': expected one of constant, cosine, multi_step, step."
    in str(error.value)
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


def _shapes(name, **options):
  """The parameters of a model, `jax.ShapeDtypeStruct`s."""
  classes = {} if models.task_of(name) == models.PRETRAINING else {"num_classes": 3}
  model = nnx.eval_shape(lambda: models.create(name, **classes, **options))
  return models.split(model)[1]


# The first of each class, so that a new one is among them.
_MODELS = {entry.build: name for name, entry in reversed(models.MODELS.items())}.values()


@pytest.mark.parametrize("name", _MODELS)
def test_every_parameter_but_the_kernels_can_be_spared_decay(name):
  decays = traverse_util.flatten_dict(groups.decays(_shapes(name), ALL_KINDS), sep="/")
  assert [path for path, decayed in decays.items() if decayed != path.endswith("/kernel")] == []


def test_each_kind_that_is_spared_decay_is_what_its_name_says():
  hybrid, bert = _shapes("hybrid"), _shapes("r2plus1d_18_bert")
  pretraining = _shapes("videomae_small_pretraining")

  def spared(params, kind):
    return [
      path
      for path, decayed in traverse_util.flatten_dict(
        groups.decays(params, (kind,)), sep="/"
      ).items()
      if not decayed
    ]

  assert spared(hybrid, "latents") == ["attention/latents"]
  assert spared(hybrid, "tokens") == ["attention/cls"]
  assert spared(pretraining, "tokens") == ["decoder/mask_token"]
  assert spared(bert, "positions") == ["attention/positions"]
  norms, biases = spared(hybrid, "norms"), spared(pretraining, "biases")
  assert {"cnn/stem/norm/bias", "attention/cross/0/norm_tokens/scale", "head/norm/bias"} < {*norms}
  assert all("norm" in path for path in norms)
  assert {"attention/blocks/0/attn/q_bias", "decoder/head/bias"} < {*biases}
  assert not any("norm" in path for path in biases)


_STAGES = ["cnn/stem", "cnn/layer1", "cnn/layer2", "cnn/layer3", "cnn/layer4"]


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("r2plus1d_34", {}, _STAGES),
    ("r2plus1d_18", {"blocks": 3}, _STAGES[:3]),
    ("r2plus1d_18_bert", {}, [*_STAGES, "attention"]),
    (
      "hybrid",
      {"cnn_blocks": 4, "cross_blocks": 2, "self_blocks": 4},
      [
        *_STAGES[:3],
        "attention/cross/0",
        "attention/self_attention/0",
        "attention/self_attention/1",
        "attention/cross/1",
        "attention/self_attention/2",
        "attention/self_attention/3",
      ],
    ),
    (
      "hybrid",
      {"cross_blocks": 0, "self_blocks": 1, "pool": "mean", "use_cls": True},
      [*_STAGES, "attention/self_attention/0"],
    ),
    (
      "videomae_small",
      {},
      ["attention/patch_embed", *(f"attention/blocks/{i}" for i in range(12))],
    ),
  ],
)
def test_layers_stand_in_the_order_in_which_a_clip_meets_them(name, options, expected):
  params = _shapes(name, **options)
  assert [starts[0] for starts in groups.layers(params)] == expected
  starts = [start for layer in groups.layers(params) for start in layer]
  others = {
    path.partition("/")[0]
    for path in traverse_util.flatten_dict(params, sep="/")
    if not any(path == start or path.startswith(f"{start}/") for start in starts)
  }
  assert others == {"head"}


def test_rates_fall_by_layer_as_in_videomaes_reference():
  settings = optimizers.OptimizerSettings(layer_decay=0.7)
  rates = optimizers.rates(settings, _shapes("videomae_small"))
  # 0.7 ** (13 - i) for its layers 0 to 13.
  assert list(rates)[:2] == ["attention/patch_embed", "attention/blocks/0"]
  assert list(rates)[-2:] == ["attention/blocks/11", "head"]
  assert list(rates.values()) == pytest.approx(
    [
      *(0.0096889, 0.0138413, 0.0197733, 0.0282475, 0.0403536, 0.0576480, 0.0823543),
      *(0.117649, 0.16807, 0.2401, 0.343, 0.49, 0.7, 1.0),
    ],
    rel=1e-5,
  )
  of_pretraining = optimizers.rates(settings, _shapes("videomae_small_pretraining"))
  assert (of_pretraining["attention"], of_pretraining["decoder"]) == (1.0, 1.0)


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ({}, {}),
    ({"part_rates": {"cnn": 0.1}}, {"cnn": 0.1, "attention": 1.0, "head": 1.0}),
    (
      {"freeze": ("cnn", "attention/latents")},
      {"cnn": 0.0, "attention": 1.0, "head": 1.0},
    ),
    (
      {"layer_decay": 0.5, "part_rates": {"head": 2.0}, "freeze": ("cnn/stem",)},
      {
        "cnn/stem": 0.0,
        "cnn/layer1": 0.0625,
        "cnn/layer2": 0.125,
        "attention/cross/0": 0.25,
        "attention/self_attention/0": 0.5,
        "head": 2.0,
      },
    ),
  ],
)
def test_rates_are_reported_by_group_in_the_order_of_the_model(given, expected):
  rates = optimizers.rates(_made(given), _task().initial_variables()[0])
  assert list(rates.items()) == list(expected.items())


def _opt_state(**given):
  params = _task().initial_variables()[0]
  return jax.eval_shape(optimizers.make_optimizer(_made(given)).init, params)


def test_what_is_frozen_has_no_optimizer_state():
  def elements(**given):
    return sum(leaf.size for leaf in jax.tree.leaves(_opt_state(name="sgd", **given)))

  trained = sum(
    np.prod(shape) for name, shape in optimizer_cases.SHAPES.items() if "cnn" not in name
  )
  assert elements(freeze=("cnn",)) == trained
  assert elements(momentum=0.0) == 0


def test_rates_decay_and_clipping_leave_the_state_as_it_was():
  others = [
    {"clip_norm": 1.0, "weight_decay": 0.1},
    {"no_decay": ALL_KINDS, "weight_decay": 0.1},
    {"layer_decay": 0.5, "part_rates": {"cnn": 0.1}},
    {"schedule": "multi_step", "milestone_steps": (3,), "learning_rate": 1.0},
    {"beta1": 0.5, "beta2": 0.5, "eps": 1.0},
  ]
  structures = {jax.tree.structure(_opt_state(name="adamw", **given)) for given in [{}, *others]}
  assert len(structures) == 1


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"name": "sgd", "nesterov": True, "momentum": 0.0}, r"nesterov is True and .*momentum is 0"),
    ({"name": "adam", "nesterov": True}, r"nesterov is True and .*name is 'adam': only sgd"),
    ({"learning_rate": 0.1, "final_rate": 0.2}, r"final_rate is 0\.2: .*learning_rate, 0\.1\."),
    (
      {"schedule": "multi_step"},
      r"schedule is 'multi_step' .*--config\.optimizer\.milestone_epochs",
    ),
    (
      {"schedule": "multi_step", "milestone_epochs": (3, 2.5)},
      r"milestone_epochs is \(3\.0, 2\.5\): expected each above",
    ),
    ({"milestone_steps": (4, 4)}, r"milestone_steps is \(4, 4\): expected each above"),
    ({"milestone_steps": (0, 4)}, r"milestone_steps\[0\] is 0: .* above 0"),
    ({"no_decay": ("norm",)}, r"no_decay\[0\] is 'norm': .*Did you mean norms\?"),
    ({"part_rates": {"cnnn": 0.1}}, r"no setting --config\.optimizer\.part_rates\.cnnn\..*cnn"),
    ({"part_rates": {"cnn": 0}}, r"--config\.optimizer\.part_rates\.cnn is 0: .* above 0"),
    ({"layer_decay": 1.5}, r"layer_decay is 1\.5: .* above 0 up to 1"),
  ],
)
def test_settings_that_do_not_fit_together_are_refused(given, message):
  with pytest.raises(SettingError, match=message):
    _made(given)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (
      {"warmup_steps": 20},
      r"warmup_steps is 20: .* 20 steps \(epochs: 10\).*warmup_steps=2, .*epochs",
    ),
    (
      {"schedule": "multi_step", "milestone_epochs": (2.0, 5), "warmup_epochs": 2.0},
      r"milestone_epochs begins with 2, which is step 4: .* warm-up of 4 steps",
    ),
  ],
)
def test_a_schedule_that_does_not_fit_the_training_is_refused(given, message):
  with pytest.raises(optimizers.OptimizerError, match=message):
    optimizers.make_schedule(_made(given), steps=20, steps_per_epoch=2)


def test_a_factor_of_a_part_that_is_not_there_does_nothing_and_is_said():
  settings = _made({"part_rates": {"decoder": 0.1, "head": 0.5}})
  params = {"head": {"kernel": jnp.zeros(2)}, "neck": jnp.zeros(2)}
  groups = optimizers.rates(settings, params)
  assert groups == {"head": 0.5, "neck": 1.0}
  assert optimizers.part_rates_in_words(settings, params) == [
    "head: 0.5 times the learning rate",
    "--config.optimizer.part_rates.decoder is 0.1 and does nothing: the model has no such part",
  ]


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"layer_decay": 0.5}, r"layer_decay is 0\.5, and the model has no layers .*Set it to 1\."),
    ({"freeze": ("head", "neck")}, r"freeze is \('head', 'neck'\), .*nothing is left to train"),
  ],
)
def test_settings_that_do_not_fit_the_model_are_refused_before_the_first_step(given, message):
  params = {"head": {"kernel": jnp.zeros(2)}, "neck": jnp.zeros(2)}
  with pytest.raises(optimizers.OptimizerError, match=message):
    optimizers.make_optimizer(_made(given)).init(params)
