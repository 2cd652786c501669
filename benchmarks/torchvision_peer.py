"""The peer of `train_step.py`: torchvision's `r2plus1d_18` in PyTorch, in whatever form is asked.

In: what to compute (forward or training, batch, precision, memory format, eager or compiled). Out:
seconds and peak memory of it. Runs in a process that never imports JAX.
"""

from collections.abc import Sequence
import contextlib
import ctypes
import os
import time
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
import torch.nn.functional as F  # type: ignore[import-not-found]

LAYOUTS = {
  "contiguous": torch.contiguous_format,
  "channels_last_3d": torch.channels_last_3d,
}


def keep_freed_memory() -> None:
  """What `platform_setup.keep_freed_memory` does for our side, without JAX: see mallopt(3)."""
  trim_threshold, mmap_max = -1, -4
  with contextlib.suppress(OSError, AttributeError, TypeError):
    library = ctypes.CDLL(None)
    library.mallopt(trim_threshold, -1)
    library.mallopt(mmap_max, 0)


def _video_models() -> Any:
  """The video models of torchvision.

  A torchvision whose compiled operators do not fit the PyTorch beside it refuses to be imported
  until the two it looks for are declared; no video model uses them.
  """
  try:
    from torchvision.models import video  # type: ignore[import-not-found]
  except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
      library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision.models import video

    _video_models.library = library  # type: ignore[attr-defined]  # it must outlive the models
  return video


class OnDevice:
  """What PyTorch's peers share: the device, precision, and how work on it is timed."""

  def __init__(self, precision: str):
    """Chooses the device: a GPU if PyTorch sees one.

    Args:
      precision: "float32", or "bfloat16" by autocast. On a GPU, float32 allows TF32, as JAX does.
    """
    self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self._low = precision == "bfloat16"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    self._allow_tf32(True)
    torch.backends.cudnn.benchmark = True
    self._call: Any = None

  def _allow_tf32(self, allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed

  def _autocast(self) -> Any:
    return torch.autocast(self._device.type, torch.bfloat16, enabled=self._low)

  def about(self) -> dict[str, Any]:
    """Where it computes."""
    on_gpu = self._device.type == "cuda"
    return {
      "backend": "gpu" if on_gpu else "cpu",
      "device": torch.cuda.get_device_name() if on_gpu else "cpu",
      "threads": torch.get_num_threads(),
    }

  def run(self, calls: int) -> float:
    """Seconds of so many calls, one after the other, until the device is done."""
    started = time.perf_counter()
    for _ in range(calls):
      self._call()
    if self._device.type == "cuda":
      torch.cuda.synchronize()
    return time.perf_counter() - started

  def forget_peak(self) -> None:
    """Peak device memory counts from here."""
    if self._device.type == "cuda":
      torch.cuda.reset_peak_memory_stats()

  def peak_device_bytes(self) -> int | None:
    """Peak device memory in bytes; None on a CPU, where it is the process's own."""
    return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None


class Peer(OnDevice):
  """torchvision's network, its optimizer and clips that already lie on the device."""

  def __init__(
    self,
    precision: str,
    *,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    learning_rate: float,
    momentum: float,
    weight_decay: float,
  ):
    """Chooses the device, see `OnDevice`.

    Args:
      precision: "float32" or "bfloat16".
      classes: width of the logits.
      mean, std: per channel, of pixels in 0 to 1.
      learning_rate, momentum, weight_decay: of SGD.
    """
    super().__init__(precision)
    self._classes, self._mean, self._std = classes, mean, std
    self._sgd = {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
    self._network = _video_models().r2plus1d_18

  def _clips(self, clips: np.ndarray, layout: str) -> Any:
    """uint8 `[B, T, H, W, 3]` to normalized float32 `[B, 3, T, H, W]` on the device."""
    pixels = torch.from_numpy(clips).to(self._device).float() / 255
    mean, std = (torch.tensor(of, device=self._device) for of in (self._mean, self._std))
    pixels = (pixels - mean) / std
    return pixels.permute(0, 4, 1, 2, 3).contiguous(memory_format=LAYOUTS[layout])

  def logits(self, clips: np.ndarray, path: str) -> dict[str, Any]:
    """Logits in evaluation mode and full float32, of weights that it draws and writes to `path`.

    Every weight and BatchNorm statistic is random, so that none can be left out unnoticed.
    """
    torch.manual_seed(0)
    model = self._network(num_classes=self._classes)
    with torch.no_grad():
      for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
          for scale in (module.weight, module.running_var):
            scale.uniform_(0.5, 1.5)
          for shift in (module.bias, module.running_mean):
            shift.normal_(0, 0.1)
    torch.save(model.state_dict(), path)
    model = model.to(self._device).eval()
    self._allow_tf32(False)
    with torch.inference_mode():
      found = model(self._clips(clips, "contiguous")).cpu().tolist()
    self._allow_tf32(True)
    return {"logits": found}

  def prepare(
    self, work: str, clips: np.ndarray, labels: np.ndarray, layout: str, compiled: bool
  ) -> dict[str, Any]:
    """Makes ready for `run` and runs once, which compiles.

    Args:
      work: "forward" (evaluation mode, no gradients) or "train" (SGD with momentum).
      clips: uint8 `[B, T, H, W, 3]`.
      labels: `[B]`.
      layout: one of `LAYOUTS`.
      compiled: whether through `torch.compile`, for this very shape.
    """
    self._call = None
    torch.manual_seed(0)
    memory_format = LAYOUTS[layout]
    model = self._network(num_classes=self._classes).to(self._device, memory_format=memory_format)
    inputs = self._clips(clips, layout)
    targets = torch.from_numpy(labels).long().to(self._device)
    model.train(work == "train")
    torch.compiler.reset()
    network = torch.compile(model, dynamic=False) if compiled else model

    def forward() -> None:
      with torch.inference_mode(), self._autocast():
        network(inputs)

    optimizer = torch.optim.SGD(model.parameters(), fused=True, **self._sgd)

    def train() -> None:
      optimizer.zero_grad(set_to_none=True)
      with self._autocast():
        loss = F.cross_entropy(network(inputs), targets)
      loss.backward()
      optimizer.step()

    self._call = {"forward": forward, "train": train}[work]
    started = time.perf_counter()
    self.run(1)
    return {"first_seconds": time.perf_counter() - started}
