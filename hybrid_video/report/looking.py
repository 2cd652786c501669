"""Where a run's model looks, as a page shows it: a map on frames, each latent's weights, weights over time.

In: a run's tested videos and its checkpoint. Out: sections of film strips and charts, or the reason why
there are none.
"""

from collections.abc import Sequence
import io
import logging

import numpy as np
from PIL import Image

from hybrid_video import attribution, errors, loading
from hybrid_video.attribution import drawing
from hybrid_video.models.relevance import SPACE_TIME, Map
from hybrid_video.pipeline import Pipeline
from hybrid_video.report import charts, figures, pages
from hybrid_video.report.film_strips import FRAMES, Section, Tested, data_uri
from hybrid_video.sampling import plans

log = logging.getLogger("hybrid_video")

_OF_LATENTS = ("heads", "latents", *SPACE_TIME)
_OVER_TIME = ("heads", "CLS token and time")


def rows(tested: Tested, most: int) -> list[int]:
  """Rows of the predictions to look at, evenly from those whose videos are stored."""
  stored = [row for row, name in enumerate(tested.predictions.names) if str(name) in tested.ids]
  return np.array(stored)[figures.even_frames(len(stored), most)].tolist() if stored else []


def sections(
  tested: Tested,
  rows: Sequence[int],
  pipeline: Pipeline,
  *,
  latents: int = 8,
  title: str = "Where the model looks",
  name: str = "looking",
) -> list[Section]:
  """The drawn map of some videos, then what else the model has: weights of latents, or over time.

  What cannot be shown is a section that says why.

  Args:
    tested: the run.
    rows: of its predictions.
    pipeline: makes the clips that the model looks at.
    latents: at most so many of each cross attention are shown, on the first video.
    title: of the first section.
    name: letters that no other section of the page begins with.
  """
  if not rows:
    return [Section(name, title, "Not shown: none of the tested videos is stored.")]
  log.info("%s: the checkpoint of %s is read", title, tested.workdir.name)
  try:
    trained = loading.load(tested.workdir)
    clips = _clips(tested, rows, pipeline)
    found = attribution.maps(trained.model, trained.preprocess.normalize(clips))
  except errors.UserError as error:
    return [Section(name, title, f"Not shown: {error}")]
  made = [_drawn(tested, rows, clips, found[0], name, title)]
  for i, one in enumerate(found):
    if one.axes == _OF_LATENTS:
      video = str(tested.predictions.names[rows[0]])
      made.append(_latents(one, clips[0], video, latents, f"{name}{i}"))
    elif one.axes == _OVER_TIME:
      made.append(_over_time(one, [tested.title(row) for row in rows], f"{name}{i}"))
  return made


def _clips(tested: Tested, rows: Sequence[int], pipeline: Pipeline) -> np.ndarray:
  """The first view of each video, uint8 `[B, T, H, W, 3]`."""
  videos = np.array([tested.ids[str(tested.predictions.names[row])] for row in rows])
  evaluation = tested.experiment.evaluation
  views = plans.evaluation_views(tested.records, videos, evaluation)
  first = [int(np.flatnonzero(views.rows == row)[0]) for row in range(len(rows))]
  batches = pipeline.evaluation_batches(
    tested.records, views.take(first), evaluation, batch_size=len(rows)
  )
  return np.concatenate([batch["clips"] for batch in batches])[: len(rows)]


def _picture(png: bytes, title: str, detail: str, frames: int) -> pages.FrameStrip:
  width, height = Image.open(io.BytesIO(png)).size
  labels = [f"frame {index}" for index in figures.even_frames(frames, FRAMES)]
  return pages.FrameStrip(data_uri(png, "png"), title, detail, labels, width, height)


def _drawn(
  tested: Tested, rows: Sequence[int], clips: np.ndarray, found: Map, name: str, title: str
) -> Section:
  strips = [
    _picture(
      attribution.film_strip(clip, np.asarray(values), shown_frames=FRAMES),
      tested.title(row),
      str(tested.predictions.names[row]),
      len(clip),
    )
    for row, clip, values in zip(rows, clips, found.values, strict=True)
  ]
  words = (
    f"{found.name[0].upper()}{found.name[1:]}: {found.words}. Above the frames of the first view, below the same in grey, coloured "
    "from nothing (grey) to the clip's largest value (yellow)."
  )
  return Section(name, title, words, strips)


def _latents(found: Map, clip: np.ndarray, video: str, most: int, name: str) -> Section:
  """The most concentrated latents of a cross attention on one clip; the mean over heads."""
  values = np.asarray(found.values[0]).mean(0)
  # 1 is a latent that reads all places alike.
  concentration = values.reshape(len(values), -1).max(1) * values[0].size
  chosen = np.argsort(-concentration, kind="stable")[:most].tolist()
  strips = [
    _picture(
      drawing.coloured_strip(clip, values[i], shown_frames=FRAMES),
      f"latent {i + 1}: its largest weight is {concentration[i]:.1f} times that of an even spread",
      video,
      len(clip),
    )
    for i in chosen
  ]
  shown = f"the {len(chosen)} most concentrated of {len(values)}" if most < len(values) else "all"
  words = (
    f"What each latent reads: {found.words}, the mean over heads. Of the first video above, {shown} latents; each "
    "is coloured from nothing (grey) to its own largest weight (yellow)."
  )
  return Section(name, f"Latents of {found.name}", words, strips)


def _over_time(found: Map, titles: Sequence[str], name: str) -> Section:
  """The CLS token's weights over time, a curve a video; the mean over heads."""
  values = np.asarray(found.values).mean(1)
  lines = [
    charts.Line(
      title, list(enumerate((100 * of_video).tolist())), charts.SERIES[i % len(charts.SERIES)]
    )
    for i, (title, of_video) in enumerate(zip(titles, values, strict=True))
  ]
  chart = charts.curves(
    name,
    "The CLS token's weights, mean over heads; 0 is the token itself, then the feature map's moments",
    lines,
    ("moment of the feature map", "share of the weight (%)"),
  )
  words = f"{found.name[0].upper()}{found.name[1:]}: {found.words}. Each curve sums to 100 %."
  return Section(name, "Weights over time", words, drawn=[chart])
