"""The made videos: what they show, how they are split, and that a seed makes them again."""

import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from hybrid_video import experiment
from hybrid_video.datasets import hmdb51, made_actions, made_scenes, made_videos, splits

TURN = 2 * np.pi / 3


def _path(action: str, seed: int) -> np.ndarray:
  """The poses at many times as points `[N, 5]`: x, y, radius, and what the angle looks like."""
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


@pytest.mark.parametrize("look", made_scenes.LOOKS)
def test_videos_vary_within_a_class(look):
  clips = [made_actions.render("right_then_down", 0, film, look) for film in range(6)]
  assert len({fps for _, fps in clips}) > 1
  assert len({len(frames) for frames, _ in clips}) > 1
  assert len({frames[0].tobytes() for frames, _ in clips}) == 6


def _scene(shape, look, seed):
  """A scene without noise, with one of its look's shapes."""
  scene = made_scenes.Scene(np.random.default_rng(seed), np.random.default_rng(seed), look)
  scene.shape, scene.noise = shape, 0.0
  scene.paint = made_scenes.LOOKS[look].paint(shape, np.random.default_rng(seed))
  return scene


@pytest.mark.parametrize(
  ("look", "shape"), [(look, s) for look, of in made_scenes.LOOKS.items() for s in of.shapes]
)
def test_a_shape_and_its_pattern_look_the_same_after_a_spin_and_not_within_it(look, shape):
  for seed in range(6):  # Of a look's patterns, too.
    scene = _scene(shape, look, seed)

    def picture(angle, scene=scene):
      return scene.frame(made_scenes.Pose(3.0, -2.0, 30.0, angle)).astype(int)

    first, sector = picture(0.3), 2 * np.pi / shape.fold
    for turn in (sector, -sector, shape.turn, -shape.turn):
      # A pixel right on an edge may fall on either side.
      assert (np.abs(picture(0.3 + turn) - first) > 1).mean() < 1e-3
    # Half way, and to either side, it is another picture: the spin can be seen, and which way it goes.
    quarters = [picture(0.3 + share * sector) for share in (0, 0.25, 0.5, 0.75)]
    for i, one in enumerate(quarters):
      for other in quarters[i + 1 :]:
        assert (np.abs(one - other) > 20).any(-1).mean() > 0.005


@pytest.mark.parametrize("family", made_actions.FAMILIES)
def test_textured_clips_of_a_family_have_the_same_pictures_in_other_orders(family):
  turn = 2 * np.pi / 5

  def pictures(action):
    times = np.linspace(0, 2, 121)
    scene = _scene(made_scenes.TEXTURED_SHAPES[0], made_scenes.TEXTURED, 1)
    poses = made_actions.poses(action, times, turn, np.random.default_rng(4))
    # Small, so that half a frame's motion is less than a pixel.
    frames = [scene.frame(pose)[::4, ::4].astype(int).ravel() for pose in poses]
    return np.array(frames)

  first = pictures(family[0])
  for action in family[1:]:
    other = pictures(action)
    distances = np.abs(first[:, None] - other[None]).mean(-1)
    # Of motion alone: where a shape comes or goes, more changes.
    between = np.quantile(np.abs(np.diff(first, axis=0)).mean(-1), 0.9)
    # Each picture has one there that is no farther than two frames are from each other.
    assert max(distances.min(0).max(), distances.min(1).max()) <= between
    assert np.abs(first - other).mean(-1).max() > 2 * between


@pytest.mark.parametrize(
  ("action", "film", "length", "rate", "colour"),
  [
    ("grow", 0, 30, 15, [23.61, 104.6, 102.23]),
    ("spin_left", 3, 24, 12, [37.08, 74.41, 59.63]),
    ("right_then_down", 5, 37, 20, [23.72, 28.99, 40.85]),
  ],
)
def test_the_plain_look_is_what_it_was_before_there_was_another(action, film, length, rate, colour):
  frames, fps = made_actions.render(action, 0, film)
  assert (len(frames), fps) == (length, rate)
  np.testing.assert_allclose(np.array(frames).mean((0, 1, 2)), colour, atol=0.02)


def test_the_plain_set_says_what_it_said_and_another_look_is_another_set(tmp_path, short_clips):
  made_actions.make(tmp_path / "plain", films=4, workers=1)
  note = json.loads((tmp_path / "plain" / "made.json").read_text())
  assert note == {"made_actions": {"films": 4, "seed": 0, "actions": list(made_actions.ACTIONS)}}
  with pytest.raises(made_videos.MadeVideosError, match="'look': 'textured'"):
    made_actions.make(tmp_path / "plain", films=4, workers=1, look="textured")
  made_actions.make(tmp_path / "textured", films=4, workers=1, look="textured")
  name = f"videos/grow/{made_videos.clip_name('grow', 0)}"
  plain, textured = ((tmp_path / look / name).read_bytes() for look in made_scenes.LOOKS)
  assert plain != textured


def test_dark_shapes_on_bright_backgrounds_and_the_other_way_round():
  for look, sign in (("plain", 1), ("textured", -1)):
    for film in range(8):
      frames, _ = made_actions.render("grow", 0, film, look)
      centre = np.array(frames[-1][40:56, 56:72]).mean()
      assert sign * (centre - np.array(frames[0])[:8].mean()) > 20


def test_the_looks_of_the_settings_are_those_that_are_drawn():
  assert tuple(made_scenes.LOOKS) == experiment.MADE_LOOKS


