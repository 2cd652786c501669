"""Processes that find each other, wait for each other, and hear why one failed; here, threads."""

from concurrent import futures
import contextlib
import json
import socket
import threading
import time

from programs import free_port
import pytest

from hybrid_video import host_link
from hybrid_video.host_link import HostError, Link

HERE = socket.gethostname()


class Run:
  """Links of one run in threads, and what each heard of failures."""

  def __init__(self, count: int, seconds: float = 20.0):
    self.count, self.seconds = count, seconds
    self.port = free_port()
    self.server = host_link.Server("127.0.0.1", self.port, count, seconds)
    self.heard: list[tuple[int, str, int]] = []
    self.links: dict[int, Link] = {}
    self._pool = futures.ThreadPoolExecutor(8)
    self._changed = threading.Event()

  def link(self, process: int, *, count: int | None = None, **agreement) -> Link:
    def heard(reason: str, code: int) -> None:
      self.heard.append((process, reason, code))
      self._changed.set()

    address = ("127.0.0.1", self.port)
    return Link(address, process, count or self.count, agreement, self.seconds, heard)

  def start(self, *processes: int) -> None:
    for process, link in zip(processes, self._pool.map(self.link, processes), strict=True):
      self.links[process] = link

  def later(self, work, *arguments, **named) -> futures.Future:
    return self._pool.submit(work, *arguments, **named)

  def wait(self) -> None:
    assert self._changed.wait(10)

  def close(self) -> None:
    for link in self.links.values():
      link.leave()
    self.server.close()
    for link in self.links.values():
      link.close()
    self._pool.shutdown()


@pytest.fixture
def make_run():
  with contextlib.ExitStack() as stack:

    def make(count: int, seconds: float = 20.0) -> Run:
      run = Run(count, seconds)
      stack.callback(run.close)
      return run

    yield make


def test_all_start_with_the_same_word_and_nobody_passes_a_barrier_alone(make_run):
  run = make_run(3)
  run.start(0, 1, 2)
  links = run.links.values()
  assert len({(link.coordinator, link.token) for link in links}) == 1
  assert run.links[1].names == [HERE] * 3
  for _ in range(2):
    waiting = [run.later(run.links[process].wait_for_all, "here") for process in (0, 2)]
    assert not futures.wait(waiting, 0.3).done
    run.links[1].wait_for_all("here")
    for future in waiting:
      future.result(5)
  assert not run.heard


def test_processes_that_never_arrive_are_named_to_those_that_did(make_run):
  run = make_run(4, 0.5)
  waiting = [run.later(run.link, process) for process in (0, 2)]
  for future in waiting:
    with pytest.raises(
      HostError, match=r"Processes 1, 3 of 4 did not arrive within 0\.5 s; 0 on "
    ) as error:
      future.result(5)
    assert f"--coordinator=127.0.0.1:{run.port}" in str(error.value)
    assert "--hosts_timeout" in str(error.value)


def test_a_first_process_that_never_comes_is_named_with_its_address():
  port = free_port()
  with pytest.raises(
    HostError, match=f"Process 0 was not reached at 127.0.0.1:{port} within 0.3 s"
  ):
    Link(("127.0.0.1", port), 1, 2, {}, 0.3, print)


def test_processes_given_different_commands_are_told_each_difference(make_run):
  run = make_run(2)
  other = run.later(run.link, 1, batch=16, same=1, only=True)
  with pytest.raises(HostError, match="different commands") as error:
    run.link(0, batch=8, same=1)
  assert "  batch: 8 and 16\n  only: nothing and True\n" in str(error.value)
  assert "same" not in str(error.value).replace("the same command", "")
  with pytest.raises(HostError, match="batch: 8 and 16"):
    other.result(5)


@pytest.mark.parametrize(
  ("process", "count", "expected"),
  [(0, 2, "Two processes are number 0"), (1, 3, "there are 3 processes and process 0 that .* 2")],
)
def test_a_number_given_twice_and_another_count_end_all(process, count, expected, make_run):
  run = make_run(2)
  first = run.later(run.link, 0)
  while not run.server._hellos:
    time.sleep(0.01)
  with pytest.raises(HostError, match=expected):
    run.link(process, count=count)
  with pytest.raises(HostError, match=expected):
    first.result(5)


def test_a_connection_that_belongs_to_no_process_is_closed(make_run):
  run = make_run(2)
  address = ("127.0.0.1", run.port)
  with (
    socket.create_connection(address, 5) as first,
    socket.create_connection(address, 5) as second,
  ):
    for connection in (first, second):
      connection.sendall(json.dumps(host_link._hello(1, 2)).encode() + b"\n")
      while 1 not in run.server._hellos:
        time.sleep(0.01)
    # Told why, then closed.
    while second.recv(4096):
      pass


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_reaches_every_other_process_with_its_reason(failing, make_run):
  run = make_run(3)
  run.start(0, 1, 2)
  run.links[failing].fail("failed: the disk is full", 7)
  others = {0, 1, 2} - {failing}
  until = time.monotonic() + 5
  while {process for process, *_ in run.heard} != others and time.monotonic() < until:
    time.sleep(0.01)
  line = f"process {failing} ({HERE}) failed: the disk is full"
  assert sorted(run.heard) == [(process, line, 7) for process in sorted(others)]


def test_a_process_that_dies_is_named_at_once(make_run):
  run = make_run(3)
  run.start(0, 1, 2)
  # What the kernel does for a killed process.
  run.links.pop(2).close()
  run.wait()
  process, reason, code = run.heard[0]
  assert process in (0, 1) and code == 1
  assert reason.startswith(f"process 2 ({HERE}) ended without a word")


def test_a_process_that_leaves_when_it_is_done_is_no_failure(make_run):
  run = make_run(2)
  run.start(0, 1)
  run.links[1].leave()
  run.links.pop(1).close()
  time.sleep(0.3)
  assert not run.heard


def test_a_process_that_does_not_start_is_told_to_those_that_wait(make_run):
  run = make_run(3)
  waiting = run.later(run.link, 0)
  host_link.refuse(("127.0.0.1", run.port), 2, 3, "failed: no such setting", 5)
  with pytest.raises(HostError, match=r"process 2 \(.*\) failed: no such setting"):
    waiting.result(5)


def test_a_first_process_that_does_not_start_tells_the_others(make_run):
  run = make_run(2)
  waiting = run.later(run.link, 1)
  began = time.monotonic()
  run.server.refuse("failed: no such setting", 10)
  assert time.monotonic() - began < 5
  with pytest.raises(HostError, match=r"process 0 \(.*\) failed: no such setting"):
    waiting.result(5)


def test_whoever_else_tries_the_port_is_ignored(make_run):
  run = make_run(2)
  for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": 1}\n', b"[]\n", b"\xff\n"):
    with socket.create_connection(("127.0.0.1", run.port)) as stranger:
      stranger.sendall(text)
      assert stranger.recv(100) == b""
  run.start(0, 1)
  assert not run.heard


def test_a_port_in_use_is_refused_with_what_to_do():
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(HostError, match=f"--coordinator=127.0.0.1:{port}: .*Name another port"):
      host_link.Server("127.0.0.1", port, 2, 1.0)
