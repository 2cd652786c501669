"""How and when programs are compiled, and what that costs.

In: a jitted function and the shapes that it will be called with. Out: the same function, compiled beside what is done
before its first call. And devices in, what their compiler is told out; a block of code in, the programs compiled meanwhile
and the seconds out, by what JAX reports through `jax.monitoring`.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import logging
import threading
from typing import Any

import jax
import jax.numpy as jnp

from hybrid_video import sharding

log = logging.getLogger("hybrid_video")

_COMPILED = "/jax/core/compile/backend_compile_duration"
_READ = "/jax/compilation_cache/cache_hits"
# Where a chip has fewer than 8 clips, the compiler makes a batch of strips of each map, and pads, cuts and copies around
# each convolution for it. Without, 4 clips a chip take two fifths of the cycles (docs/speed.md).
_TPU_OPTIONS = {
  "xla_tpu_run_space_to_batch": False,
  "xla_tpu_run_space_to_batch_on_new_platforms": False,
}


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


def laid_out(program: Any, arguments: Sequence[Any]) -> tuple[Any, ...]:
  """Arguments in the layouts that a program takes them in.

  Args:
    program: what `jit(...).lower(...).compile()` gives.
    arguments: as many as it takes, of any layouts. An array that has to be moved is given up.
  """
  formats, _ = program.input_formats

  def moved(array: Any, wanted: Any) -> Any:
    # On the host, or not read by the program.
    if not isinstance(array, jax.Array) or wanted.layout is None:
      return array
    lies_right = array.format.layout == wanted.layout  # type: ignore[attr-defined]
    return array if lies_right else jax.device_put(array, wanted, donate=True)

  return jax.tree.map(moved, tuple(arguments), formats)


@functools.cache
def options(mesh: jax.sharding.Mesh) -> dict[str, bool] | None:
  """What the compiler is told about programs of convolutions, `compiler_options` of `jax.jit`; None is nothing.

  Args:
    mesh: the devices.
  """
  if next(iter(mesh.devices.flat)).platform != "tpu":
    return None
  return _known(_TPU_OPTIONS, mesh)


def _known(options: dict[str, bool], mesh: jax.sharding.Mesh) -> dict[str, bool] | None:
  """The options, unless the compiler has none of that name: they come and go with its versions."""
  nothing = jax.jit(
    lambda: jnp.zeros(()), out_shardings=sharding.replicated(mesh), compiler_options=options
  ).lower()
  try:
    nothing.compile()
  except jax.errors.JaxRuntimeError as error:
    if "No such compile option" not in str(error):
      raise
    log.warning("%s: steps of fewer than 8 clips a chip are slower without", error)
    return None
  return options


class Program:
  """A jitted function for arguments of known shapes, compiled at its first call, or beside other work before that."""

  def __init__(self, function: Any, *shapes: Any):
    """Compiles nothing yet.

    Args:
      function: of `jax.jit`. Layouts that it leaves to the compiler are those of the arguments after `laid_out`.
      *shapes: its arguments as `jax.ShapeDtypeStruct`s, with the shardings that they will have.
    """
    self._function, self._shapes = function, shapes
    self._compiled: futures.Future[Callable[..., Any]] = futures.Future()
    self._is_begun = self._has_run = False

  def start(self) -> None:
    """Traces at once, and compiles or reads from the cache in a thread."""
    lowered = self._traced()
    # Not one of an executor, which the interpreter would wait for where a run ends in an error.
    threading.Thread(target=self._compile, args=(lowered,), daemon=True).start()

  def _traced(self) -> Any:
    lowered = self._function.lower(*self._shapes)
    self._is_begun = True
    return lowered

  def _compile(self, lowered: Any) -> None:
    try:
      self._compiled.set_result(lowered.compile())
    except BaseException as error:
      self._compiled.set_exception(error)

  def __call__(self, *arguments: Any) -> Any:
    """Calls it, once it is compiled. From the second call on, arrays come in the layouts in which it gave them.

    Raises:
      Exception: what the compiler raised, or JAX's where arguments are of other shapes.
    """
    if not self._is_begun:
      self._compile(self._traced())
    program = self._compiled.result()
    if not self._has_run:
      arguments = laid_out(program, arguments)
      self._has_run = True
    return program(*arguments)


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
