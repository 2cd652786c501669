"""What a study is: rows that differ in some settings, seeds, splits, forms, and the share of one machine.

In: what a config of `configs/studies/` says. Out: a `Study`, whose every run has an experiment of its own.
Nothing here reads ConfigDicts: `configured.study_of` does.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import re
import types
from typing import TYPE_CHECKING, Any

from hybrid_video import errors, models
from hybrid_video.settings import SettingError

if TYPE_CHECKING:
  from hybrid_video.experiment import Experiment

AS_PUBLISHED, CORRECTED = "as_published", "corrected"
FORMS = (AS_PUBLISHED, CORRECTED)
# What the pixels of the source study were normalized with, whatever its weights were trained with.
PUBLISHED_MEAN, PUBLISHED_STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
# The scale of its random latents and CLS token.
PUBLISHED_LATENT_STD = 1.0
# Parts that the source study never trained.
NEVER_TRAINED = ("attention/latents", "attention/cross")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a study's table.

  Attributes:
    name: of its folder; letters, digits, `_`, `-` and `.`.
    label: for people.
    settings: values by the path of the setting, such as `model.cnn_blocks`; over the base's.
    published: numbers by the names of `results.json`'s, such as `video_top1`; what was published.
    source: where they were published.
    published_on: the data set that they were measured on.
    axes: where the row stands on a plot's axes, such as `gap_seconds`.
    forms: those that make sense for it; of these it is trained with the ones that a study asks for.
    starts_from: another row, such as one that pretrains, whose run of the same form, split and seed is trained
      first and started from. Rows that pretrain have no accuracy, and stand in no table.
  """

  name: str
  label: str
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  published: Mapping[str, float] = dataclasses.field(default_factory=dict)
  source: str = ""
  published_on: str = ""
  axes: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
  forms: tuple[str, ...] = FORMS
  starts_from: str = ""

  def __post_init__(self) -> None:
    for name in ("settings", "published", "axes"):
      object.__setattr__(self, name, types.MappingProxyType(dict(getattr(self, name))))

  def to_json(self) -> dict[str, Any]:
    """The attributes by name."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return {
      name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()
    }

  # Made again: a proxy of a dict can be neither copied nor pickled.
  def __reduce__(self) -> tuple[Any, ...]:
    return type(self), tuple(self.to_json().values())


@dataclasses.dataclass(frozen=True)
class Run:
  """One training of a study.

  Attributes:
    row: of the table.
    form: one of `FORMS`.
    split: of the data set, from 1.
    seed: of the training.
    experiment: every setting.
  """

  row: Row
  form: str
  split: int
  seed: int
  experiment: "Experiment"

  @property
  def folder(self) -> str:
    """Where it stands, below the study's work directory."""
    return folder_of(self.form, self.row.name, self.split, self.seed)

  @property
  def starts_from(self) -> str:
    """The folder of the run that it starts from; "" where there is none."""
    other = self.row.starts_from
    return folder_of(self.form, other, self.split, self.seed) if other else ""

  @property
  def has_accuracy(self) -> bool:
    """Whether it stands in the study's tables."""
    return self.experiment.task == models.CLASSIFICATION


def folder_of(form: str, row: str, split: int, seed: int) -> str:
  """Where a run stands, below the study's work directory."""
  return f"runs/{form}/{row}/split{split}_seed{seed}"


@dataclasses.dataclass(frozen=True)
class Part:
  """The share of one machine: run i of the study is its own where i mod `count` is `number` - 1."""

  number: int
  count: int

  @classmethod
  def parse(cls, text: str) -> "Part | None":
    """`2/8`; None where all runs are this machine's.

    Raises:
      SettingError: something else.
    """
    if not text:
      return None
    matched = re.fullmatch(r"(\d+)/(\d+)", text)
    part = cls(int(matched[1]), int(matched[2])) if matched else None
    if part is None or not 1 <= part.number <= part.count:
      raise SettingError(
        f"--config.study.part is {text!r}: expected NUMBER/COUNT with a number from 1 to the count, such "
        "as 2/8."
      )
    return part


