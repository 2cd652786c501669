"""Our BERT pooling with the weights that a PyTorch twin ran with, and how far their outputs lie apart."""

from collections.abc import Callable
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from golden import reference_weights
from golden.comparison import relative_error
from hybrid_video.models import bert_pooling

GOLDEN = np.load(pathlib.Path(__file__).parent / "bert_pooling.npz")
BATCH, WIDTH = 3, 512


def fill(pooling: bert_pooling.BertPooling, value: Callable[[str], np.ndarray]) -> None:
  """Gives BERT pooling the twin's weights, by the twin's keys."""
  pooling.cls[...] = jnp.asarray(value("cls")[0])
  pooling.positions[...] = jnp.asarray(value("positions")[0])
  for name in ("norm1", "norm2"):
    norm = getattr(pooling, name)
    norm.scale[...] = jnp.asarray(value(f"{name}.weight"))
    norm.bias[...] = jnp.asarray(value(f"{name}.bias"))
  # PyTorch stacks queries, keys and values.
  kernels = np.split(value("attention.in_proj_weight"), 3)
  biases = np.split(value("attention.in_proj_bias"), 3)
  attention = pooling.self_attention
  linears = [
    (attention.to_q, kernels[0], biases[0]),
    (attention.to_k, kernels[1], biases[1]),
    (attention.to_v, kernels[2], biases[2]),
  ]
  for linear, key in (
    (attention.to_out, "attention.out_proj"),
    (pooling.expand, "feed_forward.0"),
    (pooling.contract, "feed_forward.2"),
  ):
    linears.append((linear, value(f"{key}.weight"), value(f"{key}.bias")))
  for linear, kernel, bias in linears:
    linear.kernel[...], linear.bias[...] = jnp.asarray(kernel.T), jnp.asarray(bias)


def reference(tokens: int) -> bert_pooling.BertPooling:
  """BERT pooling with the weights that the reference ran with, in evaluation."""
  pooling = bert_pooling.BertPooling(WIDTH, tokens, rng=np.random.default_rng(0))
  shapes = {
    "cls": (1, 1, WIDTH),
    "positions": (1, 1 + tokens, WIDTH),
    "attention.in_proj_weight": (3 * WIDTH, WIDTH),
    "attention.in_proj_bias": (3 * WIDTH,),
    "attention.out_proj.weight": (WIDTH, WIDTH),
    "feed_forward.0.weight": (4 * WIDTH, WIDTH),
    "feed_forward.0.bias": (4 * WIDTH,),
    "feed_forward.2.weight": (WIDTH, 4 * WIDTH),
  }
  fill(pooling, lambda key: reference_weights.value(key, shapes.get(key, (WIDTH,))))
  pooling.eval()
  return pooling


def tokens_of(count: int, batch: int = BATCH, width: int = WIDTH) -> jax.Array:
  return jnp.asarray(reference_weights.clips((batch, count, width)))


def kept_keys(count: int) -> jax.Array:
  """The mask that the reference ran under."""
  return (jnp.arange(count)[None] + jnp.arange(BATCH)[:, None]) % 3 != 0


def errors(count: int) -> dict[str, float]:
  """Relative errors of the `pooled` features of so many tokens, and of those `masked`."""
  pooling = reference(count)
  masked = pooling.attend(tokens_of(count), kept_keys(count))[:, 0]
  return {
    "pooled": relative_error(pooling(tokens_of(count)), GOLDEN[f"tokens{count}"]),
    "masked": relative_error(masked, GOLDEN[f"tokens{count}_masked"]),
  }
