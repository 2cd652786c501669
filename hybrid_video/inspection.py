"""The mode `inspect`: what is stored, what training makes of it, and every view of the evaluation.

In: an experiment and its stored videos. Out: a folder with a page that a browser opens, see
`report/data_page.py`. Nothing is trained, and nothing but this folder is written.
"""

from collections.abc import Sequence
import logging
import pathlib
from typing import Any

import jax
import numpy as np
from PIL import Image
import simplejpeg

from hybrid_video import augmentation, errors, sharding
from hybrid_video.datasets import preparation, splits
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.pipeline import Pipeline
from hybrid_video.report import data_page, data_summary, figures, results
from hybrid_video.sampling import plans
from hybrid_video.tasks import pixels

log = logging.getLogger("hybrid_video")

FOLDER = "inspection"
_STORED_ROWS = 16
# A batch has more videos than are shown, so that two that are mixed are seldom both shown.
_DRAWN_BATCH, _DRAWN_VIDEOS, _DRAWS = 12, 4, 3
# Every view of the first video is shown, up to the limit; more videos while all theirs still fit.
_VIEW_VIDEOS, _VIEW_ROWS, _VIEW_LIMIT = 4, 24, 60
_SHOWN_FRAMES = 8
# Larger frames are scaled down for the page, in pixels.
_HIGHEST = 256
# What is drawn has a stream of numbers of its own for each sheet.
_STORED, _AUGMENTED, _EVALUATED = range(3)
# Labels below this share are summed up.
_SMALL_SHARE = 0.02


class InspectionError(errors.UserError):
  """An inspection that cannot be made; the message says what to do."""


def spread(records: Records, video_ids: np.ndarray, count: int, seed: Sequence[int]) -> np.ndarray:
  """Videos spread over the classes: one a class, and more of each where there are few classes.

  Args:
    records: the index of the stored videos.
    video_ids: to choose from.
    count: how many; fewer where `video_ids` has fewer.
    seed: of the choice.

  Returns:
    Video ids by class, then by id.
  """
  rng = np.random.default_rng(seed)
  shuffled = rng.permutation(video_ids)
  labels = records.labels[shuffled]
  present = np.unique(labels)
  if len(present) > count:
    present = present[figures.even_frames(len(present), count)]
  # Every class's first video comes before any class's second.
  turns = np.full(len(shuffled), len(shuffled))
  for label in present:
    of_label = np.flatnonzero(labels == label)
    turns[of_label] = np.arange(len(of_label))
  usable = np.flatnonzero(turns < len(shuffled))
  selected = shuffled[usable[np.argsort(turns[usable], kind="stable")[:count]]]
  by_class = sorted(selected.tolist(), key=lambda video_id: (records.labels[video_id], video_id))
  return np.array(by_class, np.int64)


def stored_frames(records: Records, video_id: int, frames: np.ndarray) -> np.ndarray:
  """Whole stored frames of a video, uint8 `[T, H, W, 3]`.

  Raises:
    RecordsError: a record file is missing, or damaged.
  """
  stripe = records.read_stripe if records.is_local else lambda *of: records.stripe(*of).numpy()
  # Colour as the pipeline decodes it.
  tall = simplejpeg.decode_jpeg(stripe(video_id, frames), fastupsample=True)
  height, rows = int(records.height[video_id]), int(records.rows[video_id])
  return tall.reshape(len(frames), rows, tall.shape[1], 3)[:, :height]


def _for_page(frames: np.ndarray) -> np.ndarray:
  height, width = frames.shape[1:3]
  if height <= _HIGHEST:
    return frames
  size = (max(1, round(width * _HIGHEST / height)), _HIGHEST)
  return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])


def _about(records: Records, video_id: int) -> str:
  count, fps = int(records.num_frames[video_id]), float(records.fps[video_id])
  rate = f"{fps:.6g} frames a second"
  return f"{records.names[video_id]} · {rate} · {count} frames, {count / fps:.1f} s"


def _class(records: Records, video_id: int) -> str:
  return records.class_names[records.labels[video_id]]


