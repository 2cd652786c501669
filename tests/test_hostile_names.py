"""Names as they are: what files and classes may be called, through everything that writes names."""

import csv
import json
import logging
import os
import pathlib
import warnings

from conftest import made_experiment
import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_data_page import Page, small_records
from test_main import run as run_command
from video_writing import write_h264

from hybrid_video import checkpoints, command, errors, predict
from hybrid_video.datasets import listing, tfds_metadata
from hybrid_video.report import data_page, data_summary, figures, results
from hybrid_video.tasks import Evaluation

NAMES = {
  "dollars": "cost_$5_to_$10",
  "formula": r"$\frac$ x^2 _a_ \n",
  "markup": "<script>alert(1)</script><img src=x onerror=y>",
  "entities": "salt &amp; pepper & &lt;",
  "quotes": "it's \"so\" `said` '; --",
  "templates": "{{ 7 * 7 }} {% raw %} %s %d {0}",
  "escapes": "\x1b[31mred\x1b[0m\x07\x08 bell",
  "tab": "a\tb",
  "line break": "a\nb",
  "carriage return": "a\rb",
  "separators": "a\u2028b\x85c\x0bd",
  "bidi": "turned \u202egpj.avi\u202c \u2066x",
  "hebrew": "שלום עולם",
  "arabic": "مرحبا",
  "persian": "می\u200cرود",
  "devanagari": "नमस्ते",
  "combining": "e\u0301\u0323\u0302 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L",
  "emoji": "👩\u200d👧 🎬 👍🏽",
  "wide": "動画\u3000挥手",
  "long": "name_" * 80,
  "bytes": os.fsdecode(b"caf\xe9 \xff"),
  "comma": "=1+1, \"a\", 'b'",
}
# What a class cannot be called: its name has to be a line of text.
NO_LINES = ("line break", "carriage return")
every_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())


@every_name
def test_a_name_is_escaped_where_a_terminal_could_not_show_it_and_only_there(name):
  shown = errors.printable(name)
  shown.encode()
  assert not {letter for letter in shown if not letter.isprintable()} - set("\u200c\u200d")
  if not {"\x1b", "\t", "\n", "\r", "\x85", "\u202e", "\u3000"} & set(name) and name.isprintable():
    assert shown == name
  assert errors.printable(shown) == shown


def pages_tags(folder: pathlib.Path, name: str) -> tuple[Page, str]:
  """A page that shows a name wherever a page shows names."""
  summary = data_summary.summarize(
    small_records(
      class_names=(name, "bear", f"{name} too"),
      names=np.array([f"{i} {name}" for i in range(6)]),
      missing=(name,),
      unlisted=(f"{name}/{name}",),
      broken={name: f"{name} ends early"},
      dataset=name,
      folder=f"/records/{name}",
    ),
    1,
  )
  frames = np.zeros((2, 20, 30, 3), np.uint8)
  strip = figures.Strip(name, frames, [name, "1"], f"{name} · 2 frames")
  path = data_page.write(folder, summary, [data_page.Sheet("stored", name, name, [strip])])
  text = path.read_text()
  return Page(text), text


@every_name
def test_a_page_shows_the_name_as_text_and_nothing_else(tmp_path, name):
  page, text = pages_tags(tmp_path / "one", name)
  plain, _ = pages_tags(tmp_path / "other", "wave")
  shown = errors.printable(name)
  # The class, missing and broken, the strip's title.
  assert page.words.count(shown) >= 4
  assert page.tags == plain.tags
  assert len(page.images) == len(plain.images) and page.names == plain.names
  assert page.images[0]["alt"].startswith(f"2 frames of {shown}, ")
  assert not {"\x1b", "\u202e", "\x07"} & set(text)
  assert json.loads((tmp_path / "one" / "data.json").read_text())["classes"][0]["name"] == name
  # No file is called after a name.
  assert sorted(p.name for p in (tmp_path / "one").rglob("*")) == sorted(
    p.name for p in (tmp_path / "other").rglob("*")
  )


@every_name
def test_every_figure_can_be_drawn(tmp_path, name):
  clips = np.zeros((1, 2, 24, 24, 3), np.uint8)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    figures.confusion_matrix(tmp_path / "confusion.png", np.eye(2, dtype=int), [name, "wave"])
    figures.contact_sheet(tmp_path / "clips.png", clips, [name], [f"{name} too"])
  assert len(list(tmp_path.iterdir())) == 2


@every_name
def test_the_console_gets_a_line_that_it_can_show(name):
  record = logging.LogRecord("hybrid_video", logging.INFO, "", 0, "%s: read", (name,), None)
  line = command._Formatter("%(message)s").format(record)
  line.encode()
  assert line == errors.printable_lines(name) + ": read"
  shares = predict.Prediction(name, np.array([0.75, 0.25], np.float32), 1)
  shown = errors.printable(name)
  line = predict._line(shares, (name, "wave"), 1, 1)
  assert line == f"{shown}: {shown} 75.0 %, wave 25.0 %"
  summary = data_summary.text(
    data_summary.summarize(small_records(class_names=("a", "b", name), missing=(name,)), 1)
  )
  assert shown in summary and "\x1b" not in summary


