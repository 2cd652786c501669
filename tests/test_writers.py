"""What a run writes as it goes: each step once whatever stops it, strict JSON, errors that name a file."""

import contextlib
import errno
import json
import math
import pathlib
import resource
import sys
import types

from conftest import made_experiment
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_file_loader
import tensorflow as tf

from hybrid_video import errors, experiment, files
from hybrid_video.report import event_files, line_files, results, wandb_writer, writers


def scalars(step: int, **more: float) -> dict[str, float]:
  numbers = {"epoch": step / 10, "learning_rate": 1e-3, "train/loss": 2.0 / step}
  return {**numbers, "train/top1": 0.5, **more}


def validated(top1: float) -> dict[str, float]:
  return {"validation/video_top1": top1, "validation/loss": 1.5}


def create(workdir: pathlib.Path, first_step: int = 0, **settings):
  chosen = experiment.Experiment.from_mapping({"model": made_experiment().model, **settings})
  return writers.create(workdir, first_step=first_step, steps=100, experiment=chosen)


def events(workdir: pathlib.Path) -> list[tuple[int, str, float]]:
  """Step, tag and wall time of every scalar there is, file by file."""
  found = []
  for path in sorted((workdir / "tensorboard").glob("*tfevents*")):
    for event in event_file_loader.LegacyEventFileLoader(str(path)).Load():
      found += [(event.step, value.tag, event.wall_time) for value in event.summary.value]
  return found


def test_a_resumed_run_has_each_step_once(tmp_path):
  first = create(tmp_path)
  for step in (1, 2, 3, 4):
    first.write_scalars(step, scalars(step))
  first.close()
  before = events(tmp_path)
  assert len(before) == 4 * len(scalars(1))
  # As a process that was killed leaves them: a half-written line, a half-written record, a part.
  with (tmp_path / "history.jsonl").open("a") as file:
    file.write('{"step": 5, "epo')
  (path,) = (tmp_path / "tensorboard").iterdir()
  with path.open("ab") as file:
    file.write(path.read_bytes()[-30:-5])
  path.with_name(f"{path.name}.0{files.PART}").write_bytes(path.read_bytes())
  second = create(tmp_path, first_step=2)
  assert events(tmp_path) == [event for event in before if event[0] <= 2]
  for step in (3, 4, 5):
    second.write_scalars(step, scalars(step))
  second.close()
  assert [line["step"] for line in writers.read_history(tmp_path)] == [1, 2, 3, 4, 5]
  after = events(tmp_path)
  assert len({event[:2] for event in after}) == len(after) == 5 * len(scalars(1))
  assert {event for event in before if event[0] <= 2} < set(after)


def test_what_is_no_scalar_stays_in_the_event_files(tmp_path):
  writer = tf.summary.create_file_writer(str(tmp_path))
  with writer.as_default():
    for step in (1, 2):
      tf.summary.scalar("loss", 1.0, step=step)
      tf.summary.image("clip", np.zeros((1, 4, 4, 3), np.uint8), step=step)
  writer.close()
  (tmp_path / "plugins").mkdir()
  (tmp_path / "plugins" / "trace.xplane.pb").write_bytes(b"trace")
  (path,) = tmp_path.glob("*tfevents*")
  whole = path.read_bytes()
  event_files.drop_scalars_after(tmp_path, 2)
  assert path.read_bytes() == whole
  event_files.drop_scalars_after(tmp_path, 1)
  left = [
    (event.step, value.tag)
    for event in event_file_loader.LegacyEventFileLoader(str(path)).Load()
    for value in event.summary.value
  ]
  assert left == [(1, "loss"), (1, "clip"), (2, "clip")]
  assert (tmp_path / "plugins" / "trace.xplane.pb").read_bytes() == b"trace"
  event_files.drop_scalars_after(tmp_path / "nowhere", 1)


def refuse_constant(name: str):
  raise AssertionError(f"{name} is no JSON")


def test_numbers_that_are_not_finite_are_null_in_files_and_nan_when_read(tmp_path):
  writer = create(tmp_path)
  writer.write_scalars(1, scalars(1, **{"norm/gradient": np.float32(np.inf)}))
  writer.write_scalars(2, {**scalars(2), "train/loss": np.nan})
  writer.close()
  lines = [
    json.loads(line, parse_constant=refuse_constant)
    for line in (tmp_path / "history.jsonl").read_text().splitlines()
  ]
  assert (lines[0]["norm/gradient"], lines[1]["train/loss"]) == (None, None)
  assert math.isnan(writers.read_history(tmp_path)[1]["train/loss"])
  path = results.write(
    tmp_path, {"test": {"loss": math.nan, "top": (np.float32(0.5), np.int64(3))}}
  )
  read = json.loads(path.read_text(), parse_constant=refuse_constant)
  assert read == {"test": {"loss": None, "top": [0.5, 3]}}


