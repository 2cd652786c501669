import pytest

from hybrid_video.datasets import kinetics, listing

OFFICIAL = "label,youtube_id,time_start,time_end,split\n"


def _write(folder, files, train, val, name="val.csv"):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "train.csv").write_text(train, encoding="utf-8")
  (folder / name).write_text(val, encoding="utf-8")
  for file in files:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).touch()
  return folder


def _about(listed):
  return [(v.name, v.label, v.codes, v.path and v.path.name) for v in listed.videos]


def test_official_lists_name_files_by_id_and_padded_seconds(tmp_path):
  folder = _write(
    tmp_path,
    ["train/-3B32lodo2M_000059_000069.mp4", "val/washing hands/_xy_000000_000010.WEBM", "tV.mkv"],
    OFFICIAL
    + "washing hands,-3B32lodo2M,59,69,train\nabseiling,tV,100000,100010,train\n"
    + "abseiling,gone,1,11,train\n",
    "\ufeff" + OFFICIAL.replace("split", "split,is_cc") + '"washing hands",_xy,0,10.0,validate,1\n',
  )
  listed = kinetics.read(folder)
  assert _about(listed) == [
    ("gone_000001_000011.mp4", "abseiling", (1,), None),
    ("tV_100000_100010.mp4", "abseiling", (1,), "tV.mkv"),
    ("-3B32lodo2M_000059_000069.mp4", "washing hands", (1,), "-3B32lodo2M_000059_000069.mp4"),
    ("_xy_000000_000010.mp4", "washing hands", (2,), "_xy_000000_000010.WEBM"),
  ]
  assert listed.num_splits == 1
  assert [video.group for video in listed.videos] == ["gone", "tV", "-3B32lodo2M", "_xy"]


@pytest.mark.parametrize(
  ("train", "val"),
  [
    ("path,label\nrun/a b.mp4,run fast\n", "label,path\nrun fast,run/c.mp4\n"),
    ("filename,label\nrun/a b.mp4, run fast\n", '"run/c.mp4","run fast"\n'),
    ("Label,Path\nrun fast,run/a b.mp4\n", "run/c.mp4,run fast\r\n\r\n"),
  ],
)
def test_lists_of_paths_are_read_with_and_without_a_header(tmp_path, train, val):
  folder = _write(tmp_path, ["run/a b.mp4", "run/c.mp4"], train, val)
  assert _about(kinetics.read(folder)) == [
    ("run/a b.mp4", "run fast", (1,), "a b.mp4"),
    ("run/c.mp4", "run fast", (2,), "c.mp4"),
  ]


def test_a_line_without_commas_is_split_at_its_last_space(tmp_path):
  files = ["run/a b, c.mp4", "run/-3B32lodo2M.mp4", "run/d'\".mp4"]
  folder = _write(
    tmp_path, files, "run/a b, c.mp4 10\n-3B32lodo2M 9\n", "run/d'\".mp4 10\nrun/e.mp4 9\n"
  )
  listed = kinetics.read(folder)
  assert listed.class_names == tuple(map(str, range(11)))
  assert [(v.name, v.label, v.path is None) for v in listed.videos] == [
    ("-3B32lodo2M", "9", False),
    ("run/e.mp4", "9", True),
    ("run/a b, c.mp4", "10", False),
    ("run/d'\".mp4", "10", False),
  ]


def test_paths_start_from_the_lists_folder_or_the_data_folder_or_are_absolute(tmp_path):
  outside = tmp_path / "elsewhere" / "z.mp4"
  outside.parent.mkdir()
  outside.touch()
  folder = _write(
    tmp_path / "data",
    ["videos/a.mp4", "videos/deep/b.mp4", "c.mp4"],
    "",
    "",
  )
  for name in ("train.csv", "val.csv"):
    (folder / name).unlink()
  _write(
    folder / "lists",
    [],
    f"../videos/a.mp4 0\ndeep/b.mp4 0\n{folder / 'c.mp4'} 0\n",
    f"{outside} 0\n",
  )
  assert [(v.name, v.path.resolve()) for v in kinetics.read(folder).videos] == [
    ("../videos/a.mp4", folder / "videos" / "a.mp4"),
    (str(outside), outside),
    ("c.mp4", folder / "c.mp4"),
    ("deep/b.mp4", folder / "videos" / "deep" / "b.mp4"),
  ]


