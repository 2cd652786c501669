"""Where the classifier of a file lies: under its name, inside a Sequential of that name, or nowhere.

In: arrays by key, and a name. Out: the name of its linear map, and what else lies there.
"""

from collections.abc import Mapping
import re
from typing import NamedTuple

import numpy as np


class Head(NamedTuple):
  """A file's classifier.

  Attributes:
    name: of its only linear map, such as `fc` or `fc.1`; None where there is none, or more.
    others: the keys of a classifier that is more than one linear map.
  """

  name: str | None
  others: tuple[str, ...] = ()


def find(state_dict: Mapping[str, np.ndarray], name: str) -> Head:
  """The classifier under a name.

  Dropout and activations have no keys, so a Sequential of those and one linear map is that map.

  Args:
    state_dict: arrays by key.
    name: that the classifier has where it is a linear map.
  """
  keys = tuple(key for key in state_dict if key.startswith(f"{name}."))
  if not keys:
    return Head(None)
  inside = re.compile(re.escape(name) + r"(?:\.\d+)*")
  maps = {key.rpartition(".")[0] for key in keys}
  if len(maps) == 1 and inside.fullmatch(linear := maps.pop()):
    return Head(linear)
  return Head(None, keys)
