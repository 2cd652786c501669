"""The made videos: what they show, how they are parted, and that a seed makes them again."""

import json

import numpy as np
import pytest

from hybrid_video.datasets import hmdb51, listing, made_actions

TURN = 2 * np.pi / 3


def _path(action: str, seed: int) -> np.ndarray:
  """The poses over time, densely, as points `[N, 5]`: x, y, radius, and the angle's look."""
  poses = made_actions.poses(
    action, np.linspace(0, 2, 2001), TURN, np.random.default_rng([seed, 0])
  )
  return np.array(
    [
      (p.x, p.y, p.radius, 10 * np.cos(3 * p.angle), 10 * np.sin(3 * p.angle))
      for p in poses
      if p is not None
    ]
  )


def _farthest(a: np.ndarray, b: np.ndarray) -> float:
  """The largest distance from a point of one set to the nearest of the other."""
  distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
  return max(distances.min(0).max(), distances.min(1).max())


@pytest.mark.parametrize("family", made_actions.FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_the_classes_of_a_family_show_the_same_frames_in_other_orders(family, seed):
  first = _path(family[0], seed)
  for action in family[1:]:
    other = _path(action, seed)
    assert _farthest(first[::5], other[::5]) < 0.5  # pixels
    assert not np.allclose(first[:: len(first) // 8][:8], other[:: len(other) // 8][:8], atol=2)


def test_reversed_time_makes_each_class_another_of_its_family():
  reversed_to = {
    "right_then_down": "up_then_left",
    "down_then_right": "left_then_up",
    "spin_right": "spin_left",
    "grow": "shrink",
  }
  for action, other in reversed_to.items():
    backwards, forwards = _path(action, 0)[::-1], _path(other, 0)
    steps = np.linspace(0, 1, 40)
    a = backwards[(steps * (len(backwards) - 1)).astype(int)]
    b = forwards[(steps * (len(forwards) - 1)).astype(int)]
    # The random middle of the two events is not mirrored, so the two run a little apart.
    assert np.median(np.linalg.norm(a[:, :3] - b[:, :3], axis=-1)) < 4


def test_videos_vary_within_a_class():
  clips = [made_actions.render("right_then_down", 0, film) for film in range(6)]
  assert len({fps for _, fps in clips}) > 1
  assert len({len(frames) for frames, _ in clips}) > 1
  assert len({frames[0].tobytes() for frames, _ in clips}) == 6


def test_the_folder_is_in_hmdb51s_layout_with_films_kept_whole(made_folder):
  listed = hmdb51.read(made_folder, official=False)
  assert len(listed.videos) == 4 * len(made_actions.ACTIONS)
  assert all(video.path for video in listed.videos) and not listed.unlisted
  for split in range(3):
    train = {video.group for video in listed.videos if video.codes[split] == listing.TRAIN}
    test = {video.group for video in listed.videos if video.codes[split] == listing.TEST}
    assert train and test and not train & test


def test_the_same_seed_makes_the_same_files_and_a_whole_set_is_left_alone(tmp_path):
  assert made_actions.make(tmp_path / "a", films=4, seed=3, workers=1)
  assert made_actions.make(tmp_path / "b", films=4, seed=3, workers=2)
  first = {p.name: p.read_bytes() for p in (tmp_path / "a").rglob("*.avi")}
  assert first == {p.name: p.read_bytes() for p in (tmp_path / "b").rglob("*.avi")}
  assert not made_actions.make(tmp_path / "a", films=4, seed=3)


def test_a_folder_of_something_else_is_not_touched(tmp_path):
  (tmp_path / "keep.txt").write_text("mine")
  with pytest.raises(FileExistsError, match="something else"):
    made_actions.make(tmp_path, films=4)
  assert (tmp_path / "keep.txt").read_text() == "mine"
  (tmp_path / "made.json").write_text(json.dumps({"made_actions": {"films": 9}}))
  with pytest.raises(FileExistsError, match="'films': 9"):
    made_actions.make(tmp_path, films=4)


def test_what_an_interrupted_making_left_is_made_anew(tmp_path):
  part = tmp_path / "set.part" / "videos"
  part.mkdir(parents=True)
  (part / "half.avi").write_bytes(b"RIFF")
  made_actions.make(tmp_path / "set", films=4, workers=1)
  assert not list(tmp_path.rglob("half.avi"))
  with pytest.raises(ValueError, match="4 or more"):
    made_actions.make(tmp_path / "few", films=3)
