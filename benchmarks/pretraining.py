"""VideoMAE's pretraining step beside transformers' in PyTorch, turn by turn; and as compiled for TPUs.

  python benchmarks/pretraining.py [--sizes=small,base] [--batch=2] [--precision=float32|bfloat16]
  python benchmarks/pretraining.py --topology=v5e:2x2 [--batch=64]

Runs on a CPU and on a GPU, without TensorFlow. It needs benchmarks/requirements.txt.

What is compared: a whole training step (forward, backward, AdamW) of masked pretraining, on the same clips of 16
frames of 224x224 with 90 % of the patches hidden in tubes, and the mean squared error of normalized pixels. Ours is
`steps.train_step` as training jits it, with the recipe of configs/videomae.py; the peer is transformers'
`VideoMAEForPreTraining` as its users run it: eager, attention by `scaled_dot_product_attention`. Each side has a process of
its own, and only one of them works at a time: ours, peer, ours, peer. Before that, both must predict the same for the
same weights, clips and masks.

- Ours starts from uint8 clips, mirrors and normalizes them and draws masks within the step. The peer's clips lie on the
  device normalized, as floats, and its masks are drawn before.
- bfloat16 is autocast for the peer and `dtype` for ours.
- Allocator "default": the peer's is left as PyTorch is installed. "kept": its process keeps freed memory as main.py
  does, see `train_step.py`. No matter on a GPU.

The last line is one JSON object. `ratio_small` is the peer's time / ours (medians over the turns) for that size, each
side as its users run it; `..._peer_tuned` with the peer's allocator kept as well. `rows` has every measurement, as in
`train_step.py`; `error_small` is how far the two predictions lie apart, relative to the largest.

With `--topology` nothing is measured: the step is compiled ahead of time (bfloat16, the batch over all chips) and
`rows` has the compiler's estimated cycles, what they are at the chip's clock, the share of the matrix units' peak, and
bytes of a chip. A model, not a measurement; prefetches and collectives are not in it.
"""

import argparse
from collections.abc import Callable, Sequence
import contextlib
import functools
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import train_step  # noqa: E402
from benchmarks.train_step import BenchmarkError, Side  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH, RATIO = (2, 16, 16), 0.9
# transformers' defaults.
EPSILON, DECODER_EPSILON = 1e-12, 1e-5
# Width, blocks, heads; the decoder's.
SIZES = {"small": (384, 12, 6, 192, 4, 3), "base": (768, 12, 12, 384, 4, 6)}
LIMIT_SECONDS = 3600.0


