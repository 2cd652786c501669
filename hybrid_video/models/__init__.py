"""Models: normalized clips `[B, T, H, W, 3]` in, logits `[B, classes]` out.

`create` builds any of them by name. A model's parameters are grouped by its attributes: `cnn`,
`attention`, `decoder` and `head` are the parts that reports count. A pretraining model takes masks
beside the clips and gives pixels.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import contextvars
import dataclasses
import inspect
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video import errors
from hybrid_video.models import video_resnet as video_resnet
from hybrid_video.models import videomae
from hybrid_video.models.bert_pooling import BertClassifier
from hybrid_video.models.hybrid import Hybrid
from hybrid_video.models.hybrid_pretraining import HybridForPreTraining
from hybrid_video.models.model_error import ModelError as ModelError
from hybrid_video.models.video_resnet import VideoResNet
from hybrid_video.models.videomae import VideoMAE as VideoMAE
from hybrid_video.models.videomae_pretraining import (
  VideoMAEForPreTraining as VideoMAEForPreTraining,
)

CLASSIFICATION, PRETRAINING = "classification", "pretraining"

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

# Mean and standard deviation of pixels in 0 to 1, red, green and blue.
KINETICS: Statistics = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
# Kinetics as Hara et al. measured it.
KINETICS_HARA: Statistics = ((0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))
IMAGENET: Statistics = (videomae.IMAGENET_MEAN, videomae.IMAGENET_STD)


@dataclasses.dataclass(frozen=True)
class Entry:
  """A model of the registry.

  Attributes:
    build: its class.
    fixed: the options that make the class the model of that name.
    task: what it is trained for, `CLASSIFICATION` or `PRETRAINING`.
    pixels: statistics that its clips are normalized with, unless a run sets others.
  """

  build: Callable[..., nnx.Module]
  fixed: dict[str, Any]
  task: str = CLASSIFICATION
  pixels: Statistics = KINETICS


MODELS: dict[str, Entry] = {
  "hybrid": Entry(Hybrid, {}),
  "r2plus1d_18": Entry(VideoResNet, {"architecture": "r2plus1d_18"}),
  "r2plus1d_34": Entry(VideoResNet, {"architecture": "r2plus1d_34"}),
  "r2plus1d_18_hara": Entry(
    VideoResNet, {"architecture": "r2plus1d_18_hara"}, pixels=KINETICS_HARA
  ),
  "r3d_18": Entry(VideoResNet, {"architecture": "r3d_18"}),
  "mc3_18": Entry(VideoResNet, {"architecture": "mc3_18"}),
  "r2plus1d_18_bert": Entry(BertClassifier, {"architecture": "r2plus1d_18"}),
  "r2plus1d_34_bert": Entry(BertClassifier, {"architecture": "r2plus1d_34"}),
  **{
    f"videomae_{size}": Entry(VideoMAE, {"size": size}, pixels=IMAGENET)
    for size in ("small", "base", "large")
  },
  **{
    f"videomae_{size}_pretraining": Entry(
      VideoMAEForPreTraining, {"size": size}, PRETRAINING, IMAGENET
    )
    for size in ("small", "base", "large")
  },
  "hybrid_pretraining": Entry(HybridForPreTraining, {}, PRETRAINING),
}
# float64 needs jax_enable_x64; it serves comparisons with references.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}

Tree = dict[str, Any]


def _entry(name: str) -> Entry:
  if name not in MODELS:
    raise ModelError(
      f"There is no model {name!r}.{errors.nearest(name, MODELS)} Known: {', '.join(MODELS)}."
    )
  return MODELS[name]


def options(name: str) -> dict[str, inspect.Parameter]:
  """The options of a model by name, with their types and defaults.

  Raises:
    ModelError: there is no such model; the message has the nearest names.
  """
  entry = _entry(name)
  others = ("self", "num_classes", "dtype", "rng", *entry.fixed)
  parameters = inspect.signature(entry.build.__init__).parameters
  return {key: value for key, value in parameters.items() if key not in others}


def check_option(name: str, option: str) -> None:
  """Checks that a model has an option.

  Raises:
    ModelError: it has not; the message has the models that do, and the nearest options.
  """
  known = options(name)
  if option in known:
    return
  owners = [other for other in MODELS if option in options(other)]
  of_others = f" It is one of {errors.shown(owners)}." if owners else ""
  raise ModelError(
    f"The model {name!r} has no option {option!r}.{of_others}{errors.nearest(option, known)} "
    f"Known: {', '.join(known)}."
  )


def task_of(name: str) -> str:
  """What a model is trained for: "classification" or "pretraining".

  Raises:
    ModelError: there is no such model.
  """
  return _entry(name).task


def classifier_of(name: str) -> str:
  """The classifier that takes the encoder of a model of pretraining; a classifier's own name."""
  return name.removesuffix("_pretraining")


