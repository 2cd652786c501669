"""Our video ResNets with the reference's weights, and how far their outputs are from its own."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any
from unittest import mock

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from golden import reference_weights
from golden.comparison import relative_error, sampled_error
from hybrid_video import models
from hybrid_video.weights import porting, video_resnet_names

FOLDER = pathlib.Path(__file__).parent
CLASSES = 7
CLIPS = (2, 8, 64, 64, 3)
LABELS = (3, 5)
# Networks of full width: what the optimizations take in compiling they give back in running.
OPTIMIZED = {"xla_backend_optimization_level": 3}


def shapes_of(table: porting.Table, params: dict, batch_stats: dict) -> dict[str, tuple[int, ...]]:
  """The reference's shape of every key, from our own model's leaves."""
  ours = porting.leaves(params, batch_stats)
  shapes: dict[str, tuple[int, ...]] = dict.fromkeys(table.counters, ())
  for row in table.rows:
    shapes |= dict.fromkeys(row.keys, row.key_shape(tuple(ours[row.target].shape)))
  return shapes


def model_of(
  name: str, change: Callable[[dict], dict] | None = None, dtype: str = "float32"
) -> tuple[nnx.Module, porting.Table]:
  """A classifier of `CLASSES` classes with the reference's weights, and where each key went."""
  model = models.create(name, num_classes=CLASSES, dtype=dtype)
  _, params, batch_stats = models.split(model)
  table = video_resnet_names.table(name)
  state_dict = reference_weights.state_dict(shapes_of(table, params, batch_stats))
  ported = porting.port(change(state_dict) if change else state_dict, table, params, batch_stats)
  nnx.update(model, ported.params)
  nnx.update(model, ported.batch_stats)
  return model, table


def _gradient(name: str) -> tuple[jax.Array, dict, dict]:
  """Loss, its gradient and the updated statistics in training mode, in float64."""
  model, _ = model_of(name, dtype="float64")
  model.train()
  graphdef, *variables = models.split(model)
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
  clips = jnp.asarray(reference_weights.clips(CLIPS), jnp.float64)

  @functools.partial(jax.jit, compiler_options=OPTIMIZED)
  def gradient(params, batch_stats):
    def loss(params):
      merged = nnx.merge(graphdef, params, batch_stats)
      log_chances = jax.nn.log_softmax(merged(clips))
      value = -jnp.mean(log_chances[jnp.arange(len(LABELS)), jnp.array(LABELS)])
      return value, models.split(merged)[2]

    return jax.value_and_grad(loss, has_aux=True)(params)

  (value, updated), gradients = gradient(*wide)
  return value, gradients, updated


def errors(
  name: str,
  *,
  change: Callable[[dict], dict] | None = None,
  epsilon: float | None = None,
  train: bool = True,
) -> dict[str, Any]:
  """Errors of one network against `video_resnets.npz`.

  Args:
    name: of the network.
    change: alters the state dict first, to see that the comparison notices.
    epsilon: of BatchNorm, if another than the network's own.
    train: whether to compare gradients and updated statistics too.

  Returns:
    `logits`, `blocks` (a list), and with `train` also `loss`, `gradients` and `statistics` (dicts
    by the reference's key).
  """
  plan = dict(models.video_resnet.ARCHITECTURES)
  if epsilon is not None:
    plan[name] = dataclasses.replace(plan[name], epsilon=epsilon)
  with mock.patch.object(models.video_resnet, "ARCHITECTURES", plan):
    model, table = model_of(name, change)
  golden = {
    key.removeprefix(f"{name}/"): value
    for key, value in np.load(FOLDER / "video_resnets.npz").items()
    if key.startswith(f"{name}/")
  }
  clips = jnp.asarray(reference_weights.clips(CLIPS))
  model.eval()
  graphdef, params, batch_stats = models.split(model)

  @functools.partial(jax.jit, compiler_options=OPTIMIZED)
  def evaluate(params, batch_stats):
    merged = nnx.merge(graphdef, params, batch_stats)
    return merged(clips), merged.cnn.outputs(clips)

  logits, blocks = evaluate(params, batch_stats)
  errors_by_kind: dict[str, Any] = {
    "logits": relative_error(logits, golden["logits"]),
    "blocks": [sampled_error(b, golden[f"block/{i}"]) for i, b in enumerate(blocks)],
  }
  if not train:
    return errors_by_kind
  with jax.enable_x64(True):
    loss, gradients, updated = _gradient(name)
    loss = float(loss)
  ours = porting.unport(gradients, updated, table)
  errors_by_kind["loss"] = float(abs(loss - golden["loss"]) / golden["loss"])

  def of(prefix: str, channels_last: bool) -> dict[str, float]:
    wanted = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    return {
      key: sampled_error(
        np.moveaxis(ours[key], 1, -1) if channels_last and ours[key].ndim == 5 else ours[key],
        sample,
      )
      for key, sample in wanted.items()
    }

  errors_by_kind["gradients"] = of("gradient/", channels_last=True)
  errors_by_kind["statistics"] = of("statistic/", channels_last=False)
  return errors_by_kind
