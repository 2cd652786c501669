"""Frames as a person sees them: the way up, mirrored or not, and as wide as they are shown."""

from fractions import Fraction

import av
import numpy as np
import pytest
from video_writing import decoded, ffmpeg, ffmpeg_frames, write_h264

from hybrid_video.decoding import shape, storing

# a, b, c, d of the display matrix: (p, q) is shown at (a p + c q, b p + d q).
EIGHT_WAYS = {
  (1, 0, 0, 1): "",
  (0, 1, -1, 0): "turned by 90° clockwise",
  (-1, 0, 0, -1): "turned by 180°",
  (0, -1, 1, 0): "turned by 90° counterclockwise",
  (-1, 0, 0, 1): "mirrored left to right",
  (1, 0, 0, -1): "mirrored top to bottom",
  (0, 1, 1, 0): "mirrored along its diagonal",
  (0, -1, -1, 0): "mirrored along its other diagonal",
}


def _picture(height: int, width: int) -> np.ndarray:
  """Four quarters of four colors: no two of the eight ways look alike."""
  picture = np.zeros((height, width, 3), np.uint8)
  picture[: height // 2, : width // 2] = (230, 30, 30)
  picture[: height // 2, width // 2 :] = (30, 230, 30)
  picture[height // 2 :, : width // 2] = (30, 30, 230)
  picture[height // 2 :, width // 2 :] = (230, 230, 230)
  return picture


def _write_turned(path, matrix: tuple[int, int, int, int], picture: np.ndarray) -> None:
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=25)
    stream.height, stream.width = picture.shape[:2]
    stream.pix_fmt = "yuv444p"
    stream.options = {"crf": "5"}
    a, b, c, d = (value << 16 for value in matrix)
    stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
    for _ in range(3):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("matrix", EIGHT_WAYS)
def test_every_way_up_is_what_ffmpeg_shows(tmp_path, matrix, suffix):
  path = tmp_path / f"x{suffix}"
  _write_turned(path, matrix, _picture(48, 80))
  video = decoded(path, 48)
  expected = ffmpeg_frames(path, video.size)
  assert video.size == ((80, 48) if matrix[1] else (48, 80))
  assert np.abs(video.frames[0].astype(int) - expected[0]).mean() < 4
  # The corners, for the eye: a wrong way up is far off.
  assert np.abs(video.frames[0][2, 2].astype(int) - expected[0][2, 2]).max() < 40
  assert video.notes.get("orientation", "") == EIGHT_WAYS[matrix]


def _write_stretched(path, size: tuple[int, int], aspect: Fraction, rotation: int = 0) -> None:
  """A white circle as it is shown, in pixels of an aspect ratio."""
  height, width = size
  y, x = np.mgrid[0:height, 0:width]
  radius = 0.4 * min(height, width * aspect)
  circle = np.hypot((x - width / 2) * float(aspect), y - height / 2) < radius
  picture = np.repeat((circle * 255).astype(np.uint8)[..., None], 3, 2)
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=25)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.sample_aspect_ratio = aspect
    if rotation:
      stream.set_display_rotation(rotation)
    for _ in range(3):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode(None))


def _extent(frame: np.ndarray) -> tuple[int, int]:
  bright = frame[..., 1] > 128
  return int(bright.any(1).sum()), int(bright.any(0).sum())


@pytest.mark.parametrize("target", [{"height": 96}, {"height": 96, "width": 128}])
@pytest.mark.parametrize(
  ("size", "aspect", "rotation"),
  [
    ((576, 720), Fraction(64, 45), 0),
    ((576, 720), Fraction(16, 15), 0),
    ((480, 720), Fraction(8, 9), 0),
    ((576, 720), Fraction(64, 45), 90),
    ((240, 160), Fraction(2), 0),
  ],
)
def test_a_circle_stays_one(tmp_path, size, aspect, rotation, target):
  path = tmp_path / "x.mp4"
  _write_stretched(path, size, aspect, rotation)
  video = decoded(path, **target)
  height, width = _extent(video.frames[0])
  assert abs(height - width) <= 3
  shown = (size[0], round(size[1] * aspect)) if aspect > 1 else (round(size[0] / aspect), size[1])
  assert video.shown_size == (shown[::-1] if rotation else shown)
  assert str(aspect.numerator) in video.notes["pixel aspect"]


@pytest.mark.parametrize(
  ("size", "expected"),
  [
    ((240, 320), (128, 171)),
    ((256, 340), (128, 171)),
    ((96, 171), (128, 228)),
    ((1920, 1080), (228, 128)),
    ((321, 241), (170, 128)),
    ((64, 64), (128, 128)),
    ((33, 47), (128, 182)),
  ],
)
def test_frames_of_another_shape_are_stored_by_their_short_side(size, expected):
  assert shape.scaled_size(size, (128, 171), stretch=False) == expected
  assert shape.scaled_size(size, (128, 171), stretch=True) == (128, 171)


def test_an_upright_video_is_not_squeezed_unless_asked_to(tmp_path):
  path = tmp_path / "x.mp4"
  write_h264(path, [_picture(160, 90)] * 2, range(2), 25)
  stored = storing.store_video(path, storing.StoredScale(48, 64))
  assert (stored.height, stored.width) == (85, 48)
  assert stored.shown_size == (160, 90)
  scale = storing.StoredScale(48, 64, stretch=True)
  stored = storing.store_video(path, scale)
  assert (stored.height, stored.width) == (48, 64)
  assert scale.name == "48x64stretched-q75"


def test_odd_sizes_and_sizes_that_change_keep_the_first_ones_size(tmp_path):
  for name, size in (("a", (47, 81)), ("b", (96, 64))):
    write_h264(tmp_path / f"{name}.ts", [_picture(*size)] * 5, range(5), 25, form="mpegts")
  both = b"".join((tmp_path / f"{name}.ts").read_bytes() for name in "ab")
  (tmp_path / "x.ts").write_bytes(both)
  video = decoded(tmp_path / "x.ts", 40)
  assert {frame.shape for frame in video.frames} == {(40, 69, 3)}
  assert len(video.frames) == 10


def test_an_aspect_that_cannot_be_right_is_not_used(tmp_path):
  write_h264(tmp_path / "0.mp4", [_picture(48, 80)] * 3, range(3), 25)
  options = ("-c", "copy", "-aspect", "1000:1")
  ffmpeg("-i", tmp_path / "0.mp4", *options, tmp_path / "x.mp4")
  assert decoded(tmp_path / "x.mp4", 24).size == (24, 40)
