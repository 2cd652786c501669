"""README, CONTRIBUTING and docs/ against what they speak of: links, commands, settings, code."""

import ast
import importlib
import pathlib
import re

import pytest
from test_models import PARAMETERS

from configs import hmdb51
from hybrid_video import configuration, experiment, origins, recipes
from hybrid_video.study import configured
from hybrid_video.study.settings import Row

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = {page.name: page.parent for page in PAGES}
TEXTS = {page.name: page.read_text() for page in PAGES}


def anchors(text: str) -> set[str]:
  """What GitHub makes of a page's headings."""
  headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name):
  for link in re.findall(r"\]\(((?!http)[^)]+)\)", TEXTS[name]):
    file, _, anchor = link.partition("#")
    target = FOLDERS[name] / (file or name)
    assert target.exists(), link
    if anchor:
      assert anchor in anchors(target.read_text()), link


def test_ci_runs_the_readmes_test_command_to_the_letter():
  commands = re.findall(r"```sh\n(.*?)\n```", TEXTS["README.md"], re.DOTALL)
  (test_command,) = [command for command in commands if "pytest" in command]
  assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == test_command


def test_the_readme_fits_a_first_visit():
  assert len(TEXTS["README.md"].splitlines()) <= 180


def test_every_row_stands_in_the_table_with_its_parameters():
  rows = dict(
    re.findall(
      r"^\| `(\w+)`[^|]*\| ([\d,]+ \| [\d,]+ \| [\d,]+) \|", TEXTS["training.md"], re.MULTILINE
    )
  )
  assert list(rows) == list(hmdb51.ROWS)
  for row, text in rows.items():
    counts = tuple(int(count.replace(",", "")) for count in text.split("|"))
    assert counts == PARAMETERS[row][:3]


def test_every_recipe_stands_in_the_table_with_its_epochs():
  table = TEXTS["training.md"].partition("| recipe |")[2].partition("\n\n")[0]
  rows = re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\| (\d+) \|", table, re.MULTILINE)
  epochs = {name: str(round(recipe["epochs"])) for name, recipe in recipes.RECIPES.items()}
  assert sorted(rows) == sorted(epochs.items())


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_is_one_line(name):
  for block in re.findall(r"```sh\n(.*?)\n```", TEXTS[name], re.DOTALL):
    assert "\n" not in block


@pytest.mark.parametrize("name", TEXTS)
def test_every_setting_exists(name):
  config = configuration.default_config()
  configured.use_study(config, "", "", [Row("row", "row")])
  for path in re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)", TEXTS[name]):
    value = config
    for part in path.split("."):
      assert part in value, path
      value = value[part]


@pytest.mark.parametrize("name", TEXTS)
def test_every_config_can_be_made(name):
  for module, options in set(re.findall(r"configs/(\w+)\.py(?::([\w,=]+))?", TEXTS[name])):
    get_config = importlib.import_module(f"configs.{module}").get_config
    if options != "ROW":
      config = get_config(*([options] if options else []))
      if config.optimizer.head_first_epochs:
        # A transfer has something to start from, which tells its model too.
        config.init_from = "r2plus1d_18/kinetics400"
      experiment.from_config(config, origins.model_of)


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_exists_and_code_is_python(name):
  for path in re.findall(r"`((?:hybrid_video|tests|benchmarks|configs)/[\w./]*)", TEXTS[name]):
    assert (ROOT / path).exists(), path
  for block in re.findall(r"```python\n(.*?)\n```", TEXTS[name], re.DOTALL):
    ast.parse(block)


def test_every_row_of_the_inputs_is_held_by_a_test():
  rows = [line for line in TEXTS["inputs.md"].splitlines() if line.startswith("| ")]
  rows = [row for row in rows if not row.endswith("| held by |")]
  assert len(rows) > 30
  for row in rows:
    held_by = re.findall(r"`(\w+\.py)::(\w+)`", row)
    assert held_by, row
    for file, name in held_by:
      assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), row
