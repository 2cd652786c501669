"""Batches on the devices: the next one is fetched and placed while a step runs.

In: batches of host arrays. Out: the same batches as global `jax.Array`s, in the same order.
"""

from collections.abc import Callable, Generator
from concurrent import futures
from typing import Any, Self

from hybrid_video.pipeline import Batch

PlacedBatch = dict[str, Any]
_LOOK_SECONDS = 0.2
# For a batch that is being fetched when training ends.
_END_SECONDS = 5.0


class Prefetch:
  """An iterator over placed batches, one of which a thread has at hand; a context manager.

  What goes wrong with a batch is raised when that batch is asked for.
  """

  def __init__(
    self,
    batches: Generator[Batch, None, None],
    place: Callable[[Batch], PlacedBatch],
    check: Callable[[], None] | None = None,
  ):
    """Fetches nothing yet.

    Args:
      batches: are closed at the end.
      place: puts a batch on the devices; called in the thread.
      check: called now and then while a batch is waited for; what it raises ends the wait.
    """
    self._batches, self._place, self._check = batches, place, check
    self._thread = futures.ThreadPoolExecutor(1, "prefetch")

  def __enter__(self) -> Self:
    self._next = self._thread.submit(self._fetch)
    return self

  def __exit__(self, *_: object) -> None:
    self._thread.shutdown(wait=False, cancel_futures=True)
    # Where data no longer come, what reads them cannot be closed.
    if not futures.wait([self._next], _END_SECONDS).not_done:
      self._batches.close()

  def __iter__(self) -> Self:
    return self

  def __next__(self) -> PlacedBatch:
    while futures.wait([self._next], _LOOK_SECONDS).not_done:
      if self._check:
        self._check()
    placed = self._next.result()
    if placed is None:
      raise StopIteration
    self._next = self._thread.submit(self._fetch)
    return placed

  def _fetch(self) -> PlacedBatch | None:
    batch = next(self._batches, None)
    return None if batch is None else self._place(batch)
