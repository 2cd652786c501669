import errno
import os
import pathlib
import subprocess
import sys
import types

import pytest

from hybrid_video import datasets, errors
from hybrid_video.datasets import listing, splits


def _video(name, label="run", code=splits.TRAIN, path=None, codes=None):
  return listing.Video(name, label, name, codes or (code,), path)


def _files(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
  return listing.files_below(folder)


def test_class_ids_follow_the_alphabet_ignoring_case(tmp_path):
  labels = ["JumpRope", "archery", "JumpingJack", "Biking"]
  listed = listing.make(
    "x", tmp_path, [_video(label, label, path=tmp_path / label) for label in labels]
  )
  assert listed.class_names == ("archery", "Biking", "JumpingJack", "JumpRope")


def test_numbered_classes_are_in_order_of_value_before_named_ones(tmp_path):
  videos = [_video(label, label, path=tmp_path / label) for label in ("10", "walk", "9", "100")]
  assert listing.make("x", tmp_path, videos).class_names == ("9", "10", "100", "walk")


def test_the_order_of_the_videos_does_not_matter(tmp_path):
  videos = [
    _video(f"{label}{i}", label, path=tmp_path / f"{label}{i}") for label in "ba" for i in (1, 0)
  ]
  assert listing.make("x", tmp_path, videos) == listing.make("x", tmp_path, videos[::-1])


def test_videos_that_no_list_names_are_reported_by_their_path(tmp_path):
  files = _files(tmp_path, "in/a.avi", "in/b.AVI", "c.mp4")
  listed = listing.make("x", tmp_path, [_video("b", path=tmp_path / "in" / "b.AVI")], files)
  assert listed.unlisted == ("c.mp4", "in/a.avi")


@pytest.mark.parametrize(
  ("videos", "message"),
  [
    ([], "no video is listed"),
    ([_video("a"), _video("a")], "a is listed twice"),
    ([_video("a", "run"), _video("a", "walk")], "a is listed in two classes, run and walk"),
    ([_video("a", codes=(1, 2)), _video("b", codes=(1,))], "b is not in the lists of every split"),
    ([_video("a"), _video("b")], "none of the 2 listed videos is there, such as a"),
    (
      [_video("a", path=pathlib.Path("/v/x.avi")), _video("b", path=pathlib.Path("/v/u/../x.avi"))],
      r"one file for two listed videos, a \(run\) and b \(run\)",
    ),
  ],
)
def test_a_contradictory_list_is_refused(tmp_path, videos, message):
  with pytest.raises(listing.ListingError, match=message) as error:
    listing.make("x", tmp_path, videos)
  assert str(error.value).endswith(".")
  assert isinstance(error.value, errors.UserError)


def test_hidden_files_and_unfinished_unpacking_are_left_out(tmp_path):
  files = _files(
    tmp_path, "a.avi", "._a.avi", ".cache/b.avi", "unpacked/set.part/c.avi", "__MACOSX/._d.avi"
  )
  assert files == [tmp_path / "a.avi"]
  # A class may be named like unfinished work.
  assert _files(tmp_path, "take.part/c.avi") == [tmp_path / "a.avi", tmp_path / "take.part/c.avi"]


def test_linked_folders_are_followed_but_never_in_a_circle(tmp_path):
  _files(tmp_path / "elsewhere", "b.avi")
  _files(tmp_path / "data", "a.avi")
  (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
  files = listing.files_below(tmp_path / "data")
  assert [path.name for path in files] == ["a.avi", "b.avi"]


def test_a_missing_and_an_empty_folder_are_refused(tmp_path):
  with pytest.raises(listing.ListingError, match=r"no such folder.*--config\.data_dir"):
    listing.files_below(tmp_path / "nowhere")
  with pytest.raises(listing.ListingError, match="the folder is empty"):
    listing.files_below(tmp_path)
  (tmp_path / "file").touch()
  with pytest.raises(listing.ListingError, match=r"no such folder.*--config\.data_dir"):
    listing.files_below(tmp_path / "file")


def _forbid(monkeypatch, folder):
  """Makes a folder one that may not be read, also for root."""
  scandir = os.scandir

  def refuse(path):
    if os.fspath(path) == str(folder):
      raise PermissionError(errno.EACCES, "Permission denied", str(folder))
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)


def test_a_data_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
  _files(tmp_path, "a.avi")
  _forbid(monkeypatch, tmp_path)
  with pytest.raises(listing.ListingError, match=r"cannot be read \(Permission denied"):
    listing.files_below(tmp_path)


def test_a_folder_below_that_may_not_be_read_is_left_out_with_a_warning(
  tmp_path, monkeypatch, logged
):
  _files(tmp_path, "a.avi", "lost+found/b.avi")
  _forbid(monkeypatch, tmp_path / "lost+found")
  assert listing.files_below(tmp_path) == [tmp_path / "a.avi"]
  assert f"{tmp_path / 'lost+found'} cannot be read (Permission denied)" in logged.text


def test_a_converted_video_still_has_its_listed_name(tmp_path):
  files = listing.VideoFiles(_files(tmp_path, "in/Vol. 1 (a).MP4", "in/Vol. 1 (a).txt"))
  assert files.named("Vol. 1 (a).avi") == tmp_path / "in" / "Vol. 1 (a).MP4"
  assert files.named("Vol. 1.avi") is None


def test_case_is_ignored_in_names_only_where_asked(tmp_path):
  files = _files(tmp_path, "v_HandStandPushups_g01_c01.avi")
  name = "v_HandstandPushups_g01_c01.avi"
  assert listing.VideoFiles(files).named(name) is None
  assert listing.VideoFiles(files, str.casefold).named(name) == files[0]


def test_two_files_of_one_name_are_refused_only_where_a_list_means_one_of_them(tmp_path):
  files = listing.VideoFiles(_files(tmp_path, "a/x.avi", "b/x.mp4", "y.avi"))
  assert files.named("y.avi")
  with pytest.raises(listing.ListingError, match="two files of one name") as error:
    files.named("x.avi")
  assert str(tmp_path / "a" / "x.avi") in str(error.value)
  assert str(tmp_path / "b" / "x.mp4") in str(error.value)


def test_a_path_starts_from_the_first_folder_that_has_it(tmp_path):
  files = listing.VideoFiles(_files(tmp_path, "lists/run/x.avi", "run/x.avi", "videos/run/y.avi"))
  folders = (tmp_path / "lists", tmp_path)
  assert files.at("run/x.avi", folders) == tmp_path / "lists" / "run" / "x.avi"
  assert files.at("run/x.avi", folders[1:]) == tmp_path / "run" / "x.avi"
  assert files.at(str(tmp_path / "run" / "x.avi"), folders) == tmp_path / "run" / "x.avi"


def test_a_listed_path_never_leads_out_of_the_data_folder(tmp_path):
  data = tmp_path / "data"
  files = listing.VideoFiles(_files(data, "lists/a.txt", "videos/x.avi", "y.avi"))
  folders = (data / "lists", data)
  (tmp_path / "y.avi").touch()
  (tmp_path / "z.avi").touch()
  # From the list's folder it leads to y.avi of the data folder, not from there to that above.
  assert files.at("../y.avi", folders) == data / "lists" / ".." / "y.avi"
  assert files.at("../z.avi", folders) is None
  assert files.at("../videos/../videos/x.avi", folders).resolve() == data / "videos" / "x.avi"
  for listed in ("../../z.avi", "../../../etc/passwd", "videos/../../../z.avi"):
    with pytest.raises(listing.ListingError, match=r"leads out of the data folder.*absolute path"):
      files.at(listed, folders)
  # Lists of names alone know no folders.
  assert files.named("../../z.avi") is None and files.named("../y.avi") == data / "y.avi"


def test_a_path_from_another_machine_matches_by_its_last_components_alone(tmp_path):
  files = listing.VideoFiles(_files(tmp_path, "videos/run/y.avi", "videos/outrun/z.avi"))
  assert files.at("run/y.mp4", (tmp_path,)) == tmp_path / "videos" / "run" / "y.avi"
  assert files.at("run/z.avi", (tmp_path,)) is None
  assert files.at("films/run/y.avi", (tmp_path,)) is None
  assert files.at("/gone/videos/run/y.avi", (tmp_path,)) is None
  assert files.at(f"{'long' * 100}/y.avi", (tmp_path,)) is None


def test_a_listed_path_has_the_same_name_on_every_machine(tmp_path):
  assert listing.relative_name(str(tmp_path / "run" / "x.avi"), tmp_path) == "run/x.avi"
  assert listing.relative_name("./run/x.avi", tmp_path) == "run/x.avi"


def test_a_list_may_begin_with_a_byte_order_mark_and_hold_rare_line_separators(tmp_path):
  path = tmp_path / "list.txt"
  path.write_bytes("\ufeffone\r\n\r\ntwo\u2028half\r\n".encode())
  assert list(listing.read_lines(path)) == [(1, "one"), (3, "two\u2028half")]


def test_a_list_in_another_encoding_is_named(tmp_path):
  path = tmp_path / "list.txt"
  path.write_bytes("café".encode("latin-1"))
  with pytest.raises(listing.ListingError, match=r"list\.txt: byte 3 is not UTF-8"):
    list(listing.read_lines(path))


def test_a_list_that_cannot_be_read_is_named(tmp_path):
  (tmp_path / "list.txt").mkdir()
  with pytest.raises(listing.ListingError, match=r"list\.txt: the list cannot be read \(Is a dir"):
    list(listing.read_lines(tmp_path / "list.txt"))


def test_rows_keep_quoted_commas_and_their_line_numbers(tmp_path):
  path = tmp_path / "list.csv"
  path.write_text('path,label\n\n"a, b.avi", "say ""hi"""\n')
  assert list(listing.read_rows(path)) == [(1, ["path", "label"]), (3, ["a, b.avi", 'say "hi"'])]


def test_quotes_that_do_not_match_are_named_with_their_line(tmp_path):
  path = tmp_path / "list.csv"
  path.write_text('path,label\n"a".avi,run\n')
  with pytest.raises(listing.ListingError, match=r"list\.csv, line 2: not a line of CSV"):
    list(listing.read_rows(path))


def test_a_class_folder_may_not_contradict_the_list(tmp_path):
  right = [_video("w", "walk", path=tmp_path / "walk" / "w.avi")]
  wrong = [*right, _video("a", "run", path=tmp_path / "Walk" / "a.avi")]
  with pytest.raises(
    listing.ListingError, match="lies in the folder of walk, but the lists say run"
  ):
    listing.check_class_folders(wrong, tmp_path)
  other = [*right, _video("a", "run", path=tmp_path / "part1" / "a.avi")]
  listing.check_class_folders(other, tmp_path)


def test_a_flat_data_folder_may_be_named_as_a_class(tmp_path):
  flat = tmp_path / "walk"
  videos = [_video("w", "walk", path=flat / "w.avi"), _video("a", "run", path=flat / "a.avi")]
  listing.check_class_folders(videos, flat)


def test_an_unknown_data_set_is_refused_with_the_nearest(tmp_path):
  with pytest.raises(listing.ListingError, match=r"no data set 'ucf110'\. Did you mean ucf101\?"):
    datasets.read("ucf110", tmp_path)


@pytest.fixture
def unpacked(monkeypatch):
  """Replaces the unpacking of archives by a list of the folders it is called with."""
  asked = []
  module = types.ModuleType("hybrid_video.datasets.archives")
  module.unpacked = lambda folder: asked.append(folder) or folder
  monkeypatch.setitem(sys.modules, module.__name__, module)
  monkeypatch.setattr(datasets, "archives", module, raising=False)
  return asked


def test_archives_are_unpacked_before_a_folder_is_read(tmp_path, unpacked):
  _files(tmp_path, *(f"{label}/{i}.avi" for label in ("run", "walk") for i in range(9)))
  listed = datasets.read("folder", str(tmp_path), test_share=0)
  assert (listed.dataset, len(listed.videos), unpacked) == ("folder", 18, [tmp_path])
  assert {video.codes for video in listed.videos} == {(splits.TRAIN,)}


def test_a_users_lists_in_hmdb51s_layout_keep_their_own_name(tmp_path, unpacked):
  name = "film_wave_f_nm_np1_fr_goo_0.avi"
  for split in (1, 2, 3):
    (tmp_path / f"wave_test_split{split}.txt").write_text(f"{name} 1 \n")
  _files(tmp_path, name)
  for dataset in ("hmdb51_layout", "made_actions"):
    assert datasets.read(dataset, tmp_path).dataset == dataset
  assert len(unpacked) == 1
  with pytest.raises(listing.ListingError, match="dataset=hmdb51_layout"):
    datasets.read("hmdb51", tmp_path)


@pytest.mark.parametrize(
  ("with_tfds", "heavy"),
  [
    # NumPy, tqdm and av come with the builders for TensorFlow Datasets, which this package registers.
    (True, {"jax", "tensorflow", "rarfile"}),
    (False, {"jax", "tensorflow", "av", "rarfile", "tqdm", "tensorflow_datasets.core"}),
  ],
)
def test_reading_lists_starts_without_jax_and_tensorflow(with_tfds, heavy):
  hidden = "" if with_tfds else "sys.modules['tensorflow_datasets'] = None; "
  code = (
    f"import sys; {hidden}import hybrid_video.datasets; print({heavy} & {{*sys.modules}} or '')"
  )
  root = pathlib.Path(__file__).parents[1]
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
  )
  assert done.stdout.strip() == ""
