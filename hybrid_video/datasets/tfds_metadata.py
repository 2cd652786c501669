"""What TFDS reads beside record files: the features of a record, and the description of the set.

In: a listing, and the index of its records. Out: TFDS's own metadata files in the records' folder.
"""

from collections.abc import Iterator, Sequence
import contextlib
import io

from absl import logging as absl_logging
import numpy as np
import tensorflow_datasets as tfds

from hybrid_video.datasets import hmdb51, kinetics, listing, ucf101
from hybrid_video.datasets.records import Records

# The one stored TFDS split: every video once. ("all" is a reserved word there.)
SPLIT = "videos"
VERSION = "3.0.0"
_PUBLISHED = {"hmdb51": hmdb51, "ucf101": ucf101, "kinetics": kinetics}


def features(
  listed: listing.Listing, size: tuple[int | None, int | None] = (None, None)
) -> tfds.features.FeaturesDict:
  """The features of a record, in TFDS's form.

  Args:
    listed: the videos.
    size: (height, width) of all frames, None where there are several.
  """
  return tfds.features.FeaturesDict(
    {
      "name": tfds.features.Text(),
      # TFDS keeps the names one a line.
      "label": tfds.features.ClassLabel(names=[*map(_one_line, listed.class_names)]),
      "group": tfds.features.Text(doc="Videos of one group share people and scenery."),
      "tags": tfds.features.Text(doc="What else is known of the video, a JSON object."),
      "split_codes": tfds.features.Tensor(shape=(listed.num_splits,), dtype=np.int64),
      "fps": tfds.features.Scalar(dtype=np.float64),
      "video": tfds.features.Video(shape=(None, *size, 3), encoding_format="jpeg"),
    }
  )


def frame_size(records: Records) -> tuple[int | None, int | None]:
  """(height, width) of all frames, None where there are several."""
  heights, widths = {*records.height.tolist()}, {*records.width.tolist()}
  one_size = len(heights) == len(widths) == 1
  return (heights.pop(), widths.pop()) if one_size else (None, None)


def _one_line(name: str) -> str:
  return name.replace("\n", r"\n").replace("\r", r"\r")


def write(records: Records, described: tfds.features.FeaturesDict, lengths: Sequence[int]) -> None:
  """Writes what TFDS reads beside record files; with it, their folder counts as a data set.

  Args:
    records: the index.
    described: the features of a record.
    lengths: records of each file.
  """
  published = _PUBLISHED.get(records.dataset)
  template = tfds.core.ShardedFileTemplate(
    data_dir=records.folder, dataset_name=records.dataset, split=SPLIT, filetype_suffix="tfrecord"
  )
  with _quiet():
    tfds.folder_dataset.write_metadata(
      data_dir=records.folder,
      features=described,
      split_infos=[tfds.core.SplitInfo(SPLIT, list(lengths), records.record_bytes, template)],
      version=VERSION,
      filename_template=template,
      check_data=False,
      description=f"{records.dataset}: every listed video once, frames as JPEG.",
      homepage=published.HOMEPAGE if published else "",
      citation=published.CITATION if published else "",
      supervised_keys=("video", "label"),
      metadata=tfds.core.MetadataDict(
        missing=list(records.missing),
        broken=records.broken,
        unlisted=list(records.unlisted),
        ignored=[list(entry) for entry in records.ignored],
      ),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Holds back what TFDS prints for notebooks."""
  verbosity = absl_logging.get_verbosity()
  absl_logging.set_verbosity(absl_logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    absl_logging.set_verbosity(verbosity)
