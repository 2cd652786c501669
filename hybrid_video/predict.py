"""The mode `predict`: videos to classes, by a work directory or an exported file alone.

In: a trained model, and video files or folders; no data set and no lists. Out: `predictions.csv` and
`predictions.jsonl`. Decoding, windows and averages are those of evaluation, so that predicting the
test videos gives the numbers of `results.json`. Several processes share the videos; each decodes and scores
its own on its own devices, and the first writes the files.
"""

import collections
from collections.abc import Generator, Iterable, Iterator, Sequence
import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import logging
import os
import pathlib

from etils import epath
import jax
import numpy as np

from hybrid_video import (
  errors,
  files,
  hosts,
  loading,
  metrics,
  paths,
  progress,
  scoring,
  sharding,
)
from hybrid_video.analysis import aggregation as aggregations
from hybrid_video.checkpoint_description import how_to_fine_tune
from hybrid_video.checkpoints import SavedModel
from hybrid_video.datasets import listing, video_files
from hybrid_video.decoding import storing, worker_pool
from hybrid_video.decoding.clip_decoder import ClipDecoder
from hybrid_video.experiment import Experiment
from hybrid_video.report import line_files, log_file, results
from hybrid_video.sampling import plans
from hybrid_video.tasks import Task, classification, registry

log = logging.getLogger("hybrid_video")

TOP = 5
CSV, JSON_LINES = "predictions.csv", "predictions.jsonl"
# Lines that processes send each other at a time.
_SHARED_LINES = 256


class PredictionError(errors.UserError):
  """Videos or a model that nothing can be predicted with."""


@dataclasses.dataclass(frozen=True)
class Prediction:
  """A video's classes.

  Attributes:
    video: its path, as it was named or below the folder that was named.
    probabilities: of every class, float32 `[classes]`; None where the video is broken.
    views: clips that they come of.
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
    paths.local(name, "--videos", "videos are decoded from local files")
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
    """Puts the model on all devices of this process.

    Args:
      saved: from `loading.read`.
      batch_size: clips at a time; the default is evaluation's, or the next multiple of the devices.

    Raises:
      PredictionError: the model is no classifier.
    """
    self.experiment: Experiment = saved.description.experiment
    self.class_names = saved.description.class_names
    mesh = sharding.make_mesh(jax.local_devices())
    task: Task = registry.create(self.experiment, len(self.class_names), mesh)
    if task.name != classification.NAME:
      raise PredictionError(how_to_fine_tune(saved.description, saved.source))
    wanted = batch_size or self.experiment.eval_batch_size
    self._batch_size = -(-wanted // mesh.size) * mesh.size
    place = sharding.replicated(mesh)
    self._params, self._batch_stats = jax.tree.map(
      lambda leaf: sharding.place(leaf, place), (saved.params, saved.batch_stats)
    )
    self._scorer = scoring.Scorer(task, mesh)

  def predict(self, videos: Sequence[os.PathLike | str]) -> Generator[Prediction, None, None]:
    """The predictions of video files, in order, each as soon as its views are scored.

    A broken video gives a prediction without probabilities; the others are predicted.
    """
    experiment = self.experiment
    aggregation = experiment.evaluation.aggregation
    stored = worker_pool.store_videos(videos, experiment.stored, limits=experiment.decoding)
    order: collections.deque[_Pending] = collections.deque()
    with contextlib.closing(stored):
      clips = self._clips(videos, stored, order)
      batches = _in_batches(clips, self._batch_size)
      for outputs in self._scorer.outputs(self._params, self._batch_stats, batches):
        logits = outputs["logits"]
        shares = metrics.probabilities(logits, self._batch_size)
        _hand_out(order, shares, logits)
        yield from _complete(order, aggregation)
    yield from _complete(order, aggregation)

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
  logits: list[np.ndarray] = dataclasses.field(default_factory=list)


def _in_batches(clips: Iterable[np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
  """Clips of one video after the other in batches of `size`, the last one padded."""
  waiting: list[tuple[np.ndarray, bool]] = []
  for of_video in clips:
    for i, clip in enumerate(of_video):
      waiting.append((clip, i == 0))
      if len(waiting) == size:
        yield _batch(waiting, size)
        waiting = []
  if waiting:
    yield _batch(waiting, size)


def _batch(clips: list[tuple[np.ndarray, bool]], size: int) -> dict[str, np.ndarray]:
  padded = clips + [(clips[-1][0], True)] * (size - len(clips))
  return {
    "clips": np.stack([clip for clip, _ in padded]),
    "clip_indices": np.zeros(size, np.int32),
    "begins": np.array([begins for _, begins in padded]),
  }


def _hand_out(order: "collections.deque[_Pending]", shares: np.ndarray, logits: np.ndarray) -> None:
  """Gives each waiting video its rows of a batch's probabilities and logits."""
  row = 0
  for video in order:
    rows = slice(row, row + video.views - len(video.shares))
    video.logits += list(logits[rows])
    taken = list(shares[rows])
    video.shares += taken
    row += len(taken)


