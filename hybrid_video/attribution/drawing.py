"""Maps of where a model looks as pictures: coloured frames, film strips, the scale of the colours.

In: frames as uint8 `[T, H, W, 3]` and a map `[T', H', W']` of any coarseness. Out: pixels, or a PNG's
bytes for a page.
"""

from collections.abc import Sequence
import io
import pathlib

import matplotlib
import numpy as np
from PIL import Image

from hybrid_video.models.relevance import Map
from hybrid_video.report import figures

# What the colours say, for a caption beside the scale.
SCALE = ("0", "the clip's largest")
# Perceptually uniform: equal steps of a value look like equal steps of colour.
_COLOURS = matplotlib.colormaps["inferno"]
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)
# The colour covers more of the grey frame where the value is larger, up to so much of it.
_MOST_COVERED = 0.9
_DARKEST_COLOUR = 0.3
# Neither black nor white, beside which colours look brighter or duller than they are.
_DARKEST_GREY, _LIGHTEST_GREY = 0.2, 0.85
_LEAST_HEIGHT = 96


def _interpolation(cells: int, size: int) -> np.ndarray:
  """`[size, cells]`: how much each of `size` places takes of each cell, linear between their centres."""
  places = (np.arange(size) + 0.5) * cells / size - 0.5
  return np.stack([np.interp(places, range(cells), one) for one in np.eye(cells)], axis=1)


def upsample(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
  """A map `[T', H', W']` at the `shape` (T, H, W) of a clip, linear between its cells' centres."""
  matrices = (_interpolation(*pair) for pair in zip(values.shape, shape, strict=True))
  return np.einsum("tyx,Tt,Yy,Xx->TYX", values, *matrices, optimize=True)


def _coloured(grey: np.ndarray, shares: np.ndarray) -> np.ndarray:
  """Grey `[..., 1]` of 0 to 1 and shares `[...]` of 0 to 1 to colours, uint8 `[..., 3]`."""
  colours = _COLOURS(_DARKEST_COLOUR + (1 - _DARKEST_COLOUR) * shares)[..., :3]
  covered = _MOST_COVERED * np.sqrt(shares)[..., None]
  return (255 * (covered * colours + (1 - covered) * grey)).round().astype(np.uint8)


def overlay(clip: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Frames in grey, coloured by a map: grey where it is 0, yellow where it is the clip's largest.

  Args:
    clip: uint8 `[T, H, W, 3]`.
    values: `[T', H', W']`, at least 0; linear between its cells' centres.

  Returns:
    uint8 `[T, H, W, 3]`.
  """
  fine = upsample(values, clip.shape[:3])
  largest = values.max()
  shares = fine / largest if largest > 0 else np.zeros_like(fine)
  grey = clip.astype(np.float32) @ _LUMINANCE[:, None] / 255
  return _coloured(_DARKEST_GREY + (_LIGHTEST_GREY - _DARKEST_GREY) * grey, shares)


def film_strip(clip: np.ndarray, values: np.ndarray, *, shown_frames: int = 8) -> bytes:
  """Frames of a clip, time to the right, and below each the same frame coloured by a map.

  Args:
    clip: as the model saw it, uint8 `[T, H, W, 3]`.
    values: where it looks, `[T', H', W']`, such as `maps(...)[0].values[i]`.
    shown_frames: at most so many of the frames, evenly spaced, `figures.even_frames(T, shown_frames)`.

  Returns:
    A PNG, with gaps between frames: for a page, beside `colour_scale()` with the words `SCALE` at
    its ends, and `Map.name` and `Map.words` as what the colours mean.
  """
  shown = figures.even_frames(len(clip), shown_frames)
  return _png(_strip("", clip, values, shown).picture())


def coloured_strip(clip: np.ndarray, values: np.ndarray, *, shown_frames: int = 8) -> bytes:
  """As `film_strip`, of the coloured frames alone: for many maps of one clip."""
  shown = figures.even_frames(len(clip), shown_frames)
  coloured = overlay(_enlarged(clip), values)[shown]
  return _png(figures.Strip("", coloured, [""] * len(shown)).picture())


def _enlarged(clip: np.ndarray) -> np.ndarray:
  """Small frames enlarged, so that the colours are smooth."""
  factor = -(-_LEAST_HEIGHT // clip.shape[1])
  return clip.repeat(factor, axis=1).repeat(factor, axis=2)


def _strip(
  title: str, clip: np.ndarray, values: np.ndarray, shown: np.ndarray, *, wrong: bool = False
) -> figures.Strip:
  """Each shown frame above itself, coloured."""
  large = _enlarged(clip)
  gap = np.full((len(shown), figures.GAP, large.shape[2], 3), 255, np.uint8)
  frames = np.concatenate([large[shown], gap, overlay(large, values)[shown]], axis=1)
  return figures.Strip(title, frames, [f"frame {index}" for index in shown], wrong=wrong)


def sheet(
  path: pathlib.Path,
  drawn: Map,
  clips: np.ndarray,
  titles: Sequence[str],
  wrong: Sequence[bool],
  shown_frames: int = 8,
) -> None:
  """Clips one below the other with a map of each, under what the colours mean.

  Args:
    path: PNG to write.
    drawn: `[B, T', H', W']`.
    clips: as the model saw them, uint8 `[B, T, H, W, 3]`.
    titles: of each, such as its class.
    wrong: whether each title is marked as a wrong prediction.
    shown_frames: at most so many of the frames.

  Raises:
    figures.FigureError: the file cannot be written.
  """
  shown = figures.even_frames(clips.shape[1], shown_frames)
  scale = np.asarray(Image.open(io.BytesIO(colour_scale())))
  title = f"{drawn.name} ({drawn.source}); grey to yellow: none to most in the clip"
  strips = [figures.Strip(title, scale[None], ["0 to the largest"])]
  for clip, values, title, is_wrong in zip(clips, drawn.values, titles, wrong, strict=True):
    strips.append(_strip(title, clip, values, shown, wrong=is_wrong))
  figures.sheet(path, strips)


def colour_scale(width: int = 160, height: int = 10) -> bytes:
  """The colours of `overlay` on mid-grey, from 0 at the left to the clip's largest, as a PNG."""
  shares = np.broadcast_to(np.linspace(0, 1, width), (height, width))
  return _png(_coloured(np.full((1, 1, 1), 0.5), shares))


def _png(picture: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "PNG")
  return buffer.getvalue()
