"""Where listed videos lie: this machine's paths, another's, Windows', and none out of the folder."""

import pytest

from hybrid_video.datasets import listed_paths, listing
from hybrid_video.datasets.video_files import VideoFiles


def _finder(folder, *names, prefix=""):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
  return listed_paths.Finder(folder, VideoFiles(listing.files_below(folder)), prefix)


def _find(finder, folder, *texts, start=None):
  listed = [
    listed_paths.ListedPath(text, f"list, line {line}", start or folder)
    for line, text in enumerate(texts, 1)
  ]
  return [path and path.relative_to(folder).as_posix() for path in finder.find(listed)]


def test_a_path_starts_from_the_lists_folder_then_the_data_folder(tmp_path):
  finder = _finder(tmp_path, "lists/run/x.avi", "run/x.avi", "videos/run/y.avi")
  assert _find(finder, tmp_path, "run/x.avi", start=tmp_path / "lists") == ["lists/run/x.avi"]
  assert _find(finder, tmp_path, "run/x.avi", str(tmp_path / "run" / "x.avi")) == ["run/x.avi"] * 2


def test_a_relative_path_matches_all_its_last_components_or_none(tmp_path):
  finder = _finder(tmp_path, "videos/run/y.avi", "videos/outrun/z.avi")
  long = f"{'long' * 100}/y.avi"
  assert _find(finder, tmp_path, "run/y.mp4", "run/z.avi", "films/run/y.avi", long) == [
    "videos/run/y.avi", None, None, None
  ]  # fmt: skip


@pytest.mark.parametrize(
  "text",
  [
    "/home/anna/data/run/1.mp4",
    r"C:\data\run\1.mp4",
    r"C:\data\run/1.mp4",
    r"\\server\share\run\1.mp4",
    r"run\1.mp4",
    r".\run\1.mp4",
    "C:/run/1.avi",
  ],
)
def test_paths_of_other_machines_match_by_their_last_components(tmp_path, text):
  finder = _finder(tmp_path, "videos/run/1.mp4", "videos/walk/1.mp4", "other.mp4")
  assert _find(finder, tmp_path, text) == ["videos/run/1.mp4"]


def test_the_longest_ending_counts(tmp_path):
  finder = _finder(tmp_path, "train/run/1.mp4", "val/run/1.mp4")
  assert _find(finder, tmp_path, "/old/train/run/1.mp4", "/old/val/run/1.mp4") == [
    "train/run/1.mp4", "val/run/1.mp4"
  ]  # fmt: skip
  with pytest.raises(listing.ListingError, match="two files of one name"):
    _find(finder, tmp_path, "/old/run/1.mp4")


def test_the_file_of_another_listed_folder_is_never_taken(tmp_path):
  finder = _finder(tmp_path, "walk/1.mp4", "walk/2.mp4")
  assert _find(finder, tmp_path, "/old/run/1.mp4", "/old/walk/2.mp4") == [None, "walk/2.mp4"]
  deep = tmp_path / "deep"
  finder = _finder(deep, "val/run/1.mp4", "val/run/2.mp4")
  assert _find(finder, deep, "/old/train/run/1.mp4", "/old/val/run/2.mp4") == [
    None, "val/run/2.mp4"
  ]  # fmt: skip


def test_a_bare_name_tells_only_where_no_other_video_has_it(tmp_path):
  flat = tmp_path / "flat"
  assert _find(_finder(flat, "1.mp4", "2.mp4"), flat, "/a/run/1.mp4", "/a/walk/2.mp4") == [
    "1.mp4", "2.mp4"
  ]  # fmt: skip
  listed_twice = ["/a/run/1.mp4", "/a/walk/1.mp4", "/a/run/2.mp4"]
  assert _find(_finder(flat), flat, *listed_twice) == [None, None, "2.mp4"]
  there_twice = tmp_path / "twice"
  finder = _finder(there_twice, "x/1.mp4", "y/1.mp4", "2.mp4")
  assert _find(finder, there_twice, "/a/run/1.mp4", "/a/run/2.mp4") == [None, "2.mp4"]


def test_nothing_found_proposes_the_prefix_to_replace(tmp_path):
  finder = _finder(tmp_path, "p/1.mp4", "q/1.mp4")
  with pytest.raises(listing.ListingError) as error:
    _find(finder, tmp_path, "/home/anna/kinetics/train/1.mp4", "/home/anna/kinetics/val/1.mp4")
  assert f"would be {tmp_path / 'train' / '1.mp4'} here" in str(error.value)
  assert "--config.replace_prefix=/home/anna/kinetics=FOLDER" in str(error.value)
  with pytest.raises(listing.ListingError, match=r"replace_prefix=D:/films=FOLDER"):
    _find(finder, tmp_path, r"D:\films\a\1.mp4", r"D:\films\b\1.mp4")


@pytest.mark.parametrize("old", [r"D:\films", "D:/films/", r"D:\films" + "\\"])
def test_a_prefix_is_replaced_at_a_whole_component(tmp_path, old):
  finder = _finder(tmp_path, "p/1.mp4", "q/1.mp4", prefix=f"{old}={tmp_path}")
  listed = [r"D:\films\p\1.mp4", r"D:\films2\q\1.mp4"]
  assert _find(finder, tmp_path, *listed) == ["p/1.mp4", "q/1.mp4"]
  assert [finder.name(text) for text in listed] == ["p/1.mp4", "D:/films2/q/1.mp4"]


@pytest.mark.parametrize("prefix", ["/a", "=/b", "/a=", " = "])
def test_a_prefix_of_another_form_is_refused(tmp_path, prefix):
  with pytest.raises(listing.ListingError, match="expected OLD=NEW"):
    _finder(tmp_path, "1.mp4", prefix=prefix)


def test_a_prefix_that_no_path_has_is_refused(tmp_path):
  finder = _finder(tmp_path, "1.mp4", prefix="/b=/c")
  with pytest.raises(listing.ListingError, match=r"no path in the lists begins with /b.*1\.mp4"):
    _find(finder, tmp_path, "1.mp4")


@pytest.mark.parametrize("text", ["../x.mp4", "run/../../x.mp4", r"..\x.mp4", "../data2/x.mp4"])
def test_a_relative_path_out_of_the_data_folder_is_refused_with_its_line(tmp_path, text):
  folder = tmp_path / "data"
  finder = _finder(folder, "run/a.mp4")
  for name in ("x.mp4", "data2/x.mp4"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  with pytest.raises(listing.ListingError, match=r"list, line 2: .*leads out of the data folder"):
    _find(finder, folder, "run/a.mp4", text)


def test_dots_may_stay_within_the_folder_and_absolute_paths_may_leave_it(tmp_path):
  outside = tmp_path / "x.mp4"
  outside.touch()
  folder = tmp_path / "data"
  finder = _finder(folder, "run/a.mp4", "lists/b.mp4")
  assert _find(finder, folder, "../run/a.mp4", start=folder / "lists") == ["run/a.mp4"]
  listed = [listed_paths.ListedPath(str(outside), "list, line 1", folder)]
  assert finder.find(listed) == [outside]


def test_a_listed_path_has_the_same_name_on_every_machine(tmp_path):
  finder = _finder(tmp_path, "run/x.avi")
  assert finder.name(str(tmp_path / "run" / "x.avi")) == "run/x.avi"
  assert finder.name("./run/x.avi") == finder.name(r"run\x.avi") == "run/x.avi"


def test_a_name_may_hold_a_backslash(tmp_path):
  finder = _finder(tmp_path, r"a\b.mp4")
  assert _find(finder, tmp_path, r"a\b.mp4") == [r"a\b.mp4"]
