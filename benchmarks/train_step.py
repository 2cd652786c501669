"""The training step and the forward pass of every model beside its own in PyTorch, turn by turn.

  python benchmarks/train_step.py [--model=r2plus1d_18] [--batches=2,4,8] [--precision=float32|bfloat16]

Runs on a CPU and on a GPU, without TensorFlow. benchmarks/requirements.txt is what it needs. `--model` takes
several by comma, or `all`; benchmarks/compared.py has their clips, optimizers and peers: torchvision's video
networks, these with perceiver-pytorch's Perceiver or with a BERT block over them, transformers' VideoMAE.
Models without a peer, and those whose peer is not installed, are measured alone.

What is compared: `Task.outputs` and `steps.train_step` as training jits them (state donated) and the peer's
forward pass and training step, on the same number of clips, classes and threads, with the same optimizer. Each
side has a process of its own, and only one of them works at a time: ours, peer, ours, peer. Before that, both must
give the same outputs for the same weights and clips.

- Ours starts from uint8 clips and mirrors and normalizes them within the step, and draws masks of pretraining there.
  The peer's clips lie on the device normalized, as floats, in its memory format, and its masks are drawn.
- The peer takes its best form: memory format contiguous or channels_last_3d (where it has convolutions), eager or
  `torch.compile`, tried once each at the start, for forward and training apart, unless `--peer_layout` and
  `--peer_compile` name one. Attention is `scaled_dot_product_attention` in transformers and as perceiver-pytorch has
  it. bfloat16 is autocast for the peer and `dtype` for ours. On a GPU, cudnn.benchmark is on, and float32 allows TF32
  on both sides.
- Allocator "default": the peer's is left as PyTorch is installed; our process is set up as main.py sets it up, which
  has glibc keep the memory that is freed instead of handing it back (the page faults cost either side 10 to 30 % on a
  CPU). "kept": the peer's process keeps it too. No matter on a GPU.
- A batch that does not fit into the device's memory is halved until it does.

Results are kept by model in `benchmarks/results/train_step_cpu.json` (or `_gpu`), each with its device, date and
versions; models that were not asked for stay. The last line is one JSON object, `models`, with what was measured now;
for a single model its contents stand beside that too. Of each:

`ratio_forward` and `ratio_train` are the peer's time / ours (medians over the turns), the median over the batches at
the first of `--frames`, each side as its users run it; `..._least` the least over the batches; `..._peer_tuned` with
the peer's allocator kept as well, which compares the computation alone. `rows` has every measurement:

- seconds (median and least), and seconds of processor time of all threads (least): where these are far
  from cores x seconds on a CPU, something else used the cores;
- clips a second, and our compile seconds (of the first allocator's rows: later ones find the programs
  in the cache);
- peak memory (MiB): on a CPU the process's resident size with all its libraries, on a GPU what the
  side has allocated, the trials of its compiler included; and what our compiled program needs, all of
  it and its temporaries;
- on a GPU `matrix_rate_share`: the multiply-accumulates of the layers (two FLOP each, training counted
  as three forward passes) over `matrix_rate_tflops`, the measured rate of an 8192^3 bfloat16 product.

`peer_forms` is what was tried for the peer, `error` how far the two lie apart, relative to the largest output.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import datetime
import itertools
import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import sides  # noqa: E402
from benchmarks.compared import CLASSES, MODELS, named  # noqa: E402
from benchmarks.sides import OURS, PEER, BenchmarkError, Side  # noqa: E402

WORKS = ("forward", "train")
_SHOWN = (
  *("model", "work", "frames", "batch", "allocator", "ratio", "ours_seconds", "peer_seconds"),
  *("ours_clips_per_second", "ours_peak_mib", "peer_peak_mib", "ours_compile_seconds"),
  *("matrix_rate_share", "peer_form"),
)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is measured of one model, and where.

  Attributes:
    model: one of `MODELS`.
    works: "forward", "train" or both.
    frames, batches: each of them.
    size: of a clip, pixels.
    precision: "float32" or "bfloat16".
    allocators: "default", "kept" or both.
    with_peer: whether it has one here.
    is_checked: whether both sides must agree first.
    turns: of each side.
    seconds: least length of a turn.
    environment: of every process.
  """

  model: str
  works: Sequence[str]
  frames: Sequence[int]
  batches: Sequence[int]
  size: int
  precision: str
  allocators: Sequence[str]
  with_peer: bool
  is_checked: bool
  turns: int
  seconds: float
  environment: dict[str, str]

  def side(self, name: str, frames: int, *, kept: bool = True) -> Side:
    """A process of one side, for clips of so many frames."""
    compared = dataclasses.replace(MODELS[self.model], frames=frames, size=self.size)
    return Side(name, self.model, compared, self.precision, kept, self.environment)


