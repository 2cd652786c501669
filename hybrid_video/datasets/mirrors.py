"""The URLs of known data sets' archives, and downloading them.

In: a data set's name and a folder. Out: its official archives in that folder, for `archives` to
unpack.

The old host of HMDB51 no longer gives the files, so each archive has several URLs, its authors'
first, and the user may add more in a JSON file:

    {"hmdb51_org.rar": {"urls": ["https://..."], "sha256": "..."}}

Its URLs are tried before the built-in ones; its checksum (`sha256` or `md5`, optional) replaces the
built-in one. Archives that are in the folder already are not downloaded.

SHA-256 sums are those of torchvision's prototype data sets (`hmdb51.py` and `ucf101.py`), UCF101's
lists also in TensorFlow Datasets' `url_checksums/ucf101.txt`; HMDB51's files have the MD5 sums
517d6f1f19f215c45cdd4d25356be1fb (DeepMind's DMVR) and 15e67781e70dcfbdce2d7dbb9b3344b5
(torchvision).
"""

import dataclasses
import json
import logging
import pathlib
from typing import Any
import urllib.parse

from hybrid_video import downloads, errors
from hybrid_video.datasets import listing

_BROWN = "https://serre-lab.clps.brown.edu/wp-content/uploads/2013/10"
_BROWN_HUB = "https://huggingface.co/datasets/Serrelab/hmdb51/resolve/main"
_UCF = "https://www.crcv.ucf.edu"
_FORM = (
  '{"FILE": {"urls": ["https://..."], "sha256": "..."}}, with "md5" instead of "sha256" or neither'
)

log = logging.getLogger("hybrid_video")


class MirrorError(listing.ListingError):
  """Archives that cannot be downloaded; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Archive:
  """One published archive.

  Attributes:
    name: its file name.
    urls: of the file, in the order in which they are tried.
    checksum: of the whole file; None where none is known.
    bytes: its size; None where none is published.
  """

  name: str
  urls: tuple[str, ...]
  checksum: downloads.Checksum | None
  bytes: int | None = None


def _archive(name: str, sha256: str, urls: tuple[str, ...], size: int | None = None) -> Archive:
  return Archive(name, urls, downloads.Checksum("sha256", sha256), size)


ARCHIVES: dict[str, tuple[Archive, ...]] = {
  "hmdb51": (
    _archive(
      "hmdb51_org.rar",
      "9e714a0d8b76104d76e932764a7ca636f929fff66279cda3f2e326fa912a328e",
      (f"{_BROWN}/hmdb51_org.rar", f"{_BROWN_HUB}/hmdb51_org.rar"),
    ),
    _archive(
      "test_train_splits.rar",
      "229c94f845720d01eb3946d39f39292ea962d50a18136484aa47c1eba251d2b7",
      (f"{_BROWN}/test_train_splits.rar", f"{_BROWN_HUB}/test_train_splits.rar"),
    ),
  ),
  "ucf101": (
    _archive(
      "UCF101.rar",
      "ca8dfadb4c891cb11316f94d52b6b0ac2a11994e67a0cae227180cd160bd8e55",
      (
        f"{_UCF}/data/UCF101/UCF101.rar",
        f"{_UCF}/datasets/human-actions/ucf101/UCF101.rar",
        # Its https has had certificates that do not verify; the checksum replaces them.
        "http://crcv.ucf.edu/data/UCF101/UCF101.rar",
        "https://huggingface.co/datasets/fierytrees/UCF/resolve/main/UCF101.rar",
      ),
      6_932_971_618,
    ),
    _archive(
      "UCF101TrainTestSplits-RecognitionTask.zip",
      "5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27",
      (
        f"{_UCF}/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
        f"{_UCF}/wp-content/uploads/2019/03/UCF101TrainTestSplits-RecognitionTask.zip",
        "http://crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
      ),
      113_943,
    ),
  ),
}


def fetch(
  dataset: str,
  folder: pathlib.Path,
  mirrors_file: pathlib.Path | None = None,
  *,
  progress: bool = True,
) -> list[pathlib.Path]:
  """A data set's archives, downloaded where they are not in the folder yet.

  Args:
    dataset: one of `ARCHIVES`.
    folder: for the archives; made if it is not there. An archive that is in it is used as it is:
      unpacking checks every file in it.
    mirrors_file: the user's own URLs in the JSON form above.
    progress: whether to show a bar with bytes, rate and time left for each download.

  Returns:
    The archives' paths, in the order of `ARCHIVES`.

  Raises:
    MirrorError: no such data set, a mirrors file of another form, or archives that no URL gives;
      the message then has every URL with its reason, and what to do by hand. The other archives
      are downloaded all the same.
  """
  if dataset not in ARCHIVES:
    raise MirrorError(
      f"No archives of a data set {dataset!r} are known.{errors.nearest(dataset, ARCHIVES, count=1)} "
      f"Known: {', '.join(ARCHIVES)}. Put the videos of another one into {folder} yourself."
    )
  known = ARCHIVES[dataset]
  if mirrors_file is not None:
    known = _extended(known, mirrors_file)
  failures = [
    failure for archive in known if (failure := _fetch_one(archive, folder, progress)) is not None
  ]
  if failures:
    raise MirrorError("\n".join(failures))
  return [folder / archive.name for archive in known]


def _fetch_one(archive: Archive, folder: pathlib.Path, progress: bool) -> str | None:
  """Downloads one archive; if that fails, returns why at each URL and what to do."""
  path = folder / archive.name
  if path.is_file():
    if archive.bytes not in (None, path.stat().st_size):
      log.warning(
        "%s has %d bytes, and the published file has %d: it may be another version, or cut short.",
        path,
        path.stat().st_size,
        archive.bytes,
      )
    return None
  reasons = []
  for url in archive.urls:
    try:
      _download(archive, url, path, progress)
      return None
    except downloads.DownloadError as error:
      log.warning("%s cannot be downloaded from %s: %s", archive.name, url, error.reason)
      reasons.append(f"  {url}: {error.reason}")
  check = f" Its {archive.checksum}." if archive.checksum else ""
  return (
    f"{archive.name} cannot be downloaded from any of {len(archive.urls)} known URLs:\n"
    + "\n".join(reasons)
    + f"\nDownload it by hand, or copy it from a machine that has it, and put the file {archive.name} "
    f"into {folder}.{check} Other URLs can be given in a mirrors file: {_FORM}."
  )


def _download(archive: Archive, url: str, path: pathlib.Path, progress: bool) -> None:
  download = downloads.Download(
    url=url,
    path=path,
    checksum=archive.checksum,
    other_folder="choose a folder on another disk",
  )
  # The beginning may be another server's, of another version: then this one did nothing wrong.
  is_resumed = download.part.exists()
  try:
    downloads.fetch(download, progress=progress)
  except downloads.ChecksumError as error:
    if not is_resumed:
      raise
    log.warning("%s: %s; downloading it from the start.", url, error.reason)
    downloads.fetch(download, progress=progress)


def _extended(known: tuple[Archive, ...], file: pathlib.Path) -> tuple[Archive, ...]:
  """The archives with the URLs and checksums of a user's file."""
  try:
    given = json.loads(file.read_text(encoding="utf-8"))
  except OSError as error:
    raise MirrorError(
      f"{file} cannot be read: {error.strerror or error}. Give the path of a JSON file: {_FORM}."
    ) from error
  except ValueError as error:
    raise MirrorError(f"{file} is not JSON: {error}. Write it as {_FORM}.") from error
  if not isinstance(given, dict):
    raise MirrorError(f"{file}: found {_shown(given)}, expected {_FORM}.")
  # One file may serve several data sets.
  names = [archive.name for archives in ARCHIVES.values() for archive in archives]
  for name in given:
    if name not in names:
      raise MirrorError(
        f"{file}: {name!r} is no known archive.{errors.nearest(name, names, count=1)} Known: "
        f"{', '.join(names)}."
      )
  return tuple(
    _with_entry(archive, given[archive.name], file) if archive.name in given else archive
    for archive in known
  )


