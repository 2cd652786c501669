"""The whole command on the made videos: what its sheets show is what the pipeline gives."""

import dataclasses
import json
import re

from conftest import made_experiment
import jax
import numpy as np
import pytest

from hybrid_video import inspection
from hybrid_video.datasets import preparation, splits
from hybrid_video.report import data_page
import input_pipeline

CLIP = {"frames": 6, "window_seconds": 1.0, "crop": 24, "flip": True}


def chosen(**changes):
  """The experiment that is inspected, with changes; `clip` adds to the clip's settings."""
  changes["clip"] = {**CLIP, **changes.get("clip", {})}
  return made_experiment(mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2), **changes)


@pytest.fixture
def inspect(made_records, tmp_path, monkeypatch):
  """A function that runs the mode on some records."""

  def run(records=made_records, **changes):
    monkeypatch.setattr(preparation, "load_records", lambda *_: records)
    return inspection.run(chosen(**changes), tmp_path, input_pipeline)

  return run


@pytest.fixture
def sheets(inspect, monkeypatch):
  """A function that runs the mode without writing, and gives its sheets by name."""
  caught = {}
  monkeypatch.setattr(
    data_page, "write", lambda folder, summary, pictures: caught.update(pictures=pictures)
  )

  def run(**changes):
    inspect(**changes)
    return {sheet.name: sheet for sheet in caught["pictures"]}

  return run


def frames_of(sheet):
  return [strip.frames for strip in sheet.strips]


def test_the_mode_writes_a_page_and_says_where(inspect, made_records, tmp_path, caplog):
  caplog.set_level("INFO", logger="hybrid_video")
  folder = tmp_path / "inspection"
  result = inspect()
  assert result["page"] == str(folder / "index.html")
  assert json.loads((folder / "data.json").read_text()) == result["summary"]
  assert result["summary"]["videos"]["stored"] == len(made_records)
  assert str(folder / "index.html") in caplog.text
  assert f"{len(made_records)} stored" in caplog.text
  text = (folder / "index.html").read_text()
  shown = re.findall(r'src="([^"]+)"', text)
  assert len(shown) == len(set(shown)) == len(list((folder / "strips").iterdir()))
  for name in ("stored", "augmented", "evaluated"):
    assert (folder / f"{name}.png").is_file()


def test_the_same_seed_shows_the_same_and_another_does_not(sheets):
  first, again, other = sheets(), sheets(), sheets(seed=1)
  for name in first:
    for one, same in zip(first[name].strips, again[name].strips, strict=True):
      assert (one.title, one.detail) == (same.title, same.detail)
      np.testing.assert_array_equal(one.frames, same.frames)
  # The made set has one test film: there is nothing to choose.
  for name in ("stored", "augmented"):
    details = [strip.detail for strip in first[name].strips]
    assert details != [strip.detail for strip in other[name].strips]


def test_stored_videos_are_spread_over_all_classes(sheets, made_records):
  strips = sheets()["stored"].strips
  assert len(strips) == 16
  titles = [strip.title for strip in strips]
  assert titles == sorted(titles) and set(titles) == set(made_records.class_names)
  assert {strip.frames.shape for strip in strips} == {(8, 38, 50, 3)}
  # From the first frame to the last, with the video's own rate.
  video_id = made_records.names.tolist().index(strips[0].detail.split(" · ")[0])
  last = made_records.num_frames[video_id] - 1
  assert strips[0].labels[0] == "0 · 0.00 s"
  assert strips[0].labels[-1] == f"{last} · {last / made_records.fps[video_id]:.2f} s"


def test_many_classes_give_one_video_each_and_few_give_several(made_records):
  assert len(inspection.spread(made_records, np.arange(0), 4, (0,))) == 0
  everything = np.arange(len(made_records))
  few = inspection.spread(made_records, everything, 3, (0,))
  assert len(set(made_records.labels[few])) == 3
  more = inspection.spread(made_records, everything, 12, (0,))
  assert len(set(more)) == 12
  assert set(np.bincount(made_records.labels[more])) == {1, 2}
  assert inspection.spread(made_records, everything, 1000, (0,)).tolist() == sorted(
    everything, key=lambda video_id: (made_records.labels[video_id], video_id)
  )


def test_records_on_a_remote_file_system_show_the_same_frames(made_records):
  remote = dataclasses.replace(made_records, folder=f"file://{made_records.folder}")
  assert not remote.is_local
  frames = np.array([0, 3, 4])
  local = inspection.stored_frames(made_records, 5, frames)
  assert local.shape == (3, 38, 50, 3) and local.std() > 0
  np.testing.assert_array_equal(inspection.stored_frames(remote, 5, frames), local)


