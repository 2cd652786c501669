"""Flags, platform set-up, one call: python main.py --config=configs/demo.py --workdir=runs/demo."""

import logging
import os
import pathlib
import signal
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and results.")
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "evaluate", "export", "inspect"],
  "Train and evaluate; evaluate the last checkpoint; write it as a file PyTorch loads; or draw a page "
  "about the data.",
)


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; what a config refuses becomes one line instead of a stack trace."""
  try:
    rest = flags.FLAGS(argv)
    # A config file that failed to load tells so only when it is asked for something.
    _CONFIG.value.lock()
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    message = str(error.__cause__ or error).replace("\\n", " ").replace("\\'", "'").strip()
  else:
    return rest
  if message.startswith("''"):
    message = message[1:-1]
  if "Traceback" in message:
    message = message.splitlines()[-1]
  sys.exit(f"Cannot read the command line: {' '.join(message.split())}")


def main(argv: list[str]) -> None:
  """Runs the experiment that the flags name."""
  if len(argv) > 1:
    sys.exit(f"Not understood: {' '.join(argv[1:])}. Settings are --config.NAME=VALUE.")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  # TensorFlow only reads and decodes here; without oneDNN it starts without a page about it.
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  # orbax and TFDS tell every step they take at INFO.
  absl_logging.set_verbosity(absl_logging.WARNING)
  console = logging.StreamHandler(sys.stdout)
  console.setFormatter(logging.Formatter("%(message)s"))
  logger = logging.getLogger("hybrid_video")
  logger.addHandler(console)
  logger.setLevel(logging.INFO)
  logger.propagate = False

  # Imported here, so that processes that decode videos start without them.
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")
  from hybrid_video import platform_setup, train

  platform_setup.keep_compiled_programs()
  platform_setup.keep_freed_memory()
  try:
    train.run(_CONFIG.value, pathlib.Path(_WORKDIR.value), mode=_MODE.value)
  except (ValueError, OSError, train.TrainingError) as error:
    if os.environ.get("HYBRID_VIDEO_TRACEBACK"):
      raise
    sys.exit(f"Error: {error}")
  except KeyboardInterrupt:
    print("Stopped. The same command goes on from here.", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=_parse_flags)
