"""The mode `predict`: videos to classes, by a work directory or an exported file alone.

In: a trained model, and video files or folders; no data set and no lists. Out: `predictions.csv` and
`predictions.jsonl`. Decoding, windows and averages are those of evaluation, so that predicting the
test videos gives the numbers of `results.json`.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
import contextlib
import csv
import dataclasses
import io
import json
import logging
import os
import pathlib
import time

import jax
import numpy as np

from hybrid_video import errors, files, loading, metrics, progress, scoring, sharding
from hybrid_video.checkpoints import SavedModel
from hybrid_video.datasets import listing, video_files
from hybrid_video.decoding import storing, worker_pool
from hybrid_video.decoding.clip_decoder import ClipDecoder
from hybrid_video.experiment import Experiment
from hybrid_video.sampling import plans
from hybrid_video.tasks import Task, classification, registry

log = logging.getLogger("hybrid_video")

TOP = 5
CSV, JSON_LINES = "predictions.csv", "predictions.jsonl"


class PredictionError(errors.UserError):
  """Videos or a model that nothing can be predicted with."""


@dataclasses.dataclass(frozen=True)
class Prediction:
  """A video's classes.

  Attributes:
    video: its path, as it was named or below the folder that was named.
    probabilities: of every class, float32 `[classes]`; None where the video is broken.
    views: clips that they are the mean of.
    error: why there are none.
  """

  video: str
  probabilities: np.ndarray | None
  views: int = 0
  error: str = ""

  def top(self, class_names: Sequence[str], count: int = TOP) -> list[tuple[str, float]]:
    """The most probable classes, most probable first: (name, probability)."""
    if self.probabilities is None:
      return []
    order = np.argsort(-self.probabilities, kind="stable")[:count]
    return [(class_names[i], float(self.probabilities[i])) for i in order]


def find_videos(named: Iterable[os.PathLike | str]) -> list[pathlib.Path]:
  """The video files that are named, and those in named folders at any depth, in order of name.

  In folders, what no name tells for a video or another file is opened to see; those that are no
  videos are logged.

  Raises:
    PredictionError: a name that is no file and no folder, or no video at all.
  """
  videos: list[pathlib.Path] = []
  for name in named:
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
      there = video_files.VideoFiles(listing.files_below(path))
      inside, others = there.unused(())
      if others:
        shown = errors.shown(f"{os.fspath(file)}: {why}" for file, why in others)
        log.info("Not predicted, %d file(s) that are no videos: %s", len(others), shown)
      if not inside:
        raise PredictionError(f"{path}: there is no video file in this folder.")
      videos += inside
    elif path.is_file():
      videos.append(path)
    else:
      raise PredictionError(
        f"{errors.printable(path)}: there is no such file or folder. Look at --videos."
      )
  if not videos:
    raise PredictionError(
      "No video is named: --videos=FILE_OR_FOLDER, several separated by commas."
    )
  return videos


class Predictor:
  """A trained model that predicts videos, any number, in a stream."""

  def __init__(self, saved: SavedModel, batch_size: int | None = None):
    """Puts the model on all devices.

    Args:
      saved: from `loading.read`.
      batch_size: clips at a time; the default is evaluation's, or the next multiple of the devices.

    Raises:
      PredictionError: the model is no classifier.
    """
    self.experiment: Experiment = saved.description.experiment
    self.class_names = saved.description.class_names
    mesh = sharding.make_mesh()
    task: Task = registry.create(self.experiment, len(self.class_names), mesh)
    if task.name != classification.NAME:
      raise PredictionError(
        f"{saved.source} is a model of {task.name}, which has no classes. Fine-tune it first: train "
        f"a classifier with --config.init_from={saved.source}."
      )
    wanted = batch_size or self.experiment.eval_batch_size
    self._batch_size = -(-wanted // mesh.size) * mesh.size
    place = sharding.replicated(mesh)
    self._params, self._batch_stats = jax.tree.map(
      lambda leaf: sharding.place(leaf, place), (saved.params, saved.batch_stats)
    )
    self._scorer = scoring.Scorer(task, mesh)

  def predict(self, videos: Sequence[os.PathLike | str]) -> Iterator[Prediction]:
    """The predictions of video files, in order, each as soon as its views are scored.

    A broken video gives a prediction without probabilities; the others are predicted.
    """
    experiment = self.experiment
    stored = worker_pool.store_videos(videos, experiment.stored, limits=experiment.decoding)
    order: collections.deque[_Pending] = collections.deque()
    with contextlib.closing(stored):
      clips = self._clips(videos, stored, order)
      batches = _in_batches(clips, self._batch_size)
      for outputs in self._scorer.outputs(self._params, self._batch_stats, batches):
        shares = metrics.probabilities(outputs["logits"], self._batch_size)
        _hand_out(order, shares)
        yield from _complete(order)
    yield from _complete(order)

  def _clips(
    self,
    names: Sequence[os.PathLike | str],
    stored: Iterable[tuple[int, storing.StoredVideo | str]],
    order: "collections.deque[_Pending]",
  ) -> Iterator[np.ndarray]:
    """Every view of every video, uint8 `[views, T, H, W, 3]` a video; notes them in `order`."""
    evaluation = self.experiment.evaluation
    for index, video in stored:
      name = os.fspath(names[index])
      if isinstance(video, str):
        order.append(_Pending(name, 0, error=video))
        continue
      source = storing.StoredVideos([video])
      views = plans.evaluation_views(source, np.array([0]), evaluation)
      with ClipDecoder(source, evaluation.crop) as decoder:
        clips = decoder.decode(views.clips)
      order.append(_Pending(name, len(views)))
      yield clips


@dataclasses.dataclass
class _Pending:
  """A video whose views are being scored."""

  name: str
  views: int
  error: str = ""
  shares: list[np.ndarray] = dataclasses.field(default_factory=list)


def _in_batches(clips: Iterable[np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
  """Clips of one video after the other in batches of `size`, the last one padded."""
  waiting: list[np.ndarray] = []
  for of_video in clips:
    for clip in of_video:
      waiting.append(clip)
      if len(waiting) == size:
        yield _batch(waiting, size)
        waiting = []
  if waiting:
    yield _batch(waiting, size)


def _batch(clips: list[np.ndarray], size: int) -> dict[str, np.ndarray]:
  padded = np.stack(clips + [clips[-1]] * (size - len(clips)))
  return {"clips": padded, "clip_indices": np.zeros(size, np.int32)}


def _hand_out(order: "collections.deque[_Pending]", shares: np.ndarray) -> None:
  """Gives each waiting video its rows of a batch's probabilities."""
  row = 0
  for video in order:
    taken = shares[row : row + video.views - len(video.shares)]
    video.shares += list(taken)
    row += len(taken)


