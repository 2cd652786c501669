"""Many video files decoded at once, each in a process that it cannot take others down with.

In: paths of files that may be anything. Out: for each, in order, its `StoredVideo` or one line that
says why there is none.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
import contextlib
import functools
import math
import multiprocessing
from multiprocessing import connection, resource_tracker
import os
import pathlib
import pickle
import signal
import sys
import time
from types import TracebackType
from typing import Self

from hybrid_video import errors
from hybrid_video.decoding import parent_watch
from hybrid_video.decoding.storing import DecodingLimits, StoredScale, StoredVideo, store_video
from hybrid_video.decoding.video_reader import VideoError

# Address space a decoding process may take beyond what its imports took, in bytes.
MEMORY_LIMIT = 4 * 2**30
# A decoding process that has not asked for work by then never will.
_START_SECONDS = 300.0

# What a process does with a path: it calls its last argument at every step forward.
Store = Callable[[str, StoredScale, Callable[[], None]], StoredVideo]
Result = StoredVideo | str


class WorkerError(errors.UserError):
  """Decoding processes do not start, whatever the video."""


def _limit_memory() -> None:
  if sys.platform == "linux":
    import resource

    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or limit < most:
      resource.setrlimit(resource.RLIMIT_AS, (limit, most))


class _StallTimer:
  """Ends this process when it has computed for too long without a step forward.

  Its clock is the process's own time: however busy the machine, a good file has its time. The signal's
  default action needs no Python, so it ends native code too.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds

  def restart(self) -> None:
    """Notes a step forward."""
    signal.setitimer(signal.ITIMER_PROF, self._seconds)

  def stop(self) -> None:
    """Ends the watch."""
    signal.setitimer(signal.ITIMER_PROF, 0)


def _result_of(path: str, store: Store, scale: StoredScale, progress: Callable[[], None]) -> Result:
  name = errors.printable(path)
  try:
    return store(path, scale, progress)
  except VideoError as error:
    return str(error)
  except MemoryError:
    return (
      f"{name}: decoding needs more than {MEMORY_LIMIT / 2**30:g} GiB of memory. Re-encode the file "
      "at a smaller size."
    )
  except Exception as error:
    reason = errors.printable(str(error))
    return (
      f"{name}: decoding failed ({type(error).__name__}: {reason}). Copy it again or re-encode it."
    )


def _work(
  store: Store, scale: StoredScale, stall_seconds: float, pipe: connection.Connection
) -> None:
  """A decoding process: takes paths from the pipe and gives back stored videos or reasons."""
  _limit_memory()
  timer = _StallTimer(stall_seconds)
  with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
    pipe.send(None)
    while True:
      path = pipe.recv()
      timer.restart()
      result = _result_of(path, store, scale, timer.restart)
      timer.stop()
      pipe.send(result)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
  """Holds back Ctrl-C, here and in processes that are started meanwhile."""
  # Starting the tracker unblocks the signal, so it comes first.
  resource_tracker.ensure_running()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
  """A decoding process with a pipe of its own, so that its end cannot harm another's results.

  Attributes:
    pipe: the parent's end.
    ready: whether the process has asked for work.
    fresh: whether it has not been given any yet.
    task: index of the file that it decodes, or None.
    deadline: when the process has to have started, in seconds of `time.monotonic`.
  """

  def __init__(self, store: Store, scale: StoredScale, stall_seconds: float):
    # A forked child of a process that runs TensorFlow's and JAX's threads can hang: spawn instead.
    context = multiprocessing.get_context("spawn")
    self.pipe, child_end = context.Pipe()
    work = pickle.dumps(functools.partial(_work, store, scale, stall_seconds))
    self._process = context.Process(target=parent_watch.run, args=(work, child_end), daemon=True)
    try:
      self._process.start()
    except BaseException:
      self.pipe.close()
      raise
    finally:
      child_end.close()
    self.ready = False
    self.fresh = True
    self.task: int | None = None
    self.deadline = time.monotonic() + _START_SECONDS

  def accept_start(self) -> None:
    """Reads the process's first message, which asks for work.

    Raises:
      EOFError, OSError: the process is gone.
    """
    self.pipe.recv()
    self.ready = True
    self.deadline = math.inf

  def give(self, task: int, path: str) -> bool:
    """Sends a task and says whether that worked: not where the process is gone."""
    try:
      self.pipe.send(path)
    except (BrokenPipeError, ConnectionResetError):
      return False
    self.task, self.fresh = task, False
    return True

  def take(self) -> tuple[int, Result]:
    """The task and the result that waits in the pipe.

    Raises:
      EOFError, OSError: the process is gone.
    """
    result = self.pipe.recv()
    assert self.task is not None
    task, self.task = self.task, None
    return task, result

  def kill(self) -> None:
    """Ends the process at once, also in native code."""
    self._process.kill()

  def join(self) -> str:
    """Waits until the process is gone and says how it ended."""
    self._process.join(5)
    code = self._process.exitcode
    self.pipe.close()
    if code is not None and code < 0:
      with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


