"""torchvision's names for the video ResNets and ours, side by side; and those of 3D-ResNets-PyTorch.

In: an architecture. Out: its table. IG-65M's R(2+1)D-34 uses torchvision's names.
"""

from hybrid_video.models import video_resnet
from hybrid_video.weights import porting
from hybrid_video.weights.porting import CONVOLUTION, Path, Row, Table

HEAD = "fc"
# Of a network, in the order of its definition.
_PARTS = ("stem", "layer1", "layer2", "layer3", "layer4", "avgpool", HEAD)


def _batch_norm(path: Path, key: str) -> list[Row]:
  return [
    *porting.norm(path, key),
    Row((*path, "mean"), (f"{key}.running_mean",), collection="batch_stats"),
    Row((*path, "var"), (f"{key}.running_var",), collection="batch_stats"),
  ]


def _kernel(path: Path, key: str) -> Row:
  return Row((*path, "kernel"), (f"{key}.weight",), CONVOLUTION)


def _convolution(kind: str, path: Path, key: str) -> list[Row]:
  """A convolution of one kind: a kernel, or two with a norm between them."""
  if kind != video_resnet.FACTORISED:
    return [_kernel(path, key)]
  return [
    _kernel((*path, "spatial"), f"{key}.0"),
    *_batch_norm((*path, "norm"), f"{key}.1"),
    _kernel((*path, "temporal"), f"{key}.3"),
  ]


def _stem(kind: str) -> list[Row]:
  path = ("cnn", "stem")
  if kind == video_resnet.FACTORISED:
    return [*_convolution(kind, (*path, "conv"), "stem"), *_batch_norm((*path, "norm"), "stem.4")]
  return [_kernel((*path, "conv"), "stem.0"), *_batch_norm((*path, "norm"), "stem.1")]


def _block(kind: str, path: Path, key: str, *, downsamples: bool) -> list[Row]:
  rows = []
  for n in (1, 2):
    rows += _convolution(kind, (*path, f"conv{n}"), f"{key}.conv{n}.0")
    rows += _batch_norm((*path, f"norm{n}"), f"{key}.conv{n}.1")
  return rows + _downsample(path, key) if downsamples else rows


def _downsample(path: Path, key: str) -> list[Row]:
  return [
    _kernel((*path, "downsample", "conv"), f"{key}.downsample.0"),
    *_batch_norm((*path, "downsample", "norm"), f"{key}.downsample.1"),
  ]


def _factorised_of_hara(path: Path, norm: Path, number: int, key: str = "") -> list[Row]:
  """A factorised convolution and the norm after it; names end in `_s` (space) and `_t` (time)."""
  return [
    _kernel((*path, "spatial"), f"{key}conv{number}_s"),
    *_batch_norm((*path, "norm"), f"{key}bn{number}_s"),
    _kernel((*path, "temporal"), f"{key}conv{number}_t"),
    *_batch_norm(norm, f"{key}bn{number}_t"),
  ]


def _stem_of_hara(kind: str) -> list[Row]:
  path = ("cnn", "stem")
  return _factorised_of_hara((*path, "conv"), (*path, "norm"), 1)


def _block_of_hara(kind: str, path: Path, key: str, *, downsamples: bool) -> list[Row]:
  rows = []
  for n in (1, 2):
    rows += _factorised_of_hara((*path, f"conv{n}"), (*path, f"norm{n}"), n, f"{key}.")
  return rows + _downsample(path, key) if downsamples else rows


def numbered(key: str) -> str:
  """A key of torchvision's as in `nn.Sequential(*model.children())`, where parts have numbers."""
  first, dot, rest = key.partition(".")
  return f"{_PARTS.index(first)}{dot}{rest}" if first in _PARTS else key


def table(architecture: str) -> Table:
  """The names of a whole network: trunk under `cnn`, the reference's `fc` under `head`.

  Args:
    architecture: one of `video_resnet.ARCHITECTURES`.
  """
  plan = video_resnet.ARCHITECTURES[architecture]
  is_haras = architecture.endswith("_hara")
  stem, named_block = (_stem_of_hara, _block_of_hara) if is_haras else (_stem, _block)
  rows = stem(plan.kinds[0])
  for stage, (blocks, kind) in enumerate(zip(plan.blocks, plan.kinds, strict=True), 1):
    for block in range(blocks):
      path, key = ("cnn", f"layer{stage}", str(block)), f"layer{stage}.{block}"
      rows += named_block(kind, path, key, downsamples=stage > 1 and block == 0)
  rows += porting.linear(("head",), HEAD)
  # Nothing of ours counts batches.
  counters = [
    row.keys[0].replace("running_mean", "num_batches_tracked")
    for row in rows
    if row.path[-1] == "mean"
  ]
  source = "3D-ResNets-PyTorch" if is_haras else "torchvision"
  return Table(f"{architecture} as {source} names it", tuple(rows), tuple(counters))
