"""A plain PyTorch script: torchvision's R(2+1)D-18, one random batch, one step of SGD.

python -m benchmarks.peers.first_step BATCH FRAMES SIZE
"""

import sys

import torch  # type: ignore[import-not-found]

from benchmarks.compared import CLASSES, SGD
from benchmarks.peers import video_resnets


def main() -> None:
  """Takes the step."""
  batch, frames, size = map(int, sys.argv[1:])
  model = video_resnets.resnet("r2plus1d_18").train()
  optimizer = torch.optim.SGD(
    model.parameters(), SGD.learning_rate, SGD.momentum, weight_decay=SGD.weight_decay
  )
  clips = torch.randn(batch, 3, frames, size, size)
  labels = torch.randint(CLASSES, (batch,))
  torch.nn.functional.cross_entropy(model(clips), labels).backward()
  optimizer.step()


if __name__ == "__main__":
  main()
