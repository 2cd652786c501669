import shutil

from conftest import REAL_CLIPS, REAL_LISTS, made_clip_name, write_lists
import pytest

from hybrid_video.datasets import hmdb51, listing

GOLF, BOW, WAVE = REAL_LISTS


@pytest.mark.parametrize(
  ("name", "label", "film", "tags"),
  [
    (WAVE, "wave", "RATRACE", ("f", "nm", "np1", "fr", "goo")),
    (GOLF, "golf", "Golf_Tips_-_Hit_The_Driver_300+_Yards!!!", ("f", "nm", "np1", "fr", "med")),
    (
      "how_to_do_a_cartwheel_cartwheel_f_cm_np1_ri_med_0.avi",
      "cartwheel",
      "how_to_do_a_cartwheel",
      ("f", "cm", "np1", "ri", "med"),
    ),
    (
      "prelinger_LetsBeGo1953_wave_u_cm_np10_ba_med_2.avi",
      "wave",
      "prelinger_LetsBeGo1953",
      ("u", "cm", "np10", "ba", "med"),
    ),
    (
      "Baddest_Fight_Scenes_EVER!_-_Kill_Bill__Vol___1_-_vs__Crazy_88_s_sword_f_nm_np6_ri_med_1.avi",
      "sword",
      "Baddest_Fight_Scenes_EVER!_-_Kill_Bill__Vol___1_-_vs__Crazy_88_s",
      ("f", "nm", "np6", "ri", "med"),
    ),
  ],
)
def test_film_and_tags_are_read_from_real_names(name, label, film, tags):
  read_film, read_tags = hmdb51.parse_name(name, label)
  assert read_film == film
  assert tuple(read_tags.values()) == tags


def test_real_clips_get_their_class_codes_and_path(real_folder):
  listed = hmdb51.read(real_folder, official=False)
  assert listed.class_names == ("golf", "shoot_bow", "wave")
  assert listed.num_splits == 3
  for video in listed.videos:
    assert (video.label, video.codes) == REAL_LISTS[video.name]
    assert video.path.name == video.name
  assert listed.videos[2].group == "RATRACE"
  assert listed.videos[2].tags["people"] == "np1"


def test_class_folders_are_read_like_one_flat_folder(real_folder, tmp_path):
  flat = hmdb51.read(real_folder, official=False)
  nested = tmp_path / "nested"
  shutil.copytree(real_folder / "testTrainMulti_7030_splits", nested / "splits")
  for video in flat.videos:
    (nested / video.label).mkdir()
    (nested / video.label / video.name).symlink_to(REAL_CLIPS / video.name)
  listed = hmdb51.read(nested, official=False)
  assert [(v.name, v.label, v.codes) for v in listed.videos] == [
    (v.name, v.label, v.codes) for v in flat.videos
  ]


def test_clips_of_one_film_are_one_group_whatever_their_class(tmp_path):
  names = {made_clip_name(label, film="Star Wars"): (label, (1, 1, 1)) for label in ("run", "walk")}
  write_lists(tmp_path, names)
  for name in names:
    (tmp_path / name).touch()
  assert {video.group for video in hmdb51.read(tmp_path, official=False).videos} == {"Star Wars"}


def test_a_listed_clip_without_a_file_has_no_path(real_folder):
  (real_folder / "videos" / WAVE).unlink()
  by_name = {video.name: video.path for video in hmdb51.read(real_folder, official=False).videos}
  assert by_name[WAVE] is None
  assert by_name[GOLF] is not None


def test_a_clip_that_no_list_names_is_reported(real_folder):
  (real_folder / "videos" / "home.avi").touch()
  assert hmdb51.read(real_folder, official=False).unlisted == ("videos/home.avi",)


@pytest.mark.parametrize(
  "line",
  [
    "clip.avi",
    "clip.avi 3",
    "clip.mp4 1",
    " clip.avi 1",
    "clip.avi\t1",
    "clip.avi 1 1",
    "1 clip.avi",
  ],
)
def test_a_split_line_of_another_form_is_named_with_its_number(tmp_path, line):
  path = tmp_path / "wave_test_split1.txt"
  path.write_text(f"a_wave_f_nm_np1_fr_goo_0.avi 1 \n{line}\n")
  with pytest.raises(listing.ListingError, match="line 2") as error:
    hmdb51.read_split_file(path)
  assert str(path) in str(error.value)
  assert repr(line) in str(error.value)


def test_names_with_spaces_and_special_characters_survive_a_split_line(tmp_path):
  path = tmp_path / "wave_test_split1.txt"
  path.write_text("a b (c) ! & + ~ # 2_wave_f_nm_np1_fr_goo_0.avi 2 \n\nplain.avi 0\n")
  assert hmdb51.read_split_file(path) == {
    "a b (c) ! & + ~ # 2_wave_f_nm_np1_fr_goo_0.avi": 2,
    "plain.avi": 0,
  }


def _spoil_missing_folder(folder):
  shutil.rmtree(folder)


