"""Our side of `train_step.py`: a model of the registry, its training step and forward pass as training jits them."""

from collections.abc import Callable
import functools
import pathlib
import sys
import time
from typing import Any

from flax import nnx
import jax
import numpy as np

from benchmarks.compared import CLASSES, Compared
from hybrid_video import models, optimizers, platform_setup, sharding, state, steps, weights
from hybrid_video.models import costs, masking
from hybrid_video.tasks import classification, pixels, pretraining
from hybrid_video.weights import reading

# The values that references ran with, by key.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

MATRIX = 8192


def task_of(compared: Compared, precision: str) -> Any:
  """A model's task: what it is trained for, as functions."""
  kind = pretraining if compared.is_pretraining else classification
  return kind.make(functools.partial(_create, compared, precision), *compared.statistics)


def optimizer_of(compared: Compared) -> Any:
  """Its optimizer, for a learning rate of one."""
  update = compared.update
  return optimizers.make_optimizer(
    optimizers.OptimizerSettings(
      name=update.name,
      weight_decay=update.weight_decay,
      momentum=update.momentum,
      beta1=update.betas[0],
      beta2=update.betas[1],
    )
  )


def _create(compared: Compared, precision: str) -> Any:
  classes = {} if compared.is_pretraining else {"num_classes": CLASSES}
  return models.create(compared.model, dtype=precision, **classes, **compared.model_options)


class Ours:
  """A model, its optimizer, and clips that already lie on the device."""

  def __init__(self, precision: str, compared: Compared):
    """Builds it with `precision` as its dtype, on the first device that JAX has."""
    platform_setup.keep_freed_memory()
    self._compared = compared
    self._device = jax.devices()[0]
    self._mesh = sharding.make_mesh([self._device])
    self._task = task_of(compared, precision)
    self._optimizer = optimizer_of(compared)
    self._state: Any = None
    self._call: Callable[[], Any]

  def about(self) -> dict[str, Any]:
    """Where it computes."""
    return {"backend": jax.default_backend(), "device": self._device.device_kind}

  def outputs(
    self, clips: np.ndarray, masks: np.ndarray | None, folder: str
  ) -> tuple[np.ndarray, float | None]:
    """Logits, or predictions and their loss, in evaluation and full float32, of weights that the peer wrote."""
    model = _create(self._compared, "float32")
    _load(model, self._compared.peer, pathlib.Path(folder))
    model.eval()
    graphdef, *variables = models.split(model)
    normalized = pixels.normalizer(*self._compared.statistics)(jax.numpy.asarray(clips))
    indices: list[Any] = []
    if masks is not None:
      indices = [
        np.stack([np.flatnonzero(row) for row in of]).astype(np.int32) for of in (~masks, masks)
      ]
    forward = jax.jit(lambda variables, *given: nnx.merge(graphdef, *variables)(*given))
    with jax.default_matmul_precision("highest"):
      found = forward(variables, normalized, *indices)
    if masks is None:
      return np.asarray(found), None
    targets = masking.patch_targets(jax.numpy.asarray(clips), jax.numpy.asarray(indices[1]))
    return np.asarray(found), float(masking.clip_losses(found, targets).mean())

  def prepare(self, work: str, clips: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Compiles for `run` and runs once.

    Args:
      work: "forward" or "train".
      clips: uint8 `[B, T, H, W, 3]`.
      targets: labels `[B]`; not read in pretraining, whose steps draw their masks.
    """
    if self._state is None:
      variables = self._task.initial_variables()
      made = state.create(self._optimizer, self._mesh, *variables)
      self._state = jax.device_put(made, self._device)
    labels = np.zeros(len(clips), np.int32) if self._compared.is_pretraining else targets
    mirrored = np.arange(len(clips)) % 2 == 0
    batch = jax.device_put({"clips": clips, "labels": labels, "mirrored": mirrored}, self._device)
    rate_and_seed = (np.float32(self._compared.update.learning_rate), np.uint32(0))
    arguments: tuple[Any, ...]
    if work == "train":
      step = functools.partial(steps.train_step, task=self._task, optimizer=self._optimizer)
      jitted = jax.jit(step, donate_argnums=0)
      arguments = (self._state, batch, *rate_and_seed)
    else:
      jitted = jax.jit(self._task.outputs)
      arguments = (self._state["params"], self._state["batch_stats"], {"clips": batch["clips"]})
    started = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    seconds = time.perf_counter() - started

    def train() -> Any:
      self._state, sums = compiled(self._state, batch, *rate_and_seed)
      return sums

    self._call = train if work == "train" else functools.partial(compiled, *arguments)
    self.run(1)
    memory = compiled.memory_analysis()
    temporary = memory.temp_size_in_bytes
    return {
      "compile_seconds": seconds,
      "temporary_bytes": temporary,
      "program_bytes": temporary
      + memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes,
    }

  def run(self, calls: int) -> float:
    """Seconds of so many calls, one after the other, until the device is done."""
    started = time.perf_counter()
    for _ in range(calls):
      given = self._call()
    jax.block_until_ready(given)
    return time.perf_counter() - started

  def forget_peak(self) -> None:
    """Device memory has one peak in a process; the works come in the order of their need."""

  def peak_device_bytes(self) -> int | None:
    """Peak device memory in bytes; None on a CPU, where it is the process's own."""
    return (self._device.memory_stats() or {}).get("peak_bytes_in_use")

  def matrix_rate(self) -> float:
    """FLOP a second of an 8192^3 bfloat16 product, the best of five goes."""
    product = jax.jit(jax.numpy.dot)
    left, right = (
      jax.random.normal(jax.random.key(i), (MATRIX, MATRIX), jax.numpy.bfloat16) for i in (0, 1)
    )
    product(left, right).block_until_ready()
    best, count = float("inf"), 20
    for _ in range(5):
      started = time.perf_counter()
      for _ in range(count):
        result = product(left, right)
      result.block_until_ready()
      best = min(best, (time.perf_counter() - started) / count)
    return 2 * MATRIX**3 / best

  def forward_flop(self) -> int | None:
    """FLOP of one clip's forward pass, two a multiply-accumulate; None of a model that takes masks."""
    compared = self._compared
    if compared.is_pretraining:
      return None
    clip = (compared.frames, compared.size, compared.size)
    return 2 * costs.of_model(compared.model, clip, CLASSES, **compared.model_options)


def _load(model: Any, peer: str, folder: pathlib.Path) -> None:
  """Gives a model the peer's weights."""
  for file in sorted(folder.glob("*.pt")):
    if file.name != "pooling.pt":
      weights.load_pretrained(model, file)
  if peer == "bert":
    from golden import bert_pooling

    pooling, trunk = (reading.read(folder / name) for name in ("pooling.pt", "trunk.pt"))
    bert_pooling.fill(model.attention, pooling.__getitem__)
    model.head.kernel[...] = trunk["fc.weight"].T
    model.head.bias[...] = trunk["fc.bias"]
