"""Metrics as masked sums and counts: logits and labels in, sums to add up and divide once out.

A padded row has mask 0 and counts nowhere, so neither the batch size nor how rows are spread over
devices changes a result.
"""

from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
TOP_K = 5


def sums(
  logits: Array, labels: Array, mask: Array, targets: Array | None = None
) -> dict[str, jax.Array]:
  """Masked sums over a batch.

  Args:
    logits: `[B, classes]`; log-probabilities serve as well.
    labels: class ids `[B]`.
    mask: `[B]`, 1 for a row that counts and 0 for padding.
    targets: soft labels `[B, classes]` whose rows add up to 1; with them, the loss is against them
      and the correct rows still against `labels`.

  Returns:
    Scalars: `loss` (cross-entropy, nats), `top1` and `top5` (correct rows), `count` (rows). With
    fewer than five classes, `top5` counts every row.
  """
  logits = jnp.asarray(logits, jnp.float32)
  labels = jnp.asarray(labels)
  true = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  target = true[:, 0] if targets is None else jnp.sum(logits * targets, axis=-1)
  losses = jax.nn.logsumexp(logits, axis=-1) - target
  # Equal scores and NaN count against the row: a constant output is never right by accident.
  others = jnp.arange(logits.shape[-1]) != labels[:, None]
  rank = jnp.sum(~(logits < true) & others, axis=-1)
  return {
    "loss": jnp.sum(losses * mask),
    "top1": jnp.sum((rank < 1) * mask),
    "top5": jnp.sum((rank < TOP_K) * mask),
    "count": jnp.sum(mask),
  }


def means(sums_of_batches: Iterable[Mapping[str, Array]]) -> dict[str, float]:
  """Adds up sums of several batches and divides by the rows that counted.

  Raises:
    ValueError: no row counted.
  """
  total: dict[str, float] = {}
  for batch in sums_of_batches:
    for name, value in batch.items():
      total[name] = total.get(name, 0.0) + float(value)
  count = total.pop("count", 0.0)
  if not count:
    raise ValueError("There is no example to average over: every row is padding.")
  return {name: value / count for name, value in total.items()}


@jax.jit
def _softmax(logits: jax.Array) -> jax.Array:
  return jax.nn.softmax(logits, axis=-1)


_sums = jax.jit(sums)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
  padding = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
  return np.pad(rows, padding)


def _slices(count: int, size: int) -> Iterator[slice]:
  return (slice(start, min(start + size, count)) for start in range(0, count, size))


def probabilities(logits: np.ndarray, size: int) -> np.ndarray:
  """Softmax of logits `[N, classes]`, float32.

  Taken `size` rows at a time, the last ones padded, so that one compiled program serves lists of
  every length.
  """
  shares = [
    np.asarray(_softmax(_padded(np.asarray(logits[rows], np.float32), size)))[
      : rows.stop - rows.start
    ]
    for rows in _slices(len(logits), size)
  ]
  return np.concatenate(shares) if shares else np.zeros(logits.shape, np.float32)


def batched_sums(
  scores: np.ndarray, labels: np.ndarray, size: int
) -> Iterator[dict[str, np.ndarray]]:
  """Metric sums of scores `[N, classes]` against labels `[N]`, `size` rows at a time."""
  for rows in _slices(len(scores), size):
    count = rows.stop - rows.start
    mask = (np.arange(size) < count).astype(np.float32)
    scored = _padded(np.asarray(scores[rows], np.float32), size)
    true = _padded(np.asarray(labels[rows], np.int32), size)
    yield jax.device_get(_sums(scored, true, mask))
