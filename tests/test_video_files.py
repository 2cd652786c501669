from fractions import Fraction
import io
import os
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


def _write(path, pictures, stamps, rate, form=None, rotation=None, **options):
  """Writes H.264 whose frames are shown at `stamps`, in units of 1 / `rate` seconds."""
  with av.open(str(path), "w", format=form, options=options) as container:
    stream = container.add_stream("libx264", rate=rate)
    stream.height, stream.width = pictures[0].shape[:2]
    stream.pix_fmt = "yuv444p"
    stream.options = {"crf": "5"}
    stream.thread_count = 1
    stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
    if rotation is not None:
      stream.set_display_rotation(rotation)
    for picture, stamp in zip(pictures, stamps, strict=True):
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
      frame.pts, frame.time_base = stamp, Fraction(1, rate)
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _places(path):
  """Which frame of `moving_square` each decoded one is, by the square's left edge."""
  found = [
    (int((frame[28, :, 0] > 128).argmax()), fps)
    for frame, fps in video_files.decode_frames(path, 64, 64)
  ]
  places, rates = zip(*found, strict=True)
  assert len(set(rates)) == 1
  return list(places), rates[0]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_frame_rate_becomes_a_constant_one(tmp_path, suffix):
  path = tmp_path / f"variable{suffix}"
  _write(path, moving_square(8), [0, 100, 200, 1000, 1100, 1200, 1800, 2100], 1000)
  places, fps = _places(path)
  # Seven intervals in 2.1 s; frames 0 and 1 fall on one time, as do 4 and 5; two gaps are filled.
  assert fps == pytest.approx(10 / 3)
  assert places == [1, 2, 2, 3, 5, 5, 6, 7]


