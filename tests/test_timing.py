"""Frames are evenly spaced in time, whatever times the file gives them, and none is lost."""

from fractions import Fraction

import av
from conftest import moving_square
import numpy as np
import pytest
from video_writing import (
  decoded,
  ffmpeg,
  ffmpeg_frames,
  numbered,
  numbers,
  square_positions,
  write_h264,
)

from hybrid_video.decoding import storing, timing, video_reader

SIZE = (48, 80)
PICTURES = numbered(120)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_frame_rate_becomes_a_constant_one(tmp_path, suffix):
  path = tmp_path / f"variable{suffix}"
  write_h264(path, moving_square(8), [0, 100, 200, 1000, 1100, 1200, 1800, 2100], 1000)
  positions, fps = square_positions(path)
  assert fps == pytest.approx(10)
  assert positions == [0, 1, *[2] * 8, 3, 4, *[5] * 6, *[6] * 3, 7]


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
  write_h264(path, moving_square(40), stamps, 1000)
  positions, fps = square_positions(path)
  assert positions == list(range(40))
  assert fps == pytest.approx(30, rel=0.02)


def _write(path, form: str | None = None, count: int = 50, first: int = 0) -> None:
  write_h264(path, PICTURES[first : first + count], range(count), 25, form=form)


def _motion_then_still(folder):
  write_h264(folder / "x.mp4", PICTURES[:41], [*range(0, 4000, 100), 20000], 3000)
  return folder / "x.mp4", 30, 41


