"""What a training measures as it runs: how long it is, sums of metrics, time spent waiting for data.

In: each step's sums, as the devices compute them. Out: means since the last report, by name.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import logging
import time

import jax

from hybrid_video.prefetch import PlacedBatch
from hybrid_video.tasks import Sums

log = logging.getLogger("hybrid_video")

# Sums of a step's own numbers, which are means over steps and not over clips.
_NORMS = {
  "gradient_norm": "norm/gradient",
  "update_norm": "norm/update",
  "parameter_norm": "norm/parameters",
}
# From this share of the time on, waiting for data is worth a warning.
_MUCH_WAITING = 0.2


@dataclasses.dataclass(frozen=True)
class Length:
  """How long a training is.

  Attributes:
    clips: of an epoch.
    batch_size: clips a step.
    epochs: of the whole training.
    offset: clips that stood before step 0, see `resuming.Progress`.
  """

  clips: int
  batch_size: int
  epochs: float
  offset: int = 0

  @property
  def steps_per_epoch(self) -> float:
    """Not always a whole number."""
    return self.clips / self.batch_size

  @property
  def scheduled_steps(self) -> int:
    """What the learning rate is worked out for, at least 1: all epochs in steps of this batch size."""
    return max(1, round(self.epochs * self.steps_per_epoch))

  @property
  def shift(self) -> int:
    """How many such steps stand before step 0."""
    return round(self.offset / self.batch_size)

  @property
  def total_steps(self) -> int:
    """The last step of the training."""
    return self.scheduled_steps - self.shift

  def epoch(self, step: int) -> float:
    """Epochs that are done after a step."""
    return (step * self.batch_size + self.offset) / self.clips


class Meter:
  """Sums of metrics since the last report, and the time that steps and data take.

  A step's sums are read when the next step has been handed to the devices, so that reading them lets
  no device wait.
  """

  def __init__(self, length: Length, first_step: int, sums: Mapping[str, float]):
    """Begins after a step.

    Args:
      length: of the training.
      first_step: the last step done.
      sums: of the steps since the last report before it.
    """
    self._length = length
    self._sums: dict[str, float] = dict(sums)
    self._pending: tuple[int, Sums] | None = None
    # The step whose update is one more than may be left out.
    self.refused: int | None = None
    self.stop = False
    # Of the last step that was read, for the eye.
    self.latest: dict[str, float] = {}
    self._clock: float | None = None
    self._reported = 0.0
    self._reported_step = first_step
    self._waited = 0.0
    self._has_warned = False

  def next(self, batches: Iterator[PlacedBatch]) -> PlacedBatch:
    """The next batch; the time until it comes is time spent waiting."""
    started = time.monotonic()
    batch = next(batches)
    self._waited += time.monotonic() - started
    return batch

  def start_clock(self) -> None:
    """Speed is measured from here."""
    self._clock = self._reported = time.monotonic()
    self._reported_step += 1
    self._waited = 0.0

  def add(self, step: int, sums: Sums) -> None:
    """Takes the sums of a step that may still be computed, and reads those of the one before."""
    self.drain()
    self._pending = (step, sums)

  def drain(self) -> None:
    """Reads what has not been read, once it is computed."""
    if self._pending is None:
      return
    step, sums = self._pending
    self._pending = None
    read = {name: float(value) for name, value in jax.device_get(sums).items()}
    self.stop = self.stop or read.pop("stop", 0.0) > 0
    self.latest = {"loss": read["loss"] / read["count"]}
    is_finite, is_refused = read.pop("finite"), read.pop("halted")
    if is_finite:
      for name, value in {**read, "steps": 1.0}.items():
        self._sums[name] = self._sums.get(name, 0.0) + value
      return
    self._sums["skipped"] = self._sums.get("skipped", 0.0) + 1
    if is_refused and self.refused is None:
      self.refused = step

  def sums(self) -> dict[str, float]:
    """The sums since the last report."""
    return dict(self._sums)

  def report(self, step: int) -> dict[str, float]:
    """The means since the last report, by name."""
    self.drain()
    sums = self.sums()
    steps, clips = sums.pop("steps", 0.0), sums.pop("count", 0.0)
    numbers = {"skipped_steps": sums.pop("skipped", 0.0)}
    for name, total in sums.items():
      if name in _NORMS:
        numbers[_NORMS[name]] = total / steps
      else:
        numbers[f"train/{name}"] = total / clips
    return numbers | self._speed(step)

  def begin(self, step: int) -> None:
    """The next report begins after this step, which is written down."""
    self._sums.clear()
    if self._clock is not None:
      self._reported, self._reported_step = time.monotonic(), step
      self._waited = 0.0

  def _speed(self, step: int) -> dict[str, float]:
    now, total = time.monotonic(), self._length.total_steps
    if self._clock is None or step <= self._reported_step:
      return {}
    seconds = now - self._reported
    steps = step - self._reported_step
    share = min(1.0, self._waited / seconds)
    self._warn(step, share)
    return {
      "clips_per_second": steps * self._length.batch_size / seconds,
      "waiting_share": share,
      "seconds_left": seconds / steps * (total - step),
    }

  def _warn(self, step: int, share: float) -> None:
    if share < _MUCH_WAITING or self._has_warned:
      return
    self._has_warned = True
    log.warning(
      "Step %d: %.0f %% of the time goes into waiting for data. More processor cores, other machines "
      "(--config.data_service) or smaller stored frames (--config.stored) would make training faster.",
      step,
      100 * share,
    )
