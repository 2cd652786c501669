"""Our BERT pooling with the weights that a PyTorch twin ran with, and how far their outputs lie apart."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from golden import reference_weights
from golden.comparison import relative_error
from hybrid_video.models import bert_pooling

GOLDEN = np.load(pathlib.Path(__file__).parent / "bert_pooling.npz")
BATCH, WIDTH = 3, 512


def reference(tokens: int) -> bert_pooling.BertPooling:
  """BERT pooling with the weights that the reference ran with, in evaluation."""
  pooling = bert_pooling.BertPooling(WIDTH, tokens, rng=np.random.default_rng(0))
  fill = reference_weights.value
  pooling.cls[...] = jnp.asarray(fill("cls", (1, 1, WIDTH))[0])
  pooling.positions[...] = jnp.asarray(fill("positions", (1, 1 + tokens, WIDTH))[0])
  for name in ("norm1", "norm2"):
    norm = getattr(pooling, name)
    norm.scale[...] = jnp.asarray(fill(f"{name}.weight", (WIDTH,)))
    norm.bias[...] = jnp.asarray(fill(f"{name}.bias", (WIDTH,)))
  # PyTorch stacks queries, keys and values.
  kernels = np.split(fill("attention.in_proj_weight", (3 * WIDTH, WIDTH)), 3)
  biases = np.split(fill("attention.in_proj_bias", (3 * WIDTH,)), 3)
  attention = pooling.self_attention
  linears = [
    (attention.to_q, kernels[0], biases[0]),
    (attention.to_k, kernels[1], biases[1]),
    (attention.to_v, kernels[2], biases[2]),
  ]
  for linear, key, shape in (
    (attention.to_out, "attention.out_proj", (WIDTH, WIDTH)),
    (pooling.expand, "feed_forward.0", (4 * WIDTH, WIDTH)),
    (pooling.contract, "feed_forward.2", (WIDTH, 4 * WIDTH)),
  ):
    linears.append((linear, fill(f"{key}.weight", shape), fill(f"{key}.bias", shape[:1])))
  for linear, kernel, bias in linears:
    linear.kernel[...], linear.bias[...] = jnp.asarray(kernel.T), jnp.asarray(bias)
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
