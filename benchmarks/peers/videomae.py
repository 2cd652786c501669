"""transformers' VideoMAE, the classifier and its masked pretraining, with fused attention."""

import os
from typing import Any

# transformers looks for them, and takes half a minute where it finds them.
os.environ["USE_TF"] = os.environ["USE_FLAX"] = "0"

from golden import torchvision_operators
from torch import nn  # type: ignore[import-not-found]

from benchmarks.compared import CLASSES, Compared
from benchmarks.peers.on_device import CONTIGUOUS, Network

# transformers imports torchvision where there is one.
torchvision_operators.declare()
import transformers  # type: ignore[import-not-found] # noqa: E402

# Width, blocks, heads; the decoder's.
_SIZES = {
  "small": (384, 12, 6, 192, 4, 3),
  "base": (768, 12, 12, 384, 4, 6),
  "large": (1024, 24, 16, 512, 12, 8),
}


class _Classifier(nn.Module):
  """Clips `[B, T, 3, H, W]` to logits."""

  def __init__(self, config: Any):
    super().__init__()
    self.model = transformers.VideoMAEForVideoClassification(config)

  def forward(self, clips: Any) -> Any:
    return self.model(clips).logits


class _Autoencoder(nn.Module):
  """Clips and masks to the loss and the predicted patches."""

  def __init__(self, config: Any):
    super().__init__()
    self.model = transformers.VideoMAEForPreTraining(config)

  def forward(self, clips: Any, masks: Any) -> Any:
    found = self.model(clips, bool_masked_pos=masks)
    return found.loss, found.logits


def make(compared: Compared) -> Network:
  """The network of a model."""
  name = compared.model.removeprefix("videomae_").removesuffix("_pretraining")
  width, depth, heads, decoder_width, decoder_depth, decoder_heads = _SIZES[name]
  config = transformers.VideoMAEConfig(
    attn_implementation="sdpa",
    num_frames=compared.frames,
    image_size=compared.size,
    hidden_size=width,
    num_hidden_layers=depth,
    num_attention_heads=heads,
    intermediate_size=4 * width,
    decoder_hidden_size=decoder_width,
    decoder_num_hidden_layers=decoder_depth,
    decoder_num_attention_heads=decoder_heads,
    decoder_intermediate_size=4 * decoder_width,
    layer_norm_eps=compared.options["layer_norm_epsilon"],
    norm_pix_loss=True,
    use_mean_pooling=not compared.is_pretraining,
    num_labels=CLASSES,
  )
  module = (_Autoencoder if compared.is_pretraining else _Classifier)(config)
  files = {"model.": "weights.pt"}
  return Network(module, frames_first=True, layouts=(CONTIGUOUS,), files=files)
