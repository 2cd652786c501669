"""Reading `results.json`, without what writing it needs.

In: a work directory. Out: what it holds, where a run is finished.
"""

import json
import os
from typing import Any

from etils import epath

RESULTS = "results.json"
# A run is finished once these are in the file.
_WHOLE = ("config", "protocol", "test", "seconds")


def read(workdir: os.PathLike | str) -> dict[str, Any] | None:
  """What a run's `results.json` holds; None where there is none yet, or not a whole one."""
  try:
    values = json.loads((epath.Path(workdir) / RESULTS).read_text())
  except (OSError, ValueError):
    return None
  if not isinstance(values, dict) or any(name not in values for name in _WHOLE):
    return None
  return values
