"""Requests to stop: signals, and notices that a machine is about to be taken away.

In: SIGTERM, SIGINT, SIGHUP, SIGUSR1 and Google's metadata server. Out: a `StopRequest` that the training
loop looks at after each step, and `Stopped` everywhere else, at once.

A signal that the process was told to ignore when it started stays ignored where people rely on that:
SIGHUP under `nohup`, SIGINT in the background of a shell without job control.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import NoReturn, Self

from hybrid_video import google_metadata

# Exit codes: 128 and the signal's number. To a scheduler, SLURM's warning and a preemption are SIGTERM.
TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT
CODES = {
  signal.SIGTERM: TERMINATED,
  signal.SIGUSR1: TERMINATED,
  signal.SIGINT: INTERRUPTED,
  signal.SIGHUP: 128 + signal.SIGHUP,
}
_STAY_IGNORED = (signal.SIGINT, signal.SIGHUP)
_PREEMPTION = "a preemption notice"
# A main thread that is in native code does not see signals; after so long the process ends without it.
GRACE_SECONDS = 7.0
_EXIT_SECONDS = 2.0
_POLL_SECONDS = 5.0


class Stopped(BaseException):
  """A run that was asked to stop and did.

  Not an `Exception`: what catches those to go on must not go on.

  Attributes:
    reason: "SIGTERM" or the like.
    code: exit code.
    step: the last step, saved, at which all processes stopped together; None outside of training.
  """

  def __init__(self, reason: str, code: int, step: int | None = None):
    super().__init__(reason, code, step)
    self.reason, self.code, self.step = reason, code, step

  def __str__(self) -> str:
    if self.step is None:
      return f"Stopped by {self.reason}; the same command goes on from what is saved."
    return (
      f"Stopped by {self.reason} at step {self.step}, saved; the same command goes on from here."
    )


class StopRequest:
  """Whether this process was asked to stop; a context manager around a whole run.

  Within `held()` a request is only noted, and the training loop ends after its step. Elsewhere `Stopped`
  is raised in the main thread at once; if that is in native code, such as the compiler, or does not end,
  the process is ended `GRACE_SECONDS` later all the same. A second Ctrl-C is a `KeyboardInterrupt`
  everywhere.

  Attributes:
    requested: why to stop, or None.
    code: the exit code that goes with it.
  """

  def __init__(self, tell: Callable[[str, int], None] | None = None):
    """Installs nothing yet.

    Args:
      tell: called with a reason and an exit code before the process ends without its main thread.
    """
    self.requested: str | None = None
    self.code = TERMINATED
    self._tell = tell
    self._held = False
    self._raised = False
    self._interrupts = 0
    self._over = threading.Event()
    self._ending = threading.Event()
    self._before: dict[int, object] = {}
    self._pipe: tuple[socket.socket, socket.socket] | None = None
    self._wakeup_before = -1

  def __enter__(self) -> Self:
    if threading.current_thread() is not threading.main_thread():
      # Python allows handlers in the main thread alone.
      return self
    self._pipe = socket.socketpair()
    for end in self._pipe:
      end.setblocking(False)
    # Written to by the signal itself, whatever the main thread does.
    self._wakeup_before = signal.set_wakeup_fd(self._pipe[1].fileno(), warn_on_full_buffer=False)
    for number in CODES:
      ignored = signal.getsignal(number) == signal.SIG_IGN
      if not (ignored and number in _STAY_IGNORED):
        self._before[number] = signal.signal(number, self._handle)
    threading.Thread(target=self._watch_signals, daemon=True).start()
    if google_metadata.is_here():
      threading.Thread(target=self._watch_metadata, daemon=True).start()
    return self

  def __exit__(self, *_: object) -> None:
    self._over.set()
    if self._pipe is None:
      return
    for number, handler in self._before.items():
      signal.signal(number, handler)  # type: ignore[arg-type]
    signal.set_wakeup_fd(self._wakeup_before)
    with contextlib.suppress(OSError):
      self._pipe[1].send(b"\0")

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Only notes requests until the block ends, which looks at `requested` itself.

    A request that is left unanswered raises `Stopped` at the end.
    """
    self._held = True
    try:
      yield
    finally:
      self._held = False
    self.check()

  def check(self) -> None:
    """Raises `Stopped` if it was asked for."""
    if self.requested is not None:
      self._raised = True
      raise Stopped(self.requested, self.code)

  def stopped(self, step: int | None) -> Stopped:
    """What the training loop raises after it has saved a step, also where another process was asked."""
    return Stopped(self.requested or "a request to another process", self.code, step)

  def _request(self, reason: str, code: int) -> None:
    if self.requested is None:
      self.code, self.requested = code, reason
    if not self._held:
      self._end_later()

  def _handle(self, number: int, frame: FrameType | None) -> None:
    """In the main thread, between two of its instructions."""
    del frame
    self._request(signal.Signals(number).name, CODES[signal.Signals(number)])
    if number == signal.SIGINT:
      self._interrupts += 1
      if self._interrupts > 1:
        raise KeyboardInterrupt
    # Schedulers repeat themselves; what is on its way out is left alone.
    if not self._held and not self._raised:
      self.check()

  def _watch_signals(self) -> None:
    """Notes signals while the main thread is in native code."""
    assert self._pipe is not None
    reading = self._pipe[0]
    reading.setblocking(True)
    interrupts = 0
    while not self._over.is_set():
      for number in reading.recv(64):
        interrupts += number == signal.SIGINT
        if number in self._before:
          self._request(signal.Signals(number).name, CODES[signal.Signals(number)])
        if interrupts > 1:
          self._end_later()
    for end in self._pipe:
      end.close()

  def _watch_metadata(self) -> None:
    while not self._over.is_set():
      preempted = google_metadata.read("instance/preempted") == "TRUE"
      event = google_metadata.read("instance/maintenance-event") or ""
      if preempted or event.startswith("TERMINATE"):
        self._request(_PREEMPTION, TERMINATED)
        # Its handler raises `Stopped` in the main thread, if that is not held.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        return
      self._over.wait(_POLL_SECONDS)

  def _end_later(self) -> None:
    """Ends the process in a while, whatever its main thread does then."""
    if not self._ending.is_set():
      self._ending.set()
      threading.Thread(target=self._end, daemon=True).start()

  def _end(self) -> None:
    if self._over.wait(GRACE_SECONDS):
      return
    reason = self.requested or "SIGINT"
    if self._tell:
      self._tell(f"was stopped by {reason}", self.code)
    print(Stopped(reason, self.code), file=sys.stderr, flush=True)
    os._exit(self.code)


def exit_soon(code: int) -> NoReturn:
  """Exits as `sys.exit` does, but does not wait long for threads that do not end."""

  def end() -> None:
    time.sleep(_EXIT_SECONDS)
    os._exit(code)

  threading.Thread(target=end, daemon=True).start()
  sys.exit(code)
