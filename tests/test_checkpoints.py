"""Checkpoints: whole, described, restored anywhere, refused where they do not fit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_steps import _optimizer, _run, _state, _task

import hybrid_video
from hybrid_video import checkpoints, experiment, sharding
from hybrid_video import state as training_state


def _description(classes=("a", "b"), **chosen):
  config = experiment.default_config()
  experiment.use_model(config, "hybrid", **{"width": 16, **chosen})
  return checkpoints.Description(experiment.from_config(config), classes)


def _saved(workdir, state=None, description=None, step=1):
  state = _state(_task(), sharding.make_mesh()) if state is None else state
  with checkpoints.Checkpoints(workdir, description or _description(), keep=1) as saved:
    saved.save(step, state)
  return state


def test_a_checkpoint_of_one_device_goes_on_on_four(tmp_path):
  task = _task()
  state, _ = _run(1, task, count=1)
  _saved(tmp_path, state)
  mesh = sharding.make_mesh()
  abstract = training_state.abstract(task, _optimizer(), mesh)
  with checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved:
    restored = saved.restore(abstract)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
    np.testing.assert_array_equal(a, b)
    assert b.sharding.is_fully_replicated and len(b.sharding.device_set) == 4
  _, losses = _run(4, task, state=restored, count=1)
  _, expected = _run(1, task, state=state, count=1)
  np.testing.assert_allclose(losses, expected, rtol=2e-4)


def test_a_checkpoint_restores_with_other_shardings(tmp_path):
  state = _saved(tmp_path)
  abstract = training_state.abstract(_task(), _optimizer(), sharding.make_mesh(fsdp=2))
  with checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved:
    restored = saved.restore(abstract)
  for a, b, c in zip(
    jax.tree.leaves(state), jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True
  ):
    np.testing.assert_array_equal(a, b)
    assert b.sharding == c.sharding


def test_a_model_is_read_on_the_host_with_what_it_is(tmp_path):
  description = _description(("run", "wave"))
  state = _saved(tmp_path, description=description, step=7)
  for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "7"):
    read = checkpoints.read(path)
    assert read.step == 7 and read.source == str(tmp_path / "checkpoints" / "7")
    assert read.description.class_names == ("run", "wave")
    assert read.description.version == hybrid_video.__version__
    assert read.description.experiment.to_json() == description.experiment.to_json()
    for name in ("params", "batch_stats"):
      there, here = jax.tree.leaves(state[name]), jax.tree.leaves(getattr(read, name))
      for a, b in zip(there, here, strict=True):
        assert isinstance(b, np.ndarray)
        np.testing.assert_array_equal(a, b)


def test_another_models_checkpoint_is_refused_with_the_differences(tmp_path):
  _saved(tmp_path)
  checkpoints.Checkpoints(tmp_path, _description(), keep=1).close()
  with pytest.raises(checkpoints.CheckpointError) as error:
    checkpoints.Checkpoints(tmp_path, _description(width=32), keep=1)
  message = str(error.value)
  assert "model.width: 16 there, 32 asked for" in message
  assert "classes" not in message
  assert "--workdir" in message
  config = experiment.default_config()
  other = checkpoints.Description(experiment.from_config(config), ("a", "c"))
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
  _saved(tmp_path)
  checkpoints.Checkpoints(tmp_path, _description(dropout=0.5, remat=True), keep=1).close()


def test_an_empty_work_directory_says_to_train_first(tmp_path):
  with (
    checkpoints.Checkpoints(tmp_path, _description(), keep=1) as saved,
    pytest.raises(checkpoints.CheckpointError, match="Train first"),
  ):
    saved.restore({"w": jnp.ones(3)})
  for path in (tmp_path, tmp_path / "none"):
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
    checkpoints.Description.from_json(json.loads(json.dumps(values)), "here")
  values["layout"] = 3
  with pytest.raises(checkpoints.CheckpointError, match=r"here was written by version 9\.9\.9"):
    checkpoints.Description.from_json(values, "here")


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path):
  _saved(tmp_path)
  folder = tmp_path / "checkpoints" / "1"
  for path in (folder / "model").rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  with pytest.raises(checkpoints.CheckpointError, match="Delete this folder"):
    checkpoints.read(tmp_path)


def test_the_newest_checkpoint_goes_on_where_it_stopped(tmp_path):
  task, optimizer = _task(), _optimizer()
  state, _ = _run(4, task, count=2)
  with checkpoints.Checkpoints(tmp_path, _description(), keep=2) as saved:
    saved.save(1, _state(task, sharding.make_mesh()))
    saved.save(2, state)
    saved.wait()
    assert saved.latest_step() == 2
    restored = saved.restore(training_state.abstract(task, optimizer, sharding.make_mesh()))
  assert int(restored["step"]) == 2
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
    np.testing.assert_array_equal(a, b)
