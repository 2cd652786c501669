"""A profile of chosen steps, for TensorBoard.

In: each step's number, before the step. Out: a trace in `tensorboard/plugins/profile/`.
"""

from collections.abc import Sequence
import logging
import os
from typing import Any, Self

from etils import epath
import jax

log = logging.getLogger("hybrid_video")


class Profile:
  """Records the steps of a window; a context manager, which ends a window the run ends in.

  A run that is resumed within the window records the rest of it. What goes wrong with a profile is
  logged and costs nothing else.
  """

  def __init__(self, folder: os.PathLike | str, steps: Sequence[int]):
    """Records nothing yet.

    Args:
      folder: TensorBoard's; the trace goes into a folder below it.
      steps: the first and the last step, from 1; empty records nothing.
    """
    self._folder = epath.Path(folder)
    self._first, self._last = steps if steps else (0, -1)
    self._began: int | None = None
    self._step = 0

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    if self._began is not None:
      self._stop()
    elif self._step < self._first:
      log.info("No profile: the run ended before step %d", self._first)

  def step(self, number: int, before: Any = None) -> None:
    """Begins or ends the window, if a step is its first or the first after it.

    Args:
      number: of the step that comes, from 1.
      before: arrays that the step before computes; they are waited for at both ends of the window, so
        that it holds its steps and no others.
    """
    self._step = number
    if self._began is None and self._first <= number <= self._last:
      jax.block_until_ready(before)
      self._start(number)
    elif self._began is not None and number > self._last:
      jax.block_until_ready(before)
      self._step = self._last
      self._stop()

  def _start(self, number: int) -> None:
    try:
      jax.profiler.start_trace(os.fspath(self._folder))
    except (OSError, RuntimeError) as error:
      log.warning("There will be no profile: %s", error)
      self._last = -1
    else:
      self._began = number

  def _stop(self) -> None:
    began, self._began, self._first, self._last = self._began, None, 0, -1
    try:
      jax.profiler.stop_trace()
    except (OSError, RuntimeError) as error:
      log.warning("The profile could not be written: %s", error)
      return
    log.info(
      "Profile of steps %d to %d: %s (tensorboard --logdir=%s, with tensorboard-plugin-profile)",
      began,
      self._step,
      self._folder / "plugins" / "profile",
      self._folder,
    )
