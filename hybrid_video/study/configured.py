"""A study in a config: what its file sets, and what the command line chooses of it.

In: a ConfigDict with rows. Out: the study, every run with its experiment.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from hybrid_video import errors, experiment
from hybrid_video.settings import SettingError, flat
from hybrid_video.study import settings
from hybrid_video.study.settings import Study

# Of the groups of a training list, where a study's corrected form is to choose an epoch by them.
_VALIDATION_SHARE = 0.2


def use_study(
  config: ml_collections.ConfigDict,
  title: str,
  question: str,
  rows: Iterable[settings.Row],
  *,
  seeds: tuple[int, ...] = (0, 1, 2),
  splits: tuple[int, ...] = (1,),
  forms: tuple[str, ...] = settings.FORMS,
  at_once: int = 1,
  asks: Iterable[tuple[str, str]] = (),
) -> None:
  """Makes a config a study: its settings hold for all rows, and each row sets some of its own.

  `--config.study.seeds`, `splits`, `forms`, `rows` and `part` choose among its runs; `at_once` is how many
  train at the same time, each on its share of the CPU's cores. `asks` names pairs of rows that the question is
  about, see `Study`.

  Raises:
    SettingError: two rows of one name, a name that cannot be a folder's, or a pair of rows that there are
      not.
  """
  checked = settings.checked_rows(rows)
  with config.unlocked():
    config.study = ml_collections.ConfigDict(
      {
        "title": title,
        "question": question,
        # As they are: a ConfigDict takes no name with a dot.
        "defined": checked,
        "asks": settings.checked_pairs(asks, checked),
        "rows": (),
        "seeds": seeds,
        "splits": splits,
        "forms": forms,
        "part": "",
        "at_once": at_once,
      }
    )


def study_of(config: ml_collections.ConfigDict) -> Study | None:
  """The study of a config, every run with its experiment; None where the config is a single run.

  Raises:
    SettingError: a row, form or share that there is not, or a setting of a row that cannot be used.
  """
  if "study" not in config:
    return None
  chosen = config.study
  names = tuple(name for text in chosen.rows for name in str(text).split(",") if name)
  rows = settings.chosen_rows(chosen.defined, names)
  forms = tuple(form for text in chosen.forms for form in str(text).split(",") if form)
  seeds, splits = tuple(chosen.seeds), tuple(chosen.splits)
  for name, values in (("forms", forms), ("seeds", seeds), ("splits", splits)):
    if not values or len({*values}) < len(values):
      raise SettingError(f"--config.study.{name} is {values!r}: expected one or more, each once.")
  for form in forms:
    if form not in settings.FORMS:
      raise SettingError(
        f"--config.study.forms names {form!r}: expected {' or '.join(settings.FORMS)}."
        f"{errors.nearest(form, settings.FORMS)}"
      )
  runs = tuple(
    settings.Run(row, form, split, seed, _of_run(config, row, form, split, seed))
    for seed in seeds
    for split in splits
    for row in rows
    for form in forms
    if form in row.forms
  )
  if not runs:
    raise SettingError(
      f"--config.study.forms is {forms}, and no row that is chosen has one of these forms: "
      f"{', '.join(row.name for row in rows)}."
    )
  part = settings.Part.parse(chosen.part)
  if chosen.at_once < 1:
    raise SettingError(f"--config.study.at_once is {chosen.at_once}: expected 1 or more.")
  asks = tuple(pair for pair in chosen.asks if {*pair} <= {row.name for row in rows})
  return Study(
    chosen.title, chosen.question, rows, asks, seeds, splits, forms, part, chosen.at_once, runs
  )


def _of_run(
  config: ml_collections.ConfigDict, row: settings.Row, form: str, split: int, seed: int
) -> experiment.Experiment:
  """The experiment of one run: the base's settings, then the row's, then the form's."""
  values = config.to_dict()
  del values["study"]
  of_run = ml_collections.ConfigDict(values).lock()
  known = flat(of_run.to_dict())
  for path in row.settings:
    if path not in known:
      raise SettingError(
        f"The study's row {row.name!r} sets {path!r}, and there is no such setting."
        f"{errors.nearest(path, known)}"
      )
  of_row = dict(row.settings)
  if row.starts_from:
    first = settings.folder_of(form, row.starts_from, split, seed)
    of_row["init_from"] = f"{{workdir}}/{first}"
  _set(of_run, row, of_row)
  model = experiment.from_config(of_run).model
  cross_blocks = model.options.get("cross_blocks", 0)
  share = of_run.validation_share or _VALIDATION_SHARE
  of_form = settings.of_form(form, model.name, cross_blocks, share)
  _set(of_run, row, {**of_form, "seed": seed, "split": split})
  try:
    return experiment.from_config(of_run)
  except SettingError as error:
    raise SettingError(f"The study's row {row.name!r}, {form}: {error}") from error


def _set(config: ml_collections.ConfigDict, row: settings.Row, values: Mapping[str, Any]) -> None:
  try:
    config.update_from_flattened_dict(dict(values))
  except (TypeError, ValueError) as error:
    raise SettingError(f"The study's row {row.name!r} sets what cannot be: {error}") from error
