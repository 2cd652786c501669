"""What features of pretraining find alike, as a picture: test videos, each beside its nearest training videos.

In: features of both lists and the stored frames. Out: a PNG file, a row for each test video.
"""

from collections.abc import Sequence
import pathlib

import numpy as np
from PIL import Image

from hybrid_video.analysis import probe
from hybrid_video.datasets.records import Records
from hybrid_video.inspection import stored_frames
from hybrid_video.report import figures

FILE = "nearest_neighbours.png"
WORDS = (
  "The middle frame of some test videos, and of the training videos that are nearest to each by the model's features "
  "(cosine, mean over the training list taken away). The model has seen no label."
)
NEAREST = 5
_HEIGHT = 96


def draw(
  path: pathlib.Path,
  records: Records,
  videos: Sequence[int],
  features: np.ndarray,
  trained: np.ndarray,
  trained_features: np.ndarray,
) -> None:
  """Draws videos and those nearest to them.

  Args:
    path: PNG to write.
    records: the stored videos.
    videos: ids of those that are compared.
    features: theirs, `[N, D]`.
    trained: ids of the training videos, `[V]`.
    trained_features: theirs, `[V, D]`.
  """
  nearest = probe.neighbours(trained_features, features, NEAREST)
  names, strips = records.class_names, []
  for video, rows in zip(videos, nearest, strict=True):
    ids = [video, *trained[rows].tolist()]
    classes = [names[records.labels[i]] for i in ids]
    alike = sum(name == classes[0] for name in classes[1:])
    strips.append(
      figures.Strip(
        f"{classes[0]}: {alike} of the {len(rows)} nearest are of its class",
        np.stack([_middle(records, i) for i in ids]),
        ["test", *classes[1:]],
      )
    )
  figures.sheet(path, strips)


def _middle(records: Records, video_id: int) -> np.ndarray:
  """The middle frame at one height, in a square, uint8 `[H, H, 3]`."""
  (frame,) = stored_frames(records, video_id, np.array([int(records.num_frames[video_id]) // 2]))
  side = min(frame.shape[:2])
  top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
  square = Image.fromarray(frame[top : top + side, left : left + side])
  return np.asarray(square.resize((_HEIGHT, _HEIGHT)))
