"""Our own names: what `weights.save` writes for every model but torchvision's.

In: the leaves of a model. Out: their table. A name is the path joined with dots, such as
`cnn.stem.conv.spatial.kernel`; running statistics stand beside parameters, as `mean` and `var`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hybrid_video.weights import porting
from hybrid_video.weights.porting import Path, Row, Table, Target, Tree

PARTS = ("cnn", "attention", "decoder", "head")
TITLE = "the model's own names"


def key_of(path: Path) -> str:
  """The name of an array."""
  return ".".join(path)


def is_own(keys: Iterable[str]) -> bool:
  """Whether a file's keys are our own names."""
  split = [key.split(".") for key in keys]
  ends = {"weight", "num_batches_tracked"}
  return all(parts[0] in PARTS and parts[-1] not in ends for parts in split)


def table(targets: Iterable[Target], title: str = TITLE) -> Table:
  """The names of a model's arrays.

  Args:
    targets: collection and path of each.
    title: what to call the network in errors.

  Raises:
    ValueError: two collections have an array of one path.
  """
  rows = [Row(path, (key_of(path),), collection=collection) for collection, path in targets]
  if len({row.path for row in rows}) != len(rows):
    raise ValueError("A parameter and a statistic have one path, so that one name would be two.")
  return Table(title, tuple(rows))


def state_dict(params: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
  """A model's arrays by our own names, as they are.

  Args:
    params, batch_stats: nested dicts of arrays.
  """
  arrays: Mapping[Target, Any] = porting.leaves(params, batch_stats)
  return {key_of(path): np.asarray(leaf) for (_, path), leaf in arrays.items()}
