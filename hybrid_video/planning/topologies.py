"""TPU topologies by name: chips, memory, clock, and what the TPU compiler asks of the environment.

In: a name such as "v5e:2x2". Out: a `Topology`; in a process that has its `environment`, its devices,
for which programs can be compiled although no TPU is there.

Source of the numbers: cloud.google.com/tpu/docs, the pages of v4, v5e, v5p and v6e.
"""

from collections.abc import Sequence
import dataclasses
import math
import os
from typing import Any

from hybrid_video import errors

GIB = 2**30


class TopologyError(errors.UserError):
  """A topology that there is not; the message has the nearest."""


@dataclasses.dataclass(frozen=True)
class Generation:
  """A kind of TPU.

  Attributes:
    name: such as "v5e".
    accelerator: what libtpu wants to be told before it compiles for any topology of the kind.
    memory: of a chip, bytes.
    peak: bfloat16 operations a second of a chip.
    operations: of its matrix units in one cycle, a multiply-accumulate being two.
    layouts: chips along each axis, of the slices that there are.
    host_chips: chips of a host in a slice of several hosts.
    single_host: layouts of one host although they have more chips than `host_chips`.
    options: of `topologies.get_topology_desc`.
  """

  name: str
  accelerator: str
  memory: int
  peak: float
  operations: int
  layouts: tuple[str, ...]
  host_chips: int = 4
  single_host: tuple[str, ...] = ()
  options: tuple[tuple[str, Any], ...] = ()

  @property
  def clock(self) -> float:
    """Cycles a second, from the published peak."""
    return self.peak / self.operations


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_UNIT = 2 * 128 * 128

GENERATIONS = {
  generation.name: generation
  for generation in (
    # A v4's two cores are one device to JAX, as a v5p's are.
    Generation(
      "v4", "v4-8", 32 * GIB, 275e12, 8 * _UNIT, _CUBES, options=(("chip_config_name", "megacore"),)
    ),
    Generation("v5e", "v5litepod-4", 16 * GIB, 197e12, 4 * _UNIT, _FLAT, single_host=("2x4",)),
    Generation("v5p", "v5p-8", 95 * GIB, 459e12, 8 * _UNIT, _CUBES),
    Generation("v6e", "v6e-4", 32 * GIB, 918e12, 4 * 4 * _UNIT, _FLAT, single_host=("2x4",)),
  )
}
NAMES = tuple(f"{of.name}:{layout}" for of in GENERATIONS.values() for layout in of.layouts)


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of TPUs.

  Attributes:
    generation: of its chips.
    layout: chips along each axis, such as "2x2".
  """

  generation: Generation
  layout: str

  @property
  def name(self) -> str:
    """Such as "v5e:2x2"."""
    return f"{self.generation.name}:{self.layout}"

  @property
  def shape(self) -> tuple[int, ...]:
    """Chips along each axis."""
    return tuple(int(size) for size in self.layout.split("x"))

  @property
  def chips(self) -> int:
    """How many; each is one device."""
    return math.prod(self.shape)

  @property
  def hosts(self) -> int:
    """Processes that a training on it has."""
    if self.layout in self.generation.single_host:
      return 1
    return max(1, self.chips // self.generation.host_chips)

  def larger(self) -> "list[Topology]":
    """The slices of the same kind with more chips, smallest first."""
    layouts = self.generation.layouts
    return [Topology(self.generation, of) for of in layouts[layouts.index(self.layout) + 1 :]]

  def environment(self) -> dict[str, str]:
    """Variables that a process needs before it imports JAX."""
    return {
      # The compiler is asked for by name; nothing runs on a TPU.
      "JAX_PLATFORMS": "cpu",
      "TPU_ACCELERATOR_TYPE": self.generation.accelerator,
      # On no cloud machine is there a server of metadata to wait for.
      "TPU_SKIP_MDS_QUERY": "1",
      "TPU_WORKER_HOSTNAMES": "localhost",
      # No TPU is used: nothing to keep other processes from.
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
      "TF_CPP_MIN_LOG_LEVEL": "3",
    }

  def devices(self) -> Sequence[Any]:
    """Its devices, to compile for; in a process that has the `environment`."""
    from jax.experimental import topologies

    options = dict(self.generation.options)
    if self.layout in self.generation.single_host:
      options["chips_per_host_bounds"] = (*self.shape, 1)
    # For those that do not start processes of their own for each kind of TPU.
    os.environ["TPU_ACCELERATOR_TYPE"] = self.generation.accelerator
    described = topologies.get_topology_desc(platform="tpu", topology_name=self.name, **options)
    return described.devices


def named(name: str) -> Topology:
  """The topology of a name.

  Raises:
    TopologyError: there is none; with the nearest names.
  """
  if name in NAMES:
    generation, _, layout = name.partition(":")
    return Topology(GENERATIONS[generation], layout)
  of_kind = [known for known in NAMES if known.startswith(name.partition(":")[0] + ":")]
  near = errors.nearest(name, of_kind or NAMES, cutoff=0.4)
  known = of_kind or [f"{kind}:{of.layouts[1]}" for kind, of in GENERATIONS.items()]
  raise TopologyError(
    f"--topology is {name!r}, and there is no such topology.{near} "
    f"{'Known' if of_kind else 'Examples'}: {', '.join(known)}."
  )
