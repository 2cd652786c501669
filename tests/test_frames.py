"""Frame indices against tables written by hand, torchvision's rule in plain NumPy, and properties."""

from fractions import Fraction
import itertools

import numpy as np
import pytest
import tensorflow as tf

from hybrid_video.sampling import clip_settings
from hybrid_video.sampling import frames as frame_arithmetic
from hybrid_video.sampling.clip_settings import ClipSettings, EvaluationSettings, Sampling
from hybrid_video.settings import SettingError


def _frames(sampling, num_frames, fps, start=0):
  """A window's frames, and how many first positions there are."""
  windows = frame_arithmetic.windows(sampling, num_frames, fps)
  shape = {name: int(getattr(windows, name)[0]) for name in WINDOW_FIELDS}
  selected = frame_arithmetic.window_frames(sampling, start, **shape)
  return selected.tolist(), int(windows.starts[0])


WINDOW_FIELDS = ("span", "positions", "numerator", "denominator")


@pytest.mark.parametrize(
  ("num_frames", "fps", "start", "expected", "starts"),
  [
    (89, 30.0, 0, [0, 3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51, 55, 59], 30),
    (89, 30.0, 29, [29, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 80, 84, 88], 30),
    (89, 29.97, 0, [0, 3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51, 55, 59], 30),
    (25, 12.5, 0, [0, 1, 3, 4, 6, 8, 9, 11, 12, 14, 16, 17, 19, 20, 22, 24], 1),
    (16, 30.0, 0, list(range(16)), 1),
    (3, 30.0, 0, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2], 1),
    (1, 30.0, 0, [0] * 16, 1),
    (100, 0.1, 50, [50] * 16, 100),
  ],
)
def test_a_window_in_seconds_has_evenly_spaced_frames_from_its_first_to_its_last(
  num_frames, fps, start, expected, starts
):
  assert _frames(Sampling(), num_frames, fps, start) == (expected, starts)


@pytest.mark.parametrize("span", [1, 2, 7, 15, 16, 17, 25, 48, 60, 119])
def test_even_spacing_is_the_truncated_linspace(span):
  sampling = Sampling(frames=16, window_seconds=span / 10)
  # In exact numbers: a float linspace may fall short of the integer it means.
  exact = [int(Fraction(i * (span - 1), 15)) for i in range(16)]
  assert _frames(sampling, 200, 10.0)[0] == exact


@pytest.mark.parametrize(
  ("fps", "expected"),
  [
    (30.0, [0, 2, 4, 6, 8, 10, 12, 14]),
    (25.0, [0, 1, 3, 5, 6, 8, 10, 11]),
    (29.97, [0, 1, 3, 5, 7, 9, 11, 13]),
    (30000 / 1001, [0, 1, 3, 5, 7, 9, 11, 13]),
    (60.0, [0, 4, 8, 12, 16, 20, 24, 28]),
    (15.0, [0, 1, 2, 3, 4, 5, 6, 7]),
    (12.0, [0, 1, 2, 3, 4, 5, 6, 7]),
  ],
)
def test_a_rate_leaves_the_frames_that_torchvision_leaves(fps, expected):
  sampling = Sampling(frames=8, mode="stride", rate=15.0)
  assert _frames(sampling, 300, fps)[0] == expected


@pytest.mark.parametrize(("num_frames", "fps"), [(91, 25.0), (100, 30.0), (95, 29.97), (64, 50.0)])
def test_every_window_is_one_of_torchvisions_clips(num_frames, fps):
  # VideoClips: resample to floor(arange(n) fps / rate), then unfold consecutive ones.
  rate, frames = 15, 16
  step = Fraction(fps).limit_denominator(100_000) / rate
  total = int(num_frames / step)
  resampled = [int(i * step) for i in range(total)]
  theirs = [resampled[i : i + frames] for i in range(total - frames + 1)]
  sampling = Sampling(frames=frames, mode="stride", rate=rate)
  count = _frames(sampling, num_frames, fps)[1]
  assert [_frames(sampling, num_frames, fps, start)[0] for start in range(count)] == theirs


def test_a_stride_skips_frames_at_the_videos_own_rate():
  sampling = Sampling(frames=4, mode="stride", stride=3)
  assert _frames(sampling, 20, 30.0, 10) == ([10, 13, 16, 19], 11)


@pytest.mark.parametrize(
  ("short", "expected"),
  [
    ("fit", [0, 0, 1, 2, 2, 3, 4]),
    ("loop", [0, 2, 4, 1, 3, 0, 2]),
    ("last", [0, 2, 4, 4, 4, 4, 4]),
  ],
)
def test_a_video_shorter_than_its_window_is_fitted_looped_or_held(short, expected):
  sampling = Sampling(frames=7, mode="stride", stride=2, short=short)
  assert _frames(sampling, 5, 30.0) == (expected, 1)


def test_a_short_video_is_looped_at_the_wanted_rate():
  # Seven frames at 30 are three positions at 15: 0, 2, 4.
  sampling = Sampling(frames=8, mode="stride", rate=15.0, short="loop")
  assert _frames(sampling, 7, 30.0)[0] == [0, 2, 4, 0, 2, 4, 0, 2]


