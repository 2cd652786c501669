"""The lists of a split: which videos they have, that groups stay whole, and what is refused."""

import dataclasses
import hashlib

import numpy as np
import pytest

from hybrid_video import errors
from hybrid_video.datasets import listing, splits

CLASSES = ("circle", "down_then_up", "left", "right", "rise", "sink", "spin", "up_then_down")
FILMS = 4


@dataclasses.dataclass(frozen=True)
class Videos:
  """What the lists need to know of stored videos, without any record."""

  dataset: str
  class_names: tuple[str, ...]
  labels: np.ndarray
  groups: np.ndarray
  split_codes: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)


@pytest.fixture
def videos():
  """A video of each class in each of four films; in each of three splits one film is the test's."""
  films = np.arange(FILMS).repeat(len(CLASSES))
  tested = np.array([1, 2, 3])
  return Videos(
    "made_actions",
    CLASSES,
    np.tile(np.arange(len(CLASSES)), FILMS),
    np.array([f"film{film}" for film in films]),
    np.where(films[:, None] == tested, splits.TEST, splits.TRAIN),
  )


@pytest.mark.parametrize("name", ["film1", "", "Star Wars", "動画", "odd \udcff name"])
def test_the_place_of_a_group_is_fixed_for_all_time(name):
  # The first hexadecimal digit of a SHA-256 is its place in sixteenths.
  digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
  digit = int(digest[0], 16)
  assert digit / 16 <= splits.group_fraction(name) < (digit + 1) / 16


def test_the_places_of_groups_are_spread_evenly():
  places = np.sort([splits.group_fraction(f"group {i}") for i in range(1000)])
  # Kolmogorov's distance at a probability of 1e-6.
  assert np.abs(places - (np.arange(1000) + 0.5) / 1000).max() < 0.085


def test_official_lists_are_selected_by_split(videos):
  for split in (1, 2, 3):
    train, test = (splits.with_code(videos, split, code) for code in (splits.TRAIN, splits.TEST))
    assert len(train) == 24 and len(test) == 8
    assert not set(videos.groups[train]) & set(videos.groups[test])
  with pytest.raises(ValueError, match="1 to 3"):
    splits.with_code(videos, 4, splits.TRAIN)
  with pytest.raises(ValueError, match="1 to 3"):
    splits.with_code(videos, 0, splits.TRAIN)
  one = dataclasses.replace(videos, split_codes=videos.split_codes[:, :1])
  with pytest.raises(splits.SplitError, match=r"no split 2: what made_actions has is 1 alone"):
    splits.with_code(one, 2, splits.TRAIN)


def test_the_four_lists_hold_every_video_once(videos):
  codes = videos.split_codes.copy()
  codes[::5] = splits.UNUSED
  some = dataclasses.replace(videos, split_codes=codes)
  for split in (1, 2, 3):
    lists = splits.list_indices(some, split, 0.5)
    assert list(lists) == [*splits.LISTS, "unused"]
    assert sorted(np.concatenate(list(lists.values())).tolist()) == list(range(len(videos)))
    assert all((np.diff(video_ids) > 0).all() for video_ids in lists.values())
    assert lists["unused"].tolist() == list(range(0, len(videos), 5))


def test_validation_groups_are_whole_and_never_move():
  groups = np.array([f"g{i // 3}" for i in range(90)])
  few, more = (splits.in_validation(groups, share) for share in (0.3, 0.8))
  assert 0 < few.sum() < more.sum() < len(groups)
  assert not (few & ~more).any()
  for group in np.unique(groups):
    assert len(set(more[groups == group].tolist())) == 1
  half = splits.in_validation(groups[::2], 0.8)
  np.testing.assert_array_equal(half, more[::2])
  assert not splits.in_validation(groups, 0.0).any()
  assert splits.in_validation(groups[:0], 0.5).shape == (0,)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_validation_list_is_whole_groups_and_stays(videos, share):
  groups = np.array([f"g{i // 2}" for i in range(len(videos))])
  grouped = dataclasses.replace(videos, groups=groups, labels=np.zeros_like(videos.labels))
  training = splits.select(grouped, 1, "train")
  train, validation = (splits.select(grouped, 1, which, share) for which in ("train", "validation"))
  test = splits.select(grouped, 1, "test", share)
  assert sorted([*train, *validation]) == sorted(training)
  assert not set(test) & set(training)
  assert not set(groups[train]) & set(groups[validation])
  # The same videos among fewer of them.
  is_there = np.arange(len(videos))[:, None] % 4 < 2
  fewer = dataclasses.replace(
    grouped, split_codes=np.where(is_there, grouped.split_codes, splits.UNUSED)
  )
  some = splits.select(fewer, 1, "validation", share)
  assert set(some) == {video_id for video_id in validation if video_id % 4 < 2}


