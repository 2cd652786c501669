"""A run from start to end: data, model, training loop, evaluation, results. Read top to bottom.

In: a locked config and a work directory. Out: checkpoints, TensorBoard events, `results.json` and
`figures/` in the work directory.
"""

from collections.abc import Callable
import functools
import json
import logging
import pathlib
import time
from typing import Any

from clu import parameter_overview, periodic_actions
from flax import nnx
import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from hybrid_video import (
  augmentation,
  checkpoints,
  compilation,
  evaluation,
  inspection,
  metrics,
  models,
  optimizers,
  sharding,
  steps,
  weights,
)
from hybrid_video.datasets import records, video_files
from hybrid_video.report import data_page, figures, results, writers
from hybrid_video.weights import sources
import input_pipeline

log = logging.getLogger("hybrid_video")

_SHEET_CLIPS = 8


class TrainingError(RuntimeError):
  """Training that cannot go on; the message says at which step and what was found."""


def _is_first() -> bool:
  """Whether this process is the one that writes what people read; checkpoints are written by all."""
  return jax.process_index() == 0


def _within(workdir: pathlib.Path, path: str) -> str:
  return path.replace("{workdir}", str(workdir))


def load_data(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> records.Records:
  """Stored records for a config, made first if need be."""
  return input_pipeline.prepare(
    dataset=config.dataset,
    data_dir=_within(workdir, config.data_dir),
    records_dir=_within(workdir, config.records_dir),
    scale=video_files.StoredScale(**config.stored),
    allow_missing=config.allow_missing,
    missing_allowed=tuple(config.missing_allowed),
    download=config.download,
    mirrors_file=_within(workdir, config.mirrors),
    test_share=config.test_share,
    made_films=config.made_films,
    seed=config.seed,
  )


def make_network(config: ml_collections.ConfigDict, num_classes: int) -> steps.Network:
  """The config's model as pure functions."""
  options = config.model.to_dict()
  build = functools.partial(
    models.create, options.pop("name"), num_classes=num_classes, seed=config.seed, **options
  )
  return steps.make_network(build, tuple(config.mean), tuple(config.std))


def checkpoint_identity(
  config: ml_collections.ConfigDict, class_names: tuple[str, ...]
) -> dict[str, Any]:
  """What must agree for a checkpoint to fit: all that shapes parameters and optimiser state."""
  model = {
    k: v
    for k, v in config.model.items()
    if k not in ("dtype", "dropout", "remat", "freeze_statistics")
  }
  optimizer = {"name": config.optimizer.name, "clips_gradients": config.optimizer.clip_norm > 0}
  optimizer["frozen_parts"] = list(config.optimizer.freeze)
  return {"model": model, "optimizer": optimizer, "classes": list(class_names)}


def _check_finite(loss: float, step: int, saved: int | None) -> None:
  if not np.isfinite(loss):
    raise TrainingError(
      f"The loss is {loss} at step {step}. The last checkpoint is of step {saved}; lower "
      "--config.optimizer.learning_rate or set --config.optimizer.clip_norm."
    )


def _train_loop(
  state: steps.State,
  step_fn: Callable[..., tuple[steps.State, dict[str, jax.Array]]],
  *,
  schedule: optimizers.Schedule,
  compiled: compilation.Compilations,
  config: ml_collections.ConfigDict,
  found: records.Records,
  places: np.ndarray,
  mesh: jax.sharding.Mesh,
  kept: checkpoints.Checkpoints,
  workdir: pathlib.Path,
  total_steps: int,
) -> steps.State:
  first_step = int(state["step"])
  # What JAX makes of a larger seed, told to it as the type that the compiled step takes.
  seed = np.uint32(config.seed % 2**32)
  steps_per_epoch = len(places) / config.batch_size
  save_every = max(1, round(config.checkpoint_every_epochs * steps_per_epoch))
  writer = None
  if _is_first():
    writer = writers.create(workdir, first_step=first_step, steps=total_steps)
  batches = input_pipeline.training_batches(
    found,
    places,
    input_pipeline.ClipSettings(**config.clip),
    batch_size=config.batch_size,
    first_step=first_step,
    steps=total_steps,
    seed=config.seed,
    service=config.data_service,
  )
  profile = periodic_actions.Profile(logdir=str(workdir / "tensorboard"), num_profile_steps=3)
  waiting: list[dict[str, jax.Array]] = []
  started = reported = time.monotonic()
  reported_step = first_step
  for step, batch in enumerate(batches, first_step + 1):
    batch.pop("places")
    learning_rate = schedule(step - 1)
    state, parts = step_fn(state, sharding.put_batch(batch, mesh), learning_rate, seed)
    waiting.append(parts)
    if config.profile:
      profile(step)
    if step == first_step + 1:
      # The first step compiles: it is not part of any speed.
      jax.block_until_ready(state)
      log.info("Compiled up to the first step: %s", compiled)
      started = reported = time.monotonic()
    last = step == total_steps
    saves = last or step % save_every == 0
    if saves or step % config.log_every_steps == 0:
      # What is saved is known to be finite.
      _check_finite(float(parts["loss"]), step, kept.latest_step())
    if last or step % config.log_every_steps == 0:
      now = time.monotonic()
      pace = (now - started) / max(step - first_step - 1, 1)
      recent = (now - reported) / max(step - reported_step, 1) or pace
      means = metrics.means(jax.device_get(waiting))
      if writer:
        writer.write_scalars(
          step,
          {
            "epoch": step / steps_per_epoch,
            "learning_rate": float(learning_rate),
            **{f"train/{k}": v for k, v in means.items()},
            "clips_per_second": config.batch_size / recent if recent else 0.0,
            "seconds_left": pace * (total_steps - step),
          },
        )
      waiting.clear()
      reported, reported_step = time.monotonic(), step
    if saves:
      kept.save(step, state)
  if writer:
    writer.close()
  return state


def _draw_figures(
  workdir: pathlib.Path,
  found: records.Records,
  evaluator: evaluation.Evaluator,
  tested: evaluation.Evaluation,
) -> None:
  plan = evaluator.plan("test")
  # One clip each of classes spread over the list, drawn so that films differ too.
  labels = found.labels[plan.places[plan.rows]]
  classes = np.unique(labels)
  shown = classes[np.linspace(0, len(classes) - 1, min(_SHEET_CLIPS, len(classes))).astype(int)]
  rng = np.random.default_rng(0)
  chosen = [int(rng.choice(np.flatnonzero(labels == label))) for label in shown]
  few = plan.take(chosen)
  # Each process has its share of a batch's rows.
  batches = [
    multihost_utils.process_allgather(batch["clips"], tiled=True)
    for batch in evaluator.batches(few)
  ]
  clips = np.concatenate(batches)[: len(chosen)]
  if not _is_first():
    return
  folder = workdir / "figures"
  folder.mkdir(exist_ok=True)
  chance = 1 / len(found.class_names)
  history = writers.read_history(workdir)
  figures.learning_curves(folder / "learning_curves.png", history, tested.numbers, chance)
  figures.confusion_matrix(folder / "confusion.png", tested.confusion(), found.class_names)
  predicted = tested.probabilities.argmax(-1)
  names = found.class_names
  figures.contact_sheet(
    folder / "clips.png",
    clips,
    [names[found.labels[plan.places[row]]] for row in few.rows],
    [names[predicted[row]] for row in few.rows],
  )


def _evaluate(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  found: records.Records,
  network: steps.Network,
  mesh: jax.sharding.Mesh,
  state: steps.State,
) -> dict[str, Any]:
  """Evaluates, draws the figures, and gives what `results.json` is to hold of it."""
  evaluator = evaluation.Evaluator(
    found,
    network,
    input_pipeline.ClipSettings(**config.clip),
    split=config.split,
    validation_share=config.validation_share,
    batch_size=config.eval_batch_size,
    mesh=mesh,
  )
  tested = evaluator.run(state, "test")
  _draw_figures(workdir, found, evaluator, tested)
  outcome: dict[str, Any] = {
    "config": json.loads(config.to_json_best_effort()),
    "dataset": config.dataset,
    "split": config.split,
    "classes": list(found.class_names),
    "stored_videos": len(found),
    "missing": {
      "count": len(found.missing) + len(found.broken),
      "allowed": bool(config.allow_missing),
    },
    "broken": found.broken,
    "protocol": evaluator.protocol,
    "step": int(state["step"]),
    "test": dict(tested.numbers),
    "params_digest": results.params_digest(state["params"]),
  }
  if config.validation_share:
    outcome["validation"] = dict(evaluator.run(state, "validation").numbers)
  if config.evaluate_shuffled:
    shuffled = evaluator.run(state, "test", shuffled=True)
    outcome["test"]["shuffled_video_top1"] = shuffled.numbers["video_top1"]
  if config.evaluate_train:
    outcome["train"] = dict(evaluator.run(state, "train").numbers)
  return outcome


def run(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, *, mode: str = "train"
) -> dict[str, Any]:
  """Trains and evaluates, or evaluates only.

  Args:
    config: as the files in `configs/` make it.
    workdir: where everything goes; a run that is already in it goes on from its last checkpoint.
    mode: "train", "evaluate", "export" (the last checkpoint, a video ResNet's, as a safetensors
      file under torchvision's names), or "inspect" (a page about the data, without a model).

  Returns:
    What `results.json` holds; of an export or inspection, what was written.

  Raises:
    ValueError: a value, file or folder that cannot serve; the message says what to do.
    TrainingError: the loss is no longer finite.
  """
  with compilation.counted() as compiled:
    return _run(config, workdir, mode, compiled)


def _run(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  mode: str,
  compiled: compilation.Compilations,
) -> dict[str, Any]:
  began = time.monotonic()
  workdir = pathlib.Path(workdir).absolute()
  workdir.mkdir(parents=True, exist_ok=True)
  clip = input_pipeline.ClipSettings(**config.clip)
  augmented = augmentation.AugmentationSettings(**config.augmentation)
  if mode == "inspect":
    found = load_data(config, workdir)
    return inspection.run(
      found,
      workdir / inspection.FOLDER,
      split=config.split,
      validation_share=config.validation_share,
      clip=clip,
      augment=augmented,
      mean=tuple(config.mean),
      std=tuple(config.std),
      seed=config.seed,
    )
  mesh = sharding.make_mesh()
  for size in (config.batch_size, config.eval_batch_size):
    sharding.check_batch_size(size, mesh)

  found = load_data(config, workdir)
  places = input_pipeline.select(found, config.split, "train", config.validation_share)
  input_pipeline.select(found, config.split, "test")
  if not config.allow_missing:
    input_pipeline.check_training_classes(found, config.split)
  log.info("%s", data_page.text(data_page.summarise(found, config.split, config.validation_share)))
  lacking = [*found.missing, *found.broken]
  if lacking:
    log.warning("%d listed videos are missing or broken, by leave of allow_missing", len(lacking))

  steps_per_epoch = len(places) / config.batch_size
  total_steps = max(1, round(config.epochs * steps_per_epoch))
  settings = optimizers.OptimizerSettings(**config.optimizer)
  schedule = optimizers.make_schedule(settings, steps=total_steps, steps_per_epoch=steps_per_epoch)
  optimizer = optimizers.make_optimizer(settings)
  network = make_network(config, len(found.class_names))
  augment = augmentation.make_augment(
    augmented, mesh=mesh, normalise=network.normalise, num_classes=len(found.class_names)
  )
  shapes = jax.eval_shape(functools.partial(steps.init_state, network, optimizer))
  state_shardings = jax.tree.map(lambda _: sharding.replicated(mesh), shapes)
  abstract = jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
    shapes,
    state_shardings,
  )
  parameters = models.parameter_counts(abstract["params"])

  identity = checkpoint_identity(config, found.class_names)
  kept = checkpoints.Checkpoints(workdir, identity, config.keep_checkpoints)
  latest = kept.latest_step()
  if mode != "train" or latest is not None:
    if config.init_from and mode == "train":
      log.info("Going on from step %s; %s was for the first start", latest, config.init_from)
    state = kept.restore(abstract)
  else:
    model = network.build()
    if config.init_from:
      weights.load_pretrained(
        model, sources.locate(config.init_from), replace_head=config.replace_head
      )
    state = jax.device_put(steps.init_state(network, optimizer, model), state_shardings)
  if mode == "export":
    model = nnx.merge(network.evaluation, state["params"], state["batch_stats"])
    path = weights.save_torchvision(model, workdir / "model.safetensors")
    log.info("Written under torchvision's names: %s", path)
    kept.close()
    return {"exported": str(path), "step": int(state["step"])}
  if _is_first():
    (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")

  done = int(state["step"])
  if mode == "evaluate" or done >= total_steps:
    log.info("The checkpoint of step %d of %d: evaluating only", done, total_steps)
  else:
    overview = parameter_overview.get_parameter_overview(state["params"], include_stats=False)
    log.info("%s", overview)
    parts = ", ".join(f"{part} {count:,}" for part, count in parameters.items())
    log.info("Parameters: %s", parts)
    log.info(
      "Training on %d device(s) (%s) from step %d to %d, %g epochs of %d clips, batch %d",
      mesh.size,
      jax.devices()[0].device_kind,
      done,
      total_steps,
      config.epochs,
      len(places),
      config.batch_size,
    )
    step_fn = jax.jit(
      functools.partial(steps.train_step, network=network, optimizer=optimizer, augment=augment),
      donate_argnums=0,
      out_shardings=(state_shardings, sharding.replicated(mesh)),
    )
    state = _train_loop(
      state,
      step_fn,
      schedule=schedule,
      compiled=compiled,
      config=config,
      found=found,
      places=places,
      mesh=mesh,
      kept=kept,
      workdir=workdir,
      total_steps=total_steps,
    )
  kept.close()

  outcome = _evaluate(config, workdir, found, network, mesh, state)
  outcome["parameters"] = parameters
  outcome["compilation"] = compiled.as_numbers()
  outcome["seconds"] = round(time.monotonic() - began, 1)
  if _is_first():
    path = results.write(workdir, outcome)
    log.info("%s", results.summary(outcome))
    log.info("Compiled in all: %s", compiled)
    log.info("Results: %s", path)
    log.info("Figures: %s", workdir / "figures")
  return outcome
