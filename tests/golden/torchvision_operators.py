"""Makes torchvision importable whose compiled operators do not fit the PyTorch beside it.

It refuses until the two it looks for are declared; no video model uses them.
"""

import torch  # type: ignore[import-not-found]

# What is declared is gone with its library.
_kept: list[torch.library.Library] = []


def declare() -> None:
  """Declares them where they are missing."""
  try:
    import torchvision  # type: ignore[import-not-found]  # noqa: F401
  except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
      library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
