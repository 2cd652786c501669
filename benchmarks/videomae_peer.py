"""The peer of `pretraining.py`: transformers' `VideoMAEForPreTraining` in PyTorch, eager, with fused attention.

In: clips and masks. Out: seconds and peak memory of its training step (AdamW). Runs in a process that never
imports JAX.
"""

import os
import time
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]

from benchmarks import torchvision_peer

# transformers looks for them, and takes half a minute where it finds them.
os.environ["USE_TF"] = os.environ["USE_FLAX"] = "0"


class Peer(torchvision_peer.OnDevice):
  """transformers' network, its optimizer, and clips and masks that already lie on the device."""

  def __init__(
    self,
    precision: str,
    *,
    options: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
  ):
    """Builds the network with random values; of norms and biases too, so that none can be left out unnoticed.

    Args:
      precision: "float32" or "bfloat16".
      options: of `VideoMAEConfig`.
      mean, std: per channel, of pixels in 0 to 1.
      learning_rate, betas, weight_decay: of AdamW; decay of what is no vector, as in the original's code.
    """
    import transformers  # type: ignore[import-not-found]

    super().__init__(precision)
    self._mean, self._std = mean, std
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
      norm_pix_loss=True, attn_implementation="sdpa", use_mean_pooling=False, **options
    )
    model = transformers.VideoMAEForPreTraining(config)
    with torch.no_grad():
      for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
          parameter.normal_(float(name.endswith("weight")), 0.1)
    self._model = model.to(self._device).train()
    vectors = [p for p in model.parameters() if p.ndim == 1 or p is model.mask_token]
    spared = {id(parameter) for parameter in vectors}
    others = [p for p in model.parameters() if id(p) not in spared]
    self._optimizer = torch.optim.AdamW(
      [
        {"params": others, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
      ],
      lr=learning_rate,
      betas=betas,
    )

  def _inputs(self, clips: np.ndarray, masks: np.ndarray) -> tuple[Any, Any]:
    """uint8 `[B, T, H, W, 3]` to normalized float32 `[B, T, 3, H, W]`; masks bool `[B, N]`."""
    pixels = torch.from_numpy(clips).to(self._device).float() / 255
    mean, std = (torch.tensor(of, device=self._device) for of in (self._mean, self._std))
    pixels = ((pixels - mean) / std).permute(0, 1, 4, 2, 3).contiguous()
    return pixels, torch.from_numpy(masks).to(self._device)

  def predictions(
    self, clips: np.ndarray, masks: np.ndarray, path: str
  ) -> tuple[np.ndarray, float]:
    """The predicted patches `[B, M, values]` and the loss, in full float32; its weights go to `path`."""
    torch.save(self._model.state_dict(), path)
    pixels, hidden = self._inputs(clips, masks)
    self._allow_tf32(False)
    with torch.inference_mode():
      out = self._model(pixels, bool_masked_pos=hidden)
    self._allow_tf32(True)
    return out.logits.cpu().numpy(), float(out.loss)

  def prepare(self, work: str, clips: np.ndarray, masks: np.ndarray) -> dict[str, Any]:
    """Makes ready for `run` and runs once.

    Args:
      work: "train".
      clips: uint8 `[B, T, H, W, 3]`.
      masks: bool `[B, N]`, True where hidden.
    """
    del work
    pixels, hidden = self._inputs(clips, masks)

    def train() -> None:
      self._optimizer.zero_grad(set_to_none=True)
      with self._autocast():
        loss = self._model(pixels, bool_masked_pos=hidden).loss
      loss.backward()
      self._optimizer.step()

    self._call = train
    started = time.perf_counter()
    self.run(1)
    return {"first_seconds": time.perf_counter() - started}
