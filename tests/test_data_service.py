"""The tf.data service with servers that are processes of their own, and a run that uses it."""

import contextlib
import dataclasses
import ipaddress
import itertools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import programs
import pytest

from hybrid_video import errors
from hybrid_video.datasets import records, service, service_client
from hybrid_video.sampling.clip_settings import ClipSettings
import input_pipeline

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = ClipSettings(frames=8, crop=32)


@pytest.fixture(scope="module")
def start_server():
  with programs.starting() as start:
    yield lambda *words: start("-m", "hybrid_video.datasets.service", *words)


def _ready(server):
  """The address that a server prints when it is ready."""
  line = server.stdout.readline()
  assert " ready: " in line, line
  return line.split()[2]


def _end(server, number=signal.SIGTERM):
  """Ends a server, and gives its exit code."""
  server.send_signal(number)
  return server.wait(5)


class Service:
  """A dispatcher and two workers on this machine."""

  def __init__(self, start_server):
    self.dispatcher = start_server("--dispatcher", "--port=0")
    port = int(_ready(self.dispatcher).rpartition(":")[2])
    self.address = f"grpc://localhost:{port}"
    self.workers = [
      start_server(
        "--worker", f"--dispatcher_address=localhost:{port}", "--worker_address=localhost"
      )
      for _ in range(2)
    ]
    self.worker_addresses = [_ready(worker) for worker in self.workers]


