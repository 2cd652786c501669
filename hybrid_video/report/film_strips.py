"""Videos of a run's test list as film strips in the page, and where its model looks in them.

In: predictions, and the records and checkpoint behind them. Out: strips whose pictures are data: URIs,
or the reason why there are none.
"""

import base64
from collections.abc import Sequence
import dataclasses
import io
import logging
import pathlib
import time
from typing import Any

import numpy as np
from PIL import Image

from hybrid_video import attribution, errors, loading, paths, progress
from hybrid_video.analysis.predictions import Predictions
from hybrid_video.datasets import preparation
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.inspection import stored_frames
from hybrid_video.pipeline import Pipeline
from hybrid_video.report import figures, pages
from hybrid_video.sampling import plans

log = logging.getLogger("hybrid_video")

_VIDEOS, _FRAMES, _HIGHEST, _QUALITY = 6, 8, 128, 82
_LOOKED_AT = 4


@dataclasses.dataclass(frozen=True)
class Section:
  """Strips below a heading; `words` says what is seen, or why there is nothing to see."""

  id: str
  title: str
  words: str
  strips: Sequence[pages.FrameStrip] = ()


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
  indices = figures.even_frames(int(records.num_frames[video_id]), _FRAMES)
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


def _title(predictions: Predictions, scores: np.ndarray, row: int) -> str:
  label, best = int(predictions.labels[row]), int(scores[row].argmax())
  names = predictions.class_names
  if best == label:
    return f"{names[label]}, recognized with {100 * scores[row, best]:.0f} %"
  return (
    f"{names[label]}, taken for {names[best]} with {100 * scores[row, best]:.0f} % "
    f"({100 * scores[row, label]:.0f} % for {names[label]})"
  )


def _records(experiment: Experiment, workdir: pathlib.Path) -> Records:
  folder = paths.within(experiment.records_dir, workdir)
  if folder and not pathlib.Path(folder).exists() and not paths.is_remote(folder):
    raise errors.UserError(f"the records {errors.printable(folder)} are gone")
  return preparation.load_records(experiment, workdir)


def sections(
  workdir: pathlib.Path, predictions: Predictions, experiment: Experiment, pipeline: Pipeline
) -> list[Section]:
  """The hardest videos, those most confidently wrong, and where the model looks.

  What cannot be shown is a section that says why.

  Args:
    workdir: of the run.
    predictions: of the run.
    experiment: of the run.
    pipeline: makes the clips that the model looks at.
  """
  began = time.monotonic()
  try:
    records = _records(experiment, workdir)
  except errors.UserError as error:
    return [
      Section(
        "videos",
        "Videos and where the model looks",
        f"Not shown, since the stored videos cannot be used: {error}",
      )
    ]
  scores = predictions.scores()
  ids = {str(name): i for i, name in enumerate(records.names.tolist())}
  made, rows_of = [], hardest(predictions)
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
      video, done = str(predictions.names[row]), done + 1
      if video in ids:
        strips.append(_strip(records, ids[video], _title(predictions, scores, row), video))
      if done % 4 == 0 and done < total:
        left = (time.monotonic() - began) / done * (total - done)
        log.info("  film strip %d of %d, %s left", done, total, progress.duration(left))
    gone = len(rows) - len(strips)
    words += f" Of {gone} videos nothing is stored." if gone else ""
    made.append(Section(name, title, words if len(rows) else "There is none.", strips))
  return [*made, _looking(workdir, predictions, records, ids, experiment, pipeline)]


def _looking(
  workdir: pathlib.Path,
  predictions: Predictions,
  records: Records,
  ids: dict[str, int],
  experiment: Experiment,
  pipeline: Pipeline,
) -> Section:
  def none(why: str) -> Section:
    return Section("looking", "Where the model looks", f"Not shown: {why}")

  log.info("Where the model looks: the checkpoint is read")
  try:
    trained = loading.load(workdir)
    rows = [row for row in range(len(predictions.names)) if str(predictions.names[row]) in ids]
    few = np.array(rows)[figures.even_frames(len(rows), _LOOKED_AT)].tolist() if rows else []
    if not few:
      return none("none of the tested videos is stored.")
    return _maps(trained, predictions, few, records, ids, experiment, pipeline)
  except errors.UserError as error:
    return none(str(error))


def _maps(
  trained: Any,
  predictions: Predictions,
  rows: Sequence[int],
  records: Records,
  ids: dict[str, int],
  experiment: Experiment,
  pipeline: Pipeline,
) -> Section:
  videos = np.array([ids[str(predictions.names[row])] for row in rows])
  views = plans.evaluation_views(records, videos, experiment.evaluation)
  first = [int(np.flatnonzero(views.rows == row)[0]) for row in range(len(rows))]
  batches = pipeline.evaluation_batches(
    records, views.take(first), experiment.evaluation, batch_size=len(rows)
  )
  clips = np.concatenate([batch["clips"] for batch in batches])[: len(rows)]
  mean, std = (np.array(values, np.float32) for values in (experiment.mean, experiment.std))
  found = attribution.maps(trained.model, (clips / np.float32(255) - mean) / std)[0]
  scores, strips = predictions.scores(), []
  shown = figures.even_frames(clips.shape[1], _FRAMES)
  for i, row in enumerate(rows):
    data = attribution.film_strip(clips[i], np.asarray(found.values[i]), shown_frames=_FRAMES)
    width, height = Image.open(io.BytesIO(data)).size
    labels = [f"frame {index}" for index in shown]
    strips.append(
      pages.FrameStrip(
        data_uri(data, "png"),
        _title(predictions, scores, row),
        str(predictions.names[row]),
        labels,
        width,
        height,
      )
    )
  words = (
    f"{found.name}: {found.words}. Above the frames of the first view, below the same in grey, coloured "
    "from nothing to the clip's largest value."
  )
  return Section("looking", "Where the model looks", words, strips)
