"""The process that trains one run of a study: memory that is clean, and a crash that costs no other run.

In: one line of JSON on standard input, `experiment`, `workdir`, `pipeline`, `cores` (none: all). Out: the run's work directory,
and an exit code. It stops, saving its step, by the signals that stop a training; it ends when its standard
input does, that is, when whoever started it is gone.
"""

import json
import logging
import os
import sys
import threading
from typing import Any

from hybrid_video import errors, locks, stopping

# Of sysexits.h: what failed now may succeed later.
IN_USE = 75


def _end_with_input() -> None:
  sys.stdin.read()
  # As after a kill, the last checkpoint stays.
  os._exit(1)


def _train(request: dict[str, Any], stop: stopping.StopRequest) -> None:
  if request["cores"]:
    # Read by XLA and TensorFlow when they start their threads.
    os.sched_setaffinity(0, request["cores"])
  # Imported once signals are seen to.
  from hybrid_video import paths, platform_setup, train
  from hybrid_video.experiment import Experiment

  experiment = Experiment.from_json(request["experiment"])
  workdir = paths.resolve(request["workdir"], "--workdir")
  with locks.of_work_directory(workdir, "train"):
    platform_setup.keep_compiled_programs()
    platform_setup.keep_freed_memory()
    pipeline = platform_setup.load_pipeline(request["pipeline"], "--mode=train")
    train.run(experiment, workdir, pipeline, stop)


def main() -> int:
  """Reads the request, trains; gives the exit code."""
  request = json.loads(sys.stdin.readline())
  threading.Thread(target=_end_with_input, daemon=True).start()
  logger = logging.getLogger("hybrid_video")
  logger.addHandler(logging.StreamHandler(sys.stdout))
  logger.setLevel(logging.INFO)
  logger.propagate = False
  try:
    with stopping.StopRequest() as stop:
      _train(request, stop)
  except stopping.Stopped as stopped:
    print(stopped, file=sys.stderr)
    return stopped.code
  except locks.InUseError as error:
    print(f"Error: {error}", file=sys.stderr)
    return IN_USE
  except errors.UserError as error:
    print(f"Error: {errors.printable_lines(str(error))}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  stopping.exit_soon(main())
