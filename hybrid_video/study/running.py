"""The mode `train` on a study: every run in a folder and a process of its own.

In: a study and its work directory. Out: `runs/FORM/ROW/splitS_seedN/`, each a work directory as `train`
leaves it; of a run that failed `failed.json` beside it. Finished runs are skipped, interrupted ones go on.
Videos and records are shared by all runs. Runs follow one another; where they compute on CPUs, several may
train at once, each on its share of the cores.
"""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import pathlib
import queue
import subprocess
import sys
import time
from typing import Any

from etils import epath

from hybrid_video import errors, files, locks, paths, progress, stopping
from hybrid_video.study import child, gathering, overview
from hybrid_video.study.settings import Run, Study
from hybrid_video.study.states import DONE, FAILED, FAILURE, RUNNING, state_of

log = logging.getLogger("hybrid_video")

CONSOLE = "console.txt"
_POLL_SECONDS = 0.2
_TAIL_LINES, _TAIL_BYTES = 30, 1 << 16
# Of GPUs and TPUs, below /dev.
_ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel*", "vfio/[0-9]*")
_PACKAGES = pathlib.Path(__file__).parents[2]


class StudyError(errors.UserError):
  """A study that cannot be run as it was asked for."""


def train(
  study: Study,
  workdir: epath.Path,
  pipeline_module: str,
  stop: stopping.StopRequest,
  *,
  several: bool = False,
) -> int:
  """Runs what is left of this machine's runs, and gathers them if they are all of the study's.

  Args:
    study: what to run.
    workdir: of the study.
    pipeline_module: name of the module of input pipelines.
    stop: whether to stop; the run in progress is then told to save its step and end.
    several: whether this is one of several processes of one command.

  Returns:
    The exit code: 0, or 1 where a run has failed.

  Raises:
    UserError: the folder cannot be used, or runs that do not belong in one table.
    Stopped: it was asked to stop.
  """
  if several:
    raise StudyError(
      "A study trains each run in a process of its own: start one process, without --coordinator, "
      "and share its runs out to machines with --config.study.part=1/2 and so on."
    )
  states = {run.folder: state_of(workdir, run) for run in study.own_runs}
  log.info("%s: %s", study.title, study.question)
  shares = _shares(study.at_once)
  if len(shares) > 1:
    log.info("%d runs train at once, on %d cores each", len(shares), len(shares[0]))
  log.info("%s", overview.text(study, workdir, states, at_once=len(shares)))
  with stop.held():
    _train_all(study, workdir, pipeline_module, stop, states, shares)
  if study.part is None:
    with locks.hold(workdir, "gathering", wait=True):
      gathering.write(study, workdir)
  failed = [folder for folder, state in states.items() if state == FAILURE]
  if failed:
    log.error(
      "%d of %d runs failed: %s. The same command tries them again.",
      len(failed),
      len(states),
      errors.shown(failed),
    )
  return 1 if failed else 0


