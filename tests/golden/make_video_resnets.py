"""Reference outputs of the video ResNets, from torchvision and from twins written by hand.

  pip install torch==2.13.0 numpy && pip install --no-deps torchvision==0.28.0
  python tests/golden/make_video_resnets.py

Writes `video_resnets.npz`: for each network, samples of the logits and of every block's output in
evaluation mode, in float32; and, in training mode, of the loss's gradient by every parameter and of
every updated running statistic, in float64: in float32 PyTorch's own gradients of these networks lie
up to 20 % from their float64 ones, since a rounding error switches a ReLU on or off. Weights and
clips come from `reference_weights`.
"""

import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER))
import reference_weights  # noqa: E402
import torchvision_operators  # noqa: E402

CLASSES = 7
SHAPE = (2, 8, 64, 64, 3)


def sample(array: torch.Tensor, count: int = 24) -> np.ndarray:
  """Evenly spaced values of a tensor in channels-last order, and its largest magnitude."""
  array = array.detach()
  if array.ndim == 5:
    array = array.permute(0, 2, 3, 4, 1)
  flat = array.reshape(-1).double().numpy()
  indices = np.linspace(0, len(flat) - 1, min(count, len(flat))).astype(int)
  return np.append(flat[indices], np.abs(flat).max()).astype(np.float32)


def torchvision_model(name: str) -> torch.nn.Module:
  """torchvision's own network."""
  torchvision_operators.declare()
  from torchvision.models import video

  return getattr(video, name)(num_classes=CLASSES)


class Twin(torch.nn.Module):
  """What the twins share: tensors by key, norms and the head."""

  epsilon = 1e-5

  def __init__(self):
    super().__init__()
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.describe()
    values = reference_weights.state_dict(self.shapes)
    self.tensors = {
      k: torch.tensor(v).requires_grad_("running" not in k and v.dtype == np.float32)
      for k, v in values.items()
    }

  def double(self) -> None:
    """Computes in float64 from here on."""
    self.tensors = {
      k: v.detach().double().requires_grad_(v.requires_grad) if v.is_floating_point() else v
      for k, v in self.tensors.items()
    }

  def _norm(self, key: str, n: int) -> None:
    for part in ("weight", "bias", "running_mean", "running_var"):
      self.shapes[f"{key}.{part}"] = (n,)
    self.shapes[f"{key}.num_batches_tracked"] = ()

  def bn(self, key: str, x: torch.Tensor) -> torch.Tensor:
    """BatchNorm; 0.1 is the weight of the new batch."""
    t = self.tensors
    return F.batch_norm(
      x,
      t[f"{key}.running_mean"],
      t[f"{key}.running_var"],
      t[f"{key}.weight"],
      t[f"{key}.bias"],
      self.training,
      0.1,
      self.epsilon,
    )

  def conv(self, key: str, x: torch.Tensor, stride, padding) -> torch.Tensor:
    """A convolution without bias."""
    return F.conv3d(x, self.tensors[f"{key}.weight"], None, stride, padding)

  def head(self, x: torch.Tensor) -> torch.Tensor:
    """Global average and linear layer."""
    return F.linear(x.mean((2, 3, 4)), self.tensors["fc.weight"], self.tensors["fc.bias"])


class Twin34(Twin):
  """R(2+1)D-34 by hand: per-convolution mid widths and BatchNorm epsilon 1e-3."""

  epsilon = 1e-3

  def describe(self) -> None:
    """Sets the shape of every tensor."""
    self._norm("stem.1", 45)
    self._norm("stem.4", 64)
    self.shapes |= {"stem.0.weight": (45, 3, 1, 7, 7), "stem.3.weight": (64, 45, 3, 1, 1)}
    channels = 64
    for stage, (blocks, out) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
      for b in range(blocks):
        for n, source in ((1, channels), (2, out)):
          mid = 27 * source * out // (9 * source + 3 * out)
          key = f"layer{stage}.{b}.conv{n}"
          self.shapes[f"{key}.0.0.weight"] = (mid, source, 1, 3, 3)
          self._norm(f"{key}.0.1", mid)
          self.shapes[f"{key}.0.3.weight"] = (out, mid, 3, 1, 1)
          self._norm(f"{key}.1", out)
        if channels != out:
          self.shapes[f"layer{stage}.{b}.downsample.0.weight"] = (out, channels, 1, 1, 1)
          self._norm(f"layer{stage}.{b}.downsample.1", out)
        channels = out
    self.shapes |= {"fc.weight": (CLASSES, 512), "fc.bias": (CLASSES,)}

  def outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
    """Of the stem and of every block."""
    x = F.relu(self.bn("stem.1", self.conv("stem.0", x, (1, 2, 2), (0, 3, 3))))
    x = F.relu(self.bn("stem.4", self.conv("stem.3", x, 1, (1, 0, 0))))
    outputs = [x]
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
      for b in range(blocks):
        key, s = f"layer{stage}.{b}", 2 if stage > 1 and b == 0 else 1
        y, step = x, s
        for n in (1, 2):
          y = self.conv(f"{key}.conv{n}.0.0", y, (1, step, step), (0, 1, 1))
          y = F.relu(self.bn(f"{key}.conv{n}.0.1", y))
          y = self.conv(f"{key}.conv{n}.0.3", y, (step, 1, 1), (1, 0, 0))
          y = self.bn(f"{key}.conv{n}.1", y)
          y, step = (F.relu(y), 1) if n == 1 else (y, 1)
        shortcut = x
        if f"{key}.downsample.0.weight" in self.tensors:
          shortcut = self.bn(f"{key}.downsample.1", self.conv(f"{key}.downsample.0", x, s, 0))
        x = F.relu(y + shortcut)
        outputs.append(x)
    return outputs


