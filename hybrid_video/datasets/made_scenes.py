"""The pictures of made videos: a background, and a shape at a pose, in one of two looks.

In: random generators and a pose. Out: frames, uint8 `[HEIGHT, WIDTH, 3]`.

Both looks show the same motion with nothing else in common. `plain` has bright shapes on dark backgrounds
(gradients, stripes, checks, clouds), `textured` dark shapes with a pattern of their own on bright ones (rings,
dots, waves, triangles). A shape's pattern turns and grows with it and has its symmetry, so that a turn by that
symmetry's angle shows the same picture.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

HEIGHT, WIDTH = 96, 128

Grid = tuple[np.ndarray, np.ndarray]
# From polar coordinates in the shape's own frame (distance from its centre in radii, angle) to values.
Polar = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pose:
  """Where the shape is: centre in pixels, radius in pixels, angle in radians (clockwise)."""

  x: float
  y: float
  radius: float
  angle: float


@dataclasses.dataclass(frozen=True)
class Shape:
  """A shape that looks the same after a turn by 1 / `fold` of a circle.

  Attributes:
    fold: order of its rotational symmetry.
    turn: how far it turns in a spin, a multiple of the symmetry's angle, in radians.
    distance: from polar coordinates (distance from the centre in radii, angle) to the signed
      distance from the shape's edge in radii, negative inside.
  """

  fold: int
  turn: float
  distance: Polar


def _polygon(fold: int) -> Shape:
  def distance(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
    sector = 2 * np.pi / fold
    off_axis = (angle + sector / 2) % sector - sector / 2
    return r * np.cos(off_axis) - np.cos(sector / 2)

  return Shape(fold, _turn(fold), distance)


def _propeller(fold: int) -> Shape:
  def distance(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
    sector = 2 * np.pi / fold
    off_axis = np.abs((angle + sector / 2) % sector - sector / 2)
    blade = r * np.sin(np.minimum(off_axis, np.pi / 2)) - 0.3 * r
    return np.maximum(blade, r - 1.0)

  return Shape(fold, _turn(fold), distance)


def _star(fold: int, waist: float) -> Shape:
  """Points at one radius, and notches between them at the share `waist` of it."""

  def distance(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
    half = np.pi / fold
    off_axis = np.abs((angle + half) % (2 * half) - half)
    along, across = r * np.cos(off_axis), r * np.sin(off_axis)
    edge_x, edge_y = waist * np.cos(half) - 1, waist * np.sin(half)
    return ((along - 1) * edge_y - across * edge_x) / np.hypot(edge_x, edge_y)

  return Shape(fold, _turn(fold), distance)


def _flower(fold: int) -> Shape:
  return Shape(fold, _turn(fold), lambda r, angle: r - 0.72 - 0.28 * np.cos(fold * angle))


def _cross() -> Shape:
  def distance(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
    off_axis = np.abs((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)
    return np.maximum(r * np.cos(off_axis) - 1, r * np.sin(off_axis) - 0.36)

  return Shape(4, _turn(4), distance)


def _turn(fold: int) -> float:
  # The multiple of the symmetry's angle that is nearest to 300 degrees. The last frame looks like
  # the first, so the frames of a turn to the right are those of a turn to the left.
  sector = 2 * np.pi / fold
  return sector * round(np.deg2rad(300) / sector)


PLAIN_SHAPES = (
  _polygon(3),
  _polygon(4),
  _propeller(2),
  _propeller(3),
  _propeller(4),
  _propeller(5),
)
TEXTURED_SHAPES = (_polygon(5), _polygon(6), _star(4, 0.4), _star(5, 0.45), _flower(3), _cross())


def _edges(signal: np.ndarray, sharpness: float = 4.0) -> np.ndarray:
  """A wave about 0 as a pattern of two tones, 0 and 1, whose edges are soft enough to be drawn."""
  return 0.5 + 0.5 * np.tanh(sharpness * signal)


def _texture(fold: int, rng: np.random.Generator) -> Polar:
  """Stripes along the edges, checks or dots, 0 to 1, the same after a turn by 1 / `fold` of a circle."""
  waves, phase = rng.uniform(7, 12), rng.uniform(0.4, 1.1)

  def stripes(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
    sector = 2 * np.pi / fold
    off_axis = (angle + sector / 2) % sector - sector / 2
    return np.cos(waves * r * np.cos(off_axis) + phase)

  def checks(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.cos(waves * r + phase) * np.cos(fold * angle)

  def dots(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
    # Waves from as many directions as the symmetry has.
    directions = 2 * np.pi * np.arange(fold) / fold
    of_each = [np.cos(waves * r * np.cos(angle - way) + phase) for way in directions]
    return np.mean(of_each, axis=0) - 0.1

  pattern = (stripes, checks, dots)[rng.integers(3)]
  return lambda r, angle: _edges(pattern(r, angle))


def _value_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
  coarse = rng.random((cells + 1, cells + 1))
  y = np.linspace(0, cells - 1e-6, HEIGHT)
  x = np.linspace(0, cells - 1e-6, WIDTH)
  yi, xi = y.astype(int), x.astype(int)
  yf, xf = (y - yi)[:, None], (x - xi)[None]
  top = coarse[yi][:, xi] * (1 - xf) + coarse[yi][:, xi + 1] * xf
  bottom = coarse[yi + 1][:, xi] * (1 - xf) + coarse[yi + 1][:, xi + 1] * xf
  return top * (1 - yf) + bottom * yf


def _dark_background(rng: np.random.Generator, grid: Grid) -> np.ndarray:
  x, y = grid
  angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(10, 40)
  along = x * np.cos(angle) + y * np.sin(angle)
  across = y * np.cos(angle) - x * np.sin(angle)
  pattern = (
    lambda: along / np.hypot(WIDTH, HEIGHT) + 0.5,
    lambda: 0.5 + 0.5 * np.sin(2 * np.pi * along / scale),
    lambda: ((along // scale + across // scale) % 2).astype(float),
    lambda: _value_noise(rng, int(rng.integers(3, 12))),
  )[rng.integers(4)]()
  low = rng.uniform(0, 0.4, 3)
  high = low + rng.uniform(-0.25, 0.25, 3)
  return low + (high - low) * pattern[..., None]


def _bright_background(rng: np.random.Generator, grid: Grid) -> np.ndarray:
  x, y = grid
  angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(12, 32)
  along = x * np.cos(angle) + y * np.sin(angle)
  across = y * np.cos(angle) - x * np.sin(angle)
  x0, y0 = rng.uniform(-WIDTH / 2, WIDTH / 2), rng.uniform(-HEIGHT / 2, HEIGHT / 2)
  bend, size = rng.uniform(0.15, 0.4), rng.uniform(0.25, 0.4)

  def dots() -> np.ndarray:
    in_cell = (along / scale % 1 - 0.5, across / scale % 1 - 0.5)
    return _edges(size - np.hypot(*in_cell), scale)

  def triangles() -> np.ndarray:
    # Three families of lines; crossing one of them changes the tone.
    ways = (2 * np.pi * i / 3 for i in range(3))
    return sum(np.floor((along * np.cos(w) + across * np.sin(w)) / scale) for w in ways) % 2

  pattern = (
    lambda: 0.5 + 0.5 * np.sin(2 * np.pi * np.hypot(x - x0, y - y0) / scale),
    dots,
    lambda: _edges(np.sin(2 * np.pi * (along / scale + bend * np.sin(2 * np.pi * across / 40)))),
    triangles,
  )[rng.integers(4)]()
  high = rng.uniform(0.75, 1.0, 3)
  low = high - rng.uniform(0.05, 0.35, 3)
  return low + (high - low) * pattern[..., None]


@dataclasses.dataclass(frozen=True)
class Look:
  """What tells one kind of pictures from another.

  Attributes:
    shapes: one of them is a clip's.
    background: float `[HEIGHT, WIDTH, 3]`, 0 to 1, of a generator and pixels about the centre.
    paint: of a shape and a generator, from its polar coordinates to colours, float `[..., 3]`.
  """

  shapes: tuple[Shape, ...]
  background: Callable[[np.random.Generator, Grid], np.ndarray]
  paint: Callable[[Shape, np.random.Generator], Polar]


def _bright_rings(shape: Shape, rng: np.random.Generator) -> Polar:
  colour = rng.permutation([1.0, rng.uniform(0.5, 1.0), rng.uniform(0.1, 0.9)])
  strength = rng.uniform(0.0, 0.4)

  def paint(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
    rings = 1 - strength * (0.5 + 0.5 * np.cos(9 * r))
    return colour * rings[..., None]

  return paint


def _dark_pattern(shape: Shape, rng: np.random.Generator) -> Polar:
  dark = rng.permutation([0.0, rng.uniform(0.0, 0.2), rng.uniform(0.0, 0.35)])
  light = dark + rng.permutation([0.1, rng.uniform(0.1, 0.3), rng.uniform(0.2, 0.4)])
  texture = _texture(shape.fold, rng)
  return lambda r, angle: dark + (light - dark) * texture(r, angle)[..., None]


PLAIN, TEXTURED = "plain", "textured"
LOOKS = {
  PLAIN: Look(PLAIN_SHAPES, _dark_background, _bright_rings),
  TEXTURED: Look(TEXTURED_SHAPES, _bright_background, _dark_pattern),
}


def note(look: str) -> dict[str, str]:
  """What a set's note says of its look: nothing of the plain one, which was the only one once."""
  return {} if look == PLAIN else {"look": look}


