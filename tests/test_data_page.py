"""The counts of a data set against counts by hand, and its page as a browser's parser takes it."""

import html.parser
import json
import types

import jinja2
import numpy as np
from PIL import Image
import pytest

from hybrid_video import errors
from hybrid_video.datasets import records, splits
from hybrid_video.report import data_page, data_summary, figures, pages

NASTY = "a<script>alert(1)</script>&\"b'!\udce9\x1b[31m.avi"


def small_records(**changes) -> records.Records:
  """Six stored videos of three classes, the last class with none, in two splits."""
  count = 6
  zeros = np.zeros(count, np.int64)
  columns = {
    "dataset": "small",
    "folder": "/records",
    "class_names": ("ape", "bear", "cat"),
    "names": np.array([f"v{i}.avi" for i in range(count)]),
    "groups": np.array(["a", "a", "b", "b", "c", "d"]),
    "tags": np.full(count, "{}"),
    "labels": np.array([0, 0, 0, 1, 1, 1]),
    "split_codes": np.array([[1, 2], [2, 0], [1, 0], [1, 0], [2, 0], [0, 0]]),
    "fps": np.array([10.0, 10, 10, 20, 20, 30]),
    "num_frames": np.array([10, 20, 30, 40, 100, 15]),
    "height": np.array([38, 38, 38, 38, 38, 50]),
    "width": np.array([50, 50, 50, 50, 50, 38]),
    "shown_height": np.array([240, 240, 240, 240, 240, 320]),
    "shown_width": np.array([320, 320, 320, 320, 320, 240]),
    "notes": np.full(count, "{}"),
    "file_size": zeros,
    "file_modified": zeros,
    "file_ends": np.full(count, ""),
    "file_digest": np.full(count, ""),
    "shards": ("/records/one",),
    "shard": zeros,
    "offset": zeros,
    "length": np.full(count, 100),
    "headers": (types.SimpleNamespace(rows=48),),
    "header_ids": zeros,
    "first_frame": zeros,
    "scan_at": zeros,
    "scan_bytes": zeros,
    "scan_crc": zeros,
    "missing": ("m0.avi", "m1.avi"),
    "broken": {NASTY: "it <ends> early"},
    "unlisted": ("left/over.avi",),
    "jpeg_quality": 90,
  }
  return records.Records(**{**columns, **changes})


def test_videos_lists_and_classes_are_counted():
  summary = data_summary.summarize(small_records(), 1)
  assert summary["videos"] == {"listed": 9, "stored": 6, "missing": 2, "broken": 1, "unlisted": 1}
  assert summary["lists"] == {"train": 3, "validation": 0, "test": 2, "unused": 1}
  ape, bear, cat = summary["classes"]
  assert ape == {"name": "ape", "stored": 3, "train": 2, "validation": 0, "test": 1, "unused": 0}
  assert (bear["train"], bear["test"], bear["unused"]) == (1, 1, 1)
  assert (cat["name"], cat["stored"]) == ("cat", 0)


def test_lengths_and_sizes_are_those_counted_by_hand():
  summary = data_summary.summarize(small_records(), 1)
  # Seconds: 1, 2, 3, 2, 5, 0.5.
  assert summary["frames"] == 215
  assert summary["hours"] == pytest.approx(13.5 / 3600)
  assert summary["length_seconds"] == {"least": 0.5, "median": 2.0, "mean": 2.25, "most": 5.0}
  assert summary["length_frames"]["median"] == 25.0
  # A record has 16 bytes around its data.
  assert summary["bytes"] == 6 * 116
  assert summary["bytes_per_frame"] == pytest.approx(696 / 215)
  assert summary["fps_histogram"][0] == {"fps": 10.0, "videos": 3}
  assert summary["sizes"] == [
    {"height": 38, "width": 50, "videos": 5},
    {"height": 50, "width": 38, "videos": 1},
  ]
  bins = [(b["from"], b["below"], b["videos"]) for b in summary["seconds_histogram"]]
  assert bins == [(0.5, 1, 1), (1, 2, 1), (2, 3, 2), (3, 4, 1), (4, 5, 0), (5, 7, 1)]
  assert [b["videos"] for b in summary["frames_histogram"]] == [2, 2, 1, 1]


