"""Batches against stored frames that are decoded one by one and cut in plain NumPy."""

import collections
import dataclasses
import pathlib
import pickle
import resource
import shutil
import subprocess
import sys

from conftest import made_experiment
import jax
import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds

from hybrid_video import configuration, experiment
from hybrid_video.datasets import made_actions, preparation, records, splits
from hybrid_video.sampling import clip_settings
from hybrid_video.sampling.clip_settings import ClipSettings, EvaluationSettings
from hybrid_video.sampling.plans import evaluation_views
from hybrid_video.tasks import pixels
import input_pipeline

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = ClipSettings(frames=8, crop=32)
VIEWS = EvaluationSettings(frames=8, crop=32)


def _training(
  stored, video_ids=None, *, settings=SETTINGS, batch_size=4, first_step=0, count=6, seed=0
):
  return list(
    input_pipeline.training_batches(
      stored,
      np.arange(len(stored)) if video_ids is None else video_ids,
      settings,
      batch_size=batch_size,
      first_step=first_step,
      steps=count,
      seed=seed,
    )
  )


def _evaluation(stored, views, settings=VIEWS, batch_size=8):
  return list(input_pipeline.evaluation_batches(stored, views, settings, batch_size=batch_size))


def _joined(batches, name):
  return np.concatenate([batch[name] for batch in batches])


def _assert_same(batches, others):
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name])


