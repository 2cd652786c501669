"""Videos that are trained on without labels, beside a data set's own.

In: a data set's `Listing` and another folder of videos. Out: the listing of both.
"""

import dataclasses
import pathlib

from hybrid_video.datasets import folder as own_folder
from hybrid_video.datasets import listing, splits

_PREFIX = "more"


def joined(listed: listing.Listing, folder: pathlib.Path) -> listing.Listing:
  """A data set with the videos of another folder in all of its training lists, in the class `UNLABELLED`.

  What the other folder's own lists hold out stays out. Its videos are named `more/PATH`, so no group of theirs is
  one of the data set's.

  Raises:
    ListingError: the folder cannot be used, or holds a file that the data set lists too.
  """
  others = own_folder.read(folder, test_share=0.0, needs_classes=False)
  more = [
    dataclasses.replace(
      video,
      name=f"{_PREFIX}/{video.name}",
      label=own_folder.UNLABELLED,
      group=f"{_PREFIX}/{video.group}",
      codes=(splits.TRAIN,) * listed.num_splits,
    )
    for video in others.videos
    if video.codes[0] == splits.TRAIN
  ]
  names = [name for name in listed.class_names if name != own_folder.UNLABELLED]
  both = listing.make(
    listed.dataset,
    listed.folder,
    [*listed.videos, *more],
    class_names=[*names, own_folder.UNLABELLED],
  )
  return dataclasses.replace(both, unlisted=listed.unlisted, ignored=listed.ignored)
