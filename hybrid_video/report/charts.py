"""Plots of the report pages, as SVG that stands in the page and takes its colours.

In: numbers. Out: markup of one `<svg>`, text as text, colours as the page's CSS variables, so that light
and dark, screen and paper show the same drawing.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import html
import io
import re
from typing import Any

import markupsafe
import matplotlib
import matplotlib.axes
import matplotlib.figure
import numpy as np

from hybrid_video import errors
from hybrid_video.report import figures

# Colours are written as these and become variables of the page.
_VARIABLES = {
  figures.INK: "--ink",
  figures.MUTED: "--muted",
  figures.GRID: "--grid",
  figures.BLUE: "--blue",
  figures.ORANGE: "--orange",
}
# Of curves that share a plot: light here, dark in the page's style. Told apart by markers too.
SERIES = ("#2563a8", "#c2571a", "#2e7d4f", "#8e44ad", "#a68a00", "#7a4b2a")
_VARIABLES |= {colour: f"--series{i}" for i, colour in enumerate(SERIES) if i > 1}
_MARKERS = ("o", "s", "^", "D", "v", "P")
# Drawn at a phone's width, so that letters stay legible there.
_WIDTH, _HEIGHT = 5.0, 3.3
# Letters of a label: beside another one, and in a line of its own.
_LABEL_LETTERS, _ROW_LETTERS = 34, 56


@dataclasses.dataclass(frozen=True)
class Chart:
  """A plot as a page shows it.

  Attributes:
    caption: what is seen.
    svg: the drawing; its accessible name is the caption.
    name: of the drawing.
    figure: what was drawn.
  """

  caption: str
  svg: markupsafe.Markup
  name: str
  figure: matplotlib.figure.Figure

  def png(self) -> bytes:
    """The same on white, for a README or a paper."""
    picture = io.BytesIO()
    self.figure.savefig(
      picture, format="png", dpi=200, transparent=False, metadata={"Software": None}
    )
    return picture.getvalue()


@dataclasses.dataclass(frozen=True)
class Line:
  """A curve: its words, points (x, y), and how it is drawn."""

  words: str
  points: Sequence[tuple[float, float]]
  colour: str = figures.BLUE
  style: str = "-"


@dataclasses.dataclass(frozen=True)
class Point:
  """A measured or published number with what it belongs to.

  Attributes:
    label: of its row.
    value, low, high: per cent; limits are None where there is no interval.
    kind: "corrected", "as_published" or "published".
    x: where it stands, in plots against something.
  """

  label: str
  value: float
  low: float | None = None
  high: float | None = None
  kind: str = "corrected"
  x: float = 0.0


# Of kinds: words, marker, colour, whether the marker is full.
KINDS: dict[str, tuple[str, str, str, bool]] = {
  "corrected": ("measured here, corrected", "o", figures.BLUE, True),
  "as_published": (
    "measured here, as published: optimistic (frozen cross attention, epoch chosen on the test list)",
    "s",
    figures.ORANGE,
    False,
  ),
  "published": ("published elsewhere, not measured here", "D", figures.MUTED, False),
}


_CHANCE: dict[str, Any] = {
  "color": figures.MUTED,
  "linestyle": ":",
  "linewidth": 1.2,
  "label": "a constant answer (majority class)",
}


@contextlib.contextmanager
def _drawing(height: float = _HEIGHT) -> Iterator[tuple[matplotlib.figure.Figure, Any]]:
  style = {**figures.STYLE, "svg.fonttype": "none", "text.parse_math": False, "font.size": 11}
  with matplotlib.rc_context({**style, "savefig.transparent": True, "savefig.bbox": None}):
    figure = matplotlib.figure.Figure(figsize=(_WIDTH, height), layout="constrained")
    yield figure, figure.subplots()


def _chart(figure: matplotlib.figure.Figure, name: str, caption: str) -> Chart:
  buffer = io.StringIO()
  with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
    figure.savefig(buffer, format="svg", metadata={"Date": None})
  text = buffer.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
  text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
  text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
  # Several drawings share a page.
  text = re.sub(r'\bid="', f'id="{name}-', text)
  text = re.sub(r'href="#', f'href="#{name}-', text)
  text = text.replace("url(#", f"url(#{name}-")
  for colour, variable in _VARIABLES.items():
    text = text.replace(colour, f"var({variable})")
  text = text.replace("#ffffff", "var(--paper)")
  text = re.sub(
    r'(font: |font-size: )?(\d+px) [^;"]*sans-serif', r"font: \2 system-ui, sans-serif", text
  )
  size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
  assert size is not None
  head = f'<svg role="img" aria-label="{html.escape(caption)}" viewBox="{size[0][9:-1]}">'
  svg = markupsafe.Markup(head + text[text.index(">") + 1 :])
  return Chart(caption, svg, name, figure)


def _short(name: str, letters: int = _LABEL_LETTERS) -> str:
  text = errors.printable(name)
  return text if len(text) <= letters else f"{text[: letters - 1]}…"


def curves(
  name: str,
  caption: str,
  lines: Sequence[Line],
  axes_words: tuple[str, str],
  *,
  limits: tuple[float, float] | None = None,
  mark: tuple[float, float, str] | None = None,
  level: tuple[float, str] | None = None,
) -> Chart:
  """Curves of several lists or rows.

  Args:
    name: of the drawing, letters, digits and `_`, one a page.
    caption: what is seen.
    lines: with points each.
    axes_words: of x and y.
    limits: of y.
    mark: x, y and words of a single point.
    level: y and words of a dotted level, such as chance.
  """
  with _drawing() as (figure, axes):
    for line in lines:
      marker = "o" if len(line.points) < 12 else None
      axes.plot(
        *zip(*line.points, strict=True),
        line.style,
        color=line.colour,
        marker=marker,
        markersize=3.5,
        linewidth=1.6,
        label=_short(line.words),
      )
    if level is not None:
      axes.axhline(level[0], color=figures.MUTED, linestyle=":", linewidth=1.2, label=level[1])
    if mark is not None:
      axes.plot([mark[0]], [mark[1]], "D", color=figures.INK, label=mark[2], clip_on=False)
    axes.set_xlabel(axes_words[0])
    axes.set_ylabel(axes_words[1])
    axes.set_ylim(*(limits or (0, None)))
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9.5)
    return _chart(figure, name, caption)


def reliability(name: str, caption: str, bins: dict[str, list[float]]) -> Chart:
  """How often predictions of a confidence are right; the area of a point is its share of videos."""
  with _drawing(3.6) as (figure, axes):
    videos = np.array(bins["videos"], float)
    confidence, right = (100 * np.array(bins[key]) for key in ("confidence", "accuracy"))
    axes.plot([0, 100], [0, 100], ":", color=figures.MUTED, label="perfectly calibrated")
    axes.plot(confidence, right, "-", color=figures.BLUE, linewidth=1)
    axes.scatter(
      confidence,
      right,
      s=12 + 320 * videos / videos.sum(),
      color=figures.BLUE,
      label="videos of a confidence; area: how many",
    )
    axes.set_xlim(0, 102)
    axes.set_ylim(-2, 104)
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel("right (%)")
    figure.legend(loc="outside lower left", frameon=False, fontsize=9.5)
    return _chart(figure, name, caption)


def _style(kind: str) -> dict[str, Any]:
  words, marker, colour, full = KINDS[kind]
  return {
    "marker": marker,
    "color": colour,
    "label": words.partition(" (")[0],
    "markerfacecolor": colour if full else "#ffffff",
    "markersize": 7,
    "linestyle": "none",
  }


def intervals(
  name: str, caption: str, points: Sequence[Point], *, chance: float | None = None
) -> Chart:
  """Rows one below the other, each with its measured numbers, intervals and the published number.

  Args:
    name: of the drawing.
    caption: what is seen.
    points: per cent; those of one label share a row.
    chance: per cent, what a constant answer reaches.
  """
  rows = list(dict.fromkeys(point.label for point in points))
  with _drawing(1.2 + 0.68 * len(rows)) as (figure, axes):
    for kind in KINDS:
      of_kind = [point for point in points if point.kind == kind]
      shift = {"corrected": 0.0, "as_published": 0.2, "published": 0.4}[kind]
      for i, point in enumerate(of_kind):
        y = rows.index(point.label) + shift
        if point.low is not None and point.high is not None:
          axes.plot([point.low, point.high], [y, y], color=KINDS[kind][2], linewidth=1.6)
        style = _style(kind)
        axes.plot([point.value], [y], **(style if i == 0 else style | {"label": None}))
    if chance is not None:
      axes.axvline(chance, **_CHANCE)
    # Above its marks a label has the plot's whole width.
    left = axes.get_yaxis_transform()
    for y, row in enumerate(rows):
      axes.text(
        0.01,
        y - 0.32,
        _short(row, _ROW_LETTERS),
        transform=left,
        va="center",
        fontsize=9.5,
        bbox={"facecolor": "#ffffff", "edgecolor": "none", "pad": 1},
      )
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("video top-1 (%)")
    figure.legend(loc="outside lower left", frameon=False, fontsize=9.5)
    return _chart(figure, name, caption)


def _marks(axes: Any, own: Sequence[Point], style: dict[str, Any], number: int | None) -> None:
  """Points with their intervals, and the number that a legend explains."""
  axes.plot([p.x for p in own], [p.value for p in own], **style)
  for p in own:
    if p.low is not None and p.high is not None:
      axes.plot([p.x, p.x], [p.low, p.high], color=style["color"], linewidth=1)
    if number is not None:
      axes.annotate(
        str(number),
        (p.x, p.value),
        xytext=(6, 4),
        fontsize=9.5,
        textcoords="offset points",
        color=figures.INK,
      )


def _scale_x(axes: Any, xs: Sequence[float], *, log: bool, joined: bool) -> None:
  """Ticks for the values `xs`, ascending; see `against`."""
  if log and 0 < xs[0] < xs[-1] / (4 if joined else 10):
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:,.3g}"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
  if joined and len(xs) < 9:
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.minorticks_off()


def against(
  name: str,
  caption: str,
  points: Sequence[Point],
  words: str,
  *,
  log: bool = False,
  joined: bool = False,
  chance: float | None = None,
) -> Chart:
  """Accuracy against something, a point a row and form.

  Args:
    name: of the drawing.
    caption: what is seen.
    points: per cent, each with `x`.
    words: of x.
    log: whether x is logarithmic, where its values lie far apart.
    joined: whether points of one label are a curve with a name, over a few values of x; otherwise each label
      has a number.
    chance: per cent, what a constant answer reaches.
  """
  labels = list(dict.fromkeys(point.label for point in points))
  kinds = [kind for kind in KINDS if any(point.kind == kind for point in points)]
  with _drawing(3.3 + 0.19 * (len(labels) + len(kinds))) as (figure, axes):
    for kind in kinds:
      for label in labels:
        own = sorted((p for p in points if p.kind == kind and p.label == label), key=lambda p: p.x)
        if not own:
          continue
        style, series = _style(kind), labels.index(label)
        if joined:
          colour = SERIES[series % len(SERIES)]
          form = "" if len(kinds) == 1 else f", {kind.replace('_', ' ')}"
          style |= {
            "label": f"{_short(label, _ROW_LETTERS)}{form}",
            "linestyle": "-" if kind == "corrected" else ":",
            "color": colour,
            "markerfacecolor": colour if kind == "corrected" else "#ffffff",
            "marker": _MARKERS[series % len(_MARKERS)],
          }
        elif label != next(p.label for p in points if p.kind == kind):
          style["label"] = None
        _marks(axes, own, style, None if joined else series + 1)
    for number, label in enumerate(() if joined else labels, 1):
      axes.plot([], [], " ", label=f"{number}  {_short(label, _ROW_LETTERS)}")
    if chance is not None:
      axes.axhline(chance, **_CHANCE)
    _scale_x(axes, sorted({point.x for point in points}), log=log, joined=joined)
    axes.margins(0.15)
    axes.set_ylim(top=min(axes.get_ylim()[1], 104))
    axes.set_xlabel(words)
    axes.set_ylabel("video top-1 (%)")
    figure.legend(loc="outside lower left", frameon=False, fontsize=9.5)
    return _chart(figure, name, caption)
