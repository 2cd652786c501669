"""Archives and folders of any name: unpacked once, below their folder, and read again."""

import io
import tarfile
import types
import zipfile

import pytest
from rar_files import archive
from test_archives import contents, refuse, tar_of, tree, unpack, zip_of

from hybrid_video.datasets import listing
from hybrid_video.datasets.archives import failures


@pytest.fixture
def folder(tmp_path):
  data = tmp_path / "data"
  data.mkdir()
  return data


STRANGE = (
  "golf.",
  "what?",
  "take 1:2",
  "golf ",
  "take.part",
  "unpacked",
  "two\nlines",
  "con",
  "e\u0301",
)


@pytest.mark.parametrize("name", STRANGE)
def test_classes_of_any_name_that_were_unpacked_by_hand_are_not_unpacked_again(folder, name):
  class_archive = archive({"clip.avi": b"1"})
  (folder / "all.zip").write_bytes(zip_of({f"{name}.rar": class_archive}))
  (folder / "videos" / name).mkdir(parents=True)
  (folder / "videos" / name / "other.avi").write_bytes(b"made by the user")
  for _ in range(2):
    unpack(folder)
    assert not list((folder / "unpacked").rglob("*.avi"))
  (folder / "videos" / name / "other.avi").unlink()
  unpack(folder)
  (clip_file,) = contents(folder).values()
  assert clip_file == b"1"


@pytest.mark.parametrize("name", STRANGE)
def test_what_an_archive_of_any_name_contained_is_unpacked_once_and_read(folder, name):
  (folder / "aaa.zip").write_bytes(zip_of({"other.avi": b"2"}))
  (folder / f"{name}.zip").write_bytes(zip_of({f"{name}/clip.avi": b"1"}))
  unpack(folder)
  before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
  unpack(folder)
  assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
  assert sorted(contents(folder).values()) == [b"1", b"2"]
  videos = [path for path in listing.files_below(folder) if path.suffix == ".avi"]
  assert [path.parent.name for path in videos if path.name == "clip.avi"] == [name]


def test_volumes_named_like_the_folder_above_are_not_taken_for_unpacked(folder):
  (folder / "...part2.rar").write_bytes(archive({"a.avi": b"1"}))
  (folder / "x.part2.rar").write_bytes(archive({"a.avi": b"1"}))
  refuse(folder, "x.part2.rar is a later volume")


def test_archives_whose_names_are_one_on_some_file_systems_are_refused(folder):
  for name in ("e\u0301t\u00e9", "\u00e9t\u00e9"):
    (folder / f"{name}.zip").write_bytes(zip_of({"a.avi": b"1"}))
  refuse(folder, "both", "Rename one of them")


def test_members_that_differ_in_case_or_unicode_form_stay_two_files(folder):
  files = {"a.avi": b"1", "A.avi": b"2", "e\u0301.avi": b"3", "\u00e9.avi": b"4"}
  (folder / "x.zip").write_bytes(zip_of(files))
  unpack(folder)
  # Where the file system has one name for them, unpacking is refused instead, see `_copy`.
  assert contents(folder) == {f"x/{name}": data for name, data in files.items()}


@pytest.mark.parametrize(
  "name", ["CON.avi", "aux", "trailing. ", "dots...", "a\x1b[31m.avi", "two\nlines.avi", "~/.avi"]
)
def test_members_of_any_other_name_are_written_below_the_folder_as_they_are(folder, name):
  (folder / "x.tar").write_bytes(tar_of({name: b"1"}))
  unpack(folder)
  assert contents(folder) == {f"x/{name}": b"1"}
  assert tree(folder.parent).keys() == {
    "data/x.tar",
    "data/unpacked/x.note",
    f"data/unpacked/x/{name}",
  }


@pytest.mark.parametrize(
  "kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_members_that_are_no_files_are_refused(folder, kind):
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w") as file:
    info = tarfile.TarInfo("b\n.avi")
    info.type, info.linkname = kind, "/etc/passwd"
    file.addfile(info)
  (folder / "x.tar").write_bytes(out.getvalue())
  refuse(folder, "'b\\n.avi' is a link or a device")


def test_a_name_too_long_for_the_disk_is_refused(folder):
  (folder / "x.tar").write_bytes(tar_of({f"{'n' * 300}.avi": b"1"}))
  refuse(folder, "x.tar", "File name too long")


def test_a_file_where_a_folder_has_to_be_is_refused(folder):
  (folder / "x.tar").write_bytes(tar_of({"a": b"1", "a/b.avi": b"2"}))
  refuse(folder, "x.tar cannot be unpacked")


@pytest.mark.parametrize("nested", [False, True])
def test_an_archive_that_says_it_is_larger_than_the_disk_is_refused_before_it_is_read(
  folder, nested
):
  data = bytearray(zip_of({"a.avi": bytes(1000)}))
  # The unpacked size in the entry of the central directory.
  at = data.index(b"PK\x01\x02") + 24
  data[at : at + 4] = (0xFFFFFFFE).to_bytes(4, "little")
  data = bytes(data)
  for _ in range(1 if nested else 0):
    data = zip_of({f"{i}.zip": data for i in range(3)}, zipfile.ZIP_STORED)
  (folder / "x.zip").write_bytes(data)
  usage = types.SimpleNamespace(free=10**9)
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(failures.shutil, "disk_usage", lambda _: usage)
    refuse(folder, "x.zip needs", "has 1000.0 MB free")


def test_an_archive_whose_data_is_longer_than_it_says_writes_no_more_than_that(folder):
  data = bytearray(zip_of({"a.avi": bytes(10**6)}))
  for start, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
    at = data.index(start) + offset
    data[at : at + 4] = (10).to_bytes(4, "little")
  (folder / "x.zip").write_bytes(data)
  refuse(folder, "x.zip", "CRC")


def test_links_to_a_folder_above_are_not_followed_without_end(folder):
  (folder / "x.zip").write_bytes(zip_of({"a.avi": b"1", "b.avi": b"2"}))
  (folder / "mine").mkdir()
  (folder / "mine" / "a.avi").write_bytes(b"1")
  for name in ("one", "two", "three"):
    (folder / "mine" / name).symlink_to(folder)
  unpack(folder)
  assert not (folder / "unpacked" / "x" / "a.avi").exists()
  assert (folder / "unpacked" / "x" / "b.avi").read_bytes() == b"2"
