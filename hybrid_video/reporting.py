"""The mode `report`: a run's or a study's folder to one page and a Markdown table.

In: a folder with `results.json`, or with `study.json`. Out: `report.html`, which needs no network and no
other file, and `report.md`, each written whole or not at all; of a study its plots as PNG too, in `figures/`.
"""

from collections.abc import Sequence
import logging
import pathlib
from typing import Any

from hybrid_video import errors, files
from hybrid_video.experiment import Experiment
from hybrid_video.pipeline import Pipeline
from hybrid_video.report import (
  charts,
  film_strips,
  looking,
  pages,
  reconstructions,
  results,
  run_report,
  study_report,
  study_videos,
)

log = logging.getLogger("hybrid_video")

PAGE, TABLE, FIGURES = "report.html", "report.md", "figures"
_LOOKED_AT = 4


def run(workdir: pathlib.Path, pipeline: Pipeline) -> pathlib.Path:
  """Writes the report of a run, or of a study where the folder has a `study.json`.

  Args:
    workdir: of the run or study.
    pipeline: makes the clips that the model looks at.

  Returns:
    The page's path.

  Raises:
    UserError: a file is missing, damaged or of several protocols; an earlier report stays as it was.
  """
  if (workdir / study_report.FILE).exists():
    study = study_report.load(workdir)
    shown = study_report.values(workdir, study) | study_videos.values(workdir, study, pipeline)
    page, table = pages.render("study_page.html.j2", **shown), study_report.markdown_of(shown)
    _write_plots(workdir / FIGURES, [shown["main"], *shown["against"]])
  elif (workdir / results.RESULTS).exists():
    shown = _run_values(workdir, pipeline)
    page, table = pages.render("run_page.html.j2", **shown), run_report.markdown_of(shown)
  else:
    raise results.ReportError(
      f"{errors.printable(workdir)}: there is neither {results.RESULTS} nor {study_report.FILE}. Name "
      "the work directory of a run that was evaluated, or of a gathered study."
    )
  for name, text in ((TABLE, table), (PAGE, page)):
    with results.writing(workdir / name):
      files.write_text(workdir / name, text)
  log.info("Report: %s and %s (%.1f MB)", workdir / PAGE, TABLE, len(page.encode()) / 1e6)
  return workdir / PAGE


def _write_plots(folder: pathlib.Path, plots: Sequence[charts.Chart | None]) -> None:
  for plot in plots:
    if plot is not None:
      with results.writing(folder / f"{plot.name}.png"):
        folder.mkdir(exist_ok=True)
        with files.whole_file(folder / f"{plot.name}.png") as part:
          part.write_bytes(plot.png())


def _run_values(workdir: pathlib.Path, pipeline: Pipeline) -> dict[str, Any]:
  outcome, predictions, history = run_report.load(workdir)
  shown = run_report.values(workdir, outcome, predictions, history)
  sections = reconstructions.sections(workdir / FIGURES)
  if predictions is not None:
    try:
      experiment = Experiment.from_json(outcome["config"])
      tested = film_strips.Tested.open(workdir, predictions, experiment)
      sections = film_strips.hard_videos(tested)
      sections += looking.sections(tested, looking.rows(tested, _LOOKED_AT), pipeline)
    except errors.UserError as error:
      words = f"Not shown, since the stored videos cannot be used: {error}"
      sections = [film_strips.Section("videos", "Videos and where the model looks", words)]
  return shown | {"films": sections}
