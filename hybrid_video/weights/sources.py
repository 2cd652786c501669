"""Where pretrained weights come from: known names, URLs, and the folder that keeps downloads.

In: a local path, a URL, or a known name (`SOURCES`). Out: the path of a complete file, with its
SHA-256 checked wherever one is published.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import os
import pathlib
import re
import urllib.parse
import urllib.request

from etils import epath

from hybrid_video import buckets, class_identity, downloads, errors, paths
from hybrid_video.weights import sharded_files

CACHE_VARIABLE = "HYBRID_VIDEO_CACHE"
DEFAULT_CACHE = "~/.cache/hybrid_video/weights"
# Lists of class names that come with the package, see class_names/README.md.
CLASS_LISTS = ("kinetics400", "ssv2")

_HUB_NAME = re.compile(r"-([0-9a-f]{8,64})\.[A-Za-z0-9]+$")


class SourceError(errors.UserError):
  """Weights that are unavailable; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """One published file of weights.

  Attributes:
    name: what `locate` knows it by.
    url: where it is downloaded from.
    sha256_prefix: how the file's SHA-256 begins, lower-case hex; None where none is published.
    model: the architecture, a name of `hybrid_video.models`.
    num_classes: width of the logits; None for a pretraining model, which has none.
    classes: the list of `CLASS_LISTS` that the logits follow; None where no list is published.
    frames: frames in a clip in training.
    licence: what is known of the terms; weights often state none of their own.
    origin: the page or file that says all this.
  """

  name: str
  url: str
  sha256_prefix: str | None
  model: str
  num_classes: int | None
  frames: int
  licence: str
  origin: str
  classes: str | None = None

  @property
  def file(self) -> str:
    """Its file name in the cache."""
    if self.sha256_prefix:
      return _url_name(self.url)
    # Hugging Face calls every model's weights the same.
    return self.name.replace("/", "-") + pathlib.PurePosixPath(_url_name(self.url)).suffix


@functools.cache
def class_names(name: str) -> tuple[str, ...]:
  """The names of a list of `CLASS_LISTS`, by class id."""
  folder = importlib.resources.files("hybrid_video.weights") / "class_names"
  with importlib.resources.as_file(folder / f"{name}.txt") as path:
    return class_identity.read_names(path)


_IG65M = "https://github.com/moabitcoin/ig65m-pytorch"
_HUGGING_FACE = "https://huggingface.co/MCG-NJU"


def _torchvision(model: str, prefix: str) -> Source:
  return Source(
    name=f"{model}/kinetics400",
    url=f"https://download.pytorch.org/models/{model}-{prefix}.pth",
    sha256_prefix=prefix,
    model=model,
    num_classes=400,
    classes="kinetics400",
    frames=16,
    licence="none stated for the weights; torchvision's code is BSD-3-Clause",
    origin="https://github.com/pytorch/vision, torchvision/models/video/resnet.py",
  )


def _ig65m(name: str, prefix: str, trained: str, frames: int, num_classes: int) -> Source:
  return Source(
    name=f"r2plus1d_34/{name}",
    url=f"{_IG65M}/releases/download/v1.0.0/r2plus1d_34_clip{frames}_{trained}-{prefix}.pth",
    sha256_prefix=prefix,
    model="r2plus1d_34",
    num_classes=num_classes,
    # VMZ's Kinetics weights follow the same list: MMAction2 tests others of that model zoo by it. The
    # names of IG-65M's own classes are not published.
    classes="kinetics400" if trained == "ft_kinetics_from_ig65m" else None,
    frames=frames,
    licence="not known for the weights; the code that publishes them is MIT",
    origin=_IG65M,
  )


