"""What might fit where an experiment does not, in the order in which it is worth trying.

In: an experiment that takes too much memory, and how much it takes. Out: changed experiments with the
flags that change them, cheapest first, without those that cannot be enough by what is known.

The order: what costs nothing comes first. Without BatchNorm that is accumulation; with it, accumulation
changes what is computed (statistics are of each part), so recomputing activations, up to a third more
arithmetic, goes before it; first without convolutions, then with them. Splitting the state (fsdp) costs messages and helps only the state, and so
comes first only where that is most of what is needed. A larger topology is last: it costs money.
"""

from collections.abc import Sequence
import dataclasses
import types
from typing import Any

from hybrid_video import models
from hybrid_video.experiment import Experiment
from hybrid_video.models import rematerialization
from hybrid_video.models.rematerialization import BLOCKS, CONVOLUTIONS_SAVED, NONE
from hybrid_video.planning import topologies

# Of activations that stay under a policy, at the least: what convolutions give, and what lies between blocks.
_LEFT_BY_REMAT = {NONE: 1.0, CONVOLUTIONS_SAVED: 0.4, BLOCKS: 0.15}
# What is predicted to be less than this much too large is tried: the prediction is rough.
_TOLERANCE = 1.15
_MOST_STATE = 0.5


@dataclasses.dataclass(frozen=True)
class Alternative:
  """A change that may make an experiment fit.

  Attributes:
    experiment: with the change.
    topology: where it runs; None is this machine.
    flags: what a user adds to the command.
    predicted: bytes a device, by proportion; for recomputation a lower bound.
  """

  experiment: Experiment
  topology: topologies.Topology | None
  flags: tuple[str, ...]
  predicted: int


@dataclasses.dataclass(frozen=True)
class Needed:
  """Bytes of one device that the experiment as it is takes.

  Attributes:
    total: all.
    state: parameters, optimizer, averages and statistics.
    gradients: kept whole however small the parts of a batch are.
  """

  total: int
  state: int
  gradients: int

  @property
  def activations(self) -> int:
    """The rest, which shrinks with the clips computed at once."""
    return max(0, self.total - self.state - self.gradients)


def _policy(experiment: Experiment) -> str:
  return rematerialization.policy(experiment.model.options.get("remat", NONE))


def policies(experiment: Experiment) -> list[str]:
  """Of what its model can compute again: the policy as it is, and those that keep less."""
  if "remat" not in models.options(experiment.model.name):
    return [NONE]
  now = _LEFT_BY_REMAT[_policy(experiment)]
  return [policy for policy, left in _LEFT_BY_REMAT.items() if left <= now]


def _changed(
  experiment: Experiment, micro_batches: int, fsdp: int, remat: str
) -> tuple[Experiment, tuple[str, ...]]:
  changes: dict[str, Any] = {}
  flags = []
  if micro_batches != experiment.micro_batches:
    changes["micro_batches"] = micro_batches
    flags.append(f"--config.micro_batches={micro_batches}")
  if remat != _policy(experiment):
    options = types.MappingProxyType({**experiment.model.options, "remat": remat})
    changes["model"] = dataclasses.replace(experiment.model, options=options)
    flags.append(f"--config.model.remat={remat}")
  if fsdp != experiment.fsdp:
    changes["fsdp"] = fsdp
    flags.append(f"--config.fsdp={fsdp}")
  return dataclasses.replace(experiment, **changes), tuple(flags)


def _part_counts(experiment: Experiment, devices: int) -> list[int]:
  """Numbers of parts, as they are and doubled, for which a part divides among the devices."""
  now = experiment.micro_batches
  counts = [now * 2**power for power in range(12)]
  return [of for of in counts if experiment.batch_size % (of * devices) == 0] or [now]


def _order(
  parts: Sequence[int], policies: Sequence[str], batch_norm: bool
) -> list[tuple[int, str]]:
  """Pairs of parts and policies, most welcome first; the first is as it was."""
  if batch_norm:
    return [(of, policy) for of in parts for policy in policies]
  return [(of, policy) for policy in policies for of in parts]


def listed(
  experiment: Experiment,
  topology: topologies.Topology | None,
  devices: int,
  needed: Needed,
  limit: int,
  *,
  batch_norm: bool,
) -> list[Alternative]:
  """Alternatives worth a compilation, in order.

  Args:
    experiment: which does not fit.
    topology: where; None is this machine.
    devices: there.
    needed: what a device would need.
    limit: what a device has.
    batch_norm: whether the model has batch statistics.
  """
  parts = _part_counts(experiment, devices)
  pairs = _order(parts, policies(experiment), batch_norm)
  splits = [experiment.fsdp] + ([devices] if devices > experiment.fsdp else [])
  if needed.state > _MOST_STATE * limit:
    splits.reverse()
  found = []
  for fsdp in splits:
    shared = fsdp / experiment.fsdp
    for count, remat in pairs:
      changed, flags = _changed(experiment, count, fsdp, remat)
      if not flags:
        continue
      left = _LEFT_BY_REMAT[remat] / _LEFT_BY_REMAT[_policy(experiment)]
      activations = needed.activations * left * experiment.micro_batches / count
      predicted = round((needed.state + needed.gradients) / shared + activations)
      found.append(Alternative(changed, topology, flags, predicted))
  if topology:
    found += _larger(experiment, topology, needed)
  worth = [each for each in found if each.predicted <= limit * _TOLERANCE]
  # Where nothing is likely, the one that needs least is tried all the same.
  return worth or sorted(found, key=lambda each: each.predicted)[:1]


def _larger(
  experiment: Experiment, topology: topologies.Topology, needed: Needed
) -> list[Alternative]:
  found = []
  for larger in topology.larger():
    if experiment.batch_size % (larger.chips * experiment.micro_batches):
      continue
    activations = needed.activations * topology.chips / larger.chips
    predicted = round(needed.state + needed.gradients + activations)
    found.append(Alternative(experiment, larger, (f"--topology={larger.name}",), predicted))
  return found