def _still_then_motion(folder):
  stamps = [0, *(5000 + i * 1000 // 60 for i in range(40))]
  write_h264(folder / "x.mkv", PICTURES[:41], stamps, 1000)
  return folder / "x.mkv", 60, 41


def _motion_in_bursts(folder):
  stamps = [i for burst in (0, 77, 140, 300) for i in range(burst, burst + 20)]
  write_h264(folder / "x.mp4", PICTURES[:80], stamps, 30)
  return folder / "x.mp4", 30, 80


def _thirty_then_24(folder):
  stamps = [*range(0, 1200, 20), *range(1200, 2700, 25)]
  write_h264(folder / "x.mp4", PICTURES[:120], stamps, 600)
  return folder / "x.mp4", 30, 120


def _24_then_thirty(folder):
  stamps = [*range(0, 1500, 25), *range(1500, 2700, 20)]
  write_h264(folder / "x.mp4", PICTURES[:120], stamps, 600)
  return folder / "x.mp4", 30, 120


def _every_seventh_missing(folder):
  stamps = [i for i in range(100) if i % 7 != 3]
  write_h264(folder / "x.mkv", PICTURES[: len(stamps)], stamps, 30)
  return folder / "x.mkv", 30, len(stamps)


def _empty_chunks(folder):
  # AVI writes a chunk of no bytes where a frame is shown once more.
  _, _, count = _every_seventh_missing(folder)
  ffmpeg("-i", folder / "x.mkv", "-c:v", "mjpeg", "-q:v", "2", "-fps_mode", "vfr", folder / "x.avi")
  return folder / "x.avi", 30, count


def _pause_among_b_frames(folder):
  # In AVI the times that come with B-frames are those of their packets.
  stamps = [*range(25), *range(50, 75)]
  write_h264(folder / "x.mp4", PICTURES[:50], stamps, 25)
  codec = (
    "-c:v",
    "libx264",
    "-bf",
    "3",
    "-b_strategy",
    "0",
    "-qp",
    "5",
    "-fps_mode",
    "passthrough",
  )
  ffmpeg("-i", folder / "x.mp4", *codec, folder / "x.avi")
  return folder / "x.avi", 25, 50


def _gif(folder):
  # Times in hundredths of a second.
  _every_seventh_missing(folder)
  ffmpeg("-i", folder / "x.mkv", "-fps_mode", "vfr", folder / "x.gif")
  return folder / "x.gif", 30, 86


def _joined_broadcasts(folder):
  for i in range(2):
    _write(folder / f"{i}.ts", "mpegts", first=50 * i)
  (folder / "x.ts").write_bytes(b"".join((folder / f"{i}.ts").read_bytes() for i in range(2)))
  return folder / "x.ts", 25, 100


def _joined_discs(folder):
  for i in range(2):
    _write(folder / f"{i}.mp4", first=50 * i)
    codec = ("-c:v", "mpeg2video", "-q:v", "2", "-f", "vob")
    ffmpeg("-i", folder / f"{i}.mp4", *codec, folder / f"{i}.vob")
  (folder / "x.vob").write_bytes(b"".join((folder / f"{i}.vob").read_bytes() for i in range(2)))
  return folder / "x.vob", 25, 100


def _far_from_zero(folder):
  _write(folder / "0.mp4")
  ffmpeg("-i", folder / "0.mp4", "-c", "copy", "-output_ts_offset", "40000", folder / "x.ts")
  return folder / "x.ts", 25, 50


def _clock_that_overflows(folder):
  # 33 bits at 90 kHz.
  _write(folder / "0.mp4")
  ffmpeg("-i", folder / "0.mp4", "-c", "copy", "-output_ts_offset", "95442.7", folder / "x.ts")
  return folder / "x.ts", 25, 50


def _edit_list(folder):
  _write(folder / "0.mp4")
  codec = ("-c:v", "libx264", "-bf", "3", "-g", "25", "-qp", "5")
  ffmpeg("-i", folder / "0.mp4", *codec, folder / "b.mp4")
  ffmpeg("-ss", "0.5", "-i", folder / "b.mp4", "-c", "copy", folder / "x.mp4")
  return folder / "x.mp4", 25, 37


def _negative_times(folder):
  _edit_list(folder)
  options = ("-c", "copy", "-avoid_negative_ts", "disabled", "-movflags", "negative_cts_offsets")
  ffmpeg("-itsoffset", "-1", "-i", folder / "b.mp4", *options, folder / "x.mp4")
  # The file's own edit cuts what comes before its beginning.
  return folder / "x.mp4", 25, 25


def _packets_never_shown(folder):
  _write(folder / "0.mp4")
  codec = (
    "-c:v",
    "libvpx",
    "-auto-alt-ref",
    "1",
    "-lag-in-frames",
    "16",
    "-crf",
    "4",
    "-b:v",
    "1M",
  )
  ffmpeg("-i", folder / "0.mp4", *codec, folder / "x.webm")
  return folder / "x.webm", 25, 50


def _no_times(folder):
  _write(folder / "0.mp4")
  ffmpeg("-i", folder / "0.mp4", "-c", "copy", "-f", "h264", folder / "x.h264")
  return folder / "x.h264", 25, 50


@pytest.mark.parametrize(
  "make",
  [
    _motion_then_still,
    _still_then_motion,
    _motion_in_bursts,
    _thirty_then_24,
    _24_then_thirty,
    _every_seventh_missing,
    _empty_chunks,
    _pause_among_b_frames,
    _gif,
    _joined_broadcasts,
    _joined_discs,
    _far_from_zero,
    _clock_that_overflows,
    _edit_list,
    _negative_times,
    _packets_never_shown,
    _no_times,
  ],
)
def test_every_picture_is_in_the_slots_that_ffmpeg_gives_it(tmp_path, make):
  path, fps, count = make(tmp_path)
  video = decoded(path, *SIZE, stretch=True)
  assert video.fps == pytest.approx(fps, rel=2e-3)
  shown = numbers(video.frames)
  assert len(set(shown)) == count
  rate = Fraction(video.fps).limit_denominator(10000)
  expected = numbers(ffmpeg_frames(path, SIZE, f"fps={rate}"))
  # After a long pause, ffmpeg's filter may end without its last frame.
  assert shown in (expected, [*expected, shown[-1]])


def test_a_recording_from_the_middle_begins_at_its_first_key_frame(tmp_path):
  _write(tmp_path / "0.mp4")
  codec = ("-c:v", "libx264", "-bf", "3", "-g", "20", "-qp", "5")
  ffmpeg("-i", tmp_path / "0.mp4", *codec, tmp_path / "whole.ts")
  data = (tmp_path / "whole.ts").read_bytes()
  (tmp_path / "x.ts").write_bytes(data[188 * (len(data) // 188 // 4) :])
  shown = numbers(decoded(tmp_path / "x.ts", *SIZE, stretch=True).frames)
  assert shown == list(range(20, 50))


def test_recordings_that_are_joined_byte_by_byte_are_all_there(tmp_path):
  # The ffmpeg program stops at the end of the first.
  _, _, count = _still_then_motion(tmp_path)
  data = (tmp_path / "x.mkv").read_bytes()
  (tmp_path / "x.mkv").write_bytes(data * 2)
  video = decoded(tmp_path / "x.mkv", *SIZE, stretch=True)
  shown = numbers(video.frames)
  assert shown[: len(shown) // 2] == shown[len(shown) // 2 :]
  assert len(set(shown)) == count
  assert "the clock starts again once" in video.notes["time"]


def test_an_impossible_rate_is_assumed_to_be_ffmpegs(tmp_path):
  path = tmp_path / "x.avi"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mjpeg", rate=25)
    stream.height, stream.width, stream.pix_fmt = 48, 80, "yuvj420p"
    for picture in PICTURES[:5]:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode(None))
  data = path.read_bytes()
  rate = data.index(b"vids") + 20
  path.write_bytes(data[:rate] + np.array([1, 5_000_000], "<u4").tobytes() + data[rate + 8 :])
  video = decoded(path, *SIZE)
  assert numbers(video.frames) == [0, 1, 2, 3, 4]
  assert video.fps == 25
  assert "25" in video.notes["time"]


def test_a_pause_beyond_what_is_allowed_names_the_setting(tmp_path):
  path, _, _ = _motion_then_still(tmp_path)
  with pytest.raises(video_reader.VideoError, match=r"201 frames at 30 .*decoding\.max_frames"):
    storing.store_video(path, storing.StoredScale(24, 40), max_frames=200)
  assert len(storing.store_video(path, storing.StoredScale(24, 40), max_frames=201).frames) == 201


@pytest.mark.parametrize(
  ("seconds", "stated", "fps", "slots"),
  [
    ([0.0] * 5, [20.0], 20, [0, 1, 2, 3, 4]),
    ([None] * 3, [], 25, [0, 1, 2]),
    ([None, None, 0.2, 0.3, None], [], 10, [0, 1, 2, 3, 4]),
    ([0, 0.1, 0.2, 0, 0.1, 0.2], [], 10, [0, 1, 2, 3, 4, 5]),
    ([5, 5.1, 5.2, 5.3, 0.7, 0.8, 0.9, 1.0], [], 10, [0, 1, 2, 3, 4, 5, 6, 7]),
    ([0.1, 0.4, 0.3, 0.2, 0.8, 0.7, 0.6, 0.5], [], 10, [0, 1, 2, 3, 4, 5, 6, 7]),
    ([0, 0.1, 0.1, 0.3, 0.4], [], 10, [0, 1, 2, 3, 4]),
    ([-0.5, -0.4, -0.3, 0.1], [], 10, [0, 1, 2, 6]),
  ],
  ids=[
    "all at once",
    "no times",
    "some without a time",
    "short recordings joined",
    "a clock that goes back for good",
    "a few places out of order",
    "two at one time",
    "negative",
  ],
)
def test_times_that_are_odd(seconds, stated, fps, slots):
  grid = timing.make_grid(seconds, stated)
  assert grid.fps == pytest.approx(fps)
  assert grid.slots.tolist() == slots
  # Times that are not used are said to be.
  assert ("no usable times" in grid.note) == (len({*seconds}) == 1)


def test_a_jump_forward_is_a_new_clock_only_where_formats_have_one():
  seconds = [*np.arange(50) / 25, *(500 + np.arange(50) / 25)]
  assert timing.make_grid(seconds, [], new_clocks=True).length == 100
  assert timing.make_grid(seconds, []).length == 25 * 502


def test_bursts_that_a_recorder_writes_late_make_no_absurd_rate():
  times = [i / 30 + 0.0005 * k for i in range(100) for k in range(5 if i % 20 == 0 else 1)]
  grid = timing.make_grid(times, [])
  assert grid.fps < 61
  assert len(set(grid.slots.tolist())) == len(times)
  assert np.abs(grid.slots / grid.fps - times).max() < 0.11


def test_the_rate_of_long_recordings_does_not_drift():
  rng = np.random.default_rng(0)
  dropped = rng.random(30_000) > 0.01
  dropped[0] = True
  times = np.flatnonzero(dropped) / 29.97
  for rounded in (np.round(times, 3), times + rng.normal(0, 0.002, len(times))):
    grid = timing.make_grid((rounded - rounded[0]).tolist(), [])
    assert np.abs(grid.slots / grid.fps - times).max() < 2 / 29.97
    assert grid.length == pytest.approx(30_000, abs=30)
