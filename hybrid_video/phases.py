"""Which parameters a training moves when: the head alone at first, if it is to, and then everything.

In: an experiment and how long it is. Out: `Phases`, the compiled step of each phase.

In the phase of the head nothing else moves: no gradient, no weight decay, no batch statistics (the trunk
normalizes with its running ones, as with `freeze_statistics`), no average. Dropout is that of training. The
learning rate's schedule goes on over both phases. The optimizer's memory begins anew with the second: what it
has gathered is the head's alone, and Adam would take the trunk's first gradients for the rare ones of a long
training, three times as large. So the second phase is what another run would be that starts from the first
one's end, and with `optimizer.freeze` the first is a run in which all but the head is frozen.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import optax

from hybrid_video import compilation, models, optimizers, steps
from hybrid_video.experiment import Experiment
from hybrid_video.meter import Length
from hybrid_video.optimizers import OptimizerSettings
from hybrid_video.state import State
from hybrid_video.tasks import Sums, Task, registry

# The part of a model that turns features into classes.
HEAD = "head"
_STATISTICS = "freeze_statistics"


@dataclasses.dataclass(frozen=True)
class Phases:
  """The steps of a training, each compiled when it is first taken, or started.

  Attributes:
    whole: trains everything, see `steps.jitted`.
    settings: of the optimizer, for reports.
    head: trains the head alone; None where no phase does.
    head_settings: of the optimizer in that phase.
    head_steps: steps at the start that are the head's.
    begin: (parameters) to the optimizer's memory of a first step.
  """

  whole: compilation.Program
  settings: OptimizerSettings
  head: compilation.Program | None = None
  head_settings: OptimizerSettings | None = None
  head_steps: int = 0
  begin: Callable[[Any], Any] | None = None

  def ends_at(self, step: int) -> bool:
    """Whether the head's phase ends after so many steps."""
    return self.head is not None and step == self.head_steps

  def _program(self, step: int) -> compilation.Program:
    return self.head if self.head is not None and step < self.head_steps else self.whole

  def start(self, step: int) -> None:
    """Has the program of the step after `step` others compiled in a thread."""
    self._program(step).start()

  def update(self, state: State, step: int, *given: Any) -> tuple[State, Sums]:
    """Takes the step after `step` others: (state, batch, learning rate, seed) to (state, sums)."""
    if self.ends_at(step) and self.begin is not None:
      state = {**state, "opt_state": self.begin(state["params"])}
    return self._program(step)(state, *given)

  def rates(self, step: int, params: Any) -> dict[str, float]:
    """Factors on the learning rate of step number `step`, from 1, by group; see `optimizers.rates`."""
    if self.head_settings is None:
      return optimizers.rates(self.settings, params)
    settings = self.head_settings if step <= self.head_steps else self.settings
    return optimizers.rates(settings, params) or dict.fromkeys(params, 1.0)


def head_steps(experiment: Experiment, length: Length) -> int:
  """How many steps from step 0 on train the head alone."""
  wanted = round(experiment.optimizer.head_first_epochs * length.steps_per_epoch)
  return max(0, min(wanted, length.scheduled_steps) - length.shift)


def make(
  experiment: Experiment,
  length: Length,
  task: Task,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  state: State,
  num_classes: int,
) -> Phases:
  """The phases of a training; nothing is compiled before its first step.

  Args:
    experiment: every setting.
    length: of the training.
    task, optimizer, mesh, state: as of `steps.jitted`.
    num_classes: of the data set.
  """
  options, settings = steps.StepOptions.of(experiment), experiment.optimizer
  shapes = steps.shapes(experiment, mesh, state)
  whole = compilation.Program(steps.jitted(task, optimizer, options, mesh, state), *shapes)
  of_head = head_steps(experiment, length)
  if not of_head:
    return Phases(whole, settings)
  frozen = _all_but_head(state["params"], settings.freeze)
  still = _with_frozen_statistics(experiment)
  head_task = task if still is experiment else registry.create(still, num_classes, mesh)
  head_options = dataclasses.replace(options, freeze=frozen)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state["opt_state"])
  return Phases(
    whole,
    settings,
    compilation.Program(steps.jitted(head_task, optimizer, head_options, mesh, state), *shapes),
    dataclasses.replace(settings, freeze=frozen),
    of_head,
    jax.jit(optimizer.init, out_shardings=shardings),
  )


def _all_but_head(params: Any, frozen: tuple[str, ...]) -> tuple[str, ...]:
  """The parts that are not trained while the head is."""
  others = tuple(part for part in params if part != HEAD)
  return others + tuple(part for part in frozen if part.partition("/")[0] == HEAD)


def _with_frozen_statistics(experiment: Experiment) -> Experiment:
  """The experiment whose trunk normalizes with its running statistics; itself if it has none or does so."""
  model = experiment.model
  if _STATISTICS not in models.options(model.name) or model.options[_STATISTICS]:
    return experiment
  options = {**model.options, _STATISTICS: True}
  return dataclasses.replace(experiment, model=dataclasses.replace(model, options=options))
