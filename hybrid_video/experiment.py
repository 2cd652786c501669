"""An experiment: every setting of a run, frozen, typed and checked before a file is touched.

In: a ConfigDict, as the files in `configs/` make it, with the command line's changes; or the JSON of
a checkpoint. Out: an `Experiment`. `configuration` makes ConfigDicts.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Self

import ml_collections

from hybrid_video import model_settings, models
from hybrid_video.analysis.aggregation import WHOLE_VIDEO
from hybrid_video.augmentation import AugmentationSettings
from hybrid_video.decoding.storing import DecodingLimits, StoredScale
from hybrid_video.model_settings import ModelSettings as ModelSettings
from hybrid_video.model_settings import check_clips
from hybrid_video.optimizers import OptimizerSettings
from hybrid_video.sampling.clip_settings import ClipSettings, EvaluationSettings, Sampling
from hybrid_video.settings import SettingError, Settings, setting
from hybrid_video.validation import ValidationSettings

DATASETS = (
  "hmdb51",
  "hmdb51_layout",
  "made_actions",
  "made_events",
  "ucf101",
  "kinetics",
  "folder",
)
MADE_LOOKS = ("plain", "textured")
DEFAULT_MODEL = "r2plus1d_18"
_MEAN, _STD = models.pixel_statistics(DEFAULT_MODEL)


@dataclasses.dataclass(frozen=True)
class Experiment(Settings):
  """Every setting of a run.

  "{workdir}" in a path stands for the work directory.

  Attributes:
    seed: of initial values, order, windows, crops, mirroring, augmentation and dropout.
    dataset: hmdb51, hmdb51_layout, ucf101, kinetics, folder, made_actions or made_events.
    data_dir: folder of the videos and their lists, or of the archives that hold them.
    more_videos: pretraining: a folder whose videos are trained on too, see `datasets.unlabelled.joined`.
    replace_prefix: kinetics, folder: OLD=NEW, what paths in the lists begin with and what that is here.
    download: hmdb51, ucf101: fetch the official archives into `data_dir` first.
    mirrors: a JSON file of more places to fetch them from.
    records_dir: where stored frames are kept; "" is ~/tensorflow_datasets.
    beam_pipeline_options: have Apache Beam decode and store, on the runner of these options, as TFDS's
      flag of this name has them: `runner=DirectRunner,direct_num_workers=2`. "" is this machine.
    allow_missing: go on although listed videos are missing or broken, any of them.
    missing_allowed: names of videos that may be missing or broken.
    made_films: made_actions, made_events: how many films to make.
    made_seed: made_actions, made_events: of the videos; apart from `seed`, so that trainings of other
      seeds see the same videos.
    made_look: made_actions, made_events: plain, or textured: other shapes, backgrounds and colours, the
      same motion.
    made_gap_seconds: made_events: seconds of stillness between a video's two events.
    test_share: folder: share of the groups held out for the test.
    folds: folder: in place of that, this many splits of whole groups, each of which tests one fold; 0
      is by `test_share`.
    split: official split, or fold, from 1.
    validation_share: share of the training list's groups that become the validation list; 0 where the
      data set has one of its own.
    training_share: share of the remaining groups of the training list that are trained on.
    data_service: address of a tf.data service dispatcher; "" is this process.
    stored: at which size frames are stored. Width 0 keeps every shape, with the height the short
      side's; otherwise videos of another shape keep theirs too, unless they are stretched.
    decoding: what decoding a video may take.
    hash_whole_files: whether changed files are told by all of their bytes, and not by their size, time
      and ends.
    clip: training clips.
    evaluation: evaluation clips; frames, window and crop are the training clip's unless set.
    augmentation: on the device, the same for all frames of a clip, on top of crop and mirroring.
    mean, std: per channel, of pixels in 0 to 1; by default the statistics of the model's published
      weights.
    model: the model and its options.
    init_from: weights to start from: a published name, a URL, a file or another work directory.
    init_classes: the class names of those weights by id, where they do not say them: kinetics400, ssv2,
      a text file with one name a line, or "same" for the data set's own.
    replace_head: whether a head of other classes starts fresh; if not, it is an error.
    epochs: of training.
    batch_size: clips a step, over all devices.
    eval_batch_size: clips at a time in evaluation, over all devices.
    optimizer: how parameters are updated.
    log_every_steps: steps from one report to the next.
    micro_batches: parts that a batch is computed in, one after the other, where it does not fit in
      memory; their gradients are added up before the one update. BatchNorm takes its statistics over
      each part.
    fsdp: devices that parameters and optimizer state are split over; 1 keeps them whole on each.
    ema_decay: of the exponential moving average of parameters and batch statistics, which is then
      what is validated, tested and saved for use, with the raw ones beside it; 0 is none.
    max_skipped_steps: updates that are not finite and may be left out; the next one ends the run.
    validation: what is evaluated while training, and what follows from it.
    test_parameters: "last" or "best": which parameters are tested and used.
    resume_changed: go on with a run although settings that change its meaning are others now.
    checkpoint_every_epochs: epochs from one checkpoint to the next.
    checkpoint_every_steps: steps from one checkpoint to the next, in place of epochs; 0 is by epochs.
    keep_checkpoints: how many of the newest are kept; the best is kept beside them.
    profile_steps: first and last step, from 1, that a profile for TensorBoard is written of.
    wandb_project: a project of Weights & Biases that metrics are sent to as well; "" is none.
    evaluate_shuffled: whether the test list is evaluated once more with each clip's frames in
      random order.
    evaluate_train: whether the training list is evaluated too.
  """

  seed: int = setting(0, at_least=0, at_most=2**63 - 1)
  dataset: str = setting("hmdb51", choices=DATASETS)
  data_dir: str = setting("")
  more_videos: str = setting("")
  replace_prefix: str = setting("")
  download: bool = setting(False)
  mirrors: str = setting("")
  records_dir: str = setting("")
  beam_pipeline_options: str = setting("")
  allow_missing: bool = setting(False)
  missing_allowed: tuple[str, ...] = setting(())
  made_films: int = setting(0, at_least=0)
  made_seed: int = setting(0, at_least=0, at_most=2**63 - 1)
  made_look: str = setting("plain", choices=MADE_LOOKS)
  made_gap_seconds: float = setting(0.0, at_least=0, at_most=60)
  test_share: float = setting(0.2, above=0, below=1)
  folds: int = setting(0, at_least=0)
  split: int = setting(1, at_least=1)
  validation_share: float = setting(0.0, at_least=0, below=1)
  training_share: float = setting(1.0, above=0, at_most=1)
  data_service: str = setting("")
  stored: StoredScale = setting(StoredScale)
  decoding: DecodingLimits = setting(DecodingLimits)
  hash_whole_files: bool = setting(False)
  clip: ClipSettings = setting(ClipSettings)
  evaluation: EvaluationSettings = setting(EvaluationSettings)
  augmentation: AugmentationSettings = setting(AugmentationSettings)
  mean: tuple[float, float, float] = setting(_MEAN, at_least=0, at_most=1)
  std: tuple[float, float, float] = setting(_STD, above=0)
  model: ModelSettings = dataclasses.field(
    default_factory=lambda: ModelSettings.resolve({"name": DEFAULT_MODEL}, {})
  )
  init_from: str = setting("")
  init_classes: str = setting("")
  replace_head: bool = setting(True)
  epochs: float = setting(100.0, above=0)
  batch_size: int = setting(8, at_least=1)
  eval_batch_size: int = setting(16, at_least=1)
  optimizer: OptimizerSettings = setting(OptimizerSettings)
  log_every_steps: int = setting(50, at_least=1)
  micro_batches: int = setting(1, at_least=1)
  fsdp: int = setting(1, at_least=1)
  ema_decay: float = setting(0.0, at_least=0, below=1)
  max_skipped_steps: int = setting(0, at_least=0)
  validation: ValidationSettings = setting(ValidationSettings)
  test_parameters: str = setting("last", choices=("last", "best"))
  resume_changed: bool = setting(False)
  checkpoint_every_epochs: float = setting(1.0, above=0)
  checkpoint_every_steps: int = setting(0, at_least=0)
  keep_checkpoints: int = setting(2, at_least=1)
  profile_steps: tuple[int, ...] = setting((), at_least=1)
  wandb_project: str = setting("")
  evaluate_shuffled: bool = setting(False)
  evaluate_train: bool = setting(False)

  def validate(self) -> None:
    """Checks what holds between settings of several groups."""
    if self.init_classes and not self.init_from:
      raise SettingError(
        f"{self.path('init_classes')} is {self.init_classes!r} and {self.path('init_from')} is not set: "
        "it names the classes of weights to start from. Set both or none."
      )
    self.optimizer.check_head_first(self.task, self.init_from, self.epochs)
    if self.folds and (self.folds == 1 or self.dataset != "folder"):
      raise SettingError(
        f"{self.path('folds')} is {self.folds} with {self.path('dataset')}={self.dataset}: expected 2 or "
        "more, and the data set folder; others have splits of their own. Set it to 0, or fix these."
      )
    if self.batch_size % self.micro_batches:
      raise SettingError(
        f"{self.path('micro_batches')} is {self.micro_batches}: a batch of {self.batch_size} does not "
        "divide into so many parts."
      )
    first_last = self.profile_steps
    if first_last and (len(first_last) != 2 or first_last[0] > first_last[1]):
      raise SettingError(
        f"{self.path('profile_steps')} is {first_last}: expected a first and a last step, such as (10, 12)."
      )
    if self.task == models.PRETRAINING and self.validation.metric not in ("", "loss"):
      raise SettingError(
        f"{self.validation.path('metric')} is {self.validation.metric!r}, and {self.model.name} has no "
        "classes: set it to loss."
      )
    if self.more_videos and self.task != models.PRETRAINING:
      raise SettingError(
        f"{self.path('more_videos')} is {self.more_videos!r}: its videos have no labels, and {self.model.name} learns "
        "from labels. Leave it out, or choose a model of pretraining."
      )
    check_clips(self.model.name, self.model_options, self.clip, self.evaluation)
    one_pass = self.evaluation.aggregation == WHOLE_VIDEO
    if one_pass and (self.model.name != "hybrid" or self.model.options["cross_blocks"] != 1):
      raise SettingError(
        f"{self.evaluation.path('aggregation')} is {WHOLE_VIDEO!r}: a hybrid with one cross attention block reads a "
        f"video in one pass, and {self.model.name} does not. Choose another, such as mean_probabilities."
      )
    if self.test_parameters == "best" and not self.validation.is_on:
      raise SettingError(
        f"{self.path('test_parameters')} is 'best', and nothing is validated while training: set "
        f"{self.validation.path('every_epochs')}."
      )

  @property
  def selects_on_test(self) -> bool:
    """Whether the test list chooses the parameters that are tested on it, which is optimistic."""
    chooses = self.test_parameters == "best" or self.validation.patience > 0
    return self.validation.is_on_test and chooses

  @property
  def task(self) -> str:
    """What the model is trained for: "classification" or "pretraining"."""
    return models.task_of(self.model.name)

  @property
  def model_options(self) -> dict[str, Any]:
    """The model's options, with those that follow from the clip filled in."""
    options = dict(self.model.options)
    of_clip = models.clip_options(self.model.name, self.clip.frames, self.clip.crop)
    return {**options, **{k: v for k, v in of_clip.items() if options.get(k) is None}}

  def to_json(self) -> dict[str, Any]:
    """Nested dicts, lists, numbers and texts; `from_json` is the way back."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return {
      name: value.to_json() if isinstance(value, Settings | ModelSettings) else _plain(value)
      for name, value in values.items()
    }

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> Self:
    """The experiment that `to_json` described.

    Raises:
      SettingError: an unknown name, or a value out of range.
    """
    values = dict(values)
    model = dict(values["model"])
    if isinstance(again := model.get("remat"), bool):
      # Before there was a choice, blocks were computed again or not.
      model["remat"] = "blocks" if again else "none"
    values["model"] = ModelSettings.resolve(model, {})
    if "stretch" not in values["stored"]:
      # Before there was a choice, every video was stretched.
      values["stored"] = {**values["stored"], "stretch": True}
    # Before there was one, made videos were drawn by the training's seed.
    values.setdefault("made_seed", values.get("seed", 0))
    # What an earlier version had in place of `profile_steps`.
    values.pop("profile", None)
    return cls.from_mapping(values)


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value


def from_config(
  config: ml_collections.ConfigDict,
  model_of: Callable[[str], Mapping[str, Any]] | None = None,
) -> Experiment:
  """The experiment of a config.

  Args:
    config: every setting.
    model_of: (`init_from`) to the name and options of its model, which is that of a config without one.

  Raises:
    SettingError: a value that cannot be used, named by its full path.
  """
  values = config.to_dict()
  values.pop("study", None)
  presets, chosen = values.pop("presets"), values.pop("model")
  chosen = model_settings.named(chosen, values["init_from"], model_of)
  name = chosen["name"]
  model = ModelSettings.resolve(chosen, presets.get(name) or {})
  values["model"] = model
  # What evaluation does not set for itself is the training clip's.
  shared = [field.name for field in dataclasses.fields(Sampling)]
  evaluation = values["evaluation"]
  values["evaluation"] = {
    key: values["clip"][key] if key in shared and value is None else value
    for key, value in evaluation.items()
  }
  mean, std = models.pixel_statistics(model.name)
  values["mean"] = mean if values["mean"] is None else values["mean"]
  values["std"] = std if values["std"] is None else values["std"]
  return Experiment.from_mapping(values)
