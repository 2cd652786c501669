"""torchvision's names for the video ResNets and ours, side by side.

In: an architecture. Out: for every key of torchvision's state dict, where our model keeps it.
IG-65M's R(2+1)D-34 uses the same names.
"""

from hybrid_video.models import video_resnet
from hybrid_video.weights.porting import CONVOLUTION, LINEAR, SAME, Place

_NORM = {
  "weight": Place("params", ("scale",), SAME),
  "bias": Place("params", ("bias",), SAME),
  "running_mean": Place("batch_stats", ("mean",), SAME),
  "running_var": Place("batch_stats", ("var",), SAME),
}


def places(architecture: str) -> dict[str, Place | None]:
  """Where each key of the whole network's state dict goes.

  Args:
    architecture: one of `video_resnet.ARCHITECTURES`.

  Returns:
    Key to place, trunk under `cnn` and `fc` under `head`; None for the counters of batches, which
    nothing reads.
  """
  plan = video_resnet.ARCHITECTURES[architecture]
  found: dict[str, Place | None] = {}

  def norm(key: str, path: tuple[str, ...]) -> None:
    for part, place in _NORM.items():
      found[f"{key}.{part}"] = Place(place.collection, path + place.path, SAME)
    found[f"{key}.num_batches_tracked"] = None

  def conv(key: str, path: tuple[str, ...]) -> None:
    found[f"{key}.weight"] = Place("params", (*path, "kernel"), CONVOLUTION)

  def convolution(kind: str, key: str, path: tuple[str, ...]) -> None:
    if kind != video_resnet.FACTORISED:
      conv(key, path)
      return
    conv(f"{key}.0", (*path, "spatial"))
    norm(f"{key}.1", (*path, "norm"))
    conv(f"{key}.3", (*path, "temporal"))

  stem = ("cnn", "stem")
  if plan.kinds[0] == video_resnet.FACTORISED:
    convolution(plan.kinds[0], "stem", (*stem, "conv"))
    norm("stem.4", (*stem, "norm"))
  else:
    conv("stem.0", (*stem, "conv"))
    norm("stem.1", (*stem, "norm"))
  for stage, (blocks, kind) in enumerate(zip(plan.blocks, plan.kinds, strict=True), 1):
    for block in range(blocks):
      key, path = f"layer{stage}.{block}", ("cnn", f"layer{stage}", str(block))
      for n in (1, 2):
        convolution(kind, f"{key}.conv{n}.0", (*path, f"conv{n}"))
        norm(f"{key}.conv{n}.1", (*path, f"norm{n}"))
      if stage > 1 and block == 0:
        conv(f"{key}.downsample.0", (*path, "downsample", "conv"))
        norm(f"{key}.downsample.1", (*path, "downsample", "norm"))
  found["fc.weight"] = Place("params", ("head", "kernel"), LINEAR)
  found["fc.bias"] = Place("params", ("head", "bias"), SAME)
  return found