def _videomae(size: str, trained: str, repository: str, num_classes: int | None) -> Source:
  return Source(
    name=f"videomae_{size}/{trained}",
    url=f"{_HUGGING_FACE}/{repository}/resolve/main/model.safetensors",
    sha256_prefix=None,
    model=f"videomae_{size}",
    num_classes=num_classes,
    classes=trained if trained in CLASS_LISTS else None,
    frames=16,
    licence="CC-BY-NC 4.0",
    origin=f"{_HUGGING_FACE}/{repository}",
  )


SOURCES: dict[str, Source] = {
  source.name: source
  for source in (
    _torchvision("r2plus1d_18", "91a641e6"),
    _torchvision("r3d_18", "b3b3357e"),
    _torchvision("mc3_18", "a90a0ba3"),
    _ig65m("ig65m_clip8", "9bae36ae", "ig65m_from_scratch", 8, 487),
    _ig65m("ig65m_clip32", "449a7af9", "ig65m_from_scratch", 32, 359),
    _ig65m("kinetics_clip8", "0aa0550b", "ft_kinetics_from_ig65m", 8, 400),
    _ig65m("kinetics_clip32", "ade133f1", "ft_kinetics_from_ig65m", 32, 400),
    # VideoMAE's own files lie on Google Drive, which has no lasting direct URL; these are
    # the copies under its authors' name on Hugging Face, with Hugging Face's key names.
    _videomae("small", "kinetics400", "videomae-small-finetuned-kinetics", 400),
    _videomae("base", "kinetics400", "videomae-base-finetuned-kinetics", 400),
    _videomae("large", "kinetics400", "videomae-large-finetuned-kinetics", 400),
    _videomae("base", "ssv2", "videomae-base-finetuned-ssv2", 174),
    _videomae("base", "pretraining", "videomae-base", None),
    _videomae("large", "pretraining", "videomae-large", None),
  )
}


def describe() -> list[dict[str, str]]:
  """The known weights as rows of a table, column heading to text, in the order of `SOURCES`."""
  return [
    {
      "name": source.name,
      "model": source.model,
      "classes": "none" if source.num_classes is None else str(source.num_classes),
      "frames": str(source.frames),
      "SHA-256 begins": source.sha256_prefix or "not published",
      "licence": source.licence,
      "origin": source.origin,
    }
    for source in SOURCES.values()
  ]


def published(source: str) -> Source | None:
  """The known weights that a name or URL stands for, None for any other."""
  if source in SOURCES:
    return SOURCES[source]
  return next((known for known in SOURCES.values() if known.url == source), None)


def locate(
  source: str, *, cache_dir: pathlib.Path | None = None, progress: bool = True
) -> pathlib.Path:
  """A complete local file of weights, downloaded first if need be.

  Args:
    source: a known name, an http(s), gs or file URL, or a local path: of a file, or of a folder that
      Hugging Face's libraries saved a model in (`sharded_files.FILES`). A name of `SOURCES` comes before
      a file of that name; write `./name` for the file.
    cache_dir: folder for downloads; by default the environment's HYBRID_VIDEO_CACHE, else
      `~/.cache/hybrid_video/weights`.
    progress: whether to show a bar with bytes, rate and time left during a download.

  Returns:
    The file's path. A file in the cache is hashed at every call: that costs about a second for
    300 MB, and sees what a stamp of an earlier check cannot: a wrong file put there by hand, and
    damage since.

  Raises:
    SourceError: no such name or file, a scheme other than http, https, gs and file, a failed
      download, a full disk, or a wrong SHA-256. Where a download failed, the message names the file to put
      in place by hand.
  """
  if known := published(source):
    return _cached(_known(known, cache_dir), progress)
  if "://" in source:
    if source.startswith(paths.BUCKETS):
      return _cached(_in_bucket(source, cache_dir), progress)
    url = urllib.parse.urlsplit(source)
    if url.scheme == "file":
      return _local(_file_url_path(source))
    if url.scheme not in downloads.WEB_SCHEMES:
      raise SourceError(
        f"Weights cannot be downloaded from {source!r}: the scheme is {url.scheme!r}, and only http, "
        "https, gs and file are read. Download it by hand and give the file's path."
      )
    return _cached(_unknown(source, cache_dir), progress)
  path = paths.resolve(source, "The file of weights")
  if os.path.exists(path) or source.startswith(("/", "~", ".")) or path.suffix:
    return _local(path)
  proposal = errors.nearest(source, SOURCES, cutoff=0.4)
  raise SourceError(
    f"{source!r} is no known name, and no file {path.absolute()} exists.{proposal} Known names: "
    f"{', '.join(SOURCES)}."
  )