def test_the_folder_is_in_hmdb51s_layout_with_films_kept_whole(made_folder):
  listed = hmdb51.read(made_folder, official=False)
  assert len(listed.videos) == 4 * len(made_actions.ACTIONS)
  assert all(video.path for video in listed.videos) and not listed.unlisted
  for split in range(3):
    train = {video.group for video in listed.videos if video.codes[split] == splits.TRAIN}
    test = {video.group for video in listed.videos if video.codes[split] == splits.TEST}
    assert train and test and not train & test


def test_the_same_seed_makes_the_same_files_and_a_whole_set_is_left_alone(tmp_path):
  assert made_actions.make(tmp_path / "a", films=4, seed=3, workers=1)
  assert made_actions.make(tmp_path / "b", films=4, seed=3, workers=2)
  first = {p.name: p.read_bytes() for p in (tmp_path / "a").rglob("*.avi")}
  assert first == {p.name: p.read_bytes() for p in (tmp_path / "b").rglob("*.avi")}
  assert not made_actions.make(tmp_path / "a", films=4, seed=3)


def test_a_folder_of_something_else_is_not_touched(tmp_path):
  (tmp_path / "keep.txt").write_text("mine")
  with pytest.raises(made_videos.MadeVideosError, match="something else"):
    made_actions.make(tmp_path, films=4)
  assert (tmp_path / "keep.txt").read_text() == "mine"
  (tmp_path / "made.json").write_text(json.dumps({"made_actions": {"films": 9}}))
  with pytest.raises(made_videos.MadeVideosError, match="'films': 9"):
    made_actions.make(tmp_path, films=4)


SHORT = (0.2, 0.3)  # seconds


@pytest.fixture
def short_clips(monkeypatch):
  """A set takes little time to make."""
  monkeypatch.setattr(made_actions, "SECONDS", SHORT)


def test_what_an_interrupted_process_left_is_removed(tmp_path, short_clips):
  part = tmp_path / "set.0123.part"
  (part / "videos" / "grow").mkdir(parents=True)
  (part / "videos" / "grow" / "half.avi").write_bytes(b"RIFF")
  hours_ago = time.time() - 7200
  for path in (part, *part.rglob("*")):
    os.utime(path, (hours_ago, hours_ago))
  # Another process may be writing this one.
  (tmp_path / "set.4567.part" / "videos").mkdir(parents=True)
  made_actions.make(tmp_path / "set", films=4, workers=1)
  assert not list(tmp_path.rglob("half.avi"))
  assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.4567.part"]


def test_too_few_films_are_refused(tmp_path):
  with pytest.raises(made_videos.MadeVideosError, match="4 or more"):
    made_actions.make(tmp_path / "few", films=3)
  assert not list(tmp_path.iterdir())


def _make_and_report(folder: pathlib.Path, barrier, results) -> None:
  made_actions.SECONDS = SHORT
  barrier.wait(60)
  results.put(made_actions.make(folder, films=4, workers=1))


def test_two_processes_may_make_one_set_at_once(tmp_path, tmp_path_factory, short_clips):
  context = multiprocessing.get_context("spawn")
  barrier, results = context.Barrier(2), context.Queue()
  folder = tmp_path / "set"
  processes = [
    context.Process(target=_make_and_report, args=(folder, barrier, results)) for _ in range(2)
  ]
  for process in processes:
    process.start()
  # What stands under the final name is whole from the first moment.
  while not folder.exists() and any(process.is_alive() for process in processes):
    time.sleep(0.001)
  first = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
  assert sorted(results.get(timeout=60) for _ in range(2)) == [False, True]
  for process in processes:
    process.join(60)
    assert process.exitcode == 0
  alone = tmp_path_factory.mktemp("alone") / "set"
  made_actions.make(alone, films=4, workers=1)
  assert first == {path.relative_to(alone): path.read_bytes() for path in alone.rglob("*.*")}
  assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_set_that_another_process_made_first_stays(tmp_path, monkeypatch, short_clips):
  folder, written = tmp_path / "set", []
  original = made_videos._write_set

  def overtaken(part, made, films, workers):
    original(part, made, films, workers)
    if not written:
      written.append(part)
      assert made_actions.make(folder, films=4, workers=1)
      (folder / "mark").touch()

  monkeypatch.setattr(made_videos, "_write_set", overtaken)
  assert not made_actions.make(folder, films=4, workers=1)
  assert (folder / "mark").exists()
  assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(made_videos.MadeVideosError, match=r"file/set: .*Not a directory") as error:
    made_actions.make(tmp_path / "file" / "set", films=4, workers=1)
  assert "permissions" in str(error.value)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, workers):
  # A limit on the size of files stands for the disk's.
  code = (
    "import pathlib, resource, sys\n"
    "from hybrid_video.datasets import made_actions, made_videos\n"
    "if __name__ == '__main__':\n"
    "  resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
    "  try:\n"
    "    made_actions.make(sys.argv[1], films=4, workers=int(sys.argv[2]))\n"
    "  except made_videos.MadeVideosError as error:\n"
    "    print(error)\n"
    "  print('tensorflow' in sys.modules)\n"
  )
  program = tmp_path / "program.py"
  program.write_text(code)
  folder = tmp_path / "new" / "set"
  ended = subprocess.run(
    [sys.executable, program, folder, str(workers)],
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
    timeout=120,
  )
  message, tensorflow = ended.stdout.splitlines()
  assert message.startswith(f"{folder}: ") and "Make room" in message
  assert tensorflow == "False"
  assert list(folder.parent.iterdir()) == []
