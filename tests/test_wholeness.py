"""A file is cut short where frames are missing that it counts, not where a field of it is off."""

import contextlib
import struct

from conftest import REAL_CLIPS, REAL_LISTS
import pytest
from video_writing import decoded, ffmpeg, numbered, numbers, write_h264

from hybrid_video.decoding import video_reader, wholeness

PICTURES = numbered(30)
GOLF, BOW, WAVE = REAL_LISTS


def _avi(folder) -> bytearray:
  write_h264(folder / "0.mp4", PICTURES, range(30), 25)
  ffmpeg("-i", folder / "0.mp4", "-c:v", "mjpeg", "-q:v", "2", folder / "x.avi")
  return bytearray((folder / "x.avi").read_bytes())


def _matroska(folder) -> bytearray:
  write_h264(folder / "x.mkv", PICTURES, range(30), 25)
  return bytearray((folder / "x.mkv").read_bytes())


@pytest.mark.parametrize("off", [8, 56, 10**6, -4, -(10**4)])
def test_an_avi_with_a_wrong_size_in_its_first_field_is_whole(tmp_path, off):
  data = _avi(tmp_path)
  struct.pack_into("<I", data, 4, max(0, len(data) - 8 + off))
  (tmp_path / "x.avi").write_bytes(data)
  assert numbers(decoded(tmp_path / "x.avi", 48).frames) == list(range(30))


def test_an_avi_that_gives_its_pictures_more_room_than_there_is_is_whole_if_none_is_missing(
  tmp_path,
):
  data = _avi(tmp_path)
  at = data.index(b"movi") - 4
  (size,) = struct.unpack_from("<I", data, at)
  # What a writer leaves that ends before it writes the index.
  data = data[: at + 4 + size]
  struct.pack_into("<I", data, at, size + 5000)
  (tmp_path / "x.avi").write_bytes(data)
  assert wholeness.suspicion_of(tmp_path / "x.avi") is not None
  assert numbers(decoded(tmp_path / "x.avi", 48).frames) == list(range(30))


def test_an_avi_whose_recorder_was_switched_off_is_what_it_recorded(tmp_path):
  data = _avi(tmp_path)
  at = data.index(b"movi") - 4
  data = data[: data.index(b"idx1")]
  count = data.index(b"vids") + 32
  for unknown in (0, 0x7FFFFFFF):
    struct.pack_into("<I", data, 4, unknown)
    struct.pack_into("<I", data, at, unknown)
    struct.pack_into("<I", data, count, 0)
    (tmp_path / "x.avi").write_bytes(data)
    assert numbers(decoded(tmp_path / "x.avi", 48).frames) == list(range(30))


def test_an_avi_that_is_cut_between_two_pictures_is_cut_short(tmp_path):
  data = _avi(tmp_path)
  last = data.rindex(b"00dc", 0, data.index(b"idx1"))
  (tmp_path / "x.avi").write_bytes(data[:last])
  with pytest.raises(video_reader.VideoError, match="cut short: it counts 30 frames and holds 29"):
    decoded(tmp_path / "x.avi", 48)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", REAL_LISTS)
def test_real_clips_that_are_cut_are_refused(tmp_path, name, share):
  data = (REAL_CLIPS / name).read_bytes()
  (tmp_path / "x.avi").write_bytes(data[: int(share * len(data))])
  if share == 0.99:
    # The index alone may be gone: then every frame is there.
    with contextlib.suppress(video_reader.VideoError):
      frames = decoded(tmp_path / "x.avi", 48).frames
      assert len(frames) == len(decoded(REAL_CLIPS / name, 48).frames)
  else:
    with pytest.raises(video_reader.VideoError, match=r"cut short|damaged"):
      decoded(tmp_path / "x.avi", 48)


def _segment_size(data: bytearray) -> int:
  at = data.index(b"\x18\x53\x80\x67") + 4
  # Eight bytes, as FFmpeg writes it.
  assert data[at] == 1
  return at


def test_a_matroska_file_with_a_wrong_size_of_its_segment_is_whole(tmp_path):
  data = _matroska(tmp_path)
  at = _segment_size(data)
  size = int.from_bytes(data[at + 1 : at + 8], "big") + 10_000
  data[at + 1 : at + 8] = size.to_bytes(7, "big")
  (tmp_path / "x.mkv").write_bytes(data)
  assert wholeness.suspicion_of(tmp_path / "x.mkv") is not None
  assert numbers(decoded(tmp_path / "x.mkv", 48).frames) == list(range(30))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_matroska_file_that_is_cut_is_refused(tmp_path, share):
  data = _matroska(tmp_path)
  (tmp_path / "x.mkv").write_bytes(data[: int(share * len(data))])
  with pytest.raises(video_reader.VideoError, match="cut short"):
    decoded(tmp_path / "x.mkv", 48)


def test_a_matroska_file_that_lacks_its_last_picture_is_refused(tmp_path):
  data = _matroska(tmp_path)
  last = data.rindex(b"\xa3", 0, data.rindex(b"\x1c\x53\xbb\x6b"))
  (tmp_path / "x.mkv").write_bytes(data[:last])
  with pytest.raises(video_reader.VideoError, match="cut short"):
    decoded(tmp_path / "x.mkv", 48)
