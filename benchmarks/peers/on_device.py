"""A network of PyTorch's on a device: its training step and forward pass, in whatever form is asked.

In: a network, and what to compute (forward or training, batch, precision, memory format, eager or compiled).
Out: seconds and peak memory of it. Runs in a process that never imports JAX.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import ctypes
import dataclasses
import os
import pathlib
import time
from typing import Any

from golden import reference_weights
import numpy as np
import torch  # type: ignore[import-not-found]
import torch.nn.functional as F  # type: ignore[import-not-found]

from benchmarks.compared import Compared

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last_3d"
LAYOUTS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last_3d}


@dataclasses.dataclass(frozen=True)
class Network:
  """A network and how it takes what both sides are given.

  Attributes:
    module: clips to logits; of pretraining, clips and masks bool `[B, N]` to (loss, predictions `[B, M, P]`).
    frames_first: whether it takes `[B, T, 3, H, W]` instead of `[B, 3, T, H, W]`.
    layouts: memory formats that it may run in.
    files: beginnings of keys, and the file that each one's are written to for our side, without it.
  """

  module: torch.nn.Module
  frames_first: bool = False
  layouts: Sequence[str] = (CONTIGUOUS, CHANNELS_LAST)
  files: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"": "weights.pt"})

  def write(self, folder: str) -> None:
    """Writes its weights as files of PyTorch's."""
    for start, name in self.files.items():
      state = self.module.state_dict().items()
      part = {key.removeprefix(start): value for key, value in state if key.startswith(start)}
      torch.save(part, pathlib.Path(folder) / name)


def keep_freed_memory() -> None:
  """What `platform_setup.keep_freed_memory` does for our side, without JAX: see mallopt(3)."""
  trim_threshold, mmap_max = -1, -4
  with contextlib.suppress(OSError, AttributeError, TypeError):
    library = ctypes.CDLL(None)
    library.mallopt(trim_threshold, -1)
    library.mallopt(mmap_max, 0)


class Peer:
  """A network, its optimizer, and clips that already lie on the device."""

  def __init__(self, precision: str, compared: Compared, network: Callable[[], Network]):
    """Chooses the device: a GPU if PyTorch sees one.

    Args:
      precision: "float32", or "bfloat16" by autocast. On a GPU, float32 allows TF32, as JAX does.
      compared: what is measured.
      network: makes it afresh.
    """
    self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self._low = precision == "bfloat16"
    self._compared, self._network = compared, network
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    self._allow_tf32(True)
    torch.backends.cudnn.benchmark = True
    self._call: Any = None

  def _allow_tf32(self, allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed

  def about(self) -> dict[str, Any]:
    """Where it computes, and in which memory formats it can."""
    on_gpu = self._device.type == "cuda"
    return {
      "backend": "gpu" if on_gpu else "cpu",
      "device": torch.cuda.get_device_name() if on_gpu else "cpu",
      "threads": torch.get_num_threads(),
      "layouts": list(self._network().layouts),
    }

  def _inputs(self, network: Network, clips: np.ndarray, layout: str) -> Any:
    """uint8 `[B, T, H, W, 3]` to normalized float32 on the device, as the network takes it."""
    pixels = torch.from_numpy(clips).to(self._device).float() / 255
    mean, std = (torch.tensor(of, device=self._device) for of in self._compared.statistics)
    pixels = (pixels - mean) / std
    if network.frames_first:
      return pixels.permute(0, 1, 4, 2, 3).contiguous()
    return pixels.permute(0, 4, 1, 2, 3).contiguous(memory_format=LAYOUTS[layout])

  def _masks(self, masks: np.ndarray | None) -> tuple[Any, ...]:
    return () if masks is None else (torch.from_numpy(masks).to(self._device),)

  def _filled(self) -> Network:
    """The network with the values that references have in tests: of every weight and statistic, by its key."""
    network = self._network()
    shapes = {key: tuple(value.shape) for key, value in network.module.state_dict().items()}
    values = reference_weights.state_dict(shapes)
    state = {key: torch.tensor(value) for key, value in values.items()}
    network.module.load_state_dict(state, strict=True)
    return network

  def outputs(
    self, clips: np.ndarray, masks: np.ndarray | None, folder: str
  ) -> tuple[np.ndarray, float | None]:
    """Logits, or predictions and their loss, in evaluation and full float32, of weights that go to a folder.

    Every weight and BatchNorm statistic is random, so that none can be left out unnoticed.
    """
    network = self._filled()
    network.write(folder)
    module = network.module.to(self._device).eval()
    self._allow_tf32(False)
    with torch.inference_mode():
      found = module(self._inputs(network, clips, CONTIGUOUS), *self._masks(masks))
    self._allow_tf32(True)
    loss, found = found if masks is not None else (None, found)
    return found.cpu().numpy(), None if loss is None else float(loss)

  def prepare(
    self,
    work: str,
    clips: np.ndarray,
    targets: np.ndarray,
    layout: str = CONTIGUOUS,
    compiled: bool = False,
  ) -> dict[str, Any]:
    """Makes ready for `run` and runs once, which compiles.

    Args:
      work: "forward" (evaluation mode, no gradients) or "train".
      clips: uint8 `[B, T, H, W, 3]`.
      targets: labels `[B]`, or masks bool `[B, N]`, True where hidden.
      layout: one of the network's.
      compiled: whether through `torch.compile`, for this very shape.
    """
    self._call = None
    torch.manual_seed(0)
    network = self._filled()
    module = network.module.to(self._device, memory_format=LAYOUTS[layout])
    inputs = self._inputs(network, clips, layout)
    is_pretraining = self._compared.is_pretraining
    given = torch.from_numpy(targets).to(self._device)
    module.train(work == "train")
    torch.compiler.reset()
    # Of the steps of a user: the optimizer stays eager, in its fused form.
    call = torch.compile(module, dynamic=False) if compiled else module
    optimizer = self._optimizer(module)

    def autocast() -> Any:
      return torch.autocast(self._device.type, torch.bfloat16, enabled=self._low)

    def forward() -> None:
      with torch.inference_mode(), autocast():
        call(inputs)

    def train() -> None:
      optimizer.zero_grad(set_to_none=True)
      with autocast():
        loss = call(inputs, given)[0] if is_pretraining else F.cross_entropy(call(inputs), given)
      loss.backward()
      optimizer.step()

    if not is_pretraining:
      given = given.long()
    self._call = {"forward": forward, "train": train}[work]
    started = time.perf_counter()
    self.run(1)
    return {"first_seconds": time.perf_counter() - started}

  def _optimizer(self, module: torch.nn.Module) -> Any:
    update, parameters = self._compared.update, list(module.parameters())
    shared = {"lr": update.learning_rate, "weight_decay": update.weight_decay, "fused": True}
    if update.name == "sgd":
      return torch.optim.SGD(parameters, momentum=update.momentum, **shared)
    return torch.optim.AdamW(parameters, betas=update.betas, **shared)

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
