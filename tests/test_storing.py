"""Stored frames: their size, their quality, their bytes, and how they are read in memory."""

import io

from conftest import REAL_CLIPS, REAL_LISTS
import numpy as np
from PIL import Image
import pytest
from video_writing import decoded, write_h264

from hybrid_video import errors
from hybrid_video.datasets import builder, hmdb51
from hybrid_video.decoding import jpeg_stripes, storing, video_reader

GOLF, BOW, WAVE = REAL_LISTS
SCALE = storing.StoredScale(56, 75, stretch=True)


def _pixels(jpeg: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(jpeg))).astype(float)


@pytest.mark.parametrize(("name", "frames"), [(GOLF, 89), (BOW, 81), (WAVE, 72)])
def test_a_real_clip_gives_all_its_frames_at_the_stored_scale(name, frames):
  # The headers promise one frame more than there is.
  stored = storing.store_video(REAL_CLIPS / name, SCALE)
  assert len(stored.frames) == frames
  assert stored.fps == 30.0
  assert {_pixels(frame).shape for frame in stored.frames} == {(56, 75, 3)}


def test_stored_frames_look_like_the_decoded_ones():
  frames = decoded(REAL_CLIPS / WAVE, 128, 171).frames
  stored = storing.store_video(REAL_CLIPS / WAVE, storing.StoredScale(jpeg_quality=90)).frames
  for frame, jpeg in zip(frames[::10], stored[::10], strict=True):
    error = np.square(_pixels(jpeg) - frame).mean()
    assert 10 * np.log10(255**2 / error) > 30  # dB


@pytest.mark.parametrize(("size", "stored"), [((240, 320), (60, 80)), ((90, 50), (108, 60))])
def test_width_0_sets_the_short_side_and_keeps_the_aspect_ratio(tmp_path, size, stored):
  path = tmp_path / "sized.mp4"
  write_h264(path, [np.zeros((*size, 3), np.uint8)] * 3, range(3), 30)
  scale = storing.StoredScale(60, 0, 90)
  video = storing.store_video(path, scale)
  assert (video.height, video.width) == stored
  assert _pixels(video.frames[0]).shape == (*stored, 3)
  assert scale.name == "60short-q90"


def test_a_frame_too_long_for_jpeg_is_refused(tmp_path):
  path = tmp_path / "thin.mp4"
  write_h264(path, [np.zeros((2, 2000, 3), np.uint8)] * 3, range(3), 30)
  with pytest.raises(video_reader.VideoError, match="too large for JPEG"):
    storing.store_video(path, storing.StoredScale(128, 0))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((0, 10), r"--config\.stored\.height is 0: .* 1 or more"),
    ((10, -1), r"--config\.stored\.width is -1: .* 0 or more"),
    ((10, 10, 0), r"--config\.stored\.jpeg_quality is 0: .* 1 or more up to 95"),
    ((10, 10, 96), r"--config\.stored\.jpeg_quality is 96: .* up to 95"),
  ],
)
def test_a_scale_out_of_range_is_refused(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    storing.StoredScale(*arguments)


def test_stored_frames_of_a_video_share_every_byte_before_the_scan():
  headers = set()
  for name in (WAVE, GOLF):
    for jpeg in storing.store_video(REAL_CLIPS / name, SCALE).frames[::7]:
      scan = jpeg.index(b"\xff\xda")
      headers.add(jpeg[: scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4])])
  rng = np.random.default_rng(0)
  for picture in (np.zeros((56, 75, 3)), rng.integers(0, 256, (56, 75, 3))):
    jpeg = storing.encode_jpeg(picture.astype(np.uint8), SCALE.jpeg_quality)
    scan = jpeg.index(b"\xff\xda")
    headers.add(jpeg[: scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4])])
  [header] = headers
  # Baseline, 8 bits, 56x75, three components, the first sampled twice as finely both ways.
  at = header.index(b"\xff\xc0")
  assert header[at + 4 : at + 19] == bytes([8, 0, 56, 0, 75, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1])


def _of_colour(value: int, size: tuple[int, int] = (24, 32)) -> bytes:
  return storing.encode_jpeg(np.full((*size, 3), value, np.uint8), 75)


def test_videos_in_memory_are_read_like_stored_records(real_folder, tmp_path):
  scale = storing.StoredScale(38, 50)
  stored = builder.build(hmdb51.read(real_folder, official=False), str(tmp_path), scale, workers=1)
  videos = [storing.store_video(REAL_CLIPS / name, scale) for name in stored.names]
  in_memory = storing.StoredVideos(videos, stored.names.tolist())
  assert len(in_memory) == 3
  for name in ("num_frames", "fps", "height", "width"):
    known, expected = getattr(in_memory, name), getattr(stored, name)
    assert known.dtype == expected.dtype
    np.testing.assert_array_equal(known, expected)
  for video_id in range(3):
    last = int(stored.num_frames[video_id]) - 1
    # Out of order, repeated, and more than the eight kinds of restart markers.
    for frames in ([0], [last, 0, 7, 7], list(range(0, last, 4))):
      read = in_memory.read_stripe(video_id, np.array(frames))
      assert read == stored.read_stripe(video_id, np.array(frames))
    assert in_memory.header(video_id) == jpeg_stripes.parse(videos[video_id].frames[0])


def test_damaged_frames_in_memory_are_refused():
  whole, other_size = _of_colour(9), _of_colour(9, (24, 48))
  videos = [storing.StoredVideo([whole, whole[:-9], other_size], 25.0, 24, 32)]
  in_memory = storing.StoredVideos(videos)
  in_memory.read_stripe(0, np.array([0, 0]))
  for frame in (1, 2):
    with pytest.raises(jpeg_stripes.JpegError):
      in_memory.read_stripe(0, np.array([0, frame]))
  with pytest.raises(jpeg_stripes.JpegError, match="Not a JPEG"):
    storing.StoredVideos([storing.StoredVideo([b"RIFF"], 25.0, 24, 32)])


def test_messages_name_a_video_in_memory():
  videos = [storing.StoredVideo([_of_colour(value)], 25.0, 24, 32) for value in (1, 2)]
  assert storing.StoredVideos(videos).damaged(1).startswith("video 1: ")
  assert storing.StoredVideos(videos, ["a.mp4", "b.mp4"]).damaged(1).startswith("b.mp4: ")
  with pytest.raises(ValueError, match="1 names of 2 videos"):
    storing.StoredVideos(videos, ["a.mp4"])
