"""Random predictions, as arrays of `predictions.npz`."""

import json
import pathlib

import numpy as np

PROTOCOL = {
  "dataset": "hmdb51",
  "split": 1,
  "list": "test",
  "views": "2 windows",
  "aggregation": "mean_probabilities",
  "selection": "the parameters after the last step",
}


def make(videos=20, classes=4, windows=2, groups=5, seed=0, skill=1.0, **protocol):
  """The arrays of a run; the videos are the same whatever the seed."""
  rng = np.random.default_rng(seed)
  labels = np.arange(videos) % classes
  rows = np.repeat(np.arange(videos), windows)
  logits = rng.standard_normal((len(rows), classes)) + skill * np.eye(classes)[labels[rows]]
  logits = logits.astype(np.float32)
  shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  means = np.zeros((videos, classes), np.float32)
  np.add.at(means, rows, shares)
  return {
    "names": np.array([f"video {i}" for i in range(videos)]),
    "class_names": np.array([f"class {i}" for i in range(classes)]),
    "labels": labels,
    "probabilities": means / windows,
    "view_probabilities": shares,
    "view_videos": rows,
    "view_logits": logits,
    "groups": np.array([f"film {i % groups}" for i in range(videos)]),
    "seconds": 1 + np.arange(videos) / 10,
    "tag_names": np.array(["camera", "quality"]),
    "tags": np.array([["cm" if i % 3 else "nm", "goo" if i % 2 else ""] for i in range(videos)]),
    "identities": np.array([f"digest {i}" for i in range(videos)]),
    "protocol": np.array(json.dumps(PROTOCOL | protocol)),
  }


def write(folder: pathlib.Path, arrays) -> pathlib.Path:
  """Writes them as a run's file."""
  folder.mkdir(parents=True, exist_ok=True)
  np.savez(folder / "predictions.npz", **arrays)
  return folder / "predictions.npz"


def some(arrays, videos):
  """The arrays of some of the videos."""
  chosen = {}
  views = np.isin(arrays["view_videos"], videos)
  for name, value in arrays.items():
    if name.startswith("view_"):
      chosen[name] = value[views]
    elif name in ("class_names", "tag_names", "protocol"):
      chosen[name] = value
    else:
      chosen[name] = value[videos]
  chosen["view_videos"] = np.searchsorted(videos, chosen["view_videos"])
  return chosen