class Scene:
  """A clip's background, which it shares with its film's other clips, and its own shape."""

  def __init__(self, film_rng: np.random.Generator, rng: np.random.Generator, look: str = PLAIN):
    """Draws the background with `film_rng` and all else with `rng`, in one of `LOOKS`."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    self.grid: Grid = (x - WIDTH / 2, y - HEIGHT / 2)
    of = LOOKS[look]
    self.background = of.background(film_rng, self.grid)
    self.shape = of.shapes[rng.integers(len(of.shapes))]
    self.paint = of.paint(self.shape, rng)
    self.noise = rng.uniform(0.0, 0.03)
    self.rng = rng

  def frame(self, pose: Pose | None) -> np.ndarray:
    """The picture with the shape at `pose`, or without it: uint8 `[HEIGHT, WIDTH, 3]`."""
    picture = self.background
    if pose is not None:
      x, y = self.grid[0] - pose.x, self.grid[1] - pose.y
      cos, sin = np.cos(pose.angle), np.sin(pose.angle)
      u, v = (x * cos + y * sin) / pose.radius, (y * cos - x * sin) / pose.radius
      r = np.hypot(u, v)
      angle = np.arctan2(v, u)
      cover = np.clip(0.5 - self.shape.distance(r, angle) * pose.radius, 0, 1)[..., None]
      picture = picture * (1 - cover) + self.paint(r, angle) * cover
    noisy = picture + self.noise * self.rng.standard_normal(picture.shape)
    return (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)
