import io

import jax
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

import input_pipeline

SETTINGS = input_pipeline.ClipSettings(frames=8, crop=32)


def _train(found, places, *, batch_size=4, first_step=0, steps=6, seed=0, settings=SETTINGS):
  return list(
    input_pipeline.training_batches(
      found,
      places,
      settings,
      batch_size=batch_size,
      first_step=first_step,
      steps=steps,
      seed=seed,
    )
  )


def _joined(batches, name):
  return np.concatenate([batch[name] for batch in batches])


def test_every_epoch_takes_every_video_once_in_a_new_order(made_records):
  places = input_pipeline.select(made_records, 1, "train")
  epoch = len(places)
  assert epoch % 5, "batches are meant to run across the end of an epoch"
  batches = _train(made_records, places, batch_size=5, steps=3 * epoch // 5)
  order = _joined(batches, "places")
  epochs = [order[i : i + epoch] for i in range(0, 2 * epoch, epoch)]
  assert all(sorted(e.tolist()) == sorted(places.tolist()) for e in epochs)
  assert epochs[0].tolist() != epochs[1].tolist()
  assert (_joined(batches, "labels") == made_records.labels[order]).all()


def test_the_sequence_follows_from_the_seed_and_the_step_alone(made_records):
  places = input_pipeline.select(made_records, 1, "train")
  whole = _train(made_records, places, steps=8)
  resumed = _train(made_records, places, first_step=5, steps=8)
  for late, again in zip(whole[5:], resumed, strict=True):
    for name in late:
      np.testing.assert_array_equal(late[name], again[name])
  other = _train(made_records, places, steps=8, seed=1)
  assert _joined(whole, "places").tolist() != _joined(other, "places").tolist()


def test_the_batch_size_changes_no_clip(made_records):
  places = input_pipeline.select(made_records, 1, "train")
  small = _joined(_train(made_records, places, batch_size=2, steps=12), "clips")
  large = _joined(_train(made_records, places, batch_size=6, steps=4), "clips")
  np.testing.assert_array_equal(small, large)


def test_processes_share_a_batch_without_overlap(made_records, monkeypatch):
  places = input_pipeline.select(made_records, 1, "train")
  whole = _train(made_records, places, batch_size=6, steps=3)
  shares = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  for process in range(2):
    monkeypatch.setattr(jax, "process_index", lambda p=process: p)
    shares.append(_train(made_records, places, batch_size=6, steps=3))
  for one, first, second in zip(whole, *shares, strict=True):
    joined = np.concatenate([first["clips"], second["clips"]])
    np.testing.assert_array_equal(one["clips"], joined)
  with pytest.raises(ValueError, match="does not divide among 2 processes"):
    _train(made_records, places, batch_size=5)


def _stored_frames(found, place):
  frames = found.fetch(tf.constant(place))["video"].numpy()
  return np.stack([np.asarray(Image.open(io.BytesIO(frame))) for frame in frames])


def test_a_training_clip_is_a_window_of_the_stored_frames(made_records):
  places = input_pipeline.select(made_records, 1, "train")
  batch = _train(made_records, places, batch_size=4, steps=1)[0]
  tops, lefts = set(), set()
  for clip, place in zip(batch["clips"], batch["places"], strict=True):
    frames = _stored_frames(made_records, place).astype(int)
    top, left, mirrored = _find(clip.astype(int), frames)
    tops.add(top)
    lefts.add((left, mirrored))
  assert len(tops | lefts) > 2


def _find(clip, frames):
  """Where in the stored frames a clip was cut: (top, left, mirrored)."""
  height, width = frames.shape[1:3]
  crop = clip.shape[1]
  for mirrored in (False, True):
    wanted = clip[:, :, ::-1] if mirrored else clip
    for top in range(height - crop + 1):
      for left in range(width - crop + 1):
        cut = frames[:, top : top + crop, left : left + crop]
        # Decoders differ by a few grey levels where chroma is spread over two pixels.
        errors = np.abs(cut[:, None] - wanted[None]).mean((2, 3, 4))
        if errors.min(0).max() < 3:
          assert (np.diff(errors.argmin(0)) >= 0).all()
          return top, left, mirrored
  raise AssertionError("the clip is no part of the stored video")


def test_flipping_mirrors_about_half_of_the_clips_and_nothing_else(made_records):
  places = input_pipeline.select(made_records, 1, "train")
  plain = input_pipeline.ClipSettings(frames=4, crop=32, flip=False)
  flips = input_pipeline.ClipSettings(frames=4, crop=32, flip=True)
  straight = _joined(_train(made_records, places, steps=12, settings=plain), "clips")
  perhaps = _joined(_train(made_records, places, steps=12, settings=flips), "clips")
  same = (straight == perhaps).all((1, 2, 3, 4))
  mirrored = (straight[:, :, :, ::-1] == perhaps).all((1, 2, 3, 4))
  assert (same | mirrored).all()
  assert 10 < mirrored.sum() < 38


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_evaluation_sees_every_clip_once_in_order_whatever_the_batch(made_records, batch_size):
  places = input_pipeline.select(made_records, 2, "test")
  plan = input_pipeline.plan_evaluation(made_records, places, SETTINGS)
  batches = list(
    input_pipeline.evaluation_batches(made_records, plan, SETTINGS, batch_size=batch_size)
  )
  mask, labels = _joined(batches, "mask"), _joined(batches, "labels")
  assert len(mask) == plan.batches(batch_size) * batch_size
  assert mask.sum() == len(plan.rows)
  assert mask[: len(plan.rows)].all()
  assert (labels[: len(plan.rows)] == made_records.labels[places][plan.rows]).all()
  assert sorted(set(plan.rows.tolist())) == list(range(len(places)))


def test_an_evaluation_clip_is_the_centre_of_its_window(made_records):
  places = input_pipeline.select(made_records, 1, "test")
  plan = input_pipeline.plan_evaluation(made_records, places, SETTINGS)
  (batch,) = input_pipeline.evaluation_batches(
    made_records, plan, SETTINGS, batch_size=len(plan.rows)
  )
  for row, start, length, clip in zip(
    plan.rows, plan.starts, plan.lengths, batch["clips"], strict=True
  ):
    frames = _stored_frames(made_records, places[row]).astype(int)
    # 38x50 stored, 32 cropped: 3 above, 9 to the left.
    cut = frames[:, 3:35, 9:41]
    chosen = np.abs(cut[:, None] - clip[None].astype(int)).mean((2, 3, 4))
    indices = start + np.arange(8) * (length - 1) // 7
    assert (chosen[indices, np.arange(8)] < 3).all()


def test_shuffled_frames_are_the_same_frames_in_another_order(made_records):
  places = input_pipeline.select(made_records, 1, "test")
  plan = input_pipeline.plan_evaluation(made_records, places, SETTINGS)

  def clips(seed):
    batches = input_pipeline.evaluation_batches(
      made_records, plan, SETTINGS, batch_size=len(plan.rows), shuffle_frames_seed=seed
    )
    return next(batches)["clips"]

  straight, shuffled, again = clips(None), clips(1), clips(1)
  np.testing.assert_array_equal(shuffled, again)
  moved = 0
  for a, b in zip(straight, shuffled, strict=True):
    assert sorted(f.tobytes() for f in a) == sorted(f.tobytes() for f in b)
    moved += (a != b).any()
  assert moved > len(straight) // 2


def test_a_crop_larger_than_the_stored_frames_is_refused(made_records):
  settings = input_pipeline.ClipSettings(crop=112)
  with pytest.raises(ValueError, match="112 pixels does not fit stored frames of 38x50"):
    _train(made_records, np.arange(4), settings=settings)


def test_a_data_set_must_be_named_and_known(tmp_path):
  settings = {
    "records_dir": str(tmp_path),
    "scale": None,
    "allow_missing": False,
    "made_films": 0,
    "seed": 0,
  }
  with pytest.raises(ValueError, match=r"--config\.data_dir"):
    input_pipeline.prepare(dataset="hmdb51", data_dir="", **settings)
  with pytest.raises(ValueError, match="no data set 'ucf'"):
    input_pipeline.prepare(dataset="ucf", data_dir="x", **settings)
