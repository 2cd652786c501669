"""What masked pretraining has learnt, as a picture: clips, what a mask leaves of them, what is predicted.

In: a pretrained model and a few clips. Out: a PNG file of film strips, three or four rows a clip.
"""

from collections.abc import Sequence
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from hybrid_video.models import masking
from hybrid_video.report import figures, neighbours, pages
from hybrid_video.report.film_strips import Section, data_uri
from hybrid_video.tasks import pretraining

FILE = "reconstructions.png"
WORDS = (
  "Each clip, what its mask leaves, and what the model predicts in place of the hidden patches. Of "
  "normalized patches mean and contrast, which it does not predict, are the hidden patch's own; motion is drawn "
  "around grey, the mean over time."
)
_FRAMES = 8


def draw(
  path: pathlib.Path,
  model: Any,
  clips: np.ndarray,
  normalized: Any,
  clip_indices: Sequence[int],
  titles: Sequence[str],
) -> None:
  """Draws clips, masked as in their evaluation.

  Args:
    path: PNG to write.
    model: a pretraining model in evaluation mode.
    clips: uint8 `[N, T, H, W, 3]`.
    normalized: the same as the model takes them.
    clip_indices: places of the clips in the evaluation.
    titles: of each clip.
  """
  visible, masked = pretraining.evaluation_masks(
    jnp.asarray(clip_indices, jnp.int32), model.grid, model.mask_ratio
  )
  predictions = model(normalized, visible, masked)
  pixels, kind = jnp.asarray(clips), model.targets
  targets = masking.patch_targets(pixels, masked, model.patch, kind=kind)
  losses = masking.clip_losses(predictions, targets)
  seen, drawn = masking.reconstruct(pixels, predictions, masked, model.patch, kind=kind)
  rows = [("what the mask leaves", np.asarray(seen))]
  if kind == masking.MOTION:
    # Other than pixels, it cannot be told from the clip.
    _, hidden = masking.reconstruct(pixels, targets, masked, model.patch, kind=kind)
    rows.append(("motion of what is hidden", np.asarray(hidden)))
  indices = figures.even_frames(clips.shape[1], _FRAMES)
  labels = [f"frame {index}" for index in indices]
  strips = []
  for i, title in enumerate(titles):
    predicted = (f"prediction, error {float(losses[i]):.2f}", np.asarray(drawn))
    strips.append(figures.Strip(title, clips[i][indices], labels))
    strips += [figures.Strip(what, of[i][indices], labels) for what, of in (*rows, predicted)]
  figures.sheet(path, strips)


def sections(folder: pathlib.Path) -> list[Section]:
  """What pretraining has learnt as sections of a page; none where nothing was drawn.

  Args:
    folder: of the run's figures.
  """
  drawn = (
    ("reconstructions", "Reconstructions", WORDS, "Clips of the test list", FILE),
    ("neighbours", "Nearest videos", neighbours.WORDS, "Videos of the test list", neighbours.FILE),
  )
  found = []
  for name, title, words, what, file in drawn:
    if (folder / file).exists():
      with Image.open(folder / file) as opened:
        width, height = opened.size
      data = data_uri((folder / file).read_bytes(), "png")
      picture = pages.FrameStrip(data, what, "", (), width, height, words)
      found.append(Section(name, title, words, [picture]))
  return found
