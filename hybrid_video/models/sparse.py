"""Convolutions that see a part of the picture: what is hidden stays zero, and enters no statistic.

In: which cells of the picture each clip shows, for as long as a `with` lasts. Out: weights of 0 and 1 over any
feature map, which BatchNorm multiplies by; every convolution of a trunk is followed by one.

Source: Tian et al. 2023 (arXiv:2301.03580), for masks that are the same at all times of a clip.
"""

from collections.abc import Iterator
import contextlib
import contextvars

import jax
import jax.numpy as jnp

Array = jax.Array

_SEEN: contextvars.ContextVar[Array | None] = contextvars.ContextVar("seen", default=None)


@contextlib.contextmanager
def only(seen: Array | None) -> Iterator[None]:
  """Hides the rest of the picture from the trunks that are called within.

  Args:
    seen: 1 for the cells that are seen and 0 for others, `[B, rows, columns]`; None hides nothing.
  """
  token = _SEEN.set(seen)
  try:
    yield
  finally:
    _SEEN.reset(token)


def current() -> Array | None:
  """What is seen, `[B, rows, columns]`; None where nothing is hidden."""
  return _SEEN.get()


def is_on() -> bool:
  """Whether something may be hidden."""
  return _SEEN.get() is not None


def spread(seen: Array, like: Array) -> Array:
  """Cells `[B, rows, columns]` over a map `like` `[B, T, H, W, C]` that is as fine or finer, `[B, 1, H, W, 1]`."""
  _, rows, columns = seen.shape
  taller = jnp.repeat(seen, like.shape[2] // rows, axis=1)
  return jnp.repeat(taller, like.shape[3] // columns, axis=2)[:, None, :, :, None].astype(
    like.dtype
  )


def weights(like: Array) -> Array:
  """What is seen over a map `[B, T, H, W, C]`: 1 or 0, `[B, 1, H, W, 1]`."""
  seen = _SEEN.get()
  assert seen is not None
  return spread(seen, like)


def moments(x: Array) -> tuple[Array, Array, Array]:
  """Mean and biased variance `[C]` over what is seen of a map `[B, T, H, W, C]`, and how many positions it is."""
  seen = weights(x)
  count = seen.sum() * x.shape[1]
  mean = (x * seen).sum((0, 1, 2, 3)) / count
  return mean, (jnp.square(x - mean) * seen).sum((0, 1, 2, 3)) / count, count