def test_the_console_has_a_line_a_report_and_one_a_validation(tmp_path, logged):
  writer = create(tmp_path)
  more = {"clips_per_second": 80.25, "waiting_share": 0.031, "seconds_left": 250.0}
  writer.write_scalars(50, scalars(50, **more, **validated(0.25)))
  writer.write_scalars(60, scalars(60, **validated(0.2)))
  writer.close()
  # What was best is known after a restart.
  resumed = create(tmp_path, first_step=60)
  raw = {"validation_raw/video_top1": 0.1, "validation_raw/loss": 2.0}
  resumed.write_scalars(70, scalars(70, skipped_steps=1, **validated(0.25), **raw))
  resumed.write_scalars(80, scalars(80, **validated(0.3)))
  resumed.close()
  assert logged.messages == [
    "step  50/100  epoch   5.00  loss  0.0400  top-1  50.0 %  rate 1.00e-03"
    "     80.2 clips/s  waiting  3%   4m10s left",
    "validation  top-1  25.0 %  loss  1.5000  (best so far, step 50)",
    "step  60/100  epoch   6.00  loss  0.0333  top-1  50.0 %  rate 1.00e-03",
    "validation  top-1  20.0 %  loss  1.5000  (best: video_top1 25.0 %, step 50)",
    "step  70/100  epoch   7.00  loss  0.0286  top-1  50.0 %  rate 1.00e-03  (1 updates skipped)",
    "validation  top-1  25.0 %  loss  1.5000  (best: video_top1 25.0 %, step 50)",
    "  raw parameters  top-1  10.0 %  loss  2.0000",
    "step  80/100  epoch   8.00  loss  0.0250  top-1  50.0 %  rate 1.00e-03",
    "validation  top-1  30.0 %  loss  1.5000  (best so far, step 80)",
  ]


def test_the_best_step_is_the_earliest_of_the_best():
  history = [{"step": 1}]
  for step, top1, loss in ((2, 0.5, 2.0), (3, 0.7, 1.0), (4, 0.7, 1.0), (5, math.nan, math.nan)):
    history.append({"step": step, "validation/video_top1": top1, "validation/loss": loss})
  assert writers.best_step(history, "video_top1")["step"] == 3
  assert writers.best_step(history, "loss")["step"] == 3
  assert writers.best_step(history[:1], "loss") is None


@contextlib.contextmanager
def largest_file(size: int):
  """While the block runs no file can grow further, as on a disk without room."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["history.jsonl", "tensorboard"])
def test_without_room_the_file_is_named_and_a_resumed_run_goes_on(tmp_path, name):
  # The lines of history are shorter than the events.
  (tmp_path / "history.jsonl").write_text('{"step": 0}\n' * (60 if name == "history.jsonl" else 0))
  writer, step = create(tmp_path), 0
  with largest_file(1000), pytest.raises(results.WorkdirError) as caught:
    for step in range(1, 9):
      writer.write_scalars(step, scalars(step))
      writer.flush()
  assert str(caught.value).startswith(
    f"{tmp_path / name}: cannot be written (File too large). Make room, or set --workdir"
  )
  assert "\n" not in str(caught.value)
  # Whole lines alone.
  lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
  assert lines[-1]["step"] in (step - 1, step)
  with contextlib.suppress(errors.UserError):
    writer.close()
  resumed = create(tmp_path, first_step=step - 1)
  resumed.write_scalars(step, scalars(step))
  resumed.close()
  assert [line["step"] for line in writers.read_history(tmp_path)][-2:] == [step - 1, step]
  assert [event[0] for event in events(tmp_path)].count(step) == len(scalars(step))


def test_a_line_is_in_its_file_whole_or_not_at_all(tmp_path):
  path = tmp_path / "lines.txt"
  file = line_files.LineFile(path)
  file.write("one\n")
  assert path.read_text() == "one\n"
  with largest_file(6), pytest.raises(OSError) as caught:
    file.write("two two\n")
  assert caught.value.errno == errno.EFBIG
  file.write("two\n")
  assert path.read_text() == "one\ntwo\n"


class FakeWandb(types.ModuleType):
  """As much of the service's package as is used."""

  class Error(Exception):
    pass

  def __init__(self):
    super().__init__("wandb")
    self.started: list[dict] = []
    self.logged: list[tuple[int, dict]] = []
    self.finished = 0
    self.fails = self.refuses = False

  def init(self, **options):
    if self.refuses:
      raise self.Error("no API key")
    self.started.append(options)
    return types.SimpleNamespace(log=self.log, finish=self.finish)

  def log(self, values, step):
    if self.fails:
      raise ConnectionError("gone")
    self.logged.append((step, values))

  def finish(self):
    self.finished += 1


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
  module = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def test_weights_and_biases_gets_one_run_over_all_starts(tmp_path, wandb):
  for first_step in (0, 1):
    writer = create(tmp_path, first_step, wandb_project="videos")
    writer.write_scalars(first_step + 1, scalars(1))
    writer.close()
  one, two = wandb.started
  assert one["id"] == two["id"] and one["resume"] == "allow"
  assert (one["project"], one["dir"]) == ("videos", str(tmp_path))
  assert one["config"]["wandb_project"] == "videos"
  assert [step for step, _ in wandb.logged] == [1, 2] and wandb.finished == 2
  assert wandb.logged[0][1]["train/loss"] == 2.0
  create(tmp_path, 2, wandb_project="others").close()
  assert wandb.started[2]["id"] != one["id"]


def test_a_service_that_fails_costs_its_own_numbers_alone(tmp_path, wandb, logged):
  writer = create(tmp_path, wandb_project="videos")
  wandb.fails = True
  for step in (1, 2):
    writer.write_scalars(step, scalars(step))
  writer.close()
  assert [line["step"] for line in writers.read_history(tmp_path)] == [1, 2]
  assert logged.text.count("gets nothing from step 1 on: gone") == 1
  wandb.refuses = True
  with pytest.raises(
    wandb_writer.WandbError, match=r"wandb_project=videos: no API key.*WANDB_MODE"
  ):
    create(tmp_path, wandb_project="videos")


def test_without_its_package_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  create(tmp_path).close()
  with pytest.raises(errors.MissingExtraError, match=r"hybrid-video\[wandb\]"):
    create(tmp_path, wandb_project="videos")
