"""The command line: flags, the process's set-up, one call of a mode.

In: flags, as `main.py` and the installed `hybrid-video` take them. Out: the exit code: 0 if all went
well, 1 for an error or for a video that could not be predicted, 130 after Ctrl-C.
"""

from collections.abc import Callable
import contextlib
import logging
import os
import pathlib
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import config_flags

from hybrid_video import __version__, errors, hosts, locks, paths, progress, settings, stopping

if TYPE_CHECKING:
  from hybrid_video.experiment import Experiment

MODES = ("train", "evaluate", "predict", "export", "inspect", "plan", "report")
# Modes that use the experiment of a checkpoint if no config is named.
_CONFIG_OPTIONAL = ("evaluate", "predict", "export", "report")
# An installed package holds the configs and the input pipeline under names that clash with nobody's; an
# editable installation uses the files themselves.
_PACKAGE = pathlib.Path(__file__).parent
_EDITABLE = not (_PACKAGE / "_configs").is_dir()
_CONFIGS = _PACKAGE.parent / "configs" if _EDITABLE else _PACKAGE / "_configs"
# What needs no accelerator is done by the first process alone.
_ONE_PROCESS = ("export", "inspect", "plan", "report")
# Modes that write several files into the work directory, which no other run may write to meanwhile.
_WRITING = ("train", "evaluate", "predict", "inspect", "report")
_ISSUES = "This is a bug; please report it with the lines above and the command."

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment: a file in configs/. evaluate, predict, export and report do without."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and results.")
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  list(MODES),
  "train: train and evaluate. evaluate: evaluate a checkpoint on a data set. predict: classes of "
  "videos. export: a checkpoint as model.safetensors. inspect: a page about the data. plan: memory, "
  "steps and hours of a training, before it starts. report: a page about a run or a study.",
)
_VIDEOS = flags.DEFINE_list("videos", [], "For predict: video files and folders, by commas.")
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "For evaluate, predict and export: a work directory, one of its checkpoints, or an exported "
  "model.safetensors. The default is --workdir.",
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", "", "For plan: TPUs that need not be here, such as v5e:2x2; by default this machine."
)
_CLASSES = flags.DEFINE_integer(
  "classes", None, "For plan: classes of the data set, where its lists are not here.", lower_bound=1
)
_TRAINING_VIDEOS = flags.DEFINE_integer(
  "training_videos", None, "For plan: videos to train on, as for --classes.", lower_bound=1
)
_MEASURE = flags.DEFINE_integer(
  "measure", 0, "For plan: steps to time on this machine, on random clips.", lower_bound=0
)
_ATTEMPTS = flags.DEFINE_integer(
  "attempts", 6, "For plan: changes to compile where the step does not fit.", lower_bound=0
)
_TIME_LIMIT = flags.DEFINE_float(
  "time_limit", 30.0, "For plan: minutes that one compilation may take.", lower_bound=0.05
)
# Flags of the mode plan alone.
_OF_PLAN = ("topology", "classes", "training_videos", "measure", "attempts", "time_limit")
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "On several hosts: HOST:PORT, where process 0 runs and a free port there. SLURM and Cloud TPU tell it.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "On several hosts: how many processes there are."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "On several hosts: this process's number, from 0."
)
_HOSTS_TIMEOUT = flags.DEFINE_float(
  "hosts_timeout",
  hosts.TIMEOUT_SECONDS,
  "On several hosts: seconds to wait until all are there.",
  lower_bound=1,
)


