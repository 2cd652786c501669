"""What all tests share: four virtual CPU devices, real clips, a small made data set."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled without LLVM's optimizations, programs are ready in half the time. Tests that start processes of
# their own run them as users do.
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import contextlib
import logging
import pathlib
import subprocess

import numpy as np
import programs
import pytest
from web_server import serving

from hybrid_video.datasets import hmdb51, made_actions

REAL_CLIPS = pathlib.Path(__file__).parent / "data" / "hmdb51"
# Class and the codes of splits 1 to 3, as the official lists have them.
REAL_LISTS = {
  "Golf_Tips_-_Hit_The_Driver_300+_Yards!!!_golf_f_nm_np1_fr_med_0.avi": ("golf", (1, 1, 2)),
  "6arrowswithin30seconds_shoot_bow_f_nm_np1_fr_med_3.avi": ("shoot_bow", (1, 2, 1)),
  "RATRACE_wave_f_nm_np1_fr_goo_37.avi": ("wave", (1, 2, 1)),
}


def write_lists(folder: pathlib.Path, lists: dict[str, tuple[str, tuple[int, ...]]]) -> None:
  """Writes split files in HMDB51's form: clip name to (class, codes)."""
  folder.mkdir(parents=True, exist_ok=True)
  for split in (1, 2, 3):
    lines: dict[str, str] = {}
    for name, (action, codes) in lists.items():
      lines[action] = lines.get(action, "") + f"{name} {codes[split - 1]} \n"
    for action, text in lines.items():
      (folder / f"{action}_test_split{split}.txt").write_text(text)


@pytest.fixture(scope="session", autouse=True)
def programs_of_this_process(tmp_path_factory: pytest.TempPathFactory) -> None:
  """What one test has compiled, others find: many train the same small models."""
  # Processes that decode videos import this file, and are to start without.
  import jax

  folder = tmp_path_factory.mktemp("programs")
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def real_folder(tmp_path: pathlib.Path) -> pathlib.Path:
  """A folder in HMDB51's layout with three real clips, linked, in one flat folder."""
  folder = tmp_path / "hmdb51"
  write_lists(folder / "testTrainMulti_7030_splits", REAL_LISTS)
  (folder / "videos").mkdir()
  for name in REAL_LISTS:
    (folder / "videos" / name).symlink_to(REAL_CLIPS / name)
  return folder


@pytest.fixture(scope="session")
def made_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Made action videos of four films."""
  folder = tmp_path_factory.mktemp("made") / "videos"
  made_actions.make(folder, films=4, workers=1)
  return folder


def made_experiment(**chosen):
  """The made set stored small, with some settings of one's own."""
  from hybrid_video import configuration, experiment

  config = configuration.default_config()
  config.dataset, config.made_films = "made_actions", 4
  config.stored.height, config.stored.width, config.stored.jpeg_quality = 38, 50, 90
  config.update(chosen)
  return experiment.from_config(config)


@pytest.fixture(scope="session")
def made_records(made_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
  """The index of the made videos, stored small."""
  from hybrid_video.datasets import preparation

  records_dir = tmp_path_factory.mktemp("records")
  chosen = made_experiment(data_dir=str(made_folder), records_dir=str(records_dir))
  return preparation.load_records(chosen, records_dir)


def small_demo(videos: pathlib.Path, records: pathlib.Path):
  """The demo's own config, shrunk: fewer films, a narrower model, a few steps."""
  from configs import demo

  config = demo.get_config()
  config.made_films = 4
  config.data_dir, config.records_dir = str(videos), str(records)
  config.stored.height, config.stored.width = 38, 50
  config.clip.crop = 24
  config.clip.frames = 8
  config.model.cnn_blocks = 2
  config.model.cnn_width = 4
  config.model.latents = 4
  config.model.width = 16
  config.batch_size = config.eval_batch_size = 8
  config.epochs = 2.0
  config.log_every_steps = 2
  config.checkpoint_every_epochs = 1.0
  return config


def run_training(config, workdir: pathlib.Path):
  """What `train.run` returns for a config."""
  from hybrid_video import experiment, train
  import input_pipeline

  return train.run(experiment.from_config(config), workdir, input_pipeline)


@contextlib.contextmanager
def programs_kept_in(folder: pathlib.Path):
  """Within it, programs are kept and looked for in this folder alone, however fast they are compiled."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  own = {
    "jax_compilation_cache_dir": str(folder),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {name: getattr(jax.config, name) for name in own}

  def keep(settings):
    for name, value in settings.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()

  keep(own)
  try:
    yield
  finally:
    keep(before)


@pytest.fixture(scope="session")
def finished(made_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
  """A run from start to end: (config, work directory, what it returned); no test before it compiled for it."""
  workdir = tmp_path_factory.mktemp("run")
  config = small_demo(made_folder, workdir / "records")
  with programs_kept_in(tmp_path_factory.mktemp("programs_of_the_run")):
    return config, workdir, run_training(config, workdir)


def moving_square(frames: int, size: int = 64) -> list[np.ndarray]:
  """Frames of a white square that moves to the right, one pixel a frame."""
  pictures = np.zeros((frames, size, size, 3), np.uint8)
  for i, picture in enumerate(pictures):
    picture[20:36, i % (size - 16) : i % (size - 16) + 16] = 255
  return list(pictures)


def made_clip_name(action: str, number: int = 0, film: str = "film") -> str:
  """A clip name of HMDB51's form."""
  name = f"{film}_{action}_f_nm_np1_fr_goo_{number}.avi"
  hmdb51.parse_name(name, action)
  return name


@pytest.fixture
def start_program():
  """Starts Python programs, see `programs.starting`; none outlives the test."""
  with programs.starting() as start:
    yield start


@contextlib.contextmanager
def small_file_system(folder: pathlib.Path, size: str):
  """Mounts a file system of a size such as "64k", and gives a function that changes it."""
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("this account may not mount a file system")
  change = ["mount", "-o"]
  try:
    yield lambda size: subprocess.run([*change, f"remount,size={size}", str(folder)], check=True)
  finally:
    subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def without_permissions():
  """Permissions apply: root acts as another user."""
  if os.geteuid() != 0:
    yield
    return
  os.seteuid(65534)
  try:
    yield
  finally:
    os.seteuid(0)


@pytest.fixture
def server(monkeypatch):
  """A web server on loopback."""
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  with serving() as running:
    yield running


@pytest.fixture
def logged(caplog, monkeypatch):
  """What the project logs, from INFO on, each line once."""
  logger = logging.getLogger("hybrid_video")
  logger.addHandler(caplog.handler)
  monkeypatch.setattr(logger, "propagate", False)
  with caplog.at_level(logging.INFO, logger="hybrid_video"):
    yield caplog
  logger.removeHandler(caplog.handler)