def test_a_validation_list_of_its_own_is_never_trained_on_nor_tested_on(videos):
  codes = videos.split_codes.copy()
  codes[videos.groups == "film0", 0] = splits.VALIDATION
  given = dataclasses.replace(videos, split_codes=codes)
  lists = {which: splits.select(given, 1, which) for which in splits.LISTS}
  assert set(videos.groups[lists["validation"]]) == {"film0"}
  assert set(videos.groups[lists["test"]]) == {"film1"}
  assert set(videos.groups[lists["train"]]) == {"film2", "film3"}
  assert splits.has_validation(given, 1, 0.0) and not splits.has_validation(given, 2, 0.0)
  assert splits.has_validation(given, 2, 0.1)
  with pytest.raises(splits.SplitError, match=r"list of its own, of 8 videos.*validation_share=0"):
    splits.select(given, 1, "train", 0.1)
  codes[videos.labels == 3] = splits.VALIDATION
  with pytest.raises(ValueError, match=r"has validation videos and no training.*right"):
    splits.check_training_classes(given, 1)


def test_lists_that_cannot_be_drawn_are_refused(videos):
  training = splits.select(videos, 1, "train")
  np.testing.assert_array_equal(splits.select(videos, 1, "train", 0.0), training)
  with pytest.raises(ValueError, match="has no video"):
    splits.select(videos, 1, "validation", 0.0)
  with pytest.raises(ValueError, match=r"takes every training video of these classes: .*down_then"):
    splits.select(videos, 1, "train", 0.9999)
  with pytest.raises(ValueError, match=r"validation_share is 1\.0"):
    splits.select(videos, 1, "train", 1.0)
  with pytest.raises(ValueError, match=r"validation_share is nan"):
    splits.select(videos, 1, "train", float("nan"))
  with pytest.raises(ValueError, match="no list 'dev'"):
    splits.select(videos, 1, "dev")
  with pytest.raises(ValueError, match=r"no list 'valid'.*Did you mean validation\?"):
    splits.select(videos, 1, "valid")
  with pytest.raises(ValueError, match="no split 4"):
    splits.select(videos, 4, "train")
  assert len(splits.select(videos, 1, "test", 0.9999)) == 8


def test_a_stored_class_that_is_tested_and_not_trained_is_refused(videos):
  splits.check_training_classes(videos, 1)
  codes = videos.split_codes.copy()
  codes[videos.labels == 2] = splits.TEST
  untrained = dataclasses.replace(videos, split_codes=codes)
  with pytest.raises(ValueError, match=f"these classes: {CLASSES[2]}") as error:
    splits.check_training_classes(untrained, 1)
  assert isinstance(error.value, splits.SplitError) and isinstance(error.value, errors.UserError)


def test_a_listed_class_that_is_tested_in_a_split_is_trained_in_it(tmp_path):
  listed = [
    listing.Video(name, label, name, codes, None)
    for name, label, codes in [("a", "run", (1, 2)), ("b", "run", (2, 1)), ("c", "walk", (1, 2))]
  ]
  with pytest.raises(listing.ListingError, match=r"none for training: walk\. Add some\.") as error:
    splits.check_training(listed, tmp_path, "Add some.")
  assert str(error.value).startswith(f"{tmp_path}: ")
  splits.check_training(listed[:2], tmp_path, "Add some.")
  validated = listing.Video("d", "hop", "d", (splits.VALIDATION, splits.UNUSED), None)
  with pytest.raises(listing.ListingError, match=r"validation videos but none for training: hop"):
    splits.check_training([*listed[:2], validated], tmp_path, "Add some.")


def test_a_training_share_is_whole_groups_beside_validation(videos):
  groups = np.array([f"g{i // 2}" for i in range(len(videos))])
  grouped = dataclasses.replace(videos, groups=groups, labels=np.zeros_like(videos.labels))
  whole = splits.select(grouped, 1, "train", 0.2)
  few, more = (set(splits.select(grouped, 1, "train", 0.2, share)) for share in (0.4, 0.8))
  assert few < more < set(whole)
  assert not set(groups[list(more)]) & set(groups[list(set(whole) - more)])
  for which in ("validation", "test"):
    same = splits.select(grouped, 1, which, 0.2, 0.4)
    np.testing.assert_array_equal(same, splits.select(grouped, 1, which, 0.2))
  lists = splits.list_indices(grouped, 1, 0.2, 0.4)
  assert sorted(np.concatenate(list(lists.values())).tolist()) == list(range(len(videos)))
  with pytest.raises(splits.SplitError, match=r"no training video of these classes: circle.*Raise"):
    splits.select(videos, 1, "train", 0.0, 1e-9)
