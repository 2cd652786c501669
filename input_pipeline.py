"""Stored records to batches of clips: choose frames, decode only those, crop, batch, share out.

In: `Records` (hybrid_video.datasets). Out: batches of NumPy arrays for this process's share of
the global batch, clips as uint8 `[B, T, H, W, 3]`.

What a batch holds follows from the seed and its place in the sequence alone: the k-th clip of
training is known without those before it, so a resumed run goes on exactly where it stopped, and
any number of processes sees the same global batches.

`tf.data` plans the batches: which video, frames, box. Where records lie on this machine, threads
read, decode and cut the planned clips straight into the batch's array, with every frame's checksum
verified. Elsewhere, and on the workers of a tf.data service, `tf.data` does that too, in operations
that need nothing of this process; it takes about twice the time.
"""

import collections
from collections.abc import Callable, Collection, Iterator
from concurrent import futures
import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import queue
import re
import threading

import cv2
import jax
import numpy as np
import simplejpeg
import tensorflow as tf

from hybrid_video import clips as clip_arithmetic
from hybrid_video import datasets
from hybrid_video.datasets import (
  builder,
  draws,
  listing,
  made_actions,
  mirrors,
  records,
  video_files,
)
from hybrid_video.datasets import service as data_service
from hybrid_video.datasets.draws import Purpose

log = logging.getLogger("hybrid_video")

# The clips are what runs in parallel here.
cv2.setNumThreads(1)

Batch = dict[str, np.ndarray]
LISTS = ("train", "validation", "test")
CROPS = ("random", "multi_scale", "random_resized")
_PREFETCHED = 4
# Clips that a thread takes at a time: handing them out one by one costs a twentieth of the work.
_CLIPS_A_TASK = 8
# What TensorFlow raises where a record file is damaged, cut off or gone.
_DAMAGE = (
  tf.errors.DataLossError,
  tf.errors.InvalidArgumentError,
  tf.errors.NotFoundError,
  tf.errors.OutOfRangeError,
)
# Tries of a random resized crop before it falls back to the largest centred one, as torchvision's.
_TRIES = 10
# Batches of a data service that may arrive before the one that is due.
_AHEAD = 64
# A data service that has sent nothing for so long has lost a worker, or has none.
_SILENT_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class ClipSettings(clip_arithmetic.Sampling):
  """What a clip is: which frames, and what is cut out of them.

  Attributes:
    crop: pixels of the square that the model sees.
    crop_mode: how training cuts it out. "random": a square of `crop` pixels anywhere.
      "multi_scale": sides drawn from `scales` times the shorter stored side, no more than one step
      apart, at one of 13 places, resized (TSN's way). "random_resized": a box of a share of the
      area from `area` and an aspect ratio from `aspect` (log-uniform), anywhere, resized.
    scales: of "multi_scale", descending.
    area: of "random_resized", least and most share of the frame.
    aspect: of "random_resized", least and most width / height.
    flip: whether training mirrors half of the clips. That is done on the device.
    eval_clips: windows a video in evaluation, evenly spaced; 0 is the fewest that cover it.
    eval_crops: 1 for the centre; 3 for both ends of the longer side and the centre.

  Raises:
    ValueError: a value is out of range.
  """

  crop: int = 112
  crop_mode: str = "random"
  scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
  area: tuple[float, float] = (0.5, 1.0)
  aspect: tuple[float, float] = (3 / 4, 4 / 3)
  flip: bool = True
  eval_clips: int = 0
  eval_crops: int = 1

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.crop_mode not in CROPS:
      raise ValueError(
        f"There is no crop mode {self.crop_mode!r}: set --config.clip.crop_mode to one of "
        f"{', '.join(CROPS)}."
      )
    for name, low, high in (("area", 0.0, 1.0), ("aspect", 0.0, 100.0)):
      bounds = getattr(self, name)
      if len(bounds) != 2 or not low < bounds[0] <= bounds[1] <= high:
        raise ValueError(
          f"--config.clip.{name} is {bounds}: expected two numbers, ascending, above {low:g} and up "
          f"to {high:g}."
        )
    if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
      raise ValueError(f"--config.clip.scales is {self.scales}: expected numbers above 0, up to 1.")
    if self.crop < 1 or self.eval_clips < 0 or self.eval_crops not in (1, 3):
      raise ValueError(
        f"--config.clip has crop {self.crop}, eval_clips {self.eval_clips} and eval_crops "
        f"{self.eval_crops}: expected a crop of 1 or more pixels, 0 or more clips, and 1 or 3 crops."
      )

  def describe_views(self) -> str:
    """How an evaluation looks at a video, in words."""
    windows = (
      f"{self.eval_clips} evenly spaced windows"
      if self.eval_clips
      else "uniform windows, the fewest that cover each video"
    )
    crops = "centre crop" if self.eval_crops == 1 else "3 crops along the longer side"
    return f"{windows}: {self.describe()}; {crops} of {self.crop} pixels"