def _sheet_stored(records: Records, seed: int) -> data_page.Sheet:
  strips = []
  for video_id in spread(records, np.arange(len(records)), _STORED_ROWS, (seed, _STORED)).tolist():
    frames = figures.even_frames(int(records.num_frames[video_id]), _SHOWN_FRAMES)
    seconds = frames / records.fps[video_id]
    labels = [f"{i} · {at:.2f} s" for i, at in zip(frames.tolist(), seconds, strict=True)]
    shown = _for_page(stored_frames(records, video_id, frames))
    strips.append(
      figures.Strip(_class(records, video_id), shown, labels, _about(records, video_id))
    )
  return data_page.Sheet(
    "stored",
    "As stored",
    "Whole stored frames, evenly spaced from each video's first to its last, time to the right. Below "
    "each: frame and seconds.",
    strips,
  )


def describe_shares(shares: np.ndarray, class_names: Sequence[str]) -> str:
  """Soft labels `[classes]` in words, largest first, such as "0.70 wave + 0.30 golf"."""
  order = np.argsort(-shares, kind="stable")
  named = [i for i in order.tolist() if shares[i] >= _SMALL_SHARE][:3] or order[:1].tolist()
  parts = [f"{shares[i]:.2f} {class_names[i]}" for i in named]
  rest = 1.0 - float(shares[named].sum())
  if rest >= 0.005:
    parts.append(f"{rest:.2f} others")
  return " + ".join(parts)


def _draws(
  records: Records,
  video_ids: np.ndarray,
  experiment: Experiment,
  pipeline: Pipeline,
) -> list[tuple[int, int, np.ndarray, Any, bool]]:
  """Several draws of each video: (video id, draw, pixels as the model gets them, labels, mirrored)."""
  mean, std = (np.array(values, np.float32) for values in (experiment.mean, experiment.std))
  augment = augmentation.make_augment(
    experiment.augmentation,
    mesh=sharding.make_mesh(jax.local_devices()[:1]),
    normalize=pixels.normalizer(experiment.mean, experiment.std),
    num_classes=len(records.class_names),
  )
  if augment is not None:
    augment = jax.jit(augment)
  # The chosen videos are a whole epoch, and every batch is one: each video comes once a step.
  batches = pipeline.training_batches(
    records,
    video_ids,
    experiment.clip,
    batch_size=len(video_ids),
    first_step=0,
    steps=_DRAWS,
    seed=experiment.seed,
  )
  draws = []
  for step, batch in enumerate(batches):
    reversed_clips = batch["clips"][:, :, :, ::-1]
    mirrored = batch["mirrored"]
    clips = np.where(mirrored[:, None, None, None, None], reversed_clips, batch["clips"])
    shares: Any = [None] * len(clips)
    if augment is not None:
      key = jax.random.fold_in(jax.random.key(experiment.seed), step)
      normalized, mixed = jax.device_get(augment(clips, batch["labels"], key))
      shares = shares if mixed is None else mixed
      clips = np.clip(np.rint((normalized * std + mean) * 255), 0, 255).astype(np.uint8)
    ids = batch["video_ids"].tolist()
    draws += [
      (video_id, step, clip, share, bool(flip))
      for video_id, clip, share, flip in zip(ids, clips, shares, mirrored, strict=True)
    ]
  return sorted(draws, key=lambda draw: (records.labels[draw[0]], *draw[:2]))


def _sheet_augmented(
  records: Records, video_ids: np.ndarray, experiment: Experiment, pipeline: Pipeline
) -> data_page.Sheet:
  text = (
    "Clips as the model gets them in training: window, crop, mirroring and augmentation, several draws "
    "of each video, turned back from normalized values to pixels. Labels are what the loss gets. Below "
    "each: which frame of the clip."
  )
  title = "As augmented for training"
  if not len(video_ids):
    return data_page.Sheet("augmented", title, "The training list has no stored video.")
  selected = spread(records, video_ids, _DRAWN_BATCH, (experiment.seed, _AUGMENTED))
  shown = set(selected[figures.even_frames(len(selected), _DRAWN_VIDEOS)].tolist())
  frames = figures.even_frames(experiment.clip.frames, _SHOWN_FRAMES)
  labels = [f"frame {i}" for i in frames]
  strips = []
  for video_id, step, clip, shares, mirrored in _draws(records, selected, experiment, pipeline):
    if video_id not in shown:
      continue
    name = (
      _class(records, video_id) if shares is None else describe_shares(shares, records.class_names)
    )
    detail = f"draw {step + 1}{', mirrored' if mirrored else ''} · {records.names[video_id]}"
    strips.append(figures.Strip(name, _for_page(clip[frames]), labels, detail))
  return data_page.Sheet("augmented", title, text, strips)


