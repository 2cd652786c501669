"""What a training is for, as a small group of functions: classification, masked pretraining.

One training step, one loop and one kind of checkpoint serve every task; what differs between tasks
stands in a `Task`: initial values, the loss as masked sums, and evaluation.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import numpy as np

from hybrid_video import models

Array = jax.Array
Tree = dict[str, Any]
Sums = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What an evaluation of a list of videos gives.

  Attributes:
    numbers: metrics by name, for `results.json`; fractions, nats, counts.
    arrays: per video and per view, for `predictions.npz`.
  """

  numbers: dict[str, float | int]
  arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pass:
  """How a model reads a video clip after clip, with what it has read so far as a state.

  Attributes:
    begin: (params, batch_stats) to the state of one video before its first clip.
    outputs: (params, batch_stats, batch, state) to outputs with one row a clip, each of its video up to there,
      and the state after the last row. The batch has `clips`, in the order of reading, and `begins` bool
      `[B]`: whether a clip is its video's first.
  """

  begin: Callable[[Tree, Tree], Any]
  outputs: Callable[[Tree, Tree, Mapping[str, Array], Any], tuple[dict[str, Array], Any]]


@dataclasses.dataclass(frozen=True)
class Task:
  """The functions that tell one kind of training from another; all but `summarize` are pure.

  Attributes:
    name: "classification" or "pretraining".
    initial_variables: () to fresh parameters and batch statistics, nested dicts of NumPy arrays, the
      same at every call.
    prepare: (batch, key) to what the loss reads. The batch has `clips` uint8 `[B, T, H, W, 3]`,
      `labels` `[B]` and `mirrored` bool `[B]`. Everything random but dropout is drawn here.
    loss: (params, batch_stats, prepared batch, dropout's key) to metric sums and new batch
      statistics. The sums hold `loss` and `count`; the training step minimizes their quotient.
    outputs: (params, batch_stats, {"clips", "clip_indices" int32 `[B]`}) to arrays with one row a
      clip, in evaluation mode.
    summarize: (outputs of all clips, rows, labels, batch size) to an `Evaluation`; `rows` `[C]` is
      each clip's video, `labels` `[V]` the videos' class ids.
    merge: (params, batch_stats) to the model in evaluation mode.
    protocol: how a video's score comes about, in words.
    one_pass: in place of `outputs`, where a video's clips are read one after the other.
    features: as `outputs`, to what a clip is to the model: `features` `[B, D]`. None where outputs say it.
  """

  name: str
  initial_variables: Callable[[], tuple[Tree, Tree]]
  prepare: Callable[[Mapping[str, Array], Array], Any]
  loss: Callable[[Tree, Tree, Any, Array], tuple[Sums, Tree]]
  outputs: Callable[[Tree, Tree, Mapping[str, Array]], dict[str, Array]]
  summarize: Callable[[dict[str, np.ndarray], np.ndarray, np.ndarray, int], Evaluation]
  merge: Callable[[Tree, Tree], nnx.Module]
  protocol: str
  one_pass: Pass | None = None
  features: Callable[[Tree, Tree, Mapping[str, Array]], dict[str, Array]] | None = None


def definitions(build: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, nnx.GraphDef, Any]:
  """A model's definitions in training and in evaluation mode, and the model without its values.

  Args:
    build: gives a fresh model, the same at every call.
  """
  with models.shapes_only():
    abstract = nnx.eval_shape(build)
  abstract.train()
  training, _, _ = models.split(abstract)
  abstract.eval()
  evaluation, _, _ = models.split(abstract)
  return training, evaluation, abstract
