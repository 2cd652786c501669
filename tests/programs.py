"""Programs that tests start: with the signals that a terminal gives, and ended whatever happens."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent

# In the background, a shell has its children ignore Ctrl-C, and what is ignored is inherited.
_LAUNCHER = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
  signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.execv(sys.argv[1], sys.argv[1:])
"""

Start = Callable[..., subprocess.Popen]


def end(process: subprocess.Popen) -> None:
  """Ends a program and all that it started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait(30)
  for stream in (process.stdin, process.stdout, process.stderr):
    if stream is not None:
      with contextlib.suppress(OSError):
        stream.close()


@contextlib.contextmanager
def starting() -> Iterator[Start]:
  """Gives a function that starts Python programs, each the leader of a group; none is left after the block.

  Its arguments are those of the Python interpreter, and `subprocess.Popen`'s by name. By default the
  program runs at the project's root, which it can import from, and its standard output is a pipe.
  """
  started: list[subprocess.Popen] = []

  def start(*words: object, env: dict[str, str] | None = None, **options) -> subprocess.Popen:
    command: Sequence[str] = [sys.executable, "-c", _LAUNCHER, sys.executable, *map(str, words)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True, **options}
    environment = {**(os.environ if env is None else env), "PYTHONPATH": path}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **options)
    started.append(process)
    return process

  try:
    yield start
  finally:
    for process in started:
      end(process)


def free_port() -> int:
  """A port of this machine that nobody listens on."""
  with socket.socket() as listening:
    listening.bind(("127.0.0.1", 0))
    return listening.getsockname()[1]
