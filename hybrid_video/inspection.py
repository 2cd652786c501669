"""See your data: what is stored, what training makes of it, and every view of the evaluation.

In: the index of records and a run's settings. Out: a folder with a page that a browser opens, see
`report/data_page.py`. Nothing is trained, and nothing but this folder is written.
"""

from collections.abc import Sequence
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import simplejpeg

from hybrid_video import augmentation, sharding
from hybrid_video.datasets import records
from hybrid_video.report import data_page, figures
import input_pipeline

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
# Labels below this share are told together.
_SMALL_SHARE = 0.02


class InspectionError(ValueError):
  """What cannot be looked at; the message says what to do."""


def spread(
  found: records.Records, places: np.ndarray, count: int, seed: Sequence[int]
) -> np.ndarray:
  """Videos spread over the classes: one a class, and more of each where there are few classes.

  Args:
    found: the index of records.
    places: to choose from.
    count: how many; fewer where `places` has fewer.
    seed: of the choice.

  Returns:
    Places by class, then by place.
  """
  rng = np.random.default_rng(seed)
  shuffled = rng.permutation(places)
  labels = found.labels[shuffled]
  present = np.unique(labels)
  if len(present) > count:
    present = present[figures.even_frames(len(present), count)]
  # Every class's first video comes before any class's second.
  turns = np.full(len(shuffled), len(shuffled))
  for label in present:
    of_label = np.flatnonzero(labels == label)
    turns[of_label] = np.arange(len(of_label))
  usable = np.flatnonzero(turns < len(shuffled))
  chosen = shuffled[usable[np.argsort(turns[usable], kind="stable")[:count]]]
  return np.array(sorted(chosen.tolist(), key=lambda place: (found.labels[place], place)), np.int64)


def stored_frames(found: records.Records, place: int, frames: np.ndarray) -> np.ndarray:
  """Whole stored frames of a video, uint8 `[T, H, W, 3]`.

  Raises:
    RecordsError: a record file is missing, or damaged.
  """
  stripe = found.read_stripe if found.is_local else lambda *of: found.stripe(*of).numpy()
  # Colour as the pipeline decodes it.
  tall = simplejpeg.decode_jpeg(stripe(place, frames), fastupsample=True)
  height, rows = int(found.height[place]), int(found.rows[place])
  return tall.reshape(len(frames), rows, tall.shape[1], 3)[:, :height]


def _for_page(frames: np.ndarray) -> np.ndarray:
  height, width = frames.shape[1:3]
  if height <= _HIGHEST:
    return frames
  size = (max(1, round(width * _HIGHEST / height)), _HIGHEST)
  return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])


def _about(found: records.Records, place: int) -> str:
  count, fps = int(found.num_frames[place]), float(found.fps[place])
  rate = f"{fps:.6g} frames a second"
  return f"{found.names[place]} · {rate} · {count} frames, {count / fps:.1f} s"


def _class(found: records.Records, place: int) -> str:
  return found.class_names[found.labels[place]]


def _sheet_stored(found: records.Records, seed: int) -> data_page.Sheet:
  strips = []
  for place in spread(found, np.arange(len(found)), _STORED_ROWS, (seed, _STORED)).tolist():
    frames = figures.even_frames(int(found.num_frames[place]), _SHOWN_FRAMES)
    seconds = frames / found.fps[place]
    labels = [f"{i} · {at:.2f} s" for i, at in zip(frames.tolist(), seconds, strict=True)]
    shown = _for_page(stored_frames(found, place, frames))
    strips.append(figures.Strip(_class(found, place), shown, labels, _about(found, place)))
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
  told = [i for i in order.tolist() if shares[i] >= _SMALL_SHARE][:3] or order[:1].tolist()
  parts = [f"{shares[i]:.2f} {class_names[i]}" for i in told]
  rest = 1.0 - float(shares[told].sum())
  if rest >= 0.005:
    parts.append(f"{rest:.2f} others")
  return " + ".join(parts)


def _sheet_augmented(
  found: records.Records,
  places: np.ndarray,
  clip: input_pipeline.ClipSettings,
  settings: augmentation.AugmentationSettings,
  mean: np.ndarray,
  std: np.ndarray,
  seed: int,
) -> data_page.Sheet:
  text = (
    "Clips as the model gets them in training: window, crop, mirroring and augmentation, several draws "
    "of each video, turned back from normalised values to pixels. Labels are what the loss gets. Below "
    "each: which frame of the clip."
  )
  title = "As augmented for training"
  if not len(places):
    return data_page.Sheet("augmented", title, "The training list has no stored video.")
  chosen = spread(found, places, _DRAWN_BATCH, (seed, _AUGMENTED))
  shown = set(chosen[figures.even_frames(len(chosen), _DRAWN_VIDEOS)].tolist())

  def normalise(clips: jax.Array) -> jax.Array:
    return (clips.astype(jnp.float32) / 255.0 - mean) / std

  augment = augmentation.make_augment(
    settings,
    mesh=sharding.make_mesh(jax.local_devices()[:1]),
    normalise=normalise,
    num_classes=len(found.class_names),
  )
  if augment is not None:
    augment = jax.jit(augment)
  # The chosen videos are a whole epoch, and every batch is one: each video comes once a step.
  batches = input_pipeline.training_batches(
    found, chosen, clip, batch_size=len(chosen), first_step=0, steps=_DRAWS, seed=seed
  )
  kept = figures.even_frames(clip.frames, _SHOWN_FRAMES)
  labels = [f"frame {i}" for i in kept]
  rows = []
  for step, batch in enumerate(batches):
    mirrored = batch["clips"][:, :, :, ::-1]
    clips = np.where(batch["flips"][:, None, None, None, None], mirrored, batch["clips"])
    shares: Any = None
    if augment is not None:
      key = jax.random.fold_in(jax.random.key(seed), step)
      normalised, shares = jax.device_get(augment(clips, batch["labels"], key))
      clips = np.clip(np.rint((normalised * std + mean) * 255), 0, 255).astype(np.uint8)
    for i, place in enumerate(batch["places"].tolist()):
      if place not in shown:
        continue
      name = (
        _class(found, place) if shares is None else describe_shares(shares[i], found.class_names)
      )
      turned = ", mirrored" if batch["flips"][i] else ""
      detail = f"draw {step + 1}{turned} · {found.names[place]}"
      strip = figures.Strip(name, _for_page(clips[i][kept]), labels, detail)
      rows.append((found.labels[place], place, step, strip))
  strips = [row[-1] for row in sorted(rows, key=lambda row: row[:-1])]
  return data_page.Sheet("augmented", title, text, strips)


