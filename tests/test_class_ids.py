"""Class names and numbers: every form of a file of class names, and that ids stay the lists' own."""

import json

import pytest

from hybrid_video.datasets import class_ids, listing
from hybrid_video.datasets.tables import Row


def _rows(*labels):
  return [Row(f"list, line {line}", *label.split("=")) for line, label in enumerate(labels, 1)]


def _resolve(folder, labels, **files):
  paths = []
  for name, text in files.items():
    path = folder / name.replace("_csv", ".csv").replace("_json", ".json").replace("_txt", ".txt")
    path.write_text(text, encoding="utf-8")
    paths.append(path)
  return class_ids.resolve(_rows(*labels), paths)


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("labels_txt", "zoo, big\napple\nmid\n"),
    ("labels_txt", "0 zoo, big\n1 apple\n2 mid\n"),
    ("labels_txt", "\ufeff2 mid\r\n0 zoo, big\r\n1 apple\r\n"),
    ("labels_txt", "zoo, big 0\napple 1\nmid 2\n"),
    ("labels_txt", "0\tzoo, big\n1\tapple\n2\tmid\n"),
    ("label_map_csv", 'id,name\n0,"zoo, big"\n1,apple\n2,mid\n'),
    ("label_map_csv", "id,name\n1,apple\n2,mid\n0,zoo, big\n"),
    ("label_map_csv", 'name,id\n"zoo, big",0\napple,1\nmid,2\n'),
    ("label_map_csv", "1,apple\n0,zoo, big\n2,mid\n"),
    ("label_map_csv", "zoo, big,0\napple,1\nmid,2\n"),
    ("label_map_csv", "Class ID;Class Name\n0;zoo, big\n1;apple\n2;mid\n"),
    ("label_map_csv", 'nummer,wort\n0,"zoo, big"\n1,apple\n2,mid\n'),
    ("label_map_csv", 'id,name,count\n0,"zoo, big",7\n1,apple,8\n2,mid,9\n'),
    ("classes_csv", 'name\n"zoo, big"\napple\nmid\n'),
    ("labels_json", '["zoo, big", "apple", "mid"]'),
    ("labels_json", '{"1": "apple", "0": "zoo, big", "2": "mid"}'),
    ("labels_json", '{"apple": 1, "zoo, big": "0", "mid": 2}'),
  ],
)
def test_every_form_of_a_file_of_class_names_says_the_same(tmp_path, name, text):
  classes = _resolve(tmp_path, ["1", "0"], **{name: text})
  assert classes.in_order == ("zoo, big", "apple", "mid")
  assert classes.names == {"0": "zoo, big", "1": "apple"}


@pytest.mark.parametrize("text", ["1 zoo\n2 apple\n3 mid\n", "zoo\napple\nmid\n"])
def test_numbers_may_count_from_one_where_the_lists_do(tmp_path, text):
  classes = _resolve(tmp_path, ["1", "3"], classes_txt=text)
  assert classes.in_order == ("zoo", "apple", "mid")
  assert classes.names == {"1": "zoo", "3": "mid"}


def test_numbers_without_names_are_their_own_ids(tmp_path):
  assert _resolve(tmp_path, ["3", "0", "01"]).in_order == ("0", "1", "2", "3")
  assert _resolve(tmp_path, ["3", "0", "01"]).names == {"3": "3", "0": "0", "01": "1"}


def test_lists_with_names_and_numbers_keep_the_numbers(tmp_path):
  classes = _resolve(tmp_path, ["zoo=0", "apple=2", "zoo=0"])
  assert classes.in_order == ("zoo", "1", "apple")
  more = _resolve(tmp_path, ["zoo=0", "apple=2"], labels_txt="0 zoo\n1 mid\n2 apple\n3 more\n")
  assert more.in_order == ("zoo", "mid", "apple", "more")
  assert _resolve(tmp_path, ["zoo=1", "apple=2"]).in_order == ("zoo", "apple")


def test_names_alone_have_the_order_of_a_file_that_has_them_all(tmp_path, logged):
  assert _resolve(tmp_path, ["walk", "run"]).in_order == ()
  assert _resolve(tmp_path, ["walk", "run"], labels_txt="walk\nsit\nrun\n").in_order == (
    "walk", "sit", "run"
  )  # fmt: skip
  assert _resolve(tmp_path, ["walk", "run"], labels_txt="walk\nsit\n").in_order == ()
  assert "1 of the 2 classes in the lists are not in it, such as run" in logged.text


def test_a_list_of_videos_is_no_file_of_class_names(tmp_path):
  assert _resolve(tmp_path, ["0"], labels_csv="video;label\na;0\n").in_order == ("0",)
  assert _resolve(tmp_path, ["run"], labels_csv="a.mp4,run\nb.mp4,run\n").in_order == ()


def test_several_files_of_class_names_have_to_agree(tmp_path):
  same = {"labels_txt": "zoo\napple\n", "classes_txt": "1 zoo\n2 apple\n"}
  assert _resolve(tmp_path, ["zoo"], **same).in_order == ("zoo", "apple")
  with pytest.raises(listing.ListingError, match=r"labels\.txt and .*classes\.txt.*disagree"):
    _resolve(tmp_path, ["zoo"], **{**same, "classes_txt": "apple\nzoo\n"})


@pytest.mark.parametrize(
  ("labels", "files", "message"),
  [
    (["0", "2"], {"labels_txt": "a\nb\n"}, "line 2: found the label 2.*names 2 classes, 0 to 1"),
    (["0", "1"], {"labels_txt": "1 a\n2 b\n"}, "The lists count from 0 and that file from 1"),
    (["0"], {"labels_txt": "a\na\n"}, "line 2: the class 'a'.*named twice"),
    (["0"], {"labels_txt": "0 a\n0 b\n"}, "line 2: .*the number 0 is there twice"),
    (["0"], {"labels_json": '{"a": 0, "a": 1}'}, "'a'.*twice"),
    (["0"], {"labels_json": '{"a": [0]}'}, "expected a list of class names"),
    (["0"], {"labels_json": "{"}, "not JSON"),
    (["0"], {"labels_json": "[" * 10_000}, "not JSON"),
    (["0"], {"labels_txt": "\n"}, "names no class"),
    (["0"], {"labels_csv": "id,name\n0,a\nb,1\n"}, "found 'b,1', expected a class's number"),
    (["a=0", "b=0"], {}, "line 2: the class number 0 is 'b' here and 'a' elsewhere"),
    (["a=0", "a=1"], {}, "line 2: the class 'a' has the number 1 here and 0 elsewhere"),
    (["a=0"], {"labels_txt": "0 b\n"}, "the class number 0 is 'b' here and 'a' in the lists"),
    (["1=0", "a=2"], {}, "'1' is also the number of a class without a name"),
    (["0", "100000"], {}, "line 2: found the class number 100000, expected less"),
    (["9" * 5000], {}, "expected less than"),
    (["0", "-1"], {}, "line 2: found the label -1, expected a class's number, 0 or more"),
    (["0"], {"labels_txt": "0 a\n999999999999 b\n"}, "found the class number 999999999999"),
  ],
)  # fmt: skip
def test_contradictions_and_slips_are_refused(tmp_path, labels, files, message):
  with pytest.raises(listing.ListingError, match=message):
    _resolve(tmp_path, labels, **files)


def test_a_line_that_looks_like_a_program_is_a_name(tmp_path):
  name = "$(rm -rf x) <b> & co"
  assert _resolve(tmp_path, ["0"], labels_json=json.dumps([name])).in_order == (name,)
