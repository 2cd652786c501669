"""The source study's rows: their names, models, recipes and published numbers.

In: a row's name, such as `cnn8_cross1_self6`. Out: settings, and a `Row` with what was published.
"""

from collections.abc import Mapping
import re
from typing import Any

from hybrid_video.recipes import RECIPES
from hybrid_video.study.settings import CORRECTED, NEVER_TRAINED, Row

BASELINE = "baseline"
SOURCE = "kietngt00/hmdb51-recognition on GitHub, HMDB51 split 1, best epoch of its test list"
_PUBLISHED_ON = "hmdb51"
# Training loss, loss and accuracy of the list that chose the epoch.
PUBLISHED: Mapping[str, tuple[float, float, float]] = {
  "cnn8_cross1_self6": (0.00676, 1.585, 0.6673),
  "cnn8_cross1_self2": (0.02675, 1.484, 0.6745),
  "cnn8_cross1_self1": (0.1199, 1.271, 0.7034),
  "cnn7_cross1_self1": (0.2204, 1.856, 0.6437),
  "cnn6_cross1_self6": (0.0071, 2.005, 0.5827),
  "cnn4_cross1_self6": (0.9097, 2.342, 0.4062),
  "cnn4_cross2_self12": (2.715, 3.22, 0.2815),
  "cnn8_cross1": (0.2096, 1.368, 0.7047),
  "cnn8_self1": (0.0205, 1.215, 0.6752),
  BASELINE: (0.5385, 1.118, 0.7270),
}


def hybrid_options(name: str) -> dict[str, Any]:
  """The hybrid's options of a row named `cnnK[_crossC][_selfS]`, at the source's widths (the defaults).

  Without cross attention a CLS token goes through the self block with the CNN's tokens and the mean over
  all is classified; without self attention, the mean over latents.
  """
  counts = {part: int(number) for part, number in re.findall(r"(cnn|cross|self)(\d+)", name)}
  cross, self_attention = counts.get("cross", 0), counts.get("self", 0)
  return {
    "cnn_blocks": counts["cnn"],
    "cross_blocks": cross,
    "self_blocks": self_attention,
    "pool": "cls" if cross and self_attention else "mean",
    "use_cls": self_attention > 0,
  }


def row(name: str, *, own_recipe: bool) -> Row:
  """One of the source's rows.

  Args:
    name: of `PUBLISHED`.
    own_recipe: whether the baseline is trained as the source trained it, and not as the other rows.
  """
  training_loss, loss, accuracy = PUBLISHED[name]
  published = {"train_loss": training_loss, "loss": loss, "video_top1": accuracy}
  if name == BASELINE:
    recipe = RECIPES["study_baseline"]
    # What both recipes have is left to flags.
    own = {path: value for path, value in recipe.items() if RECIPES["study"].get(path) != value}
    settings = {"model.name": "r2plus1d_18", **(own if own_recipe else {})}
    return Row(name, "R(2+1)D-18", settings, published, SOURCE, _PUBLISHED_ON)
  options = {f"model.{option}": value for option, value in hybrid_options(name).items()}
  settings = {"model.name": "hybrid", **options}
  return Row(name, _label(name), settings, published, SOURCE, _PUBLISHED_ON)


def frozen(trained: Row) -> Row:
  """A row with latents and cross attention left at random values and all else corrected.

  Beside `trained` it says what training them is worth; the two forms of one row differ in more.
  """
  settings = {**trained.settings, "optimizer.freeze": NEVER_TRAINED}
  label = f"{trained.label}, cross frozen at random"
  return Row(f"{trained.name}_frozen", label, settings, forms=(CORRECTED,))


def _label(name: str) -> str:
  words = {"cnn": "CNN blocks", "cross": "cross", "self": "self"}
  return " + ".join(f"{n} {words[part]}" for part, n in re.findall(r"(cnn|cross|self)(\d+)", name))
