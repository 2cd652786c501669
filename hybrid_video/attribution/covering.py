"""Does a map tell the truth? What it marks most is covered, and so is as much at random.

In: clips, a map of each, and what scores clips. Out: by how much the class's score falls. A map that
says where a model looks lowers it more than chance does.

Source: the deletion test of Samek et al. 2017 (arXiv:1509.06321), at one share of the cells.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

Scores = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Falls:
  """By how much the probability of each clip's class falls.

  Attributes:
    marked: where the cells that are marked most are covered, `[B]`.
    random: where as many random cells are, `[draws, B]`.
  """

  marked: np.ndarray
  random: np.ndarray

  def __str__(self) -> str:
    each = self.random.mean(1)
    return (
      f"marked {self.marked.mean():.3f}, random {each.mean():.3f} "
      f"({each.min():.3f} to {each.max():.3f} over {len(each)} draws)"
    )


def most_marked(values: np.ndarray, share: float) -> np.ndarray:
  """Which cells of each map `[B, ...]` are its largest, bool; `share` of them, at least one a map."""
  flat = values.reshape(len(values), -1)
  count = max(1, round(share * flat.shape[1]))
  chosen = np.argsort(-flat, axis=1, kind="stable")[:, :count]
  marked = np.zeros(flat.shape, bool)
  np.put_along_axis(marked, chosen, True, axis=1)
  return marked.reshape(values.shape)


def cover(clips: np.ndarray, cells: np.ndarray) -> np.ndarray:
  """Clips whose pixels in some cells are the clip's mean colour.

  Args:
    clips: float `[B, T, H, W, 3]`.
    cells: bool `[B, T', H', W']`; a pixel lies in the cell that its centre does.
  """
  at = [
    ((np.arange(size) + 0.5) * count / size).astype(int)
    for size, count in zip(clips.shape[1:4], cells.shape[1:], strict=True)
  ]
  covered = cells[:, at[0]][:, :, at[1]][:, :, :, at[2], None]
  return np.where(covered, clips.mean((1, 2, 3), keepdims=True), clips)


def falls(
  probabilities: Scores,
  clips: np.ndarray,
  classes: np.ndarray,
  values: np.ndarray,
  *,
  share: float = 0.2,
  draws: int = 5,
  seed: int = 0,
) -> Falls:
  """Covers what maps mark most, and as many cells at random, several times.

  Args:
    probabilities: normalized clips `[B, T, H, W, 3]` to `[B, classes]`.
    clips: normalized, `[B, T, H, W, 3]`.
    classes: whose probability is watched, int `[B]`.
    values: the maps, `[B, T', H', W']`.
    share: of the cells.
    draws: of random cells.
    seed: of these.
  """
  rng = np.random.default_rng(seed)
  rows = np.arange(len(clips))

  def score(shown: np.ndarray) -> np.ndarray:
    return np.asarray(probabilities(shown))[rows, classes]

  whole = score(clips)

  def fall(order: np.ndarray) -> np.ndarray:
    return whole - score(cover(clips, most_marked(order, share)))

  return Falls(fall(values), np.stack([fall(rng.random(values.shape)) for _ in range(draws)]))
