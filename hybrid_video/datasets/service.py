"""The tf.data service's two servers as a command: other machines decode and cut clips for training.

In: a role and addresses. Out: a dispatcher, which hands out the steps of a training run, or a
worker, which makes their batches; each prints one line when it is ready and runs until interrupted.

    python -m hybrid_video.datasets.service --dispatcher --port=5050
    python -m hybrid_video.datasets.service --worker --dispatcher_address=HOST:5050

One dispatcher and any number of workers serve a run that has `--config.data_service=grpc://HOST:5050`.
Workers read the records themselves, so the records' folder has to have the same path on every one of
them: a shared file system, or gs://. The servers ask nobody who they are and run what they are sent:
their ports are for a private network alone.

Source: Audibert et al., "tf.data service: A Case for Disaggregating ML Input Data Processing",
SoCC 2023.
"""

import argparse
from collections.abc import Sequence
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from hybrid_video import errors

DEFAULT_PORT = 5050
# A dispatcher is asked for this long before it counts as not reachable: it may be starting.
REACH_SECONDS = 10.0
_RETRY_SECONDS = 0.2


class ServiceError(errors.UserError):
  """A data service that cannot serve; the message says what to do."""


def host_and_port(address: str) -> tuple[str, int]:
  """The parts of `HOST:PORT` or `grpc://HOST:PORT`; an IPv6 host stands in brackets.

  Raises:
    ServiceError: it is of another form.
  """
  protocol, _, rest = address.rpartition("://")
  host, _, port = rest.rpartition(":")
  known = protocol in ("", "grpc") and host and port.isascii() and port.isdigit()
  if not known or not 0 < int(port) < 2**16:
    raise ServiceError(
      f"{address!r} is no address of a data service: expected HOST:PORT or grpc://HOST:PORT, such as "
      f"grpc://10.0.0.2:{DEFAULT_PORT}."
    )
  return host.removeprefix("[").removesuffix("]"), int(port)


def check_reachable(address: str) -> None:
  """Waits up to `REACH_SECONDS` until something listens at an address.

  TensorFlow's own client tries for an hour, and says nothing that a user would see.

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
          f"{address}: no data service is reached there within {REACH_SECONDS:g} s "
          f"({error.strerror or error}). Start its dispatcher, `python -m "
          f"hybrid_video.datasets.service --dispatcher --port={port}`, on that host, or correct the "
          "address."
        ) from error
      time.sleep(_RETRY_SECONDS)
    else:
      return


def _check_port(port: int) -> None:
  # The servers share a port that is taken rather than refuse it, and each gets half of the calls.
  family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
  try:
    socket.create_server(
      ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6
    ).close()
  except OSError as error:
    raise ServiceError(
      f"Port {port} cannot be taken ({error.strerror}): something else listens there, or it is not "
      "yours to take. Name another with --port."
    ) from error


def start_dispatcher(port: int, work_dir: str) -> Any:
  """Starts a dispatcher in this process.

  Args:
    port: where it listens; 0 is any free one.
    work_dir: where it notes its state, so that another dispatcher with the same folder goes on after
      it; "" is nowhere.

  Returns:
    The `tf.data.experimental.service.DispatchServer`, which runs as long as it is held.

  Raises:
    ServiceError: the port is taken, or the folder cannot serve.
  """
  _check_port(port)
  import tensorflow as tf

  service = tf.data.experimental.service
  try:
    return service.DispatchServer(
      service.DispatcherConfig(
        port=port,
        work_dir=work_dir or None,
        fault_tolerant_mode=bool(work_dir),
      )
    )
  except (tf.errors.OpError, RuntimeError) as error:
    raise ServiceError(
      f"The dispatcher does not start on port {port} with the work_dir {work_dir!r}: {error}"
    ) from error


def start_worker(port: int, dispatcher_address: str, worker_address: str) -> Any:
  """Starts a worker in this process.

  Args:
    port: where it listens; 0 is any free one.
    dispatcher_address: `HOST:PORT` or `grpc://HOST:PORT` of its dispatcher.
    worker_address: `HOST` or `HOST:PORT` under which training processes reach it; "" is this
      machine's own name.

  Returns:
    The `tf.data.experimental.service.WorkerServer`, which runs as long as it is held.

  Raises:
    ServiceError: the port is taken, or the dispatcher is not reached.
  """
  check_reachable(dispatcher_address)
  _check_port(port)
  import tensorflow as tf

  service = tf.data.experimental.service
  host = worker_address or socket.gethostname()
  # `[::1]` is a host alone, `[::1]:5051` is one with a port.
  named = ":" in host.rpartition("]")[2]
  try:
    return service.WorkerServer(
      service.WorkerConfig(
        dispatcher_address=dispatcher_address.rpartition("://")[2],
        worker_address=host if named else f"{host}:%port%",
        port=port,
        dispatcher_timeout_ms=round(1000 * REACH_SECONDS),
      )
    )
  except (tf.errors.OpError, RuntimeError) as error:
    raise ServiceError(f"The worker does not start on port {port}: {error}") from error


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
    "--port", type=int, help=f"where to listen; the dispatcher's is {DEFAULT_PORT}, a worker's any"
  )
  parser.add_argument(
    "--work_dir", default="", help="the dispatcher's notes, from which its successor goes on"
  )
  parser.add_argument("--dispatcher_address", default="", help="HOST:PORT, for a worker")
  parser.add_argument(
    "--worker_address", default="", help="HOST under which others reach this worker; its own name"
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
  asked = parser.parse_args(argv)
  if asked.worker and not asked.dispatcher_address:
    parser.error("--worker needs --dispatcher_address=HOST:PORT")
  if asked.worker and asked.work_dir:
    parser.error("--work_dir is the dispatcher's")
  if asked.dispatcher and (asked.dispatcher_address or asked.worker_address):
    parser.error("--dispatcher_address and --worker_address are a worker's")
  port = asked.port if asked.port is not None else DEFAULT_PORT if asked.dispatcher else 0
  if not 0 <= port < 2**16:
    parser.error(f"--port is {port}: expected 0 to 65535")
  stopped = threading.Event()
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stopped.set())
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  # These servers read and decode: an accelerator of their machine is others'.
  os.environ["CUDA_VISIBLE_DEVICES"] = ""
  try:
    if asked.dispatcher:
      server = start_dispatcher(port, asked.work_dir)
      role, address = (
        "Dispatcher",
        f"grpc://{socket.gethostname()}:{server.target.rpartition(':')[2]}",
      )
    else:
      server = start_worker(port, asked.dispatcher_address, asked.worker_address)
      role, address = "Worker", f"{server._address} of {asked.dispatcher_address}"
  except ServiceError as error:
    sys.exit(f"Error: {error}")
  print(f"{role} ready: {address}", flush=True)
  # Python runs handlers in this thread, but the signal may reach one of TensorFlow's and wake none.
  while not stopped.wait(1):
    pass
  # Its own end would wait for calls that are under way, such as a client's for the next batch.
  os._exit(0)


if __name__ == "__main__":
  sys.exit(main())
