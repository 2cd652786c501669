"""What a trace is meant for: the devices by which convolutions and attention choose their forms.

JAX's own devices, unless `traced_for` says otherwise.
"""

from collections.abc import Iterator, Sequence
import contextlib
import contextvars

import jax

_traced_for: contextvars.ContextVar[Sequence[jax.Device] | None] = contextvars.ContextVar(
  "traced_for", default=None
)


@contextlib.contextmanager
def traced_for(devices: Sequence[jax.Device]) -> Iterator[None]:
  """Within it, functions are traced for these devices instead of JAX's own.

  For compiling ahead of time for devices that this machine does not have; and, with no device at
  all, for the plain form of everything: 3-D convolutions, and attention whose products can be
  counted. A function that was traced with the same shapes before is not traced again: use a fresh
  `jax.jit`.
  """
  token = _traced_for.set(devices)
  try:
    yield
  finally:
    _traced_for.reset(token)


def devices() -> Sequence[jax.Device]:
  """The devices to choose for: of JAX's own, this process's."""
  given = _traced_for.get()
  return jax.local_devices() if given is None else given


def platform() -> str:
  """Their platform, "cpu", "gpu" or "tpu"; "" if there is none."""
  return next((device.platform for device in devices()), "")


def device_count() -> int:
  """How many there are, over all processes."""
  given = _traced_for.get()
  return jax.device_count() if given is None else len(given)
