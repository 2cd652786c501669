"""That the benchmarks run and say what they promise; how fast is no matter of tests."""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import end_to_end, sides, train_step
from benchmarks.compared import MODELS
from hybrid_video import models

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_input_throughput_ends_with_one_json_object():
  command = [sys.executable, "benchmarks/input_throughput.py", "--turns=1", "--seconds=0.3"]
  command += ["--memory_clips=64", "--batch_size=4"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["ratio_per_core"] > 1
  assert 0 < found["ratio_to_jpeg_limit"] < 2
  assert found["videos"] == 3
  assert 500 < found["stored_bytes_a_frame"] <= 8000
  psnr = [row["psnr_mean_db"] for row in found["quality"]]
  assert psnr == sorted(psnr)
  assert 25 < psnr[0] < psnr[-1] < 50


def _run(*command: str) -> subprocess.CompletedProcess:
  # One device, as a user's CPU is.
  environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
  return subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is here")
def test_train_step_measures_our_side_where_there_is_no_pytorch_and_says_so(tmp_path):
  done = _run(
    "benchmarks/train_step.py",
    "--model=r2plus1d_18",
    "--works=forward",
    "--batches=2",
    "--frames=2",
    "--size=16",
    "--turns=1",
    "--seconds=0.01",
    f"--results={tmp_path}",
  )
  assert done.returncode == 0, done.stderr
  assert "measured without its peer. Python has no module 'torch'" in done.stdout
  assert "pip install -r benchmarks/requirements.txt" in done.stdout
  found = json.loads(done.stdout.splitlines()[-1])
  (row,) = found["rows"]
  assert (row["work"], row["frames"], row["batch"]) == ("forward", 2, 2)
  assert row["ours_clips_per_second"] == pytest.approx(2 / row["ours_seconds"])
  # 31 million float32 parameters.
  assert row["ours_program_mib"] > row["ours_temporary_mib"] + 119
  assert row["ours_peak_mib"] > 119
  assert found["failed"] == []
  assert json.loads((tmp_path / "train_step_cpu.json").read_text()) == {"models": found["models"]}


def test_results_of_other_models_stay(tmp_path):
  given = argparse.Namespace(results=tmp_path, name="")
  entry = {"backend": "cpu", "rows": [], "ratio_train": 1.5, "ratio_forward": 1.25}
  for model in ("videomae_small", "r2plus1d_18", "videomae_small"):
    train_step._keep(given, model, entry)
  kept = json.loads((tmp_path / "train_step_cpu.json").read_text())["models"]
  assert kept == {"r2plus1d_18": entry, "videomae_small": entry}
  assert [*kept] == ["r2plus1d_18", "videomae_small"]
  assert (tmp_path / "train_step_cpu.png").stat().st_size > 1000


def test_every_model_is_measured_and_has_a_peer_or_none():
  assert {*models.MODELS} <= {compared.model for compared in MODELS.values()}
  peers = pathlib.Path(train_step.__file__).parent / "peers"
  for compared in MODELS.values():
    assert bool(compared.peer) == bool(compared.beside)
    assert not compared.peer or (peers / f"{compared.peer}.py").exists()
    for option in compared.model_options:
      models.check_option(compared.model, option)


_WITHOUT = """
import sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {"tensorflow", "tensorflow_datasets", "clu", "av", "cv2", "orbax"}:
      raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Blocked())
from benchmarks import ours, sides
from benchmarks.compared import MODELS

side = ours.Ours("bfloat16", MODELS["hybrid_pretraining"])
print(sides.Worker(side, MODELS["hybrid_pretraining"]).about())
"""


def test_our_side_needs_neither_tensorflow_nor_a_video_decoder():
  done = _run("-c", _WITHOUT)
  assert done.returncode == 0, done.stderr
  assert "'backend': 'cpu'" in done.stdout


def test_masks_of_the_benchmark_hide_the_same_cells_at_all_times():
  masks = sides.tube_masks(3, 4, 64).reshape(3, 2, 16)
  assert (masks[:, 0] == masks[:, 1]).all()
  assert (masks[:, 0].sum(1) == 14).all()
  assert len({row.tobytes() for row in masks[:, 0]}) == 3


def test_a_batch_that_does_not_fit_is_halved_until_it_does(monkeypatch, capsys):
  plan = train_step.Plan(
    *("r2plus1d_18", ("train",), (16,), (64,), 112, "bfloat16", ("kept",)),
    *(False, True, 1, 0.1, {"JAX_PLATFORMS": "cpu"}),
  )
  monkeypatch.setattr(train_step.Plan, "side", lambda *_, **__: contextlib.nullcontext())

  def works(plan, frames, batch, *_):
    if batch > 16:
      raise sides.BenchmarkError("JAX failed at 'prepare': XlaRuntimeError: RESOURCE_EXHAUSTED")
    yield {"batch": batch}

  monkeypatch.setattr(train_step, "_works", works)
  entry = {"error": None, "peer_forms": [], "failed": []}
  assert list(train_step._rows(plan, [], entry)) == [{"batch": 16}]
  assert entry["failed"] == []
  told = capsys.readouterr().out
  assert "batch 64, 16 frames, kept does not fit into memory: 32 instead" in told
  assert "batch 32, 16 frames, kept does not fit into memory: 16 instead" in told


def test_what_was_measured_before_a_failure_stays(monkeypatch):
  plan = train_step.Plan(
    *("r2plus1d_18", train_step.WORKS, (16,), (2, 4), 112, "float32", ("kept",)),
    *(False, True, 1, 0.1, {"JAX_PLATFORMS": "cpu"}),
  )
  monkeypatch.setattr(train_step.Plan, "side", lambda *_, **__: contextlib.nullcontext())

  def works(plan, frames, batch, *_):
    yield {"work": "forward", "batch": batch}
    raise sides.BenchmarkError("JAX failed at 'prepare': no compiler")

  monkeypatch.setattr(train_step, "_works", works)
  entry = {"error": None, "peer_forms": [], "failed": []}
  rows = list(train_step._rows(plan, [], entry))
  assert rows == [{"work": "forward", "batch": 2}, {"work": "forward", "batch": 4}]
  assert [text.partition(", 16")[0] for text in entry["failed"]] == [
    "r2plus1d_18, batch 2",
    "r2plus1d_18, batch 4",
  ]


class _Answers:
  """A side whose answers are given."""

  def __init__(self, **answers):
    self._answers = answers

  def ask(self, do, **arguments):
    answer = self._answers[do]
    return answer(**arguments) if callable(answer) else answer


def test_two_sides_that_give_other_outputs_are_not_compared():
  peer = _Answers(outputs={"values": [1.0, -2.0], "loss": None})
  near = _Answers(outputs={"values": [1.0001, -2.0], "loss": None})
  assert sides.check_agreement(near, peer) == pytest.approx(5e-5, rel=1e-3)
  far = _Answers(outputs={"values": [1.0, -1.99], "loss": None})
  with pytest.raises(train_step.BenchmarkError, match=r"differ by 5\.0e-03"):
    sides.check_agreement(far, peer)
  broken = _Answers(outputs={"values": [float("nan"), -2.0], "loss": None})
  with pytest.raises(train_step.BenchmarkError, match="nan"):
    sides.check_agreement(broken, peer)
  # Of pretraining, the loss too.
  same = {"values": [1.0, -2.0], "loss": 0.5}
  other = {"values": [1.0, -2.0], "loss": 0.51}
  assert sides.check_agreement(_Answers(outputs=same), _Answers(outputs=same)) == 0
  with pytest.raises(train_step.BenchmarkError, match=r"differ by 2\.0e-02"):
    sides.check_agreement(_Answers(outputs=other), _Answers(outputs=same))


def test_the_peer_takes_its_fastest_form_and_a_compiler_that_fails_is_no_end():
  seconds = {
    ("forward", "contiguous", False): 3.0,
    ("forward", "channels_last_3d", False): 2.0,
    ("forward", "channels_last_3d", True): 4.0,
    ("train", "contiguous", False): 5.0,
    ("train", "channels_last_3d", False): 6.0,
    ("train", "channels_last_3d", True): 1.0,
  }
  current = []

  def prepare(work, layout, compiled, **_):
    current[:] = [(work, layout, compiled)]
    if current[0] not in seconds:
      raise train_step.BenchmarkError("no compiler")
    return {"seconds": seconds[current[0]] + 1, "first_seconds": 9.0}

  peer = _Answers(prepare=prepare, run=lambda calls: {"seconds": seconds[current[0]]})
  forms = [
    {"layout": layout, "compiled": compiled}
    for compiled in (False, True)
    for layout in ("contiguous", "channels_last_3d")
  ]
  best, tried = sides.best_forms(peer, train_step.WORKS, forms, 2, 2)
  assert best == {
    "forward": {"layout": "channels_last_3d", "compiled": False},
    "train": {"layout": "channels_last_3d", "compiled": True},
  }
  failed = [(row["work"], row["layout"]) for row in tried if row["compiled"] and "error" in row]
  assert failed == [("forward", "contiguous"), ("train", "contiguous")]
  del seconds["train", "contiguous", False]
  with pytest.raises(train_step.BenchmarkError, match="no compiler"):
    sides.best_forms(peer, train_step.WORKS, forms, 2, 2)
  # An only form is taken untried.
  assert sides.best_forms(_Answers(), ("train",), forms[:1], 2, 2) == (
    {"train": forms[0]},
    [],
  )


def test_ratios_are_of_the_first_clip_length_and_told_apart_by_allocator():
  def row(work, allocator, frames, ratio):
    return {"work": work, "allocator": allocator, "frames": frames, "ratio": ratio}

  rows = [
    *(row("forward", "kept", 16, ratio) for ratio in (1.5, 1.1, 1.2)),
    row("forward", "kept", 32, 9.0),
    row("train", "kept", 16, 2.0),
    *(row("train", "default", 16, ratio) for ratio in (3.0, 4.0)),
  ]
  assert train_step.ratios(rows, 16) == {
    "ratio_forward_peer_tuned": 1.2,
    "ratio_forward_least_peer_tuned": 1.1,
    "ratio_train_peer_tuned": 2.0,
    "ratio_train_least_peer_tuned": 2.0,
    "ratio_train": 3.5,
    "ratio_train_least": 3.0,
  }
  # On a GPU there is but one.
  assert train_step.ratios(rows[:4], 16) == {"ratio_forward": 1.2, "ratio_forward_least": 1.1}


def test_a_side_whose_process_ends_is_told_with_its_status(monkeypatch):
  monkeypatch.setattr(sides.sys, "executable", "false")
  with (
    sides.Side("ours", "r3d_18", MODELS["r3d_18"], "float32", True, {}) as side,
    pytest.raises(train_step.BenchmarkError, match="JAX's process ended with status 1"),
  ):
    side.ask("about")


def test_a_device_waits_for_data_only_while_it_has_nothing_to_do():
  # Step 0 ends at 10. Batch 1 is made meanwhile; 2 is late by 3 s, and its copy by one more; 3 is in
  # time and its copy late by 2 s.
  waited, copied = end_to_end.device_waiting(
    given=[0.0, 4.0, 23.0, 30.0], placed=[1.0, 5.0, 24.0, 42.0], finished=[10.0, 20.0, 40.0, 50.0]
  )
  assert (waited, copied) == (3.0, 3.0)


class _Clock:
  """Time that passes by sleeping and by making batches."""

  def __init__(self, makes):
    self.now = 0.0
    self._makes = iter(makes)

  def __iter__(self):
    return self

  def __next__(self):
    self.now += next(self._makes)

  def sleep(self, seconds):
    self.now += seconds


def _share(makes, period, ahead):
  clock = _Clock([0.0, *makes])
  return end_to_end.feed(
    clock, period, len(makes), ahead=ahead, clock=lambda: clock.now, sleep=clock.sleep
  )


def test_a_card_with_a_queue_waits_only_for_what_is_slower_than_itself():
  assert _share([0.9] * 50, period=1.0, ahead=2) == 0.0
  # Batches take twice the card's time, so that half of its time goes by in waiting; the queue cannot
  # change that.
  assert _share([2.0] * 50, period=1.0, ahead=2) == pytest.approx(0.5, abs=0.01)
  # Without a queue, every batch is made while the card stands.
  assert _share([0.25] * 50, period=1.0, ahead=1) == pytest.approx(0.2)


def test_a_queue_bridges_one_slow_batch():
  makes = [0.1] * 5 + [2.5] + [0.1] * 5
  assert _share(makes, period=1.0, ahead=4) == 0.0
  assert _share(makes, period=1.0, ahead=2) == pytest.approx(1.5 / 12.5)


def test_the_highest_rate_stops_at_the_first_that_waits():
  shares = [(300.0, 0.05), (100.0, 0.0), (200.0, 0.019), (400.0, 0.001)]
  assert end_to_end.highest_under(shares, 0.02) == 200.0
  assert end_to_end.highest_under([(100.0, 0.02)], 0.02) is None


@pytest.mark.slow
def test_end_to_end_ends_with_one_json_object(tmp_path):
  done = _run(
    "benchmarks/end_to_end.py",
    "--videos=tests/data/hmdb51",
    "--steps=3",
    "--warmup=1",
    "--batch=2",
    "--turns=1",
    "--seconds=0.2",
    "--rates=10",
    f"--results={tmp_path}",
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  for share in ("waiting_share", "handover_share", "blocked_share"):
    assert 0 <= found[share] <= 1
  assert found["clips_per_second"] > 0
  assert len(found["rows"]) == len(end_to_end.SHARES)
  assert found["rate_on_16_cores"] is None or found["rate_per_core_2_percent"] > 0
  assert found["waiting_share_at"].keys() == {"10"}
  assert found["stored_videos"] == 3
  assert (tmp_path / "end_to_end_cpu.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_start_is_measured_by_its_parts(tmp_path):
  done = _run(
    "benchmarks/startup.py",
    "--turns=1",
    "--frames=4",
    "--crop=16",
    "--width=4",
    f"--results={tmp_path}",
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found == json.loads((tmp_path / "startup.json").read_text())
  assert found["first_step_seconds"] == pytest.approx(sum(found["parts"].values()))
  assert 0 < found["import_seconds"] < found["first_step_seconds"]
  assert found["programs"] >= 1
  if importlib.util.find_spec("torch") is None:
    assert found["ratio_first_step"] is None
    assert "PyTorch is not installed: ours alone" in done.stdout
