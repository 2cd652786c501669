"""The settings of an update: which optimizer, which rates, and what is trained at all."""

import dataclasses
import itertools
from typing import ClassVar

from hybrid_video import errors, models
from hybrid_video.settings import SettingError, Settings, setting

# What `no_decay` may name, see `groups.kind`.
KINDS = ("norms", "biases", "positions", "latents", "tokens")


class OptimizerError(errors.UserError):
  """Optimizer settings that do not fit the model or the length of training."""


@dataclasses.dataclass(frozen=True)
class PartRates(Settings):
  """Factors on the learning rate, by part of the model.

  Attributes:
    cnn, attention, head, decoder: of that part's parameters.
  """

  PATH: ClassVar[str] = "optimizer.part_rates"

  cnn: float = setting(1.0, above=0)
  attention: float = setting(1.0, above=0)
  head: float = setting(1.0, above=0)
  decoder: float = setting(1.0, above=0)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(Settings):
  """How parameters are updated.

  Lengths are in epochs, or in steps where the setting in steps is given: then the one in epochs is not
  read.

  Attributes:
    name: "adam" or "sgd" (weight decay as L2, added to the gradient), or "adamw" (decoupled).
    learning_rate: at its highest.
    rate_for_batch: clips a step that `learning_rate` and `final_rate` are meant for; those of another
      `batch_size` are as many times as large (Goyal et al. 2017, arXiv:1706.02677). 0 takes them as they are.
    weight_decay: on every parameter but those of `no_decay`.
    no_decay: kinds of parameters without weight decay: norms (their scales and biases), biases (all
      others), positions, latents, tokens (the CLS and the mask token).
    momentum: of "sgd"; 0 is none, and takes no memory.
    nesterov: of "sgd": whether the momentum looks ahead.
    beta1, beta2: of "adam" and "adamw": decay of the averages of gradients and of their squares.
    eps: of "adam" and "adamw": added to the root of the squares' average.
    schedule: "constant", "cosine", "step" or "multi_step", each after the warm-up.
    warmup_epochs, warmup_steps: of a linear warm-up.
    warmup_start: what it starts from, as a share of the learning rate.
    warmup_reaches_rate: whether its last step has the learning rate already, as in VideoMAE's reference; if not,
      the step after it is the first that does, as in PyTorch.
    final_rate: learning rate that "cosine" ends at.
    step_epochs, step_steps: "step" multiplies by `step_factor` each time so much has passed since the
      warm-up.
    milestone_epochs, milestone_steps: "multi_step" multiplies by `step_factor` at each of these,
      counted from the start of training.
    step_factor: of "step" and "multi_step".
    clip_norm: gradients of a larger global norm, over all that is trained, are scaled down to it; 0 is
      never.
    layer_decay: factor on the learning rate from each layer to the one before it; the head has the
      learning rate itself. See `groups.layers`.
    part_rates: factors on the learning rate by part, on top of that.
    freeze: parts that are not trained, by the beginning of their path, such as `cnn` or
      `cnn/layer1`.
    head_first_epochs: epochs from the start on that train the head alone, on features that stay; see
      `phases`. 0 trains everything from the start.
  """

  PATH: ClassVar[str] = "optimizer"

  name: str = setting("adam", choices=("adam", "adamw", "sgd"))
  learning_rate: float = setting(1e-3, at_least=0)
  rate_for_batch: int = setting(0, at_least=0)
  weight_decay: float = setting(0.0, at_least=0)
  no_decay: tuple[str, ...] = setting((), choices=KINDS)
  momentum: float = setting(0.9, at_least=0, below=1)
  nesterov: bool = setting(False)
  beta1: float = setting(0.9, at_least=0, below=1)
  beta2: float = setting(0.999, at_least=0, below=1)
  eps: float = setting(1e-8, above=0)
  schedule: str = setting("cosine", choices=("constant", "cosine", "multi_step", "step"))
  warmup_epochs: float = setting(0.0, at_least=0)
  warmup_steps: int = setting(0, at_least=0)
  warmup_start: float = setting(0.0, at_least=0, at_most=1)
  warmup_reaches_rate: bool = setting(False)
  final_rate: float = setting(0.0, at_least=0)
  step_epochs: float = setting(10.0, above=0)
  step_steps: int = setting(0, at_least=0)
  milestone_epochs: tuple[float, ...] = setting((), above=0)
  milestone_steps: tuple[int, ...] = setting((), above=0)
  step_factor: float = setting(0.1, above=0)
  clip_norm: float = setting(0.0, at_least=0)
  layer_decay: float = setting(1.0, above=0, at_most=1)
  part_rates: PartRates = setting(PartRates)
  freeze: tuple[str, ...] = setting(())
  head_first_epochs: float = setting(0.0, at_least=0)

  def for_batch(self, batch_size: int) -> "OptimizerSettings":
    """The same with the rates of a batch of so many clips."""
    if not self.rate_for_batch:
      return self
    factor = batch_size / self.rate_for_batch
    return dataclasses.replace(
      self,
      learning_rate=factor * self.learning_rate,
      final_rate=factor * self.final_rate,
      rate_for_batch=0,
    )

  def check_head_first(self, task: str, init_from: str, epochs: float) -> None:
    """Checks epochs of the head alone against the rest of an experiment.

    Args:
      task: "classification" or "pretraining".
      init_from: what the model starts from; "" is random values.
      epochs: of the whole training.

    Raises:
      SettingError: there is no head, nothing to put one on, or not as many epochs.
    """
    first, path = self.head_first_epochs, self.path("head_first_epochs")
    if not first:
      return
    if task != models.CLASSIFICATION:
      raise SettingError(
        f"{path} is {first:g}, and a model that is pretrained has no head. Set it to 0."
      )
    if not init_from:
      raise SettingError(
        f"{path} is {first:g} and --config.init_from is not set: all but the head would stay at random "
        f"values in these epochs. Set --config.init_from to weights or a work directory, or {path} to 0."
      )
    if first > epochs:
      raise SettingError(
        f"{path} is {first:g}: expected at most --config.epochs, {epochs:g}, which trains the head alone to "
        "the end."
      )

  def validate(self) -> None:
    """Checks what holds between settings, of the optimizer and the schedule that are chosen."""
    if self.nesterov and self.name != "sgd":
      raise SettingError(
        f"{self.path('nesterov')} is True and {self.path('name')} is {self.name!r}: only sgd has "
        "Nesterov's momentum. Set it to False, or the name to sgd."
      )
    if self.nesterov and not self.momentum:
      raise SettingError(
        f"{self.path('nesterov')} is True and {self.path('momentum')} is 0: there is no momentum to "
        "look ahead by. Set it above 0, such as 0.9."
      )
    if self.head_first_epochs and "head" in self.freeze:
      raise SettingError(
        f"{self.path('head_first_epochs')} is {self.head_first_epochs:g} and {self.path('freeze')} names the "
        "head: nothing is left to train in these epochs. Set one of them back."
      )
    if self.schedule == "cosine" and self.final_rate > self.learning_rate:
      raise SettingError(
        f"{self.path('final_rate')} is {self.final_rate:g}: expected no more than "
        f"{self.path('learning_rate')}, {self.learning_rate:g}."
      )
    if self.schedule == "multi_step" and not (self.milestone_epochs or self.milestone_steps):
      raise SettingError(
        f"{self.path('schedule')} is 'multi_step' without a milestone: set "
        f'{self.path("milestone_epochs")}, such as "(20, 30)", or {self.path("milestone_steps")}.'
      )
    for name in ("milestone_epochs", "milestone_steps"):
      milestones = getattr(self, name)
      if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
        raise SettingError(
          f"{self.path(name)} is {milestones}: expected each above the one before it."
        )
