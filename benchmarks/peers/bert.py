"""A video ResNet of torchvision's with BERT pooling over time: the twin that our parity is tested against."""

from golden.make_bert_pooling import Pooling
import torch  # type: ignore[import-not-found]
from torch import nn  # type: ignore[import-not-found]

from benchmarks.compared import Compared
from benchmarks.peers.on_device import Network
from benchmarks.peers.video_resnets import resnet

# As in the published recipe and in our model.
HEAD_DROPOUT, DROPOUT, KEEP = 0.8, 0.1, 0.8


class Classifier(nn.Module):
  """Clips `[B, 3, T, H, W]` to logits; in training each token is hidden with the chance 1 - `KEEP`."""

  def __init__(self, architecture: str, frames: int):
    super().__init__()
    self.trunk = resnet(architecture)
    self.pooling = Pooling(frames // 8, DROPOUT)
    self.dropout = nn.Dropout(HEAD_DROPOUT)

  def forward(self, clips: torch.Tensor) -> torch.Tensor:
    """`[B, 3, T, H, W]` to `[B, classes]`."""
    trunk = self.trunk
    x = trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(trunk.stem(clips)))))
    tokens = x.float().mean((3, 4)).transpose(1, 2)
    hidden = torch.rand(tokens.shape[:2], device=x.device) > KEEP if self.training else None
    return trunk.fc(self.dropout(self.pooling(tokens, hidden)))


def make(compared: Compared) -> Network:
  """The network of a model."""
  classifier = Classifier(compared.model.removesuffix("_bert"), compared.frames)
  return Network(classifier, files={"trunk.": "trunk.pt", "pooling.": "pooling.pt"})
