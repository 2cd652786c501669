"""Classes of two sets that are the same action: by words, and as published for HMDB51 and UCF101."""

import pytest

from hybrid_video import shared_classes
from hybrid_video.datasets import made_actions
from hybrid_video.weights import sources

# HMDB51's classes, and those of UCF101's that could be taken for one of them.
_HMDB51 = (
  "brush_hair cartwheel catch chew clap climb climb_stairs dive draw_sword dribble drink eat "
  "fall_floor fencing flic_flac golf handstand hit hug jump kick kick_ball kiss laugh pick pour "
  "pullup punch push pushup ride_bike ride_horse run shake_hands shoot_ball shoot_bow shoot_gun sit "
  "situp smile smoke somersault stand swing_baseball sword sword_exercise talk throw turn walk wave"
)
_UCF101 = (
  "Archery BabyCrawling BaseballPitch Basketball BasketballDunk BenchPress Biking BoxingPunchingBag "
  "BoxingSpeedBag BrushingTeeth CliffDiving Diving Fencing FloorGymnastics GolfSwing HandstandPushups "
  "HandstandWalking HighJump HorseRace HorseRiding JumpRope LongJump PullUps Punch PushUps "
  "RockClimbingIndoor RopeClimbing SoccerJuggling SoccerPenalty TennisSwing ThrowDiscus WalkingWithDog"
)
HMDB51, UCF101 = _HMDB51.split(), _UCF101.split()


def test_hmdb51_and_ucf101_share_what_is_published_and_one_more_by_name():
  found = shared_classes.shared(UCF101, HMDB51)
  # "Diving" is "dive" by its words; the published list leaves it out.
  assert found.pop("dive") == ("Diving",)
  assert {name: set(theirs) for name, theirs in found.items()} == {
    name: set(theirs) for name, theirs in shared_classes.PUBLISHED.items()
  }
  # The other way round it is the same pairs.
  back = shared_classes.shared(HMDB51, UCF101)
  pairs = {(ours, one) for ours, theirs in found.items() for one in theirs} | {("dive", "Diving")}
  assert {(ours, one) for one, theirs in back.items() for ours in theirs} == pairs


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ("PullUps", "pullup"),
    ("pull ups", "PullUps"),
    ("push up", "pushups"),
    ("ride_horse", "HorseRiding"),
    ("riding a bike", "ride_bike"),
    ("Swing baseball", "baseball-swing"),
    ("shaking hands", "shake_hands"),
    ("HTMLReading", "htmlreading"),
    ("打球", "打球"),
    ("???", "???"),
  ],
)
def test_names_of_one_action(one, other):
  assert shared_classes.shared([one, "jump"], [other]) == {other: (one,)}
  assert shared_classes.shared([other], ["jump", one]) == {one: (other,)}


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ("kick_ball", "kick"),
    ("climb_stairs", "climb"),
    ("HorseRace", "ride_horse"),
    ("the", "a"),
    ("!", "?"),
    ("spin_left", "spin_right"),
  ],
)
def test_names_of_two_actions(one, other):
  assert shared_classes.shared([one], [other]) == {}


def test_where_the_order_of_words_tells_classes_apart_it_does():
  names = made_actions.ACTIONS
  assert {"right_then_down", "down_then_right"} <= {*names}
  assert shared_classes.shared(names, names[::-1]) == {name: (name,) for name in names[::-1]}


def test_kinetics_is_compared_by_words_and_by_what_is_published():
  found = shared_classes.shared(sources.class_names("kinetics400"), HMDB51)
  assert found["shoot_bow"] == ("archery",) and found["pullup"] == ("pull ups",)
  assert found["climb"] == ("climbing a rope",) and "kick" not in found
