"""The compared architectures: their labels and the settings that choose them."""

from collections.abc import Mapping
from typing import Any

HYBRID, CNN, BERT, VIDEOMAE, PERCEIVER = "hybrid", "cnn", "cnn_bert", "videomae", "perceiver"
LABELS: Mapping[str, str] = {
  CNN: "R(2+1)D-18",
  BERT: "R(2+1)D-18 + BERT",
  VIDEOMAE: "VideoMAE",
  HYBRID: "hybrid: 8 CNN blocks + 1 cross + 1 self",
  PERCEIVER: "Perceiver: patches + 1 cross + 6 self",
}


def settings(name: str, *, is_narrow: bool) -> dict[str, Any]:
  """What chooses an architecture, by path.

  Args:
    name: of `LABELS`.
    is_narrow: whether VideoMAE has the small model's form; its widths are then the preset's.
  """
  hybrid = {"model.name": "hybrid", "model.cross_blocks": 1, "model.pool": "cls"}
  chosen: dict[str, dict[str, Any]] = {
    HYBRID: {**hybrid, "model.cnn_blocks": 8, "model.self_blocks": 1},
    CNN: {"model.name": "r2plus1d_18"},
    BERT: {"model.name": "r2plus1d_18_bert"},
    VIDEOMAE: {"model.name": "videomae_small" if is_narrow else "videomae_base"},
    PERCEIVER: {**hybrid, "model.cnn_blocks": 0, "model.self_blocks": 6},
  }
  return chosen[name]
