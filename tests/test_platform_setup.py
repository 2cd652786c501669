"""The persistent cache over processes, and the allocator."""

import json
import os
import pathlib
import platform
import stat
import subprocess
import sys
import zlib

import jax
import pytest

from hybrid_video import paths, platform_setup

ROOT = pathlib.Path(__file__).parent.parent
_SETTINGS = (
  "jax_compilation_cache_dir",
  "jax_enable_compilation_cache",
  "jax_persistent_cache_min_compile_time_secs",
  "jax_cpu_enable_async_dispatch",
)

# A process that trains and evaluates a narrow model; it prints what it compiled, and how many pages
# of memory a program took that needs 256 MiB each time, at least.
_PROCESS = """
import functools, json, resource
from hybrid_video import compilation, models, optimizers, platform_setup, sharding, state, steps
from hybrid_video.tasks import classification
import jax, numpy as np

def page_faults(call):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  jax.block_until_ready(call())
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

folder = platform_setup.keep_compiled_programs()
keeps_memory = platform_setup.keep_freed_memory()
largest = jax.jit(lambda x: jax.lax.optimization_barrier(x + x[:, None]).max(0))
x = np.ones(8192, np.float32)
faults = min(page_faults(lambda: largest(x)) for _ in range(6))
with compilation.counted() as compiled:
  build = functools.partial(models.create, "r2plus1d_18", num_classes=3, blocks=1, width=4)
  task = classification.make(build, (0.5,) * 3, (0.2,) * 3)
  optimizer = optimizers.make_optimizer(optimizers.OptimizerSettings())
  mesh = sharding.make_mesh(jax.devices())
  started = state.create(optimizer, mesh, *task.initial_variables())
  step = functools.partial(steps.train_step, task=task, optimizer=optimizer)
  clips = np.zeros((2, 4, 16, 16, 3), np.uint8)
  batch = {"clips": clips, "labels": np.array([0, 2]), "mirrored": np.array([True, False])}
  _, sums = jax.jit(step, donate_argnums=0)(started, batch, np.float32(0.1), np.uint32(0))
  print(json.dumps({
    "folder": str(folder), "keeps_memory": keeps_memory, "faults": faults, "loss": float(sums["loss"]),
    **compiled.as_numbers(),
  }))
"""