def test_nothing_lies_past_the_end_and_evaluation_windows_cover_every_position():
  choices = itertools.product(
    ("seconds", "stride"), clip_settings.SHORT, (0.0, 7.5, 15.0, 24.0), (1, 3), (1, 4, 16)
  )
  lengths = np.concatenate([np.arange(1, 70), [99, 150, 301, 1062]])
  for mode, short, rate, stride, frames in choices:
    sampling = Sampling(
      frames=frames, mode=mode, short=short, rate=rate, stride=stride, window_seconds=1.1
    )
    for fps in (5.0, 24.0, 25.0, 30000 / 1001, 60.0):
      windows = frame_arithmetic.windows(sampling, lengths, fps)
      for i, length in enumerate(lengths.tolist()):
        row = {name: int(getattr(windows, name)[i]) for name in WINDOW_FIELDS}
        for start in (0, int(windows.starts[i]) - 1):
          selected = frame_arithmetic.window_frames(sampling, start, **row)
          assert selected.min() >= 0
          assert selected.max() < length, (sampling, fps, length)
          if short != "loop" or row["span"] <= row["positions"]:
            assert (np.diff(selected) >= 0).all()
        starts = frame_arithmetic.even_starts(int(windows.starts[i]), row["span"], row["positions"])
        ends = starts + row["span"]
        assert starts[0] == 0
        assert ends[-1] >= row["positions"]
        assert (starts[1:] <= ends[:-1]).all(), "a position lies in no window"
        assert starts[-1] < windows.starts[i]


@pytest.mark.parametrize(
  ("starts", "span", "positions", "count", "expected"),
  [
    (1, 60, 60, 0, [0]),
    (2, 60, 61, 0, [0, 1]),
    (61, 60, 120, 0, [0, 60]),
    (91, 60, 150, 0, [0, 45, 90]),
    (91, 60, 150, 1, [45]),
    (91, 60, 150, 10, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]),
    (4, 60, 63, 5, [0, 0, 1, 2, 3]),
    (1, 60, 40, 3, [0, 0, 0]),
  ],
)
def test_evaluation_windows_are_evenly_spaced(starts, span, positions, count, expected):
  assert frame_arithmetic.even_starts(starts, span, positions, count).tolist() == expected


@pytest.mark.parametrize(
  ("within", "frames", "expected"),
  [
    (0.0, 32, [0, 8, 16, 24]),
    (0.5, 32, [4, 12, 20, 28]),
    (1.0, 32, [7, 15, 23, 31]),
    (0.5, 10, [1, 3, 6, 8]),
    (1.0, 10, [1, 4, 6, 9]),
    (0.5, 3, [0, 0, 1, 2]),
    (1.0, 1, [0, 0, 0, 0]),
  ],
)
def test_segments_give_one_frame_each(within, frames, expected):
  unit = frame_arithmetic.SEGMENT_UNIT
  drawn = np.full(4, min(int(within * unit), unit - 1), np.int64)
  sampling = Sampling(frames=4, mode="segments")
  assert frame_arithmetic.segment_frames(sampling, drawn, frames=frames).tolist() == expected


def test_segments_meet_without_gap_or_overlap():
  sampling = Sampling(frames=8, mode="segments")
  grid = (
    np.linspace(0, frame_arithmetic.SEGMENT_UNIT - 1, 400).astype(np.int64)[:, None].repeat(8, 1)
  )
  for frames in range(8, 200):
    drawn = frame_arithmetic.segment_frames(sampling, grid, frames=frames)
    of = [set(column.tolist()) for column in drawn.T]
    assert sum(len(segment) for segment in of) == frames
    assert set.union(*of) == set(range(frames))
    assert max(map(len, of)) - min(map(len, of)) <= 1


@pytest.mark.parametrize("short", clip_settings.SHORT)
@pytest.mark.parametrize("mode", clip_settings.MODES)
def test_integers_arrays_and_tensors_give_the_same_frames(mode, short):
  sampling = Sampling(frames=8, mode=mode, short=short, rate=15.0, window_seconds=2.0)
  lengths = np.array([1, 5, 29, 48, 95, 1062])
  windows = frame_arithmetic.windows(sampling, lengths, [30.0, 25.0, 29.97, 12.0, 24.0, 30.0])
  starts = (windows.starts - 1) * 2 // 3
  within = np.arange(48, dtype=np.int64).reshape(6, 8) * (frame_arithmetic.SEGMENT_UNIT // 48)

  def clip_frames(convert):
    if mode == "segments":
      return frame_arithmetic.segment_frames(
        sampling, convert(within), frames=convert(lengths[:, None])
      )
    rows = {name: convert(getattr(windows, name)[:, None]) for name in WINDOW_FIELDS}
    return frame_arithmetic.window_frames(sampling, convert(starts[:, None]), **rows)

  arrays = clip_frames(np.asarray)
  tensors = tf.function(lambda: clip_frames(tf.constant))()
  np.testing.assert_array_equal(arrays, tensors.numpy())
  for i in range(6):
    if mode == "segments":
      one = frame_arithmetic.segment_frames(sampling, within[i], frames=int(lengths[i]))
    else:
      row = {name: int(getattr(windows, name)[i]) for name in WINDOW_FIELDS}
      one = frame_arithmetic.window_frames(sampling, int(starts[i]), **row)
    assert one.tolist() == arrays[i].tolist()


@pytest.mark.parametrize(
  ("name", "value", "expected"),
  [
    ("mode", "second", "expected one of seconds, stride, segments. Did you mean seconds?"),
    ("short", "repeat", "expected one of fit, loop, last."),
    ("frames", 0, "expected a whole number of 1 or more."),
    ("stride", 0, "expected a whole number of 1 or more."),
    ("window_seconds", 0.0, "expected a finite number above 0."),
    ("rate", -1.0, "expected a finite number of 0 or more."),
  ],
)
@pytest.mark.parametrize("kind", [ClipSettings, EvaluationSettings])
def test_settings_out_of_range_are_refused(kind, name, value, expected):
  shown = repr(value) if isinstance(value, str) else f"{value:g}"
  with pytest.raises(SettingError) as error:
    kind(**{name: value})
  assert f"--config.{kind.PATH}.{name} is {shown}: {expected}" in str(error.value)
