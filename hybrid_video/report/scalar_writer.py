"""What the project's own metric writers share: they take scalars and leave the rest."""

from clu import metric_writers


class ScalarsWriter(metric_writers.MultiWriter):
  """A writer of scalars; other kinds of summaries go to none of no writers."""

  def __init__(self) -> None:
    super().__init__(())
