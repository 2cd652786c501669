"""One line between the processes of a run: who is here, who waits where, who failed and why.

In: messages of a JSON object a line, over TCP. Out: a run whose processes start together, and end
together with the reason of the first that failed.

The first process listens; all of them, itself included, connect to it. JAX's own service begins when
every process is there: its clients abort the whole process where one is missing, and a dead one is
noticed after minutes. Here the connection of a dead process is closed by its kernel at once, and that
of a machine that is gone after `LOST_SECONDS`.
"""

from collections.abc import Callable, Mapping
import contextlib
import json
import os
import secrets
import socket
import threading
import time
from typing import Any

from hybrid_video import errors, settings

# A machine without power or network is noticed after so long.
LOST_SECONDS = 30
_PROTOCOL = "hybrid-video run 1"
# The first process says who is missing; the others wait for its word a little longer than it waits.
_MARGIN_SECONDS = 10.0
_RETRY_SECONDS = 0.2
_HELLO_SECONDS = 10.0
_TOLD_SECONDS = 3.0
_LONGEST_LINE = 2**22

Message = dict[str, Any]


class HostError(errors.UserError):
  """Processes that do not form one run: missing, contradicting each other, or not reached."""


def _watched(connection: socket.socket) -> socket.socket:
  """Has the kernel ask now and then whether the other machine is still there."""
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  # macOS lacks some of them.
  for name, value in (
    ("TCP_KEEPIDLE", LOST_SECONDS // 3),
    ("TCP_KEEPINTVL", LOST_SECONDS // 6),
    ("TCP_KEEPCNT", 4),
    ("TCP_USER_TIMEOUT", LOST_SECONDS * 1000),
  ):
    if hasattr(socket, name):
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  return connection


class _Lines:
  """A connection as messages; one thread reads, any may write."""

  def __init__(self, connection: socket.socket):
    self._connection = _watched(connection)
    self._reader = connection.makefile("rb")
    self._lock = threading.Lock()

  def send(self, message: Message) -> None:
    """Sends a message; where the other is gone, its end is noticed by the reader."""
    line = json.dumps(message).encode() + b"\n"
    with self._lock, contextlib.suppress(OSError):
      self._connection.sendall(line)

  def receive(self, seconds: float | None = None) -> Message | None:
    """The next message, or None where the other end is gone or sends none in time, or no message."""
    try:
      self._connection.settimeout(seconds)
      message = json.loads(self._reader.readline(_LONGEST_LINE))
    except (OSError, ValueError):
      return None
    return message if isinstance(message, dict) else None

  def close(self) -> None:
    """Ends the connection."""
    with contextlib.suppress(OSError):
      self._connection.shutdown(socket.SHUT_RDWR)
    self._reader.close()
    self._connection.close()


class Server:
  """The first process's end: counts who is there, lets all start, and passes on what they say.

  Attributes:
    address: host and port by which this process reaches it.
  """

  def __init__(self, host: str, port: int, count: int, seconds: float):
    """Listens.

    Args:
      host, port: as the other processes know them.
      count: of the processes.
      seconds: until all have to be there.

    Raises:
      HostError: the port is in use.
    """
    self._count, self._seconds = count, seconds
    self._lines: dict[int, _Lines] = {}
    self._hellos: dict[int, Message] = {}
    self._waiting: dict[str, set[int]] = {}
    self._left: set[int] = set()
    self._failed: Message | None = None
    self._started = False
    self._changed = threading.Condition(threading.RLock())
    self._local = is_loopback(host)
    try:
      self._socket = _listening(host if self._local else "", port)
    except OSError as error:
      raise HostError(
        f"--coordinator={host}:{port}: process 0 cannot listen there ({error.strerror}). Name "
        "another port; all processes need the same."
      ) from error
    self._host = host
    # This process reaches it without asking what its own name stands for.
    self.address = (host if self._local else "localhost", int(self._socket.getsockname()[1]))
    for target in (self._accept, self._call_the_roll):
      threading.Thread(target=target, daemon=True).start()

  def _accept(self) -> None:
    while True:
      try:
        connection, _ = self._socket.accept()
      except OSError:
        return
      threading.Thread(target=self._serve_and_close, args=(connection,), daemon=True).start()

  def _serve_and_close(self, connection: socket.socket) -> None:
    with contextlib.closing(_Lines(connection)) as lines:
      self._serve(lines)

  def _serve(self, lines: _Lines) -> None:
    """Reads what one process says, until it leaves."""
    hello = lines.receive(_HELLO_SECONDS)
    # Whoever else tries the port is none of this run's.
    if hello is None or hello.get("protocol") != _PROTOCOL:
      return
    process = int(hello["process"])
    with self._changed:
      reason = "" if self._failed else self._refusal(hello)
      if reason:
        self._fail({"failed": reason, "code": 1, "process": None})
      if self._failed:
        lines.send(self._failed)
      if process in self._hellos:
        return
      self._lines[process], self._hellos[process] = lines, hello
      self._changed.notify_all()
    while (message := lines.receive()) is not None:
      self._take(process, message)
    with self._changed:
      if process not in self._left:
        where = named(process, hello["name"])
        when = "ended without a word" if self._started else "ended before all processes were there"
        self._fail(
          {
            "failed": f"{where} {when}: killed, out of memory, or its machine is lost",
            "code": 1,
            "process": process,
          }
        )
      self._changed.notify_all()

  def _refusal(self, hello: Message) -> str:
    """Why a process does not belong to this run, or ""."""
    process, count = hello["process"], hello["count"]
    here = named(process, hello["name"])
    if "failed" in hello:
      return f"{here} {hello['failed']}"
    if count != self._count:
      return (
        f"{here} says that there are {count} processes and process 0 that there are {self._count}. "
        "All need the same --num_processes."
      )
    if process in self._hellos:
      return (
        f"Two processes are number {process}: {self._hellos[process]['name']} and {hello['name']}. Each "
        f"needs a --process_id of its own, 0 to {self._count - 1}."
      )
    return ""

  def _call_the_roll(self) -> None:
    """Lets all start together, or ends all with the names of those that are missing."""
    with self._changed:
      complete = self._changed.wait_for(
        lambda: len(self._hellos) == self._count or self._failed, self._seconds
      )
      if self._failed:
        return
      if not complete:
        missing = [number for number in range(self._count) if number not in self._hellos]
        there = errors.shown(
          f"{number} on {hello['name']}" for number, hello in sorted(self._hellos.items())
        )
        self._fail(
          {
            "failed": (
              f"{_processes(missing)} of {self._count} did not arrive within {self._seconds:g} s; "
              f"{there} did. Start {'it' if len(missing) == 1 else 'them'} with "
              f"--coordinator={self._host}:{self.address[1]}, or wait longer with "
              "--hosts_timeout=SECONDS."
            ),
            "code": 1,
            "process": None,
          }
        )
        return
      if reason := _disagreement(self._hellos):
        self._fail({"failed": reason, "code": 1, "process": None})
        return
      self._started = True
      port = _free_port()
      start = {
        "start": f"{_bracketed(self._host)}:{port}",
        "bind": f"{_bracketed(self._host)}:{port}" if self._local else "",
        "token": secrets.token_hex(8),
        "names": [self._hellos[number]["name"] for number in range(self._count)],
      }
      for lines in self._lines.values():
        lines.send(start)

  def _take(self, process: int, message: Message) -> None:
    with self._changed:
      if "failed" in message:
        self._fail({**message, "process": process})
      elif "leave" in message:
        self._left.add(process)
        self._changed.notify_all()
      elif "barrier" in message:
        waiting = self._waiting.setdefault(message["barrier"], set())
        waiting.add(process)
        if len(waiting) == self._count:
          del self._waiting[message["barrier"]]
          for lines in self._lines.values():
            lines.send({"release": message["barrier"]})

  def _fail(self, message: Message) -> None:
    """Tells all processes the first failure."""
    if self._failed is None:
      self._failed = message
      for process, lines in self._lines.items():
        if process not in self._left:
          lines.send(message)
    self._changed.notify_all()

  def refuse(self, reason: str, seconds: float) -> None:
    """Tells all processes that come within some seconds that this one does not start."""
    here = named(0, socket.gethostname())
    with self._changed:
      self._fail({"failed": f"{here} {reason}", "code": 1, "process": 0})
      self._changed.wait_for(lambda: len(self._hellos) == self._count - 1, seconds)
    self._socket.close()

  def close(self) -> None:
    """Waits a moment until all have left, and stops listening."""
    with self._changed:
      self._changed.wait_for(lambda: len(self._left) == self._count or self._failed, _TOLD_SECONDS)
    self._socket.close()
    for lines in list(self._lines.values()):
      lines.close()


class Link:
  """A process's end: says that it is here, waits for others, and hears of failures."""

  def __init__(
    self,
    address: tuple[str, int],
    process: int,
    count: int,
    agreement: Mapping[str, Any],
    seconds: float,
    on_failure: Callable[[str, int], None],
  ):
    """Connects, and waits until all processes are there.

    Args:
      address: host and port of the first process.
      process, count: this process's number, and how many there are.
      agreement: JSON values by name that have to be the same in all processes.
      seconds: how long to wait.
      on_failure: called in a thread of its own where another process fails: the reason and the exit
        code.

    Raises:
      HostError: the first process is not reached, others are missing, or they disagree.
    """
    self.process = process
    self._name = socket.gethostname()
    self._on_failure = on_failure
    self._releases: dict[str, threading.Event] = {}
    self._counts: dict[str, int] = {}
    self._told = threading.Event()
    self._leaving = False
    deadline = time.monotonic() + seconds
    self._lines = _Lines(_connected(address, seconds))
    self._lines.send({**_hello(process, count), "agreement": agreement})
    answer = self._lines.receive(max(0.0, deadline - time.monotonic()) + _MARGIN_SECONDS)
    if answer is None or "start" not in answer:
      reason = answer and answer.get("failed")
      self._lines.close()
      raise HostError(
        reason
        or f"Process 0 at {_bracketed(address[0])}:{address[1]} ended before all processes "
        "were there. Look at what it printed."
      )
    # Where JAX's service is, what it binds to, a text that only this run has, and the hosts' names.
    self.coordinator, self.bind = str(answer["start"]), str(answer["bind"])
    self.token, self.names = str(answer["token"]), list(answer["names"])
    threading.Thread(target=self._listen, daemon=True).start()

  def _listen(self) -> None:
    while (message := self._lines.receive()) is not None:
      if "release" in message:
        self._releases.setdefault(message["release"], threading.Event()).set()
      elif "failed" in message:
        if message["process"] == self.process or self._leaving:
          self._told.set()
        else:
          self._on_failure(str(message["failed"]), int(message["code"]))
    self._told.set()
    if not self._leaving:
      reason = f"{named(0, self.names[0])} ended without a word: killed, out of memory, or its machine is lost"
      self._on_failure(reason, 1)

  def wait_for_all(self, name: str) -> None:
    """Returns once every process has called this with the same name as often; however long it takes."""
    self._counts[name] = self._counts.get(name, 0) + 1
    numbered = f"{name} {self._counts[name]}"
    release = self._releases.setdefault(numbered, threading.Event())
    self._lines.send({"barrier": numbered})
    # In short pieces, so that signals are handled meanwhile.
    while not release.wait(0.5):
      pass
    del self._releases[numbered]

  def fail(self, reason: str, code: int) -> None:
    """Tells the others why this process ends, and waits a moment until they were told."""
    self._leaving = True
    here = named(self.process, self._name)
    self._lines.send({"failed": f"{here} {reason}", "code": code})
    self._told.wait(_TOLD_SECONDS)

  def leave(self) -> None:
    """Says that this process is done."""
    self._leaving = True
    self._lines.send({"leave": True})

  def close(self) -> None:
    """Ends the connection."""
    self._leaving = True
    self._lines.close()


def _hello(process: int, count: int) -> Message:
  return {
    "protocol": _PROTOCOL,
    "process": process,
    "count": count,
    "name": socket.gethostname(),
  }


def refuse(address: tuple[str, int], process: int, count: int, reason: str, seconds: float) -> None:
  """Tells the first process that this one does not start.

  Raises:
    HostError: the first process is not there within some seconds.
  """
  lines = _Lines(_connected(address, seconds))
  lines.send({**_hello(process, count), "failed": reason})
  lines.receive(_TOLD_SECONDS)
  lines.close()


def named(process: int, host: str) -> str:
  """A process in messages."""
  return f"process {process} ({errors.printable(host)})"


def _processes(numbers: list[int]) -> str:
  word = "Process" if len(numbers) == 1 else "Processes"
  return f"{word} {errors.shown(map(str, numbers), 20)}"


def _disagreement(hellos: Mapping[int, Message]) -> str:
  """What the first process whose values differ from process 0's has otherwise, or ""."""
  first = hellos[0]
  for process, hello in sorted(hellos.items()):
    theirs, ours = hello["agreement"], first["agreement"]
    differing = [
      f"  {name}: {our} and {their}" for name, our, their in settings.differing(ours, theirs)
    ]
    if differing:
      return (
        f"{named(0, first['name'])} and {named(process, hello['name'])} were given different commands:\n"
        + "\n".join(sorted(differing)[:10])
        + "\nAll processes need the same command, but for --process_id."
      )
  return ""


def is_loopback(host: str) -> bool:
  """Whether a host's name stands for this machine alone."""
  return host in ("localhost", "::1") or host.startswith("127.")


def _bracketed(host: str) -> str:
  return f"[{host}]" if ":" in host else host


def _listening(host: str, port: int) -> socket.socket:
  """Listens at a host's address, or at all of this machine's for "": HOST may be none it knows of."""
  if host:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True
    )
  return socket.create_server(("", port), backlog=128)


def _free_port() -> int:
  with socket.create_server(("", 0)) as listening:
    return int(listening.getsockname()[1])


def _connected(address: tuple[str, int], seconds: float) -> socket.socket:
  """A connection to the first process, tried until it is there.

  Raises:
    HostError: it is not there in time.
  """
  deadline = time.monotonic() + seconds
  while True:
    try:
      return socket.create_connection(address, timeout=max(1.0, min(10.0, seconds)))
    except OSError as error:
      reason = error.strerror or str(error)
    if time.monotonic() > deadline:
      raise HostError(
        f"Process 0 was not reached at {_bracketed(address[0])}:{address[1]} within {seconds:g} s "
        f"({os.fsdecode(reason)}). It has to run on that host, with the same --coordinator; wait longer "
        "with --hosts_timeout=SECONDS."
      )
    time.sleep(_RETRY_SECONDS)
