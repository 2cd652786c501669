"""What a compiled program tells of itself: bytes a device, collectives, the TPU compiler's cycles.

In: what `jit(...).lower(...).compile()` gives, its text or the compiler's complaint. Out: numbers.

`estimated_cycles`, which the TPU compiler writes beside each operation it schedules, are summed. They
are a model, not a measurement: they count tiles, windows and memory traffic of an operation, but neither
elementwise work fused into a convolution nor prefetches that run beside others nor collectives. A loop's
body counts as often as it runs.
"""

import collections
from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# What the compiler writes where it has no estimate.
_NO_ESTIMATE = 2**63 - 1
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r"\b(pred|[subf]\d+|bf16|f8\w+)\[([\d,]*)\]")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|condition|body|branch_computations|true_computation|false_computation)="
  r"(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"[\w.\-]+")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"\bs32\[\]\S* constant\((\d+)\)")
_COLLECTIVE = re.compile(
  r"\b(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
# Their results hold what goes in beside what comes out.
_PAIRED = ("all-gather-start", "collective-permute-start")
_PREFETCH = re.compile(r"(copy-start|slice-start|async-start)")
_WIDTHS = {"pred": 1, "bf16": 2}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_TEMPORARY = re.compile(
  r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
)


def _width(kind: str) -> int:
  if kind in _WIDTHS or kind.startswith("f8"):
    return _WIDTHS.get(kind, 1)
  return max(1, int(re.sub(r"\D", "", kind)) // 8)


def array_bytes(shapes: str) -> list[int]:
  """Bytes of each array that a text names, such as `(f32[2,3], bf16[4])`; padding left out."""
  return [
    _width(kind) * math.prod(int(size) for size in sizes.split(",") if size)
    for kind, sizes in _ARRAY.findall(shapes)
  ]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """The lines of each computation by name, callees first, and the name of the entry."""
  found: dict[str, list[str]] = {}
  entry, lines = "", []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      lines = found.setdefault(match[2], [])
      entry = match[2] if match[1] else entry
    else:
      lines.append(line)
  return found, entry


def _trips(line: str, computations: Mapping[str, list[str]], condition: str) -> int | None:
  """How often a loop runs: what the compiler says, or the number its condition compares with; None if neither."""
  if known := _TRIPS.search(line):
    return int(known[1])
  bounds = [
    int(number) for of in computations.get(condition, ()) for number in _CONSTANT.findall(of)
  ]
  return max(bounds) or 1 if bounds else None


def _calls(computations: Mapping[str, list[str]], entry: str) -> tuple[dict[str, int], list[str]]:
  """How often each computation runs in one call of the program, and the conditions of loops that do not tell."""
  times: collections.Counter[str] = collections.Counter({entry: 1})
  unknown: list[str] = []
  # Callees stand before their callers.
  for name, lines in reversed(list(computations.items())):
    for line in lines:
      if not (called := _CALLED.findall(line)):
        continue
      trips = 1
      if " while(" in line and (condition := re.search(r"\bcondition=%?([\w.\-]+)", line)):
        found = _trips(line, computations, condition[1])
        unknown += [condition[1]] if found is None else []
        trips = found or 1
      for callee in (each for group in called for each in _NAME.findall(group)):
        times[callee] += trips * times[name]
  return times, unknown


def account(text: str, parts: re.Pattern[str] | None = None) -> dict[str, Any]:
  """What a compiled program's text tells of its costs.

  Args:
    text: `compiled.as_text()`.
    parts: finds the part of the network in the name of an operation; without it all is "other".

  Returns:
    `cycles` (the sum of estimates; 0 for other devices than TPUs), `not_estimated` (operations that the compiler
    could not estimate, which `cycles` leaves out), `unknown_loops` (conditions of loops that do not tell how often they
    run, and count once), `parts` (of the network: forward and
    backward cycles), `prefetched_bytes` (asynchronous copies, which have no estimate), `collectives` (by
    kind: `count` and `bytes` of a device), `all_reduces` (bytes of each).
  """
  computations, entry = _computations(text)
  times, unknown_loops = _calls(computations, entry)
  by_part: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  collectives: dict[str, dict[str, int]] = {}
  cycles, not_estimated, prefetched, reduced = 0, 0, 0, []
  for computation, lines in computations.items():
    # What nobody seems to call is named in a way not known here.
    runs = times[computation] or 1
    for line in lines:
      if not (match := _INSTRUCTION.match(line)):
        continue
      name, rest = match.groups()
      result = rest.split(" ", 1)[0] if not rest.startswith("(") else rest[: rest.index(") ") + 1]
      if _PREFETCH.match(name):
        # The result holds source, destination and a handle: the smaller array is what moves.
        arrays = sorted(array_bytes(result))
        prefetched += runs * (arrays[-2] if len(arrays) > 1 else 0)
      if found := _COLLECTIVE.search(rest):
        moved = sum(array_bytes(result))
        if found[1] + (found[2] or "") in _PAIRED:
          moved = max(array_bytes(result), default=0)
        of_kind = collectives.setdefault(found[1], {"count": 0, "bytes": 0})
        of_kind["count"] += runs
        of_kind["bytes"] += runs * moved
        reduced += [moved] * runs if found[1] == "all-reduce" else []
      if not (estimate := _CYCLES.search(line)):
        continue
      if int(estimate[1]) == _NO_ESTIMATE:
        not_estimated += runs
        continue
      count = runs * int(estimate[1])
      cycles += count
      op = named[1] if (named := _OP_NAME.search(line)) else ""
      part = of[1] if parts and (of := parts.search(op)) else "other"
      by_part[part]["transpose(" in op] += count
  return {
    "cycles": cycles,
    "not_estimated": not_estimated,
    "unknown_loops": unknown_loops,
    "parts": {part: {"forward": f, "backward": b} for part, (f, b) in sorted(by_part.items())},
    "prefetched_bytes": prefetched,
    "collectives": dict(sorted(collectives.items())),
    "all_reduces": reduced,
  }


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device that a program takes, all its inputs included.

  Attributes:
    arguments: the state and the batch.
    outputs: without those that take an argument's place.
    temporary: activations, gradients, what is in flight.
    code: the program itself.
    peak: at once, by the compiler's own account, without the code.
  """

  arguments: int
  outputs: int
  temporary: int
  code: int
  peak: int

  @property
  def total(self) -> int:
    """All of them together, which the peak may stay below."""
    return self.arguments + self.outputs + self.temporary + self.code

  @classmethod
  def of(cls, compiled: Any) -> "Memory":
    """What `compiled.memory_analysis()` says."""
    found = compiled.memory_analysis()
    return cls(
      arguments=found.argument_size_in_bytes,
      outputs=max(0, found.output_size_in_bytes - found.alias_size_in_bytes),
      temporary=found.temp_size_in_bytes,
      code=found.generated_code_size_in_bytes,
      peak=found.peak_memory_in_bytes,
    )


def memory_wanted(complaint: str, arguments: int) -> tuple[int, int] | None:
  """What a program would have needed that the compiler refused for its memory.

  Args:
    complaint: the compiler's message.
    arguments: bytes of a device's inputs, which it may leave out.

  Returns:
    (bytes that it needs, bytes that there are); None where the message is about something else.
  """
  for pattern, left_out in ((_USED, 0), (_TEMPORARY, arguments)):
    if found := pattern.search(complaint):
      used, unit, limit, limit_unit = found.groups()
      needed = round(float(used) * _UNITS[unit]) + left_out
      return needed, round(float(limit) * _UNITS[limit_unit])
  return None
