"""How a process sets itself up, before anything is compiled.

In: the environment. Out: a folder of compiled programs that the next run reads, and an allocator
that keeps freed memory for the next step.
"""

from collections.abc import Callable, Iterator
import contextlib
import ctypes
import hashlib
import importlib.util
import logging
import os
import pathlib
import platform
import sys
import tempfile
from typing import Any
import zlib

import jax

from hybrid_video import errors, paths

log = logging.getLogger("hybrid_video")

# JAX compresses with it where it is installed, and reads nothing else then.
_zstandard: Any = (
  importlib.import_module("zstandard") if importlib.util.find_spec("zstandard") else None
)

# JAX's settings; each is an environment variable too, in capitals.
_ENABLED = "jax_enable_compilation_cache"
_FOLDER = "jax_compilation_cache_dir"
_MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"
_ASYNC = "jax_cpu_enable_async_dispatch"
# Marks when the entries were checked; those older than this file are whole.
_CHECKED = "checked"
_DAMAGE = (zlib.error, _zstandard.ZstdError) if _zstandard else (zlib.error,)

# Makes TensorFlow look for Keras 2, which is not installed, and is read again at the first use of `tf.keras`.
_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"

# malloc.h of glibc: the parameter, and the value that turns it off.
_M_TRIM_THRESHOLD = (-1, -1)
_M_MMAP_MAX = (-4, 0)


def _processor() -> str:
  """A name for this host's kind of processor; other instructions give another name.

  So does another compression, which JAX would warn of at every program.
  """
  lines = [platform.machine(), *(["zstandard"] if _zstandard else [])]
  try:
    info = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
  except OSError:
    lines.append(platform.processor())
  else:
    kinds = ("model name", "flags", "Features", "CPU part")
    lines += sorted({line for line in info if line.startswith(kinds)})
  digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
  return f"{platform.machine()}-{digest[:8]}"


def _decompress(data: bytes) -> bytes:
  return _zstandard.ZstdDecompressor().decompress(data) if _zstandard else zlib.decompress(data)


def _remove_damaged(folder: pathlib.Path) -> None:
  """Removes entries that a killed process or a full disk left half written.

  JAX would warn of such an entry in every run and never replace it. Each entry is read once, by the
  first run after the one that wrote it.
  """
  stamp = folder / _CHECKED
  since = stamp.stat().st_mtime_ns if stamp.exists() else 0
  stamp.touch()
  for entry in folder.glob("*-cache"):
    try:
      if entry.stat().st_mtime_ns >= since:
        _decompress(entry.read_bytes())
    except _DAMAGE:
      log.info("Removed a compiled program that was half written: %s", entry)
      entry.unlink(missing_ok=True)
    except FileNotFoundError:
      continue


def keep_compiled_programs() -> pathlib.Path | None:
  """Turns JAX's persistent compilation cache on: a program is compiled once, not once a run.

  Call it before anything is compiled. The folder is `hybrid_video/xla` in `$XDG_CACHE_HOME`,
  by default `~/.cache`, and in it one for each kind of processor: hosts of several kinds may share
  a home directory, and none loads a program compiled for another's instructions, even if JAX's own
  key does not tell the two apart. The folder may be deleted at any time; nothing limits its size.

  The environment takes precedence: JAX_COMPILATION_CACHE_DIR names another folder, local or on gs://
  (hosts of several kinds should not share it), and JAX_ENABLE_COMPILATION_CACHE=false turns the cache
  off. Anyone who can write to the folder decides what this program runs, so only its
  owner can.

  Returns:
    The folder, or None where the environment names one or turns the cache off, or where it cannot
    be written to, which is logged as a warning.

  Raises:
    PathError: the environment names no folder that can be used.
  """
  # Even a small program takes several times as long to compile as to read, and there are dozens.
  if _MIN_SECONDS.upper() not in os.environ:
    jax.config.update(_MIN_SECONDS, 0.0)
  if not getattr(jax.config, _ENABLED):
    return None
  if own := getattr(jax.config, _FOLDER):
    # JAX itself would make a folder called `~`, and warn at every program where it cannot write.
    folder = paths.resolve(own, f"${_FOLDER.upper()}")
    usable = paths.is_remote(folder) or _is_made(folder)
    jax.config.update(_FOLDER, os.fspath(folder) if usable else None)
    return None
  named = os.environ.get("XDG_CACHE_HOME", "")
  try:
    # The XDG base directory specification says to ignore a relative path.
    base = pathlib.Path(named) if os.path.isabs(named) else pathlib.Path.home() / ".cache"
  except RuntimeError as error:
    _warn_of_cache(error)
    return None
  folder = base / "hybrid_video" / "xla" / _processor()
  if not _is_made(folder, _remove_damaged):
    return None
  jax.config.update(_FOLDER, str(folder))
  return folder


def _is_made(folder: pathlib.Path, clean: Callable[[pathlib.Path], None] = lambda _: None) -> bool:
  """Whether a folder of compiled programs is there, made if need be, and can be written to."""
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    clean(folder)
  except OSError as error:
    _warn_of_cache(error)
    return False
  return True


def _warn_of_cache(error: Exception) -> None:
  log.warning(
    "Compiled programs cannot be cached, so every run compiles them again: %s. Name a writable "
    "folder with JAX_COMPILATION_CACHE_DIR, or set JAX_ENABLE_COMPILATION_CACHE=false.",
    error,
  )


def keep_freed_memory() -> bool:
  """Makes glibc keep freed memory for the next allocation, where XLA computes on the CPU.

  There a training step takes gigabytes and frees them; by default glibc maps and unmaps each large
  array again, and the page faults cost 15 to 25 % of a step. glibc keeps such arrays only in the
  main thread's arena, so programs run in the thread that calls them: JAX would hand them to another
  and gain nothing, since they take all cores. The process's peak stays the same, within
  fragmentation; between steps its memory no longer shrinks. See mallopt(3).

  Call it before JAX's first use. JAX_CPU_ENABLE_ASYNC_DISPATCH in the environment takes precedence.

  Returns:
    Whether it does; not without glibc or with another backend, where nothing is changed.
  """
  if not sys.platform.startswith("linux"):
    return False
  # The setting is read when the backend starts; other backends do not read it.
  if _ASYNC.upper() not in os.environ:
    jax.config.update(_ASYNC, False)
  if jax.default_backend() != "cpu":
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    # musl has none.
    return False
  # A refused setting gives 0.
  accepted = [mallopt(*setting) for setting in (_M_TRIM_THRESHOLD, _M_MMAP_MAX)]
  return all(accepted)


@contextlib.contextmanager
def _without_keras() -> Iterator[None]:
  """While TensorFlow is imported, keeps it from importing Keras 3, a third of the time; it does so at first use."""
  if _LEGACY_KERAS in os.environ:
    yield
    return
  os.environ[_LEGACY_KERAS] = "1"
  try:
    yield
  finally:
    del os.environ[_LEGACY_KERAS]


def load_pipeline(module: str, purpose: str) -> Any:
  """The input pipeline, with TensorFlow kept away from accelerators.

  Args:
    module: its name.
    purpose: what needs it, such as "--mode=train".

  Raises:
    UserError: TensorFlow is not installed; the message says how to.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  # TensorFlow only reads and decodes here; without oneDNN it starts without a page about it.
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  with _without_keras():
    tensorflow = errors.require("tensorflow", "train", purpose)
  tensorflow.config.set_visible_devices([], "GPU")
  return importlib.import_module(module)
