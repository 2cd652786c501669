"""A run on several hosts: which process this is, all of them started together and ended together.

In: flags, or what SLURM or a Cloud TPU tells. Out: `jax.distributed`, initialized; waiting for each
other; and one reason where one fails. With one process everything here returns at once.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import logging
import os
import pickle
import re
import sys
import time
from typing import Any, TypeVar

from etils import epath
import numpy as np

from hybrid_video import errors, files, google_metadata, host_link, stopping
from hybrid_video.host_link import HostError, Link

log = logging.getLogger("hybrid_video")

T = TypeVar("T")

# Flags' values where they are not given.
ENVIRONMENT = {
  "coordinator": "JAX_COORDINATOR_ADDRESS",
  "num_processes": "JAX_NUM_PROCESSES",
  "process_id": "JAX_PROCESS_ID",
}
TIMEOUT_SECONDS = 300
# Where collectives break off because another process ended, its reason takes a moment to arrive.
_REASON_SECONDS = 3.0
# Processes are not started at the same moment.
_REFUSAL_SECONDS = 10.0
_TPU_PORT = 8476
# SLURM's jobs on one host get ports of their own.
_FIRST_SLURM_PORT, _SLURM_PORTS = 61440, 4096
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
# TensorFlow's and gRPC's errors as well as `OSError`s come from file systems; none may end a run here.
_ANY = Exception

_link: Link | None = None


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a process stands among those of its run.

  Attributes:
    host, port: of the first process.
    count: of the processes, at least 2.
    process: this one's number, from 0.
    local_devices: the numbers of the devices of this host that are this process's; None is all.
    found_by: what told it, for messages.
  """

  host: str
  port: int
  count: int
  process: int
  local_devices: tuple[int, ...] | None = None
  found_by: str = "flags"


def find(
  coordinator: str | None = None,
  num_processes: int | str | None = None,
  process_id: int | str | None = None,
) -> Place | None:
  """Where this process stands, or None where it is the only one.

  Flags come first, then their environment variables (`ENVIRONMENT`), then a SLURM step of several tasks,
  then a Cloud TPU of several hosts. Google's metadata server is asked on machines with TPUs alone.

  Raises:
    HostError: the flags contradict each other.
  """
  given: dict[str, Any] = {
    "coordinator": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
  }
  for name, variable in ENVIRONMENT.items():
    if given[name] is None and os.environ.get(variable):
      given[name] = os.environ[variable]
  if any(value is not None for value in given.values()):
    return _of_flags(given)
  return _of_slurm() or _of_tpu()


def _of_flags(given: Mapping[str, Any]) -> Place | None:
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if missing:
    raise HostError(
      f"{', '.join(missing)} missing: --coordinator=HOST:PORT, --num_processes=N and --process_id=I "
      "belong together, in every process."
    )
  numbers = {}
  for name in ("num_processes", "process_id"):
    try:
      numbers[name] = int(given[name])
    except ValueError as error:
      raise HostError(f"--{name} is {given[name]!r}: expected a whole number.") from error
  count, process = numbers["num_processes"], numbers["process_id"]
  if not 0 <= process < count:
    raise HostError(
      f"--process_id is {process} and --num_processes {count}: expected a number from 0 to "
      f"{max(count - 1, 0)}, each given to one process."
    )
  parsed = re.fullmatch(
    r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+)):(\d{1,5})", str(given["coordinator"])
  )
  if parsed is None or not 0 < int(parsed[3]) < 2**16:
    raise HostError(
      f"--coordinator is {given['coordinator']!r}: expected HOST:PORT, the host that process 0 runs on "
      "and a free port there, such as 10.0.0.5:9876."
    )
  if count == 1:
    return None
  return Place(parsed[1] or parsed[2], int(parsed[3]), count, process)


def _of_slurm() -> Place | None:
  """Of a step that `srun` started; a script without `srun` is one process, whatever was allocated."""
  environment = os.environ
  if not all(environment.get(name) for name in _SLURM):
    return None
  count = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1)
  if count < 2:
    return None
  hosts = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or 1)
  bound = environment.get("CUDA_VISIBLE_DEVICES", "")
  # One task a host has all of its devices; so has a task that SLURM has bound to one of them.
  alone = hosts == count or (bound and "," not in bound)
  return Place(
    _first_of(environment["SLURM_STEP_NODELIST"]),
    _FIRST_SLURM_PORT + int(environment["SLURM_JOB_ID"]) % _SLURM_PORTS,
    count,
    int(environment["SLURM_PROCID"]),
    None if alone else (int(environment["SLURM_LOCALID"]),),
    "SLURM",
  )


