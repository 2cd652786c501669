"""The tf.data service's two servers as a command: other machines decode and cut clips for training.

In: a role and addresses. Out: a dispatcher, which hands out the steps of a training run, or a
worker, which makes their batches; each prints one line when it is ready and runs until interrupted.

    python -m hybrid_video.datasets.service --dispatcher --port=5050 --bind=ADDRESS
    python -m hybrid_video.datasets.service --worker --dispatcher_address=HOST:5050 --bind=ADDRESS

ADDRESS is the machine's own in a network where everyone may run programs on it: the servers authenticate
nobody and run what they are sent. Without it they are reached from their own machine alone.

One dispatcher and any number of workers serve a run that has `--config.data_service=grpc://HOST:5050`.
Workers read the records themselves, so the records' folder needs the same path on all of them: a
shared file system, or gs://.

Source: Audibert et al., "tf.data service: A Case for Disaggregating ML Input Data Processing",
SoCC 2023.
"""

import argparse
from collections.abc import Sequence
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from hybrid_video import errors
from hybrid_video.datasets import bound_ports

DEFAULT_PORT = 5050
LOOPBACK = "127.0.0.1"
# A dispatcher may still be starting: only after this long does it count as unreachable.
REACH_SECONDS = 10.0
_RETRY_SECONDS = 0.2


class ServiceError(errors.UserError):
  """A data service that cannot serve; the message says what to do."""


def host_and_port(address: str) -> tuple[str, int]:
  """Host and port of `HOST:PORT` or `grpc://HOST:PORT`; an IPv6 host stands in brackets.

  Raises:
    ServiceError: the address has another form.
  """
  protocol, _, rest = address.rpartition("://")
  host, _, port = rest.rpartition(":")
  known = protocol in ("", "grpc") and host and port.isascii() and port.isdigit()
  if not known or not 0 < int(port) < 2**16:
    raise ServiceError(
      f"{address!r} is not the address of a data service: expected HOST:PORT or grpc://HOST:PORT, "
      f"such as grpc://10.0.0.2:{DEFAULT_PORT}."
    )
  return host.removeprefix("[").removesuffix("]"), int(port)


def check_reachable(address: str) -> None:
  """Waits up to `REACH_SECONDS` until something listens at an address.

  TensorFlow's own client tries for an hour and shows the user nothing.

  Args:
    address: `HOST:PORT` or `grpc://HOST:PORT`.

  Raises:
    ServiceError: nothing listens there, or there is no such host, which is reported at once.
  """
  host, port = host_and_port(address)
  end = time.monotonic() + REACH_SECONDS
  while True:
    try:
      socket.create_connection((host, port), timeout=max(end - time.monotonic(), 0.1)).close()
    except OSError as error:
      if isinstance(error, socket.gaierror) or time.monotonic() + _RETRY_SECONDS > end:
        raise ServiceError(
          f"{address}: no data service answered within {REACH_SECONDS:g} s "
          f"({error.strerror or error}). Start its dispatcher, `python -m "
          f"hybrid_video.datasets.service --dispatcher --port={port}`, on that host, or correct the "
          "address."
        ) from error
      time.sleep(_RETRY_SECONDS)
    else:
      return


def _bind_address(text: str) -> bound_ports.Address:
  """An address of this machine.

  Raises:
    ServiceError: it is none.
  """
  try:
    address = ipaddress.ip_address(text)
    if not address.is_unspecified:
      family = socket.AF_INET if address.version == 4 else socket.AF_INET6
      with socket.socket(family) as tried:
        tried.bind((text, 0))
  except (ValueError, OSError) as error:
    raise ServiceError(
      f"--bind is {text!r}, which is no address of this machine ({error}). Give one of its own in a "
      f"network where everyone may run programs on it, such as 10.0.0.2; 0.0.0.0 for all of them; or "
      f"nothing, for {LOOPBACK}."
    ) from error
  return address


def _restrict(port: int, address: bound_ports.Address) -> None:
  """Closes a server's port to what does not come for an address."""
  if address.is_unspecified:
    return
  try:
    bound_ports.restrict(port, address)
  except OSError as error:
    raise ServiceError(
      f"The server cannot be kept to {address} on this system ({error}): TensorFlow's listen on all "
      "addresses and run what they are sent. If everyone who reaches this machine may run programs on "
      "it, start it with --bind=0.0.0.0."
    ) from error


def _check_port(port: int) -> None:
  # The servers would share a port that is in use, and each would get half of the calls.
  family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
  try:
    socket.create_server(
      ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6
    ).close()
  except OSError as error:
    raise ServiceError(
      f"Port {port} is unavailable ({error.strerror}): another program listens there, or this user "
      "may not open it. Choose another with --port."
    ) from error


def start_dispatcher(port: int, work_dir: str, bind: str = LOOPBACK) -> Any:
  """Starts a dispatcher in this process.

  Args:
    port: where it listens; 0 is any free one.
    work_dir: folder where it saves its state, so that another dispatcher with the same folder can
      continue; "" saves nothing.
    bind: address of this machine under which it is reached, 0.0.0.0 for all; anyone who reaches it can
      run programs here.

  Returns:
    The `tf.data.experimental.service.DispatchServer`, which runs as long as the object lives.

  Raises:
    ServiceError: the port is unavailable, the folder cannot be used, or there is no such address.
  """
  address = _bind_address(bind)
  _check_port(port)
  import tensorflow as tf

  service = tf.data.experimental.service
  try:
    server = service.DispatchServer(
      service.DispatcherConfig(
        port=port,
        work_dir=work_dir or None,
        fault_tolerant_mode=bool(work_dir),
      )
    )
  except (tf.errors.OpError, RuntimeError) as error:
    raise ServiceError(
      f"The dispatcher did not start on port {port} with the work_dir {work_dir!r}: {error}"
    ) from error
  _restrict(_port_of(server.target), address)
  return server