@pytest.fixture(scope="module")
def mixed_records(tmp_path_factory):
  """Videos of several sizes, short side 48: landscape, portrait, square; two groups a class."""
  folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
  sizes = [(64, 96), (96, 64), (64, 64), (64, 80), (112, 64), (64, 100)]
  for i, (height, width) in enumerate(sizes * 2):
    place = folder / "videos" / ("walk", "run")[i % 2]
    place.mkdir(parents=True, exist_ok=True)
    coarse = rng.integers(0, 256, (9 + i, height // 8, width // 8, 3), np.uint8)
    frames = list(coarse.repeat(8, 1).repeat(8, 2))
    made_actions.write_avi(place / f"clip{i}.avi", frames, 10)
  config = configuration.default_config()
  config.dataset = "folder"
  config.data_dir, config.records_dir = str(folder / "videos"), str(folder / "records")
  config.stored.height, config.stored.width = 48, 0
  config.stored.jpeg_quality = 90
  config.test_share = 0.3
  return preparation.load_records(experiment.from_config(config), folder)


@pytest.fixture(scope="module")
def stored(made_records, mixed_records):
  """Frames of videos, uint8 `[N, H, W, 3]`, as TFDS reads them, decoded one by one."""
  known = {}
  for index in (made_records, mixed_records):
    builder = tfds.builder_from_directory(index.folder)
    decoders = {"video": tfds.decode.SkipDecoding()}
    for example in builder.as_dataset(split="videos", decoders=decoders).as_numpy_iterator():
      frames = [simplejpeg.decode_jpeg(f, fastupsample=True) for f in example["video"]]
      known[example["name"].decode()] = np.stack(frames)
  return known


def _cut(frames, top, left, height, width, crop):
  """A box of frames, resized bilinearly with half-pixel centres where it is no square of `crop`."""
  box = frames[:, top : top + height, left : left + width]
  if box.shape[1:3] == (crop, crop):
    return box

  def weights(size):
    at = np.clip((np.arange(crop) + 0.5) * size / crop - 0.5, 0, size - 1)
    low = np.minimum(at.astype(int), max(size - 2, 0))
    table = np.zeros((crop, size))
    table[np.arange(crop), low] += 1 - (at - low)
    table[np.arange(crop), np.minimum(low + 1, size - 1)] += at - low
    return table

  tall = np.tensordot(box.astype(float), weights(height), (1, 1))  # [T, W, 3, crop]
  return np.tensordot(tall, weights(width), (1, 1)).transpose(0, 2, 3, 1)


def _plans(stored, settings, *, count=60, seed=0):
  """What training plans, before anything is decoded: videos, frames and boxes."""
  plans = input_pipeline.training_plans(
    stored, np.arange(len(stored)), settings, batch_size=8, seed=seed
  )
  steps = [dataclasses.asdict(plans.plan(step)) for step in range(count)]
  plan = {name: _joined(steps, name) for name in steps[0]}
  boxes = dict(zip(("top", "left", "height", "width"), plan["boxes"].T, strict=True))
  return plan, boxes


@pytest.mark.parametrize("mode", clip_settings.MODES)
def test_a_training_clip_is_planned_frames_cut_from_the_stored_ones(made_records, stored, mode):
  settings = ClipSettings(frames=8, crop=32, mode=mode)
  plans, boxes = _plans(made_records, settings, count=4)
  batches = _training(made_records, settings=settings, batch_size=8, count=4)
  got = _joined(batches, "clips")
  for i, video_id in enumerate(plans["video_ids"]):
    indices = plans["frames"][i]
    frames = stored[made_records.names[video_id]][indices]
    box = {name: int(values[i]) for name, values in boxes.items()}
    np.testing.assert_array_equal(got[i], _cut(frames, **box, crop=32))
    assert (np.diff(indices) >= 0).all()
    if mode == "segments":
      edges = np.arange(9) * len(stored[made_records.names[video_id]]) // 8
      assert (edges[:-1] <= indices).all()
      assert (indices < edges[1:]).all()
  assert len(set(boxes["top"].tolist())) == 7
  assert len(set(boxes["left"].tolist())) > 10
  assert (boxes["top"].max(), boxes["left"].max()) <= (6, 18)


@pytest.mark.parametrize("crop_mode", ["multi_scale", "random_resized"])
def test_resized_boxes_are_the_stored_pixels_interpolated(mixed_records, stored, crop_mode):
  settings = ClipSettings(frames=4, crop=40, crop_mode=crop_mode)
  plans, boxes = _plans(mixed_records, settings, count=4)
  got = _joined(_training(mixed_records, settings=settings, batch_size=8, count=4), "clips")
  for i, video_id in enumerate(plans["video_ids"]):
    frames = stored[mixed_records.names[video_id]][plans["frames"][i]]
    box = {name: int(values[i]) for name, values in boxes.items()}
    wanted = _cut(frames, **box, crop=40)
    assert np.abs(got[i] - wanted).max() <= 1.01
    assert np.abs(got[i] - wanted).mean() < 0.3


def test_multi_scale_boxes_are_tsns(mixed_records):
  settings = ClipSettings(frames=1, crop=40, crop_mode="multi_scale")
  plans, boxes = _plans(mixed_records, settings, count=150)
  # Of a short side of 48: 48, 42, 36, 31; 42 is nearly the model's 40.
  ladder = [48, 40, 36, 31]
  pairs = collections.Counter(zip(boxes["height"].tolist(), boxes["width"].tolist(), strict=True))
  wanted = {(a, b) for i, a in enumerate(ladder) for j, b in enumerate(ladder) if abs(i - j) < 2}
  assert set(pairs) == wanted
  assert max(pairs.values()) < 2 * min(pairs.values())
  positions = set()
  for i, video_id in enumerate(plans["video_ids"]):
    spare_y = int(mixed_records.height[video_id] - boxes["height"][i]) // 4
    spare_x = int(mixed_records.width[video_id] - boxes["width"][i]) // 4
    if spare_x and spare_y:
      positions.add((boxes["top"][i] / spare_y, boxes["left"][i] / spare_x))
  grid = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)]
  assert positions == {*grid, (1, 1), (1, 3), (3, 1), (3, 3)}


def test_random_resized_boxes_keep_to_their_area_and_aspect(mixed_records):
  settings = ClipSettings(frames=1, crop=40, crop_mode="random_resized", area=(0.3, 0.6))
  plans, boxes = _plans(mixed_records, settings, count=150)
  height, width = boxes["height"], boxes["width"]
  tall, wide = mixed_records.height[plans["video_ids"]], mixed_records.width[plans["video_ids"]]
  area, aspect = height * width / (tall * wide), width / height
  # Sides are whole pixels: a half more or less of each.
  slack = 0.5 / height + 0.5 / width
  assert (area > 0.3 * (1 - 1.1 * slack)).all()
  assert (area < 0.6 * (1 + 1.1 * slack)).all()
  assert (aspect > 0.75 * (1 - 1.1 * slack)).all()
  assert (aspect < 4 / 3 * (1 + 1.1 * slack)).all()
  assert (boxes["top"] >= 0).all()
  assert (boxes["top"] + height <= tall).all()
  assert (boxes["left"] >= 0).all()
  assert (boxes["left"] + width <= wide).all()
  assert area.max() - area.min() > 0.25
  assert abs(np.log(aspect).mean()) < 0.03