def _first_of(nodes: str) -> str:
  """The first host of a list as SLURM writes it, such as `node[07-12,20],other`."""
  first = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
  if first is None:
    raise HostError(f"SLURM_STEP_NODELIST is {nodes!r}: expected names of hosts.")
  return first[1] + (first[2] or "") + (first[3] or "")


def _of_tpu() -> Place | None:
  """Of the hosts of a TPU slice, or of several slices, by Kubernetes' environment or the metadata."""
  environment = os.environ
  names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
  number = environment.get("TPU_WORKER_ID")
  variables: Mapping[str, str] = environment
  if not names or number is None:
    if environment.get("TPU_SKIP_MDS_QUERY") or not (_has_tpus() and google_metadata.is_here()):
      return None
    attributes = "instance/attributes/"
    number = google_metadata.read(attributes + "agent-worker-number")
    names = google_metadata.read(attributes + "worker-network-endpoints")
    if number is None or not names:
      return None
    described = google_metadata.read(attributes + "tpu-env") or ""
    found = dict(re.findall(r"^\s*(\w+)\s*:\s*'?([^'\n]*?)'?\s*$", described, re.MULTILINE))
    variables = {**found, **environment}
  # Older metadata has NAME:ID:ADDRESS.
  workers = [worker.split(":") for worker in names.split(",")]
  addresses = [parts[2] if len(parts) == 3 else parts[0] for parts in workers]
  slices = int(variables.get("MEGASCALE_NUM_SLICES") or 1)
  part = int(variables.get("MEGASCALE_SLICE_ID") or 0)
  count = len(addresses) * slices
  if count < 2:
    return None
  first = (variables.get("MEGASCALE_COORDINATOR_ADDRESS") or addresses[0]).split(":")[0]
  process = part * len(addresses) + int(number)
  return Place(first, _TPU_PORT, count, process, None, "Cloud TPU")


def _has_tpus() -> bool:
  # As accelerators, or handed to the process by VFIO.
  return any(epath.Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))


@contextlib.contextmanager
def joined(
  place: Place | None, agreement: Mapping[str, Any], seconds: float = TIMEOUT_SECONDS
) -> Iterator[None]:
  """A run of several processes: all begin the block together, and end together.

  Call it before JAX's first use. Where one process leaves the block by an exception, the others are told
  why, say so and end, whatever they are in; an exception to that is `Stopped` at a step, at which all
  stop by themselves.

  Args:
    place: from `find`; None is one process.
    agreement: JSON values by name that all processes have to have in common.
    seconds: how long to wait for all of them.

  Raises:
    HostError: a process is missing, or was given another command.
  """
  global _link
  if place is None:
    yield
    return
  import jax

  server = None
  if place.process == 0:
    server = host_link.Server(place.host, place.port, place.count, seconds)
  try:
    address = (place.host, place.port) if server is None else server.address
    _link = Link(address, place.process, place.count, agreement, seconds, _end_for_another)
    # Signals are ours, see `stopping`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
      _link.coordinator,
      place.count,
      place.process,
      local_device_ids=place.local_devices,
      cluster_detection_method="deactivate",
      coordinator_bind_address=_link.bind or None,
    )
    where = (place.process, place.count, place.found_by, _link.names[0])
    log.info("Process %d of %d (%s), the first on %s", *where)
    try:
      yield
    except stopping.Stopped as stopped:
      if stopped.step is None:
        fail(f"was stopped by {stopped.reason}", stopped.code)
        raise
      _leave(jax.distributed.shutdown)
      raise
    except BaseException as error:
      _fail_by(error)
      raise
    _leave(jax.distributed.shutdown)
  finally:
    _link = None
    if server is not None:
      server.close()


def refuse(place: Place | None, reason: str) -> None:
  """Tells the processes that wait for this one that it does not start, such as for a wrong flag."""
  if place is None:
    return
  with contextlib.suppress(HostError):
    if place.process == 0:
      server = host_link.Server(place.host, place.port, place.count, _REFUSAL_SECONDS)
      server.refuse(f"failed: {reason}", _REFUSAL_SECONDS)
    else:
      address = (place.host, place.port)
      host_link.refuse(address, place.process, place.count, f"failed: {reason}", _REFUSAL_SECONDS)


def _leave(shut_down: Callable[[], None]) -> None:
  assert _link is not None
  _link.wait_for_all("the end")
  shut_down()
  _link.leave()