def prepare(
  *,
  dataset: str,
  data_dir: str,
  records_dir: str,
  scale: video_files.StoredScale,
  allow_missing: bool = False,
  missing_allowed: Collection[str] = (),
  download: bool = False,
  mirrors_file: str = "",
  test_share: float = 0.2,
  made_films: int = 0,
  seed: int = 0,
) -> records.Records:
  """Fetches, unpacks, makes, decodes and stores what is not stored yet, and gives the index.

  Args:
    dataset: one of `datasets.READERS`; "made_actions" stands for videos that are made first.
    data_dir: folder of the videos and their lists, or of the archives that hold them.
    records_dir: where records are kept; "" is TFDS's own place, ~/tensorflow_datasets.
    scale: size and quality of stored frames.
    allow_missing: whether listed videos may be missing or broken.
    missing_allowed: names of those that may be.
    download: whether to fetch the official archives into `data_dir`.
    mirrors_file: more places to fetch them from, see `datasets.mirrors`.
    test_share: of the groups of a "folder", how many are for the test.
    made_films: for made videos, how many films of them.
    seed: for made videos, theirs.

  Raises:
    ValueError: the data cannot serve; the message names the file and says what to do.
  """
  if not data_dir:
    raise ValueError(
      "No data folder is named: set --config.data_dir to the folder of the videos and their lists, "
      "or of the official archives."
    )
  folder = pathlib.Path(data_dir).expanduser()
  if dataset == "made_actions" and made_actions.make(folder, made_films, seed):
    log.info("Made %d videos in %s", made_films * len(made_actions.ACTIONS), folder)
  if download:
    mirrors.fetch(dataset, folder, pathlib.Path(mirrors_file) if mirrors_file else None)
  listed = datasets.read(dataset, folder, test_share=test_share)
  return builder.build(
    listed,
    records_dir,
    scale,
    allow_missing=allow_missing,
    missing_allowed=missing_allowed,
  )


def select(
  found: records.Records, split: int, which: str, validation_share: float = 0.0
) -> np.ndarray:
  """Places of the "train", "validation" or "test" list of a split.

  The validation list is carved out of the official training list by whole groups, those whose
  name's hash falls below `validation_share`: stable whatever else the data set holds.

  Raises:
    ValueError: the list has no video here, or the training list lacks a class.
  """
  if which not in LISTS:
    raise ValueError(f"There is no list {which!r}: take one of {', '.join(LISTS)}.")
  if not 0 <= validation_share < 1:
    raise ValueError(
      f"--config.validation_share is {validation_share}: expected 0 or more and less than 1."
    )
  lists = found.lists(split, validation_share)
  places = lists[which]
  if which != "test":
    held_out, training = (set(found.labels[lists[of]].tolist()) for of in ("validation", "train"))
    lost = held_out - training
    if lost:
      raise ValueError(
        f"A validation share of {validation_share:g} takes every training video of these classes: "
        f"{listing.shown(found.class_names[i] for i in sorted(lost))}. Lower "
        "--config.validation_share."
      )
  if not len(places):
    raise ValueError(
      f"The {which} list of split {split} has no video among the {len(found)} that are stored. "
      "Choose another --config.split, or complete the data folder."
    )
  return places


