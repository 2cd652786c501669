"""What compiling costs: a block of code in, the programs compiled meanwhile and the seconds out.

JAX reports every program through `jax.monitoring`; nothing here compiles, or changes what is
compiled.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_READ = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass
class Compilations:
  """Programs that XLA was asked for.

  Attributes:
    programs: how many, including those read from the persistent cache.
    from_cache: how many of them were read from the persistent cache.
    seconds: spent compiling or reading them; tracing in Python is not counted.
  """

  programs: int = 0
  from_cache: int = 0
  seconds: float = 0.0

  def as_numbers(self) -> dict[str, float | int]:
    """The attributes by name, for `results.json`."""
    return {**dataclasses.asdict(self), "seconds": round(self.seconds, 2)}

  def __str__(self) -> str:
    return f"{self.programs} programs in {self.seconds:.1f} s, {self.from_cache} from the cache"


@contextlib.contextmanager
def counted() -> Iterator[Compilations]:
  """Counts what is compiled in this process, by any thread, while the block runs."""
  compiled = Compilations()

  def on_duration(event: str, duration_secs: float, **_: Any) -> None:
    if event == _COMPILED:
      compiled.programs += 1
      compiled.seconds += duration_secs

  def on_event(event: str, **_: Any) -> None:
    if event == _READ:
      compiled.from_cache += 1

  jax.monitoring.register_event_duration_secs_listener(on_duration)
  jax.monitoring.register_event_listener(on_event)
  try:
    yield compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(on_duration)
    jax.monitoring.unregister_event_listener(on_event)