def _fail_by(error: BaseException) -> None:
  """Tells the others of an error, unless it comes of one of theirs."""
  if isinstance(error, errors.UserError):
    fail(f"failed: {error}")
    return
  if isinstance(error, KeyboardInterrupt):
    fail("was interrupted", stopping.INTERRUPTED)
    return
  # Where another process ended, collectives raise errors of many types. The thread that hears of the
  # reason ends this process meanwhile.
  time.sleep(_REASON_SECONDS)
  fail(f"failed: {type(error).__name__}: {error}")


def fail(reason: str, code: int = 1) -> None:
  """Tells the other processes, if there are any, that this one ends, and why; they end too.

  Args:
    reason: goes on after "process 1 (HOST) ", such as "failed: there is no such file".
    code: the exit code that the others end with.
  """
  if _link is not None:
    _link.fail(reason, code)


def _end_for_another(reason: str, code: int) -> None:
  """Ends this process, whatever its main thread waits for, with the reason of another."""
  stopped = code != 1
  sys.stdout.flush()
  # A raw write: a lock of `sys.stderr` may be held by a thread that will not go on.
  line = f"{'Stopped' if stopped else 'Error'}: {errors.printable_lines(reason)}\n"
  with contextlib.suppress(OSError):
    os.write(2, line.encode(errors="backslashreplace"))
  os._exit(code)


def is_shared() -> bool:
  """Whether several processes make up this run."""
  return _link is not None


def wait_for_all(name: str) -> None:
  """Returns once all processes are here; unlike a collective, it may take hours.

  Args:
    name: of the place, the same in all processes.
  """
  if _link is not None:
    _link.wait_for_all(name)


def share_all(value: Any) -> list[Any]:
  """The values of all processes by their numbers, in every process.

  Args:
    value: anything that pickles; it goes the way of the arrays, to processes that run the same program.
  """
  if _link is None:
    return [value]
  from jax.experimental import multihost_utils

  # One may come hours before another, and a collective does not wait so long.
  _link.wait_for_all("sharing")
  data = np.frombuffer(pickle.dumps(value), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(data.size))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: data.size] = data
  gathered = np.asarray(multihost_utils.process_allgather(padded))
  return [pickle.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes, strict=True)]


def check_same(what: str, value: str) -> None:
  """Refuses to go on where processes have found different things.

  Args:
    what: for the message, such as "the videos".
    value: a digest of them.

  Raises:
    HostError: with the processes' numbers.
  """
  values = share_all(value)
  others = [str(number) for number, other in enumerate(values) if other != values[0]]
  if others:
    raise HostError(
      f"{what} that process 0 finds are not those of process {errors.shown(others)}. Give all hosts the "
      "same files, under the same names."
    )


def in_turn(folder: os.PathLike | str, work: Callable[[], T], what: str) -> T:
  """Does something in a folder that must not be done by several processes at once.

  Of the processes that share the folder, whatever disks there are, one does it first; the others wait,
  and then do it too, when there is nothing left to do but to read.

  Args:
    folder: on a local disk or any file system that `etils.epath` knows; it may be missing yet.
    work: does all that is not done yet, and gives the result.
    what: that is done, for messages and the same in all processes: "the records are stored".

  Returns:
    What `work` gives.
  """
  if _link is None:
    return work()
  leader = _leader(folder, what)
  if leader == _link.process:
    result = work()
    wait_for_all(what)
    return result
  log.info("Waiting until %s by process %d (%s)", what, leader, _link.names[leader])
  wait_for_all(what)
  return work()


def _leader(folder: os.PathLike | str, what: str) -> int:
  """The first of the processes that see the same folder, told by the marks that each leaves there."""
  assert _link is not None
  place = epath.Path(folder)
  while not place.exists() and place.parent != place:
    place = place.parent
  mark = place / _mark(_link.process)
  left = True
  try:
    mark.write_text("")
  except _ANY:
    # Where nothing can be written, nothing can be made: whoever reads first says what is wrong.
    left = False
  wait_for_all(f"marks before {what}")
  leaders = [number for number in range(_link.process) if (place / _mark(number)).exists()]
  wait_for_all(f"leaders before {what}")
  if left:
    with contextlib.suppress(_ANY):
      mark.unlink()
  return min(leaders, default=_link.process) if left else 0


def _mark(process: int) -> str:
  assert _link is not None
  return f".hybrid_video-{_link.token}-{process}{files.PART}"