def test_draws_of_one_video_differ_and_come_from_the_training_list(sheets, made_records):
  strips = sheets()["augmented"].strips
  assert len(strips) == 12
  training = set(made_records.names[splits.select(made_records, 1, "train")].tolist())
  names = [strip.detail.split(" · ")[1] for strip in strips]
  assert set(names) <= training and len(set(names)) == 4
  assert [strip.detail[:6] for strip in strips] == ["draw 1", "draw 2", "draw 3"] * 4
  for i in range(0, 12, 3):
    assert len({strip.frames.tobytes() for strip in strips[i : i + 3]}) == 3


def test_mirrored_draws_are_the_others_turned_around(sheets):
  plain = sheets(clip={"flip": False})["augmented"].strips
  turned = sheets()["augmented"].strips
  mirrored = ["mirrored" in strip.detail for strip in turned]
  assert any(mirrored) and not all(mirrored)
  for before, after, is_ in zip(plain, turned, mirrored, strict=True):
    expected = before.frames[:, :, ::-1] if is_ else before.frames
    np.testing.assert_array_equal(after.frames, expected)


def test_normalizing_and_back_changes_no_pixel(sheets):
  # Smoothing alone sends clips through the device's augmentation without changing them.
  smoothed = sheets(augmentation={"label_smoothing": 0.2})["augmented"]
  for before, after in zip(frames_of(sheets()["augmented"]), frames_of(smoothed), strict=True):
    np.testing.assert_array_equal(before, after)


def test_mixed_clips_have_the_labels_of_both(sheets):
  plain = sheets()["augmented"].strips
  mixed = sheets(augmentation={"mixup": 1.0})["augmented"].strips
  assert not any("+" in strip.title for strip in plain)
  both = 0
  for before, after in zip(plain, mixed, strict=True):
    shares = [float(share) for share in re.findall(r"\d\.\d\d", after.title)]
    assert sum(shares) == pytest.approx(1, abs=0.02)
    both += len(shares) > 1
    own = {name: float(s) for s, name in re.findall(r"(\d\.\d\d) (\w+)", after.title)}
    if own.get(before.title, 0) < 0.9:
      assert (before.frames != after.frames).any()
  assert both


def test_soft_labels_are_described_largest_first():
  names = ("golf", "run", "wave")
  assert inspection.describe_shares(np.array([0.3, 0, 0.7]), names) == "0.70 wave + 0.30 golf"
  shares = np.full(51, 0.1 / 51)
  shares[7] += 0.9
  words = inspection.describe_shares(shares, [f"c{i}" for i in range(51)])
  assert words == "0.90 c7 + 0.10 others"
  assert inspection.describe_shares(np.full(200, 0.005), ["c"] * 200) == "0.01 c + 0.99 others"


def test_every_view_is_shown_in_order_with_its_window_and_crop(sheets, made_records):
  strips = sheets(evaluation={"clips": 2, "crops": 3})["evaluated"].strips
  assert len(strips) == 4 * 2 * 3
  tests = set(made_records.names[splits.select(made_records, 1, "test")].tolist())
  for i, strip in enumerate(strips):
    view, where, name = strip.detail.split(" · ")
    assert view == f"view {i % 6 + 1} of 6" and name in tests
    assert where.endswith(f"{('left', 'centre', 'right')[i % 3]} crop")
    video_id = made_records.names.tolist().index(name)
    frames = np.array([int(label.split(" · ")[0]) for label in strip.labels])
    whole = inspection.stored_frames(made_records, video_id, frames).astype(int)
    left = (0, 13, 26)[i % 3]
    # Another decoder interpolates colour a little differently.
    difference = np.abs(whole[:, 7:31, left : left + 24] - strip.frames)
    assert difference.mean() < 3
    first, last = (float(x) for x in re.findall(r"\d+\.\d\d", where))
    fps = made_records.fps[video_id]
    assert first == pytest.approx(frames[0] / fps, abs=0.01)
    assert last == pytest.approx((frames[-1] + 1) / fps, abs=0.01)


def test_more_views_than_fit_are_counted(sheets):
  sheet = sheets(evaluation={"clips": 30, "crops": 3})["evaluated"]
  assert len(sheet.strips) == 60
  assert "The first 60 of 90 views." in sheet.text
  assert sheet.strips[-1].detail.startswith("view 60 of 90")


def test_empty_lists_give_a_page_that_says_so(sheets, made_records):
  codes = np.zeros_like(made_records.split_codes)
  empty = sheets(records=dataclasses.replace(made_records, split_codes=codes))
  assert empty["stored"].strips
  for name, list_ in (("augmented", "training"), ("evaluated", "test")):
    assert not empty[name].strips
    assert empty[name].text == f"The {list_} list has no stored video."


def test_large_frames_are_made_smaller_for_the_page(sheets, monkeypatch):
  monkeypatch.setattr(inspection, "_HIGHEST", 19)
  assert {strip.frames.shape[1:3] for strip in sheets()["stored"].strips} == {(19, 25)}


def test_several_processes_are_refused(sheets, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(inspection.InspectionError, match="2 processes"):
    sheets()
