"""torchvision's video networks, and R(2+1)D-34 of its layers."""

from golden import torchvision_operators
import torch  # type: ignore[import-not-found]

from benchmarks.compared import CLASSES, Compared
from benchmarks.peers.on_device import Network


def resnet(architecture: str) -> torch.nn.Module:
  """A video ResNet with a head of `CLASSES` classes."""
  torchvision_operators.declare()
  from torchvision.models import video  # type: ignore[import-not-found]

  if architecture != "r2plus1d_34":
    return getattr(video, architecture)(num_classes=CLASSES)
  from torchvision.models.video import resnet

  class OwnWidth(resnet.Conv2Plus1D):  # type: ignore[misc, name-defined]
    """Each convolution has a width between its halves that fits it alone, as in Caffe2's networks."""

    def __init__(self, source: int, out: int, midplanes: int, stride: int = 1, padding: int = 1):
      del midplanes
      mid = 27 * source * out // (9 * source + 3 * out)
      super().__init__(source, out, mid, stride, padding)

  model = resnet.VideoResNet(
    resnet.BasicBlock,
    [OwnWidth] * 4,
    (3, 4, 6, 3),
    resnet.R2Plus1dStem,
    num_classes=CLASSES,
  )
  for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm3d):
      module.eps = 1e-3
  return model


def make(compared: Compared) -> Network:
  """The network of a model."""
  return Network(resnet(compared.model))
