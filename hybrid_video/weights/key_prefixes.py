"""Keys without what compilation, parallel training and frameworks put before a network's own.

In: arrays by the keys of a file. Out: the arrays of the network by its own keys, and the keys that are
of something else, such as the counters of a metric.
"""

from collections.abc import Collection, Mapping
import itertools
import logging
import re

import numpy as np

from hybrid_video import errors
from hybrid_video.weights.families import family_of
from hybrid_video.weights.weights_errors import WeightsFileError

log = logging.getLogger("hybrid_video")

# Wherever in a key: torch.compile, fully sharded training, recomputed activations.
_SEGMENTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# At the beginning, of a network that is not known: DataParallel, Lightning and hand-written wrappers.
_WRAPPERS = ("module", "model", "net", "network", "backbone")
_DEPTH = 4
_AVERAGE = re.compile(r"(^|[._])ema([._]|$)")


def split(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """The network in a state dict.

  Its keys are those below the one prefix, of any number of names in any order, under which a network
  that is known begins; where none is known, those below the wrappers that all keys share.

  Args:
    arrays: by the keys of a file.

  Returns:
    The network's arrays by its own keys, in the same order, and the keys outside of the prefix.

  Raises:
    WeightsFileError: networks under several prefixes that are no moving averages, or two keys that
      are one without their wrappers.
  """
  whole = _without_segments(arrays)
  prefix = _prefix(whole)
  outside = tuple(key for key in whole if not key.startswith(prefix))
  if outside:
    log.info(
      "Of the %d arrays in the file %d are below %s; unused are: %s",
      *(len(whole), len(whole) - len(outside), prefix),
      errors.shown(outside),
    )
  return {
    key.removeprefix(prefix): array for key, array in whole.items() if key.startswith(prefix)
  }, outside


def _without_segments(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  whole: dict[str, np.ndarray] = {}
  for key, array in arrays.items():
    bare = ".".join(part for part in key.split(".") if part not in _SEGMENTS)
    if bare in whole:
      raise WeightsFileError(
        f"two of its keys are {bare!a} without {' and '.join(_SEGMENTS)}: it holds two networks. "
        "Re-save the one you want alone."
      )
    whole[bare] = array
  return whole


def _prefix(keys: Collection[str]) -> str:
  prefixes = _networks(keys, _DEPTH)
  plain = [prefix for prefix in prefixes if not _AVERAGE.search(prefix)]
  candidates = plain or prefixes
  if len(candidates) > 1:
    raise WeightsFileError(
      f"it holds {len(candidates)} networks, under {errors.shown(candidates)}, and "
      "which is meant is not clear. Re-save the one you want alone."
    )
  if candidates:
    return candidates[0]
  prefix = ""
  while shared := [name for name in _WRAPPERS if _all_below(keys, f"{prefix}{name}.")]:
    prefix += f"{shared[0]}."
  return prefix


def _all_below(keys: Collection[str], prefix: str) -> bool:
  return all(key.startswith(prefix) and key != prefix for key in keys)


def _networks(keys: Collection[str], depth: int) -> list[str]:
  """The prefixes, at most `depth` names long, under which a known network begins."""
  if family_of(keys):
    return [""]
  if not depth:
    return []
  separated = sorted(key.partition(".")[::2] for key in keys if "." in key)
  return [
    f"{first}.{rest}"
    for first, group in itertools.groupby(separated, key=lambda pair: pair[0])
    for rest in _networks([below for _, below in group], depth - 1)
  ]