def _shipped_config(argument: str) -> str:
  """`--config=configs/demo.py` with the installed file, where the working directory has none."""
  name, equals, value = argument.partition("=")
  if name.lstrip("-") != "config" or not equals:
    return argument
  path, colon, options = value.partition(":")
  parts = pathlib.PurePath(path).parts
  installed = _CONFIGS.joinpath(
    *parts[parts.index("configs") + 1 :] if "configs" in parts else parts
  )
  if pathlib.Path(path).exists() or not installed.is_file():
    return argument
  return f"{name}={installed}{colon}{options}"


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; what a config refuses becomes one line instead of a stack trace."""
  try:
    rest = flags.FLAGS([argv[0], *map(_shipped_config, argv[1:])])
    # A config file that failed to load says so only when it is asked for something.
    if _CONFIG.value is not None:
      _CONFIG.value.lock()
    _check_flags(rest)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    message = str(error.__cause__ or error).replace("\\n", " ").replace("\\'", "'").strip()
  else:
    return rest
  unknown = re.fullmatch(r"""["']+([\w.]+)["']+""", message)
  if unknown:
    message = (
      f"there is no setting called {unknown[1]}. hybrid_video/experiment.py has them all, with their "
      "meanings."
    )
  if message.startswith("''"):
    message = message[1:-1]
  if "Traceback" in message:
    message = message.splitlines()[-1]
  message = f"Cannot read the command line: {' '.join(message.split())}"
  print(message, file=sys.stderr, flush=True)
  _refuse(argv, message)
  sys.exit(1)


def _refuse(argv: list[str], message: str) -> None:
  """Tells other processes of a command line that cannot be read: they wait for this one."""
  given = dict(
    re.findall(r"^--?(coordinator|num_processes|process_id)=(.*)$", "\n".join(argv), re.M)
  )
  with contextlib.suppress(hosts.HostError):
    place = hosts.find(
      given.get("coordinator"), given.get("num_processes"), given.get("process_id")
    )
    hosts.refuse(place, message)


def _check_flags(rest: list[str]) -> None:
  mode = _MODE.value
  if len(rest) > 1:
    raise flags.Error(f"Not understood: {' '.join(rest[1:])}. Settings are --config.NAME=VALUE.")
  if not _WORKDIR.value and mode != "plan":
    raise flags.Error("Flag --workdir must have a value.")
  if _CONFIG.value is None and mode not in _CONFIG_OPTIONAL:
    raise flags.Error(f"Flag --config must have a value with --mode={mode}.")
  if bool(_VIDEOS.value) != (mode == "predict"):
    raise flags.Error("--videos=FILE_OR_FOLDER belongs to --mode=predict, and that needs it.")
  given = [name for name in _OF_PLAN if flags.FLAGS[name].present]
  if given and mode != "plan":
    raise flags.Error(f"--{given[0]} belongs to --mode=plan.")
  if _CHECKPOINT.value and mode == "report":
    raise flags.Error("--mode=report is of what lies in --workdir; --checkpoint is not for it.")
  if _CHECKPOINT.value and mode not in _CONFIG_OPTIONAL:
    raise flags.Error(
      f"--checkpoint is for {', '.join(_CONFIG_OPTIONAL)}; --mode={mode} starts from weights with "
      "--config.init_from."
    )


class _Formatter(logging.Formatter):
  """Messages alone, as a terminal can show them, whatever names they hold."""

  def format(self, record: logging.LogRecord) -> str:
    return errors.printable_lines(super().format(record))


def _set_up_logging() -> None:
  # orbax and TFDS report every step they take at INFO.
  absl_logging.set_verbosity(absl_logging.WARNING)
  console = progress.LogHandler(sys.stdout)
  console.setFormatter(_Formatter("%(message)s"))
  logger = logging.getLogger("hybrid_video")
  logger.addHandler(console)
  logger.setLevel(logging.INFO)
  logger.propagate = False


def _run(pipeline_module: str, place: hosts.Place | None, stop: stopping.StopRequest) -> int:
  """Runs the mode that the flags name, on all processes; gives the exit code."""
  # Imported here, so that processes that decode videos start without them.
  from hybrid_video import experiment

  mode = _MODE.value
  try:
    study = None
    if _CONFIG.value is not None and mode == "train":
      from hybrid_video.study import configured

      study = configured.study_of(_CONFIG.value)
    chosen = None if _CONFIG.value is None else experiment.from_config(_CONFIG.value, _model_of)
    workdir = None if mode == "plan" else paths.resolve(_WORKDIR.value, "--workdir")
  except errors.UserError as error:
    hosts.refuse(place, str(error))
    raise
  if workdir is None:
    return _plan(_required(chosen))
  if study is not None:
    from hybrid_video.study import running

    # JAX's devices stay untouched in this process, for those that train.
    return running.train(study, workdir, pipeline_module, stop, several=place is not None)
  with hosts.joined(place, _agreement(workdir, chosen), _HOSTS_TIMEOUT.value):
    is_writer = mode in _WRITING and (place is None or place.process == 0)
    with locks.of_work_directory(workdir, mode) if is_writer else contextlib.nullcontext():
      return _run_mode(pipeline_module, workdir, mode, chosen, stop)


def _model_of(source: str) -> dict[str, Any]:
  """The model of what a run starts from; few configs ask, and reading it takes half the package."""
  from hybrid_video import origins

  return origins.model_of(source, _WORKDIR.value if _MODE.value == "train" else None)


def _agreement(workdir: epath.Path, chosen: "Experiment | None") -> dict[str, Any]:
  """What has to be the same in all processes, by the names of flags."""
  agreement = {
    "version": __version__,
    "--mode": _MODE.value,
    "--workdir": str(workdir),
    "--checkpoint": _CHECKPOINT.value,
    "--videos": ",".join(_VIDEOS.value),
  }
  if chosen is None:
    return {**agreement, "--config": None}
  return agreement | settings.flat(chosen.to_json(), "--config.")


def _run_mode(
  pipeline_module: str,
  workdir: epath.Path,
  mode: str,
  chosen: "Experiment | None",
  stop: stopping.StopRequest,
) -> int:
  from hybrid_video import platform_setup

  platform_setup.keep_compiled_programs()
  platform_setup.keep_freed_memory()
  if mode == "predict":
    from hybrid_video import predict

    outcome = predict.run(workdir, _VIDEOS.value, checkpoint=_CHECKPOINT.value)
    return 1 if outcome.broken else 0
  if mode == "export":
    from hybrid_video import export

    export.run(workdir, checkpoint=_CHECKPOINT.value)
    return 0
  pipeline = platform_setup.load_pipeline(pipeline_module, f"--mode={_MODE.value}")
  if mode == "evaluate":
    from hybrid_video import evaluate

    evaluate.run(chosen, workdir, pipeline, checkpoint=_CHECKPOINT.value)
  elif mode == "report":
    from hybrid_video import reporting

    reporting.run(workdir, pipeline)
  elif mode == "inspect":
    from hybrid_video import inspection

    inspection.run(_required(chosen), workdir, pipeline)
  else:
    from hybrid_video import train

    train.run(_required(chosen), workdir, pipeline, stop)
  return 0


def _plan(chosen: "Experiment") -> int:
  """Plans; JAX's devices stay untouched in this process, for the one that compiles."""
  from hybrid_video import plan

  options = plan.Options(
    topology=_TOPOLOGY.value,
    classes=_CLASSES.value,
    training_videos=_TRAINING_VIDEOS.value,
    measured_steps=_MEASURE.value,
    attempts=_ATTEMPTS.value,
    limit_minutes=_TIME_LIMIT.value,
  )
  named = _WORKDIR.value
  plan.run(chosen, paths.resolve(named, "--workdir") if named else None, options)
  return 0


def _required(experiment: "Experiment | None") -> "Experiment":
  # `_check_flags` has seen to it.
  assert experiment is not None
  return experiment


def _place() -> hosts.Place | None:
  """Where this process stands among those of the run; the first one's line is what people read."""
  place = hosts.find(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if place is None:
    return None
  if _MODE.value in _ONE_PROCESS:
    if place.process:
      print(f"--mode={_MODE.value} is done by process 0 alone.")
      sys.exit(0)
    # JAX does not start on one host of a TPU slice without the others.
    import jax

    jax.config.update("jax_platforms", "cpu")
    return None
  if place.process:
    logger = logging.getLogger("hybrid_video")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
      handler.setFormatter(_Formatter(f"process {place.process}: %(message)s"))
  return place


def _exit(message: str, code: int, several: bool) -> NoReturn:
  """Ends the process with a line; one of several without waiting for what only all can end."""
  print(message, file=sys.stderr, flush=True)
  if several:
    sys.stdout.flush()
    os._exit(code)
  stopping.exit_soon(code)


def _main(pipeline_module: str) -> Callable[[list[str]], None]:
  def main(argv: list[str]) -> None:
    del argv  # All of it is flags.
    _set_up_logging()
    several = False
    try:
      with stopping.StopRequest(hosts.fail) as stop:
        place = _place()
        several = place is not None
        code = _run(pipeline_module, place, stop)
    except stopping.Stopped as stopped:
      _exit(str(stopped), stopped.code, several and stopped.step is None)
    except KeyboardInterrupt:
      line = "Stopped at once; the same command goes on from what is saved."
      _exit(line, stopping.INTERRUPTED, several)
    except Exception as error:
      shown = isinstance(error, errors.UserError) and not os.environ.get("HYBRID_VIDEO_TRACEBACK")
      if shown:
        _exit(f"Error: {errors.printable_lines(str(error))}", 1, several)
      if not isinstance(error, errors.UserError):
        error.add_note(_ISSUES)
      if several:
        _exit("".join(traceback.format_exception(error)), 1, several)
      raise
    sys.exit(code)

  return main


def start(pipeline_module: str) -> None:
  """Runs the command line.

  Args:
    pipeline_module: name of the module of input pipelines, imported by the modes that need one.
  """
  app.run(_main(pipeline_module), flags_parser=parse_flags)


def installed() -> None:
  """The entry point of the installed command `hybrid-video`."""
  start("input_pipeline" if _EDITABLE else "hybrid_video_input_pipeline")