def _complete(order: "collections.deque[_Pending]", aggregation: str) -> Iterator[Prediction]:
  """The predictions of the first videos whose views are all scored."""
  while order and len(order[0].shares) == order[0].views:
    video = order.popleft()
    if video.error:
      yield Prediction(video.name, None, error=video.error)
      continue
    rows = np.zeros(video.views, np.int64)
    scores = aggregations.video_scores(
      aggregation, np.stack(video.shares), np.stack(video.logits), rows, 1
    )
    yield Prediction(video.name, scores[0], video.views)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How many videos were predicted.

  Attributes:
    predicted: videos with a prediction.
    broken: videos without one.
  """

  predicted: int
  broken: int


def run(
  workdir: pathlib.Path,
  named: Iterable[os.PathLike | str],
  *,
  checkpoint: os.PathLike | str | None = None,
) -> Outcome:
  """Predicts videos, prints their top classes, and writes them as JSON lines and as CSV.

  Each video's line is in the file as soon as it is predicted, and stays there if the run is stopped;
  the CSV file is made from the lines at the end, also of a run that is stopped. What an earlier run left in these
  files is replaced.

  Args:
    workdir: where the files go.
    named: video files and folders.
    checkpoint: a work directory, one of its checkpoints or an exported file; the default is
      `workdir`.

  Raises:
    UserError: there is no model or no video, or a file cannot be written.
  """
  with log_file.attached(workdir):
    saved = loading.read(workdir if checkpoint is None else checkpoint)
    videos = find_videos(named)
    hosts.check_same("the videos", hashlib.sha256(repr(videos).encode()).hexdigest())
    predictor = Predictor(saved)
    log.info(
      "Videos: %d, classes: %d, model: %s: %s",
      len(videos),
      len(predictor.class_names),
      saved.source,
      saved.words,
    )
    index, processes = jax.process_index(), jax.process_count()
    own = videos[index::processes]
    if processes > 1:
      log.info("The first of %d processes predicts %d of them", processes, len(own))
    lines = workdir / (f"predictions.{index}.jsonl" if index else JSON_LINES)
    table = workdir / CSV
    results.make_folder(workdir)
    if lines.exists():
      log.info("Replacing what an earlier run predicted: %s", lines)
    with results.writing(lines):
      files.write_text(lines, "")
    parts = results.Parts()
    try:
      broken = _write_lines(lines, predictor, own)
      if processes > 1:
        broken = sum(hosts.share_all(broken))
        _join_processes(lines, len(own), workdir / JSON_LINES)
    finally:
      # Whatever ends the run: what was predicted can be read as a table.
      if index == 0:
        with parts.making(table, needed=True):
          rows = _write_csv(lines, table)
          log.info("Predictions of %d of %d videos: %s", rows, len(videos), table)
    parts.finish()
    if broken:
      log.warning("%d of %d videos could not be predicted", broken, len(videos))
    return Outcome(len(videos) - broken, broken)


def _join_processes(lines: pathlib.Path, own: int, whole: pathlib.Path) -> None:
  """Puts all processes' lines into the first one's file, in the order of the videos.

  Args:
    lines: this process's.
    own: how many they are.
    whole: the file of all of them.
  """
  rounds = -(-max(hosts.share_all(own)) // _SHARED_LINES)
  writes = jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    mine = stack.enter_context(epath.Path(lines).open("rb"))
    if writes:
      stack.enter_context(results.writing(whole))
      part = stack.enter_context(files.whole_file(whole))
      file = stack.enter_context(part.open("wb"))
    for _ in range(rounds):
      # A few at a time, so that any number of videos fits in memory.
      shares = hosts.share_all(list(itertools.islice(mine, _SHARED_LINES)))
      if writes:
        for of_processes in itertools.zip_longest(*shares, fillvalue=b""):
          file.write(b"".join(of_processes))
  if not writes:
    lines.unlink()


def _write_lines(path: pathlib.Path, predictor: Predictor, videos: Sequence[pathlib.Path]) -> int:
  """Predicts videos and adds each one's line to a file; holds none for longer, gives how many broke."""
  broken, names, file = 0, predictor.class_names, line_files.LineFile(path)
  with contextlib.ExitStack() as stack:
    predictions = stack.enter_context(contextlib.closing(predictor.predict(videos)))
    status = stack.enter_context(progress.StatusLine("video", len(videos), unit="videos"))
    try:
      for done, prediction in enumerate(predictions, 1):
        with results.writing(path):
          file.write(_as_json_line(prediction, names))
        status.update(done)
        if prediction.error:
          broken += 1
          log.warning("Not predicted: %s", prediction.error)
        else:
          log.info("%s", _line(prediction, names, done, len(videos)))
    finally:
      with results.writing(path):
        file.flush()
  return broken


