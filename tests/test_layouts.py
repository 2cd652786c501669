"""A state in layouts of the compiler's choice: what is trained, saved and read back is the same as in any other."""

import shutil

from conftest import run_training, small_demo
import jax
from jax.experimental.layout import Format, Layout
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video import checkpoint_files, checkpoints, compilation, sharding, steps


def _turned_over(state, platform):
  """Every array's last axis outermost in memory, as no platform has them by itself."""
  return jax.tree.map(
    lambda leaf: Format(Layout(tuple(reversed(range(leaf.ndim)))), leaf.sharding), state
  )


@pytest.fixture
def turned_over(monkeypatch):
  """Has steps take and give the state turned over; gives the layouts of kernels as they were saved."""
  saved, save = set(), checkpoints.Checkpoints.save

  def noted(self, step, state, progress):
    leaves = jax.tree.leaves((state["params"], state["opt_state"], state["ema"]))
    saved.update(leaf.format.layout.major_to_minor for leaf in leaves if leaf.ndim > 1)
    save(self, step, state, progress)

  monkeypatch.setattr(checkpoints.Checkpoints, "save", noted)
  monkeypatch.setattr(steps, "state_formats", _turned_over)
  return saved


def _arrays(workdir, step):
  """Parameters, statistics and averages of a checkpoint, on the host."""
  folder = workdir / "checkpoints" / str(step)
  saved = [checkpoints.read(folder, averaged=averaged) for averaged in (True, False)]
  return [np.asarray(leaf) for of in saved for leaf in jax.tree.leaves((of.params, of.batch_stats))]


def _config(videos, folder):
  config = small_demo(videos, folder / "records")
  config.ema_decay = 0.5
  return config


def test_a_run_in_other_layouts_saves_the_same_arrays_and_goes_on_from_them(
  made_folder, tmp_path, monkeypatch, turned_over
):
  config = _config(made_folder, tmp_path)
  results = run_training(config, tmp_path / "turned")
  assert turned_over <= {(1, 0), (2, 1, 0), (4, 3, 2, 1, 0)}
  assert (4, 3, 2, 1, 0) in turned_over
  first, last = sorted(checkpoint_files.steps(tmp_path / "turned" / "checkpoints"))
  stopped, elsewhere = tmp_path / "stopped", tmp_path / "elsewhere"
  for copy in (stopped, elsewhere):
    shutil.copytree(tmp_path / "turned", copy)
    shutil.rmtree(copy / "checkpoints" / str(last))

  # The arrays of the state before are read back, laid out again, and nothing is lost by it.
  again = run_training(config, stopped)
  assert again["test"] == results["test"]
  for mine, expected in zip(
    _arrays(stopped, last), _arrays(tmp_path / "turned", last), strict=True
  ):
    np.testing.assert_array_equal(mine, expected)

  # And a machine with layouts of its own goes on from them, and comes to the same but for rounding.
  monkeypatch.undo()
  turned_over.clear()
  run_training(config, elsewhere)
  run_training(config, tmp_path / "plain")
  assert not turned_over
  for step, folder in ((first, "plain"), (last, "plain"), (last, "elsewhere")):
    pairs = zip(_arrays(tmp_path / folder, step), _arrays(tmp_path / "turned", step), strict=True)
    for mine, expected in pairs:
      np.testing.assert_allclose(mine, expected, rtol=1e-2, atol=1e-3)


def test_a_phase_takes_over_the_state_of_the_one_before_in_its_own_layouts(
  made_folder, tmp_path, turned_over
):
  config = _config(made_folder, tmp_path)
  config.optimizer.head_first_epochs, config.init_from = 1.0, str(tmp_path / "start")
  start = _config(made_folder, tmp_path)
  start.epochs, start.optimizer.warmup_epochs = 1.0, 0.0
  run_training(start, tmp_path / "start")
  assert np.isfinite(run_training(config, tmp_path / "run")["test"]["loss"])


def test_arrays_that_lie_right_stay_and_others_are_moved_and_given_up():
  place = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
  turned = Format(Layout((1, 0)), place)
  shape = jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=place)
  jitted = jax.jit(lambda a, b, unread: a - b, in_shardings=(turned, None, None))
  program = compilation.Program(jitted, shape, shape, shape)
  values = np.arange(6, dtype=np.float32).reshape(2, 3)
  first, second, unread = (jax.device_put(values * k, place) for k in (1, 3, 5))
  np.testing.assert_array_equal(program(first, second, unread), -2 * values)
  assert first.is_deleted() and not second.is_deleted() and not unread.is_deleted()
  # Later ones come as they are to lie.
  with pytest.raises(ValueError, match="input layouts that disagree"):
    program(second, second, unread)
