"""Which process this is, and runs of several processes on this machine that start and end together."""

import json
import os
import re
import signal
import socket
import subprocess
import time

import metadata_server
import numpy as np
from programs import free_port
import pytest

from hybrid_video import google_metadata, hosts, sharding
from hybrid_video.hosts import HostError, Place

HERE = socket.gethostname()
SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NODELIST": "gpu[07-08,11],other",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
  "SLURM_STEP_NUM_TASKS": "8",
  "SLURM_STEP_NUM_NODES": "4",
}


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
  """No variable tells of other processes, and nobody asks Google."""
  for name in list(os.environ):
    if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "GCE_", "JAX_COORDINATOR", "JAX_NUM_PROC")):
      monkeypatch.delenv(name)
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  monkeypatch.delenv("JAX_PROCESS_ID", raising=False)


def test_a_plain_machine_is_one_process_and_asks_nobody(monkeypatch):
  def asked(*_):
    raise AssertionError("a metadata server was asked")

  monkeypatch.setattr(google_metadata, "read", asked)
  assert hosts.find() is None
  # Neither does one of Google's without TPUs, nor a TPU where it is told not to.
  monkeypatch.setattr(google_metadata, "is_here", lambda: True)
  assert hosts.find() is None
  monkeypatch.setattr(hosts, "_has_tpus", lambda: True)
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
  assert hosts.find() is None
  assert hosts.share_all(5) == [5]
  assert hosts.in_turn("/nowhere", lambda: 7, "done") == 7


def test_flags_and_their_variables_tell_the_place(monkeypatch):
  assert hosts.find("node1:1234", 4, 0) == Place("node1", 1234, 4, 0)
  assert hosts.find("[fd00::1]:1234", "2", "1") == Place("fd00::1", 1234, 2, 1)
  assert hosts.find("node1:1234", 1, 0) is None
  for name, value in zip(hosts.ENVIRONMENT.values(), ("node2:99", "3", "2"), strict=True):
    monkeypatch.setenv(name, value)
  assert hosts.find() == Place("node2", 99, 3, 2)
  assert hosts.find(process_id=1) == Place("node2", 99, 3, 1)


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    (("node1:1", None, 0), "--num_processes missing"),
    ((None, None, 0), "--coordinator, --num_processes missing"),
    (("node1", 2, 0), "--coordinator is 'node1': expected HOST:PORT"),
    (("node1:70000", 2, 0), "expected HOST:PORT"),
    (("node1:1", 2, 2), "--process_id is 2 and --num_processes 2: expected a number from 0 to 1"),
    (("node1:1", 0, 0), "--process_id is 0 and --num_processes 0"),
    (("node1:1", "two", 0), "--num_processes is 'two': expected a whole number"),
  ],
)
def test_flags_that_do_not_fit_together_are_refused(flags, expected):
  with pytest.raises(HostError, match=re.escape(expected)):
    hosts.find(*flags)


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, Place("gpu07", 61441, 8, 3, (1,), "SLURM")),
    # One task a host, and tasks bound to one device each, have all that they see.
    ({"SLURM_STEP_NUM_TASKS": "4"}, Place("gpu07", 61441, 4, 3, None, "SLURM")),
    ({"CUDA_VISIBLE_DEVICES": "1"}, Place("gpu07", 61441, 8, 3, None, "SLURM")),
    ({"SLURM_STEP_NODELIST": "a1,a2"}, Place("a1", 61441, 8, 3, (1,), "SLURM")),
    ({"SLURM_STEP_NODELIST": "a[1,3]-ib"}, Place("a1-ib", 61441, 8, 3, (1,), "SLURM")),
    ({"SLURM_STEP_NUM_TASKS": "1"}, None),
    # A batch script without srun.
    ({"SLURM_STEP_NODELIST": ""}, None),
  ],
)
def test_slurm_tells_the_place_where_there_are_several_tasks(changes, expected, monkeypatch):
  for name, value in (SLURM | changes).items():
    monkeypatch.setenv(name, value)
  assert hosts.find() == expected


def test_kubernetes_tells_the_hosts_of_a_tpu(monkeypatch):
  monkeypatch.setenv("TPU_WORKER_ID", "1")
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t-0.t,t-1.t")
  assert hosts.find() == Place("t-0.t", 8476, 2, 1, None, "Cloud TPU")
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
  assert hosts.find() is None
  monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
  monkeypatch.setenv("MEGASCALE_SLICE_ID", "1")
  monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "first:8080")
  monkeypatch.setenv("TPU_WORKER_ID", "0")
  assert hosts.find() == Place("first", 8476, 2, 1, None, "Cloud TPU")


