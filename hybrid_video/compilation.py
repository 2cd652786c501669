"""When programs are compiled, and what that costs.

In: a jitted function and the shapes that it will be called with. Out: the same function, compiled beside what is done
before its first call. And a block of code in, the programs compiled meanwhile and the seconds out, by what JAX reports
through `jax.monitoring`.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import dataclasses
import threading
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


class InBackground:
  """A function that is traced at once, and compiled or read from the cache in a thread until it is first called."""

  def __init__(self, function: Any, *shapes: Any):
    """Traces, and begins.

    Args:
      function: of `jax.jit`.
      *shapes: its arguments, or `jax.ShapeDtypeStruct`s with the shardings that they will have.
    """
    self._program: futures.Future[Callable[..., Any]] = futures.Future()
    # Not one of an executor, which the interpreter would wait for where a run ends in an error.
    threading.Thread(target=self._compile, args=(function.lower(*shapes),), daemon=True).start()

  def _compile(self, lowered: Any) -> None:
    try:
      self._program.set_result(lowered.compile())
    except BaseException as error:
      self._program.set_exception(error)

  def __call__(self, *arguments: Any) -> Any:
    """Calls it, once it is compiled.

    Raises:
      Exception: what the compiler raised, or JAX's where arguments are of other shapes.
    """
    return self._program.result()(*arguments)


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
