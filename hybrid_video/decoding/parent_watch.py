"""A process that ends as soon as its parent does, even one that was killed.

In: a function, pickled. Out: its call, in a process that imports nothing heavy before it watches.
"""

import multiprocessing
from multiprocessing import connection
import os
import pickle
import threading
from typing import Any


def _wait_and_end() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    connection.wait([parent.sentinel])
    # Nobody is left to tell.
    os._exit(1)


def end_with_parent() -> None:
  """From now on, ends this process when its parent is gone."""
  threading.Thread(target=_wait_and_end, daemon=True).start()


def run(pickled: bytes, *arguments: Any) -> None:
  """What a spawned process runs: a pickled function, unpickled when its parent is watched.

  Args:
    pickled: the function; its module may take seconds to import, in which a parent can be killed.
    *arguments: what it is called with, of light modules alone.
  """
  end_with_parent()
  pickle.loads(pickled)(*arguments)
