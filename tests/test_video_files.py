import io
import struct
import wave

import av
from conftest import REAL_CLIPS, REAL_LISTS, moving_square
import numpy as np
from PIL import Image
import pytest

from hybrid_video.datasets import made_actions, video_files

GOLF, BOW, WAVE = REAL_LISTS
SCALE = video_files.StoredScale(56, 75)


def _pixels(jpeg: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(jpeg))).astype(float)


@pytest.mark.parametrize(("name", "frames"), [(GOLF, 89), (BOW, 81), (WAVE, 72)])
def test_a_real_clip_gives_all_its_frames_at_the_stored_scale(name, frames):
  # The headers promise one frame more than there is.
  stored = video_files.store_video(REAL_CLIPS / name, SCALE)
  assert len(stored.frames) == frames
  assert stored.fps == 30.0
  assert {_pixels(frame).shape for frame in stored.frames} == {(56, 75, 3)}


def test_stored_frames_look_like_the_decoded_ones():
  decoded = [frame for frame, _ in video_files.decode_frames(REAL_CLIPS / WAVE, 128, 171)]
  stored = video_files.store_video(REAL_CLIPS / WAVE, video_files.StoredScale()).frames
  for frame, jpeg in zip(decoded[::10], stored[::10], strict=True):
    error = np.square(_pixels(jpeg) - frame).mean()
    assert 10 * np.log10(255**2 / error) > 30  # dB


def test_frames_come_in_order_of_time(tmp_path):
  path = tmp_path / "moving.avi"
  made_actions.write_avi(path, moving_square(24), 12)
  places = []
  for frame, fps in video_files.decode_frames(path, 64, 64):
    assert fps == 12.0
    places.append((frame[28, :, 0] > 128).nonzero()[0].mean())
  assert np.allclose(np.diff(places), 1.0, atol=0.6)
  assert len(places) == 24


def test_a_video_of_one_frame_is_a_video(tmp_path):
  path = tmp_path / "one.avi"
  made_actions.write_avi(path, moving_square(1), 25)
  assert len(video_files.store_video(path, SCALE).frames) == 1


def test_metadata_that_is_not_utf8_does_no_harm(tmp_path):
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
  assert len(video_files.store_video(path, SCALE).frames) == 5


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


@pytest.mark.parametrize(
  ("make", "found"),
  [
    (_truncated, "cut short"),
    (_header_only, "cut short"),
    (_empty, "empty"),
    (_text, "not a video"),
    (_audio, "no video stream"),
    (_missing, "no such file"),
  ],
)
def test_a_file_that_is_no_whole_video_is_refused_by_name(tmp_path, make, found):
  path = tmp_path / "broken.avi"
  make(path)
  with pytest.raises(video_files.VideoError, match=found) as error:
    video_files.store_video(path, SCALE)
  assert str(path) in str(error.value)


def test_parallel_decoding_keeps_the_order_and_tells_of_broken_files(tmp_path):
  broken = tmp_path / "broken.avi"
  broken.write_bytes(b"")
  paths = [REAL_CLIPS / WAVE, broken, REAL_CLIPS / GOLF]
  alone = list(video_files.store_videos(paths, SCALE, workers=1))
  together = list(video_files.store_videos(paths, SCALE, workers=2))
  assert together == alone
  assert [path for path, _ in together] == [str(path) for path in paths]
  assert "empty" in together[1][1]
