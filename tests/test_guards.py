"""Updates that are not finite, transfers and compilations nobody asked for: noticed, and named."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_steps import RATE, SEED, _batches, _optimizer, _plain_task, _task

from hybrid_video import (
  compilation,
  configuration,
  experiment,
  guards,
  optimizers,
  sharding,
  steps,
)
from hybrid_video import state as training_state

RECORDS = types.SimpleNamespace(names=np.array([f"video {i}" for i in range(9)]))
EXPERIMENT = experiment.from_config(configuration.default_config())


def _start(task, **options):
  mesh = sharding.make_mesh(jax.devices()[:1])
  averaged = options.get("ema_decay", 0) > 0
  state = training_state.create(_optimizer(), mesh, *task.initial_variables(), averaged=averaged)
  step = steps.jitted(task, _optimizer(), steps.StepOptions(**options), mesh, state)
  return mesh, state, step


def _poisoned(params, *path):
  """Parameters whose array at a path is too large for what comes after it to be finite."""
  if not path:
    return jnp.full_like(params, 3e38)
  return {**params, path[0]: _poisoned(params[path[0]], *path[1:])}


def _bits(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("form", ["branch", "choice"])
def test_an_update_that_is_not_finite_changes_nothing_and_the_next_goes_on_without_it(
  form, monkeypatch
):
  # On a CPU the update is a branch, elsewhere a choice.
  monkeypatch.setattr(steps.target, "platform", lambda: "cpu" if form == "branch" else "")
  task = _plain_task()
  mesh, state, step = _start(task, max_skipped=1, ema_decay=0.9)
  first, second = (sharding.put_batch(batch, mesh) for batch in _batches(2))
  before = _bits([state[name] for name in ("params", "batch_stats", "opt_state", "ema")])
  state, sums = step(state, first, np.float32(np.inf), SEED)
  assert (float(sums["finite"]), float(sums["halted"])) == (0, 0)
  assert _bits([state[name] for name in ("params", "batch_stats", "opt_state", "ema")]) == before
  assert (int(state["step"]), int(state["skipped"])) == (1, 1)
  state, sums = step(state, second, RATE, SEED)
  assert float(sums["finite"]) == 1 and int(state["step"]) == 2
  after = _bits(state["params"])
  # The second one is one more than may be left out: from there on nothing moves, steps included.
  for _ in range(2):
    state, sums = step(state, first, np.float32(np.nan), SEED)
    assert (float(sums["finite"]), float(sums["halted"])) == (0, 1)
  state, sums = step(state, second, RATE, SEED)
  assert float(sums["halted"]) == 1
  assert int(state["step"]) == 2 and _bits(state["params"]) == after


def test_a_branch_and_a_choice_update_alike(monkeypatch):
  batches = _batches(3)
  ended = []
  for platform in ("cpu", ""):
    monkeypatch.setattr(steps.target, "platform", lambda platform=platform: platform)
    mesh, state, step = _start(_plain_task(), max_skipped=9, ema_decay=0.9)
    for rate, batch in zip((RATE, np.float32(np.inf), RATE), batches, strict=True):
      state, sums = step(state, sharding.put_batch(batch, mesh), rate, SEED)
    ended.append((state, sums))
  (state, sums), (other, other_sums) = ended
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), state, other)
  for name, value in sums.items():
    np.testing.assert_allclose(value, other_sums[name], rtol=1e-5, err_msg=name)
  assert float(sums["update_norm"]) > 0 and int(state["skipped"]) == 1


@pytest.mark.parametrize(
  "changed",
  [{"name": "sgd", "momentum": 0.9}, {"name": "sgd", "momentum": 0.9, "nesterov": True}, {}],
  ids=["sgd", "nesterov", "adamw"],
)
def test_gradients_whose_squares_are_finite_lead_to_finite_parameters(changed):
  """So the step need not look at the parameters before it writes them."""
  settings = optimizers.OptimizerSettings(**{"name": "adamw", "weight_decay": 0.1, **changed})
  optimizer = optimizers.make_optimizer(settings)
  params = {"head": {"kernel": jnp.ones((2,))}}
  state = optimizer.init(params)
  for size in [1e18, *[0.0] * 3, *[1e19] * 20, 1e-30, -1e19]:
    gradients = jax.tree.map(lambda leaf, size=size: jnp.full_like(leaf, size), params)
    assert np.isfinite(optax.tree.norm(gradients))
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    for tree in (params, state):
      assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def _paths(params):
  return ["/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(params)]


@pytest.mark.parametrize("part", ["cnn/stem/conv", "attention", "head"])
def test_the_first_layer_whose_output_is_not_finite_is_named(part):
  task = _task()
  mesh, state, _ = _start(task)
  path = next(p for p in _paths(state["params"]) if p.startswith(part) and p.endswith("kernel"))
  state = {**state, "params": _poisoned(state["params"], *path.split("/"))}
  batch = {**_batches(1)[0], "video_ids": np.arange(8)}
  error = guards.explain(task, mesh, state, batch, EXPERIMENT, RECORDS)
  # A convolution and the norm that it is computed with are one layer; the norm's output comes first.
  layer = f"{part}/norm" if part == "cnn/stem/conv" else path.removesuffix("/kernel")
  assert f"first layer whose output is not is {layer} " in str(error)
  assert "The update of step 1 is not finite" in str(error)
  assert "Its clips are of video 0, video 1," in str(error)
  # Looking leaves the layers as they were.
  assert not any("checked" in cls.__call__.__qualname__ for cls in guards._layer_classes())


def test_what_is_not_finite_before_or_after_the_layers_is_told_too():
  task = _task()
  mesh, state, _ = _start(task)
  batch = {**_batches(1)[0], "video_ids": np.arange(8)}
  healthy = str(guards.explain(task, mesh, state, batch, EXPERIMENT, RECORDS))
  assert "the gradients are finite, and the square of their norm, or of that times" in healthy
  state["params"]["head"] = jax.tree.map(lambda leaf: leaf * np.nan, state["params"]["head"])
  broken = str(guards.explain(task, mesh, state, batch, EXPERIMENT, RECORDS))
  assert "params/head" in broken and "in the state before it are not" in broken


def test_a_number_on_the_host_and_a_batch_of_another_shape_are_noticed(caplog):
  task = _plain_task()
  mesh, state, step = _start(task)
  whole = sharding.replicated(mesh)
  rate, seed = sharding.place(RATE, whole), sharding.place(SEED, whole)
  batches = [sharding.put_batch(batch, mesh) for batch in _batches(2)]
  with compilation.counted() as compiled, caplog.at_level("WARNING", logger="hybrid_video"):
    guard = guards.StepGuard(compiled)
    for number, batch in enumerate(batches, 1):
      with guard.watch(number):
        state, _ = step(state, batch, rate, seed)
      assert guard.first == (number == 1)
    assert not caplog.text
    with guard.watch(3):
      state, _ = step(state, sharding.put_batch(_batches(1, size=4)[0], mesh), rate, seed)
    assert "Step 3 compiled 1 program(s) again" in caplog.text
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"), guard.watch(4):
      step(state, batches[0], RATE, seed)
