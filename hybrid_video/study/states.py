"""How far a run of a study is, by what is in its folder.

In: a run and the study's work directory. Out: a state; and how results differ from what was asked for.
"""

import json
from typing import Any

from etils import epath

from hybrid_video import files, settings
from hybrid_video.report import results_file
from hybrid_video.study.settings import Run

FAILED = "failed.json"
STATES = DONE, RUNNING, LEFT, FAILURE = "done", "running", "left", "failed"
# A place may have another name where the study goes on, and how often something is written changes no result.
_UNCOMPARED = frozenset({
  "data_dir", "more_videos", "records_dir", "mirrors", "download", "replace_prefix", "data_service", "resume_changed",
  "log_every_steps", "checkpoint_every_epochs", "checkpoint_every_steps", "keep_checkpoints", "profile_steps",
  "wandb_project", "beam_pipeline_options", "hash_whole_files", "fsdp",
})  # fmt: skip


def state_of(workdir: epath.Path, run: Run) -> str:
  """`DONE`, or `FAILURE` or `LEFT`, by what is in the run's folder."""
  folder = workdir / run.folder
  if (outcome := results_file.read(folder)) and not differences(run, outcome):
    # The file is written once more with each list.
    whole = not run.experiment.validation_share or "validation" in outcome
    whole &= not run.experiment.evaluate_train or "train" in outcome
    if whole:
      return DONE
  return FAILURE if (folder / FAILED).exists() else LEFT


def differences(run: Run, outcome: dict[str, Any]) -> list[str]:
  """Lines on what makes results those of another experiment than the run's; none if they are its own."""
  theirs, ours = (
    {
      path: value
      for path, value in settings.flat(json.loads(files.as_json(values))).items()
      if path not in _UNCOMPARED
    }
    for values in (outcome.get("config", {}), run.experiment.to_json())
  )
  # Where the study lies, the run that this one starts from lies too.
  first = run.starts_from
  if first and str(theirs.get("init_from", "")).endswith(f"/{first}"):
    theirs["init_from"] = ours["init_from"]
  return [
    f"{path}: {theirs_value!r} there, {value!r} asked for"
    for path, theirs_value, value in settings.differing(theirs, ours)
  ]
