"""The head alone first, then everything: what stays, what moves, and that a stopped run goes on so."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from configs import transfer
from hybrid_video import (
  checkpoints,
  configuration,
  experiment,
  optimizers,
  origins,
  phases,
  sharding,
  train,
)
from hybrid_video import state as training_state
from hybrid_video.meter import Length
from hybrid_video.report import writers
from hybrid_video.tasks import registry
import input_pipeline

RATE, SEED = np.float32(1e-3), np.uint32(0)
CLASSES = 4


def _experiment(**optimizer):
  config = configuration.default_config()
  configuration.use_model(
    config, "hybrid", cnn_blocks=2, cnn_width=4, latents=4, width=16, self_heads=2, head_dim=8
  )
  config.init_from, config.ema_decay, config.epochs = "weights.pth", 0.9, 4.0
  config.clip.frames, config.clip.crop = 4, 24
  config.optimizer.weight_decay = 0.1
  config.optimizer.update(optimizer)
  return experiment.from_config(config)


def _batches(count, mesh):
  rng = np.random.default_rng(0)
  return [
    sharding.put_batch(
      {
        "clips": rng.integers(0, 256, (8, 4, 24, 24, 3), np.uint8),
        "labels": rng.integers(0, CLASSES, 8, np.int32),
        "mirrored": np.zeros(8, bool),
      },
      mesh,
    )
    for _ in range(count)
  ]


def _start(chosen, mesh):
  """Task, optimizer and state, with statistics that are not those of the first batch."""
  task = registry.create(chosen, CLASSES, mesh)
  optimizer = optimizers.make_optimizer(chosen.optimizer)
  params, batch_stats = task.initial_variables()
  batch_stats = jax.tree.map(lambda leaf: leaf + 0.1, batch_stats)
  state = training_state.create(optimizer, mesh, params, batch_stats, averaged=True)
  return task, optimizer, state


def _trained(chosen, count):
  """States on the host before and after each of some steps, of which an epoch has one."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  task, optimizer, state = _start(chosen, mesh)
  of_run = phases.make(chosen, Length(8, 8, 4.0), task, optimizer, mesh, state, CLASSES)
  states = [jax.device_get(state)]
  for step, batch in enumerate(_batches(count, mesh)):
    state, _ = of_run.update(state, step, batch, RATE, SEED)
    states.append(jax.device_get(state))
  return states, of_run


def _outside_the_head(state):
  """All that is not the head's: parameters, statistics and averages, by path."""
  kept = {name: state[name] for name in ("params", "batch_stats", "ema")}
  return {
    name: leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(kept)[0]
    if "head" not in (name := jax.tree_util.keystr(path, simple=True, separator="/"))
  }


@pytest.fixture(scope="module")
def head_first():
  """Two steps of the head alone and one of everything: (states, phases)."""
  return _trained(_experiment(name="adamw", head_first_epochs=2.0), 3)


def test_in_the_heads_phase_nothing_else_moves_and_after_it_all_does(head_first):
  states, of_run = head_first
  start, first, second, third = map(_outside_the_head, states)
  for path, leaf in start.items():
    np.testing.assert_array_equal(first[path], leaf, err_msg=path)
    np.testing.assert_array_equal(second[path], leaf, err_msg=path)
  assert [path for path, leaf in start.items() if np.array_equal(third[path], leaf)] == []
  heads = [jax.tree.leaves(state["params"]["head"]) for state in states]
  for before, after in itertools.pairwise(heads):
    assert not any(np.array_equal(*pair) for pair in zip(before, after, strict=True))
  params = states[0]["params"]
  assert of_run.rates(2, params) == {"cnn": 0.0, "attention": 0.0, "head": 1.0}
  assert of_run.rates(3, params) == {"cnn": 1.0, "attention": 1.0, "head": 1.0}


def test_the_first_step_of_everything_is_no_larger_than_one_of_a_new_run(head_first):
  # Adam's memory of a phase without gradients would make it up to three times as large.
  states, _ = head_first
  before, after = (state["params"] for state in states[-2:])
  for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
    assert np.abs(a - b).max() <= 1.01 * RATE * (1 + 0.1 * np.abs(a).max())
  assert int(states[-1]["opt_state"].count) == 1