def ratios(rows: Sequence[dict[str, Any]], frames: int) -> dict[str, float]:
  """The JSON object's ratios, from the rows with `frames` frames: see the module."""
  found = {}
  measured = {row["allocator"] for row in rows}
  endings = {"default": "", "kept": "_peer_tuned" if "default" in measured else ""}
  for allocator, ending in endings.items():
    for work in WORKS:
      of = [
        row["ratio"]
        for row in rows
        if (row["work"], row["allocator"], row["frames"]) == (work, allocator, frames)
        and "ratio" in row
      ]
      if of:
        found[f"ratio_{work}{ending}"] = round(statistics.median(of), 3)
        found[f"ratio_{work}_least{ending}"] = round(min(of), 3)
  return found


def _rows(
  plan: Plan, candidates: Sequence[dict[str, Any]], entry: dict[str, Any]
) -> Iterator[dict[str, Any]]:
  """Measures every allocator, clip length and batch of a model.

  Args:
    plan: what is measured.
    candidates: forms of the peer.
    entry: of the results; gets `error`, `peer_forms` and, of what could not be measured, `failed`.
  """
  forms: dict[str, dict[str, Any]] | None = None
  for allocator, frames, batch in itertools.product(plan.allocators, plan.frames, plan.batches):
    while True:
      made: list[dict[str, Any]] = []
      with contextlib.ExitStack() as stack:
        # main.py has freed memory kept, so ours does in both cases.
        ours = stack.enter_context(plan.side(OURS, frames))
        peer = None
        if plan.with_peer:
          peer = stack.enter_context(plan.side(PEER, frames, kept=allocator == "kept"))
        try:
          if peer and plan.is_checked and entry["error"] is None:
            entry["error"] = sides.check_agreement(ours, peer)
            print(f"{plan.model}: both sides agree to {entry['error']:.1e}", flush=True)
          if peer and forms is None:
            forms, entry["peer_forms"] = sides.best_forms(
              peer, plan.works, candidates, batch, max(2, plan.turns)
            )
          made.extend(_works(plan, frames, batch, allocator, ours, peer, forms or {}))
        except BenchmarkError as problem:
          what = f"{plan.model}, batch {batch}, {frames} frames, {allocator}"
          if problem.is_of_memory and batch > 1:
            batch //= 2
            print(f"{what} does not fit into memory: {batch} instead", flush=True)
            continue
          entry["failed"].append(f"{what}: {problem}")
          print(entry["failed"][-1], flush=True)
      yield from made
      break


def _works(
  plan: Plan,
  frames: int,
  batch: int,
  allocator: str,
  ours: Side,
  peer: Side | None,
  forms: dict[str, dict[str, Any]],
) -> Iterator[dict[str, Any]]:
  """The rows of one batch. Forward first: a process's peak of memory only rises."""
  for work in plan.works:
    row = {"model": plan.model, "frames": frames, "allocator": allocator}
    row |= sides.measure(
      work, batch, ours, peer, forms.get(work, {}), turns=plan.turns, seconds=plan.seconds
    )
    if plan.environment["JAX_PLATFORMS"] != "cpu":
      rate = ours.ask("matrix_rate")["rate"]
      row["matrix_rate_tflops"] = rate / 1e12
      flop = ours.ask("forward_flop")["flop"]
      if flop:
        needed = flop * batch * (3 if work == "train" else 1)
        row["matrix_rate_share"] = needed / row["ours_seconds"] / rate
    versus = f", {row['ratio']:.2f} times the peer's speed" if "ratio" in row else ""
    where = f"{work}, batch {batch}, {frames} frames, {allocator}"
    print(f"{plan.model}, {where}: {row['ours_seconds']:.4f} s{versus}", flush=True)
    yield row