def _crop_name(records: Records, video_id: int, crop: int, crops: int) -> str:
  if crops == 1:
    return "centre crop"
  wide = records.width[video_id] >= records.height[video_id]
  ends = ("left", "centre", "right") if wide else ("top", "centre", "bottom")
  return f"{ends[crop]} crop"


def _sheet_evaluated(
  records: Records, video_ids: np.ndarray, experiment: Experiment, pipeline: Pipeline
) -> data_page.Sheet:
  title, settings = "As evaluated", experiment.evaluation
  if not len(video_ids):
    return data_page.Sheet("evaluated", title, "The test list has no stored video.")
  candidates = spread(records, video_ids, _VIEW_VIDEOS, (experiment.seed, _EVALUATED))
  views = plans.evaluation_views(records, candidates, settings)
  counts = np.bincount(views.rows, minlength=len(candidates))
  # Videos of few views first, so that more of them fit.
  order = np.argsort(counts, kind="stable")
  fitting = sorted(order[np.cumsum(counts[order]) <= _VIEW_ROWS].tolist()) or [int(order[0])]
  taken = np.flatnonzero(np.isin(views.rows, fitting))[:_VIEW_LIMIT]
  few = views.take(taken)
  shown_views = int(counts[fitting].sum())
  text = (
    f"Every view of {len(fitting)} test {'video' if len(fitting) == 1 else 'videos'}, in the order in which their scores are averaged: "
    f"{settings.describe_views()}. Below each: frame and seconds."
  )
  if len(taken) < shown_views:
    text += f" The first {len(taken)} of {shown_views} views."
  batches = pipeline.evaluation_batches(records, few, settings, batch_size=min(len(taken), 16))
  clips = np.concatenate([batch["clips"] for batch in batches])[: len(taken)]
  shown = figures.even_frames(settings.frames, _SHOWN_FRAMES)
  strips = []
  for i, (row, frames) in enumerate(zip(few.rows.tolist(), few.clips.frames, strict=True)):
    video_id = int(few.video_ids[row])
    fps = float(records.fps[video_id])
    number = int(np.flatnonzero(views.rows == row).searchsorted(taken[i])) + 1
    crop = _crop_name(records, video_id, int(few.crops[i]), settings.crops)
    # A frame lasts until the next one.
    window = f"{frames.min() / fps:.2f} to {(frames.max() + 1) / fps:.2f} s"
    labels = [f"{frame} · {frame / fps:.2f} s" for frame in frames[shown].tolist()]
    detail = f"view {number} of {counts[row]} · {window}, {crop} · {records.names[video_id]}"
    title_of_strip = _class(records, video_id)
    strips.append(figures.Strip(title_of_strip, _for_page(clips[i][shown]), labels, detail))
  return data_page.Sheet("evaluated", title, text, strips)


def run(experiment: Experiment, workdir: pathlib.Path, pipeline: Pipeline) -> dict[str, Any]:
  """Counts, draws and writes the page; the same for the same data and settings.

  Args:
    experiment: data set, lists, clips, augmentation and pixel statistics.
    workdir: the page goes into its folder `inspection`.
    pipeline: makes batches of clips.

  Returns:
    {"page": path of the page, "summary": what `data_summary.summarize` gives}.

  Raises:
    UserError: there is no such split, a stored record is damaged, a clip does not fit, or several
      processes run this.
  """
  if jax.process_count() > 1:
    raise InspectionError(
      f"{jax.process_count()} processes run --mode=inspect: it is for one. Start it on one machine."
    )
  results.make_folder(workdir)
  records = preparation.load_records(experiment, workdir)
  split, share = experiment.split, experiment.validation_share
  summary = data_summary.summarize(records, split, share, experiment.training_share)
  log.info("%s", data_summary.text(summary))
  lists = splits.list_indices(records, split, share, experiment.training_share)
  sheets = [
    _sheet_stored(records, experiment.seed),
    _sheet_augmented(records, lists["train"], experiment, pipeline),
    _sheet_evaluated(records, lists["test"], experiment, pipeline),
  ]
  page = data_page.write(workdir / FOLDER, summary, sheets)
  log.info("Page: %s", page)
  return {"page": str(page), "summary": summary}
