"""Which kind of network keys are of, by how its names begin.

In: the keys of a state dict. Out: one of the families below, or None. `matching` goes on from there to
the very network; `key_prefixes` looks for where one begins.
"""

from collections.abc import Collection

from hybrid_video.weights import own_names

OWN = "own"
VIDEO_RESNET = "video_resnet"
VIDEOMAE = "videomae"
PERCEIVER = "perceiver"

# A key of each that no other has. mmaction2 has its classifier beside its backbone; a Sequential of a
# video ResNet's parts has numbers for their names.
_BEGINNINGS = {
  VIDEOMAE: (
    "patch_embed.",
    "encoder.patch_embed.",
    "videomae.",
    "backbone.patch_embed.projection.",
  ),
  VIDEO_RESNET: ("stem.", "conv1_s.", "layer1.", "1.0.conv1."),
  OWN: ("cnn.stem.conv.",),
}


def family_of(keys: Collection[str]) -> str | None:
  """The family of networks that a whole state dict is of; None where it is of no known one."""
  if own_names.is_own(keys):
    return OWN
  for family, beginnings in _BEGINNINGS.items():
    if any(key.startswith(beginnings) for key in keys):
      return family
  return PERCEIVER if "latents" in keys else None
