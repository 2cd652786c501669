"""A long run takes no more of the machine at its end than it did after its start."""

import os
import pathlib
import threading

from conftest import run_training, small_demo
import pytest

from hybrid_video.report import writers


def _resident_bytes():
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux tells")
def test_two_thousand_steps_leave_memory_files_and_threads_where_they_were(
  made_folder, tmp_path, monkeypatch
):
  config = small_demo(made_folder, tmp_path / "records")
  config.clip.frames = 4
  config.model.update(cnn_blocks=1, cnn_width=2, width=8)
  config.epochs = 2000 * 8 / 16
  config.validation_share, config.validation.every_steps = 0.5, 250
  config.log_every_steps, config.checkpoint_every_steps = 50, 100
  config.ema_decay, config.micro_batches = 0.9, 2
  seen = {}
  original = writers.HistoryWriter.write_scalars

  def look(self, step, scalars):
    original(self, step, scalars)
    files = len(os.listdir("/proc/self/fd"))
    seen[step] = (_resident_bytes(), files, threading.active_count())

  monkeypatch.setattr(writers.HistoryWriter, "write_scalars", look)
  assert run_training(config, tmp_path / "run")["step"] == 2000
  # Reports after a checkpoint is on disk, and before the next is begun.
  early, late = (
    [seen[step] for step in steps] for steps in (range(550, 1000, 100), range(1550, 2000, 100))
  )
  least = [tuple(min(numbers) for numbers in zip(*part, strict=True)) for part in (early, late)]
  (memory, files, threads), (memory_later, files_later, threads_later) = least
  print(f"memory {memory / 1e6:.0f} to {memory_later / 1e6:.0f} MB, files {files} to {files_later}")
  assert memory_later < memory + 10e6
  assert (files_later, threads_later) == (files, threads)
