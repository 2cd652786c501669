"""Masked pretraining goes on with the masks, clips and draws that it would have had, whatever stopped it."""

import re
import signal

from killed_runs import Runs, assert_equal
from programs import starting
import pytest

_SHARED = {
  "made_films": 4,
  "stored.height": 38,
  "stored.width": 50,
  "clip.crop": 32,
  "clip.frames": 4,
  "clip.repeats": 2,
  "model.width": 8,
  "model.decoder_width": 8,
  "model.decoder_depth": 1,
  "model.decoder_heads": 1,
  "batch_size": 8,
  "eval_batch_size": 32,
  "validation_share": 0.5,
  "optimizer.warmup_epochs": 0.0,
  "epochs": 3.0,
  "log_every_steps": 1,
  "checkpoint_every_steps": 2,
}
SETTINGS = {
  "videomae_small": {**_SHARED, "model.depth": 1, "model.heads": 1},
  "hybrid": {
    **_SHARED,
    "model.cnn_blocks": 1,
    "model.cnn_width": 2,
    "model.latents": 4,
    "model.self_heads": 1,
    "model.head_dim": 8,
  },
}
# Two clips of each of the 16 videos are an epoch.
EPOCH, STEPS = 4, 12


@pytest.mark.parametrize(
  "model", ["videomae_small", pytest.param("hybrid", marks=pytest.mark.slow)]
)
def test_pretraining_that_is_stopped_and_killed_within_epochs_ends_as_one_that_never_was(
  model, made_folder, tmp_path
):
  with starting() as start:
    config = f"configs/videomae.py:pretrain_demo,model={model}"
    runs = Runs(tmp_path, start, config, SETTINGS[model], made_folder)
    assert runs.run("straight")[0] == 0
    expected = runs.results("straight")
    code, _, _ = runs.run("stopped", lines=EPOCH - 2, sent=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    said = (tmp_path / "stopped.log").read_text().splitlines()[-1]
    saved = re.fullmatch(r"Stopped by SIGTERM at step (\d+), saved; .*", said)
    assert saved and EPOCH - 2 <= int(saved[1]) < STEPS
    assert runs.run("stopped", lines=STEPS - 3)[0] == -signal.SIGKILL
    assert runs.run("stopped")[0] == 0
    # A step's loss is of the patches that its masks hide: other masks would show in it.
    assert_equal(runs, "stopped", expected, STEPS)
