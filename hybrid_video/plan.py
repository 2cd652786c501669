"""The mode `plan`: what a run will take, before it takes it.

In: an experiment, and where it is to run: this machine's devices, or TPUs by name. Out: parameters,
multiply-accumulates, bytes of a device, steps and hours on the console; `plan.json` where there is a work
directory. The very step of the training is compiled, in a process of its own; no data set is needed, and
nothing is trained. Where the step does not fit, changes that might are compiled one after the other.
"""

import dataclasses
import logging
import os
import pathlib
import statistics
from typing import Any

from hybrid_video import errors, files, meter, progress
from hybrid_video.experiment import Experiment
from hybrid_video.planning import alternatives, compiler, lengths, text, topologies

log = logging.getLogger("hybrid_video")

FILE = "plan.json"
ATTEMPTS = 6
LIMIT_MINUTES = 30.0
_ESTIMATE = (
  "the TPU compiler's estimated cycles at {clock:.2f} GHz: no measurement; collectives, prefetches and "
  "waiting for data are not in it, nor are evaluation and checkpoints"
)
_MEASURED = "median of {count} steps on random clips here; no decoding, evaluation or checkpoints"
_NO_TIME = (
  "no estimate; --measure=N times N steps on this machine, --topology asks a TPU's compiler"
)


