"""The table of models in docs/models.md, made anew.

  python benchmarks/model_table.py

Parameters and multiply-accumulates are counted; the parity error is measured here, now, against the
references' stored outputs (tests/golden): the largest relative error of any logit in float32, with
all weights and BatchNorm statistics random. About a minute on two CPU cores.
"""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from flax import nnx  # noqa: E402
from golden import bert_pooling, perceiver, video_resnets, videomae  # noqa: E402

from hybrid_video import models  # noqa: E402
from hybrid_video.models import costs  # noqa: E402
from hybrid_video.weights import sources  # noqa: E402

CLASSES = 400
TORCHVISION, TRANSFORMERS = "torchvision 0.28.0", "transformers 4.57.6"
TWIN = "a PyTorch twin"
# Model, its options, the clip (frames, height, width), and the reference it is held against.
ROWS = (
  ("r2plus1d_18", {}, (16, 112, 112), TORCHVISION),
  ("r3d_18", {}, (16, 112, 112), TORCHVISION),
  ("mc3_18", {}, (16, 112, 112), TORCHVISION),
  ("r2plus1d_34", {}, (32, 112, 112), TWIN),
  ("r2plus1d_18_hara", {}, (16, 112, 112), TWIN),
  ("hybrid", {}, (16, 112, 112), "perceiver-pytorch 0.11.0"),
  ("r2plus1d_18_bert", {}, (16, 112, 112), TWIN),
  ("r2plus1d_34_bert", {"frames": 64}, (64, 112, 112), TWIN),
  ("videomae_small", {}, (16, 224, 224), TRANSFORMERS),
  ("videomae_base", {}, (16, 224, 224), TRANSFORMERS),
  ("videomae_large", {}, (16, 224, 224), TRANSFORMERS),
)


def parity() -> dict[str, float]:
  """The largest relative error by family of models."""
  errors = {
    name: video_resnets.errors(name, train=False)["logits"]
    for name in models.video_resnet.ARCHITECTURES
  }
  errors["hybrid"] = max(
    perceiver.errors(*groups, tied)["logits"] for groups in perceiver.GROUPS for tied in (0, 1)
  )
  errors["bert"] = max(bert_pooling.errors(count)["pooled"] for count in (2, 4, 8))
  errors["videomae"] = max(
    videomae.classifier_errors(name)["logits"] for name in videomae.REFERENCES
  )
  return errors


def main() -> None:
  """Prints the table as Markdown."""
  errors = parity()
  print("| model | clip | parameters | multiply-accumulates | weights | parity error | against |")
  print("|---|---|---|---|---|---|---|")
  for name, options, clip, reference in ROWS:

    def build(name: str = name, options: dict = options) -> nnx.Module:
      return models.create(name, num_classes=CLASSES, **options)

    _, params, _ = models.split(nnx.eval_shape(build))
    total = models.parameter_counts(params)["total"]
    work = costs.of_model(name, clip, CLASSES, **options) / 1e9
    known = [s.name.split("/")[1] for s in sources.SOURCES.values() if s.model == name]
    family = name if name in errors else "bert" if name.endswith("_bert") else "videomae"
    local = "3D-ResNets-PyTorch's file" if name.endswith("_hara") else ""
    weights = (
      ", ".join(known)
      or local
      or "trunk of " + name.removesuffix("_bert").replace("hybrid", "any ResNet")
    )
    print(
      f"| `{name}` | {'x'.join(map(str, clip))} | {total:,} | {work:.3f} G | {weights} "
      f"| {errors[family]:.0e} | {reference} |"
    )


if __name__ == "__main__":
  main()