@every_name
def test_tables_and_files_for_programs_give_the_name_back(tmp_path, name):
  classes = (name, "wave")
  made = predict.Prediction(name, np.array([0.75, 0.25], np.float32), 1)
  lines = tmp_path / "predictions.jsonl"
  lines.write_text(predict._as_json_line(made, classes))
  assert predict._write_csv(lines, tmp_path / "predictions.csv") == 1
  with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
    (row,) = csv.DictReader(file)
  # Bytes that are no text are written out.
  as_text = name.encode("utf-8", "backslashreplace").decode()
  assert (row["video"], row["top1"], row["top2"]) == (as_text, as_text, "wave")
  assert (row["top1_probability"], row["top3"]) == ("0.75", "")
  (line,) = lines.read_text().splitlines()
  assert json.loads(line) == {
    "video": name,
    "views": 1,
    "probabilities": {name: 0.75, "wave": 0.25},
  }
  path = results.write(tmp_path, {"classes": list(classes)})
  assert json.loads(path.read_text())["classes"][0] == name
  path = results.write_predictions(
    tmp_path, Evaluation({}, {}), {"names": np.array([name])}, classes, {}
  )
  with np.load(path) as saved:
    assert saved["names"].tolist() == [name] and saved["class_names"].tolist() == list(classes)
  description = checkpoints.Description(made_experiment(), classes)
  written = json.loads(json.dumps(description.to_json()))
  assert checkpoints.Description.from_json(written, "here").class_names == classes


def listed(folder: pathlib.Path, *labels: str) -> listing.Listing:
  path = folder / "a.avi"
  videos = [
    listing.Video(f"{i} {label}.avi", label, "group", (1,), path if i == 0 else None)
    for i, label in enumerate(labels)
  ]
  return listing.make("folder", folder, videos)


@pytest.mark.parametrize("key", NAMES)
def test_tfds_gets_every_class_under_its_id(tmp_path, key):
  made = listed(tmp_path, NAMES[key], "Wave", "wave")
  assert len(made.class_names) == 3
  tfds_metadata.features(made).save_config(tmp_path)
  read = tfds.features.FeaturesDict.from_config(tmp_path)
  # A name of several lines is written in one.
  lines = [name.replace("\n", r"\n").replace("\r", r"\r") for name in made.class_names]
  assert read["label"].names == lines
  (video,) = (video for video in made.videos if video.label not in ("Wave", "wave"))
  assert made.class_names.index(video.label) in (0, 1, 2)


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    ((" \t", "c"), "the class name ' ..', expected"),
    (("wave ", "wave"), "'wave ' and 'wave' differ in white space"),
  ],
)
def test_a_class_name_that_is_empty_or_another_one_is_refused(tmp_path, labels, message):
  with pytest.raises(listing.ListingError, match=message) as error:
    listed(tmp_path, *labels)
  assert "\n" not in str(error.value)


CLASSES = (
  "cost_$5_to_$10",
  "<b>&\"'`{{ 1 }}",
  "\x1b[31mred\t\u202e",
  "Wave",
  "wave",
  "שלום 👩\u200d👧",
  os.fsdecode(b"caf\xe9"),
  "n" * 200,
)


@pytest.mark.slow
def test_a_folder_of_such_classes_is_trained_evaluated_and_predicted(tmp_path):
  data, run = tmp_path / "data", tmp_path / "run"
  rng = np.random.default_rng(0)
  for of_list in ("train", "test"):
    for name in CLASSES:
      (data / of_list / name).mkdir(parents=True)
      frames = rng.integers(0, 256, (10, 32, 32, 3)).astype(np.uint8)
      write_h264(tmp_path / "clip.mkv", list(frames), range(10), 10)
      (tmp_path / "clip.mkv").rename(data / of_list / name / f"{of_list} {name[:9]}.mkv")
  done = run_command(
    "--config=configs/demo.py",
    "--config.dataset=folder",
    f"--config.data_dir={data}",
    f"--config.records_dir={tmp_path / 'records'}",
    f"--workdir={run}",
    "--config.clip.frames=4",
    "--config.clip.crop=16",
    "--config.stored.height=20",
    "--config.stored.width=20",
    "--config.model.name=r2plus1d_18",
    "--config.model.blocks=1",
    "--config.model.width=2",
    "--config.epochs=1",
    "--config.optimizer.warmup_epochs=0",
  )
  assert done.returncode == 0, done.stderr
  assert "\x1b[31mred" not in done.stdout + done.stderr and "not drawn" not in done.stdout
  classes = [
    name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in CLASSES
  ]
  outcome = json.loads((run / "results.json").read_text())
  assert sorted(outcome["classes"]) == sorted(classes)
  assert {path.name for path in (run / "figures").iterdir()} == {
    "clips.png",
    "confusion.png",
    "learning_curves.png",
    "where_the_model_looks.png",
  }
  with np.load(run / "predictions.npz") as saved:
    names, labels = saved["names"].tolist(), saved["labels"].tolist()
    assert saved["class_names"].tolist() == outcome["classes"]
  for name, label in zip(names, labels, strict=True):
    folder = name.split("/")[1].strip()
    assert folder == outcome["classes"][label]
  videos = sorted((data / "test").rglob("*.mkv"))
  predict.run(tmp_path / "predicted", videos, checkpoint=run)
  with (tmp_path / "predicted" / "predictions.csv").open(newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(CLASSES) and all(row["top1"] in classes for row in rows)
