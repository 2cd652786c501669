"""Checkpoints: whole, described, restored anywhere, refused where they do not fit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import hybrid_video
from hybrid_video import checkpoint_files, checkpoints, configuration, experiment, files, sharding
from hybrid_video.checkpoint_description import Description

PROGRESS = {"best": {"step": 3, "value": 0.25}, "waiting": None, "seen": [1, 2]}


def _description(classes=("a", "b"), test_parameters="last", optimizer=None, **chosen):
  config = configuration.default_config()
  configuration.use_model(config, "hybrid", **{"width": 16, **chosen})
  config.test_parameters = test_parameters
  config.optimizer.update(optimizer or {})
  return Description(experiment.from_config(config), classes)


def small_state(step=1, mesh=None, *, averaged=False, batch_stats=True):
  """A state of few arrays, of which one is split over an fsdp axis; others for every step."""
  rng = np.random.default_rng(step)

  def arrays():
    of_norm = {"norm": {"mean": rng.standard_normal(5, np.float32)}} if batch_stats else {}
    weights = {"w": rng.standard_normal((128, 130), np.float32), "b": rng.standard_normal(5)}
    return {"params": {"head": weights}, "batch_stats": of_norm}

  state = {
    **arrays(),
    "step": np.int32(step),
    "skipped": np.int32(0),
    "opt_state": (arrays()["params"], {"count": np.int32(step)}),
    "ema": arrays() if averaged else {},
  }
  mesh = mesh or sharding.make_mesh()
  return jax.tree.map(
    lambda leaf: sharding.place(leaf, sharding.state_sharding(np.shape(leaf), mesh)),
    jax.tree.map(lambda leaf: np.asarray(leaf, np.int32 if leaf.ndim == 0 else np.float32), state),
  )


def like(state):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
  )


def save(workdir, *steps, keep=9, description=None, **options):
  """Checkpoints of some steps; the states by step."""
  states = {step: small_state(step, **options) for step in steps}
  with checkpoints.Checkpoints(workdir, description or _description(), keep) as saved:
    for step, state in states.items():
      saved.save(step, state, {**PROGRESS, "step": step})
  return states


def on_disk(workdir):
  return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def check_equal(a, b):
  for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
  ("saved_on", "restored_on"),
  [((1, 1), (4, 1)), ((4, 1), (4, 2)), ((4, 4), (2, 1)), ((2, 2), (4, 4))],
)
def test_a_checkpoint_of_one_topology_restores_on_another(tmp_path, saved_on, restored_on):
  meshes = [sharding.make_mesh(jax.devices()[:n], fsdp) for n, fsdp in (saved_on, restored_on)]
  state = save(tmp_path, 1, mesh=meshes[0], averaged=True)[1]
  wanted = like(small_state(mesh=meshes[1], averaged=True))
  with checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved:
    restored, progress = saved.restore(wanted)
  check_equal(state, restored)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert jax.tree.map(lambda leaf: leaf.sharding, restored) == jax.tree.map(
    lambda leaf: leaf.sharding, wanted
  )
  split = restored["params"]["head"]["w"].sharding.is_fully_replicated
  assert split == (restored_on[1] == 1)
  assert progress == {**PROGRESS, "step": 1}


def test_a_state_may_be_given_away_as_soon_as_it_is_being_saved(tmp_path):
  state = small_state()
  expected = jax.device_get(jax.tree.map(jnp.copy, state))
  give_away = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
  with checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved:
    saved.save(1, state, {})
    jax.block_until_ready(give_away(state))
    saved.wait()
    restored, _ = saved.restore(like(small_state()))
  check_equal(expected, restored)


def test_a_model_is_read_on_the_host_with_what_it_is(tmp_path):
  description = _description(("run", "wave"))
  state = save(tmp_path, 7, description=description)[7]
  for path in (
    tmp_path,
    tmp_path / "last",
    tmp_path / "checkpoints",
    tmp_path / "checkpoints" / "7",
  ):
    read = checkpoints.read(path)
    assert read.step == 7 and read.source == str(tmp_path / "checkpoints" / "7")
    assert read.description == description
    assert read.description.version == hybrid_video.__version__
    assert not read.averaged and read.raw() is None and read.words == "step 7"
    for name in ("params", "batch_stats"):
      check_equal(state[name], getattr(read, name))
      assert jax.tree.structure(state[name]) == jax.tree.structure(getattr(read, name))
      assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(getattr(read, name)))
  # A folder that was copied under another name is the same checkpoint.
  (tmp_path / "checkpoints" / "7").rename(tmp_path / "mine")
  assert checkpoints.read(tmp_path / "mine").step == 7


def test_a_model_has_its_averages_and_the_raw_parameters_beside_them(tmp_path):
  state = save(tmp_path, 3, averaged=True)[3]
  model = checkpoints.read(tmp_path)
  assert model.averaged and model.words == "step 3, averaged parameters"
  check_equal(state["ema"], {"params": model.params, "batch_stats": model.batch_stats})
  raw = model.raw()
  assert not raw.averaged and raw.step == 3
  check_equal(state["params"], raw.params)
  check_equal(state["batch_stats"], raw.batch_stats)


def test_a_model_without_statistics_has_none(tmp_path):
  save(tmp_path, 1, batch_stats=False)
  assert checkpoints.read(tmp_path).batch_stats == {}


def test_what_an_optimizer_remembers_is_part_of_what_a_checkpoint_is(tmp_path):
  save(tmp_path, 1, description=_description(optimizer={"name": "sgd", "momentum": 0.5}))
  for momentum, clip_norm in ((0.25, 1.0), (0.9, 0.0)):
    chosen = {"name": "sgd", "momentum": momentum, "clip_norm": clip_norm}
    checkpoints.Checkpoints(tmp_path, _description(optimizer=chosen), keep=1).close()
  other = _description(optimizer={"name": "sgd", "momentum": 0.0})
  with pytest.raises(checkpoints.CheckpointError, match="has_momentum: True there, False asked"):
    checkpoints.Checkpoints(tmp_path, other, keep=1)


def test_averages_may_begin_and_end_from_one_run_to_the_next(tmp_path, logged):
  state = save(tmp_path, 1)[1]
  wanted = like(small_state(averaged=True, mesh=sharding.make_mesh(fsdp=2)))
  with checkpoints.Checkpoints(tmp_path, _description(), keep=9) as saved:
    restored, _ = saved.restore(wanted)
    assert "Step 1 has no averages: they begin as its parameters" in logged.text
    check_equal({name: state[name] for name in ("params", "batch_stats")}, restored["ema"])
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(restored), strict=True):
      assert a.sharding == b.sharding
    # No array of the averages is one of the parameters: the step gives each away.
    jax.tree.map(lambda leaf: leaf.delete(), restored["params"])
    jax.block_until_ready(jax.tree.map(jnp.copy, restored["ema"]))
    averaged = small_state(2, averaged=True)
    saved.save(2, averaged, {})
    saved.wait()
    restored, _ = saved.restore(like(state))
  assert restored["ema"] == {}
  check_equal(averaged["opt_state"], restored["opt_state"])
  assert "The averages of step 2 are left out: ema_decay is 0" in logged.text


def test_another_optimizers_state_is_refused_with_both_named(tmp_path):
  save(tmp_path, 1, description=_description(optimizer={"name": "sgd", "momentum": 0.5}))
  other = small_state()
  momentum, count = other["opt_state"]
  other["opt_state"] = (momentum, {**count, "second": jnp.zeros((2, 3))})
  wanted = _description(optimizer={"name": "sgd", "momentum": 0.25})
  with checkpoints.Checkpoints(tmp_path, wanted, keep=1) as saved:
    with pytest.raises(checkpoints.CheckpointError) as error:
      saved.restore(like(other))
    message = str(error.value)
    assert "opt_state/1/second (nothing there, float32[2, 3] here)" in message
    assert "optimizer.momentum: 0.5 there, 0.25 asked for" in message
    for dtype, shape in ((jnp.bfloat16, (5,)), (jnp.float32, (6,))):
      other = like(small_state())
      other["params"]["head"]["b"] = jax.ShapeDtypeStruct(
        shape, dtype, sharding=other["step"].sharding
      )
      name = np.dtype(dtype).name
      with pytest.raises(checkpoints.CheckpointError) as error:
        saved.restore(other)
      assert f"params/head/b (float32[5] there, {name}[{shape[0]}] here)" in str(error.value)
  assert on_disk(tmp_path) == ["1"]


def test_the_newest_and_the_best_are_kept(tmp_path):
  assert checkpoint_files.best(tmp_path) is None
  with checkpoints.Checkpoints(tmp_path, _description(), keep=2) as saved:
    assert saved.best_step is None
    for step in range(1, 7):
      saved.save(step, small_state(step), {})
      if step in (2, 3):
        # While it is still being saved: what best.json names is on disk at any moment.
        saved.mark_best(step, "video_top1", step / 10)
    saved.wait()
    assert on_disk(tmp_path) == ["3", "5", "6"] and saved.latest_step() == 6
  assert json.loads((tmp_path / "best.json").read_text()).items() >= {
    ("step", 3),
    ("metric", "video_top1"),
    ("value", 0.3),
  }
  with checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved:
    assert saved.best_step == 3
    # What is there is not deleted before the newest is known to be whole.
    saved.wait()
    assert on_disk(tmp_path) == ["3", "5", "6"]
    saved.best_step = 6
    saved.save(7, small_state(7), {})
    saved.save(8, small_state(8), {})
    saved.wait()
    # best.json still names 3.
    assert on_disk(tmp_path) == ["3", "6", "8"]
    saved.mark_best(6, "loss", 1.5)
    assert on_disk(tmp_path) == ["6", "8"]
  assert checkpoint_files.best(tmp_path) == checkpoint_files.Best(6, "loss", 1.5)


def test_a_step_that_is_saved_stays_as_it_is(tmp_path):
  first = save(tmp_path, 1)[1]
  with checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved:
    saved.save(1, small_state(2), {})
    restored, progress = saved.restore(like(first))
  check_equal(first, restored)
  assert progress["step"] == 1


def test_a_path_names_the_best_the_last_or_one_checkpoint(tmp_path, logged):
  save(tmp_path / "last", 1, 2)
  best = tmp_path / "best"
  with pytest.raises(checkpoints.CheckpointError, match=r"best\.json does not exist"):
    checkpoints.find(tmp_path / "last" / "best")
  save(best, 1, 2, description=_description(test_parameters="best"))
  assert checkpoints.find(best).name == "2"
  for workdir, usual in ((tmp_path / "last", "2"), (best, "1")):
    checkpoint_files.Best(1, "loss", 0.5).write(workdir)
    names = {
      workdir: usual,
      workdir / "checkpoints": usual,
      workdir / "best": "1",
      workdir / "last": "2",
      workdir / "checkpoints" / "2": "2",
    }
    for path, step in names.items():
      assert checkpoints.find(path).name == step == str(checkpoints.read(path).step), path
  assert not logged.text
  (best / "best.json").write_text('{"step": 2, "metric": "loss", "value": 0.5}')
  assert checkpoints.read(best).step == 2
  assert "best.json is damaged (JSON without its checksum)" in logged.text
  with pytest.raises(checkpoints.CheckpointError, match=r"best\.json is damaged"):
    checkpoints.read(best / "best")


def test_another_models_checkpoint_is_refused_with_the_differences(tmp_path):
  save(tmp_path, 1)
  checkpoints.Checkpoints(tmp_path, _description(), keep=1).close()
  with pytest.raises(checkpoints.CheckpointError) as error:
    checkpoints.Checkpoints(tmp_path, _description(width=32), keep=1)
  message = str(error.value)
  assert "model.width: 16 there, 32 asked for" in message
  assert "classes" not in message
  assert "--workdir" in message
  config = configuration.default_config()
  other = Description(experiment.from_config(config), ("a", "c"))
  with pytest.raises(checkpoints.CheckpointError) as error:
    checkpoints.Checkpoints(tmp_path, other, keep=1)
  message = str(error.value)
  assert "model.name: hybrid there, r2plus1d_18 asked for" in message
  assert "model.bands: 6 there, nothing asked for" in message
  assert (
    "classes: 2 classes there and 2 here: 1 in common, 1 there alone (b), 1 here alone (c)"
    in (message)
  )
  turned = _description(("b", "a"))
  with pytest.raises(
    checkpoints.CheckpointError, match=r"another order: b has id 1 there and 0 her"
  ):
    checkpoints.Checkpoints(tmp_path, turned, keep=1)


def test_what_changes_no_parameter_may_differ(tmp_path):
  save(tmp_path, 1)
  checkpoints.Checkpoints(tmp_path, _description(dropout=0.5, remat="blocks"), keep=1).close()


def test_an_empty_work_directory_says_to_train_first(tmp_path):
  with checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved:
    assert saved.restore(like(small_state())) is None and saved.latest_step() is None
  for path in (tmp_path, tmp_path / "none", tmp_path / "last"):
    with pytest.raises(checkpoints.CheckpointError, match=r"holds no checkpoint. Train first"):
      checkpoints.read(path)


def _older_layout(workdir):
  """A checkpoint as version 0.1 of this package wrote it."""
  directory = workdir / "checkpoints"
  with ocp.CheckpointManager(directory) as manager:
    manager.save(
      5,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave({"step": jnp.int32(5), "params": {"w": jnp.ones(3)}}),
        identity=ocp.args.JsonSave({"model.name": "hybrid"}),
      ),
    )


def test_a_checkpoint_of_an_older_layout_says_which_version_wrote_it_and_how_to_go_on(tmp_path):
  _older_layout(tmp_path)
  for attempt in (
    lambda: checkpoints.read(tmp_path),
    lambda: checkpoints.Checkpoints(tmp_path, _description(), keep=1),
  ):
    with pytest.raises(checkpoints.CheckpointError) as error:
      attempt()
    message = str(error.value)
    assert "written by version 0.1" in message and hybrid_video.__version__ in message
    assert "--mode=export" in message and "--config.init_from=" in message


def test_a_description_of_another_version_names_it():
  values = {**_description().to_json(), "version": "9.9.9"}
  values["experiment"] = {**values["experiment"], "warp": 1}
  with pytest.raises(checkpoints.CheckpointError, match=r"version 9\.9\.9 .*warp"):
    Description.from_json(json.loads(json.dumps(values)), "here")
  values["layout"] = 4
  with pytest.raises(checkpoints.CheckpointError, match=r"here was written by version 9\.9\.9"):
    Description.from_json(values, "here")


def test_a_model_of_the_layout_before_is_read_but_not_resumed(tmp_path):
  description = _description()
  state = jax.device_get(small_state())
  with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
    manager.save(
      5,
      args=ocp.args.Composite(
        model=ocp.args.PyTreeSave({name: state[name] for name in ("params", "batch_stats")}),
        training=ocp.args.PyTreeSave({name: state[name] for name in ("step", "opt_state")}),
        description=ocp.args.JsonSave({**description.to_json(), "layout": 2, "version": "0.2"}),
      ),
    )
  model = checkpoints.read(tmp_path)
  check_equal(state["params"], model.params)
  check_equal(state["batch_stats"], model.batch_stats)
  assert model.step == 5 and model.description == dataclasses.replace(description, version="0.2")
  with pytest.raises(checkpoints.CheckpointError) as error:
    checkpoints.Checkpoints(tmp_path, description, keep=1)
  assert "written by version 0.2" in str(error.value)
  assert f"--config.init_from={tmp_path / 'checkpoints' / '5'}" in str(error.value)


def test_json_is_strict_and_sealed_however_it_is_written_down():
  values = {"b": [1, 0.1, None, "\ud800"], "a": {"1": True}, "t": (1, 2)}
  sealed = checkpoint_files.seal(values)
  again = json.loads(json.dumps(sealed, indent=1, sort_keys=True))
  assert checkpoint_files.unseal(again) == json.loads(json.dumps(values))
  with pytest.raises(ValueError, match="not JSON compliant"):
    checkpoint_files.seal({"a": float("nan")})
  for other in ({**sealed, "b": [1, 0.1, None]}, {**sealed, "c": 1}, {"a": 1}, [], None):
    with pytest.raises(checkpoint_files.Damaged):
      checkpoint_files.unseal(other)


def test_what_was_never_finished_is_removed(tmp_path):
  save(tmp_path, 1)
  for name in ("2.orbax-checkpoint-tmp", "0.superseded"):
    (tmp_path / "checkpoints" / name / "model").mkdir(parents=True)
  files.write_text(tmp_path / "checkpoints" / "3", "no folder")
  assert checkpoints.find(tmp_path).name == "1"
  checkpoints.Checkpoints(tmp_path, _description(), keep=1).close()
  assert on_disk(tmp_path) == ["1", "3"]