def _crop_name(found: records.Records, place: int, crop: int, crops: int) -> str:
  if crops == 1:
    return "centre crop"
  wide = found.width[place] >= found.height[place]
  ends = ("left", "centre", "right") if wide else ("top", "centre", "bottom")
  return f"{ends[crop]} crop"


def _sheet_evaluated(
  found: records.Records, places: np.ndarray, clip: input_pipeline.ClipSettings, seed: int
) -> data_page.Sheet:
  title = "As evaluated"
  if not len(places):
    return data_page.Sheet("evaluated", title, "The test list has no stored video.")
  candidates = spread(found, places, _VIEW_VIDEOS, (seed, _EVALUATED))
  plan = input_pipeline.plan_evaluation(found, candidates, clip)
  views = np.bincount(plan.rows, minlength=len(candidates))
  # Videos of few views first, so that more of them fit.
  order = np.argsort(views, kind="stable")
  fitting = sorted(order[np.cumsum(views[order]) <= _VIEW_ROWS].tolist()) or [int(order[0])]
  taken = np.flatnonzero(np.isin(plan.rows, fitting))[:_VIEW_LIMIT]
  few = plan.take(taken)
  shown_views = int(views[fitting].sum())
  text = (
    f"Every view of {len(fitting)} test {'video' if len(fitting) == 1 else 'videos'}, in the order in which their scores are averaged: "
    f"{clip.describe_views()}. Below each: frame and seconds."
  )
  if len(taken) < shown_views:
    text += f" The first {len(taken)} of {shown_views} views."
  batch_size = min(len(taken), 16)
  batches = input_pipeline.evaluation_batches(found, few, clip, batch_size=batch_size)
  clips = np.concatenate([batch["clips"] for batch in batches])[: len(taken)]
  kept = figures.even_frames(clip.frames, _SHOWN_FRAMES)
  strips = []
  for i, (row, frames) in enumerate(zip(few.rows.tolist(), few.frames, strict=True)):
    place = int(few.places[row])
    fps = float(found.fps[place])
    number = int(np.flatnonzero(plan.rows == row).searchsorted(taken[i])) + 1
    crop = _crop_name(found, place, int(few.crops[i]), clip.eval_crops)
    # A frame lasts until the next one.
    window = f"{frames.min() / fps:.2f} to {(frames.max() + 1) / fps:.2f} s"
    labels = [f"{frame} · {frame / fps:.2f} s" for frame in frames[kept].tolist()]
    detail = f"view {number} of {views[row]} · {window}, {crop} · {found.names[place]}"
    strips.append(figures.Strip(_class(found, place), _for_page(clips[i][kept]), labels, detail))
  return data_page.Sheet("evaluated", title, text, strips)


def run(
  found: records.Records,
  folder: pathlib.Path,
  *,
  split: int,
  validation_share: float,
  clip: input_pipeline.ClipSettings,
  augment: augmentation.AugmentationSettings,
  mean: Sequence[float],
  std: Sequence[float],
  seed: int,
) -> dict[str, Any]:
  """Counts, draws and writes; the same for the same arguments.

  Args:
    found: the index of records.
    folder: for the page and its pictures, made if need be.
    split: official split, 1 and so on.
    validation_share: of the groups of the training list, 0 to below 1.
    clip: what a clip is.
    augment: what is done to training clips on the device.
    mean, std: per channel, of pixels in 0 to 1, with which clips are normalised.
    seed: of the videos shown and of all that is drawn.

  Returns:
    {"page": path of the page, "summary": what `data_page.summarise` gives}.

  Raises:
    ValueError: there is no such split, a stored record is damaged, or a clip does not fit.
    InspectionError: several processes run this.
  """
  if jax.process_count() > 1:
    raise InspectionError(
      f"{jax.process_count()} processes run --mode=inspect: it is for one. Start it on one machine."
    )
  summary = data_page.summarise(found, split, validation_share)
  log.info("%s", data_page.text(summary))
  places = found.lists(split, validation_share)
  means, stds = np.array(mean, np.float32), np.array(std, np.float32)
  sheets = [
    _sheet_stored(found, seed),
    _sheet_augmented(found, places["train"], clip, augment, means, stds, seed),
    _sheet_evaluated(found, places["test"], clip, seed),
  ]
  page = data_page.write(folder, summary, sheets)
  log.info("Page: %s", page)
  return {"page": str(page), "summary": summary}