@dataclasses.dataclass(frozen=True)
class Study:
  """A study, checked.

  Attributes:
    title, question: for people.
    rows: those that are chosen, in the table's order.
    asks: pairs of rows that the question is about: each has a sentence of its own in the report, "is the
      first better than the second?", whichever way it falls.
    seeds, splits, forms: those that each row is trained with.
    part: this machine's share; None is all.
    at_once: how many runs train at the same time on CPUs, each on its share of the cores.
    runs: every training of the study, of all machines.
  """

  title: str
  question: str
  rows: tuple[Row, ...]
  asks: tuple[tuple[str, str], ...]
  seeds: tuple[int, ...]
  splits: tuple[int, ...]
  forms: tuple[str, ...]
  part: Part | None
  at_once: int
  runs: tuple[Run, ...]

  @property
  def own_runs(self) -> tuple[Run, ...]:
    """Those of this machine."""
    if self.part is None:
      return self.runs
    return self.runs[self.part.number - 1 :: self.part.count]


def checked_rows(rows: Iterable[Row]) -> tuple[Row, ...]:
  """Rows whose names can be folders, each once.

  Raises:
    SettingError: there is no row, a name that cannot be a folder's, or two rows of one name.
  """
  rows = tuple(rows)
  if not rows:
    raise SettingError("The study has no rows: give it one or more.")
  first: dict[str, Row] = {}
  for row in rows:
    if not _NAME.fullmatch(row.name):
      raise SettingError(
        f"The study's row {row.name!r}: a row's name is that of its folder: letters, digits, `_`, `-` "
        "and `.` alone."
      )
    # Some file systems do not tell small letters from capitals.
    other = first.setdefault(row.name.casefold(), row)
    if other is not row:
      raise SettingError(
        f"Two rows of the study have the name {row.name!r}: {other.label!r} and {row.label!r}. Give each "
        "a name of its own."
      )
  by_name = {row.name: row for row in rows}
  for row in rows:
    start = row.starts_from
    if start and (start not in by_name or by_name[start].starts_from):
      raise SettingError(
        f"The study's row {row.name!r} starts from {start!r}: expected another row, which starts from none."
        f"{errors.nearest(start, by_name)}"
      )
  return rows


def checked_pairs(
  pairs: Iterable[tuple[str, str]], rows: Iterable[Row]
) -> tuple[tuple[str, str], ...]:
  """Pairs of names of rows.

  Raises:
    SettingError: a name that no row has.
  """
  known, pairs = [row.name for row in rows], tuple(pairs)
  for name in (name for pair in pairs for name in pair):
    if name not in known:
      raise SettingError(
        f"The study asks about a row {name!r} that it does not have.{errors.nearest(name, known)}"
      )
  return pairs


def chosen_rows(rows: tuple[Row, ...], names: Iterable[str]) -> tuple[Row, ...]:
  """The rows of some names, in the table's order; all where no name is given.

  Raises:
    SettingError: there is no such row; the message has the nearest.
  """
  names = tuple(names)
  known = [row.name for row in rows]
  for name in names:
    if name not in known:
      near = errors.nearest(name, known)
      raise SettingError(
        f"--config.study.rows names {name!r}, and the study has no such row.{near} Rows: "
        f"{errors.shown(known, most=20)}."
      )
  needed = {row.starts_from for row in rows if row.name in names}
  return tuple(row for row in rows if not names or row.name in (*names, *needed))


def of_form(form: str, model: str, cross_blocks: int, share: float) -> dict[str, Any]:
  """The settings of a form, by path.

  `as_published` repeats five things of the source study: latents and cross attention stay at their random
  values, latents begin with standard deviation 1, pixels are normalized with 0.45 and 0.225, clips vote, and
  the test list chooses the epoch. `corrected` trains everything, normalizes as the weights' authors did, averages probabilities, and lets
  groups of the training list choose the epoch.

  Args:
    form: one of `FORMS`.
    model: its name.
    cross_blocks: cross attention blocks of the model.
    share: of the training groups that choose the epoch, of `corrected`.
  """
  if form == AS_PUBLISHED:
    values: dict[str, Any] = {} if model != "hybrid" else {"model.latent_std": PUBLISHED_LATENT_STD}
    return values | {
      "optimizer.freeze": NEVER_TRAINED if model == "hybrid" and cross_blocks else (),
      "mean": PUBLISHED_MEAN,
      "std": PUBLISHED_STD,
      "evaluation.aggregation": "majority_vote",
      "validation.on": "test",
      "validation_share": 0.0,
      "test_parameters": "best",
    }
  return {
    "evaluation.aggregation": "mean_probabilities",
    "validation.on": "validation",
    "validation_share": share,
    "test_parameters": "best",
  }
