"""What attention over a video's tokens costs, against their number: cross, self, and BERT pooling.

  python benchmarks/attention.py [--batch=2] [--dtype=float32|bfloat16] [--tpu=v5e] [--quick]

Runs on a CPU and on a GPU, without TensorFlow; about four minutes on two cores, half a minute with
`--quick`. benchmarks/requirements.txt is what the peer and `--tpu` need.

Compared are three ways to read the feature map `[B, T', 7, 7, 512]` of R(2+1)D-18, all 8 blocks,
for clips of 16 to 256 frames at 112x112, at the widths of configs/hmdb51.py:

- cross: 256 latents attend to all tokens (one `perceiver.CrossBlock`): linear in the tokens.
- self: all tokens attend to each other (one `perceiver.SelfBlock`): quadratic.
- bert: the mean over space, then `bert_pooling.BertPooling` over the T' that are left.

The peer has the same weights in PyTorch, its attention by
`torch.nn.functional.scaled_dot_product_attention`; compiled on a GPU, eager on a CPU. Both must give
the same output before they are timed, turn by turn in one process, which keeps freed memory as main.py
has it. Training is the forward pass and
the gradient of all parameters and of the feature map, without dropout and without an update. Without
PyTorch the peer is left out.

The last line is one JSON object. `cross_to_self_256` is the time of a training step, cross over self,
at 256 frames, `bert_to_self_256` likewise; `crossover_tokens_macs` and `crossover_tokens_train` are
the tokens (interpolated) from which self costs more than cross, in multiply-accumulates and in time;
`ratio_train` is the peer's time / ours by kind, the median over the lengths. `rows` has, of each kind
and length: `tokens` of the feature map, `macs` of one clip's forward pass, `forward_ms` and `train_ms`
of a batch (medians), `forward_temp_bytes` and `temp_bytes` (of training: what the compiled program
holds beside its arguments and results), the peer's times, and with `--tpu` the compiler's
estimated cycles and temporary bytes for one chip, bfloat16.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import contextlib
import functools
import importlib
import itertools
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# PyTorch has to find memory on the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from flax import nnx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import matplotlib.axes  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import outcome  # noqa: E402
from benchmarks.sides import BenchmarkError  # noqa: E402
from hybrid_video import models, platform_setup, sharding  # noqa: E402
from hybrid_video.models import costs, hybrid, perceiver, target, video_resnet  # noqa: E402
from hybrid_video.models.bert_pooling import BertPooling  # noqa: E402
from hybrid_video.models.layers import LayerNorm  # noqa: E402
from hybrid_video.planning import program, topologies  # noqa: E402
from hybrid_video.report.figures import BLUE, INK, MUTED, ORANGE  # noqa: E402

peers: Any = None
with contextlib.suppress(ImportError):
  peers = importlib.import_module("benchmarks.peers.attention")

KINDS = {
  "cross": ("256 latents to all tokens", BLUE),
  "self": ("all tokens to each other", ORANGE),
  "bert": ("BERT over the mean of space", INK),
}
LENGTHS, QUICK_LENGTHS = (16, 32, 64, 128, 256), (16, 64, 256)
SIZE = 112
# Largest relative difference of the two sides' float32 outputs, and of bfloat16's.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
_LEAST_SECONDS = 0.05

_WIDTHS = (
  *("latents", "width", "cross_heads", "self_heads", "head_dim"),
  *("multiplier", "bands", "max_freq", "dropout"),
)

Tree = dict[str, Any]


def options() -> dict[str, Any]:
  """The options that the study's rows leave at the hybrid's defaults, by name."""
  return {name: parameter.default for name, parameter in models.options("hybrid").items()}


def grids(lengths: Sequence[int]) -> dict[int, tuple[int, int, int, int]]:
  """The feature map's `(T', H', W', C)` for clips of each number of frames."""
  trunk = nnx.eval_shape(
    lambda: video_resnet.Trunk(
      "r2plus1d_18", numerics=video_resnet.Numerics(), rng=np.random.default_rng(0)
    )
  )
  trunk.eval()
  graphdef, params, batch_stats = models.split(trunk)

  def features(params: Tree, batch_stats: Tree, clips: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, params, batch_stats)(clips)

  found = {}
  for frames in lengths:
    clips = jax.ShapeDtypeStruct((1, frames, SIZE, SIZE, 3), jnp.float32)
    found[frames] = jax.eval_shape(features, params, batch_stats, clips).shape[1:]
  return found


class Ours:
  """One kind of attention over feature maps of one size.

  Attributes:
    params: its parameters.
  """

  def __init__(self, kind: str, grid: tuple[int, int, int, int], dtype: str):
    """Builds it as the models do."""
    frames, *_, channels = grid
    shared = {"dtype": models.DTYPES[dtype], "rng": np.random.default_rng(0)}
    module: nnx.Module
    if kind == "bert":
      module = BertPooling(channels, frames, **shared)
    else:
      module = hybrid.AttentionStack(
        channels,
        cross_blocks=int(kind == "cross"),
        self_blocks=int(kind == "self"),
        use_cls=False,
        **{name: value for name, value in options().items() if name in _WIDTHS},
        **shared,
      )
    module.eval()
    graphdef, self.params, batch_stats = models.split(module)

    def forward(params: Tree, features: jax.Array) -> jax.Array:
      if kind == "bert":
        features = features.astype(jnp.float32).mean((2, 3))
      return nnx.merge(graphdef, params, batch_stats)(features)

    def loss(params: Tree, features: jax.Array) -> jax.Array:
      return jnp.square(forward(params, features).astype(jnp.float32)).mean()

    self.functions: dict[str, Callable[..., Any]] = {
      "forward": forward,
      "train": jax.value_and_grad(loss, (0, 1)),
    }

  def macs(self, grid: tuple[int, int, int, int]) -> int:
    """Multiply-accumulates of one clip's forward pass, whatever form the attention takes here."""
    features = jax.ShapeDtypeStruct((1, *grid), jnp.float32)
    return costs.multiply_accumulates(self.functions["forward"], self.params, features)


def _peer(kind: str, params: Tree, grid: tuple[int, int, int, int], dtype: str) -> Any:
  given = options()
  return peers.Peer(
    kind,
    params,
    perceiver.fourier_positions(grid[:3], given["bands"], given["max_freq"]),
    heads=given["cross_heads" if kind == "cross" else "self_heads"],
    epsilon=LayerNorm(1).epsilon,
    dtype=dtype,
  )


def turn_by_turn(works: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
  """Median milliseconds of a call of each, every one having its turn before the next round.

  A turn repeats what is short, so that the clock's grain and a stray interruption weigh little.
  """
  repeats = {}
  for name, work in works.items():
    work()
    started = time.perf_counter()
    work()
    repeats[name] = math.ceil(_LEAST_SECONDS / (time.perf_counter() - started))
  taken: dict[str, list[float]] = {name: [] for name in works}
  for _ in range(turns):
    for name, work in works.items():
      started = time.perf_counter()
      for _ in range(repeats[name]):
        work()
      taken[name].append((time.perf_counter() - started) / repeats[name])
  return {name: 1e3 * statistics.median(times) for name, times in taken.items()}


def crossover(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
  """The number of tokens from which `key` is larger for self than for cross attention.

  Between two lengths both are taken as powers of the number of tokens; None where they do not
  cross within what was measured.
  """
  cross, own = (
    [(row["tokens"], row[key]) for row in rows if row["kind"] == kind] for kind in ("cross", "self")
  )
  gaps = [
    (math.log(tokens), math.log(mine / other))
    for (tokens, other), (_, mine) in zip(cross, own, strict=True)
  ]
  for (x0, y0), (x1, y1) in itertools.pairwise(gaps):
    if y0 < 0 <= y1:
      return math.exp(x0 - y0 * (x1 - x0) / (y1 - y0))
  return None


@functools.cache
def tpu_chip(kind: str) -> jax.sharding.Sharding:
  """One chip of a TPU of that kind, to compile for; it need not be there.

  Raises:
    BenchmarkError: libtpu is missing or knows no such TPU.
  """
  try:
    topology = topologies.named(f"{kind}:2x2")
    os.environ.update(topology.environment())
    devices = topology.devices()
  except Exception as problem:  # whatever libtpu raises, the user has the same two ways on
    raise BenchmarkError(
      f"No TPU {kind!r} to compile for ({str(problem).splitlines()[0]}): pip install -r "
      "benchmarks/requirements.txt, take v5e or v6e, let no other process use libtpu, or leave "
      "--tpu away."
    ) from problem
  return sharding.replicated(sharding.make_mesh(list(devices[:1])))


def accounted(text: str) -> dict[str, Any]:
  """What `program.account` finds in a compiled program's text.

  Raises:
    BenchmarkError: a loop does not tell how often it runs.
  """
  told = program.account(text)
  if told["unknown_loops"]:
    raise BenchmarkError(
      f"The conditions {', '.join(told['unknown_loops'])} of compiled loops do not tell how often they run: cycles "
      "cannot be counted. Leave --tpu away, or take the libtpu of benchmarks/requirements.txt."
    )
  return told


def tpu_costs(ours: Ours, features: tuple[int, ...], kind: str) -> dict[str, int]:
  """The TPU compiler's estimated cycles and temporary bytes, forward and training.

  Raises:
    BenchmarkError: there is no such TPU to compile for, or cycles that cannot be counted.
  """
  chip = tpu_chip(kind)

  def shaped(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=chip)

  params = jax.tree.map(lambda leaf: shaped(leaf.shape, leaf.dtype), ours.params)
  found = {}
  for name, function in ours.functions.items():
    with target.traced_for(list(chip.device_set)):
      traced = jax.jit(function).trace(params, shaped(features, jnp.bfloat16))
    compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    told = accounted(compiled.as_text() or "")
    found[f"tpu_{name}_cycles"] = told["cycles"]
    found[f"tpu_{name}_not_estimated"] = told["not_estimated"]
    found[f"tpu_{name}_temp_bytes"] = compiled.memory_analysis().temp_size_in_bytes
  return found


def _finish(compiled: Callable[..., Any], *arguments: Any) -> Any:
  return jax.block_until_ready(compiled(*arguments))


def measure(
  kind: str,
  frames: int,
  grid: tuple[int, int, int, int],
  *,
  batch: int,
  dtype: str,
  turns: int,
  tpu: str | None,
) -> dict[str, Any]:
  """One row.

  Raises:
    BenchmarkError: the two sides' outputs differ.
  """
  ours = Ours(kind, grid, dtype)
  array = np.random.default_rng(frames).standard_normal((batch, *grid), np.float32)
  features = jnp.asarray(array, models.DTYPES[dtype])
  row: dict[str, Any] = {
    "kind": kind,
    "frames": frames,
    "tokens": math.prod(grid[:3]),
    "macs": ours.macs(grid),
  }
  works: dict[str, Callable[[], object]] = {}
  temporary = {}
  for name, function in ours.functions.items():
    compiled = jax.jit(function).trace(ours.params, features).lower().compile()
    memory = compiled.memory_analysis()
    temporary[name] = None if memory is None else memory.temp_size_in_bytes
    works[name] = functools.partial(_finish, compiled, ours.params, features)
  if peers is not None:
    peer = _peer(kind, ours.params, grid, dtype)
    theirs = peer.features(array)
    expected = np.asarray(peer.infer(theirs).float().cpu())
    found = np.asarray(works["forward"](), np.float32)
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error < TOLERANCE[dtype]:
      raise BenchmarkError(
        f"{kind} at {frames} frames: our output and the peer's differ by {error:.1e} of its largest "
        f"value, expected less than {TOLERANCE[dtype]:.0e}. One of the two is wrong: run "
        "tests/test_attention.py."
      )
    works["peer_forward"] = lambda: peer.infer(theirs)
    works["peer_train"] = lambda: peer.train(theirs)
  taken = turn_by_turn(works, turns)
  row |= {f"{name}_ms": taken.get(name) for name in ("forward", "train")}
  row |= {"forward_temp_bytes": temporary["forward"], "temp_bytes": temporary["train"]}
  row |= {f"peer_{name}_ms": taken.get(f"peer_{name}") for name in ("forward", "train")}
  if tpu:
    row |= tpu_costs(Ours(kind, grid, "bfloat16"), features.shape, tpu)
  return row


def _draw(rows: Sequence[Mapping[str, Any]]) -> Callable[[Sequence[matplotlib.axes.Axes]], None]:
  """Three panels over the number of tokens: arithmetic, time, memory."""
  panels = (
    ("macs", 1e-9, "multiply-accumulates a clip (G)", None),
    ("train_ms", 1.0, "training step (ms)", "peer_train_ms"),
    ("temp_bytes", 2.0**-20, "temporary memory, training (MiB)", None),
  )
  places = sorted({(row["tokens"], row["frames"]) for row in rows})

  def draw(all_axes: Sequence[matplotlib.axes.Axes]) -> None:
    for axes, (key, scale, label, peer) in zip(all_axes, panels, strict=True):
      for kind, (what, colour) in KINDS.items():
        mine = [row for row in rows if row["kind"] == kind]
        tokens = [row["tokens"] for row in mine]
        axes.plot(
          tokens, [row[key] * scale for row in mine], "o-", color=colour, markersize=4, label=what
        )
        if peer and mine[0][peer] is not None:
          axes.plot(tokens, [row[peer] * scale for row in mine], "--", color=colour, linewidth=1)
      axes.set_xscale("log")
      axes.set_yscale("log")
      axes.minorticks_off()
      axes.set_xticks([t for t, _ in places], [f"{t:,}\n{frames}" for t, frames in places])
      axes.set_xlabel("tokens, and frames of the clip")
      axes.set_ylabel(label)
      meeting = crossover(rows, key)
      if meeting:
        axes.axvline(meeting, color=MUTED, linestyle=":", linewidth=1)
        axes.annotate(
          f" self costs more\n from {meeting:,.0f} tokens",
          (meeting, 0.02),
          xycoords=("data", "axes fraction"),
          color=MUTED,
          fontsize=8,
        )
    all_axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    if rows[0]["peer_train_ms"] is not None:
      all_axes[1].plot([], [], "--", color=MUTED, linewidth=1, label="PyTorch, the same block")
      all_axes[1].legend(
        handles=all_axes[1].lines[-1:], frameon=False, fontsize=8, loc="upper left"
      )

  return draw


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What the module's docstring says of the JSON object, beside its rows."""
  longest = {row["kind"]: row for row in rows if row["frames"] == LENGTHS[-1]}
  found: dict[str, Any] = {
    f"{kind}_to_self_{LENGTHS[-1]}": longest[kind]["train_ms"] / longest["self"]["train_ms"]
    for kind in ("cross", "bert")
  }
  found["crossover_tokens_macs"] = crossover(rows, "macs")
  found["crossover_tokens_train"] = crossover(rows, "train_ms")
  if rows[0]["peer_train_ms"] is not None:
    found["ratio_train"] = {
      kind: statistics.median(
        row["peer_train_ms"] / row["train_ms"] for row in rows if row["kind"] == kind
      )
      for kind in KINDS
    }
  return found


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--batch", type=int, help="clips; 2 on a CPU, 16 elsewhere, 1 if quick")
  parser.add_argument("--dtype", choices=TOLERANCE, help="float32 on a CPU, bfloat16 elsewhere")
  parser.add_argument("--turns", type=int, default=9, help="how often each side has its turn")
  parser.add_argument(
    "--lengths",
    type=lambda text: [int(part) for part in text.split(",")],
    help=f"frames of the clips; {','.join(map(str, LENGTHS))}",
  )
  parser.add_argument("--tpu", help="also compile for this TPU, such as v5e or v6e")
  parser.add_argument("--quick", action="store_true", help="three lengths, one turn, nothing kept")
  parser.add_argument("--name", help="of the results; attention_cpu or attention_gpu")
  parser.add_argument("--results", type=pathlib.Path, help="folder to write them to")
  given = parser.parse_args()
  # As main.py does; here the peer lives in the same process and has it as well.
  platform_setup.keep_freed_memory()
  backend = jax.default_backend()
  batch = given.batch or (1 if given.quick else 2 if backend == "cpu" else 16)
  dtype = given.dtype or ("float32" if backend == "cpu" else "bfloat16")
  if peers is None:
    print("PyTorch is not installed: our side alone (pip install -r benchmarks/requirements.txt).")
  rows = []
  lengths = given.lengths or (QUICK_LENGTHS if given.quick else LENGTHS)
  for frames, grid in grids(lengths).items():
    for kind in KINDS:
      row = measure(
        kind,
        frames,
        grid,
        batch=batch,
        dtype=dtype,
        turns=1 if given.quick else given.turns,
        tpu=given.tpu,
      )
      rows.append(row)
      print(f"{kind}, {frames} frames: training step {row['train_ms']:.1f} ms", flush=True)

  name = given.name or f"attention_{backend}"
  with contextlib.ExitStack() as stack:
    if given.results:
      outcome.RESULTS = given.results
    elif given.quick:
      outcome.RESULTS = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    print("\n" + outcome.table(rows) + "\n")
    outcome.plot(name, _draw(rows), panels=3)
    outcome.write(
      name,
      {
        **summary(rows),
        "backend": backend,
        "device": jax.devices()[0].device_kind,
        "dtype": dtype,
        "batch": batch,
        "tpu": given.tpu,
        "rows": rows,
      },
    )


if __name__ == "__main__":
  try:
    main()
  except BenchmarkError as problem:
    sys.exit(str(problem))
