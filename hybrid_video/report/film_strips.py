"""Videos of a run's test list as film strips in the page: the hardest, and those most confidently wrong.

In: predictions, and the records behind them. Out: strips whose pictures are data: URIs, or the reason why
there are none.
"""

import base64
from collections.abc import Sequence
import dataclasses
import functools
import io
import logging
import pathlib
import time

import numpy as np
from PIL import Image

from hybrid_video import errors, paths, progress
from hybrid_video.analysis.predictions import Predictions
from hybrid_video.datasets import preparation
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.inspection import stored_frames
from hybrid_video.report import charts, figures, pages

log = logging.getLogger("hybrid_video")

FRAMES = 8
_VIDEOS, _HIGHEST, _QUALITY = 6, 128, 82


@dataclasses.dataclass(frozen=True)
class Section:
  """Strips and charts below a heading; `words` says what is seen, or why there is nothing to see."""

  id: str
  title: str
  words: str
  strips: Sequence[pages.FrameStrip] = ()
  drawn: Sequence[charts.Chart] = ()


@dataclasses.dataclass(frozen=True)
class Tested:
  """A run whose tested videos can be shown.

  Attributes:
    workdir: of the run.
    predictions: on its test list.
    experiment: every setting.
    records: the stored videos.
  """

  workdir: pathlib.Path
  predictions: Predictions
  experiment: Experiment
  records: Records

  @classmethod
  def open(
    cls, workdir: pathlib.Path, predictions: Predictions, experiment: Experiment
  ) -> "Tested":
    """Opens the stored videos.

    Raises:
      UserError: they are gone, or are others.
    """
    folder = paths.within(experiment.records_dir, workdir)
    if folder and not pathlib.Path(folder).exists() and not paths.is_remote(folder):
      raise errors.UserError(f"the records {errors.printable(folder)} are gone")
    return cls(workdir, predictions, experiment, preparation.load_records(experiment, workdir))

  @functools.cached_property
  def ids(self) -> dict[str, int]:
    """The stored videos' ids by their names."""
    return {str(name): i for i, name in enumerate(self.records.names.tolist())}

  @functools.cached_property
  def scores(self) -> np.ndarray:
    """Of each class, `[V, classes]`."""
    return self.predictions.scores()

  def title(self, row: int) -> str:
    """What a video is, and what it was taken for."""
    label, best = int(self.predictions.labels[row]), int(self.scores[row].argmax())
    names, scores = self.predictions.class_names, self.scores[row]
    if best == label:
      return f"{names[label]}, recognized with {100 * scores[best]:.0f} %"
    return (
      f"{names[label]}, taken for {names[best]} with {100 * scores[best]:.0f} % "
      f"({100 * scores[label]:.0f} % for {names[label]})"
    )


def hardest(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the hardest videos, and of those most confidently wrong that are not among them.

  Hardest is where the true class has least probability; most confidently wrong is where a wrong class
  has most.
  """
  scores, labels = predictions.scores(), predictions.labels
  of_true = scores[np.arange(len(labels)), labels]
  wrong = np.flatnonzero(scores.argmax(1) != labels)
  confident = wrong[np.argsort(-scores.max(1)[wrong], kind="stable")][:_VIDEOS]
  order = np.argsort(of_true, kind="stable")
  return order[~np.isin(order, confident)][:_VIDEOS], confident


def data_uri(data: bytes, kind: str) -> str:
  """A picture's bytes as an address that needs no file."""
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _jpeg(picture: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(picture).convert("RGB").save(buffer, "JPEG", quality=_QUALITY)
  return buffer.getvalue()


def _strip(records: Records, video_id: int, title: str, name: str) -> pages.FrameStrip:
  indices = figures.even_frames(int(records.num_frames[video_id]), FRAMES)
  frames = stored_frames(records, video_id, indices)
  if frames.shape[1] > _HIGHEST:
    size = (max(1, round(frames.shape[2] * _HIGHEST / frames.shape[1])), _HIGHEST)
    frames = np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])
  labels = [f"{i / float(records.fps[video_id]):.2f} s" for i in indices]
  picture = figures.Strip(title, frames, labels).picture()
  height, width = picture.shape[:2]
  return pages.FrameStrip(
    data_uri(_jpeg(picture[..., :3]), "jpeg"), title, name, labels, width, height
  )


def hard_videos(tested: Tested) -> list[Section]:
  """The hardest videos, and those most confidently wrong."""
  began = time.monotonic()
  made, rows_of = [], hardest(tested.predictions)
  texts = (
    (
      "hardest",
      "Hardest videos",
      "The true class has least probability here, but for those below.",
    ),
    ("confident", "Most confidently wrong", "A wrong class has most probability here."),
  )
  total = sum(len(rows) for rows in rows_of)
  done = 0
  for (name, title, words), rows in zip(texts, rows_of, strict=True):
    strips = []
    for row in rows.tolist():
      video, done = str(tested.predictions.names[row]), done + 1
      if video in tested.ids:
        strips.append(_strip(tested.records, tested.ids[video], tested.title(row), video))
      if done % 4 == 0 and done < total:
        left = (time.monotonic() - began) / done * (total - done)
        log.info("  film strip %d of %d, %s left", done, total, progress.duration(left))
    gone = len(rows) - len(strips)
    words += f" Of {gone} videos nothing is stored." if gone else ""
    made.append(Section(name, title, words if len(rows) else "There is none.", strips))
  return made
