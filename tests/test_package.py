"""The package: what it asks for, what it imports, what a wheel of it holds."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Distributions whose modules have another name.
DISTRIBUTIONS = {
  "absl": "absl-py",
  "PIL": "pillow",
  "cv2": "opencv-python-headless",
  "orbax": "orbax-checkpoint",
  "tensorflow": "tensorflow-cpu",
  "tensorflow_datasets": "tensorflow-datasets",
  "google_crc32c": "google-crc32c",
  "sklearn": "scikit-learn",
  # With what it brings: credentials and errors.
  "google": "google-cloud-storage",
}
ONLY_FOR_TRAINING = (
  "tensorflow",
  "tensorflow_datasets",
  "clu",
  "tensorboard",
  "matplotlib",
  "jinja2",
  "google_crc32c",
  "rarfile",
  "sklearn",
  "snowballstemmer",
)


def requirements(path: str) -> list[str]:
  """The lines of a requirements file, without comments."""
  lines = (
    re.sub(r"(^|\s)#.*", "", line).strip() for line in (ROOT / path).read_text().splitlines()
  )
  return [line for line in lines if line]


def name(requirement: str) -> str:
  return re.match(r"[\w-]+", requirement)[0]


def test_the_requirements_are_those_of_the_package():
  assert requirements("requirements.txt") == [*PROJECT["dependencies"], *EXTRAS["train"]]
  base, *more = requirements("requirements-dev.txt")
  assert base == "-r requirements.txt"
  train, beam, gcs, *tools = EXTRAS["dev"]
  assert [train, beam, gcs] == [f"{PROJECT['name']}[{name}]" for name in ("train", "beam", "gcs")]
  assert more == [*EXTRAS["beam"], *EXTRAS["gcs"], *tools]
  (jax,) = [line for line in PROJECT["dependencies"] if line.startswith("jax")]
  for extra in ("tpu", "cuda12", "cuda13"):
    assert EXTRAS[extra] == [jax.replace("jax", f"jax[{extra}]", 1)]


def imported(path: pathlib.Path) -> set[str]:
  """The top-level names of all modules that a file imports, wherever in it."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name.partition(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and not node.level:
      names.add(node.module.partition(".")[0])
  return names


FILES = [*(ROOT / "hybrid_video").rglob("*.py"), ROOT / "main.py", ROOT / "input_pipeline.py"]


def test_every_import_is_of_a_declared_dependency():
  declared = {name(line) for line in [*requirements("requirements.txt"), *EXTRAS["gcs"]]}
  for path in FILES:
    for module in imported(path) - {"hybrid_video", "__future__"} - sys.stdlib_module_names:
      assert DISTRIBUTIONS.get(module, module) in declared, (path, module)


def test_nothing_in_the_package_imports_a_file_at_the_root():
  at_the_root = {path.stem for path in ROOT.glob("*.py")} | {"configs", "tests", "benchmarks"}
  for path in (ROOT / "hybrid_video").rglob("*.py"):
    assert not imported(path) & at_the_root, path


def test_prediction_and_export_need_only_the_base():
  code = (
    "import importlib.abc, sys\n"
    f"blocked = {ONLY_FOR_TRAINING!r}\n"
    "class Finder(importlib.abc.MetaPathFinder):\n"
    "  def find_spec(self, name, path, target=None):\n"
    "    if name.partition('.')[0] in blocked:\n"
    "      raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
    "sys.meta_path.insert(0, Finder())\n"
    "import importlib.util\n"
    "original = importlib.util.find_spec\n"
    "importlib.util.find_spec = lambda name, *a: None if name in blocked else original(name, *a)\n"
    "import hybrid_video\n"
    "from hybrid_video import command, errors, experiment, export, loading, models, predict, weights\n"
    "hybrid_video.load\n"
    "try:\n"
    "  errors.require('tensorflow', 'train', '--mode=train')\n"
    "except errors.MissingExtraError as error:\n"
    "  print(error)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == (
    "--mode=train needs the package tensorflow, which is not installed: "
    "pip install 'hybrid-video[train]'.\n"
  )


@pytest.mark.slow
def test_a_wheel_holds_the_package_its_templates_configs_and_pipeline(tmp_path):
  subprocess.run(
    [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True
  )
  (wheel,) = tmp_path.glob("*.whl")
  held = set(zipfile.ZipFile(wheel).namelist())
  wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hybrid_video").rglob("*.py")}
  for folder in ("report/templates", "weights/class_names"):
    files = (ROOT / "hybrid_video" / folder).iterdir()
    wanted |= {path.relative_to(ROOT).as_posix() for path in files}
  wanted |= {f"hybrid_video/_configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
  wanted |= {"hybrid_video/py.typed", "hybrid_video_input_pipeline.py"}
  assert wanted <= held
  assert not {path for path in held if path.startswith(("tests/", "benchmarks/", "input_pipeline"))}
