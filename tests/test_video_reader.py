"""Video files to frames: what is read, and what is refused with a reason."""

import os
import struct
import wave

import av
from conftest import REAL_CLIPS, REAL_LISTS, moving_square
import numpy as np
from PIL import Image
import pytest
from video_writing import decoded, write_h264

from hybrid_video.datasets import made_actions
from hybrid_video.decoding import storing, video_reader, worker_pool

GOLF, BOW, WAVE = REAL_LISTS
SCALE = storing.StoredScale(56, 75)


def test_frames_come_in_order_of_time(tmp_path):
  path = tmp_path / "moving.avi"
  made_actions.write_avi(path, moving_square(24), 12)
  positions = []
  video = decoded(path, 64, 64)
  assert video.fps == 12.0
  for frame in video.frames:
    positions.append((frame[28, :, 0] > 128).nonzero()[0].mean())
  assert np.allclose(np.diff(positions), 1.0, atol=0.6)
  assert len(positions) == 24


def test_a_video_of_one_frame_is_a_video(tmp_path):
  path = tmp_path / "one.avi"
  made_actions.write_avi(path, moving_square(1), 25)
  assert len(storing.store_video(path, SCALE).frames) == 1


def test_metadata_need_not_be_utf8(tmp_path):
  path = tmp_path / "latin.avi"
  with av.open(str(path), "w", format="avi", options={}) as container:
    container.metadata["title"] = "XXXX caf"
    stream = container.add_stream("mpeg4", rate=10)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    for picture in moving_square(5):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode(None))
  data = path.read_bytes()
  assert b"XXXX" in data
  path.write_bytes(data.replace(b"XXXX", b"\xe9\xff\xfe\xe8"))
  with pytest.raises(UnicodeDecodeError), av.open(str(path)):
    pass
  assert len(storing.store_video(path, SCALE).frames) == 5


def test_a_phone_video_is_turned_upright(tmp_path):
  picture = np.zeros((48, 64, 3), np.uint8)
  picture[:24, :32] = 255
  for degrees in (90, -90, 180):
    path = tmp_path / f"phone{degrees}.mp4"
    write_h264(path, [picture] * 3, range(3), 30, rotation=degrees)
    frames = decoded(path, 48).frames
    # Counterclockwise, as the display matrix has it.
    expected = np.rot90(picture, degrees // 90)
    assert frames[0].shape == expected.shape
    assert np.abs(frames[0].astype(int) - expected).mean() < 8


def test_a_video_longer_than_allowed_is_refused(tmp_path):
  path = tmp_path / "long.avi"
  made_actions.write_avi(path, moving_square(24), 12)
  assert len(storing.store_video(path, SCALE, max_frames=24).frames) == 24
  with pytest.raises(video_reader.VideoError, match="more than 23 frames"):
    storing.store_video(path, SCALE, max_frames=23)


@pytest.mark.parametrize(
  "name", [b"%03d.avi", b"concat:a|b", b"a b;$(c)'\"\n.avi", b"caf\xe9.avi", "映像.avi".encode()]
)
def test_a_file_may_have_any_name(tmp_path, name):
  path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
  made_actions.write_avi(tmp_path / "plain.avi", moving_square(3), 12)
  os.rename(tmp_path / "plain.avi", path)
  [(_, video)] = worker_pool.store_videos([path], SCALE, 1)
  assert len(video.frames) == 3
  with open(path, "wb"):
    pass
  with pytest.raises(video_reader.VideoError) as error:
    storing.store_video(path, SCALE)
  # Fit for any log: one line of characters that can be written.
  assert str(error.value).isprintable()


def _truncated(path):
  path.write_bytes((REAL_CLIPS / WAVE).read_bytes()[:100_000])


def _empty(path):
  path.write_bytes(b"")


def _text(path):
  path.write_text("not a video\n" * 100)


def _header_only(path):
  path.write_bytes((REAL_CLIPS / WAVE).read_bytes()[:12])


def _audio(path):
  with wave.open(str(path), "wb") as sound:
    sound.setnchannels(1)
    sound.setsampwidth(2)
    sound.setframerate(8000)
    sound.writeframes(struct.pack("<800h", *range(800)))


def _missing(path):
  pass


def _folder(path):
  path.mkdir()


def _still_image(path):
  Image.new("RGB", (8, 8)).save(path, format="PNG")


def _playlist_of_a_real_video(path):
  # Such a file must not make the decoder read others.
  made_actions.write_avi(path.with_name("other.avi"), moving_square(3), 12)
  path.write_text("ffconcat version 1.0\nfile other.avi\n")


def _cut_mp4(path):
  # The index comes first, the last frames are missing.
  write_h264(path, moving_square(60), range(60), 30, form="mp4", movflags="faststart")
  path.write_bytes(path.read_bytes()[:-500])


def _cut_mkv(path):
  write_h264(path, moving_square(60), range(60), 30, form="matroska")
  path.write_bytes(path.read_bytes()[:-500])


def _cut_mp4_without_index(path):
  write_h264(path, moving_square(60), range(60), 30, form="mp4")
  path.write_bytes(path.read_bytes()[:-500])


def _damaged_in_the_middle(path):
  data = bytearray((REAL_CLIPS / WAVE).read_bytes())
  data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
  path.write_bytes(data)


def _huge_frames(path):
  with av.open(str(path), "w", format="avi") as container:
    stream = container.add_stream("rawvideo", rate=10)
    stream.width, stream.height, stream.pix_fmt = 48, 40, "bgr24"
    for picture in moving_square(3):
      frame = av.VideoFrame.from_ndarray(picture[:40, :48].copy(), format="rgb24")
      container.mux(stream.encode(frame.reformat(format="bgr24")))
  data = path.read_bytes()
  size = data.index(b"strf") + 12
  path.write_bytes(data[:size] + struct.pack("<ii", 9000, 9000) + data[size + 8 :])


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (_truncated, "cut short"),
    (_header_only, "cut short"),
    (_empty, "empty"),
    (_text, "not a video"),
    (_audio, "no video stream"),
    (_missing, "no such file"),
    (_folder, "a folder"),
    (_still_image, "still image"),
    (_playlist_of_a_real_video, "not a video|no frame|broke after 0"),
    (_cut_mp4, "cut short"),
    (_cut_mkv, "cut short"),
    (_cut_mp4_without_index, "not a video"),
    (_damaged_in_the_middle, r"frame \d+ is damaged"),
    (_huge_frames, "no usable frame size"),
  ],
)
def test_a_file_that_is_not_a_whole_video_is_refused_by_name(tmp_path, make, message):
  path = tmp_path / "broken.avi"
  make(path)
  with pytest.raises(video_reader.VideoError, match=message) as error:
    storing.store_video(path, SCALE)
  assert str(path) in str(error.value)