@pytest.mark.parametrize(
  "stamps",
  [
    [1000 * i // 30 for i in range(40)],
    [1000 * i // 30 + (9, -9)[i % 2] + 9 for i in range(40)],
    [0, *(1000 * i // 30 + 66 for i in range(1, 40))],
  ],
  ids=["rounded to milliseconds", "jitter below half a frame", "an odd first time"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_constant_frame_rate_keeps_every_frame_once(tmp_path, stamps, suffix):
  path = tmp_path / f"constant{suffix}"
  _write(path, moving_square(40), stamps, 1000)
  places, fps = _places(path)
  assert places == list(range(40))
  assert fps == pytest.approx(30, rel=0.02)


def test_a_phone_video_is_turned_upright(tmp_path):
  picture = np.zeros((48, 64, 3), np.uint8)
  picture[:24, :32] = 255
  for degrees in (90, -90, 180):
    path = tmp_path / f"phone{degrees}.mp4"
    _write(path, [picture] * 3, range(3), 30, rotation=degrees)
    frames = [frame for frame, _ in video_files.decode_frames(path, 48, 0)]
    # Counterclockwise, as the display matrix has it.
    expected = np.rot90(picture, degrees // 90)
    assert frames[0].shape == expected.shape
    assert np.abs(frames[0].astype(int) - expected).mean() < 8


@pytest.mark.parametrize(("size", "stored"), [((240, 320), (60, 80)), ((90, 50), (108, 60))])
def test_width_0_sets_the_short_side_and_keeps_the_aspect_ratio(tmp_path, size, stored):
  path = tmp_path / "sized.mp4"
  _write(path, [np.zeros((*size, 3), np.uint8)] * 3, range(3), 30)
  scale = video_files.StoredScale(60, 0)
  video = video_files.store_video(path, scale)
  assert (video.height, video.width) == stored
  assert _pixels(video.frames[0]).shape == (*stored, 3)
  assert scale.name == "60short-q90"


def test_a_frame_too_long_for_jpeg_is_refused(tmp_path):
  path = tmp_path / "thin.mp4"
  _write(path, [np.zeros((2, 2000, 3), np.uint8)] * 3, range(3), 30)
  with pytest.raises(video_files.VideoError, match="too large for JPEG"):
    video_files.store_video(path, video_files.StoredScale(128, 0))


@pytest.mark.parametrize(
  ("arguments", "found"),
  [((0, 10), "0x10"), ((10, -1), "10x-1"), ((10, 10, 0), "of 0"), ((10, 10, 96), "of 96")],
)
def test_a_scale_that_cannot_be_is_refused(arguments, found):
  with pytest.raises(ValueError, match=found):
    video_files.StoredScale(*arguments)


def test_stored_frames_of_a_video_share_every_byte_before_the_scan():
  headers = set()
  for name in (WAVE, GOLF):
    for jpeg in video_files.store_video(REAL_CLIPS / name, SCALE).frames[::7]:
      scan = jpeg.index(b"\xff\xda")
      headers.add(jpeg[: scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4])])
  rng = np.random.default_rng(0)
  for picture in (np.zeros((56, 75, 3)), rng.integers(0, 256, (56, 75, 3))):
    jpeg = video_files.encode_jpeg(picture.astype(np.uint8), SCALE.jpeg_quality)
    scan = jpeg.index(b"\xff\xda")
    headers.add(jpeg[: scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4])])
  [header] = headers
  # Baseline, 8 bits, 56x75, three components, the first sampled twice as finely both ways.
  at = header.index(b"\xff\xc0")
  assert header[at + 4 : at + 19] == bytes([8, 0, 56, 0, 75, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1])


def test_a_video_longer_than_allowed_is_refused(tmp_path):
  path = tmp_path / "long.avi"
  made_actions.write_avi(path, moving_square(24), 12)
  assert len(video_files.store_video(path, SCALE, max_frames=24).frames) == 24
  with pytest.raises(video_files.VideoError, match="more than 23 frames"):
    video_files.store_video(path, SCALE, max_frames=23)


@pytest.mark.parametrize(
  "name", [b"%03d.avi", b"concat:a|b", b"a b;$(c)'\"\n.avi", b"caf\xe9.avi", "映像.avi".encode()]
)
def test_a_file_may_have_any_name(tmp_path, name):
  path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
  made_actions.write_avi(tmp_path / "plain.avi", moving_square(3), 12)
  os.rename(tmp_path / "plain.avi", path)
  [(_, video)] = video_files.store_videos([path], SCALE, 1)
  assert len(video.frames) == 3
  with open(path, "wb"):
    pass
  with pytest.raises(video_files.VideoError) as error:
    video_files.store_video(path, SCALE)
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
  # Such a file may not make the decoder read others.
  made_actions.write_avi(path.with_name("other.avi"), moving_square(3), 12)
  path.write_text("ffconcat version 1.0\nfile other.avi\n")


def _cut_mp4(path):
  # The index comes first, the last frames are not there.
  _write(path, moving_square(60), range(60), 30, form="mp4", movflags="faststart")
  path.write_bytes(path.read_bytes()[:-500])


def _cut_mkv(path):
  _write(path, moving_square(60), range(60), 30, form="matroska")
  path.write_bytes(path.read_bytes()[:-500])


def _cut_mp4_without_index(path):
  _write(path, moving_square(60), range(60), 30, form="mp4")
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


def _impossible_rate(path):
  made_actions.write_avi(path, moving_square(2), 12)
  data = path.read_bytes()
  rate = data.index(b"vids") + 20
  path.write_bytes(data[:rate] + struct.pack("<II", 1, 5_000_000) + data[rate + 8 :])


@pytest.mark.parametrize(
  ("make", "found"),
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
    (_impossible_rate, "frames a second, expected"),
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
  assert [place for place, _ in together] == [0, 1, 2]
  assert "empty" in together[1][1]


@pytest.mark.parametrize("settings", [{"workers": 0}, {"seconds_limit": 0}])
def test_settings_that_cannot_be_are_refused_before_any_work(settings):
  with pytest.raises(ValueError, match="expected"):
    video_files.store_videos([], SCALE, **settings)


def test_no_videos_need_no_process():
  assert list(video_files.store_videos([], SCALE)) == []
