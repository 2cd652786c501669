"""The made events: nothing but the order of two events tells the class."""

from collections import Counter

import numpy as np
import pytest

from hybrid_video.datasets import hmdb51, made_events, splits


def _orders(pair: tuple[str, str], gap: float, film: int, look: str = "plain") -> list[list[bytes]]:
  first, second = pair
  labels = (f"{first}_then_{second}", f"{second}_then_{first}")
  return [
    [frame.tobytes() for frame in made_events.render(label, 3, gap, film, look)[0]]
    for label in labels
  ]


@pytest.mark.parametrize(
  ("gap", "look"), [(0.0, "plain"), (0.5, "plain"), (2.0, "plain"), (0.5, "textured")]
)
@pytest.mark.parametrize("pair", made_events.PAIRS)
def test_both_orders_show_the_same_frames_as_often(pair, gap, look):
  one, other = _orders(pair, gap, 1, look)
  assert Counter(one) == Counter(other) and one != other


@pytest.mark.parametrize("gap", [0.5, 1.0])
@pytest.mark.parametrize("pair", made_events.PAIRS)
def test_a_window_with_one_event_is_in_both_orders(pair, gap):
  one, other = _orders(pair, gap, film=2)
  rest = one[0]
  moving = [i for i, frame in enumerate(one) if frame != rest]
  begin = moving[0]
  length = next(k for k in range(1, len(one)) if one[begin + k] == rest)
  # No more rest than there is on every side of both events, in both orders.
  starts = [begin, next(i for i in moving if i >= begin + length)]
  margin = min(begin, starts[1] - begin - length, len(one) - starts[1] - length)
  assert margin >= 2
  for start in starts:
    around = tuple(one[start - margin : start + length + margin])
    assert len(set(around[margin : margin + length])) > 2
    windows = {tuple(other[i : i + len(around)]) for i in range(len(other))}
    assert around in windows


def test_the_time_of_an_event_does_not_tell_the_class_and_films_differ():
  lengths, leads = set(), set()
  for film in range(12):
    frames, fps = made_events.render("left_then_up", 0, 1.0, film)
    first = next(i for i in range(len(frames)) if (frames[i] != frames[0]).any())
    lengths.add(round(len(frames) / fps, 1))
    leads.add(round(first / fps, 1))
    mirrored = made_events.render("up_then_left", 0, 1.0, film)[0]
    assert (mirrored[first] != mirrored[0]).any() and (mirrored[first - 1] == mirrored[0]).all()
  assert lengths == {made_events.total_seconds(1.0)} and len(leads) > 3
  assert min(leads) >= 0.15 and max(leads) <= 1.05


def test_the_gap_is_still_and_as_long_as_asked_for():
  frames, fps = made_events.render("swell_then_up", 0, 2.0, 4)
  still = [bool((frame == frames[0]).all()) for frame in frames]
  moving = np.flatnonzero(~np.array(still))
  gaps = np.diff(moving)
  assert (gaps > 1).sum() == 1
  assert gaps.max() - 1 == round(2.0 * fps)


def test_a_set_is_read_by_films_and_another_gap_is_another_set(tmp_path):
  assert made_events.make(tmp_path / "set", 4, 0.0, seed=1, workers=1)
  listed = hmdb51.read(tmp_path / "set", official=False)
  assert len(listed.videos) == 4 * len(made_events.CLASSES)
  for split in range(3):
    train = {video.group for video in listed.videos if video.codes[split] == splits.TRAIN}
    test = {video.group for video in listed.videos if video.codes[split] == splits.TEST}
    assert train and test and not train & test
  with pytest.raises(ValueError, match=r"'gap_seconds': 0\.0"):
    made_events.make(tmp_path / "set", 4, 1.0, seed=1)