def path_of(source: str) -> epath.Path | None:
  """Where weights lie that are named by a path, local or in a bucket; None of a name or a web address."""
  if published(source) or ("://" in source and not source.startswith(paths.BUCKETS)):
    return None
  return paths.resolve(source, "--config.init_from")


def _cache_folder(cache_dir: pathlib.Path | None) -> pathlib.Path:
  folder = cache_dir or pathlib.Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)
  return paths.local(folder, f"${CACHE_VARIABLE}", "files of weights are mapped into memory")


def _known(source: Source, cache_dir: pathlib.Path | None) -> downloads.Download:
  return _download(source.url, _cache_folder(cache_dir) / source.file, source.sha256_prefix)


def _unknown(url: str, cache_dir: pathlib.Path | None) -> downloads.Download:
  name = _url_name(url)
  hub = _HUB_NAME.search(name)
  if not hub:
    # Without a hash in it a name may well stand at the end of two URLs.
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
  return _download(url, _cache_folder(cache_dir) / name, hub.group(1) if hub else None)


def _in_bucket(url: str, cache_dir: pathlib.Path | None) -> downloads.Download:
  """A copy of this version of an object: of the next version there will be another."""
  path = paths.resolve(url, "The file of weights")
  try:
    with buckets.opened(os.fspath(path)) as (_, _, generation):
      digest = hashlib.sha256(f"{url} {generation}".encode()).hexdigest()[:12]
  except OSError as error:
    raise SourceError(
      f"{url} cannot be read: {error.strerror}. Give a file that is there."
    ) from error
  return _download(os.fspath(path), _cache_folder(cache_dir) / f"{digest}-{_url_name(url)}", None)


def _download(url: str, path: pathlib.Path, sha256_prefix: str | None) -> downloads.Download:
  return downloads.Download(
    url=url,
    path=path,
    checksum=downloads.Checksum("sha256", sha256_prefix) if sha256_prefix else None,
    other_folder=f"name another folder in ${CACHE_VARIABLE}",
    alternative=", or give its path instead of the URL: a local file is taken as it is",
  )


def _url_name(url: str) -> str:
  """The last part of a URL's path, of characters that any file system takes."""
  name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
  return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[-128:] or "weights"


def _file_url_path(url: str) -> pathlib.Path:
  parts = urllib.parse.urlsplit(url)
  if parts.netloc not in ("", "localhost"):
    raise SourceError(
      f"{url!r} names the machine {parts.netloc!r}; a file URL reads this machine's files only and "
      "has three slashes: file:///folder/file."
    )
  return pathlib.Path(urllib.request.url2pathname(parts.path))


def _local(path: pathlib.Path) -> pathlib.Path:
  if os.path.isdir(path):
    weights = sharded_files.in_folder(path)
    if weights is None:
      raise SourceError(
        f"{path} is a folder and has none of {', '.join(sharded_files.FILES)}; give the file of "
        "weights in it."
      )
    return weights
  if not os.path.isfile(path):
    raise SourceError(
      f"There is no file {path.absolute()}. Give the path of a file of weights, its URL, or one of "
      f"the known names: {', '.join(SOURCES)}."
    )
  return path


def _cached(download: downloads.Download, progress: bool) -> pathlib.Path:
  try:
    return downloads.fetch(download, progress=progress)
  except downloads.DownloadError as error:
    raise SourceError(str(error)) from error
