"""The command line, as a user types it."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

from conftest import REAL_CLIPS
import programs
import pytest

from hybrid_video import locks

ROOT = pathlib.Path(__file__).parent.parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  """Compiled programs go where tests' files go, not to the user's."""
  monkeypatch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def run(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "main.py", *arguments],
    cwd=ROOT,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


# Runs main.py with each line of arguments in a copy of a process that has imported what all modes
# import, which takes most of the time of a command that is refused.
_COPIES = """
import json, os, runpy, sys, tempfile, warnings
import hybrid_video.command, hybrid_video.experiment

for line in sys.stdin:
  outputs = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
  with warnings.catch_warnings(action="ignore"):  # No thread runs yet.
    child = os.fork()
  if not child:
    for number, output in enumerate(outputs, 1):
      os.dup2(output.fileno(), number)
    sys.argv = ["main.py", *json.loads(line)]
    runpy.run_path("main.py", run_name="__main__")
    break
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  for output in outputs:
    output.seek(0)
  print(json.dumps([code, *(output.read() for output in outputs)]), flush=True)
"""


@pytest.fixture(scope="module")
def run_copy():
  """As `run`, for commands that are refused before they start to work."""
  with programs.starting() as start:
    process = start("-c", _COPIES, env=ENVIRONMENT, stdin=subprocess.PIPE)

    def run_copy(*arguments: str) -> subprocess.CompletedProcess:
      print(json.dumps(arguments), file=process.stdin, flush=True)
      return subprocess.CompletedProcess(arguments, *json.loads(process.stdout.readline()))

    yield run_copy


def test_the_installed_command_finds_the_configs_from_any_folder(tmp_path):
  code = "from hybrid_video import command; command.installed()"
  arguments = ["--config=configs/demo.py", "--config.epoch=3", f"--workdir={tmp_path}"]
  done = subprocess.run(
    [sys.executable, "-c", code, *arguments],
    cwd=tmp_path,
    env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert 'Did you mean "epochs"' in done.stderr


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["--config=configs/demo.py", "--config.epoch=3"], 'Did you mean "epochs"'),
    (["--config=configs/demo.py", "--config.model.latent=3"], 'Did you mean "latents"'),
    (["--config=configs/demo.py", "--config.model.tubelet=3"], "no setting called tubelet"),
    (["--config=configs/demo.py", "--config.epochs=many"], "could not convert string to float"),
    (
      ["--config=configs/hmdb51.py:cnn8_cros1_self6", "--workdir=x"],
      "Did you mean cnn8_cross1_self6",
    ),
    (["--config=configs/nothing.py", "--workdir=x"], "configs/nothing.py"),
    (["--config=configs/demo.py", "--mode=eval"], "train|evaluate|predict|export|inspect"),
    (["--config=configs/demo.py", "--workdir=x", "--videos=a.mp4"], "--mode=predict"),
    (["--mode=predict", "--workdir=x"], "--videos"),
    (["--mode=inspect", "--workdir=x"], "--config"),
    (["--config=configs/demo.py", "--workdir=x", "--checkpoint=y"], "--config.init_from"),
    (["--config=configs/videos.py:folder,recipe=studdy", "--workdir=x"], "Did you mean study"),
    (["--config=configs/demo.py"], "--workdir"),
    (["--workdir=x"], "--config"),
    (["--config=configs/demo.py", "--workdir=x", "epochs=3"], "--config.NAME=VALUE"),
  ],
)
def test_a_mistake_on_the_command_line_is_one_clear_message(
  arguments, expected, tmp_path, run_copy
):
  done = run_copy(*[a.replace("=x", f"={tmp_path / 'x'}") for a in arguments])
  assert done.returncode != 0
  assert expected in done.stderr + done.stdout
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["--workdir=s3://bucket/run"], "--workdir is s3://bucket/run"),
    (["--workdir=gs:/typo"], "--workdir is gs:/typo"),
    (["--workdir=runs/http://run"], "--workdir is runs/http://run"),
    (
      ["--workdir=WORKDIR", "--config.data_dir=gs://bucket/videos"],
      "--config.data_dir is gs://bucket",
    ),
    (
      ["--workdir=WORKDIR", "--config.data_dir=hdfs://host/videos"],
      "--config.data_dir is hdfs://host",
    ),
    (
      ["--workdir=WORKDIR", "--config.records_dir=s3://bucket/x"],
      "--config.records_dir is s3://bucket",
    ),
    (["--workdir=~no_such_user_here/run"], "home folder of that user"),
  ],
)
def test_a_place_that_cannot_be_is_refused_and_becomes_no_folder(
  arguments, expected, tmp_path, made_folder, run_copy
):
  rest = [argument.replace("WORKDIR", str(tmp_path / "run")) for argument in arguments]
  given = any("data_dir" in argument for argument in rest)
  rest += [] if given else [f"--config.data_dir={made_folder}"]
  before = {path.name for path in ROOT.iterdir()}
  done = run_copy("--config=configs/demo.py", "--config.made_films=4", *rest)
  assert_one_clear_error(done, expected)
  assert {path.name for path in ROOT.iterdir()} == before


def test_a_second_run_in_a_work_directory_is_told_at_once_who_has_it(tmp_path, run_copy):
  with locks.of_work_directory(tmp_path, "train"):
    done = run_copy("--config=configs/demo.py", f"--workdir={tmp_path}")
    assert_one_clear_error(done, f"{tmp_path} is in use by process {os.getpid()} on ", "(train)")
    done = run_copy("--mode=predict", f"--workdir={tmp_path}", f"--videos={REAL_CLIPS}")
    assert_one_clear_error(done, "name another --workdir")


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("--config.log_every_steps=0", "--config.log_every_steps is 0: expected a whole number of 1"),
    ("--config.seed=-1", "--config.seed is -1: expected a whole number of 0 or more"),
    ("--config.std=(0.2,0,0.2)", "--config.std[1] is 0: expected a finite number above 0"),
    ("--config.optimizer.learning_rate=nan", "--config.optimizer.learning_rate is nan"),
    ("--config.model.blocks=3", "--config.model.blocks cannot be set: The model 'hybrid' has no"),
  ],
)
def test_a_value_out_of_range_is_refused_before_a_file_is_touched(
  argument, expected, tmp_path, run_copy
):
  done = run_copy("--config=configs/demo.py", f"--workdir={tmp_path / 'run'}", argument)
  assert_one_clear_error(done, expected)
  assert not (tmp_path / "run").exists()


def assert_one_clear_error(done: subprocess.CompletedProcess, *expected: str) -> None:
  assert done.returncode == 1
  assert "Traceback" not in done.stderr
  message = done.stderr[done.stderr.rindex("Error: ") :]
  for text in expected:
    assert text in message


def test_data_that_is_not_there_is_one_clear_message(tmp_path):
  done = run(
    "--config=configs/hmdb51.py:baseline",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data_dir={tmp_path / 'none'}",
  )
  assert_one_clear_error(done, str(tmp_path / "none"), "--config.data_dir")


def test_an_unknown_data_set_is_one_clear_message(tmp_path, run_copy):
  done = run_copy(
    "--config=configs/demo.py", f"--workdir={tmp_path}", "--config.dataset=hmdb51_layot"
  )
  assert_one_clear_error(done, "Did you mean hmdb51_layout", "kinetics")


def test_a_work_directory_that_cannot_be_is_one_clear_message(tmp_path):
  (tmp_path / "file").write_text("mine")
  done = run("--config=configs/demo.py", f"--workdir={tmp_path / 'file' / 'run'}")
  assert_one_clear_error(done, str(tmp_path / "file"))


def test_broken_videos_are_one_clear_message(real_folder, tmp_path):
  path = next(path for path in (real_folder / "videos").iterdir() if "wave" in path.name)
  path.unlink()
  path.write_bytes((REAL_CLIPS / path.name).read_bytes()[:50_000])
  done = run(
    "--config=configs/hmdb51.py:baseline",
    f"--workdir={tmp_path / 'run'}",
    "--config.dataset=hmdb51_layout",
    f"--config.data_dir={real_folder}",
    f"--config.records_dir={tmp_path / 'records'}",
  )
  assert_one_clear_error(
    done, str(path), "cut short", "--config.allow_missing=True", "--config.missing_allowed"
  )


def on_made_set(made_folder: pathlib.Path, tmp_path: pathlib.Path) -> list[str]:
  return [
    "--config=configs/demo.py",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data_dir={made_folder}",
    f"--config.records_dir={tmp_path / 'records'}",
    "--config.made_films=4",
    "--config.clip.frames=8",
    "--config.model.cnn_blocks=2",
    "--config.model.cnn_width=4",
  ]


def test_the_data_are_inspected_and_damage_to_them_is_one_clear_message(made_folder, tmp_path):
  arguments = [*on_made_set(made_folder, tmp_path), "--mode=inspect"]
  done = run(*arguments)
  assert done.returncode == 0, done.stderr
  page = tmp_path / "run" / "inspection" / "index.html"
  assert page.is_file() and str(page) in done.stdout
  assert not (tmp_path / "run" / "checkpoints").exists()
  (shard,) = (tmp_path / "records").rglob("*.tfrecord-*-of-00001")
  data = bytearray(shard.read_bytes())
  data[1000::500] = bytes(len(data[1000::500]))
  shard.write_bytes(data)
  assert_one_clear_error(run(*arguments), str(shard), "damaged", "Delete this file")


def test_a_trained_model_is_evaluated_exported_and_used_by_its_work_directory_alone(
  finished, made_folder, tmp_path
):
  _, workdir, outcome = finished
  videos = sorted(made_folder.rglob("*.avi"))[:2]
  broken = tmp_path / "broken.avi"
  broken.write_bytes(videos[0].read_bytes()[:3000])
  named = ",".join(map(str, [*videos, broken]))
  done = run(
    "--mode=predict", f"--workdir={tmp_path}", f"--checkpoint={workdir}", f"--videos={named}"
  )
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert f"{videos[1]}: " in done.stdout and f"Not predicted: {broken}" in done.stdout
  assert (tmp_path / "predictions.csv").read_text().count("\n") == 4
  done = run("--mode=export", f"--workdir={tmp_path}", f"--checkpoint={workdir}")
  assert done.returncode == 0, done.stderr
  exported = tmp_path / "model.safetensors"
  assert str(exported) in done.stdout
  done = run(
    "--mode=predict", f"--workdir={tmp_path}", f"--checkpoint={exported}", f"--videos={videos[0]}"
  )
  assert done.returncode == 0, done.stderr
  done = run("--mode=evaluate", f"--workdir={tmp_path / 'again'}", f"--checkpoint={workdir}")
  assert done.returncode == 0, done.stderr
  again = json.loads((tmp_path / "again" / "results.json").read_text())
  assert again["params_digest"] == outcome["params_digest"]
  assert again["test"]["video_top1"] == outcome["test"]["video_top1"]


def test_a_work_directory_without_a_checkpoint_is_one_clear_message(tmp_path):
  for mode in ("predict", "evaluate", "export"):
    extra = [f"--videos={REAL_CLIPS}"] if mode == "predict" else []
    done = run(f"--mode={mode}", f"--workdir={tmp_path}", *extra)
    assert_one_clear_error(
      done, str(tmp_path / "checkpoints"), "holds no checkpoint", "Train first"
    )


def test_a_bug_keeps_its_traceback_and_says_where_to_report_it(tmp_path):
  code = (
    "import sys\n"
    "from hybrid_video import command, predict\n"
    "def fail(*_, **__): return 1 / 0\n"
    "predict.run = fail\n"
    "command.start('input_pipeline')\n"
  )
  arguments = ["--mode=predict", f"--workdir={tmp_path}", "--videos=a.avi"]
  done = subprocess.run(
    [sys.executable, "-c", code, *arguments],
    cwd=ROOT,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode != 0
  assert "ZeroDivisionError" in done.stderr and "Traceback" in done.stderr
  assert "please report it" in done.stderr


def test_ctrl_c_stops_without_a_stack_trace_and_what_was_compiled_is_kept(
  made_folder, tmp_path, tmp_path_factory, start_program
):
  process = start_program(
    "main.py",
    *on_made_set(made_folder, tmp_path),
    "--config.epochs=1000",
    "--config.log_every_steps=1",
    env=ENVIRONMENT,
    stderr=subprocess.PIPE,
  )
  assert any(re.match(r"step +2/", line) for line in process.stdout)
  os.killpg(process.pid, signal.SIGINT)
  _, messages = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGINT
  cached = tmp_path_factory.getbasetemp() / "cache" / "hybrid_video" / "xla"
  assert any("train_step" in path.name for path in cached.rglob("*-cache"))
  assert re.search(r"Stopped by SIGINT.*; the same command goes on from [^\n]*\n$", messages)
  assert "Traceback" not in messages
