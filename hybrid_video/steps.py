"""The pure steps: state and batch in, new state and metric sums out (training), or logits.

State is a plain dict of arrays: `step`, `params`, `batch_stats`, `opt_state`. What differs between
runs of one experiment, such as the seed or the learning rate of a step, is an input as well, so that
all of them share one compiled program.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybrid_video import metrics, models
from hybrid_video.augmentation import Augment

State = dict[str, Any]
Array = jax.Array
# Folded into the seed's key before the step, so that augmentation's draws are none of dropout's; no
# step's number gets so far.
_AUGMENTATION_STREAM = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Network:
  """A model as pure functions.

  Attributes:
    training: its definition with dropout on and BatchNorm's own batch statistics.
    evaluation: its definition with dropout off and BatchNorm's running statistics.
    build: gives a fresh model, the same at every call.
    mean, std: per channel, of pixels in 0 to 1; clips are normalised with them on the device.
  """

  training: nnx.GraphDef
  evaluation: nnx.GraphDef
  build: Callable[[], nnx.Module]
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def normalise(self, clips: Array) -> Array:
    """uint8 `[B, T, H, W, 3]` to float32 of about zero mean and unit deviation."""
    mean, std = jnp.array(self.mean), jnp.array(self.std)
    return (clips.astype(jnp.float32) / 255.0 - mean) / std


def make_network(
  build: Callable[[], nnx.Module], mean: tuple[float, ...], std: tuple[float, ...]
) -> Network:
  """Takes a model's builder apart into definitions and initial values.

  Args:
    build: gives a fresh model, the same at every call.
    mean, std: see `Network`.
  """
  abstract = nnx.eval_shape(build)
  abstract.train()
  training, _, _ = models.split(abstract)
  abstract.eval()
  evaluation, _, _ = models.split(abstract)
  return Network(training, evaluation, build, mean, std)


def init_state(
  network: Network, optimizer: optax.GradientTransformation, model: nnx.Module | None = None
) -> State:
  """The state before the first step, of a fresh model or of one with weights loaded into it."""
  _, params, batch_stats = models.split(network.build() if model is None else model)

  # One program for all of it, not one for every shape of an array of zeros.
  @jax.jit
  def start(params: models.Tree) -> State:
    return {"step": jnp.zeros((), jnp.int32), "opt_state": optimizer.init(params)}

  return {"params": params, "batch_stats": batch_stats, **start(params)}


def mirror(clips: Array, flips: Array) -> Array:
  """Clips `[B, T, H, W, 3]`, those where `flips` `[B]` is true with left and right exchanged."""
  return jnp.where(flips[:, None, None, None, None], clips[..., ::-1, :], clips)


def train_step(
  state: State,
  batch: dict[str, Array],
  learning_rate: np.float32 | Array,
  seed: np.uint32 | Array,
  *,
  network: Network,
  optimizer: optax.GradientTransformation,
  augment: Augment | None = None,
) -> tuple[State, dict[str, Array]]:
  """One update.

  Args:
    state: see the module.
    batch: `clips` uint8 `[B, T, H, W, 3]`, `labels` `[B]`, `flips` bool `[B]`: clips to mirror.
    learning_rate: of this step; float32, as `optimizers.make_schedule` gives it.
    seed: the keys of dropout and augmentation follow from it and the step; uint32. Of either, a
      number of another type, Python's own among them, is another program.
    network: the model.
    optimizer: the same that made the state, for a learning rate of one.
    augment: what is done to the batch, see `augmentation.make_augment`; None is nothing.

  Returns:
    (the state after the step, metric sums of the batch before it). With soft labels, the loss is
    the one they give, and a clip is right if its own label wins.
  """
  root = jax.random.key(seed)
  key = jax.random.fold_in(root, state["step"])
  labels, targets = batch["labels"], None
  pixels = mirror(batch["clips"], batch["flips"])
  if augment is None:
    clips = network.normalise(pixels)
  else:
    stream = jax.random.fold_in(root, _AUGMENTATION_STREAM)
    clips, targets = augment(pixels, labels, jax.random.fold_in(stream, state["step"]))

  def loss_and_rest(params: models.Tree) -> tuple[Array, tuple]:
    model = nnx.merge(network.training, params, state["batch_stats"])
    logits = model(clips, rngs=nnx.Rngs(dropout=key))
    _, _, batch_stats = models.split(model)
    parts = metrics.sums(logits, labels, jnp.ones(labels.shape), targets)
    return parts["loss"] / parts["count"], (batch_stats, parts)

  gradients, (batch_stats, parts) = jax.grad(loss_and_rest, has_aux=True)(state["params"])
  updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
  updates = jax.tree.map(lambda update: learning_rate * update, updates)
  new = {
    "step": state["step"] + 1,
    "params": optax.apply_updates(state["params"], updates),
    "batch_stats": batch_stats,
    "opt_state": opt_state,
  }
  return new, parts


def predict_step(
  params: models.Tree, batch_stats: models.Tree, clips: Array, *, network: Network
) -> Array:
  """Clips uint8 `[B, T, H, W, 3]` to float32 logits `[B, classes]`, in evaluation mode."""
  model = nnx.merge(network.evaluation, params, batch_stats)
  return model(network.normalise(clips))