def _peer_about(
  model: str, environment: dict[str, str], known: dict[str, Any]
) -> dict[str, Any] | None:
  """Where a model's peer computes; None where there is none, or it is not installed.

  Args:
    model: one of `MODELS`.
    environment: of the process that is asked.
    known: answers of earlier models, by their peer.
  """
  peer = MODELS[model].peer
  if not peer:
    print(f"{model} has no peer: ours is measured alone", flush=True)
    return None
  try:
    if peer not in known:
      with Side(PEER, model, MODELS[model], "float32", True, environment) as side:
        known[peer] = side.ask("about")
  except sides.MissingError as missing:
    print(f"{model} is measured without its peer. {missing}", flush=True)
    return None
  return known[peer]


def _plan(
  arguments: argparse.Namespace,
  model: str,
  backend: str,
  with_peer: bool,
  environment: dict[str, str],
) -> Plan:
  """What the command line asks of a model, and the model's own values where it says nothing."""
  compared, on_cpu = MODELS[model], backend == "cpu"
  allocators = arguments.allocators or ("default,kept" if on_cpu and with_peer else "kept")
  return Plan(
    model,
    [work for work in arguments.works.split(",") if work in compared.works],
    arguments.frames or [compared.frames],
    arguments.batches or (compared.batches if on_cpu else compared.gpu_batches),
    arguments.size or compared.size,
    arguments.precision or ("float32" if on_cpu else "bfloat16"),
    allocators.split(","),
    with_peer,
    not arguments.unchecked,
    arguments.turns,
    arguments.seconds,
    environment,
  )


def _forms(arguments: argparse.Namespace, layouts: Sequence[str]) -> list[dict[str, Any]]:
  """The forms that the peer is tried in, of the layouts that it can take."""
  if arguments.peer_layout in layouts:
    layouts = (arguments.peer_layout,)
  compile_too = {"auto": (False, True), "yes": (True,), "no": (False,)}[arguments.peer_compile]
  return [
    {"layout": layout, "compiled": compiled} for compiled in compile_too for layout in layouts
  ]


def compare(
  arguments: argparse.Namespace, model: str, cache: str, known: dict[str, Any]
) -> dict[str, Any]:
  """All measurements of a model, as the JSON object has them.

  Args:
    arguments: of the command line.
    model: one of `MODELS`.
    cache: a folder where compiled programs are kept.
    known: what was asked for earlier models already; is added to.

  Raises:
    BenchmarkError: our side cannot run, or nothing could be measured.
  """
  from benchmarks import outcome

  # Caches that start empty, so that compile times are true; they serve the later processes.
  environment = {
    "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
    "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
  }
  peer_about = None if arguments.no_peer else _peer_about(model, environment, known)
  if peer_about:
    # Where PyTorch has a GPU, both use it, and JAX may not quietly fall back.
    environment["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(peer_about["backend"], "cpu")
  if OURS not in known:
    with Side(OURS, model, MODELS[model], "float32", True, environment) as ours:
      known[OURS] = ours.ask("about")
  about = known[OURS]
  environment.setdefault("JAX_PLATFORMS", about["backend"])
  plan = _plan(arguments, model, about["backend"], peer_about is not None, environment)
  print(f"{model}, {CLASSES} classes, {plan.precision}, on {about['device']}", flush=True)
  candidates = _forms(arguments, peer_about["layouts"] if peer_about else ())
  entry: dict[str, Any] = {"error": None, "peer_forms": [], "failed": []}
  rows: list[dict[str, Any]] = []
  try:
    rows += _rows(plan, candidates, entry)
  except KeyboardInterrupt:
    entry["failed"].append("interrupted: what was not measured by then is missing")
  if not rows:
    raise BenchmarkError(f"{model}: nothing could be measured, see the lines above.")
  return {
    **ratios(rows, plan.frames[0]),
    "beside": MODELS[model].beside if plan.with_peer else None,
    "backend": about["backend"],
    "device": about["device"],
    "precision": plan.precision,
    "turns": plan.turns,
    "peer_threads": peer_about["threads"] if peer_about else None,
    "date": datetime.date.today().isoformat(),
    "machine": outcome.processor(),
    "versions": outcome.versions(),
    **entry,
    "rows": rows,
  }


def _draw(models: dict[str, Any]) -> Callable[[Sequence[Any]], None]:
  """Every model's ratios, in the order of `MODELS`."""
  from hybrid_video.report import figures

  names = [name for name in MODELS if "ratio_train" in models.get(name, {})]

  def draw(axes: Sequence[Any]) -> None:
    (ax,) = axes
    for shift, work, colour in ((-0.2, "forward", figures.BLUE), (0.2, "train", figures.ORANGE)):
      found = [(i + shift, models[name].get(f"ratio_{work}")) for i, name in enumerate(names)]
      places = [place for place, ratio in found if ratio]
      label = {"forward": "forward", "train": "training step"}[work]
      bars = ax.barh(places, [ratio for _, ratio in found if ratio], 0.4, color=colour, label=label)
      ax.bar_label(bars, fmt="%.2f", padding=2)
    ax.axvline(1.0, color=figures.INK, linewidth=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_title("PyTorch's time / ours")
    ax.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.4, -0.1))

  return draw


