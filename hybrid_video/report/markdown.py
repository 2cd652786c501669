"""Tables in Markdown, of names that may hold anything.

In: heads and cells. Out: lines of text.
"""

from collections.abc import Sequence

from hybrid_video import errors


def escape(text: str) -> str:
  """A text whose signs stay signs."""
  printable = errors.printable(text).replace("&", "&amp;").replace("<", "&lt;")
  return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in printable)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """The lines of a table, its first column to the left and the others to the right."""
  lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
  shown = [*([escape(head) for head in heads] for heads in lines[:1]), lines[1]]
  shown += [[escape(cell) for cell in row] for row in rows]
  return [f"| {' | '.join(cells)} |" for cells in shown]