class PlanError(errors.UserError):
  """A plan that cannot be made; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Options:
  """What the flags of this mode say.

  Attributes:
    topology: TPUs by name, such as "v5e:2x2"; "" is this machine's devices.
    classes, training_videos: of the data set; None is what is known or listed.
    measured_steps: steps to time on this machine's devices.
    attempts: changes to compile at most where the step does not fit.
    limit_minutes: of one compilation.
  """

  topology: str = ""
  classes: int | None = None
  training_videos: int | None = None
  measured_steps: int = 0
  attempts: int = ATTEMPTS
  limit_minutes: float = LIMIT_MINUTES


def run(
  experiment: Experiment, workdir: pathlib.Path | None = None, options: Options = Options()
) -> dict[str, Any]:
  """Plans, and says so.

  Args:
    experiment: every setting.
    workdir: where `plan.json` goes; None is nowhere.
    options: where it is to run.

  Returns:
    What `plan.json` holds.

  Raises:
    UserError: a topology, batch or setting that cannot be, `libtpu` is not installed, or the compiler
      died or took too long.
  """
  topology = topologies.named(options.topology) if options.topology else None
  if topology and options.measured_steps:
    raise PlanError(
      f"--measure={options.measured_steps} times steps on this machine's devices, and --topology="
      f"{topology.name} is not this machine. Leave one of them out."
    )
  length = lengths.find(experiment, options.classes, options.training_videos, workdir)
  plan = _before(experiment, length)

  def on_sizes(sizes: dict[str, Any]) -> None:
    plan.update(_sized(sizes, topology))
    log.info("%s\n", text.before(plan))
    log.info("Compiling the training step for %s; this can take minutes", plan["place"])

  answer = _compile(experiment, length.classes, topology, options, on_sizes)
  plan.update(_found(answer, plan, topology, experiment))
  if plan["fits"] is False:
    log.info("%s", plan["verdict"])
    plan.update(_alternatives(experiment, plan, topology, options))
  log.info("\n%s", text.after(plan))
  if workdir is not None:
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / FILE, plan)
    log.info("Written: %s", errors.printable(workdir / FILE))
  return plan


def _compile(
  experiment: Experiment,
  classes: int,
  topology: topologies.Topology | None,
  options: Options,
  on_sizes: Any = None,
) -> compiler.Answer:
  return compiler.ask(
    experiment,
    classes,
    topology,
    what=f"the training step for {topology.name if topology else 'this machine'}",
    limit_seconds=60 * options.limit_minutes,
    measured_steps=options.measured_steps,
    on_sizes=on_sizes,
  )


def _before(experiment: Experiment, length: lengths.Length) -> dict[str, Any]:
  """What the settings say, and how long the training is."""
  clip = experiment.clip
  training = None
  if length.videos:
    training = meter.Length(
      length.videos * experiment.clip.repeats, experiment.batch_size, experiment.epochs
    )
  return {
    "model": experiment.model.name,
    "dtype": experiment.model.dtype,
    "clip": [clip.frames, clip.crop, clip.crop],
    "batch_size": experiment.batch_size,
    "micro_batches": experiment.micro_batches,
    "fsdp": experiment.fsdp,
    "optimizer": experiment.optimizer.name,
    "epochs": experiment.epochs,
    "classes": length.classes,
    "training_videos": length.videos,
    "length_source": length.source,
    "steps_per_epoch": training.steps_per_epoch if training else None,
    "steps": training.scheduled_steps if training else None,
    "config": experiment.to_json(),
  }


def _sized(sizes: dict[str, Any], topology: topologies.Topology | None) -> dict[str, Any]:
  """What was counted, and what there is to run it on."""
  there = sizes["devices"]
  count, hosts = there["devices"], there["hosts"]
  kind = f"{topology.name} ({there['kind']})" if topology else f"this machine ({there['kind']})"
  return {
    "topology": topology.name if topology else None,
    "platform": there["platform"],
    "devices": count,
    "hosts": hosts,
    "place": f"{kind}, devices: {count}",
    "parameters": sizes["parameters"],
    "trained_parameters": sizes["trained"],
    "multiply_accumulates": sizes["multiply_accumulates"],
    "bytes": sizes["bytes"],
    "device_bytes": sizes["device_bytes"],
    "host_input_bytes": sizes["bytes"]["batch"] // hosts,
    "has_batch_norm": sizes["has_batch_norm"],
    **_limit(there, topology),
  }


def _limit(there: dict[str, Any], topology: topologies.Topology | None) -> dict[str, Any]:
  """Bytes that a device may take, and who says so."""
  if topology:
    name = topology.generation.name
    return {"limit_bytes": topology.generation.memory, "limit_source": f"memory of a {name}"}
  if there["device_memory"]:
    return {"limit_bytes": there["device_memory"], "limit_source": f"memory of a {there['kind']}"}
  if there["platform"] == "cpu" and (available := host_memory()):
    source = "this machine's available memory"
    if there["devices"] > 1:
      source += f", shared by {there['devices']} devices"
    return {"limit_bytes": available // there["devices"], "limit_source": source}
  return {"limit_bytes": None, "limit_source": "unknown"}


def host_memory(root: os.PathLike | str = "/") -> int | None:
  """Bytes of memory that this machine, or this container, has left; None where nobody says."""
  found = []
  base = pathlib.Path(root)
  for line in _lines(base / "proc/meminfo"):
    if line.startswith("MemAvailable:"):
      found.append(1024 * int(line.split()[1]))
  group = base / "sys/fs/cgroup"
  limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
  if limit and used and limit[0].isdigit():
    found.append(max(0, int(limit[0]) - int(used[0])))
  return min(found, default=None)


def _lines(path: pathlib.Path) -> list[str]:
  try:
    return path.read_text().split("\n")
  except OSError:
    return []


def fits(answer: compiler.Answer, limit: int | None) -> bool | None:
  """Whether a step fits into a device; None where its memory is not known.

  Args:
    answer: of the compiler, which may have refused.
    limit: bytes of a device.
  """
  if answer.needed or answer.compiled is None:
    return False
  return None if limit is None else answer.compiled["memory"]["total"] <= limit


def _taken(answer: compiler.Answer) -> int:
  """Bytes of a device; 0 where it is only known that they are too many."""
  return answer.needed or (answer.compiled["memory"]["total"] if answer.compiled else 0)


def _found(
  answer: compiler.Answer,
  plan: dict[str, Any],
  topology: topologies.Topology | None,
  experiment: Experiment,
) -> dict[str, Any]:
  """What the compiler said, with its meaning."""
  limit = plan["limit_bytes"]
  fit = fits(answer, limit)
  notes = []
  if experiment.micro_batches > 1 and plan["has_batch_norm"]:
    notes.append(
      f"BatchNorm takes its statistics over {experiment.batch_size // experiment.micro_batches} clips, "
      "a part of the batch."
    )
  return {
    "compiled": answer.compiled,
    "needed_bytes": _taken(answer),
    "fits": fit,
    "verdict": _verdict(fit, _taken(answer), answer.limit or limit),
    "time": _time(answer, plan["steps"], topology),
    "tried": [],
    "suggestion": [],
    "notes": notes,
  }


def _verdict(fit: bool | None, needed: int, limit: int | None) -> str:
  if fit is None:
    return f"It needs {text.size(needed)} a device; how much a device has is not known."
  if fit:
    return f"It fits: {text.size(needed)} of {text.size(limit or 0)} a device."
  taken = text.size(needed) if needed else "more than the compiler can place"
  return f"It does not fit: {taken} of {text.size(limit or 0)} a device."


def _time(
  answer: compiler.Answer, steps: int | None, topology: topologies.Topology | None
) -> dict[str, Any]:
  seconds, basis = None, _NO_TIME
  if topology and answer.compiled:
    clock = topology.generation.clock
    seconds = answer.compiled["cycles"] / clock
    basis = _ESTIMATE.format(clock=clock / 1e9)
  elif answer.seconds:
    seconds = statistics.median(answer.seconds)
    basis = _MEASURED.format(count=len(answer.seconds))
  hours = seconds * steps / 3600 if seconds is not None and steps else None
  return {"step_seconds": seconds, "hours": hours, "basis": basis}


def _alternatives(
  experiment: Experiment,
  plan: dict[str, Any],
  topology: topologies.Topology | None,
  options: Options,
) -> dict[str, Any]:
  """Compiles changes until one fits."""
  of_kind, limit = plan["device_bytes"], plan["limit_bytes"]
  state = sum(of_kind[kind] for kind in ("parameters", "optimizer", "averages", "statistics"))
  # Where nobody says how much is needed, it is taken for half as much again as there is.
  needed = alternatives.Needed(
    plan["needed_bytes"] or round(1.5 * limit), state, of_kind["gradients"]
  )
  worth = alternatives.listed(
    experiment,
    topology,
    plan["devices"],
    needed,
    limit,
    batch_norm=plan["has_batch_norm"],
  )
  tried: list[dict[str, Any]] = []
  notes = list(plan["notes"])
  # No step is timed of what is but a proposal.
  quiet = dataclasses.replace(options, measured_steps=0)
  for each in worth[: options.attempts]:
    log.info("Trying %s", " ".join(each.flags))
    answer = _compile(each.experiment, plan["classes"], each.topology, quiet)
    fit, taken = fits(answer, limit), _taken(answer)
    outcome = _verdict(fit, taken, answer.limit or limit)
    if answer.compiled:
      outcome += f" Compiled in {progress.duration(answer.compiled['seconds'])}."
    time = _time(answer, plan["steps"], each.topology)
    tried.append(
      {
        "flags": list(each.flags),
        "bytes": taken,
        "predicted_bytes": each.predicted,
        "fits": fit,
        "compiled": answer.compiled,
        "time": time,
        "outcome": outcome,
      }
    )
    log.info("%s", outcome)
    if fit:
      if plan["has_batch_norm"] and each.experiment.micro_batches > experiment.micro_batches:
        notes.append(
          "With more micro_batches BatchNorm takes its statistics over fewer clips: another training."
        )
      return {"tried": tried, "suggestion": list(each.flags), "notes": notes}
  more = len(worth) - len(tried)
  if more > 0:
    notes.append(f"{more} more changes were not tried: --attempts={len(worth)} tries them.")
  elif tried:
    notes.append("Nothing that was tried fits: lower --config.batch_size, or take a larger device.")
  return {"tried": tried, "suggestion": [], "notes": notes}
