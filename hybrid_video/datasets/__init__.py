"""Video files to stored records: data sets' lists, decoding, the builder, and the index of records.

In: a folder of a known data set. Out: its `listing.Listing` (`read`), then records. Only `builder`,
`records`, `draws` and `service` import TensorFlow, so decoding processes, which import this package,
start without it.
"""

from collections.abc import Callable
import dataclasses
import difflib
import os
import pathlib

from hybrid_video.datasets import folder as own_folder
from hybrid_video.datasets import hmdb51, kinetics, listing, ucf101

# What `--config.dataset` may name, and what reads its folder.
READERS: dict[str, Callable[..., listing.Listing]] = {
  "hmdb51": lambda folder: hmdb51.read(folder, official=True),
  "hmdb51_layout": lambda folder: hmdb51.read(folder, official=False),
  "made_actions": lambda folder: hmdb51.read(folder, official=False),
  "ucf101": lambda folder: ucf101.read(folder, official=True),
  "kinetics": kinetics.read,
  "folder": own_folder.read,
}


def check_name(dataset: str) -> None:
  """Refuses a data set that there is not.

  Raises:
    ListingError: with the nearest names.
  """
  if dataset not in READERS:
    close = difflib.get_close_matches(dataset, READERS, n=3, cutoff=0.5)
    proposal = f" Did you mean {' or '.join(close)}?" if close else ""
    raise listing.ListingError(
      f"There is no data set {dataset!r}.{proposal} Known: {', '.join(READERS)}."
    )


def read(dataset: str, folder: os.PathLike | str, *, test_share: float = 0.2) -> listing.Listing:
  """Reads the folder of a data set, whose archives are unpacked first.

  Args:
    dataset: one of `READERS`.
    folder: what `--config.data_dir` names.
    test_share: of the groups of a `folder`, how many are for the test; other data sets have
      official lists.

  Raises:
    ListingError: there is no such data set (the message has the nearest), or the folder cannot
      serve.
  """
  check_name(dataset)
  place = pathlib.Path(folder)
  if dataset != "made_actions":
    # Its libraries are no business of the processes that decode.
    from hybrid_video.datasets import archives

    place = archives.unpacked(place)
  options = {"test_share": test_share} if dataset == "folder" else {}
  return dataclasses.replace(READERS[dataset](place, **options), dataset=dataset)