def _complete(order: "collections.deque[_Pending]") -> Iterator[Prediction]:
  """The predictions of the first videos whose views are all scored."""
  while order and len(order[0].shares) == order[0].views:
    video = order.popleft()
    if video.error:
      yield Prediction(video.name, None, error=video.error)
      continue
    rows = np.zeros(video.views, np.int64)
    means = metrics.video_means(np.stack(video.shares), rows, 1)
    yield Prediction(video.name, means[0], video.views)


def run(
  workdir: pathlib.Path,
  named: Iterable[os.PathLike | str],
  *,
  checkpoint: os.PathLike | str | None = None,
) -> list[Prediction]:
  """Predicts videos, prints their top classes, and writes them as CSV and JSON lines.

  Args:
    workdir: where the files go.
    named: video files and folders.
    checkpoint: a work directory, one of its checkpoints or an exported file; the default is
      `workdir`.

  Returns:
    All predictions, those of broken videos without probabilities.

  Raises:
    UserError: there is no model or no video.
  """
  saved = loading.read(workdir if checkpoint is None else checkpoint)
  videos = find_videos(named)
  predictor = Predictor(saved)
  names = predictor.class_names
  log.info(
    "Videos: %d, classes: %d, model: %s: %s", len(videos), len(names), saved.source, saved.words
  )
  workdir.mkdir(parents=True, exist_ok=True)
  predictions: list[Prediction] = []
  started = time.monotonic()
  for done, prediction in enumerate(predictor.predict(videos), 1):
    predictions.append(prediction)
    left = (time.monotonic() - started) / done * (len(videos) - done)
    log.info("%s", _line(prediction, names, done, len(videos), left))
  files.write_text(workdir / CSV, _as_csv(predictions, names))
  files.write_text(workdir / JSON_LINES, _as_json_lines(predictions, names))
  broken = [prediction for prediction in predictions if prediction.error]
  for prediction in broken:
    log.warning("Not predicted: %s", prediction.error)
  log.info("Predictions: %s", workdir / CSV)
  return predictions


def _line(prediction: Prediction, names: Sequence[str], done: int, total: int, left: float) -> str:
  if prediction.error:
    return f"{errors.printable(prediction.video)}: broken"
  top = prediction.top(names)
  best = ", ".join(f"{errors.printable(name)} {100 * share:.1f} %" for name, share in top)
  after = f"  ({done}/{total}, {progress.duration(left)} left)" if done < total else ""
  return f"{errors.printable(prediction.video)}: {best}{after}"


def _as_csv(predictions: Sequence[Prediction], names: Sequence[str]) -> str:
  """Columns `video`, `top1`, `top1_probability` to `top5`, `top5_probability`.

  Names are quoted, whatever they hold; bytes of a file's name that are no text are written out as
  Python does.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
  columns = [f"top{rank}{what}" for rank in range(1, TOP + 1) for what in ("", "_probability")]
  writer.writerow(["video", *columns])
  for prediction in predictions:
    cells = [cell for name, share in prediction.top(names) for cell in (name, share)]
    writer.writerow([prediction.video, *cells, *[""] * (2 * TOP - len(cells))])
  return text.getvalue().encode("utf-8", "backslashreplace").decode()


def _as_json_lines(predictions: Sequence[Prediction], names: Sequence[str]) -> str:
  """An object a line: `video`, `views` and all `probabilities` by class, or its `error`."""
  lines = []
  for prediction in predictions:
    line: dict[str, object] = {"video": prediction.video}
    if prediction.probabilities is None:
      line["error"] = prediction.error
    else:
      shares = map(float, prediction.probabilities)
      line |= {"views": prediction.views, "probabilities": dict(zip(names, shares, strict=True))}
    lines.append(json.dumps(line) + "\n")
  return "".join(lines)
