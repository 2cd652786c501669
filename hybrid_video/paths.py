"""Paths as users write them: what is local, what is in a bucket, and what is neither.

In: a path of the command line or of a config. Out: the one file or folder that it names, or an error:
never another one that happens to have a similar name.
"""

import importlib.util
import os
import pathlib
import re

from etils import epath

from hybrid_video import errors

BUCKETS = "gs://"
# The letters that Google Cloud Storage allows in the name of a bucket.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
# `gs:/typo` as well as `s3://bucket`: as a local path each would be a new folder here.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/|.*://", re.DOTALL)
# etils takes these folders at the root of the local disk for buckets.
_TAKEN = ("gs", "s3", "az", "hf")
_COPY = "Copy it to a local disk (`gcloud storage cp -r`) and name that"


class PathError(errors.UserError):
  """A path that names no place that can be used; the message says what can be."""


def resolve(path: os.PathLike | str, setting: str) -> epath.Path:
  """The place that a path names: absolute, with `~` expanded.

  Args:
    path: on a local disk, or `gs://BUCKET/FOLDER`.
    setting: where it was named, for messages, such as "--workdir".

  Returns:
    A `pathlib.Path` for a local disk and what `etils.epath` has for gs://. Make no `pathlib.Path` of
    it, which would turn gs:// into a local folder.

  Raises:
    PathError: another kind of address, a user that does not exist, or gs:// without the packages
      that it needs.
  """
  text = os.fspath(path)
  if text.startswith(BUCKETS):
    return _in_bucket(text, setting)
  if _ADDRESS.match(text):
    raise PathError(
      f"{setting} is {errors.printable(text)}, which is neither a local path nor {BUCKETS}BUCKET/FOLDER: "
      "no other kind of address can be used here. A local folder of such a name needs another name."
    )
  try:
    local = pathlib.Path(text).expanduser().absolute()
  except RuntimeError as error:
    raise PathError(
      f"{setting} is {errors.printable(text)}: the home folder of that user is not known. Write the "
      "path in full."
    ) from error
  if local.parts[1:] and local.parts[1] in _TAKEN:
    raise PathError(
      f"{setting} is {errors.printable(text)}: /{local.parts[1]} at the root of the disk would be "
      f"taken for {local.parts[1]}://. Name another folder, or {BUCKETS}BUCKET/FOLDER for a bucket."
    )
  return local


def local(path: os.PathLike | str, setting: str, why: str) -> pathlib.Path:
  """The place that a path names, which has to be on a local disk; otherwise as `resolve`.

  Args:
    path: on a local disk.
    setting: where it was named, for messages.
    why: the reason that a bucket cannot be, a sentence without its full stop.

  Raises:
    PathError: it is in a bucket, too.
  """
  text = os.fspath(path)
  if is_remote(text) and text.startswith(BUCKETS):
    raise PathError(
      f"{setting} is {errors.printable(text)}, and has to be on a local disk: {why}. {_COPY}."
    )
  return resolve(path, setting)


def within(path: str, workdir: os.PathLike | str) -> str:
  """A path of a setting, in which "{workdir}" stands for the work directory."""
  return path.replace("{workdir}", os.fspath(workdir))


def is_remote(path: os.PathLike | str) -> bool:
  """Whether a path lies on a file system that Python itself does not read."""
  return "://" in os.fspath(path)


def _in_bucket(text: str, setting: str) -> epath.Path:
  bucket, _, rest = text.removeprefix(BUCKETS).partition("/")
  if not _BUCKET.fullmatch(bucket):
    raise PathError(
      f"{setting} is {errors.printable(text)}: {bucket!r} is no name of a bucket. Expected "
      f"{BUCKETS}BUCKET/FOLDER, the bucket in small letters, digits, `-`, `_` and `.`."
    )
  parts = [part for part in rest.split("/") if part]
  if not parts or {".", ".."} & {*parts}:
    raise PathError(
      f"{setting} is {errors.printable(text)}: expected {BUCKETS}BUCKET/FOLDER, with a folder in the "
      "bucket and no `.` or `..` in its path."
    )
  check_buckets_usable(f"{setting}={errors.printable(text)}")
  return epath.Path("/".join([f"{BUCKETS}{bucket}", *parts]))


def check_buckets_usable(purpose: str) -> None:
  """Checks that the packages for gs:// are there.

  Args:
    purpose: what needs them, the beginning of the message's sentence.

  Raises:
    MissingExtraError: one is not installed.
  """
  errors.require("google.cloud.storage", "gcs", purpose)
  # Importing TensorFlow takes seconds, and who only looks at a path does without.
  if importlib.util.find_spec("tensorflow") is None:
    errors.require("tensorflow", "train", purpose)
