"""The README against what it speaks of."""

import pathlib
import re

from test_models import PARAMETERS

from configs import hmdb51

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)


def test_ci_runs_the_test_command_to_the_letter():
  (test_command,) = [command for command in COMMANDS if "pytest" in command]
  assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == test_command


def test_every_command_is_one_line():
  assert COMMANDS
  assert all("\n" not in command for command in COMMANDS)


def test_every_row_stands_in_the_table_with_its_parameters():
  rows = dict(
    re.findall(r"^\| `(\w+)`[^|]*\| ([\d,]+ \| [\d,]+ \| [\d,]+) \|", README, re.MULTILINE)
  )
  assert list(rows) == list(hmdb51.ROWS)
  for row, text in rows.items():
    counts = tuple(int(count.replace(",", "")) for count in text.split("|"))
    assert counts == PARAMETERS[row][:3]


def test_every_file_the_readme_names_exists():
  named = re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(
    r"`([\w./]+\.(?:py|md))`", README
  )
  assert named
  for path in named:
    assert (ROOT / path).exists(), path