def _port_of(address: str) -> int:
  return int(address.rpartition(":")[2])


def start_worker(
  port: int, dispatcher_address: str, worker_address: str, bind: str = LOOPBACK
) -> Any:
  """Starts a worker in this process.

  Args:
    port: where it listens; 0 is any free one.
    dispatcher_address: `HOST:PORT` or `grpc://HOST:PORT` of its dispatcher.
    worker_address: `HOST` or `HOST:PORT` under which training processes reach it; "" is `bind`, or
      this machine's own name where that is all addresses.
    bind: as of `start_dispatcher`.

  Returns:
    The `tf.data.experimental.service.WorkerServer`, which runs as long as the object lives.

  Raises:
    ServiceError: the port is unavailable, the dispatcher does not answer, or there is no such address.
  """
  address = _bind_address(bind)
  check_reachable(dispatcher_address)
  _check_port(port)
  import tensorflow as tf

  service = tf.data.experimental.service
  host = worker_address or _host_of(address)
  # `[::1]` is a host alone, `[::1]:5051` has a port.
  has_port = ":" in host.rpartition("]")[2]
  try:
    server = service.WorkerServer(
      service.WorkerConfig(
        dispatcher_address=dispatcher_address.rpartition("://")[2],
        worker_address=host if has_port else f"{host}:%port%",
        port=port,
        dispatcher_timeout_ms=round(1000 * REACH_SECONDS),
      )
    )
  except (tf.errors.OpError, RuntimeError) as error:
    raise ServiceError(f"The worker did not start on port {port}: {error}") from error
  # Where its own address names another port, such as a forwarded one, it still listens on its own.
  _restrict(port or _port_of(server._address), address)
  return server


def _host_of(address: bound_ports.Address) -> str:
  """Under which name others reach this machine by an address."""
  if address.is_unspecified:
    return socket.gethostname()
  return f"[{address}]" if address.version == 6 else str(address)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m hybrid_video.datasets.service",
    description="A server of a tf.data service: one dispatcher, any number of workers. Workers must "
    "see the records under the path that the training run uses.",
  )
  role = parser.add_mutually_exclusive_group(required=True)
  role.add_argument("--dispatcher", action="store_true", help="hand out steps")
  role.add_argument("--worker", action="store_true", help="make batches")
  parser.add_argument(
    "--port",
    type=int,
    help=f"where to listen; default: {DEFAULT_PORT} for the dispatcher, any for a worker",
  )
  parser.add_argument(
    "--bind",
    default=LOOPBACK,
    metavar="ADDRESS",
    help="this machine's address in a network where everyone may run programs on it: servers run what "
    f"they are sent; 0.0.0.0 for all its addresses; the default, {LOOPBACK}, is for this machine alone",
  )
  parser.add_argument(
    "--work_dir",
    default="",
    help="where the dispatcher saves its state, so that a restarted one continues",
  )
  parser.add_argument("--dispatcher_address", default="", help="HOST:PORT, for a worker")
  parser.add_argument(
    "--worker_address",
    default="",
    help="HOST under which others reach this worker; the default is that of --bind",
  )
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a server until it is interrupted (SIGINT or SIGTERM).

  Args:
    argv: the command line's words after the command.

  Returns:
    The exit code.
  """
  parser = _parser()
  args = parser.parse_args(argv)
  if args.worker and not args.dispatcher_address:
    parser.error("--worker needs --dispatcher_address=HOST:PORT")
  if args.worker and args.work_dir:
    parser.error("--work_dir is for the dispatcher only")
  if args.dispatcher and (args.dispatcher_address or args.worker_address):
    parser.error("--dispatcher_address and --worker_address are for workers only")
  port = args.port if args.port is not None else DEFAULT_PORT if args.dispatcher else 0
  if not 0 <= port < 2**16:
    parser.error(f"--port is {port}: expected 0 to 65535")
  stopped = threading.Event()
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stopped.set())
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  # These servers only read and decode: their machine's accelerator stays free for others.
  os.environ["CUDA_VISIBLE_DEVICES"] = ""
  try:
    if args.dispatcher:
      server = start_dispatcher(port, args.work_dir, args.bind)
      host = _host_of(ipaddress.ip_address(args.bind))
      role, address = "Dispatcher", f"grpc://{host}:{_port_of(server.target)}"
    else:
      server = start_worker(port, args.dispatcher_address, args.worker_address, args.bind)
      role, address = "Worker", f"{server._address} of {args.dispatcher_address}"
  except ServiceError as error:
    sys.exit(f"Error: {error}")
  print(f"{role} ready: {address}", flush=True)
  # Python runs handlers in this thread, but the signal may reach a thread of TensorFlow's and
  # not wake this one.
  while not stopped.wait(1):
    pass
  # A normal exit would wait for calls in progress, such as a client's for the next batch.
  os._exit(0)


if __name__ == "__main__":
  sys.exit(main())
