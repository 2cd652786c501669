"""The command line, as a user types it."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess:
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return subprocess.run(
    [sys.executable, "main.py", *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["--config=configs/demo.py", "--config.epoch=3"], 'Did you mean "epochs"'),
    (["--config=configs/demo.py", "--config.model.latent=3"], 'Did you mean "latents"'),
    (["--config=configs/demo.py", "--config.epochs=many"], "could not convert string to float"),
    (
      ["--config=configs/hmdb51.py:cnn8_cros1_self6", "--workdir=x"],
      "Did you mean cnn8_cross1_self6",
    ),
    (["--config=configs/nothing.py", "--workdir=x"], "configs/nothing.py"),
    (["--config=configs/demo.py", "--mode=eval"], "train|evaluate|export"),
    (["--config=configs/demo.py"], "--workdir"),
    (["--workdir=x"], "--config"),
    (["--config=configs/demo.py", "--workdir=x", "epochs=3"], "--config.NAME=VALUE"),
  ],
)
def test_a_mistake_on_the_command_line_is_one_clear_message(arguments, expected, tmp_path):
  done = run(*[a.replace("=x", f"={tmp_path / 'x'}") for a in arguments])
  assert done.returncode != 0
  assert expected in done.stderr + done.stdout
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "x").exists()


def test_data_that_is_not_there_is_one_clear_message(tmp_path):
  done = run(
    "--config=configs/hmdb51.py:baseline",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data_dir={tmp_path / 'none'}",
  )
  assert done.returncode == 1
  assert done.stderr.strip().splitlines()[-1].startswith("Error: ")
  assert str(tmp_path / "none") in done.stderr
  assert "Traceback" not in done.stderr