class _Pool:
  """The decoding processes and their tasks; a context manager that leaves no process behind.

  A file whose process crashes gets a second trial, in a process that has decoded nothing yet: the
  crash may come late from a file before it, or from a machine short of memory.
  """

  def __init__(
    self,
    paths: list[str],
    scale: StoredScale,
    size: int,
    stall_seconds: float,
    store: Store,
  ):
    self._paths = paths
    self._size = size
    self._stall_seconds = stall_seconds
    self._new_worker = functools.partial(_Worker, store, scale, stall_seconds)
    self._workers: list[_Worker] = []
    self._results: dict[int, Result] = {}
    self._given = 0
    self._suspects: list[int] = []
    self._tried_again: set[int] = set()

  def __enter__(self) -> Self:
    try:
      for _ in range(self._size):
        self._start_worker()
    except BaseException:
      self.close()
      raise
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()

  def close(self) -> None:
    """Kills all processes."""
    for worker in self._workers:
      worker.kill()
    for worker in self._workers:
      worker.join()
    self._workers.clear()

  def result(self, wanted: int) -> Result:
    """Waits for the result of a file; later files are decoded meanwhile, but only a few ahead.

    Args:
      wanted: index of the file, each asked for once, in order.

    Raises:
      WorkerError: a decoding process does not start.
    """
    while True:
      wait = 0.0
      if wanted not in self._results:
        wait = max(0.0, min(worker.deadline for worker in self._workers) - time.monotonic())
      pipes = [worker.pipe for worker in self._workers]
      readable = connection.wait(pipes, None if wait == math.inf else wait)
      for worker in list(self._workers):
        if worker.pipe in readable:
          self._collect(worker)
        elif worker.deadline <= time.monotonic():
          raise WorkerError(
            f"A decoding process did not start in {_START_SECONDS:g} s. Check the machine's load."
          )
      self._hand_out(wanted + 4 * self._size)
      if wanted in self._results:
        return self._results.pop(wanted)

  def _start_worker(self) -> None:
    # Ctrl-C reaches the whole group of processes and the parent alone decides, also while the child
    # still imports. No process is started that the pool does not know.
    try:
      with _interrupts_held():
        self._workers.append(self._new_worker())
    except OSError as error:
      raise WorkerError(
        f"A decoding process cannot be started ({error.strerror}). Check this machine's limits of "
        "memory, processes and open files."
      ) from error

  def _start_needed(self) -> None:
    """After a process is gone, starts another if it is needed for what is left."""
    left = len(self._paths) - self._given + len(self._suspects)
    left += sum(worker.task is not None for worker in self._workers)
    # A suspect needs a fresh process; otherwise those alive may suffice for the last files.
    if self._suspects or len(self._workers) < min(self._size, left):
      self._start_worker()

  def _hand_out(self, end: int) -> None:
    """Gives tasks before `end` to processes that have none."""
    end = min(end, len(self._paths))
    for worker in self._workers:
      if not worker.ready or worker.task is not None:
        continue
      if worker.fresh and self._suspects:
        suspect = self._suspects[0]
        if worker.give(suspect, self._paths[suspect]):
          self._suspects.pop(0)
      elif self._given < end and worker.give(self._given, self._paths[self._given]):
        self._given += 1

  def _collect(self, worker: _Worker) -> None:
    """Reads what a process has sent, or notices its end."""
    try:
      if not worker.ready:
        worker.accept_start()
        return
      task, result = worker.take()
    except (EOFError, OSError):
      self._replace_crashed(worker)
    else:
      self._results[task] = result

  def _replace_crashed(self, worker: _Worker) -> None:
    how = self._remove(worker)
    if not worker.ready:
      raise WorkerError(
        f"A decoding process ended ({how}) before it was given a file. The lines above say why; a "
        "script that decodes needs `if __name__ == '__main__':` around its work."
      )
    crashed = worker.task
    if crashed is not None and how == "SIGPROF":
      self._results[crashed] = (
        f"{errors.printable(self._paths[crashed])}: no further frame in {self._stall_seconds:g} s of "
        "its decoder's time. Re-encode the file or leave it out, or raise "
        "--config.decoding.stall_seconds."
      )
    elif crashed in self._tried_again:
      self._results[crashed] = (
        f"{errors.printable(self._paths[crashed])}: the decoder crashed twice ({how}). Re-encode "
        "the file or leave it out."
      )
    elif crashed is not None:
      self._tried_again.add(crashed)
      self._suspects.append(crashed)
    self._start_needed()

  def _remove(self, worker: _Worker) -> str:
    """Takes a process that is gone, or killed, out of the pool and says how it ended."""
    self._workers.remove(worker)
    return worker.join()


def _cores() -> int:
  if sys.platform == "linux":
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def store_videos(
  paths: Iterable[os.PathLike | str],
  scale: StoredScale,
  workers: int | None = None,
  *,
  limits: DecodingLimits | None = None,
  store: Store | None = None,
) -> Generator[tuple[int, Result], None, None]:
  """Decodes many files in parallel processes, in the given order.

  Whatever a file does to its decoder, it ends as one of the two results, and no other file is
  harmed: a process that crashes, hangs or asks for too much memory is replaced. Results are made
  only a few ahead of what is asked for, so memory does not grow with the number of files. When the
  iterator ends or is closed, no process is left.

  Args:
    paths: video files, under any names.
    scale: how to store the frames.
    workers: processes; the default is one a core.
    limits: what decoding a file may take.
    store: what a process does with a path, importable by name; the default is to store its video.

  Yields:
    (index of the file in `paths`, its stored video or why it cannot be used).

  Raises:
    ValueError: the number of workers is not positive.
    WorkerError: a decoding process does not start.
  """
  if workers is not None and workers < 1:
    raise ValueError(f"{workers} decoding processes: expected 1 or more. Change workers.")
  limits = limits or DecodingLimits()
  store = store or functools.partial(store_video, max_frames=limits.max_frames)
  files = [os.fspath(path) for path in paths]
  size = min(workers or _cores(), len(files))
  return _store_in_order(_Pool(files, scale, size, limits.stall_seconds, store), len(files))


def _store_in_order(pool: _Pool, count: int) -> Generator[tuple[int, Result], None, None]:
  with pool:
    for index in range(count):
      yield index, pool.result(index)
