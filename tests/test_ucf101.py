import pytest

from hybrid_video.datasets import listing, ucf101

CLASSES = ("Biking", "HandstandPushups", "JumpingJack", "JumpRope")


def _name(label, group, clip=1):
  return f"v_{label}_g{group:02d}_c{clip:02d}.avi"


def _write(folder, train, test, classes=CLASSES):
  """Writes lists; train and test hold, for each split, pairs of class and file name."""
  ids = {label: number for number, label in enumerate(classes, 1)}
  text = "".join(f"{number} {label}\r\n" for label, number in ids.items())
  (folder / "classInd.txt").write_bytes(text.encode())
  for split in range(3):
    lines = [f"{label}/{name} {ids[label]}\r\n" for label, name in train[split]]
    (folder / f"trainlist0{split + 1}.txt").write_bytes("".join(lines).encode())
    lines = [f"{label}/{name}\r\n" for label, name in test[split]]
    (folder / f"testlist0{split + 1}.txt").write_bytes("".join(lines).encode())


@pytest.fixture
def small(tmp_path):
  """Four classes of three groups; split N tests group N. Files lie in class folders."""
  lists = tmp_path / "ucfTrainTestlist"
  lists.mkdir()
  pairs = {
    group: [(label, _name(label.replace("stand", "Stand"), group)) for label in CLASSES]
    for group in (1, 2, 3)
  }
  train = [
    [p for group in (1, 2, 3) if group != split for p in pairs[group]] for split in (1, 2, 3)
  ]
  _write(lists, train, [pairs[split] for split in (1, 2, 3)])
  for label in CLASSES:
    (tmp_path / "UCF-101" / label).mkdir(parents=True)
    for group in (1, 2, 3):
      (tmp_path / "UCF-101" / label / _name(label, group)).touch()
  return tmp_path


def test_videos_get_their_class_group_codes_and_path(small):
  listed = ucf101.read(small, official=False)
  assert len(listed.videos) == 12
  video = next(v for v in listed.videos if v.name == "v_JumpRope_g02_c01.avi")
  assert (video.label, video.group, video.codes) == ("JumpRope", "JumpRope_g02", (1, 2, 1))
  assert video.path == small / "UCF-101" / "JumpRope" / video.name
  assert listed.unlisted == ()


def test_class_ids_are_those_of_the_official_class_file_less_one(small):
  assert ucf101.read(small, official=False).class_names == CLASSES


def test_a_class_without_a_video_keeps_its_id_and_files_beside_videos_are_named(small):
  order = ("JumpRope", "Archery", *CLASSES[:3])
  ids = "".join(f"{number} {label}\n" for number, label in enumerate(order, 1))
  lists = small / "ucfTrainTestlist"
  for path in lists.glob("trainlist*.txt"):
    lines = [line.split()[0] for line in path.read_text().splitlines()]
    path.write_text("".join(f"{line}\n" for line in lines))
  (lists / "classInd.txt").write_text(ids)
  (small / "UCF-101" / "Biking" / "notes.txt").touch()
  listed = ucf101.read(small, official=False)
  assert listed.class_names == order
  assert listed.ignored == (("UCF-101/Biking/notes.txt", "not a video (text)"),)


@pytest.mark.parametrize("spelt", ["HandStandPushups", "HandstandPushups"])
def test_either_spelling_of_handstand_pushups_is_accepted_and_labelled_as_in_the_class_file(
  small, spelt
):
  folder = small / "UCF-101" / "HandstandPushups"
  for group in (1, 2, 3):
    (folder / _name("HandstandPushups", group)).rename(folder / _name(spelt, group))
  videos = [v for v in ucf101.read(small, official=False).videos if "andstand" in v.label]
  assert {video.label for video in videos} == {"HandstandPushups"}
  assert [video.path.name for video in videos] == [_name(spelt, group) for group in (1, 2, 3)]


def test_groups_of_one_number_in_two_classes_are_two_groups(small):
  groups = {video.group for video in ucf101.read(small, official=False).videos}
  assert len(groups) == 12


def test_a_listed_video_without_a_file_has_no_path(small):
  (small / "UCF-101" / "Biking" / _name("Biking", 2)).unlink()
  paths = {v.name: v.path for v in ucf101.read(small, official=False).videos}
  assert [name for name, path in paths.items() if path is None] == ["v_Biking_g02_c01.avi"]


def _replace(name, old, new):
  def spoil(folder):
    path = folder / "ucfTrainTestlist" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))

  return spoil


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (
      lambda folder: (folder / "ucfTrainTestlist" / "testlist02.txt").unlink(),
      "testlist02.txt is not",
    ),
    (
      _replace("trainlist01.txt", "Biking_g02_c01.avi 1", "Biking_g02_c01.avi 2"),
      "trainlist01.txt, line 1: v_Biking_g02_c01.avi has the class number 2, but classInd.txt gives "
      "Biking the number 1",
    ),
    (_replace("testlist01.txt", "Biking/", "Hiking/"), "classInd.txt has no class Hiking"),
    (_replace("testlist01.txt", "Biking/v_Biking", "Biking/v_JumpRope"), "its name says JumpRope"),
    (_replace("testlist01.txt", "_c01.avi", "_c01.jpg"), "testlist01.txt, line 1: found"),
    (
      _replace("testlist01.txt", "Biking_g01", "Biking_g02"),
      "v_Biking_g02_c01.avi is in this split",
    ),
    (_replace("classInd.txt", "2 Hand", "1 Hand"), "classInd.txt, line 2: the id 1"),
    (_replace("classInd.txt", "2 Hand", "Hand"), "classInd.txt, line 2: found"),
    (
      lambda folder: (folder / "UCF-101" / "Biking" / _name("Biking", 1)).rename(
        folder / "UCF-101" / "JumpRope" / _name("Biking", 1)
      ),
      "lies in the folder of JumpRope, but the lists say Biking",
    ),
  ],
)
def test_lists_that_contradict_each_other_are_refused(small, spoil, message):
  spoil(small)
  with pytest.raises(listing.ListingError) as error:
    ucf101.read(small, official=False)
  assert message in str(error.value)


@pytest.fixture
def full_lists(tmp_path):
  """Lists of the official size: 101 classes, 13320 videos, and one video's file."""
  classes = [f"Class{number:03d}" for number in range(101)]
  videos = [(classes[i % 101], _name(classes[i % 101], i // 101 + 1)) for i in range(13320)]
  starts = (0, 3783, 3783 + 3734)
  tests = [videos[a : a + n] for a, n in zip(starts, (3783, 3734, 3696), strict=True)]
  _write(
    tmp_path, [[v for v in videos if v not in test] for test in map(set, tests)], tests, classes
  )
  (tmp_path / videos[0][1]).touch()
  return tmp_path


def test_lists_of_the_official_size_pass_and_one_line_less_does_not(full_lists):
  assert len(ucf101.read(full_lists).videos) == 13320
  path = full_lists / "testlist03.txt"
  path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
  with pytest.raises(listing.ListingError) as error:
    ucf101.read(full_lists)
  assert "3695 videos in testlist03.txt, expected 3696" in str(error.value)
  assert "UCF101TrainTestSplits-RecognitionTask.zip" in str(error.value)


def test_a_small_set_is_not_taken_for_the_official_one(small):
  with pytest.raises(listing.ListingError, match=r"4 classes in classInd\.txt, expected 101"):
    ucf101.read(small)
