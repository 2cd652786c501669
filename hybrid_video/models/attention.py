"""Attention: one function for every model, in the form that the backend does best.

In: queries `[B, N, heads, D]`, keys and values `[B, M, heads, D]`. Out: `[B, N, heads, D]`. Every
form computes the same function; which one is taken changes speed, memory and the last bits.

Source: Vaswani et al. 2017 (arXiv:1706.03762), equation 1; the fused form: Dao 2023
(arXiv:2307.08691), as cuDNN has it.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import math

import jax
import jax.numpy as jnp

from hybrid_video.models import blockwise_attention, headwise_attention, target

Array = jax.Array

PLAIN, FUSED = "plain", "fused"
RECOMPUTED, HEADWISE, BLOCKWISE = "recomputed", "headwise", "blockwise"
FORMS = (PLAIN, FUSED, RECOMPUTED, HEADWISE, BLOCKWISE)

# What every GPU with the fused kernel takes; Hopper takes wider heads.
_MOST_CHANNELS, _CHANNELS_STEP = 128, 8
_LEAST_CAPABILITY = (8, 0)
# Scores of one head of one clip, from which one head at a time takes fewer cycles on a TPU v5e than
# all at once: with 16 clips a chip more at 257 x 257, fewer at 392 x 392, half at 784 x 784 (the
# compiler's estimate of a training step).
_SCORES_WORTH_A_LOOP = 320 * 320
# Scores of one head of one clip, from which blocks of them take less time on a CPU than all at once.
_SCORES_WORTH_BLOCKS = 256 * 256
_MASKED_SCORE = -1e9

_observer: contextvars.ContextVar[Callable[[Array], Array] | None] = contextvars.ContextVar(
  "observer", default=None
)


@contextlib.contextmanager
def observed(observer: Callable[[Array], Array]) -> Iterator[None]:
  """Within it, every call of `attend` shows its weights, and uses what it is given back.

  It acts while a function is traced, so it belongs inside what is compiled. Without it nothing is
  computed or kept that would not be anyway.

  Args:
    observer: takes the weights of one call, float32 `[B, heads, N, M]`, after any dropout; what it
      returns, of the same shape, multiplies the values.
  """
  token = _observer.set(observer)
  try:
    yield
  finally:
    _observer.reset(token)


def has_fused_kernel(devices: Sequence[jax.Device]) -> bool:
  """Whether all of these are NVIDIA GPUs from Ampere on, which run cuDNN's fused attention."""

  def capable(device: jax.Device) -> bool:
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
      return False
    return tuple(map(int, device.compute_capability.split("."))) >= _LEAST_CAPABILITY

  return bool(devices) and all(capable(device) for device in devices)


def choose(query: Array, key: Array, devices: Sequence[jax.Device], *, masked: bool) -> str:
  """The form that these devices do best.

  `FUSED`, cuDNN's kernel, never writes the scores `[B, heads, N, M]` to memory. It takes 16-bit
  numbers and heads of up to 128 channels, a multiple of 8. It gains nothing where a query has no
  more scores than channels. It takes masks only as a bias of the scores' full size, with a gradient
  of that size: the very memory that it exists to save.

  On a TPU, scores computed again in the backward pass (`RECOMPUTED`) take half the memory at about
  the same cycles, and a block of one head's scores at a time (`HEADWISE`) stays in the fast memory. JAX's
  Pallas kernels are not among the forms: the compiler cannot partition them over a mesh, as it does
  everything else in a training step.

  On a CPU, scores of a block of queries at a time (`BLOCKWISE`) stay in the cache, forward and backward; not on
  several devices, whose shares of a batch a loop would gather. Anywhere else it is `PLAIN`.

  Args:
    query: `[B, N, heads, D]`; only its shape and dtype are read.
    key: `[B, M, heads, D]`, likewise.
    devices: that will run it.
    masked: whether some keys are hidden.
  """
  _, queries, _, channels = query.shape
  keys = key.shape[1]
  if keys <= channels:
    return PLAIN
  if devices and all(device.platform == "tpu" for device in devices):
    return HEADWISE if queries * keys >= _SCORES_WORTH_A_LOOP else RECOMPUTED
  if devices and all(device.platform == "cpu" for device in devices):
    is_worth_it = len(devices) == 1 and queries * keys >= _SCORES_WORTH_BLOCKS
    return BLOCKWISE if is_worth_it else PLAIN
  takes = (
    query.dtype == key.dtype
    and query.dtype in (jnp.bfloat16, jnp.float16)
    and channels <= _MOST_CHANNELS
    and channels % _CHANNELS_STEP == 0
    and not masked
  )
  return FUSED if takes and has_fused_kernel(devices) else PLAIN