class TwinOfHara(Twin):
  """R(2+1)D-18 of 3D-ResNets-PyTorch by hand: 7 frames and 110 channels in the stem, a max pool."""

  def describe(self) -> None:
    """Sets the shape of every tensor."""
    self._pair("", 1, 3, 64, 7, 7)
    channels = 64
    for stage, out in enumerate((64, 128, 256, 512), 1):
      for b in (0, 1):
        key = f"layer{stage}.{b}."
        self._pair(key, 1, channels, out, 3, 3)
        self._pair(key, 2, out, out, 3, 3)
        if channels != out:
          self.shapes[f"{key}downsample.0.weight"] = (out, channels, 1, 1, 1)
          self._norm(f"{key}downsample.1", out)
        channels = out
    self.shapes |= {"fc.weight": (CLASSES, 512), "fc.bias": (CLASSES,)}

  def _pair(self, key: str, n: int, source: int, out: int, taps: int, side: int) -> None:
    whole, halves = taps * side**2 * source * out, side**2 * source + taps * out
    mid = whole // halves
    self.shapes[f"{key}conv{n}_s.weight"] = (mid, source, 1, side, side)
    self._norm(f"{key}bn{n}_s", mid)
    self.shapes[f"{key}conv{n}_t.weight"] = (out, mid, taps, 1, 1)
    self._norm(f"{key}bn{n}_t", out)

  def pair(self, key: str, n: int, x: torch.Tensor, side: int, steps: tuple[int, int]):
    """In space, then in time; without the last ReLU."""
    taps = self.tensors[f"{key}conv{n}_t.weight"].shape[2]
    x = self.conv(f"{key}conv{n}_s", x, (1, steps[1], steps[1]), (0, side // 2, side // 2))
    x = F.relu(self.bn(f"{key}bn{n}_s", x))
    x = self.conv(f"{key}conv{n}_t", x, (steps[0], 1, 1), (taps // 2, 0, 0))
    return self.bn(f"{key}bn{n}_t", x)

  def outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
    """Of the stem with its pool and of every block."""
    x = F.max_pool3d(F.relu(self.pair("", 1, x, 7, (1, 2))), kernel_size=3, stride=2, padding=1)
    outputs = [x]
    for stage in (1, 2, 3, 4):
      for b in (0, 1):
        key, step = f"layer{stage}.{b}.", 2 if stage > 1 and b == 0 else 1
        y = F.relu(self.pair(key, 1, x, 3, (step, step)))
        y = self.pair(key, 2, y, 3, (1, 1))
        if f"{key}downsample.0.weight" in self.tensors:
          x = self.bn(f"{key}downsample.1", self.conv(f"{key}downsample.0", x, step, 0))
        x = F.relu(y + x)
        outputs.append(x)
    return outputs


class FromTorchvision:
  """The same interface over torchvision's module."""

  def __init__(self, name: str):
    self.module = torchvision_model(name)
    shapes = {k: tuple(v.shape) for k, v in self.module.state_dict().items()}
    values = reference_weights.state_dict(shapes)
    self.module.load_state_dict({k: torch.tensor(v) for k, v in values.items()})

  def double(self):
    """Computes in float64 from here on."""
    self.module.double()

  def eval(self):
    """Running statistics."""
    self.module.eval()

  def train(self):
    """Batch statistics."""
    self.module.train()

  @property
  def tensors(self) -> dict[str, torch.Tensor]:
    """Parameters and buffers by key."""
    return dict(self.module.named_parameters()) | dict(self.module.named_buffers())

  def outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
    """Of the stem and of every block."""
    outputs = [self.module.stem(x)]
    for stage in (1, 2, 3, 4):
      for block in getattr(self.module, f"layer{stage}"):
        outputs.append(block(outputs[-1]))
    return outputs

  def head(self, x: torch.Tensor) -> torch.Tensor:
    """Global average and linear layer."""
    return self.module.fc(self.module.avgpool(x).flatten(1))


def main() -> None:
  """Runs every reference and writes the samples."""
  torch.manual_seed(0)
  clips = torch.tensor(reference_weights.clips(SHAPE)).permute(0, 4, 1, 2, 3)
  labels = torch.tensor([3, 5])
  arrays: dict[str, np.ndarray] = {}
  twins = {"r2plus1d_34": Twin34, "r2plus1d_18_hara": TwinOfHara}
  for name in ("r2plus1d_18", "r3d_18", "mc3_18", "r2plus1d_34", "r2plus1d_18_hara"):
    model = twins[name]() if name in twins else FromTorchvision(name)
    model.eval()
    with torch.no_grad():
      outputs = model.outputs(clips)
      arrays[f"{name}/logits"] = model.head(outputs[-1]).numpy()
      for i, output in enumerate(outputs):
        arrays[f"{name}/block/{i}"] = sample(output)
    model.double()
    model.train()
    loss = F.cross_entropy(model.head(model.outputs(clips.double())[-1]), labels)
    loss.backward()
    arrays[f"{name}/loss"] = loss.detach().numpy()
    for key, tensor in model.tensors.items():
      if tensor.grad is not None:
        arrays[f"{name}/gradient/{key}"] = sample(tensor.grad, 8)
      elif "running" in key:
        arrays[f"{name}/statistic/{key}"] = sample(tensor, 8)
    print(name, loss.item())
  np.savez_compressed(FOLDER / "video_resnets.npz", **arrays)


if __name__ == "__main__":
  main()