@pytest.mark.parametrize("name", ["labels.txt", "label_map.txt", "kinetics_label_map.csv"])
def test_numbers_are_named_by_a_file_of_labels(tmp_path, name):
  folder = _write(tmp_path, ["a.mp4", "b.mp4", "c.mp4"], "a.mp4 1\nb.mp4 0\n", "c.mp4 1\n")
  (folder / name).write_text("zumba\nabseiling, high\n")
  listed = kinetics.read(folder)
  assert listed.class_names == ("zumba", "abseiling, high")
  assert [v.label for v in listed.videos] == ["zumba", "abseiling, high", "abseiling, high"]


def test_a_header_of_a_label_map_is_no_class(tmp_path):
  folder = _write(tmp_path, ["a.mp4", "b.mp4", "c.mp4"], "a.mp4 0\nb.mp4 1\n", "c.mp4 1\n")
  (folder / "kinetics_label_map.csv").write_text("id,name\n0,bread\n1,apple\n")
  listed = kinetics.read(folder)
  assert listed.class_names == ("bread", "apple")
  assert {video.name: video.label for video in listed.videos} == {
    "a.mp4": "bread",
    "b.mp4": "apple",
    "c.mp4": "apple",
  }


def test_a_list_of_windows_paths_is_found_and_what_lies_beside_is_named(tmp_path):
  files = ["v/run/1.mp4", "v/walk/1.mp4", "v/run/1.txt", "v/run/2.mp4"]
  train = "path,label\nD:\\k\\run\\1.mp4,run\nD:\\k\\walk\\1.mp4,walk\n"
  folder = _write(tmp_path, files, train, "path,label\nD:\\k\\run\\2.mp4,run\n")
  listed = kinetics.read(folder)
  assert [(video.name, video.path) for video in listed.videos] == [
    (f"D:/k/{name}.mp4", tmp_path / "v" / f"{name}.mp4") for name in ("run/1", "run/2", "walk/1")
  ]
  assert listed.ignored == (("v/run/1.txt", "not a video (text)"),)
  assert [video.group for video in listed.videos] == ["1", "2", "1"]


@pytest.mark.parametrize(
  "name", ["val.csv", "validate.csv", "validation.csv", "test.csv", "val.txt"]
)
def test_the_held_out_list_has_several_names(tmp_path, name):
  folder = _write(tmp_path, ["a.mp4", "b.mp4"], "a.mp4 0\n", "b.mp4 0\n", name)
  assert [video.codes for video in kinetics.read(folder).videos] == [(1,), (2,)]


def test_a_test_list_beside_a_validation_list_is_not_read(tmp_path):
  folder = _write(tmp_path, ["a.mp4", "b.mp4", "t.mp4"], "a.mp4 0\n", "b.mp4 0\n")
  (folder / "test.csv").write_text("youtube_id,time_start,time_end,split\nt,0,10,test\n")
  listed = kinetics.read(folder)
  assert [video.name for video in listed.videos] == ["a.mp4", "b.mp4"]
  assert [video.codes for video in listed.videos] == [(1,), (2,)]
  assert listed.unlisted == ("t.mp4",)
  # Kinetics' own test list, in a release that has labels.
  (folder / "test.csv").write_text(OFFICIAL + "0,t,0,10,test\n")
  assert len(kinetics.read(folder).videos) == 2


