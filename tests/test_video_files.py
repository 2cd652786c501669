"""Which files are videos: by name, by content, and what is said of those that are none."""

import av
from conftest import moving_square
import numpy as np
import pytest

from hybrid_video.datasets import file_kinds, listing, made_actions, splits
from hybrid_video.datasets.video_files import VideoFiles, beside_videos
from hybrid_video.decoding import probing


def _files(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
  return listing.files_below(folder)


@pytest.fixture
def probed(monkeypatch):
  """The names of the files that FFmpeg was asked about; none of them is a video."""
  names = []

  def refuse(paths):
    names.extend(path.name for path in paths)
    return ["nothing"] * len(paths)

  monkeypatch.setattr(probing, "why_no_videos", refuse)
  return names


@pytest.mark.parametrize(
  "name",
  [
    "cam.MTS",
    "rec.ts",
    "phone.3gp",
    "web.GIF",
    "dvd.vob",
    "win.asf",
    "x.divx",
    "a.ogv",
    "b.mxf",
    "c.rmvb",
    "d.y4m",
    "e.f4v",
  ],
)
def test_every_usual_suffix_is_a_videos(name):
  assert file_kinds.is_video(name)
  assert file_kinds.stem(name) == name.split(".")[0]


def test_other_endings_are_part_of_a_name():
  assert file_kinds.stem("Vol. 1 (a)") == "Vol. 1 (a)"
  assert file_kinds.stem("a.mp4.txt") == "a.mp4.txt"
  assert file_kinds.kind("a.mp4.txt") == "text" and file_kinds.kind("README") == "text"


def test_a_converted_video_still_has_its_listed_name(tmp_path):
  files = VideoFiles(_files(tmp_path, "in/Vol. 1 (a).MP4", "in/Vol. 1 (a).txt"))
  assert files.named("Vol. 1 (a).avi") == tmp_path / "in" / "Vol. 1 (a).MP4"
  assert files.named("Vol. 1.avi") is None


def test_case_is_ignored_in_names_only_where_asked(tmp_path):
  files = _files(tmp_path, "v_HandStandPushups_g01_c01.avi")
  name = "v_HandstandPushups_g01_c01.avi"
  assert VideoFiles(files).named(name) is None
  assert VideoFiles(files, str.casefold).named(name) == files[0]


def test_two_files_of_one_name_are_refused_only_where_a_list_means_one_of_them(tmp_path):
  files = VideoFiles(_files(tmp_path, "a/x.avi", "b/x.mp4", "y.avi"))
  assert files.named("y.avi")
  with pytest.raises(listing.ListingError, match="two files of one name") as error:
    files.named("x.avi")
  assert str(tmp_path / "a" / "x.avi") in str(error.value)
  assert str(tmp_path / "b" / "x.mp4") in str(error.value)


def test_accents_may_be_written_in_either_way(tmp_path):
  files = VideoFiles(_files(tmp_path, "cafe\u0301.mp4"))
  assert files.named("caf\xe9.avi") == tmp_path / "cafe\u0301.mp4"


def test_only_unknown_files_are_opened_and_each_once(tmp_path, probed):
  files = VideoFiles(_files(tmp_path, "a.mp4", "b.txt", "c", "d.xyz", "e.jpg"))
  assert [path.name for path in files.paths] == ["a.mp4"]
  unlisted, others = files.unused([])
  assert [path.name for path in unlisted] == ["a.mp4"] and probed == ["c", "d.xyz"]
  assert {path.name: reason for path, reason in others} == {
    "b.txt": "not a video (text)",
    "c": "cannot be opened as a video: nothing",
    "d.xyz": "cannot be opened as a video: nothing",
    "e.jpg": "not a video (picture)",
  }


def test_a_listed_file_without_a_suffix_is_not_opened_to_be_listed(tmp_path, probed):
  files = VideoFiles(_files(tmp_path, "v/-3B32lodo2M", "v/x.mp4", "v/x"))
  path = files.named("-3B32lodo2M")
  assert path == tmp_path / "v" / "-3B32lodo2M"
  assert files.named("x.avi") == tmp_path / "v" / "x.mp4"
  used = [listing.Video(p.name, "run", "g", (splits.TRAIN,), p) for p in (path, files.named("x"))]
  assert [reason for _, reason in files.unused(used)[1]] == ["cannot be opened as a video: nothing"]
  assert probed == ["x"]


def test_files_are_named_only_where_videos_lie(tmp_path):
  files = VideoFiles(_files(tmp_path, "v/a.mp4", "v/a.txt", "notes.txt", "annotations/b.json"))
  videos = [listing.Video("a", "run", "a", (splits.TRAIN,), tmp_path / "v" / "a.mp4")]
  _, others = files.unused(videos)
  assert [path.name for path, _ in beside_videos(others, videos, tmp_path)] == ["a.txt"]


def _write_gif(path, pictures):
  with av.open(str(path), "w", format="gif") as container:
    stream = container.add_stream("gif", rate=10)
    stream.width = stream.height = 16
    stream.pix_fmt = "rgb8"
    for number in range(pictures):
      picture = np.full((16, 16, 3), 40 * number, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode(None))


def test_the_content_decides_where_no_name_does(tmp_path):
  made_actions.write_avi(tmp_path / "video.avi", moving_square(3), 25)
  (tmp_path / "video.avi").rename(tmp_path / "video")
  _write_gif(tmp_path / "moving.gif", 3)
  _write_gif(tmp_path / "still.gif", 1)
  (tmp_path / "text.xyz").write_text("nothing but text\n" * 100)
  (tmp_path / "empty").touch()
  (tmp_path / "playlist").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
  files = VideoFiles(listing.files_below(tmp_path))
  assert [path.name for path in files.paths] == ["moving.gif", "video"]
  reasons = {path.name: reason for path, reason in files.unused([])[1]}
  assert reasons["empty"] == "cannot be opened as a video: the file is empty"
  assert reasons["still.gif"] == "cannot be opened as a video: a still image, not a video"
  assert {"text.xyz", "playlist"} <= reasons.keys()


def test_no_process_is_started_for_no_file(monkeypatch):
  monkeypatch.setattr(probing.worker_pool, "store_videos", None)
  assert probing.why_no_videos([]) == []