def test_the_heads_phase_is_a_run_with_all_else_frozen(head_first):
  states, _ = head_first
  frozen = _experiment(name="adamw", freeze=("cnn", "attention"))
  options = {**frozen.model.options, "freeze_statistics": True}
  model = dataclasses.replace(frozen.model, options=options)
  of_frozen, _ = _trained(dataclasses.replace(frozen, model=model), 2)
  for name in ("params", "batch_stats", "ema"):
    paths = jax.tree_util.tree_flatten_with_path(states[2][name])[0]
    for (path, ours), theirs in zip(paths, jax.tree.leaves(of_frozen[2][name]), strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9, err_msg=str(path))


def test_the_phase_is_as_long_as_its_epochs_whatever_the_batch_size_was_before():
  chosen = _experiment(head_first_epochs=2.0)
  assert phases.head_steps(chosen, Length(100, 8, 4.0)) == 25
  # 160 clips of 200 were seen in other batches before step 0.
  assert phases.head_steps(chosen, Length(100, 8, 4.0, offset=160)) == 5
  assert phases.head_steps(chosen, Length(100, 8, 4.0, offset=240)) == 0
  assert phases.head_steps(_experiment(), Length(100, 8, 4.0)) == 0


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"init_from": ""}, "random values"),
    ({"epochs": 1.0}, "at most --config.epochs, 1"),
    ({"optimizer.freeze": ("head",)}, "nothing is left to train"),
    ({"model.name": "hybrid_pretraining"}, "no head"),
  ],
)
def test_a_phase_that_cannot_be_is_refused(settings, message):
  config = configuration.default_config()
  config.init_from, config.optimizer.head_first_epochs = "runs/large", 2.0
  config.update_from_flattened_dict(settings)
  with pytest.raises(experiment.SettingError, match=message):
    experiment.from_config(config)


@pytest.fixture(scope="module")
def transfer_of(finished, tmp_path_factory):
  """The experiment of a small transfer from the finished run to the textured look."""
  folder = tmp_path_factory.mktemp("textured")
  config = transfer.get_config("made_actions")
  config.init_from, config.made_films, config.training_share = str(finished[1]), 4, 1.0
  config.data_dir, config.records_dir = str(folder / "videos"), str(folder / "records")
  config.clip.frames, config.clip.crop, config.eval_batch_size = 8, 24, 8
  config.epochs, config.optimizer.head_first_epochs = 2.0, 1.0
  config.evaluate_shuffled, config.log_every_steps, config.keep_checkpoints = False, 1, 10
  return experiment.from_config(config, origins.model_of)


@pytest.mark.slow
@pytest.mark.parametrize("at", [(3,), (2, 5)])
def test_a_run_that_is_stopped_between_its_phases_or_in_them_ends_as_one_that_is_not(
  at, finished, transfer_of, tmp_path, monkeypatch, logged
):
  def run_training(workdir):
    return train.run(transfer_of, workdir, input_pipeline)

  whole = run_training(tmp_path / "whole")
  assert whole["step"] == 6
  assert "The head alone is trained up to step 3;" in logged.text
  assert "again, which takes time" not in logged.text
  original = writers.HistoryWriter.write_scalars
  stops = list(at)

  def stop_before(self, step, scalars):
    if stops and step == stops[0]:
      del stops[0]
      raise KeyboardInterrupt
    original(self, step, scalars)

  with monkeypatch.context() as patch:
    patch.setattr(writers.HistoryWriter, "write_scalars", stop_before)
    for _ in at:
      with pytest.raises(KeyboardInterrupt):
        run_training(tmp_path / "stopped")
  stopped = run_training(tmp_path / "stopped")
  assert stopped["params_digest"] == whole["params_digest"]
  ours, theirs = (writers.read_history(tmp_path / name) for name in ("whole", "stopped"))
  assert [line["train/loss"] for line in ours] == [line["train/loss"] for line in theirs]
  assert [line["learning_rate/cnn"] > 0 for line in ours] == [False] * 3 + [True] * 3
  # The end of the head's phase is saved, and is the source but for its head.
  source = checkpoints.read(finished[1]).params
  probe = checkpoints.read(tmp_path / "whole" / "checkpoints" / "3").params
  for part in ("cnn", "attention"):
    for a, b in zip(jax.tree.leaves(source[part]), jax.tree.leaves(probe[part]), strict=True):
      np.testing.assert_array_equal(a, b)
  # What it started from, and what that has seen, is in its folder and its results.
  assert whole["started_from"]["data"] == "made_actions (plain, seed 0)"
  assert len(whole["started_from"]["shared"]) == whole["started_from"]["classes"] == 8
  assert stopped["started_from"] == whole["started_from"]
  assert "8 of 8 classes are also among its 8, which blurs" in logged.text
