"""Writes optimizers.npz: what PyTorch's optimizers and schedules do, for test_optimizers.

In: weights and inputs of `reference_weights`, settings of `optimizer_cases`. Out, in float64: for each
case the loss before each of 20 steps and the parameters after them (with `ema_decay`, their averages and
those of the buffer too); for each schedule the rate of each step; losses with smoothed labels. Which
parameters share a rate and which decay is written down here by name. A step's rate is rounded to
float32 first, as it enters the compiled step.

    pip install torch==2.13.0 numpy
    python tests/golden/make_optimizers.py
"""

import pathlib
import sys
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler, swa_utils

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER))
import optimizer_cases as cases  # noqa: E402
import reference_weights  # noqa: E402

# VideoMAE's numbers of layers: of six in all, the embedding is 0 and the head 5.
LAYERS = {
  "cnn/stem": 0,
  "cnn/layer1": 1,
  "cnn/layer2": 2,
  "attention/latents": 3,
  "attention/cls": 3,
  "attention/cross/0": 3,
  "attention/self_attention/0": 4,
  "head": 5,
}
HEAD = 5
KINDS = {
  "norms": ("cnn/stem/norm/scale", "cnn/stem/norm/bias"),
  "biases": ("attention/self_attention/0/to_out/bias", "head/linear/bias"),
  "positions": (),
  "latents": ("attention/latents",),
  "tokens": ("attention/cls",),
}


class Model(torch.nn.Module):
  def __init__(self):
    super().__init__()
    for name, shape in cases.SHAPES.items():
      value = torch.from_numpy(reference_weights.value(name, shape).astype(np.float64))
      self.register_parameter(name, torch.nn.Parameter(value))
    self.register_buffer("running", torch.zeros(6, dtype=torch.float64))

  def forward(self, inputs, targets):
    params = dict(self.named_parameters())
    losses, running = cases.run_model(torch, params, self.running, inputs, targets)
    self.running.copy_(running.detach())
    return losses.mean()


def schedule(settings: dict[str, Any]) -> np.ndarray:
  """The rate of every step, by PyTorch's own schedulers."""
  rate = settings["learning_rate"]
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=rate)
  per_epoch = cases.STEPS_PER_EPOCH
  warmup = settings.get("warmup_steps") or round(settings.get("warmup_epochs", 0) * per_epoch)
  factor = settings.get("step_factor")
  if settings["schedule"] == "constant":
    after = lr_scheduler.ConstantLR(optimizer, factor=1.0)
  elif settings["schedule"] == "step":
    every = settings.get("step_steps") or round(settings["step_epochs"] * per_epoch)
    after = lr_scheduler.StepLR(optimizer, every, factor)
  elif settings["schedule"] == "multi_step":
    milestones = settings.get("milestone_steps") or [
      round(at * per_epoch) for at in settings["milestone_epochs"]
    ]
    after = lr_scheduler.MultiStepLR(optimizer, [at - warmup for at in milestones], factor)
  else:
    final = settings.get("final_rate", 0.0)
    after = lr_scheduler.CosineAnnealingLR(optimizer, cases.STEPS - warmup, eta_min=final)
  if warmup:
    first = lr_scheduler.LinearLR(optimizer, settings["warmup_start"], 1.0, warmup)
    after = lr_scheduler.SequentialLR(optimizer, [first, after], [warmup])
  rates = []
  for _ in range(cases.STEPS):
    rates.append(after.get_last_lr()[0])
    optimizer.step()
    after.step()
  return np.array(rates)


def groups(model: Model, settings: dict[str, Any]) -> list[dict[str, Any]]:
  """One group of PyTorch's for each parameter that is trained."""
  no_decay = [name for kind in settings.get("no_decay", ()) for name in KINDS[kind]]
  parts = settings.get("part_rates", {})
  made = []
  for name, parameter in model.named_parameters():
    if name.startswith(tuple(settings.get("freeze", ()))):
      parameter.requires_grad_(False)
      continue
    (layer,) = (number for start, number in LAYERS.items() if name.startswith(start))
    factor = settings.get("layer_decay", 1.0) ** (HEAD - layer)
    factor *= parts.get(name.partition("/")[0], 1.0)
    decay = 0.0 if name in no_decay else settings.get("weight_decay", 0.0)
    made.append({"params": [parameter], "weight_decay": decay, "factor": factor})
  return made


def optimizer_of(settings: dict[str, Any], grouped: list[dict[str, Any]]) -> torch.optim.Optimizer:
  if settings["name"] == "sgd":
    nesterov = settings.get("nesterov", False)
    return torch.optim.SGD(grouped, lr=0.1, momentum=settings["momentum"], nesterov=nesterov)
  kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings["name"]]
  betas = (settings.get("beta1", 0.9), settings.get("beta2", 0.999))
  return kind(grouped, lr=0.1, betas=betas, eps=settings.get("eps", 1e-8))


def flat(named) -> np.ndarray:
  values = {name: value.detach().numpy().ravel() for name, value in named}
  return np.concatenate([values[name] for name in cases.SHAPES])


def train(settings: dict[str, Any]) -> dict[str, np.ndarray]:
  model = Model()
  grouped = groups(model, settings)
  optimizer = optimizer_of(settings, grouped)
  averages = None
  if "ema_decay" in settings:
    averaging = swa_utils.get_ema_multi_avg_fn(settings["ema_decay"])
    averages = swa_utils.AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
  inputs = torch.from_numpy(
    reference_weights.clips((cases.STEPS, cases.BATCH, 4)).astype(np.float64)
  )
  labels = cases.labels(np.random.default_rng(1), (cases.STEPS, cases.BATCH))
  losses = []
  for step, rate in enumerate(schedule(settings).astype(np.float32)):
    targets = torch.from_numpy(np.eye(cases.CLASSES)[labels[step]])
    optimizer.zero_grad()
    loss = model(inputs[step], targets)
    loss.backward()
    losses.append(loss.item())
    if "clip_norm" in settings:
      chosen = [parameter for group in grouped for parameter in group["params"]]
      torch.nn.utils.clip_grad_norm_(chosen, settings["clip_norm"])
    for group in optimizer.param_groups:
      group["lr"] = group["factor"] * float(rate)
    optimizer.step()
    if averages:
      averages.update_parameters(model)
  stored = {"losses": np.array(losses), "params": flat(model.named_parameters())}
  if averages:
    stored["ema_params"] = flat(averages.module.named_parameters())
    stored["ema_running"] = averages.module.running.numpy()
  return stored


def smoothed_losses() -> np.ndarray:
  logits = torch.from_numpy(reference_weights.clips((cases.BATCH, cases.CLASSES)))
  labels = torch.from_numpy(cases.labels(np.random.default_rng(2), (cases.BATCH,)))
  criterion = torch.nn.CrossEntropyLoss(label_smoothing=cases.SMOOTHING)
  return criterion(logits.double(), labels).numpy()


def main() -> None:
  stored = {f"schedule/{name}": schedule(given) for name, given in cases.SCHEDULES.items()}
  for case, settings in cases.CASES.items():
    for name, value in train(settings).items():
      stored[f"{case}/{name}"] = value
  stored["smoothed_loss"] = smoothed_losses()
  np.savez_compressed(FOLDER / "optimizers.npz", **stored)


if __name__ == "__main__":
  main()
