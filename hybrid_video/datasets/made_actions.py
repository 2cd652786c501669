"""Made action videos in HMDB51's layout: eight classes that differ in motion alone.

In: a seed. Out: a folder of AVI files and split files, read like HMDB51 itself.

The classes form three families. Within a family every class shows the same set of frames, only in
another order, so neither one frame nor an unordered set of frames separates the classes of a
family: a model that ignores order cannot pass 3 in 8, even if it separates the families.

- Sweeps (four classes): a shape slides sideways and slides up or down. The classes differ in the
  directions and in which comes first.
- Spins (two): a shape turns about its centre, to the right or to the left.
- Changes (two): a shape grows or shrinks.
"""

import functools
import os

import numpy as np

from hybrid_video.datasets import made_scenes, made_videos
from hybrid_video.datasets.made_scenes import PLAIN, Pose, Scene
from hybrid_video.datasets.made_videos import write_avi as write_avi

SECONDS = (1.8, 2.3)

# A sweep is two slides (axis, direction): x runs to the right, y runs down.
SWEEPS = {
  "right_then_down": (("x", 1), ("y", 1)),
  "down_then_right": (("y", 1), ("x", 1)),
  "left_then_up": (("x", -1), ("y", -1)),
  "up_then_left": (("y", -1), ("x", -1)),
}
SPINS = {"spin_right": 1, "spin_left": -1}
CHANGES = {"grow": 1, "shrink": -1}
FAMILIES = (tuple(SWEEPS), tuple(SPINS), tuple(CHANGES))
ACTIONS = tuple(sorted(action for family in FAMILIES for action in family))


def poses(
  action: str, seconds: np.ndarray, full_turn: float, rng: np.random.Generator
) -> list[Pose | None]:
  """Where the shape is over time.

  Args:
    action: one of `ACTIONS`.
    seconds: times ascending from 0, `[N]`; the last is the clip's end.
    full_turn: how far a spin turns, in radians; the shape looks the same afterwards.
    rng: draws positions, sizes and timing, with the same distribution for all classes of a family.

  Returns:
    A pose for each time, None where no shape is visible.
  """
  if action in SWEEPS:
    return _sweep(action, seconds, rng)
  x, y, angle = rng.uniform(-12, 12), rng.uniform(-8, 8), rng.uniform(0, 2 * np.pi)
  small, large = rng.uniform(12, 17), rng.uniform(36, 44)
  if action in SPINS:
    turned = SPINS[action] * full_turn * seconds / seconds[-1]
    return [Pose(x, y, (small + large) / 2, angle + turn) for turn in turned]
  grown = seconds / seconds[-1]
  if CHANGES[action] < 0:
    grown = 1 - grown
  return [Pose(x, y, small + (large - small) * share, angle) for share in grown]


def _sweep(action: str, seconds: np.ndarray, rng: np.random.Generator) -> list[Pose | None]:
  radius, angle = rng.uniform(16, 23), rng.uniform(0, 2 * np.pi)
  off_x, off_y = rng.uniform(-10, 10), rng.uniform(-6, 6)
  reach_x, reach_y = rng.uniform(22, 30), rng.uniform(18, 26)
  # Two slides in succession, each takes the same share of the time in every class.
  share, gap = rng.uniform(0.40, 0.47) * seconds[-1], rng.uniform(0.02, 0.06) * seconds[-1]
  middle = seconds[-1] * (0.5 + rng.uniform(-0.03, 0.03))
  starts = (middle - gap / 2 - share, middle + gap / 2)
  shape_poses: list[Pose | None] = []
  for now in seconds:
    pose = None
    for (axis, direction), start in zip(SWEEPS[action], starts, strict=True):
      if 0 <= now - start <= share:
        way = direction * (2 * (now - start) / share - 1)
        x, y = (way * reach_x, off_y) if axis == "x" else (off_x, way * reach_y)
        pose = Pose(x, y, radius, angle)
    shape_poses.append(pose)
  return shape_poses


def render(action: str, seed: int, film: int, look: str = PLAIN) -> tuple[list[np.ndarray], int]:
  """Draws one clip.

  Args:
    action: one of `ACTIONS`.
    seed: of the whole set.
    film: clips of one film share the background.
    look: one of `made_scenes.LOOKS`.

  Returns:
    (frames, each uint8 `[H, W, 3]`; frames a second).
  """
  rng = np.random.default_rng([seed, film, 1 + ACTIONS.index(action)])
  fps = int(rng.choice(made_videos.FRAME_RATES))
  seconds = np.arange(round(rng.uniform(*SECONDS) * fps)) / fps
  scene = Scene(np.random.default_rng([seed, film, 0]), rng, look)
  shape_poses = poses(action, seconds, scene.shape.turn, rng)
  return [scene.frame(pose) for pose in shape_poses], fps


def _render(seed: int, look: str, action: str, film: int) -> tuple[list[np.ndarray], int]:
  return render(action, seed, film, look)


def make(
  folder: os.PathLike | str,
  films: int,
  seed: int = 0,
  workers: int | None = None,
  *,
  look: str = PLAIN,
) -> bool:
  """Writes the set in a look, see `made_videos.make`; `seed` is of all random numbers."""
  note = {"seed": seed, **made_scenes.note(look), "actions": list(ACTIONS)}
  made = made_videos.MadeSet("made_actions", ACTIONS, note, functools.partial(_render, seed, look))
  return made_videos.make(folder, made, films, workers)