def test_three_lists_with_labels_are_three_lists(tmp_path):
  folder = _write(tmp_path, ["a.mp4", "b.mp4", "t.mp4"], "a.mp4 0\n", "b.mp4 0\n")
  (folder / "test.csv").write_text("t.mp4 0\n")
  listed = kinetics.read(folder)
  assert {video.name: video.codes for video in listed.videos} == {
    "a.mp4": (1,), "b.mp4": (3,), "t.mp4": (2,)
  }  # fmt: skip


@pytest.mark.parametrize(
  ("train", "val", "message"),
  [
    ("a.mp4 0\n", "a.mp4 0\n", "val.csv, line 1: a.mp4 is listed already in {0}/train.csv, line 1"),
    ("a.mp4 0\na.mp4 0\n", "b.mp4 0\n", "train.csv, line 2: a.mp4 is listed already"),
    ("a.mp4 0\n", "{0}/a.mp4 0\n", "val.csv, line 1: a.mp4 is listed already"),
    ("a.mp4 0\n", "a 0\n", "one file for two listed videos"),
    (
      OFFICIAL + "run,a,0,10,train\nrun,a,20,30,train\n",
      "b.mp4,run",
      "one file for two listed videos",
    ),
    ("a.mp4\n", "b.mp4 0\n", "train.csv, line 1: found 'a.mp4', expected"),
    ("a.mp4 0\n\nb.mp4,\n", "b.mp4 0\n", "train.csv, line 3: found 'b.mp4,'"),
    ("path,label\na.mp4,run,x\n", "b.mp4 0\n", "train.csv, line 2: found 3 fields, expected 2"),
    ("path,label\na.mp4,\n", "b.mp4 0\n", "train.csv, line 2: found 'a.mp4,'"),
    ("path,label\n", "b.mp4 0\n", "train.csv: the file lists no video"),
    ("", "b.mp4 0\n", "train.csv: the file lists no video"),
    ("youtube_id,split\nx,test\n", "b.mp4 0\n", "has no column `label`"),
    (OFFICIAL + "run,a,zero,10,train\n", "b.mp4 0\n", "line 2: found the time 'zero'"),
    ("a.mp4 0\n", "b.mp4 1\n", "test videos but none for training: 1"),
    ('path,label\n"a.mp4,run\n', "b.mp4 0\n", "train.csv, line 2: not a line of CSV"),
  ],
)
def test_an_unusable_list_is_refused_with_file_and_line(tmp_path, train, val, message):
  folder = _write(tmp_path, ["a.mp4", "b.mp4"], train, val.replace("{0}", str(tmp_path)))
  with pytest.raises(listing.ListingError) as error:
    kinetics.read(folder)
  assert message.replace("{0}", str(tmp_path)) in str(error.value)


def test_a_label_beyond_the_file_of_labels_is_refused(tmp_path):
  folder = _write(tmp_path, ["a.mp4", "b.mp4"], "a.mp4 0\nb.mp4 2\n", "c.mp4 0\n")
  (folder / "labels.txt").write_text("run\nwalk\n")
  with pytest.raises(
    listing.ListingError, match=r"train\.csv, line 2: found the label 2.*2 classes"
  ):
    kinetics.read(folder)


def test_a_missing_list_is_named(tmp_path):
  (tmp_path / "a.mp4").touch()
  with pytest.raises(listing.ListingError, match=r"train\.csv is not there"):
    kinetics.read(tmp_path)
  (tmp_path / "train.csv").write_text("a.mp4 0\n")
  with pytest.raises(listing.ListingError, match=r"val\.csv is not there"):
    kinetics.read(tmp_path)


def test_two_held_out_lists_are_refused(tmp_path):
  folder = _write(tmp_path, ["a.mp4"], "a.mp4 0\n", "b.mp4 0\n")
  (folder / "validate.csv").write_text("b.mp4 0\n")
  with pytest.raises(listing.ListingError, match="two files for one list"):
    kinetics.read(folder)
