"""Recipes: whole trainings as their authors' code has them, in float64; every parameter of VideoMAE by name."""

import functools
import math
import pathlib
import re

from flax import nnx, traverse_util
from golden import recipe_cases, reference_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video import configuration, experiment, meter, models, optimizers, recipes, steps
from hybrid_video.optimizers import groups
from hybrid_video.tasks import Task
from hybrid_video.weights import videomae_names

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "recipes.npz")


def _settings(recipe):
  """The optimizer as a training of this recipe makes it, its schedule, and how many steps it has."""
  config = configuration.default_config()
  recipes.apply(config, recipe)
  config.batch_size = recipe_cases.BATCH_SIZES.get(recipe, config.batch_size)
  chosen = experiment.from_config(config)
  _, per_epoch = recipe_cases.MODELS[recipe]
  length = meter.Length(per_epoch * chosen.batch_size, chosen.batch_size, chosen.epochs)
  settings = chosen.optimizer.for_batch(chosen.batch_size)
  schedule = optimizers.make_schedule(
    settings, steps=length.scheduled_steps, steps_per_epoch=length.steps_per_epoch
  )
  return settings, schedule, length.scheduled_steps


def _task(recipe):
  rows, _ = recipe_cases.MODELS[recipe]

  def initial_variables():
    values = {
      path: reference_weights.value(path, shape).astype(np.float64)
      for path, (_, shape) in rows.items()
    }
    return traverse_util.unflatten_dict(values, sep="/"), {}

  def loss(params, batch_stats, prepared, key):
    losses = recipe_cases.losses(
      jnp,
      recipe,
      traverse_util.flatten_dict(params, sep="/"),
      prepared["clips"],
      prepared["labels"],
    )
    return {"loss": losses.sum(), "count": jnp.float64(len(losses))}, batch_stats

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


def _trained_in_float64(recipe):
  """Rates and losses of every step, and the parameters after the last."""
  settings, schedule, count = _settings(recipe)
  task, optimizer = _task(recipe), optimizers.make_optimizer(settings)
  params = jax.tree.map(jnp.asarray, task.initial_variables()[0])
  state = {
    "step": jnp.int32(0),
    "params": params,
    "batch_stats": {},
    "opt_state": optimizer.init(params),
    "skipped": jnp.int32(0),
    "ema": {},
  }
  step = jax.jit(functools.partial(steps.train_step, task=task, optimizer=optimizer))
  inputs, labels = recipe_cases.batches(recipe, count)
  shares = np.eye(recipe_cases.CLASSES)[labels]
  rates, losses = [schedule(i) for i in range(count)], []
  for i, rate in enumerate(rates):
    state, sums = step(state, {"clips": inputs[i], "labels": shares[i]}, rate, np.uint32(0))
    losses.append(sums["loss"] / sums["count"])
  values = traverse_util.flatten_dict(state["params"], sep="/")
  rows, _ = recipe_cases.MODELS[recipe]
  return rates, losses, np.concatenate([values[path].ravel() for path in rows])


@pytest.mark.parametrize("recipe", recipe_cases.MODELS)
def test_a_training_by_a_recipe_is_its_references_to_the_last_step(recipe):
  with jax.enable_x64(True):
    rates, losses, params = _trained_in_float64(recipe)
  np.testing.assert_array_equal(rates, GOLDEN[f"{recipe}/rates"].astype(np.float32))
  np.testing.assert_allclose(losses, GOLDEN[f"{recipe}/losses"], rtol=1e-11)
  np.testing.assert_allclose(params, GOLDEN[f"{recipe}/params"], rtol=1e-10, atol=1e-12)
  rows, _ = recipe_cases.MODELS[recipe]
  before = np.concatenate([reference_weights.value(path, rows[path][1]).ravel() for path in rows])
  assert np.abs(params - before).min() > 1e-7 and np.abs(params - before).max() > 1e-4


def _published_names(params, kind, pool="mean"):
  """The name that the original code has for each of our paths; query, key and value are one there."""
  depth = len(params["attention"]["blocks"])
  decoder = len(params.get("decoder", {}).get("blocks", {}))
  table = videomae_names.table(
    kind, videomae_names.ORIGINAL, depth=depth, decoder_depth=decoder, pool=pool
  )
  return {"/".join(row.path): row.keys[0] for row in table.rows}


def _layer_there(name, depth):
  """The number that the original's fine-tuning gives a parameter of that name, of 0 to depth + 1."""
  if name.startswith("patch_embed."):
    return 0
  block = re.match(r"blocks\.(\d+)\.", name)
  return 1 + int(block[1]) if block else depth + 1


def _params(name, **options):
  model = nnx.eval_shape(lambda: models.create(name, num_classes=5, **options))
  return models.split(model)[1]


@pytest.mark.parametrize(
  ("name", "pool"), [("videomae_small", "mean"), ("videomae_small", "first")]
)
def test_every_parameter_of_a_classifier_has_the_layer_and_the_decay_of_the_reference(name, pool):
  params = _params(name, pool=pool)
  names = _published_names(params, "classifier", pool)
  settings, _, _ = _settings("videomae_fine_tuning")
  factors = traverse_util.flatten_dict(groups.rate_groups(settings, params), sep="/")
  decays = traverse_util.flatten_dict(groups.decays(params, settings.no_decay), sep="/")
  shapes = traverse_util.flatten_dict(params, sep="/")
  assert names.keys() == factors.keys() == decays.keys()
  depth = len(params["attention"]["blocks"])
  numbers = {}
  for path, theirs in names.items():
    number = round(depth + 1 - math.log(factors[path].factor, settings.layer_decay))
    numbers[path] = number
    assert number == _layer_there(theirs, depth), path
    is_vector = len(shapes[path].shape) == 1 or theirs.endswith(".bias")
    assert decays[path] == (not is_vector and theirs not in ("pos_embed", "cls_token")), path
  assert numbers["attention/patch_embed/kernel"] == 0
  assert numbers["attention/blocks/0/norm1/scale"] == 1
  assert numbers[f"attention/blocks/{depth - 1}/attn/v_bias"] == depth
  final_norm = "head/norm/scale" if pool == "mean" else "attention/norm/scale"
  assert numbers[final_norm] == numbers["head/linear/kernel"] == depth + 1


def test_every_parameter_of_pretraining_has_one_rate_and_the_decay_of_the_reference():
  params = _params("videomae_small_pretraining")
  names = _published_names(params, "pretraining")
  settings, _, _ = _settings("masked_pretraining")
  assert {group.factor for group in jax.tree.leaves(groups.rate_groups(settings, params))} == {1}
  decays, shapes = (
    traverse_util.flatten_dict(groups.decays(params, settings.no_decay), sep="/"),
    traverse_util.flatten_dict(params, sep="/"),
  )
  assert names.keys() == decays.keys()
  for path, theirs in names.items():
    is_vector = len(shapes[path].shape) == 1 or theirs.endswith(".bias")
    assert decays[path] == (not is_vector and theirs != "mask_token"), path
  assert not decays["decoder/mask_token"] and decays["decoder/embed/kernel"]