def check_training_classes(found: records.Records, split: int) -> None:
  """Refuses a split that tests a class which it does not train.

  Raises:
    ValueError: with the names of the classes.
  """
  tested = set(found.labels[found.select(split, listing.TEST)].tolist())
  unseen = tested - set(found.labels[found.select(split, listing.TRAIN)].tolist())
  if unseen:
    names = listing.shown(found.class_names[i] for i in sorted(unseen))
    raise ValueError(
      f"Split {split} has test videos and no training video of these classes: {names}. Complete the "
      "data folder, or set --config.allow_missing=True."
    )


def _check_crop(found: records.Records, places: np.ndarray, settings: ClipSettings) -> None:
  smallest = np.minimum(found.height[places], found.width[places])
  if settings.crop_mode == "random" and settings.crop > smallest.min():
    place = places[smallest.argmin()]
    raise ValueError(
      f"A crop of {settings.crop} pixels does not fit stored frames of "
      f"{found.height[place]}x{found.width[place]} ({found.names[place]}). Store larger frames "
      "(--config.stored) or crop less (--config.clip.crop)."
    )


def _options() -> tf.data.Options:
  options = tf.data.Options()
  options.deterministic = True
  options.autotune.enabled = True
  return options


def _share(global_batch: int) -> tuple[int, int]:
  processes = jax.process_count()
  if global_batch % processes:
    raise ValueError(f"The batch of {global_batch} does not divide among {processes} processes.")
  return global_batch // processes, jax.process_index() * (global_batch // processes)


@dataclasses.dataclass(frozen=True)
class _Box:
  """Boxes to cut out of frames, in pixels: tensors of one shape."""

  top: tf.Tensor
  left: tf.Tensor
  height: tf.Tensor
  width: tf.Tensor