def _spoil_empty_folder(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def _spoil_no_lists(folder):
  shutil.rmtree(folder / "testTrainMulti_7030_splits")


def _spoil_no_videos(folder):
  shutil.rmtree(folder / "videos")


def _spoil_one_list_missing(folder):
  (folder / "testTrainMulti_7030_splits" / "wave_test_split2.txt").unlink()


def _spoil_one_list_twice(folder):
  shutil.copytree(folder / "testTrainMulti_7030_splits", folder / "again")


def _spoil_listed_in_two_splits_only(folder):
  path = folder / "testTrainMulti_7030_splits" / "wave_test_split2.txt"
  path.write_text(f"{made_clip_name('wave')} 1 \n")


def _spoil_listed_twice(folder):
  path = folder / "testTrainMulti_7030_splits" / "wave_test_split2.txt"
  path.write_text(path.read_text() * 2)


def _spoil_two_classes(folder):
  lists = {GOLF: ("golf", (1, 1, 2)), WAVE: ("wave", (1, 2, 1))}
  # shoot_bow's own lists still name the clip.
  write_lists(folder / "testTrainMulti_7030_splits", {**lists, BOW: ("golf", (1, 1, 1))})
  (folder / "videos" / BOW).unlink()


def _spoil_same_file_twice(folder):
  (folder / "again").mkdir()
  (folder / "again" / WAVE).symlink_to(REAL_CLIPS / WAVE)


def _spoil_name(folder):
  write_lists(folder / "testTrainMulti_7030_splits", {"strange.avi": ("wave", (1, 1, 1))})


def _spoil_empty_list(folder):
  (folder / "testTrainMulti_7030_splits" / "wave_test_split2.txt").write_text("\n")


def _spoil_class_folder(folder):
  (folder / "golf").mkdir()
  (folder / "videos" / WAVE).rename(folder / "golf" / WAVE)


@pytest.mark.parametrize(
  ("spoil", "problem", "advice"),
  [
    (_spoil_missing_folder, "no such folder", "--config.data_dir"),
    (_spoil_empty_folder, "empty", "Put the videos and their lists"),
    (_spoil_no_lists, "no split files", "test_train_splits.rar"),
    (_spoil_no_videos, "none of the 3 listed videos", "Put the video files"),
    (_spoil_one_list_missing, "wave_test_split2.txt is missing", "test_train_splits.rar"),
    (_spoil_one_list_twice, "two files for one list", "Remove one"),
    (_spoil_listed_in_two_splits_only, "is missing here", "official split files"),
    (_spoil_listed_twice, "listed twice", "Remove one line"),
    (_spoil_two_classes, "two classes, golf and shoot_bow", BOW),
    (_spoil_same_file_twice, "two files of one name", "Remove one"),
    (_spoil_name, "strange.avi", "NUMBER.avi"),
    (_spoil_empty_list, "lists no clip", "official split file"),
    (_spoil_class_folder, "in the folder of golf, but the lists say wave", "folder wave"),
  ],
)
def test_an_unusable_folder_is_refused_with_advice(real_folder, spoil, problem, advice):
  spoil(real_folder)
  with pytest.raises(listing.ListingError) as error:
    hmdb51.read(real_folder, official=False)
  assert problem in str(error.value)
  assert advice in str(error.value)


@pytest.fixture
def full_lists(tmp_path):
  """Lists of the official size, 51 classes of 132 or 133 clips, and one clip's file."""
  lists = {}
  for class_id, label in enumerate(hmdb51.CLASSES):
    for number in range(133 if class_id < 34 else 132):
      codes = tuple(
        1 if n < 70 else 2 if n < 100 else 0 for n in [(number + s) % 132 for s in (0, 9, 50)]
      )
      lists[made_clip_name(label, number)] = (label, codes if number < 132 else (0, 0, 0))
  write_lists(tmp_path, lists)
  (tmp_path / made_clip_name("wave")).touch()
  return tmp_path


def test_lists_of_the_official_size_pass(full_lists):
  listed = hmdb51.read(full_lists)
  assert (len(listed.videos), len(listed.class_names)) == (6766, 51)
  for split in range(3):
    codes = [video.codes[split] for video in listed.videos]
    assert [codes.count(code) for code in (1, 2, 0)] == [3570, 1530, 1666]


def _swap_a_code(folder):
  path = folder / "kick_test_split2.txt"
  path.write_text(path.read_text().replace(" 1 \n", " 0 \n", 1))


def _drop_a_class(folder):
  for path in folder.glob("sword_test_split*.txt"):
    path.unlink()


def _add_a_class(folder):
  write_lists(folder, {made_clip_name("yodel"): ("yodel", (0, 0, 0))})


def _drop_an_unused_clip(folder):
  for path in folder.glob("brush_hair_test_split*.txt"):
    *lines, _ = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (_swap_a_code, "69 training clips of kick in split 2, expected 70"),
    (_drop_a_class, "no split files of the class sword"),
    (_add_a_class, "the class yodel, expected none such"),
    (_drop_an_unused_clip, "6765 clips in all, expected 6766"),
  ],
)
def test_lists_that_are_not_the_official_ones_are_refused(full_lists, change, message):
  change(full_lists)
  with pytest.raises(listing.ListingError) as error:
    hmdb51.read(full_lists)
  assert message in str(error.value)
  assert "test_train_splits.rar" in str(error.value)
  assert "--config.dataset=hmdb51_layout" in str(error.value)
  assert len(hmdb51.read(full_lists, official=False).videos) > 6000