def tube_masks(batch: int, frames: int, size: int) -> np.ndarray:
  """Masks bool `[B, N]`, True where hidden: the same cells at all times, the same in every process."""
  cells = (size // PATCH[1]) * (size // PATCH[2])
  rng = np.random.default_rng(1)
  hidden = np.stack([rng.permutation(cells) < int(RATIO * cells) for _ in range(batch)])
  return np.tile(hidden, (1, frames // PATCH[0]))


class Ours(train_step.Ours):
  """Our pretraining model, as training jits it."""

  learning_rate = 1.5e-4

  def __init__(self, given: argparse.Namespace):
    """Builds it for clips of `given.frames` and `given.size`."""
    self._given = given
    super().__init__(given.precision)

  def _build(self, precision: str) -> Callable[[], Any]:
    given = self._given
    blocks = {"depth": given.blocks, "decoder_depth": given.blocks} if given.blocks else {}
    return functools.partial(
      self._models.create,
      f"videomae_{given.sizes[0]}_pretraining",
      dtype=precision,
      frames=given.frames,
      image_size=given.size,
      layer_norm_epsilon=EPSILON,
      decoder_norm_epsilon=DECODER_EPSILON,
      **blocks,
    )

  def _make_task(self, build: Callable[[], Any]) -> Any:
    from hybrid_video.tasks import pretraining

    return pretraining.make(build, MEAN, STD)

  def _settings(self) -> Any:
    return recipe(self._given.sizes[0]).optimizer

  def predictions(
    self, clips: np.ndarray, masks: np.ndarray, path: str
  ) -> tuple[np.ndarray, float]:
    """The predicted patches `[B, M, values]` and the loss, in full float32, of weights in a file of PyTorch's."""
    from hybrid_video import weights
    from hybrid_video.models import masking
    from hybrid_video.tasks import pixels

    jnp = self._jax.numpy
    model = self._build("float32")()
    weights.load_pretrained(model, path)
    visible, masked = (
      jnp.asarray(np.stack([np.flatnonzero(row) for row in of]), jnp.int32)
      for of in (~masks, masks)
    )
    with self._jax.default_matmul_precision("highest"):
      predicted = model(pixels.normalizer(MEAN, STD)(jnp.asarray(clips)), visible, masked)
    losses = masking.clip_losses(predicted, masking.patch_targets(jnp.asarray(clips), masked))
    return np.asarray(predicted), float(losses.mean())


def recipe(size: str) -> Any:
  """The experiment of configs/videomae.py that pretrains a size."""
  from configs import videomae
  from hybrid_video import experiment

  return experiment.from_config(videomae.get_config(f"pretrain,model=videomae_{size}"))


def _make_side(given: argparse.Namespace) -> Any:
  if given.serve == "ours":
    return Ours(given)
  from benchmarks import torchvision_peer, videomae_peer

  if given.allocators == "kept":
    torchvision_peer.keep_freed_memory()
  width, depth, heads, decoder_width, decoder_depth, decoder_heads = SIZES[given.sizes[0]]
  options = {
    "num_frames": given.frames,
    "image_size": given.size,
    "hidden_size": width,
    "num_hidden_layers": given.blocks or depth,
    "num_attention_heads": heads,
    "intermediate_size": 4 * width,
    "decoder_hidden_size": decoder_width,
    "decoder_num_hidden_layers": given.blocks or decoder_depth,
    "decoder_num_attention_heads": decoder_heads,
    "decoder_intermediate_size": 4 * decoder_width,
    "layer_norm_eps": EPSILON,
  }
  return videomae_peer.Peer(
    given.precision,
    options=options,
    mean=MEAN,
    std=STD,
    learning_rate=Ours.learning_rate,
    betas=(0.9, 0.95),
    weight_decay=0.05,
  )


class _Worker(train_step.Worker):
  """What a side's process answers with; a batch has masks in the labels' place."""

  def __init__(self, side: Any, is_peer: bool):
    super().__init__(side)
    self._is_peer = is_peer

  def _batch(self, batch: int, frames: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    clips, labels = train_step.random_batch(batch, frames, size)
    return clips, tube_masks(batch, frames, size) if self._is_peer else labels

  def predictions(self, path: str, frames: int, size: int) -> Any:
    """Some of the predicted values of two clips, and the loss."""
    clips, _ = train_step.random_batch(2, frames, size)
    found, loss = self._side.predictions(clips, tube_masks(2, frames, size), path)
    return {"values": found[:, ::13, ::31].ravel().tolist(), "loss": loss}


def check_agreement(ours: Side, peer: Side, frames: int, size: int) -> float:
  """The relative error of our predictions against the peer's, for its weights.

  Raises:
    BenchmarkError: of predictions or loss it is `train_step.TOLERANCE` or more.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = str(pathlib.Path(folder) / "weights.pt")
    expected = peer.ask("predictions", path=path, frames=frames, size=size)
    found = ours.ask("predictions", path=path, frames=frames, size=size)
  error = max(
    train_step.relative_error(found["values"], expected["values"]),
    train_step.relative_error([found["loss"]], [expected["loss"]]),
  )
  if not error < train_step.TOLERANCE:
    raise BenchmarkError(
      f"What the two sides predict differs by {error:.1e} relative to the largest; expected less than "
      f"{train_step.TOLERANCE:g}. Run the parity tests (tests/test_videomae.py) first."
    )
  return error


def compare(given: argparse.Namespace, cache: str) -> dict[str, Any]:
  """All measurements, as the JSON object has them; compiled programs are kept in the folder `cache`.

  Raises:
    BenchmarkError: a side cannot run, or the two do not compute the same.
  """
  environment = {
    "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
  }

  def side(name: str, size: str, precision: str, kept: bool) -> Side:
    options = [f"--sizes={size}", f"--frames={given.frames}", f"--size={given.size}"]
    options += [f"--blocks={given.blocks}"] if given.blocks else []
    return Side(name, precision, kept, environment, __file__, options)

  about: dict[str, Any] = {}
  if not given.no_peer:
    with side("peer", given.sizes[0], "float32", True) as peer:
      about = peer.ask("about")
    environment["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(about["backend"], "cpu")
  with side("ours", given.sizes[0], "float32", True) as ours:
    about = {**about, **ours.ask("about")}
  on_cpu = about["backend"] == "cpu"
  precision = given.precision or ("float32" if on_cpu else "bfloat16")
  allocators = given.allocators or ("default,kept" if on_cpu and not given.no_peer else "kept")
  shape = {"batch": given.batch or 2, "frames": given.frames, "size": given.size}
  print(f"VideoMAE {', '.join(given.sizes)}, {precision}, on {about['device']}", flush=True)

  found: dict[str, Any] = {}
  rows: list[dict[str, Any]] = []
  for size in given.sizes:
    if not given.no_peer:
      with (
        side("ours", size, "float32", True) as ours,
        side("peer", size, "float32", True) as peer,
      ):
        found[f"error_{size}"] = check_agreement(ours, peer, given.frames, given.size)
      print(f"{size}: predictions agree to {found[f'error_{size}']:.1e}", flush=True)
    for allocator in allocators.split(","):
      with contextlib.ExitStack() as stack:
        ours = stack.enter_context(side("ours", size, precision, True))
        peer = None
        if not given.no_peer:
          peer = stack.enter_context(side("peer", size, precision, allocator == "kept"))
        row = train_step.measure(
          "train", shape, ours, peer, {}, turns=given.turns, seconds=given.seconds
        )
      rows.append({"model": f"videomae_{size}", "allocator": allocator, **row})
      if peer:
        tuned = "_peer_tuned" if allocator == "kept" and "default" in allocators else ""
        found[f"ratio_{size}{tuned}"] = round(row["ratio"], 3)
        versus = f", {row['ratio']:.2f} times the peer's speed"
      else:
        versus = ""
      print(f"{size}, {allocator}: {row['ours_seconds']:.3f} s{versus}", flush=True)
  return {
    **found,
    "backend": about["backend"],
    "device": about["device"],
    "precision": precision,
    "turns": given.turns,
    "peer_threads": about.get("threads"),
    **shape,
    "rows": rows,
  }


def estimate(given: argparse.Namespace) -> dict[str, Any]:
  """What the TPU's compiler makes of the step of each size, as the JSON object has it.

  Raises:
    UserError: a topology that there is not, or the compiler is missing, refused or took too long.
  """
  import dataclasses

  from hybrid_video.planning import compiler, topologies

  topology = topologies.named(given.topology)
  rows = []
  for size in given.sizes:
    chosen = recipe(size)
    model = dataclasses.replace(chosen.model, dtype=given.precision or "bfloat16")
    chosen = dataclasses.replace(chosen, model=model, batch_size=given.batch or 64)
    print(f"compiling {size} for {topology.name} ...", flush=True)
    what = f"the pretraining step of VideoMAE {size}"
    answer = compiler.ask(chosen, 1, topology, what=what, limit_seconds=LIMIT_SECONDS)
    if answer.compiled is None:
      raise BenchmarkError(f"{size} does not fit into a chip: take a smaller --batch.")
    generation, told = topology.generation, answer.compiled
    seconds = told["cycles"] / generation.clock
    of_step = answer.sizes["multiply_accumulates"]["step"]
    chips = answer.sizes["devices"]["devices"]
    rows.append(
      {
        "model": f"videomae_{size}",
        "M cycles": told["cycles"] / 1e6,
        "seconds": seconds,
        "clips/s": chosen.batch_size / seconds,
        "share of the peak": 2 * of_step / chips / seconds / generation.peak,
        "G multiply-accumulates a clip, forward": answer.sizes["multiply_accumulates"]["clip"]
        / 1e9,
        "MiB a chip": round(told["memory"]["total"] / 2**20),
        "temporary MiB": round(told["memory"]["temporary"] / 2**20),
        "collectives": told["collectives"],
        "prefetched_bytes": told["prefetched_bytes"],
        "compile_seconds": told["seconds"],
      }
    )
    print(f"  {rows[-1]['M cycles']:.1f} M cycles, compiled in {told['seconds']:.0f} s", flush=True)
  return {
    "topology": topology.name,
    "precision": given.precision or "bfloat16",
    "batch": given.batch or 64,
    "frames": chosen.clip.frames,
    "size": chosen.clip.crop,
    "rows": rows,
  }


def _draw(rows: Sequence[dict[str, Any]]) -> Callable[[Sequence[Any]], None]:
  from hybrid_video.report import figures

  # The stricter comparison, where both were made.
  shown = [row for row in rows if row["allocator"] == "kept"] or list(rows)
  sides = {"ours": ("ours", figures.BLUE), "peer": ("transformers", figures.ORANGE)}
  panels = {"seconds": "Pretraining step, seconds", "peak_mib": "Peak memory, MiB"}

  def draw(axes: Sequence[Any]) -> None:
    places = np.arange(len(shown))
    for ax, (key, title) in zip(axes, panels.items(), strict=True):
      for shift, (side, (label, colour)) in zip((-0.2, 0.2), sides.items(), strict=True):
        values = [row.get(f"{side}_{key}") or 0.0 for row in shown]
        if any(values):
          bars = ax.bar(places + shift, values, 0.4, label=label, color=colour)
          ax.bar_label(
            bars, [f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values]
          )
      ax.set_xticks(places, [row["model"].replace("videomae_", "VideoMAE ") for row in shown])
      ax.set_title(title)
      ax.margins(y=0.12)
    axes[0].legend(frameon=False)

  return draw


_SHOWN = (
  *("model", "allocator", "batch", "ratio", "ours_seconds", "peer_seconds"),
  *("ours_peak_mib", "peer_peak_mib", "ours_program_mib", "ours_compile_seconds"),
)


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--sizes", type=lambda text: text.split(","), default=[*SIZES])
  parser.add_argument("--batch", type=int, help="clips; 2, over all chips of a topology 64")
  parser.add_argument("--frames", type=int, default=16)
  parser.add_argument("--size", type=int, default=224, help="height and width, pixels")
  parser.add_argument("--blocks", type=int, help="of encoder and decoder each, to be done sooner")
  parser.add_argument("--precision", choices=["float32", "bfloat16"], help="elsewhere: bfloat16")
  parser.add_argument("--allocators", default="", help="default,kept on a CPU; kept on a GPU")
  parser.add_argument("--no_peer", action="store_true", help="ours alone; needs no PyTorch")
  parser.add_argument("--turns", type=int, default=5, help="of each side")
  parser.add_argument("--seconds", type=float, default=1.0, help="least length of a turn")
  parser.add_argument("--topology", help="compile for these TPUs instead, such as v5e:2x2")
  parser.add_argument("--name", help="of the results; pretraining_cpu, _gpu or _v5e")
  parser.add_argument("--results", type=pathlib.Path, help="folder to write them to")
  parser.add_argument("--serve", choices=["ours", "peer"], help=argparse.SUPPRESS)
  given = parser.parse_args()
  if unknown := {*given.sizes} - {*SIZES}:
    parser.error(f"--sizes has {', '.join(unknown)}: expected {', '.join(SIZES)}")
  return given


def main() -> None:
  """Measures or compiles, and tells what it found."""
  given = _parse()
  if given.serve:
    train_step.serve(lambda: _Worker(_make_side(given), given.serve == "peer"))
    return
  from benchmarks import outcome
  from hybrid_video import errors

  if given.results:
    outcome.RESULTS = given.results
  try:
    if given.topology:
      found = estimate(given)
      shown = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in found["rows"]]
      print("\n" + outcome.table(shown) + "\n")
      outcome.write(given.name or f"pretraining_{given.topology.split(':')[0]}", found)
      return
    with tempfile.TemporaryDirectory() as cache:
      found = compare(given, cache)
  except (BenchmarkError, errors.UserError) as error:
    sys.exit(str(error))
  rows = found["rows"]
  shown = [{key: row[key] for key in _SHOWN if key in row} for row in rows]
  name = given.name or f"pretraining_{found['backend']}"
  print("\n" + outcome.table(shown) + "\n")
  outcome.plot(name, _draw(rows), panels=2)
  outcome.write(name, found)


if __name__ == "__main__":
  main()
