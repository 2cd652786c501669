"""What PyTorch's optimizers and ours are run on: a small model, batches and settings by case.

Both sides import this: `xp` is `torch` for the one and `jax.numpy` for the other.
"""

from typing import Any

import numpy as np

STEPS, BATCH, CLASSES = 20, 8, 5
SHAPES = {
  "cnn/stem/conv/kernel": (4, 6),
  "cnn/stem/norm/scale": (6,),
  "cnn/stem/norm/bias": (6,),
  "cnn/layer1/0/conv1/kernel": (6, 6),
  "cnn/layer2/0/conv1/kernel": (6, 6),
  "attention/latents": (3, 6),
  "attention/cls": (1, 6),
  "attention/cross/0/to_q/kernel": (6, 6),
  "attention/self_attention/0/to_out/kernel": (6, 6),
  "attention/self_attention/0/to_out/bias": (6,),
  "head/linear/kernel": (6, CLASSES),
  "head/linear/bias": (CLASSES,),
}

_SHAPED = {
  "learning_rate": 0.05,
  "schedule": "cosine",
  "warmup_steps": 4,
  "warmup_start": 0.25,
  "final_rate": 0.001,
}
# Settings of `OptimizerSettings`; of `ema_decay`, the experiment's.
CASES: dict[str, dict[str, Any]] = {
  "sgd": {"name": "sgd", "momentum": 0.0},
  "sgd_l2": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.1},
  "sgd_momentum": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
  "sgd_nesterov": {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
  "adam": {"name": "adam"},
  "adam_l2": {"name": "adam", "weight_decay": 0.1},
  "adam_options": {"name": "adam", "beta1": 0.8, "beta2": 0.95, "eps": 1e-3},
  "adamw": {"name": "adamw", "weight_decay": 0.3},
  "adamw_options": {"name": "adamw", "weight_decay": 0.3, "beta1": 0.0, "beta2": 0.9, "eps": 0.1},
  "no_decay_l2": {
    "name": "adam",
    "weight_decay": 0.1,
    "no_decay": ("norms", "biases", "positions", "latents", "tokens"),
  },
  "no_decay": {"name": "adamw", "weight_decay": 0.3, "no_decay": ("biases", "latents")},
  "layers": {"name": "adamw", "weight_decay": 0.3, "layer_decay": 0.7},
  "parts": {
    "name": "sgd",
    "momentum": 0.9,
    "weight_decay": 0.01,
    "part_rates": {"cnn": 0.1, "head": 2.0},
  },
  "layers_and_parts": {
    "name": "adamw",
    "weight_decay": 0.3,
    "layer_decay": 0.8,
    "part_rates": {"cnn": 0.5},
    "no_decay": ("norms", "biases", "positions", "latents", "tokens"),
  },
  "clipped": {"name": "sgd", "momentum": 0.9, "clip_norm": 0.4},
  "frozen_and_clipped": {
    "name": "adam",
    "clip_norm": 0.2,
    "weight_decay": 0.01,
    "freeze": ("attention/latents", "attention/cross"),
  },
  "averaged": {"name": "sgd", "momentum": 0.9, "ema_decay": 0.8},
}
CASES = {name: {**_SHAPED, **settings} for name, settings in CASES.items()}
# With warm-ups that PyTorch can begin: its own never start from zero. A step is half an epoch.
STEPS_PER_EPOCH = 2
SCHEDULES: dict[str, dict[str, Any]] = {
  "constant": {"schedule": "constant"},
  "constant_warm": {"schedule": "constant", "warmup_steps": 5, "warmup_start": 0.2},
  "step": {"schedule": "step", "step_epochs": 3.0, "step_factor": 0.2},
  "step_warm": {
    "schedule": "step",
    "step_steps": 4,
    "step_factor": 0.3,
    "warmup_epochs": 1.5,
    "warmup_start": 0.5,
  },
  "multi_step": {"schedule": "multi_step", "milestone_steps": (3, 4, 15), "step_factor": 0.5},
  "multi_step_warm": {
    "schedule": "multi_step",
    "milestone_epochs": (4.0, 7.5),
    "step_factor": 0.1,
    "warmup_epochs": 3.0,
    "warmup_start": 1 / 3,
  },
  "cosine": {"schedule": "cosine"},
  "cosine_final": {"schedule": "cosine", "final_rate": 0.004},
  "cosine_warm": {
    "schedule": "cosine",
    "final_rate": 0.004,
    "warmup_steps": 7,
    "warmup_start": 0.01,
  },
}
SCHEDULES = {name: {"learning_rate": 0.03, **settings} for name, settings in SCHEDULES.items()}
SCHEDULES["of_cases"] = _SHAPED
SMOOTHING = 0.1


def labels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Class ids of any shape."""
  return rng.integers(0, CLASSES, shape)


def run_model(
  xp: Any, params: dict[str, Any], running: Any, inputs: Any, targets: Any
) -> tuple[Any, Any]:
  """A loss that every parameter moves, and a running mean as a normalization keeps one.

  Args:
    xp: the library.
    params: by `SHAPES`.
    running: `[6]`.
    inputs: `[B, 4]`.
    targets: labels as shares, `[B, CLASSES]`.

  Returns:
    (cross-entropy of each row `[B]`, the new running mean).
  """
  h = xp.tanh(inputs @ params["cnn/stem/conv/kernel"])
  running = 0.9 * running + 0.1 * h.mean(0)
  h = h * (1 + params["cnn/stem/norm/scale"]) + params["cnn/stem/norm/bias"]
  h = xp.tanh(h @ params["cnn/layer1/0/conv1/kernel"])
  h = xp.tanh(h @ params["cnn/layer2/0/conv1/kernel"])
  shares = xp.exp(h @ params["attention/cross/0/to_q/kernel"] @ params["attention/latents"].T)
  read = (shares / shares.sum(-1)[:, None]) @ params["attention/latents"] + params["attention/cls"]
  read = xp.tanh(
    read @ params["attention/self_attention/0/to_out/kernel"]
    + params["attention/self_attention/0/to_out/bias"]
  )
  logits = read @ params["head/linear/kernel"] + params["head/linear/bias"]
  return xp.log(xp.exp(logits).sum(-1)) - (logits * targets).sum(-1), running
