"""That the benchmarks run and say what they promise; how fast is no matter of tests."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


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