def _process(cache_home: pathlib.Path, **environment: str) -> dict:
  own = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", _PROCESS],
    cwd=ROOT,
    env={**own, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache_home), **environment},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_a_second_process_reads_what_the_first_compiled_and_fixes_what_is_damaged(tmp_path):
  first = _process(tmp_path)
  folder = pathlib.Path(first["folder"])
  assert folder.is_relative_to(tmp_path / "hybrid_video" / "xla")
  assert first["programs"] > first["from_cache"]
  (damaged,) = folder.glob("*train_step*-cache")
  whole = damaged.stat().st_size
  damaged.write_bytes(damaged.read_bytes()[: whole // 2])
  second = _process(tmp_path)
  assert second["loss"] == first["loss"]
  assert second["programs"] == second["from_cache"] + 1 == first["programs"]
  assert damaged.stat().st_size > whole // 2
  third = _process(tmp_path)
  assert third["from_cache"] == third["programs"] == first["programs"]
  if platform.libc_ver()[0] == "glibc":
    # The array between has 65,536 pages of 4 KiB.
    assert third["keeps_memory"] and third["faults"] < 6_000


@pytest.fixture
def settings(monkeypatch):
  """Restores JAX's cache settings after the test; nothing is compiled in between."""
  before = {name: jax.config.values[name] for name in _SETTINGS}
  for name in _SETTINGS:
    monkeypatch.delenv(name.upper(), raising=False)
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_the_folder_is_the_owners_alone_in_the_users_cache(tmp_path, monkeypatch, settings):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder = platform_setup.keep_compiled_programs()
  assert folder.parent == tmp_path / "cache" / "hybrid_video" / "xla"
  assert jax.config.jax_compilation_cache_dir == str(folder)
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  # A relative path counts as none.
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.setenv("XDG_CACHE_HOME", "cache")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  folder = platform_setup.keep_compiled_programs()
  assert folder.parent == tmp_path / "home" / ".cache" / "hybrid_video" / "xla"


def test_each_kind_of_processor_has_a_folder_of_its_own(tmp_path, monkeypatch, settings):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  folders = set()
  for flags in ("sse4_2 avx2", "sse4_2 avx2 avx512f", "sse4_2 avx2"):
    info = f"processor : 0\nmodel name : A\nflags : {flags}\ncpu MHz : {len(folders)}\n"
    monkeypatch.setattr(pathlib.Path, "read_text", lambda *_, info=info, **__: info)
    jax.config.update("jax_compilation_cache_dir", None)
    folders.add(platform_setup.keep_compiled_programs())
  assert len(folders) == 2


def test_the_users_own_folder_or_switching_the_cache_off_takes_precedence(
  tmp_path, monkeypatch, settings
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  elsewhere = tmp_path / "elsewhere"
  jax.config.update("jax_compilation_cache_dir", str(elsewhere))
  assert platform_setup.keep_compiled_programs() is None
  assert jax.config.jax_compilation_cache_dir == str(elsewhere)
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_enable_compilation_cache", False)
  assert platform_setup.keep_compiled_programs() is None
  assert jax.config.jax_compilation_cache_dir is None
  assert not (tmp_path / "cache").exists()


def test_a_home_folder_in_the_users_own_is_expanded_and_no_other_is_made(
  tmp_path, monkeypatch, settings, logged
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  jax.config.update("jax_compilation_cache_dir", "~/programs")
  assert platform_setup.keep_compiled_programs() is None
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "home" / "programs")
  (tmp_path / "file").write_text("mine")
  jax.config.update("jax_compilation_cache_dir", "file/programs")
  assert platform_setup.keep_compiled_programs() is None
  assert jax.config.jax_compilation_cache_dir is None
  assert "file/programs" in logged.text
  jax.config.update("jax_compilation_cache_dir", "s3://bucket/programs")
  with pytest.raises(paths.PathError, match=r"\$JAX_COMPILATION_CACHE_DIR is s3://"):
    platform_setup.keep_compiled_programs()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "home"]


def test_a_folder_that_cannot_be_written_is_only_a_warning(tmp_path, monkeypatch, settings, logged):
  (tmp_path / "file").write_text("mine")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert platform_setup.keep_compiled_programs() is None
  assert jax.config.jax_compilation_cache_dir is None
  assert str(tmp_path / "file") in logged.text
  assert "JAX_COMPILATION_CACHE_DIR" in logged.text


@pytest.mark.parametrize("kind", ["zlib", "zstandard"])
def test_half_written_programs_are_removed_and_whole_ones_read_only_once(
  tmp_path, monkeypatch, settings, logged, kind
):
  if kind == "zlib":
    monkeypatch.setattr(platform_setup, "_zstandard", None)
    compress = zlib.compress
  else:
    compress = pytest.importorskip("zstandard").ZstdCompressor().compress
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  folder = platform_setup.keep_compiled_programs()
  whole = compress(bytes(range(256)) * 40)
  for name, data in {"whole": whole, "cut": whole[:-3], "empty": b""}.items():
    (folder / f"jit_{name}-00-cache").write_bytes(data)
  jax.config.update("jax_compilation_cache_dir", None)
  platform_setup.keep_compiled_programs()
  left = {path.name.split("-")[0] for path in folder.glob("*-cache")}
  assert left == {"jit_whole"}
  assert "jit_cut" in logged.text
  monkeypatch.setattr(platform_setup, "_decompress", lambda data: pytest.fail("read again"))
  os.utime(folder / "jit_whole-00-cache", (1, 1))
  jax.config.update("jax_compilation_cache_dir", None)
  platform_setup.keep_compiled_programs()


def test_programs_of_another_compression_are_kept_apart(monkeypatch, settings, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  folders = set()
  for module in (None, object()):
    monkeypatch.setattr(platform_setup, "_zstandard", module)
    jax.config.update("jax_compilation_cache_dir", None)
    folders.add(platform_setup.keep_compiled_programs())
  assert len(folders) == 2


def test_with_an_accelerator_the_allocator_is_not_changed(monkeypatch, settings):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  monkeypatch.setattr(platform_setup.ctypes, "CDLL", lambda name: pytest.fail("touched"))
  assert platform_setup.keep_freed_memory() is False


def test_a_system_without_glibc_is_not_a_failure(monkeypatch, settings):
  monkeypatch.setattr(platform_setup.ctypes, "CDLL", lambda name: object())
  assert platform_setup.keep_freed_memory() is False


def test_keras_is_not_imported_with_tensorflow_and_found_when_it_is_used():
  program = (
    "import os, sys; from hybrid_video import platform_setup; "
    "platform_setup.load_pipeline('input_pipeline', 'a test'); "
    "assert 'keras' not in sys.modules and 'TF_USE_LEGACY_KERAS' not in os.environ; "
    "import tensorflow as tf; print(tf.keras.callbacks.Callback.__module__)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout.strip().startswith("keras.src")