def test_what_was_adapted_is_counted_named_and_warned_of(tmp_path):
  notes = np.array(
    [
      json.dumps({"orientation": "turned by 180°", "time": "<3> clocks"}),
      "{}",
      json.dumps({"time": "61 frames at uneven times"}),
      json.dumps({"stream": "stream 1 is taken", "pixel aspect": "pixels of 64:45"}),
      "{}",
      json.dumps({"start": "2 frames"}),
    ]
  )
  summary = data_summary.summarize(small_records(notes=notes), 1)
  assert summary["adapted"][0] == {"name": "v0.avi", "kind": "time", "note": "<3> clocks"}
  assert [entry["kind"] for entry in summary["adapted"]] == [
    *("time", "time", "orientation", "pixel aspect", "stream", "start")
  ]
  assert summary["shapes"] == {"upright": 1, "near 4:3": 5}
  warnings = "\n".join(data_summary.warnings(summary))
  assert "2 videos, put on an even grid" in warnings and "v0.avi, v2.avi" in warnings
  assert "1 video, turned or mirrored" in warnings
  assert "several shapes (1 upright, 5 near 4:3)" in warnings
  page = data_page.write(tmp_path, summary, ()).read_text(encoding="utf-8")
  assert "turned by 180°" in page and "&lt;3&gt; clocks" in page
  assert "240 × 320" in page and "pixels of 64:45" in page


def test_a_video_longer_than_every_bin_is_counted():
  summary = data_summary.summarize(small_records(num_frames=np.full(6, 10**6)), 1)
  assert summary["seconds_histogram"][-1] == {"from": 3600.0, "below": None, "videos": 6}


def test_groups_in_both_lists_are_a_leak_that_is_reported():
  summary = data_summary.summarize(small_records(), 1)
  assert summary["groups"] == {
    "stored": 4,
    "in_lists": 3,
    "in_train_and_test": 1,
    "test_videos_in_shared": 1,
    "validation": 0,
  }
  assert "1 of 3 groups" in data_summary.text(summary)
  assert "1 of 2 test videos" in data_summary.text(summary)


def test_validation_takes_whole_groups_out_of_training_and_hides_no_leak():
  index = small_records()
  for share in np.linspace(0, 0.99, 12).tolist():
    lists = splits.list_indices(index, 1, share)
    assert sorted([*lists["train"], *lists["validation"]]) == [0, 2, 3]
    train, validation = (set(index.groups[lists[name]]) for name in ("train", "validation"))
    assert not train & validation
    summary = data_summary.summarize(index, 1, share)
    assert summary["groups"]["in_train_and_test"] == 1
    assert summary["groups"]["validation"] == len(validation)


def test_a_split_that_does_not_exist_is_refused():
  with pytest.raises(errors.UserError, match="no split 3"):
    data_summary.summarize(small_records(), 3)


def test_the_summary_survives_json():
  summary = data_summary.summarize(small_records(), 1, 0.3)
  assert json.loads(json.dumps(summary)) == summary


def test_the_text_says_what_is_wrong_in_few_lines_and_prints_anywhere():
  # All that can be wrong at once: an empty list, a class without training, missing, broken, left over.
  codes = np.zeros((6, 1), np.int64)
  codes[5] = 2
  for index in (small_records(), small_records(split_codes=codes)):
    text = data_summary.text(data_summary.summarize(index, 1, 0.001))
    assert len(text.splitlines()) <= 15
    assert all(len(line) < 400 for line in text.splitlines())
    text.encode("ascii")
    assert "\x1b" not in text and "\\udce9" in text
    assert "2 listed videos have no file" in text
    assert "1 class has no stored video: cat" in text
  assert "training list of split 1 has no stored video" in text


def size_of(path) -> tuple[int, int]:
  with Image.open(path) as picture:
    return picture.size


class Page(html.parser.HTMLParser):
  """Parses a page, and fails where tags do not close in order."""

  VOID = ("meta", "img", "br")

  def __init__(self, text: str):
    super().__init__()
    self.open: list[str] = []
    self.images: list[dict] = []
    self.links: list[str] = []
    self.names: list[str] = []
    self.tags: set[str] = set()
    self.words: list[str] = []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.tags.add(tag)
    assert not [name for name in values if name.startswith("on")]
    if tag == "img":
      self.images.append(values)
    if tag == "a":
      self.links.append(values["href"])
    if "id" in values:
      self.names.append(values["id"])
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)


def strip(count=3, title="wave", size=(20, 30)) -> figures.Strip:
  rng = np.random.default_rng(count)
  frames = rng.integers(0, 256, (count, *size, 3)).astype(np.uint8)
  return figures.Strip(title, frames, [f"{i}" for i in range(count)], "detail")


