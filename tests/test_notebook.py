"""The notebook, run from its first cell to its last in a kernel, with a demo that is small."""

import copy
import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOK = pathlib.Path(__file__).resolve().parents[1] / "notebooks" / "train.ipynb"


def test_the_notebook_is_whole_and_holds_no_output():
  notebook = nbformat.read(NOTEBOOK, 4)
  nbformat.validate(notebook)
  assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_notebook_trains_reports_and_predicts(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  notebook = copy.deepcopy(nbformat.read(NOTEBOOK, 4))
  (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
  parameters.source += f"\nKEEP = {str(tmp_path / 'kept')!r}\n" + (
    "FLAGS = ['--config.made_films=8', '--config.epochs=2', '--config.evaluate_shuffled=False']\n"
  )
  client = nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(NOTEBOOK.parent)}},
  )
  client.execute()
  workdir = tmp_path / "kept" / "demo"
  assert (workdir / "results.json").exists() and (workdir / "report.html").exists()
  texts = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
  assert any("video top-1" in text for text in texts)
  shown = [
    output.data["text/html"]
    for cell in notebook.cells
    for output in cell.get("outputs", ())
    if "text/html" in output.get("data", {})
  ]
  assert len(shown) == 1 and shown[0].startswith("<iframe srcdoc=")
  assert any(".avi" in text for text in texts)