def _seconds(server):
  """Processor time that a server has taken; infinite where the system does not say."""
  stat = pathlib.Path(f"/proc/{server.pid}/stat")
  if not stat.exists():
    return float("inf")
  fields = stat.read_text().rpartition(")")[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def running(start_server):
  return Service(start_server)


def _batches(stored, *, steps, first_step=0, batch_size=8, address=""):
  return input_pipeline.training_batches(
    stored,
    np.arange(len(stored)),
    SETTINGS,
    batch_size=batch_size,
    first_step=first_step,
    steps=steps,
    seed=3,
    service=address,
  )


def _assert_same(batches, others):
  count = 0
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for name, values in batch.items():
      assert values.dtype == other[name].dtype
      np.testing.assert_array_equal(values, other[name])
    count += 1
  return count


def test_a_service_gives_the_same_batches_in_the_same_order(made_records, running, caplog):
  before = [_seconds(worker) for worker in running.workers]
  served = list(_batches(made_records, steps=44, first_step=4, address=running.address))
  assert _assert_same(served, _batches(made_records, steps=44, first_step=4)) == 40
  assert not caplog.records, "the service did not send every step"
  # 32 videos: an epoch is four batches.
  for i in range(0, 40, 4):
    epoch = np.concatenate([batch["video_ids"] for batch in served[i : i + 4]])
    assert sorted(epoch.tolist()) == list(range(len(made_records)))
  for worker, idle in zip(running.workers, before, strict=True):
    assert idle == float("inf") or _seconds(worker) > idle + 0.1, "a worker did nothing"


def test_a_run_that_stops_in_the_middle_leaves_the_service_to_others(made_records, running):
  for _ in range(3):
    batches = _batches(made_records, steps=10_000, address=running.address)
    assert _assert_same(itertools.islice(batches, 2), _batches(made_records, steps=2)) == 2
    batches.close()


def test_damage_that_a_worker_meets_names_the_file(made_records, running, tmp_path):
  folder = tmp_path / "damaged"
  shutil.copytree(made_records.folder, folder)
  shard = folder / pathlib.Path(made_records.shards[0]).name
  data = bytearray(shard.read_bytes())
  data[int(made_records.offset[5] + made_records.length[5] // 2)] ^= 4
  shard.write_bytes(data)
  damaged = dataclasses.replace(made_records, folder=str(folder), shards=(str(shard),))
  with pytest.raises(records.RecordsError, match=rf"{shard.name}.*{made_records.names[5]}"):
    list(_batches(damaged, steps=8, address=running.address))


def test_a_worker_that_is_killed_costs_no_step(
  made_records, running, start_server, monkeypatch, caplog
):
  monkeypatch.setattr(service_client, "_SILENT_SECONDS", 2.0)
  lost = start_server(
    "--worker",
    f"--dispatcher_address={running.address}",
    "--worker_address=localhost",
  )
  _ready(lost)
  idle = _seconds(lost)
  steps = 400
  batches = _batches(made_records, steps=steps, batch_size=4, address=running.address)
  plain = _batches(made_records, steps=steps, batch_size=4)
  done = 0
  while done < 5 or (done < steps // 2 and _seconds(lost) < idle + 0.1):
    done += _assert_same([next(batches)], [next(plain)])
  lost.kill()
  lost.wait()
  assert _assert_same(batches, plain) == steps - done
  messages = [record.getMessage() for record in caplog.records]
  made = [line for line in messages if "made here" in line]
  assert 0 < len(made) < steps // 2, messages


def test_a_service_without_workers_leaves_the_work_to_the_run(
  made_records, start_server, monkeypatch, caplog
):
  monkeypatch.setattr(service_client, "_SILENT_SECONDS", 0.5)
  dispatcher = start_server("--dispatcher", "--port=0")
  address = f"localhost:{_ready(dispatcher).rpartition(':')[2]}"
  batches = _batches(made_records, steps=3, address=address)
  assert _assert_same(batches, _batches(made_records, steps=3)) == 3
  assert "has sent nothing for 0.5 s" in caplog.text
  assert _end(dispatcher) == 0


def test_an_address_where_nothing_listens_is_reported_within_seconds(made_records, monkeypatch):
  monkeypatch.setattr(service, "REACH_SECONDS", 0.5)
  with socket.create_server(("localhost", 0)) as free:
    port = free.getsockname()[1]
  begun = time.monotonic()
  with pytest.raises(service.ServiceError, match=rf"localhost:{port}.*--dispatcher --port={port}"):
    _batches(made_records, steps=3, address=f"grpc://localhost:{port}")
  with pytest.raises(service.ServiceError, match=r"no data service answered within 0\.5 s"):
    service.start_worker(0, f"localhost:{port}", "")
  assert time.monotonic() - begun < 5


def test_a_workers_address_is_not_taken_for_the_dispatchers(made_records, running):
  with pytest.raises(service.ServiceError, match="the address of its dispatcher"):
    list(_batches(made_records, steps=3, address=running.worker_addresses[0]))


@pytest.mark.parametrize(
  "address", ["", "host", "host:", ":5050", "host:0", "host:99999", "http://host:5050", "h:5o"]
)
def test_a_malformed_address_is_refused(address):
  with pytest.raises(service.ServiceError, match="expected HOST:PORT") as error:
    service.host_and_port(address)
  assert isinstance(error.value, errors.UserError)


def own_addresses() -> list[str]:
  """Addresses of this machine that other machines may reach it by."""
  found = []
  for family, other in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
    # Nothing is sent: the system only chooses an address.
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asked:
      asked.connect((other, 9))
      found.append(asked.getsockname()[0])
  return [address for address in found if not ipaddress.ip_address(address).is_loopback]


def _answers(host: str, port: int) -> bool:
  try:
    socket.create_connection((host, port), timeout=1).close()
  except OSError:
    return False
  return True


def test_servers_are_reached_by_loopback_alone_unless_an_address_is_given(start_server):
  addresses = own_addresses()
  if not addresses:
    pytest.skip("this machine has no address but loopback")
  closed = start_server("--dispatcher", "--port=0")
  shown = _ready(closed)
  port = int(shown.rpartition(":")[2])
  assert shown == f"grpc://127.0.0.1:{port}"
  assert _answers("127.0.0.1", port)
  for address in addresses:
    assert not _answers(address, port), address
  worker = start_server("--worker", f"--dispatcher_address=127.0.0.1:{port}")
  host, worker_port = service.host_and_port(_ready(worker))
  assert host == "localhost" and _answers(host, worker_port)
  for address in addresses:
    assert not _answers(address, worker_port), address
  given = start_server("--dispatcher", "--port=0", f"--bind={addresses[0]}")
  opened = int(_ready(given).rpartition(":")[2])
  assert _answers(addresses[0], opened) and _answers("127.0.0.1", opened)
  everywhere = start_server("--dispatcher", "--port=0", "--bind=0.0.0.0")
  opened = int(_ready(everywhere).rpartition(":")[2])
  assert all(_answers(address, opened) for address in addresses if ":" not in address)


def test_another_machines_address_is_refused():
  for address in ("192.0.2.1", "host", ""):
    with pytest.raises(service.ServiceError, match=r"no address of this machine.*0\.0\.0\.0"):
      service.start_dispatcher(0, "", address)


def test_a_system_that_cannot_filter_starts_no_server_that_all_could_reach(monkeypatch):
  monkeypatch.setattr(service.bound_ports.sys, "platform", "darwin")
  with pytest.raises(
    service.ServiceError, match=r"cannot be kept to 127\.0\.0\.1.*--bind=0\.0\.0\.0"
  ):
    service.start_dispatcher(0, "")


def test_addresses_are_split_into_host_and_port():
  assert service.host_and_port("grpc://host.domain:5050") == ("host.domain", 5050)
  assert service.host_and_port("10.0.0.2:1") == ("10.0.0.2", 1)
  assert service.host_and_port("[::1]:65535") == ("::1", 65535)


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_a_port_in_use_is_refused(host):
  with (
    socket.create_server((host, 0)) as taken,
    pytest.raises(service.ServiceError, match=f"Port {taken.getsockname()[1]} is unavailable"),
  ):
    service.start_dispatcher(taken.getsockname()[1], "")


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ([], "one of the arguments --dispatcher --worker is required"),
    (["--dispatcher", "--worker"], "not allowed with argument"),
    (["--worker"], "--worker needs --dispatcher_address"),
    (
      ["--worker", "--dispatcher_address=h:1", "--work_dir=x"],
      "--work_dir is for the dispatcher only",
    ),
    (["--dispatcher", "--worker_address=h"], "are for workers only"),
    (["--dispatcher", "--port=70000"], "--port is 70000"),
  ],
)
def test_a_command_line_that_makes_no_sense_is_refused(words, message, capsys):
  with pytest.raises(SystemExit) as ended:
    service.main(words)
  assert ended.value.code == 2
  assert message in capsys.readouterr().err


def test_an_interrupted_dispatcher_ends_at_once_and_another_goes_on(start_server, tmp_path):
  # Its notes lie in the folder; a second dispatcher starts from them, at the same port.
  first = start_server("--dispatcher", "--port=0", f"--work_dir={tmp_path}")
  port = int(_ready(first).rpartition(":")[2])
  assert list(tmp_path.iterdir())
  assert _end(first, signal.SIGINT) == 0
  second = start_server("--dispatcher", f"--port={port}", f"--work_dir={tmp_path}")
  assert _ready(second).endswith(f":{port}")
  assert _end(second, signal.SIGTERM) == 0


def test_the_command_imports_neither_jax_nor_tensorflow_before_it_needs_them():
  # TensorFlow looks for JAX by itself; the command brings neither before it has to.
  code = (
    "import sys, hybrid_video.datasets.service\n"
    "assert not {'tensorflow', 'jax', 'flax', 'hybrid_video.models'} & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