def test_a_random_resized_box_that_never_fits_is_the_largest_in_the_middle(mixed_records):
  # Frames no more than 2.3 wide cannot give a box of 4 to 1 with nearly their whole area.
  settings = ClipSettings(
    frames=1, crop=40, crop_mode="random_resized", area=(0.99, 1.0), aspect=(4.0, 4.0)
  )
  plans, boxes = _plans(mixed_records, settings, count=10)
  tall, wide = mixed_records.height[plans["video_ids"]], mixed_records.width[plans["video_ids"]]
  assert (boxes["width"] == wide).all()
  assert (boxes["height"] == np.round(wide / 4)).all()
  assert (boxes["top"] == (tall - boxes["height"]) // 2).all()
  assert (boxes["left"] == 0).all()


@pytest.mark.parametrize(("crop", "crops"), [(32, 1), (32, 3), (60, 1), (60, 3)])
def test_evaluation_crops_are_the_centre_or_three_along_the_longer_side(
  mixed_records, stored, crop, crops
):
  settings = EvaluationSettings(frames=4, crop=crop, crops=crops, clips=2)
  video_ids = np.arange(len(mixed_records))
  views = evaluation_views(mixed_records, video_ids, settings)
  assert len(views) == 2 * crops * len(video_ids)
  got = _joined(_evaluation(mixed_records, views, settings), "clips")
  rows = zip(views.rows, views.clips.frames, views.crops, strict=True)
  for i, (row, indices, view) in enumerate(rows):
    frames = stored[mixed_records.names[video_ids[row]]][indices]
    height, width = frames.shape[1:3]
    side = min(crop, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if crops == 3 and width >= height:
      left = (0, (width - side) // 2, width - side)[view]
    elif crops == 3:
      top = (0, (height - side) // 2, height - side)[view]
    wanted = _cut(frames, top, left, side, side, crop)
    assert np.abs(got[i] - wanted).max() <= (0 if side == crop else 1.01)


def test_evaluation_windows_are_those_worked_out_by_hand(mixed_records):
  video = mixed_records.names.tolist().index(next(n for n in mixed_records.names if "clip6" in n))
  assert mixed_records.num_frames[video] == 15

  def frames(**options):
    settings = EvaluationSettings(frames=4, crop=32, **options)
    return evaluation_views(mixed_records, np.array([video]), settings).clips.frames.tolist()

  # 10 frames a second: a window of 0.6 s is six.
  assert frames(window_seconds=0.6) == [[0, 1, 3, 5], [4, 5, 7, 9], [9, 10, 12, 14]]
  assert frames(window_seconds=0.6, clips=1) == [[4, 5, 7, 9]]
  assert frames(mode="stride", stride=2, clips=2) == [[0, 2, 4, 6], [8, 10, 12, 14]]
  assert frames(mode="stride", rate=5, clips=2) == [[0, 2, 4, 6], [6, 8, 10, 12]]
  assert frames(mode="segments") == [[1, 5, 9, 13]]
  assert frames(mode="segments", clips=2) == [[0, 4, 8, 12], [2, 6, 10, 14]]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_sees_every_view_once_in_order_whatever_the_batch(made_records, batch_size):
  settings = EvaluationSettings(frames=2, crop=32, clips=2, crops=3)
  video_ids = splits.select(made_records, 2, "test")
  views = evaluation_views(made_records, video_ids, settings)
  assert views.rows.tolist() == np.arange(len(video_ids)).repeat(6).tolist()
  batches = _evaluation(made_records, views, settings, batch_size)
  mask, labels = _joined(batches, "mask"), _joined(batches, "labels")
  total = len(views)
  assert len(mask) == views.num_batches(batch_size) * batch_size
  assert mask.tolist() == [1.0] * total + [0.0] * (len(mask) - total)
  assert (labels[:total] == made_records.labels[video_ids][views.rows]).all()
  whole = _evaluation(made_records, views, settings, total)[0]["clips"]
  np.testing.assert_array_equal(_joined(batches, "clips")[:total], whole)


def test_every_epoch_takes_every_video_once_in_a_new_order(made_records):
  video_ids = splits.select(made_records, 1, "train")
  epoch = len(video_ids)
  assert epoch % 5, "batches are meant to run across the end of an epoch"
  batches = _training(made_records, video_ids, batch_size=5, count=3 * epoch // 5)
  order = _joined(batches, "video_ids")
  epochs = [order[i : i + epoch] for i in range(0, 2 * epoch, epoch)]
  assert all(sorted(e.tolist()) == sorted(video_ids.tolist()) for e in epochs)
  assert epochs[0].tolist() != epochs[1].tolist()
  assert (_joined(batches, "labels") == made_records.labels[order]).all()


def test_the_sequence_follows_from_the_seed_and_the_step_alone(made_records):
  whole = _training(made_records, count=8)
  _assert_same(whole[5:], _training(made_records, first_step=5, count=8))
  other = _training(made_records, count=8, seed=1)
  assert _joined(whole, "video_ids").tolist() != _joined(other, "video_ids").tolist()


def test_the_batch_size_changes_no_clip(made_records):
  small = _training(made_records, batch_size=2, count=12)
  large = _training(made_records, batch_size=6, count=4)
  for name in small[0]:
    np.testing.assert_array_equal(_joined(small, name), _joined(large, name))


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_share_batches_without_gap_or_overlap(made_records, monkeypatch, processes):
  views = evaluation_views(made_records, np.arange(13), VIEWS)
  whole = (
    _training(made_records, batch_size=12, count=3),
    _evaluation(made_records, views, batch_size=12),
  )
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  shares = []
  for process in range(processes):
    monkeypatch.setattr(jax, "process_index", lambda p=process: p)
    shares.append(
      (
        _training(made_records, batch_size=12, count=3),
        _evaluation(made_records, views, batch_size=12),
      )
    )
  for kind in (0, 1):
    for step, batch in enumerate(whole[kind]):
      for name in batch:
        joined = np.concatenate([share[kind][step][name] for share in shares])
        np.testing.assert_array_equal(batch[name], joined)
  if processes > 1:
    with pytest.raises(ValueError, match=f"does not divide among {processes} processes"):
      _training(made_records, batch_size=13)


@pytest.mark.parametrize("crop_mode", clip_settings.CROPS)
def test_tensorflow_alone_gives_what_the_threads_give(mixed_records, monkeypatch, crop_mode):
  settings = ClipSettings(frames=4, crop=40, crop_mode=crop_mode, rate=5, short="loop")
  viewed = EvaluationSettings(frames=4, crop=40, rate=5, short="loop")
  views = evaluation_views(mixed_records, np.arange(6), viewed)
  threads = [
    *_training(mixed_records, settings=settings),
    *_evaluation(mixed_records, views, viewed),
  ]
  monkeypatch.setattr(records.Records, "is_local", property(lambda _: False))
  graph = [
    *_training(mixed_records, settings=settings),
    *_evaluation(mixed_records, views, viewed),
  ]
  for batch, other in zip(threads, graph, strict=True):
    assert batch.keys() == other.keys()
    for name in batch:
      # The two interpolate by different arithmetic; what is only cut is the same to the bit.
      allowed = 1 if name == "clips" and crop_mode != "random" else 0
      differ = np.abs(batch[name].astype(float) - other[name].astype(float))
      assert differ.max() <= allowed


def test_half_of_the_clips_are_mirrored_on_the_device(made_records):
  mirrored = _joined(_training(made_records, batch_size=64, count=8), "mirrored")
  assert 0.4 < mirrored.mean() < 0.6
  still = dataclasses.replace(SETTINGS, flip=False)
  assert not _joined(_training(made_records, settings=still, batch_size=64), "mirrored").any()
  batch = _training(made_records, batch_size=16, count=1)[0]
  turned = np.asarray(pixels.mirror(batch["clips"], batch["mirrored"]))
  for before, after, flip in zip(batch["clips"], turned, batch["mirrored"], strict=True):
    np.testing.assert_array_equal(after, before[:, :, ::-1] if flip else before)


def test_shuffled_frames_are_the_same_frames_in_another_order(made_records):
  views = evaluation_views(made_records, np.arange(8), VIEWS)
  straight, shuffled, again = (
    _joined(_evaluation(made_records, order), "clips")
    for order in (views, views.with_shuffled_frames(1), views.with_shuffled_frames(1))
  )
  np.testing.assert_array_equal(shuffled, again)
  for a, b in zip(straight, shuffled, strict=True):
    assert sorted(f.tobytes() for f in a) == sorted(f.tobytes() for f in b)
  assert (straight != shuffled).any((1, 2, 3, 4)).mean() > 0.5


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("harm", ["flipped", "cut", "removed"])
def test_damage_after_the_build_names_the_file(made_records, tmp_path, monkeypatch, harm, local):
  folder = tmp_path / "records"
  shutil.copytree(made_records.folder, folder)
  shard = folder / pathlib.Path(made_records.shards[0]).name
  index = dataclasses.replace(made_records, folder=str(folder), shards=(str(shard),))
  views = evaluation_views(index, np.arange(len(index)), VIEWS)
  frame = index.first_frame[3] + views.clips.frames[views.rows == 3][0, 4]
  data = bytearray(shard.read_bytes())
  if harm == "flipped":
    data[int(index.offset[3] + index.scan_at[frame] + index.scan_bytes[frame] // 2)] ^= 16
    shard.write_bytes(data)
  elif harm == "cut":
    shard.write_bytes(data[: int(index.offset[3]) + 100])
  else:
    shard.unlink()
  monkeypatch.setattr(records.Records, "is_local", property(lambda _: local))
  with pytest.raises(records.RecordsError, match=shard.name):
    _evaluation(index, views)
  with pytest.raises(records.RecordsError, match=shard.name):
    # Every frame of every video, so that the damaged one is among them.
    _training(index, settings=ClipSettings(frames=64, crop=32, window_seconds=9), batch_size=16)


def test_a_crop_larger_than_the_stored_frames_is_refused(made_records):
  with pytest.raises(ValueError, match="112 pixels does not fit stored frames of 38x50"):
    _training(made_records, settings=ClipSettings(crop=112))


@pytest.mark.parametrize(
  ("kind", "wrong", "message"),
  [
    (ClipSettings, {"crop_mode": "ten"}, r"clip\.crop_mode is 'ten': expected one of random"),
    (ClipSettings, {"area": (0.5, 1.5)}, r"clip\.area"),
    (ClipSettings, {"aspect": (2.0, 1.0)}, r"clip\.aspect"),
    (ClipSettings, {"scales": ()}, r"clip\.scales"),
    (EvaluationSettings, {"crops": 2}, "1 or 3"),
    (EvaluationSettings, {"mode": "all"}, r"evaluation\.mode is 'all'"),
  ],
)
def test_settings_out_of_range_are_refused(kind, wrong, message):
  with pytest.raises(ValueError, match=message):
    kind(**wrong)


def test_a_data_set_must_be_named_and_known(tmp_path):
  with pytest.raises(ValueError, match=r"--config\.data_dir"):
    preparation.load_records(made_experiment(data_dir=""), tmp_path)
  with pytest.raises(ValueError, match=r"--config\.dataset is 'ucf'.*Did you mean ucf101"):
    made_experiment(dataset="ucf")


def test_batches_can_be_left_in_the_middle_without_a_hang(made_records, tmp_path):
  index = tmp_path / "index.pickle"
  index.write_bytes(pickle.dumps(made_records))
  code = (
    "import pickle, sys, numpy as np, input_pipeline\n"
    "from hybrid_video.sampling.clip_settings import ClipSettings\n"
    "records = pickle.load(open(sys.argv[1], 'rb'))\n"
    "settings = ClipSettings(frames=8, crop=32)\n"
    "def batches():\n"
    "  return input_pipeline.training_batches(records, np.arange(len(records)), settings,\n"
    "    batch_size=16, first_step=0, steps=10**9, seed=0)\n"
    "closed, open_one = batches(), batches()\n"
    "next(closed); closed.close(); next(open_one)\n"
    "print('left')\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, str(index)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  )
  assert done.stdout == "left\n"
  assert "Exception" not in done.stderr


def _resident():
  """Bytes of memory that this process holds now, or the most it held where that is all it knows."""
  statm = pathlib.Path("/proc/self/statm")
  if statm.exists():
    return int(statm.read_text().split()[1]) * resource.getpagesize()
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_memory_does_not_grow_with_the_clips(made_records):
  settings = ClipSettings(frames=4, crop=32)
  batches = input_pipeline.training_batches(
    made_records, np.arange(len(made_records)), settings, batch_size=16, first_step=0, steps=150,
    seed=0,
  )  # fmt: skip
  held = []
  for step, _ in enumerate(batches):
    if step in (40, 149):
      held.append(_resident())
  # 109 batches of 16 clips are 21 MB: one that stays would show.
  assert held[1] - held[0] < 12e6
