"""Writes recipes.npz: whole trainings by published recipes in PyTorch, for test_recipes.py.

In: models and batches of `recipe_cases`. Out, in float64, for each recipe: the rate of every step, the loss
before it, and the parameters after the last. What a recipe is stands here once more, as
its authors have it: github.com/MCG-NJU/VideoMAE (`optim_factory.py`, `cosine_scheduler` and the scripts),
pytorch/vision (`references/video_classification`), microsoft/computervision-recipes (`VideoLearner.fit`). BERT
pooling's has a plateau for a schedule, in place of which both sides have a cosine. A step's rate is rounded to float32
first, as it enters the compiled step.

    pip install torch==2.13.0 numpy
    python tests/golden/make_recipes.py
"""

import math
import pathlib
import re
import sys
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))
from golden import recipe_cases as cases  # noqa: E402
from golden import reference_weights  # noqa: E402

# VideoMAE's arguments, by its names. A rate of the warm-up's start is among them there and is not used.
VIDEOMAE = {
  "masked_pretraining": {
    "lr": 1.5e-4,
    "min_lr": 1e-5,
    "epochs": 800,
    "warmup_epochs": 40,
    "opt_betas": (0.9, 0.95),
    "weight_decay": 0.05,
    "layer_decay": None,
    "skipped": ("pos_embed", "cls_token", "mask_token"),
  },
  "videomae_fine_tuning": {
    "lr": 5e-4,
    "min_lr": 1e-5,
    "epochs": 100,
    "warmup_epochs": 5,
    "opt_betas": (0.9, 0.999),
    "weight_decay": 0.05,
    "layer_decay": 0.7,
    "skipped": ("pos_embed", "cls_token"),
  },
}
EPOCHS = {"torchvision": 45, "ig65m": 48, "bert": 200}


def scaled(rate: float, batch_size: int) -> float:
  return rate * batch_size / 256


def videomae_rates(given: dict[str, Any], batch_size: int, steps_per_epoch: int) -> np.ndarray:
  """A rate a step: up in a straight line whose last point is the top, then half a wave from the top."""
  top, bottom = (scaled(given[name], batch_size) for name in ("lr", "min_lr"))
  rising = given["warmup_epochs"] * steps_per_epoch
  falling = given["epochs"] * steps_per_epoch - rising
  wave = [1 + math.cos(math.pi * step / falling) for step in range(falling)]
  return np.concatenate(
    [np.linspace(0.0, top, rising), bottom + 0.5 * (top - bottom) * np.array(wave)]
  )


def layer_of(name: str) -> int:
  """The number of a parameter's layer: 0 for the embedding, a block's own and one more, the last for the rest."""
  if name.startswith("patch_embed"):
    return 0
  block = re.match(r"blocks\.(\d+)\.", name)
  return int(block[1]) + 1 if block else cases.DEPTH + 1


def videomae_groups(
  named: dict[str, torch.nn.Parameter], given: dict[str, Any]
) -> list[dict[str, Any]]:
  """Vectors, biases and what the model names itself do not decay; rates fall by layer from the last."""
  found = []
  for name, parameter in named.items():
    spared = parameter.ndim == 1 or name.endswith(".bias") or name in given["skipped"]
    decay = 0.0 if spared else given["weight_decay"]
    base = given["layer_decay"]
    factor = 1.0 if base is None else base ** (cases.DEPTH + 1 - layer_of(name))
    found.append({"params": [parameter], "weight_decay": decay, "factor": factor})
  return found


def of_videomae(recipe: str, named: dict[str, torch.nn.Parameter]) -> tuple[Any, np.ndarray]:
  given = VIDEOMAE[recipe]
  grouped = videomae_groups(named, given)
  optimizer = torch.optim.AdamW(grouped, lr=0.1, betas=given["opt_betas"], eps=1e-8)
  _, per_epoch = cases.MODELS[recipe]
  return optimizer, videomae_rates(given, cases.BATCH_SIZES[recipe], per_epoch)


def of_others(recipe: str, named: dict[str, torch.nn.Parameter]) -> tuple[Any, np.ndarray]:
  _, per_epoch = cases.MODELS[recipe]
  steps = EPOCHS[recipe] * per_epoch
  parameters = list(named.values())
  schedule: lr_scheduler.LRScheduler
  if recipe == "torchvision":
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)
    warmup = 10 * per_epoch
    after = lr_scheduler.MultiStepLR(
      optimizer, [(at - 10) * per_epoch for at in (20, 30, 40)], gamma=0.1
    )
    first = lr_scheduler.LinearLR(optimizer, start_factor=0.001, total_iters=warmup)
    schedule = lr_scheduler.SequentialLR(optimizer, [first, after], [warmup])
  elif recipe == "ig65m":
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.95, weight_decay=1e-4)
    # A step of theirs is an epoch.
    schedule = lr_scheduler.StepLR(optimizer, math.ceil(2 / 3 * 48) * per_epoch, gamma=0.1)
  else:
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=1e-3)
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, steps)
  rates = []
  for _ in range(steps):
    rates.append(schedule.get_last_lr()[0])
    optimizer.step()
    schedule.step()
  return optimizer, np.array(rates)


def train(recipe: str) -> dict[str, np.ndarray]:
  rows, _ = cases.MODELS[recipe]
  params = {
    path: torch.nn.Parameter(
      torch.from_numpy(reference_weights.value(path, shape).astype(np.float64))
    )
    for path, (_, shape) in rows.items()
  }
  named = {name: params[path] for path, (name, _) in rows.items()}
  make = of_videomae if recipe in VIDEOMAE else of_others
  optimizer, rates = make(recipe, named)
  inputs, labels = cases.batches(recipe, len(rates))
  losses = []
  for step, rate in enumerate(rates.astype(np.float32)):
    targets = torch.from_numpy(np.eye(cases.CLASSES)[labels[step]])
    optimizer.zero_grad()
    loss = cases.losses(torch, recipe, params, torch.from_numpy(inputs[step]), targets).mean()
    loss.backward()
    losses.append(loss.item())
    for group in optimizer.param_groups:
      group["lr"] = group.get("factor", 1.0) * float(rate)
    optimizer.step()
  last = np.concatenate([params[path].detach().numpy().ravel() for path in rows])
  return {"rates": rates, "losses": np.array(losses), "params": last}


def main() -> None:
  stored = {}
  for recipe in cases.MODELS:
    for name, value in train(recipe).items():
      stored[f"{recipe}/{name}"] = value
  np.savez_compressed(FOLDER / "recipes.npz", **stored)


if __name__ == "__main__":
  main()
