"""Made videos whose class is the order of two short events with a still gap between them.

In: a seed and a gap. Out: a folder of AVI files and split files, read like HMDB51 itself.

A shape rests, does one thing and comes back, rests for `gap` seconds, does another thing and comes
back, and rests again. There are three events (a hop to the left, a hop up, a swelling), so six ordered
pairs: chance is 1 in 6, and a model that ignores order cannot pass 1 in 2.

The two orders of a pair in one film share all that is drawn: shape, colours, noise, sizes, speed, rate
and where in the video it begins. So their frames are the same, pixel by pixel and as often, in another
order; any stretch that holds frames of one event alone, with no more rest around it than lies before,
after and between the events, is in both.

A video takes `gap + 2` seconds (`total_seconds`), of which the events take 0.4 each and 1.2 lie before
and after them, shared out at random. To cover it whole, give `clip.window_seconds` that length: 2, 2.5,
3, 4 and 6 for gaps of 0, 0.5, 1, 2 and 4 (or `clip.mode` "segments", whatever the gap). With 16 evenly
spaced frames even a gap of 4 seconds leaves a frame in each event: one in 0.375 seconds.
"""

import functools
import itertools
import os

import numpy as np

from hybrid_video.datasets import made_scenes, made_videos
from hybrid_video.datasets.made_scenes import PLAIN, Pose, Scene

EVENTS = ("left", "swell", "up")
PAIRS = tuple(itertools.combinations(EVENTS, 2))
CLASSES = tuple(sorted(f"{a}_then_{b}" for a, b in itertools.permutations(EVENTS, 2)))
EVENT_SECONDS = 0.4
# Rest before the first and after the last event: together, and the least of either, in seconds.
_REST_SECONDS, _LEAST_REST = 1.2, 0.2


def total_seconds(gap_seconds: float) -> float:
  """How long a video with this gap is."""
  return gap_seconds + 2 * EVENT_SECONDS + _REST_SECONDS


def schedule(label: str, fps: int, gap_seconds: float, lead: float) -> list[tuple[str, float]]:
  """What happens in each frame.

  Args:
    label: one of `CLASSES`.
    fps: frames a second.
    gap_seconds: between the events.
    lead: share of the spare rest that lies before the first event, 0 to 1.

  Returns:
    (event, how far it is from rest, 0 to 1) for each frame; the event is "" at rest.
  """
  frames = round(EVENT_SECONDS * fps)
  gap = round(gap_seconds * fps)
  rest = round(total_seconds(gap_seconds) * fps) - gap - 2 * frames
  least = round(_LEAST_REST * fps)
  before = least + round(lead * (rest - 2 * least))
  # Neither end is at rest, most of the time is spent far from it, and the way back is the way there.
  reached = np.minimum(1.5 * np.sin(np.pi * (np.arange(frames) + 1) / (frames + 1)), 1.0)
  still = [("", 0.0)]
  first, second = ([(event, float(r)) for r in reached] for event in label.split("_then_"))
  return still * before + first + still * gap + second + still * (rest - before)


def render(
  label: str, seed: int, gap_seconds: float, film: int, look: str = PLAIN
) -> tuple[list[np.ndarray], int]:
  """Draws one clip.

  Args:
    label: one of `CLASSES`.
    seed: of the whole set.
    gap_seconds: between the events.
    film: clips of one film share the background; both orders of a pair share all that is drawn.
    look: one of `made_scenes.LOOKS`.

  Returns:
    (frames, each uint8 `[H, W, 3]`; frames a second).
  """
  first, second = sorted(label.split("_then_"))
  rng = np.random.default_rng([seed, film, 1 + PAIRS.index((first, second))])
  fps = int(rng.choice(made_videos.FRAME_RATES))
  scene = Scene(np.random.default_rng([seed, film, 0]), rng, look)
  rest = Pose(
    rng.uniform(6, 14), rng.uniform(4, 12), rng.uniform(14, 18), rng.uniform(0, 2 * np.pi)
  )
  reach_x, reach_y, swelling = rng.uniform(26, 34), rng.uniform(22, 28), rng.uniform(0.6, 0.9)
  lead = rng.uniform()
  # The noise is the scene's as well: it does not tell the time.
  noise_seed = int(rng.integers(2**32))
  drawn: dict[tuple[str, float], np.ndarray] = {}
  frames = []
  for event, reached in schedule(label, fps, gap_seconds, lead):
    # The way back shows the frames of the way there.
    key = (event, round(reached, 9))
    if key not in drawn:
      pose = Pose(
        rest.x - reach_x * reached * (event == "left"),
        rest.y - reach_y * reached * (event == "up"),
        rest.radius * (1 + swelling * reached * (event == "swell")),
        rest.angle,
      )
      scene.rng = np.random.default_rng(noise_seed)
      drawn[key] = scene.frame(pose)
    frames.append(drawn[key])
  return frames, fps


def _render(
  seed: int, gap_seconds: float, look: str, label: str, film: int
) -> tuple[list[np.ndarray], int]:
  return render(label, seed, gap_seconds, film, look)


def make(
  folder: os.PathLike | str,
  films: int,
  gap_seconds: float,
  seed: int = 0,
  workers: int | None = None,
  *,
  look: str = PLAIN,
) -> bool:
  """Writes the set in a look, see `made_videos.make`; `seed` is of all random numbers."""
  note = {
    "seed": seed,
    **made_scenes.note(look),
    "gap_seconds": gap_seconds,
    "classes": list(CLASSES),
  }
  drawing = functools.partial(_render, seed, gap_seconds, look)
  made = made_videos.MadeSet("made_events", CLASSES, note, drawing)
  return made_videos.make(folder, made, films, workers)