def attend(
  query: Array,
  key: Array,
  value: Array,
  visible: Array | None = None,
  *,
  dropout: Callable[[Array], Array] | None = None,
  form: str | None = None,
) -> Array:
  """Every query's mean of the values, weighted by `softmax(query key^T / sqrt(D))` in float32.

  Args:
    query: `[B, N, heads, D]`.
    key: `[B, M, heads, D]`.
    value: `[B, M, heads, D]`.
    visible: bool `[B, M]`; a hidden key has no weight anywhere. At least one a clip is visible.
    dropout: takes the weights, float32 `[B, heads, N, M]`, and drops some of them.
    form: one of `FORMS`; the default is what `choose` says for the `target`.

  Returns:
    `[B, N, heads, D]`, in the dtype of the values.

  Raises:
    ValueError: an unknown form, or one that takes no mask; shapes or dtypes that do not fit
      together (the message is JAX's).
  """
  steps = [step for step in (dropout, _observer.get()) if step is not None]
  if steps:
    return _by_weights(query, key, value, visible, steps)
  if form is None:
    form = choose(query, key, target.devices(), masked=visible is not None)
  mask = None if visible is None else visible[:, None, None, :]
  if form == PLAIN:
    return _plain(query, key, value, mask)
  if form == RECOMPUTED:
    return jax.checkpoint(_plain)(query, key, value, mask)
  if form == HEADWISE:
    return headwise_attention.attend(query, key, value, visible)
  if form == BLOCKWISE:
    return blockwise_attention.attend(query, key, value, visible)
  if form == FUSED and mask is None:
    return _fused(query, key, value)
  raise ValueError(
    f"Attention {'under a mask ' if visible is not None else ''}has no form {form!r}: take one of "
    f"{', '.join(f for f in FORMS if visible is None or f != FUSED)}, or None for the best one."
  )


def _plain(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
  return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")


def _fused(query: Array, key: Array, value: Array) -> Array:
  """cuDNN's, with odd lengths filled up to even ones.

  JAX 0.10.2 refuses odd lengths in training as if there always were a bias, and 256 latents with a
  CLS token are 257.
  """
  (batch, queries), keys = query.shape[:2], key.shape[1]
  if queries % 2 == 0 and keys % 2 == 0:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")

  def fill(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

  return jax.nn.dot_product_attention(
    fill(query),
    fill(key),
    fill(value),
    query_seq_lengths=jnp.full((batch,), queries, jnp.int32),
    key_value_seq_lengths=jnp.full((batch,), keys, jnp.int32),
    implementation="cudnn",
  )[:, :queries]


def _by_weights(
  query: Array,
  key: Array,
  value: Array,
  visible: Array | None,
  steps: Sequence[Callable[[Array], Array]],
) -> Array:
  """The formula itself: JAX's own attention neither drops nor shows weights."""
  wide = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=wide)
  scores = scores / math.sqrt(query.shape[-1])
  if visible is not None:
    scores = jnp.where(visible[:, None, None, :], scores, _MASKED_SCORE)
  weights = jax.nn.softmax(scores, axis=-1)
  for step in steps:
    weights = step(weights)
  return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
