from conftest import moving_square
import pytest

from hybrid_video import datasets
from hybrid_video.datasets import folder as own_folder
from hybrid_video.datasets import listing, made_actions, splits


def _touch(folder, names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
  return folder


def _names(number, labels=("run", "walk")):
  return [f"{label}/{i}.mp4" for label in labels for i in range(number)]


def _lists(folder, **kwargs):
  return {video.name: video.codes for video in own_folder.read(folder, **kwargs).videos}


def test_the_first_folder_is_the_class_and_the_next_the_group(tmp_path):
  _touch(tmp_path, [*_names(20), "run/film1/a.MP4", "walk/film1/deep/b.avi"])
  videos = {video.name: video for video in own_folder.read(tmp_path).videos}
  assert videos["run/film1/a.MP4"].label == "run"
  assert videos["run/film1/a.MP4"].group == videos["walk/film1/deep/b.avi"].group == "film1"
  assert videos["walk/film1/deep/b.avi"].path == tmp_path / "walk" / "film1" / "deep" / "b.avi"
  assert len({video.group for video in videos.values()}) == 41


def test_pretraining_needs_no_classes(tmp_path):
  _touch(tmp_path, [*(f"{i}.mp4" for i in range(20)), "film1/a.mp4", "film1/day2/b.mp4"])
  with pytest.raises(
    listing.ListingError, match=r"found the one class film1.*can pretrain a model"
  ):
    own_folder.read(tmp_path)
  found = own_folder.read(tmp_path, needs_classes=False)
  videos = {video.name: video for video in found.videos}
  assert len(videos) == 22 and not found.ignored
  assert videos["3.mp4"].label == own_folder.UNLABELLED and videos["3.mp4"].group == "3"
  # The same groups are held out as from a folder with classes.
  assert videos["film1/day2/b.mp4"].group == "day2"
  flat = _touch(tmp_path / "flat", ["a.mp4", "b.mp4", "c.mp4"])
  labels = {
    video.label for video in own_folder.read(flat, needs_classes=False, test_share=0).videos
  }
  assert labels == {own_folder.UNLABELLED}


def test_more_videos_are_trained_on_in_every_split_and_have_no_class(tmp_path):
  own = _touch(tmp_path / "own", _names(8))
  more = _touch(tmp_path / "more", ["walk/film1/a.mp4", "b.avi"])
  both = datasets.read("folder", own, folds=2, needs_classes=False, more_videos=more)
  alone = datasets.read("folder", own, folds=2)
  assert [video for video in both.videos if not video.name.startswith("more/")] == [*alone.videos]
  added = {video.name: video for video in both.videos if video.name.startswith("more/")}
  assert set(added) == {"more/walk/film1/a.mp4", "more/b.avi"}
  assert {video.codes for video in added.values()} == {(splits.TRAIN, splits.TRAIN)}
  assert {video.label for video in added.values()} == {own_folder.UNLABELLED}
  assert added["more/walk/film1/a.mp4"].group == "more/film1"
  assert both.class_names == (*alone.class_names, own_folder.UNLABELLED)
  # A video of the test list cannot come in by the back door.
  with pytest.raises(listing.ListingError, match="one file for two listed videos"):
    datasets.read("folder", own, needs_classes=False, more_videos=own / "run")
  held_out = _touch(tmp_path / "held", ["train/walk/a.mp4", "test/walk/b.mp4"])
  joined = datasets.read("folder", own, needs_classes=False, more_videos=held_out)
  assert [v.name for v in joined.videos if v.name.startswith("more/")] == ["more/train/walk/a.mp4"]


def test_adding_and_removing_videos_moves_no_other(tmp_path):
  before = _lists(_touch(tmp_path, _names(40)))
  (tmp_path / "run" / "0.mp4").unlink()
  after = _lists(_touch(tmp_path, [*_names(60)[1:], "jump/a.mp4", "jump/b.mp4", "jump/c.mp4"]))
  shared = before.keys() & after.keys()
  assert len(shared) == 79
  assert {name: before[name] for name in shared} == {name: after[name] for name in shared}


def test_converting_a_video_does_not_move_it(tmp_path):
  first = _lists(_touch(tmp_path / "one", _names(30)))
  names = [name.replace(".mp4", ".avi") for name in _names(30)]
  second = _lists(_touch(tmp_path / "two", names))
  assert list(first.values()) == list(second.values())


def test_a_larger_share_keeps_the_test_videos_of_a_smaller_one(tmp_path):
  _touch(tmp_path, _names(500))
  tests = [
    {name for name, codes in _lists(tmp_path, test_share=share).items() if codes == (2,)}
    for share in (0.1, 0.2, 0.5)
  ]
  assert tests[0] < tests[1] < tests[2]
  # Six standard deviations of the binomial counts 100, 200 and 500 of 1000 groups.
  assert abs(len(tests[0]) - 100) < 57
  assert abs(len(tests[1]) - 200) < 76
  assert abs(len(tests[2]) - 500) < 95


def test_a_group_is_in_one_list_as_a_whole(tmp_path):
  names = [
    f"{label}/film{g}/{i}.mp4" for label in ("run", "walk") for g in range(20) for i in range(3)
  ]
  lists = {}
  for video in own_folder.read(_touch(tmp_path, names)).videos:
    lists.setdefault(video.group, set()).add(video.codes)
  assert {len(codes) for codes in lists.values()} == {1}
  assert {code for codes in lists.values() for code in codes} == {(1,), (2,)}


def test_without_a_test_share_everything_is_for_training(tmp_path):
  _touch(tmp_path, _names(20))
  assert {*_lists(tmp_path, test_share=0).values()} == {(1,)}


def test_what_lies_in_a_class_folder_and_is_not_used_is_named(tmp_path):
  other = ["notes.txt", "LICENSE", "run/.hidden.mp4", "run/Thumbs.db", "run/cover.jpg"]
  _touch(tmp_path, [*_names(30), "loose.mov", "walk/film/a.srt", "jump/readme.txt", *other])
  listed = own_folder.read(tmp_path)
  assert listed.unlisted == ()
  assert listed.ignored == (
    ("jump/readme.txt", "not a video (text)"),
    ("loose.mov", "a video beside the class folders"),
    ("run/cover.jpg", "not a video (picture)"),
    ("walk/film/a.srt", "not a video (subtitles)"),
  )


def test_videos_are_known_by_their_content_where_the_name_does_not_tell(tmp_path):
  _touch(tmp_path, [*_names(30), "run/broken.xyz"])
  made_actions.write_avi(tmp_path / "a.avi", moving_square(3), 25)
  (tmp_path / "a.avi").rename(tmp_path / "walk" / "clip without suffix")
  listed = own_folder.read(tmp_path)
  assert "walk/clip without suffix" in {video.name for video in listed.videos}
  assert listed.ignored == (("run/broken.xyz", "cannot be opened as a video: the file is empty"),)


@pytest.mark.parametrize("held_out", ["test", "val", "Validation"])
def test_folders_named_as_lists_are_lists_and_no_classes(tmp_path, held_out):
  names = ["train/run/1/a.mp4", "train/walk/b.mp4", f"{held_out}/run/1/c.mp4"]
  listed = own_folder.read(_touch(tmp_path, names))
  assert listed.class_names == ("run", "walk")
  assert {video.name: video.codes for video in listed.videos} == {
    "train/run/1/a.mp4": (1,),
    "train/walk/b.mp4": (1,),
    f"{held_out}/run/1/c.mp4": (2,),
  }


@pytest.mark.parametrize(
  ("train", "val", "test"), [("train", "val", "test"), ("Training", "VALID", "testing")]
)
def test_three_folders_are_three_lists(tmp_path, train, val, test):
  names = [f"{folder}/run/1/a.mp4" for folder in (train, val, test)]
  more = [f"{train}/walk/b.mp4", f"{val}/loose.mp4", f"{test}/notes.txt", f"{test}/run/c.txt"]
  listed = own_folder.read(_touch(tmp_path, [*names, *more]))
  assert {video.name: video.codes for video in listed.videos} == {
    **dict(zip(names, ((1,), (3,), (2,)), strict=True)),
    f"{train}/walk/b.mp4": (1,),
  }
  assert dict(listed.ignored) == {
    f"{val}/loose.mp4": "a video beside the class folders",
    f"{test}/run/c.txt": "not a video (text)",
  }


@pytest.mark.parametrize("root", ["unpacked/mine", "unpacked/mine/mine", "unpacked"])
def test_what_archives_contained_is_split_like_class_folders(tmp_path, root):
  by_hand = own_folder.read(_touch(tmp_path / "one", _names(30)))
  names = [f"{root}/{name}" for name in _names(30)]
  unpacked = own_folder.read(_touch(tmp_path / "two", names))
  assert unpacked.class_names == ("run", "walk")
  assert [(v.name, v.codes) for v in unpacked.videos] == [
    (f"{root}/{v.name}", v.codes) for v in by_hand.videos
  ]


def test_a_list_within_an_archive_counts_from_its_own_folder(tmp_path):
  rows = "path,label,list\nd.mp4,run,train\nc.mp4,walk,train\ne.mp4,walk,test\n"
  folder = tmp_path / "unpacked" / "mine"
  _csv(folder, rows, ("d.mp4", "c.mp4", "e.mp4", "other/d.mp4"))
  listed = own_folder.read(tmp_path)
  assert [video.path for video in listed.videos] == [
    folder / n for n in ("d.mp4", "c.mp4", "e.mp4")
  ]


def test_a_class_may_be_called_train(tmp_path):
  listed = own_folder.read(_touch(tmp_path, _names(20, ("bus", "train"))))
  assert listed.class_names == ("bus", "train")


def _csv(folder, text, files=("a, b.mp4", "run/c.mp4", "d.mp4")):
  _touch(folder, files)
  (folder / "videos.csv").write_text(text, encoding="utf-8")
  return folder


def test_a_list_gives_labels_groups_and_lists(tmp_path):
  _csv(
    tmp_path,
    '\ufeffpath,label,group,list\n"a, b.mp4",walk,day 1,train\nrun/c.mp4,run,day 1,\n'
    f"{tmp_path / 'd.mp4'},run,,TEST\nrun/gone.mp4,walk,day 2,train\n",
    ("a, b.mp4", "run/c.mp4", "d.mp4", "run/extra.mp4"),
  )
  listed = own_folder.read(tmp_path)
  assert [(v.name, v.label, v.group, v.codes, v.path is None) for v in listed.videos] == [
    ("d.mp4", "run", "d", (2,), False),
    ("run/c.mp4", "run", "day 1", (1,), False),
    ("a, b.mp4", "walk", "day 1", (1,), False),
    ("run/gone.mp4", "walk", "day 2", (1,), True),
  ]
  assert listed.unlisted == ("run/extra.mp4",)


def test_a_list_may_hold_a_validation_list(tmp_path):
  rows = "a, b.mp4;run;train\nrun/c.mp4;walk;training\nd.mp4;run;VAL\n"
  files = ("a, b.mp4", "run/c.mp4", "d.mp4", "e.mp4")
  _csv(tmp_path, f"Video Path;Class Name;Subset\n{rows}e.mp4;walk;test\n", files)
  assert _lists(tmp_path) == {"a, b.mp4": (1,), "run/c.mp4": (1,), "d.mp4": (3,), "e.mp4": (2,)}
  # The only list that is held out is the test list.
  _csv(tmp_path, f"path;label;list\n{rows}", ())
  assert _lists(tmp_path)["d.mp4"] == (2,)


def test_numbers_in_a_list_are_the_class_ids(tmp_path):
  rows = "a, b.mp4;2;train\nrun/c.mp4;0;train\nd.mp4;2;test\n"
  _csv(tmp_path, "path;label;list\n" + rows)
  assert own_folder.read(tmp_path).class_names == ("0", "1", "2")
  (tmp_path / "classes.txt").write_text("zoo\nmid\napple\n")
  listed = own_folder.read(tmp_path)
  assert listed.class_names == ("zoo", "mid", "apple")
  assert [(video.name, video.label) for video in listed.videos] == [
    ("run/c.mp4", "zoo"),
    ("a, b.mp4", "apple"),
    ("d.mp4", "apple"),
  ]


def test_class_folders_have_the_order_of_a_file_that_names_them(tmp_path):
  _touch(tmp_path, _names(30))
  (tmp_path / "run" / "labels.txt").write_text("not\nthis\n")
  (tmp_path / "classes.txt").write_text("walk\nrun\n")
  assert own_folder.read(tmp_path).class_names == ("walk", "run")


def test_numbered_class_folders_are_named_by_a_file(tmp_path):
  _touch(tmp_path, _names(30, ("0", "1")))
  assert own_folder.read(tmp_path).class_names == ("0", "1")
  (tmp_path / "label_map.json").write_text('{"walk": 0, "run": 1}')
  listed = own_folder.read(tmp_path)
  assert listed.class_names == ("walk", "run")
  assert {(video.label, video.name[0]) for video in listed.videos} == {("walk", "0"), ("run", "1")}


def test_lists_of_a_file_each_are_read_in_place_of_class_folders(tmp_path):
  _touch(tmp_path, [*_names(2), "run/notes.txt"])
  (tmp_path / "train.csv").write_text("run/0.mp4 walk\nwalk/0.mp4 run\n")
  (tmp_path / "val.csv").write_text("run/1.mp4 walk\n")
  assert _lists(tmp_path) == {"run/0.mp4": (1,), "walk/0.mp4": (1,), "run/1.mp4": (2,)}
  (tmp_path / "test.csv").write_text("file,label\nwalk/1.mp4,run\n")
  listed = own_folder.read(tmp_path)
  assert {video.name: video.codes[0] for video in listed.videos} == {
    "run/0.mp4": 1, "walk/0.mp4": 1, "run/1.mp4": 3, "walk/1.mp4": 2
  }  # fmt: skip
  assert (listed.dataset, listed.ignored) == ("folder", (("run/notes.txt", "not a video (text)"),))


def test_lists_without_labels_leave_the_classes_to_the_folders(tmp_path, logged):
  _touch(tmp_path, _names(30))
  (tmp_path / "train.csv").write_text("path,label\nrun/0.mp4,walk\n")
  (tmp_path / "test.csv").write_text("path\nrun/1.mp4\n")
  assert len(_lists(tmp_path)) == 60
  assert f"{tmp_path / 'test.csv'} has no labels" in logged.text


def test_a_prefix_is_replaced_in_a_list_alone(tmp_path):
  _touch(tmp_path, _names(20))
  with pytest.raises(listing.ListingError, match=r"there is no videos\.csv.*replace_prefix"):
    own_folder.read(tmp_path, replace_prefix="/a=/b")
  rows = "".join(f"C:\\films\\{name},{name[0]}\n" for name in _names(20))
  _csv(tmp_path, "path,label\n" + rows, ())
  listed = own_folder.read(tmp_path, replace_prefix=f"C:\\films={tmp_path}")
  assert {video.name for video in listed.videos} == {*_names(20)}
  assert all(video.path for video in listed.videos)


def test_a_list_and_class_folders_split_the_same_videos_alike(tmp_path):
  _touch(tmp_path, _names(40))
  by_folders = _lists(tmp_path)
  rows = "".join(f"{name},{name.split('/')[0]}\n" for name in reversed(_names(40)))
  assert _lists(_csv(tmp_path, "path,label\n" + rows, ())) == by_folders


def test_a_video_keeps_its_list_while_other_files_are_missing(tmp_path):
  _touch(tmp_path, _names(40))
  rows = "".join(f"{tmp_path / name},{name.split('/')[0]}\n" for name in _names(40))
  before = _lists(_csv(tmp_path, "path,label\n" + rows, ()))
  for i in range(30):
    (tmp_path / "run" / f"{i}.mp4").unlink()
  assert _lists(tmp_path) == before


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "videos.csv: the file lists no video"),
    ("path;label\nd.mp4;run\n", "found the one class run, expected two"),
    ("youtube_id,label\nd,run\n", "line 2: the line has no path"),
    ("path,label\nd.mp4,run\n../e.mp4,walk\n", "line 3: ../e.mp4 leads out of the data folder"),
    ("path,label,grup\nd.mp4,run,1\n", "found the header path,label,grup"),
    ("path,label\nd.mp4\n", "videos.csv, line 2: found 1 fields, expected 2"),
    ("path,label\nd.mp4,\n", "line 2: found 'd.mp4,', where the video or its label is empty"),
    ("path,label,list\nd.mp4,run,3\n", "videos.csv, line 2: found the list '3'"),
    (
      "path,label,group,list\nd.mp4,run,1,train\nrun/c.mp4,walk,1,test\n",
      "the group 1 is in both lists",
    ),
    ("path,label,list\nd.mp4,run,train\nrun/c.mp4,walk,test\n", "none for training: walk"),
    ("path,label,list\nd.mp4,run,train\nrun/c.mp4,walk,train\n", "falls into the test list"),
    ("path,label\n", "videos.csv: the file lists no video"),
    ("path,label,list\nd.mp4,run,train\nd.mp4,walk,train\n", "falls into the test list"),
    (
      "path,label,list\nd.mp4,run,train\nd.mp4,walk,train\nrun/c.mp4,run,test\n",
      "d.mp4 is listed in two classes, run and walk",
    ),
  ],
)
def test_an_unusable_list_is_refused(tmp_path, text, message):
  with pytest.raises(listing.ListingError) as error:
    own_folder.read(_csv(tmp_path, text))
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (
      ["a.mp4", "b.mp4"],
      "no video in a class folder \\(2 videos found.*configs/videomae.py:pretrain",
    ),
    (_names(5, ("videos/run", "videos/walk")), "the one class videos, expected two"),
    (
      _names(5, ("run", "unpacked/walk")),
      "both within unpacked, from archives, and beside it: run",
    ),
    (_names(5, ("train/run", "train/walk")), "found the folders train, expected"),
    (_names(5, ("val/run", "test/run")), "found the folders test, val, expected"),
    (_names(5, ("train/run", "val/run", "valid/run")), "found the folders train, val, valid"),
  ],
)
def test_a_folder_of_another_form_is_refused(tmp_path, names, message):
  with pytest.raises(listing.ListingError, match=message):
    own_folder.read(_touch(tmp_path, names))