def _line(prediction: Prediction, names: Sequence[str], done: int, total: int) -> str:
  best = ", ".join(
    f"{errors.printable(name)} {100 * share:.1f} %" for name, share in prediction.top(names)
  )
  after = f"  ({done}/{total})" if done < total else ""
  return f"{errors.printable(prediction.video)}: {best}{after}"


def _as_json_line(prediction: Prediction, names: Sequence[str]) -> str:
  """An object: `video`, `views` and all `probabilities` by class, or its `error`."""
  line: dict[str, object] = {"video": prediction.video}
  if prediction.probabilities is None:
    line["error"] = prediction.error
  else:
    shares = map(float, prediction.probabilities)
    line |= {"views": prediction.views, "probabilities": dict(zip(names, shares, strict=True))}
  return files.as_json(line) + "\n"


def _write_csv(lines: pathlib.Path, table: pathlib.Path) -> int:
  """Makes a table of the predictions in a file of JSON lines, one at a time; gives how many.

  Columns are `video`, `top1`, `top1_probability` to `top5`, `top5_probability`. Names are quoted,
  whatever they hold; bytes of a file's name that are no text are written out as Python does.
  """
  columns = [f"top{rank}{what}" for rank in range(1, TOP + 1) for what in ("", "_probability")]
  rows = 0
  with (
    files.whole_file(table) as part,
    epath.Path(lines).open("rb") as source,
    part.open("wb") as raw,
    io.TextIOWrapper(raw, "utf-8", errors="backslashreplace", newline="") as text,
  ):
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(["video", *columns])
    for line in source:
      if not line.endswith(b"\n"):
        # On a full disk, the last one may be half written.
        break
      prediction = json.loads(line)
      shares = prediction.get("probabilities", {})
      best = sorted(shares, key=lambda name: -shares[name])[:TOP]
      cells = [cell for name in best for cell in (name, shares[name])]
      writer.writerow([prediction["video"], *cells, *[""] * (2 * TOP - len(cells))])
      rows += 1
  return rows
