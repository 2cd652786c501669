"""One writer a folder: a run holds its work directory, a build its records, until it ends in any way.

In: a folder, and what it is held for. Out: a block of code that no other process runs at the same time for
the same folder, on whatever host.

On file systems it is a lock of the kernel's (flock(2)) on a file in the folder. It goes with the process
that holds it, however that ends, so a file that is left behind locks nothing; NFS passes it on to other
hosts. A bucket knows no locks: there it is an object that is created if there is none and renewed every few
seconds. It counts until it was not renewed for `LEASE_SECONDS`, or its process is seen to have ended.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import time
from typing import Any
import uuid

from etils import epath

from hybrid_video import buckets, errors, paths

log = logging.getLogger("hybrid_video")

NAME = ".lock"
_WAIT_SECONDS, _BUCKET_WAIT_SECONDS = 0.25, 2.0
# What file systems answer that have no such locks, such as Lustre where it is mounted without them.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
# Open files that hold locks in this process; a forked process closes its copies, which would hold them too.
_open: set[int] = set()


class InUseError(errors.UserError):
  """A folder that another process holds; the message says which, since when and what to do."""


class FolderError(errors.UserError):
  """A work directory that cannot be written to."""


@dataclasses.dataclass(frozen=True)
class Holder:
  """A process that holds a folder.

  Attributes:
    pid, host: of the process; `pids` tells hosts and containers apart that number processes alike.
    since: when it began, local time of its host to the minute.
    purpose: what for.
  """

  pid: int
  host: str
  pids: str
  since: str
  purpose: str

  @classmethod
  def this(cls, purpose: str) -> "Holder":
    """The process that asks, from now on."""
    since = time.strftime("%Y-%m-%d %H:%M")
    return cls(os.getpid(), socket.gethostname(), _pids(), since, purpose)

  @classmethod
  def parse(cls, text: bytes | str) -> "Holder | None":
    """Whom a lock's file names; None where it names nobody yet."""
    try:
      values = json.loads(text)
      known = {field.name: values[field.name] for field in dataclasses.fields(cls)}
      return cls(**{**known, "pid": int(known["pid"])})
    except (ValueError, KeyError, TypeError):
      return None

  def has_ended(self) -> bool:
    """Whether it is known to have; of other hosts nothing is known."""
    if self.pids != _pids() or self.host != socket.gethostname():
      return False
    try:
      os.kill(self.pid, 0)
    except ProcessLookupError:
      return True
    except OSError:
      pass
    return False

  def __str__(self) -> str:
    return f"process {self.pid} on {self.host} since {self.since} ({self.purpose})"


def _pids() -> str:
  """Tells the boots of machines apart, and the containers that number processes for themselves."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return ""


@contextlib.contextmanager
def of_work_directory(workdir: epath.Path, mode: str) -> Iterator[None]:
  """Holds a work directory, which is made if need be, while the block runs.

  Args:
    workdir: from `paths.resolve`.
    mode: what for.

  Raises:
    InUseError: another process has it.
    FolderError: it cannot be made or written to.
  """
  with contextlib.ExitStack() as held:
    try:
      held.enter_context(hold(workdir, mode))
    except InUseError as error:
      raise InUseError(f"{error} Wait for it, stop it, or name another --workdir.") from error
    except OSError as error:
      raise FolderError(
        f"{errors.printable(workdir)}: the work directory cannot be written to "
        f"({error.strerror or error}). Make it writable, or name another --workdir."
      ) from error
    yield


@contextlib.contextmanager
def hold(folder: epath.Path, purpose: str, *, wait: bool = False) -> Iterator[None]:
  """Holds a folder, which is made if need be, while the block runs.

  Args:
    folder: on a local disk or in a bucket.
    purpose: for others' messages, a word or two.
    wait: whether to wait, with a line that says for whom, where another process has it.

  Raises:
    InUseError: another process has it, and `wait` is off.
    OSError: the folder cannot be made or written to.
  """
  in_bucket = os.fspath(folder).startswith(paths.BUCKETS)
  if paths.is_remote(folder) and not in_bucket:
    # What else `etils.epath` is taught has no locks that are known here.
    yield
    return
  attempt = _try_bucket if in_bucket else _try_local
  said = None
  with contextlib.ExitStack() as held:
    while (holder := attempt(folder, purpose, held)) is not None:
      who = f"{errors.printable(folder)} is in use by {holder}"
      if not wait:
        raise InUseError(f"{who}.")
      if said != str(holder):
        log.info("%s; waiting for it.", who)
        said = str(holder)
      time.sleep(_BUCKET_WAIT_SECONDS if in_bucket else _WAIT_SECONDS)
    yield


Other = Holder | str


def _try_local(folder: epath.Path, purpose: str, held: contextlib.ExitStack) -> Other | None:
  """Takes a lock of the kernel's, or gives who has it."""
  made = not os.path.isdir(folder)
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, NAME)
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      there = os.pread(file, 1 << 16, 0)
      os.close(file)
      if error.errno in _NO_LOCKS:
        log.warning("%s: this file system has no locks: start no second run there", folder)
        return None
      if not isinstance(error, BlockingIOError):
        raise
      return Holder.parse(there) or "another process"
    # The last holder may have removed it after it was opened here.
    if _is_still(file, path):
      break
    os.close(file)
  _open.add(file)
  held.callback(_release, file, path, folder if made else None)
  with contextlib.suppress(OSError):
    # On a full disk it stays empty, and locks all the same.
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(dataclasses.asdict(Holder.this(purpose))).encode(), 0)
  return None


def _is_still(file: int, path: str) -> bool:
  try:
    return os.path.samestat(os.fstat(file), os.stat(path))
  except FileNotFoundError:
    return False


def _release(file: int, path: str, made: epath.Path | None) -> None:
  if file not in _open:
    # In a process that was forked meanwhile.
    return
  with contextlib.suppress(OSError):
    os.unlink(path)
    if made is not None:
      # Of a run that was refused nothing stays.
      os.rmdir(made)
  _open.discard(file)
  os.close(file)


def _close_copies() -> None:
  for file in _open:
    os.close(file)
  _open.clear()


os.register_at_fork(after_in_child=_close_copies)


def _try_bucket(folder: epath.Path, purpose: str, held: contextlib.ExitStack) -> Other | None:
  """Takes an object in a bucket, or gives who has it."""
  holder = Holder.this(purpose)
  text = {**dataclasses.asdict(holder), "token": uuid.uuid4().hex}
  lease = buckets.Lease(f"{folder}/{NAME}", json.dumps(text).encode())

  def is_dead(text: Any) -> bool:
    other = Holder.parse(text)
    return other is not None and other.has_ended()

  there = lease.take(is_dead)
  if there is None:
    held.callback(lease.give_back)
    return None
  return Holder.parse(there) or "another process"