def test_a_class_without_training_videos_is_refused_with_advice(tmp_path):
  _touch(tmp_path, [*_names(40, ("run",)), "walk/only.mp4"])
  with pytest.raises(listing.ListingError, match=r"none for training: .*walk.*column `list`"):
    own_folder.read(tmp_path, test_share=0.999999)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(tmp_path, share):
  with pytest.raises(listing.ListingError, match="expected 0 to below 1"):
    own_folder.read(_touch(tmp_path, _names(5)), test_share=share)


def test_folds_test_every_group_once_and_stay_even(tmp_path):
  names = [
    f"{label}/film{film:02d}/{clip}.mp4"
    for film in range(17)
    for label, clips in (("run", film % 4), ("walk", 1 + film % 3))
    for clip in range(clips)
  ]
  videos = own_folder.read(_touch(tmp_path, names), folds=4).videos
  assert len(videos) == len(names)
  tested: dict[str, set[int]] = {}
  for video in videos:
    assert sorted(video.codes) == [1, 1, 1, 2]
    tested.setdefault(video.group, set()).add(video.codes.index(2))
  assert all(len(folds) == 1 for folds in tested.values())
  for label in ("run", "walk"):
    counts = [sum(v.codes[k] == 2 for v in videos if v.label == label) for k in range(4)]
    assert max(counts) - min(counts) <= 3


def test_folds_that_cannot_be_dealt_are_refused(tmp_path):
  with pytest.raises(listing.ListingError, match=r"cannot make 50 folds"):
    own_folder.read(_touch(tmp_path / "few", _names(5)), folds=50)
  names = ["train/run/a.mp4", "train/walk/b.mp4", "test/run/c.mp4"]
  with pytest.raises(listing.ListingError, match=r"given lists.*Set it to 0"):
    own_folder.read(_touch(tmp_path / "given", names), folds=2)
