"""Writes perceiver.npz: what the PyPI package perceiver-pytorch computes, for test_perceiver_parity.

In: weights and inputs of `reference_weights`, by key. Out: per case the latents `[B, N, D]`, the
logits `[B, classes]` and the state dict's keys and shapes as JSON; no weights.

    pip install torch==2.13.0 perceiver-pytorch==0.11.0 numpy
    python tests/golden/make_perceiver.py
"""

import json
import pathlib
import sys

import numpy as np
from perceiver_pytorch import Perceiver
import torch

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER))
import reference_weights  # noqa: E402

CASES = [
  (depth, self_per_group, tied)
  for depth, self_per_group in ((1, 0), (1, 1), (1, 3), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2))
  for tied in (False, True)
]


def run(depth: int, self_per_group: int, tied: bool) -> dict[str, np.ndarray]:
  perceiver = Perceiver(
    depth=depth,
    self_per_cross_attn=self_per_group,
    weight_tie_layers=tied,
    num_freq_bands=4,
    max_freq=10.0,
    input_channels=5,
    input_axis=3,
    num_latents=6,
    latent_dim=16,
    cross_heads=1,
    latent_heads=2,
    cross_dim_head=8,
    latent_dim_head=8,
    num_classes=7,
  )
  # A shared tensor has one name among the parameters and several in the state dict.
  named = {p.data_ptr(): name for name, p in perceiver.named_parameters()}
  state = perceiver.state_dict()
  values = {
    key: torch.from_numpy(reference_weights.value(named[v.data_ptr()], tuple(v.shape)))
    for key, v in state.items()
  }
  perceiver.load_state_dict(values, strict=True)
  perceiver.eval()
  features = torch.from_numpy(reference_weights.clips((2, 2, 3, 4, 5)))
  with torch.no_grad():
    latents = perceiver(features, return_embeddings=True)
    logits = perceiver(features)
  shapes = {key: list(v.shape) for key, v in state.items()}
  return {
    "latents": latents.numpy(),
    "logits": logits.numpy(),
    "shapes": np.array(json.dumps(shapes)),
  }


def main() -> None:
  stored = {}
  for depth, self_per_group, tied in CASES:
    case = f"depth{depth}_self{self_per_group}_{'tied' if tied else 'own'}"
    for name, value in run(depth, self_per_group, tied).items():
      stored[f"{case}/{name}"] = value
  np.savez_compressed(FOLDER / "perceiver.npz", **stored)


if __name__ == "__main__":
  main()
