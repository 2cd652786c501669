"""Reports of a made-up run and study: their numbers, what is refused, and the page in a real browser."""

import html.parser
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from configs import demo
from hybrid_video import experiment, reporting
from hybrid_video.analysis import summary
from hybrid_video.analysis.predictions import Predictions
from hybrid_video.report import (
  film_strips,
  looking,
  pages,
  results,
  run_report,
  study_report,
  study_videos,
)

NASTY = "a<script>alert(1)</script>&|\"b'\x1b"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def make_run(folder: pathlib.Path, classes: int = 8, videos: int = 90) -> pathlib.Path:
  """The files that an evaluated run leaves, without records and checkpoint."""
  folder.mkdir(parents=True)
  rng = np.random.default_rng(classes)
  # The last class has no test video.
  labels = np.arange(videos) % (classes - 1)
  names = [NASTY, *(f"class {i}" for i in range(1, classes))]
  scores = rng.dirichlet(np.full(classes, 0.4), videos).astype(np.float32)
  scores[np.arange(videos), labels] += 0.5
  scores /= scores.sum(1, keepdims=True)
  np.savez(
    folder / "predictions.npz",
    names=np.array([f"{NASTY}{i}.avi" for i in range(videos)]),
    class_names=np.array(names),
    probabilities=scores,
    labels=labels,
    view_probabilities=scores,
    view_videos=np.arange(videos),
    groups=np.array([f"film {i // 3}" for i in range(videos)]),
  )
  outcome = {
    "config": experiment.from_config(demo.get_config()).to_json(),
    "dataset": NASTY,
    "classes": names,
    "protocol": "one view of each video",
    "step": 20,
    "parameters": {"total": 103748},
    "test": {"loss": 1.25, "video_top1": 0.5},
  }
  (folder / "results.json").write_text(json.dumps(outcome))
  lines = [
    {"step": 10 * i, "epoch": i, "train/loss": 2 / i, "train/top1": 0.2 * i,
     "validation/loss": 2.2 / i, "validation/video_top1": 0.18 * i}
    for i in (1, 2, 3)
  ]  # fmt: skip
  (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder


def study_of(rows: int = 3) -> dict:
  """What a study gathers, of so many rows in two forms."""
  table, runs, found = [], [], []
  for i in range(rows):
    for form in ("as_published", "corrected"):
      mean = 0.5 + 0.1 * i + (0.02 if form == "corrected" else 0)
      row = {
        "row": f"cnn{i}", "label": f"{i} CNN blocks {NASTY if not i else ''}", "form": form,
        "as_published": form == "as_published", "states": {"done": 1, "failed": int(i == 1)},
        "published": {"video_top1": 0.4567}, "source": "a paper", "axes": {"gap_seconds": i},
        "missing_predictions": 3 if i == 0 else 0, "protocol": "one view",
        "parameters": {"total": 1234567 * (i + 1)}, "multiply_accumulates": 4.2e9 * (i + 1),
        "evaluation_clips_per_second": 30.0 / (i + 1), "mean": {"video_top1": mean},
        "sd": {"video_top1": 0.0123}, "interval": {"video_top1": [mean - 0.08, mean + 0.07]},
      }  # fmt: skip
      table.append(row)
      runs.append({"row": f"cnn{i}", "form": form, "split": 1, "seed": 0, "state": "done",
                   "workdir": f"runs/{form}/cnn{i}/split1_seed0", "protocol": "one view"})  # fmt: skip
    if i:
      found.append({"rows": ["cnn0", f"cnn{i}"], "forms": ["corrected"] * 2, "videos": 90,
                    "difference": 0.1 * i, "interval": [0.01, 0.2 * i], "p": 0.004,
                    "p_holm": 0.008 if i == 1 else 0.2})  # fmt: skip
  return {"title": f"Depth {NASTY}", "question": "Does attention help?", "table": table,
          "runs": runs, "comparisons": found}  # fmt: skip


def make_study(folder: pathlib.Path, study: dict | None = None) -> pathlib.Path:
  study = study_of() if study is None else study
  folder.mkdir()
  (folder / "study.json").write_text(json.dumps(study))
  for name in {run["workdir"] for run in (*study["runs"][:2], study["runs"][-1])}:
    make_run(folder / name)
  return folder


class _Text(html.parser.HTMLParser):
  def __init__(self, page: str):
    super().__init__()
    self.tags, self.words, self.addresses = [], [], []
    self.feed(page)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset")]

  def handle_data(self, data):
    self.words.append(data)


def report_of(folder: pathlib.Path) -> tuple[str, _Text]:
  page = reporting.run(folder, None).read_text(encoding="utf-8")
  return page, _Text(page)


def test_a_runs_page_has_its_numbers_and_needs_nothing_else(tmp_path):
  folder = make_run(tmp_path / "run")
  page, parsed = report_of(folder)
  numbers = summary.summarize(Predictions.read(folder))["numbers"]
  text = "".join(parsed.words)
  for name in ("video_top1", "mean_class_accuracy", "expected_calibration_error"):
    assert f"{100 * numbers[name]['value']:.1f} %" in text
  low, high = (100 * numbers["video_top1"][name] for name in ("low", "high"))
  assert f"{low:.1f} to {high:.1f} %" in text
  assert f"{low:.1f} to {high:.1f} %" in (folder / "report.md").read_text()
  assert "1 of 8 classes without test videos" in text
  # Names are text, and one script is the page's own.
  assert "alert(1)</script>&|" in text and parsed.tags.count("script") == 1
  assert "Not shown" in text
  assert all(a.startswith(("#", "data:")) for a in parsed.addresses)
  assert not re.search(r"https?:|url\((?!#)|@import", page)
  assert len(page) < 15e6


def test_a_runs_page_says_which_classes_it_has_seen_before(tmp_path):
  folder = make_run(tmp_path / "run")
  outcome = json.loads((folder / "results.json").read_text())
  outcome["started_from"] = {
    "source": NASTY, "data": "ucf101", "classes": 101, "same_data": False,
    "shared": {"class 1": ["RopeClimbing", NASTY], NASTY: ["PullUps"]},
  }  # fmt: skip
  (folder / "results.json").write_text(json.dumps(outcome))
  _, parsed = report_of(folder)
  text = "".join(parsed.words)
  assert "trained on ucf101: 2 of 8 classes are also among its 101, which blurs" in text
  assert "its name there" in text and "RopeClimbing, a<script>" in text
  assert parsed.tags.count("script") == 1
  assert "2 of 8 classes are also among its 101" in (folder / "report.md").read_text()


def test_a_studys_page_has_rows_forms_and_tests(tmp_path):
  page, parsed = report_of(make_study(tmp_path / "study"))
  text = "".join(parsed.words)
  for words in ("45.7 %", "70.0 %", "72.0 %", "1,234,567", "4.200", "64.0 to 79.0 %", "0.0080",
                "predictions of 3 videos are missing", "1 of its runs failed", "optimistic",
                "Of all 2 differences 1 is larger than chance"):  # fmt: skip
    assert words in text, words
  assert not re.search(r"https?:", page) and parsed.tags.count("script") == 1
  assert "\\|" in (tmp_path / "study" / "report.md").read_text()


def test_what_a_study_asks_is_answered_first_whichever_way_it_falls(tmp_path):
  study = study_of()
  study["asks"] = [["cnn2", "cnn0"], ["cnn0", "cnn1"], ["cnn2", "cnn1"]]
  study["published_elsewhere"] = "hmdb51"
  study["comparisons"][0]["interval_over_runs"] = [-0.02, 0.3]
  said = study_report.answers(study)
  label = study["table"][0]["label"]
  assert said[1] == (
    f"2 CNN blocks  against {label}: +20.0 points (95 % interval +1.0 to +40.0), "
    "p 0.0040, by Holm 0.2000: not larger than chance."
  )
  # The other way round; a pair that was not compared has no sentence.
  assert said[2] == (
    f"{label} against 1 CNN blocks : -10.0 points (95 % interval -20.0 to -1.0; "
    "over runs too -30.0 to +2.0), p 0.0040, by Holm 0.0080: larger than chance."
  )
  assert said[3].startswith("Of all 2 differences 1 is larger than chance")
  # What was published of other data stands in the table, named, and in no plot.
  folder = make_study(tmp_path / "study", study)
  shown = study_report.values(folder, study)
  assert "published (hmdb51)" in shown["table"].heads
  assert "published elsewhere" not in str(shown["main"].svg)


def test_a_study_along_an_axis_is_drawn_as_curves(tmp_path):
  study = study_of(1)
  (row,) = study["table"][1:]
  study["table"] = [
    {**row, "row": f"{architecture}{gap}_{frames}", "majority_class": 0.25,
     "axes": {"architecture": architecture, "gap_seconds": gap, "frames": frames}}
    for architecture in ("CNN", "hybrid")
    for gap, frames in ((0.0, 16), (0.5, 16), (4.0, 16), (4.0, 32))
  ]  # fmt: skip
  folder = make_study(tmp_path / "study", study)
  _, parsed = report_of(folder)
  text = "".join(parsed.words)
  # At 32 frames there is one gap, which is no curve; what all curves share stands in the caption.
  assert "Accuracy against gap between the two events (s), 16 frames a clip" in text
  assert "Accuracy against frames a clip, gap between the two events 4 s" in text
  assert "A constant answer, the most frequent class, is right on 25.0 %." in text
  heads = study_report.table(study).heads
  assert "measured" in heads and "published" in heads
  for row in study["table"]:
    row["published"] = {}
  assert "published" not in study_report.table(study).heads
  charts = {chart.name: chart for chart in study_report.values(folder, study)["against"]}
  assert "by_frames" in charts and "accuracy" not in charts
  svg = str(study_report.values(folder, study)["main"].svg)
  assert ">CNN<" in svg and ">hybrid<" in svg and "majority class" in svg


def test_a_study_of_one_row_and_one_without_results_have_pages(tmp_path):
  alone = study_of(1)
  alone["table"], alone["runs"] = alone["table"][1:], alone["runs"][1:]
  _, parsed = report_of(make_study(tmp_path / "one", alone))
  assert "no two rows to compare" in "".join(parsed.words)
  for name in ("mean", "sd", "interval", "parameters", "protocol"):
    del alone["table"][0][name]
  alone["runs"][0]["state"] = "waiting"
  _, parsed = report_of(make_study(tmp_path / "none", alone))
  assert "No run is finished yet" in "".join(parsed.words)


def test_rows_that_are_trained_on_other_shares_stand_in_one_table(tmp_path):
  # What is measured differently is refused where runs are gathered: `gathering.MixedRunsError`.
  shares = study_of()
  shares["runs"][3]["protocol"] = "one view; trained on 10 % of the training groups"
  report_of(make_study(tmp_path / "shares", shares))


def test_rows_of_one_name_are_refused(tmp_path):
  twice = study_of()
  twice["table"][2]["row"] = "cnn0"
  with pytest.raises(results.ReportError, match="two rows are called cnn0"):
    report_of(make_study(tmp_path / "twice", twice))


def test_damaged_and_missing_files_are_named(tmp_path):
  with pytest.raises(results.ReportError, match="neither"):
    reporting.run(tmp_path, None)
  folder = make_run(tmp_path / "run")
  (folder / "results.json").write_text('{"test": ')
  with pytest.raises(results.ReportError, match=r"results.json: is not JSON"):
    reporting.run(folder, None)
  (folder / "results.json").write_text('{"test": {}}')
  with pytest.raises(results.ReportError, match="lacks config"):
    reporting.run(folder, None)


def test_an_interrupted_report_leaves_the_old_one(tmp_path, monkeypatch):
  folder = make_run(tmp_path / "run")
  report_of(folder)
  before = {path.name: path.read_bytes() for path in folder.iterdir()}

  def interrupted(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(film_strips.Tested, "open", interrupted)
  with pytest.raises(KeyboardInterrupt):
    reporting.run(folder, None)
  monkeypatch.undo()
  monkeypatch.setattr(pages, "render", interrupted)
  with pytest.raises(KeyboardInterrupt):
    reporting.run(folder, None)
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_hardest_videos_are_those_of_least_probability_of_their_class(tmp_path):
  predictions = Predictions.read(make_run(tmp_path / "run"))
  rows, confident = film_strips.hardest(predictions)
  scores, labels = predictions.scores(), predictions.labels
  assert not set(rows) & set(confident)
  assert (scores[confident].argmax(1) != labels[confident]).all()
  of_true = scores[np.arange(len(labels)), labels]
  rest = np.setdiff1d(np.arange(len(labels)), [*rows, *confident])
  assert of_true[rows].max() <= of_true[rest].min()


def test_confusion_counts_every_video_once(tmp_path):
  predictions = Predictions.read(make_run(tmp_path / "run", 101, 300))
  matrix = run_report.confusion(predictions)
  assert sum(count for row in matrix["rows"] for count, *_ in row["cells"]) == 300
  assert len(matrix["rows"]) == 100


@pytest.fixture(scope="module")
def browser():
  playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
  path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
  if path is None:
    pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
  with playwright.sync_playwright() as driver:
    opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
    yield opened
    opened.close()


@pytest.mark.parametrize("kind", ["run", "many classes", "study"])
def test_the_page_passes_in_a_browser(browser, tmp_path, kind):
  folder = tmp_path / "folder"
  if kind == "study":
    make_study(folder)
  else:
    make_run(folder, *((101, 300) if kind == "many classes" else ()))
  picture = pages.FrameStrip(
    film_strips.data_uri(film_strips._jpeg(np.zeros((40, 80, 3), np.uint8)), "jpeg"),
    "a", "b", ["0 s"], 80, 40,
  )  # fmt: skip
  with pytest.MonkeyPatch.context() as patch:
    section = film_strips.Section("hardest", "Hardest", "Videos.", [picture])
    patch.setattr(film_strips.Tested, "open", lambda *_: None)
    patch.setattr(film_strips, "hard_videos", lambda *_: [section])
    patch.setattr(looking, "rows", lambda *_: [])
    patch.setattr(study_videos, "_looks", lambda *_: [])
    reporting.run(folder, None)
  opened = browser.new_page(viewport={"width": 375, "height": 800})
  problems, asked = [], []
  opened.on(
    "console", lambda line: line.type in ("error", "warning") and problems.append(line.text)
  )
  opened.on("pageerror", lambda error: problems.append(str(error)))
  opened.on("request", lambda request: asked.append(request.url.partition(":")[0]))
  opened.goto((folder / "report.html").as_uri())
  for width in (375, 1440):
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
  for image in opened.query_selector_all("img"):
    image.scroll_into_view_if_needed()
  opened.wait_for_function("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
  assert opened.evaluate("document.images.length") == 1
  heads = opened.locator("table.sortable").first.locator("th[scope=col]")
  place = 4 if kind == "study" else 2
  column = opened.locator("table.sortable").first.locator(f"tbody tr > :nth-child({place})")
  button = heads.nth(place - 1)

  def numbers() -> list[float]:
    return [float(text.split()[0]) for text in column.all_inner_texts()]

  button.locator("button").click()
  assert button.get_attribute("aria-sort") == "ascending" and numbers() == sorted(numbers())
  button.locator("button").focus()
  opened.keyboard.press("Enter")
  assert button.get_attribute("aria-sort") == "descending"
  assert numbers() == sorted(numbers(), reverse=True)
  colours = set()
  for scheme in ("light", "dark"):
    opened.emulate_media(color_scheme=scheme)
    colours.add(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
    colours.add(opened.evaluate("getComputedStyle(document.querySelector('svg text')).fill"))
  assert len(colours) == 4
  opened.close()
  assert not problems and set(asked) <= {"file", "data"}
