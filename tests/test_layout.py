import shutil

from conftest import REAL_CLIPS, REAL_LISTS, made_clip_name, write_lists
import pytest

from hybrid_video.datasets.hmdb51 import layout

GOLF, BOW, WAVE = REAL_LISTS


@pytest.mark.parametrize(
  ("name", "action", "film", "tags"),
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
def test_film_and_tags_are_read_off_real_names(name, action, film, tags):
  found_film, found_tags = layout.parse_name(name, action)
  assert found_film == film
  assert tuple(found_tags.values()) == tags


def test_real_clips_get_their_class_codes_and_path(real_folder):
  clips = layout.read_folder(real_folder)
  assert [clip.action for clip in clips] == ["golf", "shoot_bow", "wave"]
  for clip in clips:
    assert (clip.action, clip.codes) == REAL_LISTS[clip.name]
    assert clip.path.name == clip.name


def test_class_folders_serve_like_one_flat_folder(real_folder, tmp_path):
  flat = layout.read_folder(real_folder)
  nested = tmp_path / "nested"
  shutil.copytree(real_folder / "testTrainMulti_7030_splits", nested / "splits")
  for clip in flat:
    (nested / clip.action).mkdir()
    (nested / clip.action / clip.name).symlink_to(REAL_CLIPS / clip.name)
  assert [(c.name, c.action, c.codes) for c in layout.read_folder(nested)] == [
    (c.name, c.action, c.codes) for c in flat
  ]


def test_a_listed_clip_without_a_file_has_no_path(real_folder):
  (real_folder / "videos" / WAVE).unlink()
  by_name = {clip.name: clip.path for clip in layout.read_folder(real_folder)}
  assert by_name[WAVE] is None
  assert by_name[GOLF] is not None


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
  with pytest.raises(layout.LayoutError, match="line 2") as error:
    layout.read_split_file(path)
  assert str(path) in str(error.value)
  assert repr(line) in str(error.value)


def test_names_with_blanks_and_signs_survive_a_split_line(tmp_path):
  path = tmp_path / "wave_test_split1.txt"
  path.write_text("a b (c) ! & + ~ # 2_wave_f_nm_np1_fr_goo_0.avi 2 \n\nplain.avi 0\n")
  assert layout.read_split_file(path) == {
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


def _spoil_listed_in_two_splits_only(folder):
  path = folder / "testTrainMulti_7030_splits" / "wave_test_split2.txt"
  path.write_text(f"{made_clip_name('wave')} 1 \n")


def _spoil_listed_twice(folder):
  path = folder / "testTrainMulti_7030_splits" / "wave_test_split2.txt"
  path.write_text(path.read_text() * 2)


def _spoil_two_classes(folder):
  lists = {GOLF: ("golf", (1, 1, 2)), WAVE: ("wave", (1, 2, 1))}
  write_lists(folder / "testTrainMulti_7030_splits", {**lists, BOW: ("golf", (1, 1, 1))})
  # shoot_bow's own lists still name the clip.


def _spoil_same_file_twice(folder):
  (folder / "again").mkdir()
  (folder / "again" / WAVE).symlink_to(REAL_CLIPS / WAVE)


def _spoil_name(folder):
  write_lists(folder / "testTrainMulti_7030_splits", {"strange.avi": ("wave", (1, 1, 1))})


def _spoil_empty_list(folder):
  (folder / "testTrainMulti_7030_splits" / "wave_test_split2.txt").write_text("\n")


@pytest.mark.parametrize(
  ("spoil", "found", "advice"),
  [
    (_spoil_missing_folder, "no such folder", "--config.data_dir"),
    (_spoil_empty_folder, "empty", "Put HMDB51's AVI files"),
    (_spoil_no_lists, "no split files", "testTrainMulti_7030_splits"),
    (_spoil_no_videos, "none of the 3 listed clips", "hmdb51_org.rar"),
    (_spoil_one_list_missing, "wave_test_split2.txt is missing", "beside its siblings"),
    (_spoil_listed_in_two_splits_only, "is missing here", "official split files"),
    (_spoil_listed_twice, "listed twice", "Remove one line"),
    (_spoil_two_classes, "two classes, golf and shoot_bow", BOW),
    (_spoil_same_file_twice, "two files of one name", "Remove one"),
    (_spoil_name, "strange.avi", "NUMBER.avi"),
    (_spoil_empty_list, "lists no clip", "official split file"),
  ],
)
def test_a_folder_that_cannot_serve_is_refused_with_advice(real_folder, spoil, found, advice):
  spoil(real_folder)
  with pytest.raises(layout.LayoutError) as error:
    layout.read_folder(real_folder)
  assert found in str(error.value)
  assert advice in str(error.value)
