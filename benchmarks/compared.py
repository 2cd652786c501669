"""Which models are measured, in which form and beside what.

In: the name of a model. Out: its options, clips, optimizer and peer. Imports neither JAX nor PyTorch: the
processes of both sides read it.
"""

import argparse
from collections.abc import Mapping
import dataclasses
from typing import Any

# Of random weights and clips; nothing is trained to any end.
CLASSES = 51
KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MASK_RATIO, PATCH = 0.9, (2, 16, 16)


@dataclasses.dataclass(frozen=True)
class Update:
  """An optimizer, as both sides have it.

  Attributes:
    name: "sgd" or "adamw".
    learning_rate, weight_decay: of both; AdamW's decay is on everything.
    momentum: of "sgd".
    betas: of "adamw".
  """

  name: str = "sgd"
  learning_rate: float = 1e-3
  weight_decay: float = 1e-4
  momentum: float = 0.9
  betas: tuple[float, float] = (0.9, 0.999)


SGD = Update()
ADAMW = Update("adamw", 1e-4, 0.05)
ADAMW_OF_PRETRAINING = Update("adamw", 1.5e-4, 0.05, betas=(0.9, 0.95))


@dataclasses.dataclass(frozen=True)
class Compared:
  """A model as it is measured.

  Attributes:
    model: its name in the registry.
    peer: the module of `benchmarks/peers` with the same network in PyTorch; "" where there is none.
    beside: what that network is, in a word.
    options: of our model, besides those of its clips.
    frames, size: of a clip; height and width in pixels.
    update: the optimizer of a training step.
    batches, gpu_batches: clips, on a CPU and on a GPU.
    is_pretraining: whether it predicts hidden patches; then there is no forward pass to compare.
    statistics: mean and standard deviation that clips are normalized with.
    knows: what of its clips the model is built for, `frames` and `image_size`.
  """

  model: str
  peer: str
  beside: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  frames: int = 16
  size: int = 112
  update: Update = SGD
  batches: tuple[int, ...] = (2,)
  gpu_batches: tuple[int, ...] = (64,)
  is_pretraining: bool = False
  statistics: tuple[tuple[float, ...], tuple[float, ...]] = KINETICS
  knows: tuple[str, ...] = ()

  @property
  def works(self) -> tuple[str, ...]:
    """What is measured of it."""
    return ("train",) if self.is_pretraining else ("forward", "train")

  @property
  def model_options(self) -> dict[str, Any]:
    """All options of our model."""
    of_clips = {"frames": self.frames, "image_size": self.size}
    return {**self.options, **{name: of_clips[name] for name in self.knows}}


_TORCHVISION = "torchvision"
_TRUNK_AND_PERCEIVER = "torchvision's trunk and perceiver-pytorch"
_TRUNK_AND_TWIN = "torchvision's trunk and a BERT block of PyTorch's layers"
_TRANSFORMERS = "transformers"
# transformers' own; the networks that it was published with have 1e-6.
_EPSILONS = {"layer_norm_epsilon": 1e-12}


def _hybrid(cnn_blocks: int, self_blocks: int) -> Compared:
  # perceiver-pytorch reads the mean of the latents.
  options = {"cnn_blocks": cnn_blocks, "cross_blocks": 1, "self_blocks": self_blocks}
  return Compared(
    "hybrid", "hybrid", _TRUNK_AND_PERCEIVER, {**options, "pool": "mean"}, update=ADAMW
  )


def _videomae(size: str, batch: int) -> dict[str, Compared]:
  shared: dict[str, Any] = {
    "size": 224,
    "statistics": IMAGENET,
    "knows": ("frames", "image_size"),
  }
  name = f"videomae_{size}"
  return {
    name: Compared(
      name,
      "videomae",
      _TRANSFORMERS,
      {**_EPSILONS, "head_norm_epsilon": 1e-12},
      update=ADAMW,
      gpu_batches=(batch,),
      **shared,
    ),
    f"{name}_pretraining": Compared(
      f"{name}_pretraining",
      "videomae",
      _TRANSFORMERS,
      {**_EPSILONS, "decoder_norm_epsilon": 1e-5},
      update=ADAMW_OF_PRETRAINING,
      gpu_batches=(2 * batch,),
      is_pretraining=True,
      **shared,
    ),
  }


MODELS: dict[str, Compared] = {
  "r2plus1d_18": Compared("r2plus1d_18", "video_resnets", _TORCHVISION, batches=(2, 4, 8)),
  "r3d_18": Compared("r3d_18", "video_resnets", _TORCHVISION),
  "mc3_18": Compared("mc3_18", "video_resnets", _TORCHVISION),
  "r2plus1d_34": Compared(
    "r2plus1d_34", "video_resnets", "torchvision's layers", frames=32, gpu_batches=(32,)
  ),
  "r2plus1d_18_hara": Compared("r2plus1d_18_hara", "", ""),
  "hybrid": _hybrid(8, 1),
  "hybrid_cnn4_self6": _hybrid(4, 6),
  "r2plus1d_18_bert": Compared(
    "r2plus1d_18_bert", "bert", _TRUNK_AND_TWIN, update=ADAMW, knows=("frames",)
  ),
  "r2plus1d_34_bert": Compared(
    "r2plus1d_34_bert",
    "bert",
    _TRUNK_AND_TWIN,
    frames=64,
    update=ADAMW,
    gpu_batches=(16,),
    knows=("frames",),
  ),
  **_videomae("small", 32),
  **_videomae("base", 32),
  **_videomae("large", 16),
  "hybrid_pretraining": Compared(
    "hybrid_pretraining", "", "", update=ADAMW_OF_PRETRAINING, is_pretraining=True
  ),
}


def named(text: str) -> list[str]:
  """Models of `MODELS` by comma, or `all`, as a type of argparse's.

  Raises:
    ArgumentTypeError: one that there is not.
  """
  names = [*MODELS] if text == "all" else text.split(",")
  if unknown := {*names} - {*MODELS}:
    raise argparse.ArgumentTypeError(
      f"{', '.join(sorted(unknown))}: expected all, or of {', '.join(MODELS)}"
    )
  return names