def pixel_statistics(name: str) -> Statistics:
  """Mean and standard deviation a channel, of pixels in 0 to 1, that a model's clips take.

  Those that a model's published weights were trained with: ImageNet's for VideoMAE, Kinetics' as Hara
  et al. measured it for their network; as torchvision has it for all others.

  Raises:
    ModelError: there is no such model.
  """
  return _entry(name).pixels


def clip_options(name: str, frames: int, size: int) -> dict[str, int]:
  """The options by which a model follows the clips it is given; empty where it takes any.

  Args:
    name: one of `MODELS`.
    frames: of a clip.
    size: height and width of a clip in pixels.

  Raises:
    ModelError: there is no such model.
  """
  known = options(name)
  return {
    key: value for key, value in {"frames": frames, "image_size": size}.items() if key in known
  }


def clip_grid(
  name: str, given: Mapping[str, Any], frames: int, size: int
) -> tuple[int, int, int] | None:
  """The patches along (time, height, width) that a model cuts clips into; None where it takes any clip.

  Args:
    name: one of `MODELS`.
    given: its options; what is None or missing is the default.
    frames: of a clip.
    size: height and width of a clip in pixels.

  Raises:
    ModelError: there is no such model, or it cannot take such clips; the message says which it can.
  """
  known = options(name)
  if task_of(name) != PRETRAINING and _entry(name).build is not VideoMAE:
    return None
  option = "mask_patch" if "mask_patch" in known else "patch"
  patch = given.get(option)
  return videomae.token_grid(frames, size, size, patch or known[option].default)


class _Zeros(np.random.Generator):
  """Draws nothing: zeros, all at one place in memory."""

  def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
    """Zeros of that shape."""
    return np.broadcast_to(np.zeros((), dtype), () if size is None else size)

  random = standard_normal


_draws: contextvars.ContextVar[bool] = contextvars.ContextVar("draws", default=True)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
  """Within it, models are built without drawing initial values, for those who read their shapes alone."""
  token = _draws.set(False)
  try:
    yield
  finally:
    _draws.reset(token)


def create(
  name: str,
  *,
  num_classes: int | None = None,
  seed: int = 0,
  dtype: str = "float32",
  **model_options: Any,
) -> nnx.Module:
  """Builds a model with initial values drawn from `seed`, NumPy arrays on the host.

  Args:
    name: one of `MODELS`.
    num_classes: width of the logits; a pretraining model has none and does not read it.
    seed: of the initial values.
    dtype: one of `DTYPES`, of the arithmetic; parameters are float32 always.
    **model_options: the model's own options, see its class.

  Returns:
    An NNX module in training mode: `model.eval()` and `model(clips)` give logits; in training,
    dropout takes its key at the call, `model(clips, rngs=nnx.Rngs(dropout=key))`.

  Raises:
    ModelError: an unknown name, dtype or option (the message has the nearest), no classes to tell
      apart, or options that do not fit together.
  """
  entry = _entry(name)
  if dtype not in DTYPES:
    raise ModelError(
      f"There is no dtype {dtype!r}.{errors.nearest(dtype, DTYPES)} Known: {', '.join(DTYPES)}."
    )
  for option in model_options:
    check_option(name, option)
  built = {
    "dtype": DTYPES[dtype],
    "rng": np.random.default_rng(seed) if _draws.get() else _Zeros(np.random.PCG64(seed)),
    **entry.fixed,
    **model_options,
  }
  if entry.task == PRETRAINING:
    return entry.build(**built)
  if num_classes is None or num_classes < 1:
    raise ModelError(
      f"The model {name!r} is a classifier of num_classes={num_classes} classes: give at least 1."
    )
  return entry.build(num_classes, **built)


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
  """A model as its definition and two plain nested dicts: parameters, batch statistics."""
  graphdef, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
  params, batch_stats = (nnx.to_pure_dict(state) for state in states)
  return graphdef, params, batch_stats


def parameter_counts(params: Tree) -> dict[str, int]:
  """Trainable parameters by part (`cnn`, `attention`, `head`) and their `total`."""
  counts = dict.fromkeys(("cnn", "attention", "head"), 0)
  for part, tree in params.items():
    counts[part] = sum(leaf.size for leaf in jax.tree.leaves(tree))
  return {**counts, "total": sum(counts.values())}