def _with_entry(archive: Archive, entry: Any, file: pathlib.Path) -> Archive:
  where = f"{file}, {archive.name}"
  if not isinstance(entry, dict) or {*entry} - {"urls", "sha256", "md5"}:
    raise MirrorError(f"{where}: found {_shown(entry)}, expected {_FORM}.")
  urls = entry.get("urls")
  if not isinstance(urls, list) or not urls or not all(isinstance(url, str) for url in urls):
    raise MirrorError(f"{where}: found the urls {_shown(urls)}, expected a list of URLs.")
  for url in urls:
    if not _is_address(url):
      raise MirrorError(
        f"{where}: found the URL {url!r}, expected http://..., https://... or gs://...; put a file of "
        "your own into the data folder."
      )
  sums = {key: entry[key] for key in ("sha256", "md5") if key in entry}
  if len(sums) > 1:
    raise MirrorError(f"{where}: found both sha256 and md5, expected one. Keep sha256.")
  checksum, size = archive.checksum, archive.bytes
  for algorithm, begins in sums.items():
    try:
      checksum = downloads.Checksum(algorithm, str(begins))
    except ValueError as error:
      raise MirrorError(f"{where}: {error} Fix it, or leave it out.") from error
    # Another checksum means another file.
    size = size if checksum == archive.checksum else None
  return Archive(archive.name, (*urls, *archive.urls), checksum, size)


def _is_address(url: str) -> bool:
  try:
    address = urllib.parse.urlsplit(url)
  except ValueError:
    return False
  return address.scheme in (*downloads.WEB_SCHEMES, "gs") and bool(address.netloc)


def _shown(value: Any) -> str:
  return json.dumps(value)[:80]
