"""Batches that are fetched ahead: the same ones, in order, with their errors, and an end to it."""

import threading
import time

import numpy as np
import pytest

from hybrid_video.prefetch import Prefetch


class _Batches:
  """Batches of one number each; notes what is asked of it."""

  def __init__(self, count, *, error=None):
    self.given, self.closed = 0, False
    self._count, self._error = count, error

  def generator(self):
    try:
      for number in range(self._count):
        self.given += 1
        yield {"clips": np.full(2, number)}
      if self._error:
        raise self._error
    finally:
      self.closed = True


def _place(batch):
  return {**batch, "thread": threading.get_ident()}


def test_every_batch_comes_once_in_order_and_is_placed_elsewhere():
  source = _Batches(5)
  with Prefetch(source.generator(), _place) as batches:
    placed = list(batches)
  assert [int(batch["clips"][0]) for batch in placed] == [0, 1, 2, 3, 4]
  assert threading.get_ident() not in {batch["thread"] for batch in placed}
  assert source.closed


def test_one_batch_is_fetched_before_it_is_asked_for_and_no_more():
  source = _Batches(9)
  with Prefetch(source.generator(), _place) as batches:
    next(batches)
    deadline = time.monotonic() + 20
    while source.given < 2 and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(0.05)
    assert source.given == 2
  assert source.closed


@pytest.mark.parametrize("where", ["fetching", "placing"])
def test_an_error_is_raised_where_its_batch_would_be(where):
  error = ValueError("record 3 is damaged")

  def place(batch):
    if where == "placing" and batch["clips"][0] == 2:
      raise error
    return batch

  source = _Batches(2 if where == "fetching" else 9, error=error)
  with Prefetch(source.generator(), place) as batches:
    assert int(next(batches)["clips"][0]) == 0
    assert int(next(batches)["clips"][0]) == 1
    with pytest.raises(ValueError, match="record 3 is damaged"):
      next(batches)
  assert source.closed


def test_a_wait_for_data_that_do_not_come_ends_when_it_is_asked_to():
  comes = threading.Event()

  def never():
    comes.wait()
    yield {}

  def check():
    raise InterruptedError

  try:
    with pytest.raises(InterruptedError), Prefetch(never(), _place, check) as batches:
      next(batches)
  finally:
    comes.set()