def test_the_metadata_server_tells_the_hosts_of_a_tpu(monkeypatch):
  endpoints = "instance/attributes/worker-network-endpoints"
  values = {
    "instance/attributes/agent-worker-number": "2",
    endpoints: "a:0:10.0.0.2,b:1:10.0.0.3,c:2:10.0.0.4",
    "instance/attributes/tpu-env": "ACCELERATOR_TYPE: 'v5e-16'\nZONE: 'z'\n",
  }
  monkeypatch.setattr(hosts, "_has_tpus", lambda: True)
  monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
  with metadata_server.serving(values) as address:
    monkeypatch.setenv("GCE_METADATA_HOST", address)
    assert hosts.find() == Place("10.0.0.2", 8476, 3, 2, None, "Cloud TPU")
    values["instance/attributes/tpu-env"] += "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
    assert hosts.find() == Place("10.0.0.2", 8476, 6, 5, None, "Cloud TPU")
    # A machine of its own.
    values.update({endpoints: "10.0.0.2", "instance/attributes/tpu-env": ""})
    assert hosts.find() is None
    del values[endpoints]
    assert hosts.find() is None


def test_the_rows_of_a_process_follow_those_of_the_one_before(monkeypatch):
  class Device:
    platform, device_kind = "tpu", "TPU v5e"

    def __init__(self, number: int, process_index: int):
      self.id, self.process_index = number, process_index

  # As a TPU's torus numbers chips: two hosts in turn.
  devices = [Device(i, i // 2 % 2) for i in range(8)]
  made = {}
  monkeypatch.setattr(sharding, "Mesh", lambda array, *_, **__: made.setdefault("devices", array))
  sharding.make_mesh(devices, fsdp=2)
  assert made["devices"].shape == (4, 2)
  assert [device.process_index for device in made["devices"].flat] == [0] * 4 + [1] * 4


# Turns on folders, in processes without JAX.

_TURNS = """
import sys, pathlib, time
from hybrid_video import host_link, hosts
port, process, count, folder, log = sys.argv[1:]
if process == "0":
  server = host_link.Server("127.0.0.1", int(port), int(count), 30)
hosts._link = host_link.Link(("127.0.0.1", int(port)), int(process), int(count), {}, 30, hosts._end_for_another)

def work():
  made = pathlib.Path(folder) / "made"
  if not made.exists():
    time.sleep(0.2)
    made.mkdir()
    with open(log, "a") as file:
      file.write(process + "\\n")
  return made.exists()

assert hosts.in_turn(folder, work, "it is made")
assert hosts.in_turn(folder, work, "it is made")
hosts.wait_for_all("end")
hosts._link.leave()
if process == "0":
  server.close()
"""


def test_one_process_for_each_disk_does_what_is_done_once(start_program, tmp_path):
  log, port = tmp_path / "log", free_port()
  # Processes 0 and 2 share a disk, and so do 1 and 3.
  disks = [tmp_path / "a", tmp_path / "b"] * 2
  for disk in disks[:2]:
    disk.mkdir()
  started = [
    start_program("-c", _TURNS, port, process, 4, disk, log) for process, disk in enumerate(disks)
  ]
  assert [process.wait(60) for process in started] == [0] * 4
  assert sorted(log.read_text().split()) == ["0", "1"]
  # Nothing else is left there.
  assert [path.name for disk in disks[:2] for path in disk.iterdir()] == ["made"] * 2


# Whole processes, through the command line, with a mode that computes without end.

_ENDLESS = """
import os, sys, time
from hybrid_video import command, errors, predict

def run(*_, **__):
  import jax, numpy as np
  from jax.experimental import multihost_utils
  what, me = os.environ["WHAT"], jax.process_index()
  for i in range(10**9):
    multihost_utils.process_allgather(np.ones(3))
    if i == 1:
      print("computing", flush=True)
    if i == 5 and me == 1 and what == "error":
      raise errors.UserError("the disk is full")
    if i == 5 and me == 1 and what == "bug":
      1 / 0
    if i == 5 and what == "end":
      return predict.Outcome(0, 0)

predict.run = run
command.start("input_pipeline")
"""


@pytest.fixture
def start_pair(start_program, tmp_path):
  """Starts two processes of one run that does something; gives them when both compute."""

  def start_pair(what: str) -> list[subprocess.Popen]:
    port = free_port()
    pair = [
      start_program(
        "-c",
        _ENDLESS,
        "--mode=predict",
        f"--workdir={tmp_path}",
        "--videos=x.avi",
        f"--coordinator=127.0.0.1:{port}",
        "--num_processes=2",
        f"--process_id={process}",
        stderr=subprocess.PIPE,
        env={**os.environ, "WHAT": what, "XDG_CACHE_HOME": str(tmp_path)},
      )
      for process in range(2)
    ]
    for process in pair:
      for line in process.stdout:
        if line == "computing\n":
          break
    return pair

  return start_pair


def ends(pair: list[subprocess.Popen], seconds: float = 30.0) -> list[tuple[int, str]]:
  """Exit codes and what was said of errors."""
  messages = [process.communicate(timeout=seconds)[1] for process in pair]
  return [(process.returncode, text) for process, text in zip(pair, messages, strict=True)]


def test_an_error_of_one_process_ends_the_other_with_its_reason(start_pair):
  (code, message), (own_code, own_message) = ends(start_pair("error"))
  assert (code, own_code) == (1, 1)
  assert f"Error: process 1 ({HERE}) failed: the disk is full\n" in message
  assert "Error: the disk is full\n" in own_message
  assert "Traceback" not in message + own_message


def test_a_bug_of_one_process_keeps_its_traceback_and_ends_the_other(start_pair):
  (code, message), (own_code, own_message) = ends(start_pair("bug"))
  assert (code, own_code) == (1, 1)
  assert f"process 1 ({HERE}) failed: ZeroDivisionError: division by zero" in message
  assert "Traceback" in own_message and "please report it" in own_message


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_with_a_line_that_names_it(killed, start_pair):
  pair = start_pair("compute")
  pair[killed].kill()
  began = time.monotonic()
  outcome = ends(pair, 20)
  assert time.monotonic() - began < 10
  code, message = outcome[1 - killed]
  assert code == 1
  assert f"process {killed} ({HERE}) ended without a word: killed, out of memory" in message


def test_a_signal_to_one_process_ends_both_with_its_code(start_pair):
  pair = start_pair("compute")
  pair[1].send_signal(signal.SIGTERM)
  (code, message), (own_code, own_message) = ends(pair, 20)
  assert (code, own_code) == (143, 143)
  assert f"Stopped: process 1 ({HERE}) was stopped by SIGTERM\n" in message
  assert "Stopped by SIGTERM; the same command goes on from what is saved.\n" in own_message


def test_processes_that_are_done_end_without_a_word(start_pair):
  for code, message in ends(start_pair("end")):
    assert code == 0, message
    assert not [line for line in message.splitlines() if "Gloo" not in line], message


def demo(tmp_path, *words: str) -> list[str]:
  return ["main.py", "--config=configs/demo.py", f"--workdir={tmp_path / 'run'}", *words]


def test_a_host_that_never_arrives_is_named_after_the_timeout(start_program, tmp_path):
  port = free_port()
  flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--hosts_timeout=1"]
  alone = start_program(*demo(tmp_path, *flags, "--process_id=0"), stderr=subprocess.PIPE)
  _, message = alone.communicate(timeout=60)
  assert alone.returncode == 1
  assert re.search(
    r"Error: Process 1 of 2 did not arrive within 1 s; 0 on .* did\. Start it", message
  )
  assert "Traceback" not in message and "Check failure" not in message
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("flag", "expected"),
  [
    ("--config.epoch=3", 'failed: Cannot read the command line: .*Did you mean "epochs"'),
    ("--config.epochs=-3", "failed: --config.epochs is -3"),
    ("--config.epochs=3", r"different commands:\n  --config.epochs: .* and 3.0\n"),
    ("--num_processes=3", "says that there are 3 processes and process 0 that there are 2"),
  ],
)
def test_a_host_with_a_wrong_flag_ends_all_with_what_is_wrong(
  flag, expected, start_program, tmp_path
):
  common = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--hosts_timeout=60"]
  pair = [
    start_program(
      *demo(tmp_path, *common, f"--process_id={process}", *more), stderr=subprocess.PIPE
    )
    for process, more in ((0, []), (1, [flag]))
  ]
  outcome = ends(pair, 45)
  assert [code for code, _ in outcome] == [1, 1]
  assert re.search(expected, outcome[0][1]), outcome
  assert not any("Traceback" in message for _, message in outcome)


# Trainings through main.py; the devices are the host's processors.

SMALL = (
  "--config.made_films=4",
  "--config.stored.height=38",
  "--config.stored.width=50",
  "--config.clip.frames=8",
  "--config.clip.crop=24",
  "--config.model.cnn_blocks=1",
  "--config.model.cnn_width=4",
  "--config.model.latents=4",
  "--config.model.width=16",
  "--config.batch_size=8",
  "--config.eval_batch_size=8",
  "--config.log_every_steps=1",
  "--config.evaluate_shuffled=False",
)
# Wide enough that some arrays are split among devices.
WIDE = "--config.model.width=128"


@pytest.fixture
def run_processes(start_program, made_folder, tmp_path):
  """Runs one command in some processes of some devices each; gives what each printed."""

  def run_processes(processes: int, devices: int, workdir, *words: str) -> list[str]:
    port = free_port()
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    several = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
    started = [
      start_program(
        "main.py",
        f"--workdir={workdir}",
        *words,
        *(several if processes > 1 else []),
        *([f"--process_id={process}"] if processes > 1 else []),
        env=environment,
        stderr=subprocess.STDOUT,
      )
      for process in range(processes)
    ]
    printed = [process.communicate(timeout=500)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, printed
    return printed

  return run_processes


def on_made_set(made_folder, records, *words: str) -> list[str]:
  folders = [f"--config.data_dir={made_folder}", f"--config.records_dir={records}"]
  return ["--config=configs/demo.py", *folders, *SMALL, *words]


def results_of(workdir) -> dict:
  return json.loads((workdir / "results.json").read_text())


def test_two_processes_evaluate_what_one_has_trained(finished, run_processes, tmp_path):
  _, workdir, outcome = finished
  first, second = run_processes(
    2, 1, tmp_path / "two", "--mode=evaluate", f"--checkpoint={workdir}"
  )
  there = results_of(tmp_path / "two")
  assert there["params_digest"] == outcome["params_digest"]
  assert there["test"]["videos"] == outcome["test"]["videos"]
  assert there["test"]["clip_top1"] == outcome["test"]["clip_top1"]
  assert there["test"]["loss"] == pytest.approx(outcome["test"]["loss"], rel=1e-5)
  # One process says and writes it.
  assert "test list" in first and "test list" not in second
  with (
    np.load(workdir / "predictions.npz") as one,
    np.load(tmp_path / "two" / "predictions.npz") as two,
  ):
    np.testing.assert_array_equal(two["names"], one["names"])
    np.testing.assert_allclose(two["probabilities"], one["probabilities"], atol=1e-5)


@pytest.mark.slow
def test_two_processes_share_the_videos_of_a_prediction(
  finished, run_processes, made_folder, tmp_path
):
  _, workdir, _ = finished
  videos = sorted(made_folder.rglob("*.avi"))[:5]
  words = [
    "--mode=predict",
    f"--checkpoint={workdir}",
    f"--videos={','.join(map(str, videos))}",
  ]
  run_processes(1, 1, tmp_path / "one", *words)
  first, second = run_processes(2, 1, tmp_path / "two", *words)
  assert "predicts 3 of them" in first and "Predictions: " not in second
  one, two = (
    [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
    for name in ("one", "two")
  )
  assert (
    [line["video"] for line in two] == [line["video"] for line in one] == list(map(str, videos))
  )
  for here, there in zip(two, one, strict=True):
    assert here["probabilities"] == pytest.approx(there["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_a_training_is_the_same_on_any_processes_devices_and_shares_of_the_state(
  run_processes, made_folder, tmp_path
):
  command = on_made_set(made_folder, tmp_path / "records", "--config.epochs=2", WIDE)
  losses, tested = {}, {}
  for name, processes, devices, words in (
    ("one", 1, 1, []),
    ("devices", 1, 4, []),
    ("hosts", 2, 2, []),
    ("fsdp", 2, 2, ["--config.fsdp=4"]),
  ):
    printed = run_processes(processes, devices, tmp_path / name, *command, *words)
    history = (tmp_path / name / "history.jsonl").read_text().splitlines()
    curve = [line["train/loss"] for line in map(json.loads, history) if "train/loss" in line]
    losses[name], tested[name] = curve, results_of(tmp_path / name)["test"]["loss"]
    assert len(losses[name]) == 6
    if processes > 1:
      assert "Training on 4 device(s)" in printed[0] and "step 2/6" not in printed[1]
      assert len(list((tmp_path / name / "tensorboard").iterdir())) == 1
  for name in ("devices", "hosts", "fsdp"):
    np.testing.assert_allclose(losses[name], losses["one"], rtol=2e-3)
    assert tested[name] == pytest.approx(tested["one"], rel=5e-3)
  assert losses["one"][0] != losses["one"][-1]


@pytest.mark.slow
def test_a_checkpoint_of_two_split_hosts_goes_on_on_one_device_and_back(
  run_processes, made_folder, tmp_path
):
  constant = ["--config.optimizer.schedule=constant", "--config.optimizer.warmup_epochs=0"]
  command = on_made_set(made_folder, tmp_path / "records", WIDE, *constant)
  workdir = tmp_path / "run"
  for epochs, processes, devices, fsdp in ((1, 2, 2, 2), (2, 1, 1, 1), (3, 2, 2, 4)):
    words = [f"--config.epochs={epochs}", f"--config.fsdp={fsdp}"]
    printed = run_processes(processes, devices, workdir, *command, *words)
    assert f"from step {3 * epochs - 3} to {3 * epochs}," in printed[0]
    assert results_of(workdir)["step"] == 3 * epochs