def _keep(arguments: argparse.Namespace, model: str, entry: dict[str, Any]) -> None:
  """Puts what was measured of a model into the file of results and draws all that is there."""
  from benchmarks import outcome

  if arguments.results:
    outcome.RESULTS = arguments.results
  name = arguments.name or f"train_step_{entry['backend']}"
  every = outcome.keep(name, {model: entry}, [*MODELS])
  if compared := sum("ratio_train" in entry for entry in every.values()):
    outcome.plot(name, _draw(every), height=1.2 + 0.45 * compared)


def _tell(measured: dict[str, Any]) -> None:
  """Prints a table of what was measured, and the JSON object."""
  from benchmarks import outcome

  rows = [row for entry in measured.values() for row in entry["rows"]]
  shown = [key for key in _SHOWN if any(key in row for row in rows)]
  print("\n" + outcome.table([{key: row.get(key) for key in shown} for row in rows]) + "\n")
  alone = next(iter(measured.values())) if len(measured) == 1 else {}
  print(json.dumps({**alone, "models": measured}))


def _numbers(text: str) -> list[int]:
  return [int(part) for part in text.split(",")]


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--model", type=named, default=["r2plus1d_18"], help=f"all, or of {', '.join(MODELS)}"
  )
  parser.add_argument("--batches", type=_numbers, help="such as 2,4,8; each model has its own")
  parser.add_argument("--frames", type=_numbers, help="clip lengths, such as 16,8,32")
  parser.add_argument("--size", type=int, help="height and width, pixels")
  parser.add_argument("--precision", choices=["float32", "bfloat16"], help="GPU: bfloat16")
  parser.add_argument("--works", default=",".join(WORKS), help="forward, train or both")
  parser.add_argument("--allocators", default="", help="default,kept on a CPU; kept on a GPU")
  parser.add_argument("--peer_compile", choices=["auto", "yes", "no"], default="auto")
  parser.add_argument("--peer_layout", default="auto", help="contiguous or channels_last_3d")
  parser.add_argument("--no_peer", action="store_true", help="ours alone; needs no PyTorch")
  parser.add_argument("--unchecked", action="store_true", help="without comparing outputs first")
  parser.add_argument("--turns", type=int, default=5, help="of each side")
  parser.add_argument("--seconds", type=float, default=1.0, help="least length of a turn")
  parser.add_argument("--name", help="of the results; train_step_cpu or train_step_gpu")
  parser.add_argument("--results", type=pathlib.Path, help="folder to write them to")
  parser.add_argument("--serve", choices=[OURS, PEER], help=argparse.SUPPRESS)
  given = parser.parse_args()
  if unknown := {*given.works.split(",")} - {*WORKS}:
    parser.error(f"--works has {', '.join(unknown)}: expected {' or '.join(WORKS)}")
  return given


def _serve(arguments: argparse.Namespace) -> None:
  """Is one side: answers questions until there are no more."""
  (model,), (frames,) = arguments.model, arguments.frames
  compared = dataclasses.replace(MODELS[model], frames=frames, size=arguments.size)
  kept = arguments.allocators == "kept"

  def make() -> sides.Worker:
    side = sides.make_side(arguments.serve, arguments.precision, compared, kept)
    return sides.Worker(side, compared)

  sides.serve(make)


def main() -> None:
  """Measures and prints."""
  arguments = _parse()
  if arguments.serve:
    _serve(arguments)
    return
  measured: dict[str, Any] = {}
  known: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as cache:
    for model in arguments.model:
      try:
        measured[model] = compare(arguments, model, cache, known)
        _keep(arguments, model, measured[model])
      except BenchmarkError as error:
        print(error, file=sys.stderr, flush=True)
  if not measured:
    sys.exit(1)
  _tell(measured)


if __name__ == "__main__":
  main()
