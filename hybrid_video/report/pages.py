"""What all HTML pages share: the templates, and the tables and frame strips that stand on them.

In: a template's name and its values. Out: HTML in one file, which needs no network and no script.
Every value is escaped by the template engine, so names cannot become markup; characters that do not
print are written as Python writes them.
"""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import jinja2
import markupsafe

from hybrid_video import errors
from hybrid_video.report import data_summary, figures

# Columns that fit on a phone; wider tables scroll sideways.
_NARROW = 3


@dataclasses.dataclass(frozen=True)
class Table:
  """A table whose first column names its rows.

  Attributes:
    caption: of the table.
    heads: of the columns.
    rows: cells.
    bars: for each row the length of a bar behind its cells, 0 to 1; none if empty.
  """

  caption: str
  heads: Sequence[str]
  rows: Sequence[Sequence[str]]
  bars: Sequence[float] = ()

  @property
  def is_wide(self) -> bool:
    """Whether it may be wider than a phone."""
    return len(self.heads) > _NARROW


@dataclasses.dataclass(frozen=True)
class Card:
  """A number to see first: its name, the number, and a few words on it."""

  name: str
  value: str
  detail: str


@dataclasses.dataclass(frozen=True)
class FrameStrip:
  """A strip of frames as a page shows it.

  Attributes:
    file: PNG, relative to the page.
    title, detail, labels: see `figures.Strip`.
    width, height: of the PNG, pixels.
    words: what is seen, for those who do not see it; by default the labels say it.
  """

  file: str
  title: str
  detail: str
  labels: Sequence[str]
  width: int
  height: int
  words: str = ""

  @property
  def alt(self) -> str:
    """What is seen, for those who do not see it."""
    if self.words:
      return self.words
    frames = data_summary.amount(len(self.labels), "frame")
    return f"{frames} of {self.title}, {self.labels[0]} to {self.labels[-1]}"


def write_strip(folder: pathlib.Path, file: str, strip: figures.Strip) -> FrameStrip:
  """Writes a strip as a PNG beside a page.

  Args:
    folder: of the page.
    file: the PNG to write, relative to `folder`; its own folder is there.
    strip: what it shows.

  Raises:
    figures.FigureError: the file cannot be written.
  """
  picture = strip.picture()
  figures.write_picture(folder / file, picture)
  height, width = picture.shape[:2]
  return FrameStrip(file, strip.title, strip.detail, strip.labels, width, height)


def _printable(value: Any) -> Any:
  # What a macro made is markup already, and its parts went through here.
  return value if isinstance(value, markupsafe.Markup) else errors.printable(str(value))


@functools.cache
def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("hybrid_video.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_printable,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.filters["number"] = "{:,}".format
  environment.globals["amount"] = data_summary.amount
  environment.globals["colours"] = {
    "ink": figures.INK,
    "grid": figures.GRID,
    "blue": figures.BLUE,
    "orange": figures.ORANGE,
  }
  return environment


def render(template: str, **values: Any) -> str:
  """A page.

  Args:
    template: file in `templates/`.
    **values: what it shows; a value that it names and does not get is an error.
  """
  return _environment().get_template(template).render(values)