def _random_box(
  settings: ClipSettings, seed: int, turns: tf.Tensor, height: tf.Tensor, width: tf.Tensor
) -> _Box:
  """The training crop of each clip, int64 `[B]`, of frames of `height` x `width` `[B]`."""
  draw = functools.partial(draws.integers, seed)
  if settings.crop_mode == "multi_scale":
    shorter = tf.minimum(height, width)
    count = len(settings.scales)
    pairs = [(i, j) for i in range(count) for j in range(count) if abs(i - j) <= 1]
    pair = draw(Purpose.CROP_HEIGHT, turns, len(pairs))
    scales = tf.constant(settings.scales, tf.float64)
    sides = []
    for axis in (0, 1):
      chosen = tf.gather(scales, tf.gather(tf.constant([p[axis] for p in pairs]), pair))
      side = tf.cast(tf.cast(shorter, tf.float64) * chosen, tf.int64)
      # A side that is nearly the model's needs no resizing: TSN takes the model's own.
      near = tf.abs(side - settings.crop) < 3
      sides.append(tf.minimum(tf.where(near, tf.cast(settings.crop, tf.int64), side), shorter))
    # Corners, edges, centre, and the places half way between: in quarters of the spare room.
    quarters = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2)]
    quarters += [(1, 1), (1, 3), (3, 1), (3, 3)]
    place = draw(Purpose.TOP, turns, len(quarters))
    down = tf.gather(tf.constant([q[0] for q in quarters], tf.int64), place)
    right = tf.gather(tf.constant([q[1] for q in quarters], tf.int64), place)
    top, left = (height - sides[0]) // 4 * down, (width - sides[1]) // 4 * right
    return _Box(top, left, sides[0], sides[1])
  if settings.crop_mode == "random_resized":
    unit = 2**31

    def uniform(purpose: Purpose, low: float, high: float) -> tf.Tensor:
      drawn = tf.cast(draw(purpose, turns, unit, _TRIES), tf.float64) / unit
      return low + (high - low) * drawn

    tall, wide = (tf.cast(side, tf.float64)[:, None] for side in (height, width))
    area = tall * wide * uniform(Purpose.AREA, *settings.area)
    aspect = tf.exp(uniform(Purpose.ASPECT, *np.log(settings.aspect)))
    box_width = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int64)
    box_height = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int64)
    fits = (box_width > 0) & (box_width <= width[:, None])
    fits &= (box_height > 0) & (box_height <= height[:, None])
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1)
    any_fits = tf.reduce_any(fits, axis=1)
    # Where none fits: the whole frame, cut to the nearest aspect ratio that is allowed.
    low, high = settings.aspect
    widest = tf.cast(tf.round(tall[:, 0] * high), tf.int64)
    tallest = tf.cast(tf.round(wide[:, 0] / low), tf.int64)
    box_width = tf.where(
      any_fits, tf.gather(box_width, first, batch_dims=1), tf.minimum(width, widest)
    )
    box_height = tf.where(
      any_fits, tf.gather(box_height, first, batch_dims=1), tf.minimum(height, tallest)
    )
    top = draw(Purpose.TOP, turns, height - box_height + 1)
    left = draw(Purpose.LEFT, turns, width - box_width + 1)
    top = tf.where(any_fits, top, (height - box_height) // 2)
    left = tf.where(any_fits, left, (width - box_width) // 2)
    return _Box(top, left, box_height, box_width)
  side = tf.fill(tf.shape(turns), tf.constant(settings.crop, tf.int64))
  top = draw(Purpose.TOP, turns, height - settings.crop + 1)
  left = draw(Purpose.LEFT, turns, width - settings.crop + 1)
  return _Box(top, left, side, side)


def _even_box(settings: ClipSettings, view: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> _Box:
  """The evaluation's crops, int64 `[B]`: `view` is 0 to `eval_crops` - 1 along the longer side."""
  # Where frames are smaller than the crop, their largest square is resized.
  side = tf.minimum(tf.cast(settings.crop, tf.int64), tf.minimum(height, width))
  top, left = (height - side) // 2, (width - side) // 2
  if settings.eval_crops == 3:
    wide = width >= height
    left = tf.where(wide, (width - side) * view // 2, left)
    top = tf.where(wide, top, (height - side) * view // 2)
  return _Box(top, left, side, side)


def _cuts(found: records.Records, place: tf.Tensor, box: _Box, frames: int) -> tf.Tensor:
  """What `_decode` is told of each clip, for all of a batch at once.

  Returns:
    int32 `[B, 4, 4]`: the decoder's window of the stripe (top, left, height, width); the shape of
    what it gives; of that, where the box begins and what size it has.
  """
  rows, frame_width = (tf.gather(tf.constant(of), place) for of in (found.rows, found.width))
  # The decoder is up to twice as slow where a window does not begin on a block of 16 pixels or is a
  # multiple of 8 wide. So it gets a little more, and what it gives is cut.
  begin = box.left // 16 * 16
  wide = tf.minimum(tf.bitwise.bitwise_or(box.left - begin + box.width, 1), frame_width - begin)
  none, three = tf.zeros_like(place), tf.fill(tf.shape(place), tf.constant(3, tf.int64))
  count = tf.fill(tf.shape(place), tf.constant(frames, tf.int64))
  cuts = (
    (none, begin, rows * frames, wide),
    (count, rows, wide, three),
    (none, box.top, box.left - begin, none),
    (count, box.height, box.width, three),
  )
  return tf.cast(tf.stack([tf.stack(cut, axis=1) for cut in cuts], axis=1), tf.int32)


def _decode(stripe: tf.Tensor, cuts: tf.Tensor, settings: ClipSettings) -> tf.Tensor:
  """A stripe of frames to a clip, uint8 `[T, crop, crop, 3]`; other boxes are resized (bilinear)."""
  window, shape, begin, size = tf.unstack(cuts)
  # Colour is taken from the nearest stored pixel, as the threads take it: what stands above or below
  # a frame in its stripe cannot reach into it.
  exact = {"fancy_upscaling": False, "dct_method": "INTEGER_ACCURATE"}
  decoded = tf.io.decode_and_crop_jpeg(stripe, window, channels=3, **exact)
  frames = tf.reshape(decoded, shape)
  clip, crop = tf.slice(frames, begin, size), settings.crop
  fits = tf.reduce_all(size[1:3] == crop)
  clip = tf.cond(fits, lambda: clip, lambda: _resize(clip, crop))
  return tf.ensure_shape(clip, (settings.frames, crop, crop, 3))


def _resize(clip: tf.Tensor, crop: int) -> tf.Tensor:
  smooth = tf.image.resize(clip, (crop, crop), tf.image.ResizeMethod.BILINEAR)
  return tf.cast(tf.clip_by_value(tf.round(smooth), 0, 255), tf.uint8)


def _graph_batches(
  found: records.Records, plans: tf.data.Dataset, local: int, settings: ClipSettings
) -> tf.data.Dataset:
  """Plans of batches to batches, in TensorFlow's operations alone.

  Args:
    found: the index of records.
    plans: elements with `places` `[b]`, `frames` `[b, T]`, `cuts` `[b, 4, 4]`, and what else is to
      go into the batches, numbers `[b]`.
    local: b.
    settings: what a clip is.
  """

  def decode(plan: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    stripe = found.stripe(plan["places"], plan.pop("frames"))
    return {"clips": _decode(stripe, plan.pop("cuts"), settings), **plan}

  data = plans.unbatch().map(decode, num_parallel_calls=tf.data.AUTOTUNE)
  return data.batch(local, drop_remainder=True)


def _graph_arrays(data: tf.data.Dataset, found: records.Records) -> Iterator[Batch]:
  """A data set's elements as NumPy arrays; what TensorFlow says of damage becomes a clear error."""
  try:
    yield from data.prefetch(_PREFETCHED).with_options(_options()).as_numpy_iterator()
  except _DAMAGE as error:
    raise records.RecordsError(_explained(error.message, found)) from error


def _explained(message: str, found: records.Records) -> str:
  """Which record file TensorFlow stumbled over: it tells a place in a file, and not of which."""
  ends = found.offset + found.length + records.FOOTER_BYTES
  for shard in np.unique(found.shard).tolist():
    path = found.shards[shard]
    if not tf.io.gfile.exists(path):
      return f"{path}: the stored records are gone. The same command makes them anew."
    if tf.io.gfile.stat(path).length < ends[found.shard == shard].max():
      return records.damaged(path, "its end is missing")
  told = re.search(r"corrupted record at (\d+)", message)
  at = int(told[1]) if told else 0
  for place in np.flatnonzero((found.offset == at) | (found.offset == at + records.HEADER_BYTES)):
    try:
      found.stripe(tf.constant(place), tf.constant([0], tf.int64))
    except tf.errors.OpError:
      return found.damaged(int(place))
  return f"{found.folder}: the stored records cannot be read: {message.splitlines()[0]}"


def _thread_batches(
  found: records.Records, plans: tf.data.Dataset, settings: ClipSettings
) -> Iterator[Batch]:
  """Plans of batches to batches, by threads of this process; see `_graph_batches`."""
  shape = (settings.frames, settings.crop, settings.crop, 3)
  mine = threading.local()

  def fill(clip: np.ndarray, place: int, frames: np.ndarray, cuts: np.ndarray) -> None:
    window, _, begin, size = cuts
    header = found.headers[found.header[place]]
    needed = header.rows * len(frames) * header.width * 3
    if getattr(mine, "size", 0) < needed:
      mine.size, mine.buffer = needed, np.empty(needed, np.uint8)
    stripe = found.read_stripe(place, frames)
    try:
      pixels = simplejpeg.decode_jpeg(stripe, fastupsample=True, buffer=mine.buffer[:needed])
    except ValueError as error:
      raise records.RecordsError(found.damaged(place)) from error
    pixels = pixels.reshape(len(frames), header.rows, header.width, 3)
    top, left = begin[1], window[1] + begin[2]
    cut = pixels[:, top : top + size[1], left : left + size[2]]
    if cut.shape == shape:
      clip[:] = cut
      return
    for small, frame in zip(clip, cut, strict=True):
      cv2.resize(frame, (settings.crop, settings.crop), small, interpolation=cv2.INTER_LINEAR)

  def fill_some(
    clips: np.ndarray, places: np.ndarray, frames: np.ndarray, cuts: np.ndarray
  ) -> None:
    for clip, place, chosen, cut in zip(clips, places.tolist(), frames, cuts, strict=True):
      fill(clip, place, chosen, cut)

  def begun(plan: Batch) -> tuple[Batch, list[futures.Future]]:
    work = (plan["places"], plan.pop("frames"), plan.pop("cuts"))
    clips = np.empty((len(work[0]), *shape), np.uint8)
    parts = (slice(i, i + _CLIPS_A_TASK) for i in range(0, len(clips), _CLIPS_A_TASK))
    jobs = [pool.submit(fill_some, clips[part], *(of[part] for of in work)) for part in parts]
    return {"clips": clips, **plan}, jobs

  cores = os.cpu_count() or 1
  plan_arrays = plans.prefetch(_PREFETCHED).with_options(_options()).as_numpy_iterator()
  waiting: collections.deque[tuple[Batch, list[futures.Future]]] = collections.deque()
  pool = futures.ThreadPoolExecutor(cores, "decode")
  try:
    for plan in plan_arrays:
      waiting.append(begun(plan))
      # Enough work for every core, and then the batch that is due.
      if len(waiting) > max(_PREFETCHED, 2 * cores // len(waiting[0][1])):
        yield _finished(*waiting.popleft())
    while waiting:
      yield _finished(*waiting.popleft())
  finally:
    try:  # noqa: SIM105
      pool.shutdown(wait=True, cancel_futures=True)
    except AttributeError:
      # At the end of the interpreter, a pool's modules may be gone before batches nobody closed are.
      pass


def _finished(batch: Batch, jobs: list[futures.Future]) -> Batch:
  for job in jobs:
    job.result()
  return batch


def _batches(
  found: records.Records, plans: tf.data.Dataset, local: int, settings: ClipSettings
) -> Iterator[Batch]:
  if found.is_local:
    return _thread_batches(found, plans, settings)
  return _graph_arrays(_graph_batches(found, plans, local, settings), found)


def training_batches(
  found: records.Records,
  places: np.ndarray,
  settings: ClipSettings,
  *,
  batch_size: int,
  first_step: int,
  steps: int,
  seed: int,
  service: str = "",
) -> Iterator[Batch]:
  """Batches for the training steps `first_step` to `steps`, exclusive.

  Every epoch is a new order of the whole list; batches run on across the end of an epoch, so that
  no video is left out and none comes twice in one epoch.

  Args:
    found: the index of records.
    places: the videos to train on.
    settings: what a clip is.
    batch_size: of the global batch.
    first_step: the first batch wanted.
    steps: where to stop.
    seed: of order, windows, crops and flips.
    service: address of a tf.data service dispatcher (`grpc://HOST:PORT`) whose workers, which must
      reach the records, do the work; "" is this process.

  Yields:
    {"clips": uint8 `[b, T, crop, crop, 3]`, "labels": int32 `[b]`, "places": int64 `[b]`, "flips":
    bool `[b]`, the clips to mirror}, b being this process's share of the batch.

  Raises:
    RecordsError: a stored record is damaged.
    ServiceError: no data service is reached at the address.
  """
  _check_crop(found, places, settings)
  local, first_row = _share(batch_size)
  windows = clip_arithmetic.windows(settings, found.num_frames, found.fps)

  def plan(step: tf.Tensor) -> dict[str, tf.Tensor]:
    # A turn is a clip's place in the whole sequence of training.
    turns = step * batch_size + first_row + tf.range(local, dtype=tf.int64)
    place = tf.gather(tf.constant(places, tf.int64), draws.shuffled(seed, turns, len(places)))
    of = {
      field.name: tf.gather(tf.constant(getattr(windows, field.name)), place)[:, None]
      for field in dataclasses.fields(windows)
    }
    if settings.mode == "segments":
      unit, count = clip_arithmetic.SEGMENT_UNIT, settings.frames
      within = draws.integers(seed, Purpose.SEGMENT, turns, unit, count)
      within = tf.reshape(within, (local, count))
      frames = clip_arithmetic.segment_frames(settings, within, frames=of["frames"])
    else:
      start = draws.integers(seed, Purpose.WINDOW, turns, of["starts"][:, 0])
      shape = {name: of[name] for name in ("span", "positions", "numerator", "denominator")}
      frames = clip_arithmetic.window_frames(settings, start[:, None], **shape)
    box = _random_box(
      settings,
      seed,
      turns,
      tf.gather(tf.constant(found.height), place),
      tf.gather(tf.constant(found.width), place),
    )
    flips = draws.integers(seed, Purpose.FLIP, turns, 2) == 1
    return {
      "places": place,
      "frames": tf.ensure_shape(frames, (local, settings.frames)),
      "labels": tf.gather(tf.constant(found.labels, tf.int32), place),
      "flips": flips & settings.flip,
      "cuts": _cuts(found, place, box, settings.frames),
    }

  if not service:
    plans = tf.data.Dataset.range(first_step, steps).map(plan)
    return _batches(found, plans, local, settings)

  def one_batch(step: tf.Tensor) -> tf.data.Dataset:
    plans = tf.data.Dataset.from_tensors(plan(step))
    data = _graph_batches(found, plans, local, settings)
    return data.map(lambda batch: {**batch, "step": step})

  data_service.check_reachable(service)
  return _served(one_batch, found, first_step, steps, service)


def _served(
  one_batch: Callable[[tf.Tensor], tf.data.Dataset],
  found: records.Records,
  first_step: int,
  steps: int,
  service: str,
) -> Iterator[Batch]:
  """Batches from the workers of a tf.data service, put back into the order of their steps.

  The dispatcher hands out steps one by one, and whichever worker is done first sends first. A step
  that a lost worker took with it is done here.
  """
  data = tf.data.Dataset.range(first_step, steps).flat_map(one_batch)
  not_served = "the data service failed; is this the address of its dispatcher?"
  try:
    data = data.apply(
      tf.data.experimental.service.distribute(
        processing_mode=tf.data.experimental.service.ShardingPolicy.DYNAMIC,
        service=service if "://" in service else f"grpc://{service}",
      )
    )
  except tf.errors.OpError as error:
    raise data_service.ServiceError(f"{service}: {not_served} {error.message}") from error
  arrived: queue.Queue[Batch | Exception | None] = queue.Queue(1)
  closed = threading.Event()

  def hand_over(item: Batch | Exception | None) -> None:
    while not closed.is_set():
      with contextlib.suppress(queue.Full):
        arrived.put(item, timeout=0.1)
        return

  def receive() -> None:
    # TensorFlow waits for a lost worker without end, and nothing can call it back: so a thread waits.
    try:
      for batch in _graph_arrays(data, found):
        hand_over(batch)
        if closed.is_set():
          return
      hand_over(None)
    except tf.errors.OpError as error:
      hand_over(data_service.ServiceError(f"{service}: {not_served} {error.message}"))
    except Exception as error:
      hand_over(error)

  threading.Thread(target=receive, name="data service", daemon=True).start()
  early: dict[int, Batch] = {}
  silent = ended = False
  try:
    for due in range(first_step, steps):
      while due not in early and len(early) <= _AHEAD and not ended:
        try:
          batch = arrived.get(timeout=0 if silent else _SILENT_SECONDS)
        except queue.Empty:
          if not silent:
            log.warning(
              "The data service %s has sent nothing for %g s: making batches here until it does",
              service,
              _SILENT_SECONDS,
            )
          silent = True
          break
        if isinstance(batch, Exception):
          raise batch
        ended, silent = batch is None, False
        if batch is not None and int(batch["step"]) >= due:
          early[int(batch.pop("step"))] = batch
      if due not in early:
        log.warning("Step %d did not come from the data service: made here", due)
        (early[due],) = _graph_arrays(one_batch(tf.constant(due, tf.int64)), found)
        early[due].pop("step")
      yield early.pop(due)
  finally:
    closed.set()


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
  """Every clip that an evaluation looks at, known beforehand.

  Attributes:
    places: the videos, `[V]`.
    rows: for each clip, its video's row in `places`, `[C]`.
    frames: of each clip, `[C, T]`.
    crops: which crop of each clip, `[C]`.
  """

  places: np.ndarray
  rows: np.ndarray
  frames: np.ndarray
  crops: np.ndarray

  def batches(self, batch_size: int) -> int:
    """Batches that hold all clips, the last one padded."""
    return -(-len(self.rows) // batch_size)

  def take(self, chosen: np.ndarray | list[int]) -> "EvaluationPlan":
    """Some of the clips, of the same videos."""
    return EvaluationPlan(self.places, self.rows[chosen], self.frames[chosen], self.crops[chosen])


def plan_evaluation(
  found: records.Records, places: np.ndarray, settings: ClipSettings
) -> EvaluationPlan:
  """The views of every video: its windows, and of each window its crops."""
  windows = clip_arithmetic.windows(settings, found.num_frames, found.fps)
  frames: list[np.ndarray] = []
  counts: list[int] = []
  for place in places.tolist():
    if settings.mode == "segments":
      clips = settings.eval_clips or 1
      within = (2 * np.arange(clips) + 1) * clip_arithmetic.SEGMENT_UNIT // (2 * clips)
      within = np.broadcast_to(within[:, None], (clips, settings.frames))
      chosen = clip_arithmetic.segment_frames(settings, within, frames=windows.frames[place])
    else:
      shape = {
        name: getattr(windows, name)[place]
        for name in ("span", "positions", "numerator", "denominator")
      }
      starts = clip_arithmetic.even_starts(
        int(windows.starts[place]), int(shape["span"]), int(shape["positions"]), settings.eval_clips
      )
      chosen = clip_arithmetic.window_frames(settings, starts[:, None], **shape)
    frames.append(np.repeat(chosen, settings.eval_crops, axis=0))
    counts.append(len(frames[-1]))
  total = sum(counts)
  return EvaluationPlan(
    places=places,
    rows=np.repeat(np.arange(len(places)), counts),
    frames=np.concatenate(frames),
    crops=np.arange(total) % settings.eval_crops,
  )


def evaluation_batches(
  found: records.Records,
  plan: EvaluationPlan,
  settings: ClipSettings,
  *,
  batch_size: int,
  shuffle_frames_seed: int | None = None,
) -> Iterator[Batch]:
  """Every clip of a plan once, in order; the last batch is padded.

  Args:
    found: the index of records.
    plan: the clips.
    settings: what a clip is.
    batch_size: of the global batch.
    shuffle_frames_seed: if given, each clip's frames come in a random order drawn from it, which
      takes away what motion tells and keeps what single frames tell.

  Yields:
    {"clips": uint8 `[b, T, crop, crop, 3]`, "labels": int32 `[b]`, "mask": float32 `[b]`}, with
    mask 0 for padding. Clips follow the plan's order across the global batch.

  Raises:
    RecordsError: a stored record is damaged.
  """
  local, first_row = _share(batch_size)
  total = len(plan.rows)
  frames = plan.frames
  if shuffle_frames_seed is not None:
    rng = np.random.default_rng(shuffle_frames_seed)
    frames = rng.permuted(frames, axis=1)
  clip_places = plan.places[plan.rows]

  def batch_plan(batch: tf.Tensor) -> dict[str, tf.Tensor]:
    turns = batch * batch_size + first_row + tf.range(local, dtype=tf.int64)
    real = turns < total
    turns = tf.minimum(turns, total - 1)
    place = tf.gather(tf.constant(clip_places, tf.int64), turns)
    box = _even_box(
      settings,
      tf.gather(tf.constant(plan.crops, tf.int64), turns),
      tf.gather(tf.constant(found.height), place),
      tf.gather(tf.constant(found.width), place),
    )
    return {
      "places": place,
      "frames": tf.gather(tf.constant(frames, tf.int64), turns),
      "labels": tf.gather(tf.constant(found.labels, tf.int32), place),
      "mask": tf.cast(real, tf.float32),
      "cuts": _cuts(found, place, box, settings.frames),
    }

  plans = tf.data.Dataset.range(plan.batches(batch_size)).map(batch_plan)
  batches = _batches(found, plans, local, settings)
  return ({k: v for k, v in batch.items() if k != "places"} for batch in batches)
