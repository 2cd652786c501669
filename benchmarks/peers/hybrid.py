"""The hybrid: blocks of torchvision's R(2+1)D-18, and perceiver-pytorch's Perceiver over their output."""

from collections import OrderedDict
from typing import Any

from perceiver_pytorch import Perceiver  # type: ignore[import-not-found]
from torch import nn  # type: ignore[import-not-found]

from benchmarks.compared import CLASSES, Compared
from benchmarks.peers.on_device import Network
from benchmarks.peers.video_resnets import resnet

_WIDTHS = (64, 128, 256, 512)


class _ChannelsLast(nn.Module):
  """`[B, C, T, H, W]` to `[B, T, H, W, C]`."""

  def forward(self, x: Any) -> Any:
    return x.permute(0, 2, 3, 4, 1)


def make(compared: Compared) -> Network:
  """The network of a model with one cross attention, at our model's default widths."""
  whole, count = resnet("r2plus1d_18"), compared.options["cnn_blocks"]
  blocks = [(stage, i) for stage in (1, 2, 3, 4) for i in (0, 1)][:count]
  stages: dict[int, OrderedDict] = {}
  for stage, i in blocks:
    stages.setdefault(stage, OrderedDict())[str(i)] = getattr(whole, f"layer{stage}")[i]
  trunk = nn.Sequential(
    OrderedDict(
      stem=whole.stem, **{f"layer{stage}": nn.Sequential(of) for stage, of in stages.items()}
    )
  )
  perceiver = Perceiver(
    depth=compared.options["cross_blocks"],
    self_per_cross_attn=compared.options["self_blocks"],
    num_freq_bands=6,
    max_freq=10.0,
    input_channels=_WIDTHS[blocks[-1][0] - 1],
    input_axis=3,
    num_latents=256,
    latent_dim=512,
    cross_heads=1,
    latent_heads=8,
    cross_dim_head=64,
    latent_dim_head=64,
    num_classes=CLASSES,
  )
  parts = OrderedDict(trunk=trunk, tokens=_ChannelsLast(), perceiver=perceiver)
  return Network(nn.Sequential(parts), files={"trunk.": "trunk.pt", "perceiver.": "perceiver.pt"})
