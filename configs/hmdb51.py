"""HMDB51: every row of the source study's three ablation tables, and its baseline.

python main.py --config=configs/hmdb51.py:cnn8_cross1_self1 --config.data_dir=DIR --workdir=RUN

DIR holds the AVI files and the official split files. The recipes are the source's: clips of 2 s,
Adam 1e-3 with L2 1e-5 and x0.2 every 10 epochs for the hybrids, SGD 1e-3 and x0.1 for the baseline.
Another one follows a comma: configs/hmdb51.py:cnn8_cross1_self1,recipe=fine_tuning.
"""

import ml_collections

from hybrid_video import configuration, errors, recipes
from hybrid_video.settings import SettingError
from hybrid_video.study import source

ROWS = (
  # Attention depth.
  "cnn8_cross1_self6",
  "cnn8_cross1_self2",
  "cnn8_cross1_self1",
  # CNN depth.
  "cnn7_cross1_self1",
  "cnn6_cross1_self6",
  "cnn4_cross1_self6",
  "cnn4_cross2_self12",
  # Cross and self attention.
  "cnn8_cross1",
  "cnn8_self1",
  # The baseline of all three.
  "baseline",
)


def use_hybrid(config: ml_collections.ConfigDict, row: str) -> None:
  """The hybrid of a row named `cnnK[_crossC][_selfS]`, at the source's widths (the defaults).

  Without cross attention a CLS token goes through the self block with the CNN's tokens and the
  mean over all is classified; without self attention, the mean over latents.
  """
  configuration.use_model(config, "hybrid", **source.hybrid_options(row))


def get_config(options: str = "baseline") -> ml_collections.ConfigDict:
  """The experiment of one row, such as "cnn8_cross1" or "baseline,recipe=fine_tuning".

  Raises:
    SettingError: there is no such row or recipe; the message names the nearest.
  """
  chosen = configuration.arguments(options, "row", {"row": "baseline", "recipe": ""})
  row = chosen["row"]
  if row not in ROWS:
    near = errors.nearest(row, ROWS, count=1, cutoff=0.0)
    raise SettingError(f"There is no row {row!r}.{near} Rows: {', '.join(ROWS)}.")
  config = configuration.default_config()
  if row == "baseline":
    configuration.use_model(config, "r2plus1d_18")
  else:
    use_hybrid(config, row)
  recipes.apply(config, chosen["recipe"] or ("study_baseline" if row == "baseline" else "study"))
  return config.lock()
