"""Metrics as masked sums and counts: logits and labels in, sums to add up and divide once out.

A padded row has mask 0 and counts nowhere, so neither the batch size nor how rows are spread over
devices changes a result.
"""

from collections.abc import Iterable, Mapping

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
  aimed_at = true[:, 0] if targets is None else jnp.sum(logits * targets, axis=-1)
  losses = jax.nn.logsumexp(logits, axis=-1) - aimed_at
  # Equal scores and NaN count against the row: a constant output is never right by accident.
  others = jnp.arange(logits.shape[-1]) != labels[:, None]
  rank = jnp.sum(~(logits < true) & others, axis=-1)
  return {
    "loss": jnp.sum(losses * mask),
    "top1": jnp.sum((rank < 1) * mask),
    "top5": jnp.sum((rank < TOP_K) * mask),
    "count": jnp.sum(mask),
  }


def means(parts: Iterable[Mapping[str, Array]]) -> dict[str, float]:
  """Adds up sums of several batches and divides by the rows that counted.

  Raises:
    ValueError: no row counted.
  """
  total: dict[str, float] = {}
  for part in parts:
    for name, value in part.items():
      total[name] = total.get(name, 0.0) + float(value)
  count = total.pop("count", 0.0)
  if not count:
    raise ValueError("There is no example to average over: every row is padding.")
  return {name: value / count for name, value in total.items()}
