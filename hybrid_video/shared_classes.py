"""Classes of two data sets that are the same action, under whatever names.

In: class names of both. Out: of each class of the one, those of the other that are its action. A model that was
trained on these has learned more than features for them, so they blur what a transfer means.

`class_identity` tells whether two lists are the same classes, by spelling alone; here words are compared.
"""

from collections.abc import Sequence
import functools
import re

import snowballstemmer

_ARTICLES = frozenset({"a", "an", "the"})
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD = re.compile(r"[^\W_]+")
# Words do not tell these: the 12 classes that HMDB51 (left) and UCF101 share, as UCF-HMDB_full has them (Chen et
# al., "Temporal Attentive Alignment for Large-Scale Video Domain Adaptation", ICCV 2019, arXiv:1907.12743).
PUBLISHED: dict[str, tuple[str, ...]] = {
  "climb": ("RockClimbingIndoor", "RopeClimbing"),
  "fencing": ("Fencing",),
  "golf": ("GolfSwing",),
  "kick_ball": ("SoccerPenalty",),
  "pullup": ("PullUps",),
  "punch": ("Punch", "BoxingPunchingBag", "BoxingSpeedBag"),
  "pushup": ("PushUps",),
  "ride_bike": ("Biking",),
  "ride_horse": ("HorseRiding",),
  "shoot_ball": ("Basketball",),
  "shoot_bow": ("Archery",),
  "walk": ("WalkingWithDog",),
}
_STEMMER = snowballstemmer.stemmer("english")


@functools.cache
def words(name: str) -> tuple[str, ...]:
  """The stems of a name's words, in order and without articles: `HorseRiding` is (`hors`, `ride`)."""
  found = _WORD.findall(_CAMEL.sub(" ", name).casefold())
  return tuple(_STEMMER.stemWords([word for word in found if word not in _ARTICLES]))


@functools.cache
def _published() -> frozenset[frozenset[frozenset[str]]]:
  return frozenset(
    frozenset({frozenset(words(one)), frozenset(words(other))})
    for one, others in PUBLISHED.items()
    for other in others
  )


def shared(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, tuple[str, ...]]:
  """The classes here that are there too, each with its names there; in their order.

  Two classes are the same action where their names' stems are, one after the other or joined (`PullUps`,
  `pullup`, `pull ups`); where neither has such a partner, in whatever order (`HorseRiding`, `ride_horse`); and
  where `PUBLISHED` says so.

  Args:
    theirs, ours: class names.
  """
  by_text: dict[str, list[str]] = {}
  for name in theirs:
    by_text.setdefault("".join(words(name)) or name, []).append(name)
  texts = {name: "".join(words(name)) or name for name in ours}
  taken = {other for text in texts.values() for other in by_text.get(text, ())}
  found: dict[str, tuple[str, ...]] = {}
  for name in ours:
    same, own = by_text.get(texts[name], []), frozenset(words(name))
    others = [other for other in theirs if other not in same]
    if own and not same:
      same = [other for other in others if other not in taken and frozenset(words(other)) == own]
    published = [
      other for other in others if frozenset({own, frozenset(words(other))}) in _published()
    ]
    if of_name := tuple(other for other in theirs if other in {*same, *published}):
      found[name] = of_name
  return found
