"""Batches from the workers of a tf.data service, put back into the order of their steps.

In: a function that makes the data set of one step, and a dispatcher's address (`service` starts the
servers). Out: the batches of all steps, whatever order the workers finish in.
"""

from collections.abc import Callable, Generator, Iterator
import contextlib
import logging
import queue
import threading

import numpy as np
import tensorflow as tf

from hybrid_video.datasets import service as data_service

log = logging.getLogger("hybrid_video")

Batch = dict[str, np.ndarray]
OneStep = Callable[[tf.Tensor], tf.data.Dataset]
AsNumpy = Callable[[tf.data.Dataset], Iterator[Batch]]

# Batches that may arrive before the one that is due.
_AHEAD = 64
# A service that has sent nothing for so long has lost a worker, or has none.
_SILENT_SECONDS = 30.0


def batches_from_workers(
  one_step: OneStep, as_numpy: AsNumpy, first_step: int, steps: int, address: str
) -> Generator[Batch, None, None]:
  """The batches of the steps `first_step` to `steps`, exclusive, in order.

  The dispatcher hands out steps one by one, and whichever worker is done first sends first. A step
  that a lost worker took with it is made here.

  Args:
    one_step: a step to the data set of its one batch, which also holds the scalar `step`.
    as_numpy: a data set to its elements, with errors explained.
    first_step: the first step wanted.
    steps: where to stop.
    address: `HOST:PORT` or `grpc://HOST:PORT` of the dispatcher.

  Raises:
    ServiceError: nothing listens at the address, or the service fails.
  """
  data_service.check_reachable(address)
  data = tf.data.Dataset.range(first_step, steps).flat_map(one_step)
  try:
    data = data.apply(
      tf.data.experimental.service.distribute(
        processing_mode=tf.data.experimental.service.ShardingPolicy.DYNAMIC,
        service=address if "://" in address else f"grpc://{address}",
      )
    )
  except tf.errors.OpError as error:
    raise _failed(address, error) from error
  return _in_order(_Receiver(as_numpy, data, address), one_step, as_numpy, first_step, steps)


def _failed(address: str, error: tf.errors.OpError) -> data_service.ServiceError:
  return data_service.ServiceError(
    f"{address}: the data service failed; is this the address of its dispatcher? {error.message}"
  )


class _Receiver:
  """A thread that waits for batches, since TensorFlow waits for a lost worker without end."""

  def __init__(self, as_numpy: AsNumpy, data: tf.data.Dataset, address: str):
    self.address = address
    self._arrived: queue.Queue[Batch | Exception | None] = queue.Queue(1)
    self._closed = threading.Event()
    thread = threading.Thread(
      target=self._receive, args=(as_numpy, data), name="data service", daemon=True
    )
    thread.start()

  def take(self, timeout: float) -> Batch | None:
    """The next batch, or None after the last one.

    Raises:
      queue.Empty: none arrived within `timeout` seconds.
    """
    batch = self._arrived.get(timeout=timeout)
    if isinstance(batch, Exception):
      raise batch
    return batch

  def close(self) -> None:
    """Lets the thread end."""
    self._closed.set()

  def _hand_over(self, item: Batch | Exception | None) -> None:
    while not self._closed.is_set():
      with contextlib.suppress(queue.Full):
        self._arrived.put(item, timeout=0.1)
        return

  def _receive(self, as_numpy: AsNumpy, data: tf.data.Dataset) -> None:
    try:
      for batch in as_numpy(data):
        self._hand_over(batch)
        if self._closed.is_set():
          return
      self._hand_over(None)
    except tf.errors.OpError as error:
      self._hand_over(_failed(self.address, error))
    except Exception as error:
      self._hand_over(error)


def _in_order(
  receiver: _Receiver, one_step: OneStep, as_numpy: AsNumpy, first_step: int, steps: int
) -> Generator[Batch, None, None]:
  early: dict[int, Batch] = {}
  silent = ended = False
  try:
    for due in range(first_step, steps):
      while due not in early and len(early) <= _AHEAD and not ended:
        try:
          batch = receiver.take(0 if silent else _SILENT_SECONDS)
        except queue.Empty:
          if not silent:
            log.warning(
              "The data service %s has sent nothing for %g s: making batches here until it does",
              receiver.address,
              _SILENT_SECONDS,
            )
          silent = True
          break
        ended, silent = batch is None, False
        if batch is not None and int(batch["step"]) >= due:
          early[int(batch.pop("step"))] = batch
      if due not in early:
        log.warning("Step %d did not come from the data service: made here", due)
        (early[due],) = as_numpy(one_step(tf.constant(due, tf.int64)))
        early[due].pop("step")
      yield early.pop(due)
  finally:
    receiver.close()