def _shares(at_once: int) -> list[tuple[int, ...]]:
  """The cores of each of the runs that train at once; one share, of all of them, beside an accelerator."""
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  devices = pathlib.Path("/dev")
  # A second process could not have the device, or its memory.
  accelerated = os.environ.get("JAX_PLATFORMS") != "cpu" and any(
    any(devices.glob(pattern)) for pattern in _ACCELERATORS
  )
  count = 1 if accelerated else max(1, min(at_once, len(cores)))
  return [
    tuple(cores[i * len(cores) // count : (i + 1) * len(cores) // count]) for i in range(count)
  ]


def _train_all(
  study: Study,
  workdir: epath.Path,
  pipeline_module: str,
  stop: stopping.StopRequest,
  states: dict[str, str],
  shares: Sequence[tuple[int, ...]],
) -> None:
  """Trains this machine's runs that are not done, as many at once as there are shares of cores.

  Args:
    study: what to run.
    workdir: of the study.
    pipeline_module: see `train`.
    stop: see `train`.
    states: of the runs by folder; kept up to date.
    shares: of the cores.

  Raises:
    Stopped: it was asked to stop; every run in progress has saved its step.
    StudyError: a folder cannot be used. Runs in progress are finished first.
  """
  free: queue.SimpleQueue[tuple[int, ...]] = queue.SimpleQueue()
  for share in shares:
    free.put(share)

  def train_one(number: int, run: Run) -> bool:
    if stop.requested is not None:
      raise stop.stopped(None)
    # Another machine may have done it meanwhile.
    states[run.folder] = state_of(workdir, run)
    if states[run.folder] == DONE:
      return False
    if run.starts_from and not _is_trained(run, study, workdir, states):
      return True
    log.info("Run %d of %d: %s", number, len(study.own_runs), workdir / run.folder)
    states[run.folder], cores = RUNNING, free.get()
    try:
      states[run.folder] = _run(run, workdir, pipeline_module, stop, cores)
    finally:
      free.put(cores)
    return True

  numbered = list(enumerate(study.own_runs, 1))
  for starts in (False, True):
    # What others start from is trained before them.
    runs = [(number, run) for number, run in numbered if bool(run.starts_from) == starts]
    _train_side_by_side(
      train_one, runs, len(shares), lambda: _log_overview(study, workdir, states, len(shares))
    )


def _train_side_by_side(
  train_one: Callable[[int, Run], bool],
  runs: Sequence[tuple[int, Run]],
  at_once: int,
  log_overview: Callable[[], None],
) -> None:
  """Trains numbered runs, so many at once; says where the study stands after each that was not done already."""
  with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
    begun = [pool.submit(train_one, number, run) for number, run in runs]
    try:
      for future in concurrent.futures.as_completed(begun):
        if future.result():
          log_overview()
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _log_overview(
  study: Study, workdir: epath.Path, states: Mapping[str, str], at_once: int
) -> None:
  log.info("%s", overview.text(study, workdir, states, at_once=at_once))


def _is_trained(run: Run, study: Study, workdir: epath.Path, states: dict[str, str]) -> bool:
  """Whether the run that this one starts from is done; if it has failed, this one has too."""
  (first,) = (other for other in study.runs if other.folder == run.starts_from)
  state = state_of(workdir, first)
  if state == FAILURE:
    message = f"it starts from {first.folder}, which failed"
    log.error("%s failed: %s", run.folder, message)
    (workdir / run.folder).mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / run.folder / FAILED, {"error": message, "exit_code": 1})
    states[run.folder] = FAILURE
  elif state != DONE:
    log.info(
      "%s waits: it starts from %s, which another machine has not trained yet. The same command goes on.",
      run.folder,
      first.folder,
    )
  return state == DONE


def placed(run: Run, workdir: epath.Path) -> dict[str, Any]:
  """The experiment of a run as JSON, its places those of the study: all runs share them."""
  shared: dict[str, Any] = {
    name: paths.within(getattr(run.experiment, name), workdir)
    for name in ("data_dir", "more_videos", "records_dir", "mirrors")
  }
  if run.row.starts_from:
    shared["init_from"] = paths.within(run.experiment.init_from, workdir)
  return dataclasses.replace(run.experiment, **shared).to_json()


def _run(
  run: Run,
  workdir: epath.Path,
  pipeline_module: str,
  stop: stopping.StopRequest,
  cores: tuple[int, ...],
) -> str:
  """Trains one run in a process of its own on some cores, and gives its state.

  Raises:
    Stopped: it was asked to stop.
  """
  folder = workdir / run.folder
  began = time.monotonic()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    # Of a bucket there is no local folder that a process could write to.
    local = not paths.is_remote(folder)
    console = open(folder / CONSOLE if local else os.devnull, "w+b")  # noqa: SIM115
  except OSError as error:
    raise StudyError(
      f"{errors.printable(folder)}: cannot be written to ({error.strerror or error}). Make it writable, or "
      "name another --workdir."
    ) from error
  with console:
    request = {
      "experiment": placed(run, workdir),
      "workdir": os.fspath(folder),
      "pipeline": pipeline_module,
      "cores": cores,
    }
    code = _child(request, console, stop)
    end = _end_of(console)
  if stop.requested is not None:
    raise stop.stopped(None)
  if code == child.IN_USE:
    log.info("%s", end.rpartition("Error: ")[2].strip())
    return RUNNING
  if code == 0:
    (folder / FAILED).unlink(missing_ok=True)
    log.info("%s: done in %s", run.folder, progress.duration(time.monotonic() - began))
    return DONE
  message = _message(end, code)
  log.error("%s failed: %s", run.folder, message)
  files.write_json(
    folder / FAILED,
    {
      "error": message,
      "exit_code": code,
      "at": time.strftime("%Y-%m-%d %H:%M:%S"),
      "console": end.splitlines()[-_TAIL_LINES:],
    },
  )
  return FAILURE


def _child(request: dict[str, Any], console: Any, stop: stopping.StopRequest) -> int:
  """Starts a process, waits for it, passes a request to stop on; gives its exit code."""
  # What this process imports from, that one does too: the pipeline stands beside main.py.
  search = [str(_PACKAGES), *(path for path in sys.path if path)]
  process = subprocess.Popen(
    [sys.executable, "-m", "hybrid_video.study.child"],
    env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(search))},
    stdin=subprocess.PIPE,
    stdout=console,
    stderr=subprocess.STDOUT,
    # A terminal's Ctrl-C reaches this process alone, which passes it on.
    start_new_session=True,
  )
  assert process.stdin
  try:
    with contextlib.suppress(BrokenPipeError):
      process.stdin.write(files.as_json(request).encode() + b"\n")
      process.stdin.flush()
    asked = False
    while (code := process.poll()) is None:
      if stop.requested is not None and not asked:
        asked = True
        log.info("Asked to stop by %s: the run saves its step", stop.requested)
        process.terminate()
      time.sleep(_POLL_SECONDS)
    return code
  finally:
    process.kill()
    process.wait()
    with contextlib.suppress(BrokenPipeError):
      process.stdin.close()


def _end_of(console: Any) -> str:
  console.seek(0, os.SEEK_END)
  console.seek(max(0, console.tell() - _TAIL_BYTES))
  return console.read().decode(errors="replace")


def _message(end: str, code: int) -> str:
  """What a process said last: the error a user can fix, or a traceback's last line."""
  if code < 0:
    return f"ended by signal {-code}, such as where memory does not suffice"
  if "\nError: " in f"\n{end}":
    return f"\n{end}".rpartition("\nError: ")[2].strip()
  lines = [line for line in end.splitlines() if line.strip()]
  return lines[-1] if lines else f"ended with exit code {code}, without a word"