def written(folder, sheets=(), **changes):
  page = data_page.write(folder, data_summary.summarize(small_records(**changes), 1), sheets)
  return page, Page(page.read_text())


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
  sheets = [data_page.Sheet("stored", "As stored", "Frames.", [strip(3), strip(5)])]
  path, page = written(tmp_path / "new" / "folder", sheets)
  assert not page.tags & {"script", "link", "iframe"}
  assert len(page.images) == 2
  for image in page.images:
    assert image["alt"]
    assert size_of(path.parent / image["src"]) == (int(image["width"]), int(image["height"]))
  assert len(set(page.names)) == len(page.names)
  for link in page.links:
    assert link[1:] in page.names if link[0] == "#" else (path.parent / link).is_file()
  text = path.read_text()
  assert "http" not in text and "@import" not in text
  assert json.loads((path.parent / "data.json").read_text())["frames"] == 215


def test_names_cannot_become_markup(tmp_path):
  names = ("<img src=x onerror=alert(1)>", "b&amp;", "cat")
  sheets = [data_page.Sheet("stored", "As <stored>", "<p>", [strip(title=NASTY)])]
  changes = {"class_names": names, "dataset": "<i>", "missing": (NASTY,), "unlisted": (NASTY,)}
  path, page = written(tmp_path, sheets, **changes)
  assert not page.tags & {"script"}
  assert len(page.images) == 1
  words = "".join(page.words)
  for name in names:
    assert name in words
  shown = errors.printable(NASTY)
  # Broken, missing, unlisted, and the strip's title.
  assert words.count(shown) >= 4
  assert "\x1b" not in path.read_text()


def test_names_of_any_letters_are_shown_as_they_are(tmp_path):
  dollars, hebrew, arabic, quoted = (
    "cost_$5_to_$10",
    "שלום",
    "مرحبا {{ 7 * 6 }} 😀",
    'it\'s "so" & so',
  )
  sheets = [data_page.Sheet("stored", "As stored", "Frames.", [strip(title=hebrew)])]
  names = {"missing": ("line\nbreak.avi", "turned\u202earound.avi"), "broken": {arabic: "cut off"}}
  path, page = written(tmp_path, sheets, class_names=(dollars, hebrew, quoted), **names)
  words = "".join(page.words)
  assert all(name in words for name in (dollars, hebrew, arabic, quoted))
  # What would end a line or turn the text around it is written out.
  assert "line\\nbreak.avi" in words and "turned\\u202earound.avi" in words
  assert page.images[0]["alt"].startswith(f"3 frames of {hebrew}, ")
  # A name from right to left does not move what stands beside it.
  assert f"<bdi>{hebrew}</bdi>" in path.read_text()


def test_a_template_without_one_of_its_values_is_an_error():
  with pytest.raises(jinja2.UndefinedError, match="sections"):
    pages.render("base.html.j2")


def test_a_page_that_cannot_be_written_says_where_and_why(tmp_path):
  (tmp_path / "taken").write_text("a file")
  with pytest.raises(data_page.PageError, match=r"taken.*Not a directory.*--workdir"):
    written(tmp_path / "taken" / "inspection")
  (tmp_path / "stored.png").mkdir()
  (tmp_path / "stored.png" / "kept").touch()
  sheets = [data_page.Sheet("stored", "As stored", "Frames.", [strip()])]
  with pytest.raises(errors.UserError, match=r"cannot be written .*Make room"):
    written(tmp_path, sheets)


def test_every_broken_video_is_on_the_page_with_its_reason(tmp_path):
  broken = {f"clip{i}.avi": f"reason {i}." for i in range(60)}
  _, page = written(tmp_path, broken=broken)
  words = "".join(page.words)
  assert all(name in words and reason in words for name, reason in broken.items())
  assert "--config.missing_allowed" in words


def test_very_many_missing_names_are_cut_on_the_page_and_whole_in_the_file(tmp_path):
  missing = tuple(f"clip{i}.avi" for i in range(2100))
  path, page = written(tmp_path, missing=missing)
  words = "".join(page.words)
  assert "clip1999.avi" in words and "clip2000.avi" not in words and "100 more in" in words
  assert json.loads((path.parent / "data.json").read_text())["missing"] == list(missing)


def test_a_sheet_without_strips_says_so_and_the_last_run_s_pictures_go(tmp_path):
  written(tmp_path, [data_page.Sheet("evaluated", "As evaluated", "Views.", [strip(), strip()])])
  empty = data_page.Sheet("evaluated", "As evaluated", "The test list has no stored video.")
  path, page = written(tmp_path, [empty])
  assert not page.images and "The test list has no stored video." in "".join(page.words)
  assert not list(path.parent.rglob("*.png"))
