"""Going on with a run: what a checkpoint says of how far it is, and which settings may be others now.

In: the experiment of a checkpoint and the one that is asked for. Out: lines that say what is different
and harmless, or an error that lists what changes the run's meaning.
"""

from collections.abc import Collection, Iterator, Mapping
import dataclasses
import hashlib
import json
import logging
from typing import Any, Self

import numpy as np

from hybrid_video import errors, settings
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment
from hybrid_video.validation import Tracker

log = logging.getLogger("hybrid_video")

# Settings that leave every update what it is: how often something is written, where data come from (the
# data themselves are compared), how memory and devices are used. A group stands for all in it.
_HARMLESS = frozenset({
  "log_every_steps", "checkpoint_every_epochs", "checkpoint_every_steps", "keep_checkpoints",
  "profile_steps", "wandb_project", "evaluate_shuffled", "evaluate_train", "eval_batch_size",
  "data_service", "resume_changed", "fsdp", "model.remat", "init_from", "init_classes",
  "replace_head", "data_dir", "more_videos", "replace_prefix", "download", "mirrors", "records_dir",
  "beam_pipeline_options", "made_films", "made_seed", "made_look", "made_gap_seconds",
  "allow_missing", "missing_allowed", "hash_whole_files",
  "decoding", "evaluation", "validation", "test_parameters", "max_skipped_steps", "epochs",
})  # fmt: skip
# Not worth a line.
_UNSAID = frozenset({"resume_changed"})
# With these, what was the best so far cannot be compared with what comes.
_OF_VALIDATION = (
  "evaluation",
  "validation.metric",
  "validation.on",
  "validation_share",
  "split",
  "test_share",
  "folds",
)
_TRAINING_LIST = "training videos"


class ResumeError(errors.UserError):
  """Settings that change the meaning of a run that is to go on."""


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run is, beside its arrays; a part of every checkpoint.

  Attributes:
    finished: the last step whose report and validation are written.
    tracker: the best validation so far.
    data: digest of the training list, see `data_digest`.
    videos: of the training list.
    sums: metric sums since the last report, and `steps`, their number.
    offset: clips that stood before step 0, so that step s begins with clip s x batch size + offset of
      all epochs; other than 0 after the batch size was changed.
  """

  finished: int
  tracker: Tracker
  data: str
  videos: int
  sums: Mapping[str, float] = dataclasses.field(default_factory=dict)
  offset: int = 0

  def to_json(self) -> dict[str, Any]:
    """Nested dicts, numbers and texts."""
    return {**dataclasses.asdict(self), "sums": dict(self.sums), "tracker": self.tracker.to_json()}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> Self:
    """The progress that `to_json` described."""
    return cls(**{**values, "tracker": Tracker(**values["tracker"])})


def data_digest(records: Records, video_ids: np.ndarray) -> str:
  """SHA-256 over the names, labels, contents and stored sizes of videos, in their order."""
  digest = hashlib.sha256()
  columns = ("names", "labels", "file_digest", "num_frames", "fps", "height", "width")
  for column in columns:
    digest.update(json.dumps(getattr(records, column)[video_ids].tolist()).encode())
  return digest.hexdigest()


def check(
  saved: Experiment, progress: Progress, step: int, wanted: Experiment, data: str, videos: int
) -> Progress:
  """Compares a run's settings and training list with what is asked for now.

  Args:
    saved, progress, step: of its checkpoint.
    wanted: what is asked for.
    data: digest of the training list now.
    videos: in it.

  Returns:
    Its progress, the clips seen so far counted in the batch size of now.

  Raises:
    ResumeError: settings that change its meaning, unless `resume_changed` is set.
  """
  harmless, changing = _differences(saved, wanted)
  if data != progress.data:
    if progress.videos != videos:
      changing.append(f"{_TRAINING_LIST}: {progress.videos} before, {videos} now")
    else:
      changing.append(f"{_TRAINING_LIST}: {videos}, and not the same files, labels or frames")
  if changing and not wanted.resume_changed:
    raise ResumeError(
      f"The run in the work directory is at step {step}, and what is asked for is not the "
      "same training:\n" + "".join(f"  {line}\n" for line in changing) + "Set them back; or name "
      f"another --workdir; or go on with them from here on: {wanted.path('resume_changed')}=True."
    )
  for line in harmless:
    log.info("Going on with another setting: %s", line)
  for line in changing:
    log.warning("Changed from step %d on: %s", step, line)
  if saved.batch_size != wanted.batch_size:
    clips = step * saved.batch_size + progress.offset
    progress = dataclasses.replace(progress, offset=clips - step * wanted.batch_size, sums={})
  return dataclasses.replace(progress, data=data, videos=videos)


def with_comparable_best(saved: Experiment, progress: Progress, wanted: Experiment) -> Progress:
  """A run's progress, the best so far forgotten where other settings measure what is to come."""
  changed = (path for path, _, _ in _changed(saved, wanted))
  if not any(_in_groups(path, _OF_VALIDATION) for path in changed):
    return progress
  log.warning("Validation is another from here on: the best so far is forgotten")
  metric = wanted.validation.metric_of(wanted.task)
  return dataclasses.replace(progress, tracker=Tracker(metric))


def _differences(saved: Experiment, wanted: Experiment) -> tuple[list[str], list[str]]:
  """Lines on settings that are others: the harmless ones, and those that change a run's meaning."""
  harmless: list[str] = []
  changing: list[str] = []
  for path, before, now in _changed(saved, wanted):
    if path in _UNSAID:
      continue
    line = f"--config.{path}: {before} before, {now} now"
    if path == "epochs":
      line += f" ({wanted.optimizer.schedule} schedule, worked out for {wanted.epochs:g} epochs)"
    (harmless if _in_groups(path, _HARMLESS) else changing).append(line)
  return harmless, changing


def _changed(saved: Experiment, wanted: Experiment) -> Iterator[tuple[str, str, str]]:
  """The paths of the settings that are others, with both values as messages show them."""
  before, now = (
    {path: errors.printable(repr(value)) for path, value in settings.flat(one.to_json()).items()}
    for one in (saved, wanted)
  )
  return settings.differing(before, now)


def _in_groups(path: str, groups: Collection[str]) -> bool:
  return any(path == group or path.startswith(f"{group}.") for group in groups)
