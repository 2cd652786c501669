import errno
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import threading
import types
import zipfile

from conftest import small_file_system, without_permissions
import pytest
from rar_files import Member, archive
import rarfile

from hybrid_video import errors
from hybrid_video.datasets import archives, listing
from hybrid_video.datasets.archives import failures, names, reading, unpacking

DATA = pathlib.Path(__file__).parent / "data" / "hmdb51"
GOLF = "Golf_Tips_-_Hit_The_Driver_300+_Yards!!!_golf_f_nm_np1_fr_med_0.avi"
BOW = "6arrowswithin30seconds_shoot_bow_f_nm_np1_fr_med_3.avi"
ODD_NAMES = (
  "a (b) ! c & d + e ~ f # g.avi",
  "[x] * ? {y} $HOME `z` 'q' ;.avi",
  "-rf.avi",
  "@list.avi",
  "Ünïcödé 動画.avi",
)


@pytest.fixture
def folder(tmp_path):
  data = tmp_path / "data"
  data.mkdir()
  return data


def clip(name: str) -> bytes:
  return (DATA / name).read_bytes()


def official(version: int) -> bytes:
  """HMDB51's form: one RAR a class, each with the folder of its class in it."""
  return archive(
    {
      "golf.rar": archive({f"golf/{GOLF}": clip(GOLF)}, version=version),
      "shoot_bow.rar": archive({f"shoot_bow/{BOW}": clip(BOW)}, version=version),
    },
    version=version,
  )


def tree(folder: pathlib.Path) -> dict[str, bytes]:
  """Every file below a folder."""
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """What was unpacked, without the notes."""
  files = tree(folder / "unpacked")
  return {name: data for name, data in files.items() if not name.endswith(".note")}


def unpack(folder: pathlib.Path) -> pathlib.Path:
  return archives.unpacked(folder, progress=False)


def refuse(folder: pathlib.Path, *phrases: str) -> None:
  """Unpacking fails with a message that has all the phrases, and leaves nothing half-done."""
  before = tree(folder)
  with pytest.raises(archives.ArchiveError) as error:
    unpack(folder)
  assert isinstance(error.value, listing.ListingError)
  assert isinstance(error.value, errors.UserError)
  for phrase in phrases:
    assert phrase in str(error.value)
  assert tree(folder) == before
  assert not list(folder.rglob("*.part"))


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode=mode) as file:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      file.addfile(info, io.BytesIO(data))
  return out.getvalue()


def zip_of(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", compression) as file:
    for name, data in files.items():
      file.writestr(name, data)
  return out.getvalue()


@pytest.mark.parametrize("version", [3, 5])
def test_the_official_archives_give_the_clips_of_each_class_and_the_lists(folder, version):
  (folder / "hmdb51_org.rar").write_bytes(official(version))
  lists = {"testTrainMulti_7030_splits/golf_test_split1.txt": f"{GOLF} 1 \n".encode()}
  (folder / "test_train_splits.rar").write_bytes(archive(lists, version=version))
  assert unpack(folder) == folder
  assert contents(folder) == {
    f"hmdb51_org/golf/{GOLF}": clip(GOLF),
    f"hmdb51_org/shoot_bow/{BOW}": clip(BOW),
    **{f"test_train_splits/{name}": data for name, data in lists.items()},
  }
  assert len(listing.files_below(folder)) == 3 + 2 + 2


@pytest.mark.parametrize("version", [3, 5])
def test_names_with_characters_special_to_a_shell_stay_as_they_are(folder, version):
  files = {name: name.encode() for name in ODD_NAMES}
  (folder / "odd (names) & more!.rar").write_bytes(archive(files, version=version))
  unpack(folder)
  assert contents(folder) == {f"odd (names) & more!/{n}": d for n, d in files.items()}


def test_a_class_archive_without_a_folder_of_its_own_gets_one(folder):
  inner = archive({"one.avi": b"1", "two.avi": b"22"})
  (folder / "all.rar").write_bytes(archive({"videos/golf.rar": inner}))
  unpack(folder)
  assert contents(folder) == {"all/videos/golf/one.avi": b"1", "all/videos/golf/two.avi": b"22"}


@pytest.mark.parametrize(
  ("name", "make"),
  [
    ("x.zip", zip_of),
    ("x.tar", tar_of),
    ("x.tar.gz", lambda files: tar_of(files, "w:gz")),
    ("x.TGZ", lambda files: tar_of(files, "w:gz")),
    ("x.rar", zip_of),
  ],
)
def test_other_formats_are_recognized_by_their_first_bytes_and_may_contain_archives(
  folder, name, make
):
  files = {"ä/a b.txt": b"text", "class.rar": archive({"c.avi": b"clip"}), "empty.txt": b""}
  (folder / name).write_bytes(make(files))
  unpack(folder)
  assert contents(folder) == {
    "x/ä/a b.txt": b"text",
    "x/class/c.avi": b"clip",
    "x/empty.txt": b"",
  }


def test_what_macos_adds_is_left_out(folder):
  files = {"a.avi": b"1", "__MACOSX/._a.avi": b"2", "x/.DS_Store": b"3", "x/._b.avi": b"4"}
  (folder / "x.zip").write_bytes(zip_of(files))
  (folder / "._x.zip").write_bytes(b"not an archive")
  unpack(folder)
  assert contents(folder) == {"x/a.avi": b"1"}


def test_a_second_call_opens_no_archive(folder, monkeypatch):
  (folder / "hmdb51_org.rar").write_bytes(official(5))
  unpack(folder)
  before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
  monkeypatch.setattr(reading, "opened", None)
  unpack(folder)
  assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_changed_archive_is_unpacked_again_and_the_old_files_are_removed(folder):
  path = folder / "x.rar"
  path.write_bytes(archive({"old.avi": b"old"}))
  unpack(folder)
  path.write_bytes(archive({"new.avi": b"new"}))
  os.utime(path, ns=(1, 1))
  unpack(folder)
  assert contents(folder) == {"x/new.avi": b"new"}


def test_a_changed_archive_that_is_damaged_leaves_the_old_files(folder):
  path = folder / "x.rar"
  path.write_bytes(archive({"old.avi": b"old"}))
  unpack(folder)
  path.write_bytes(archive({"new.avi": b"new content"}).replace(b"new content", b"new cOntent"))
  refuse(folder, "x.rar/new.avi")
  assert contents(folder) == {"x/old.avi": b"old"}


def test_what_a_killed_process_left_is_replaced(folder):
  (folder / "x.rar").write_bytes(archive({"a.avi": b"whole"}))
  part = folder / "unpacked" / "x.part"
  part.mkdir(parents=True)
  (part / "a.avi").write_bytes(b"ha")
  unpack(folder)
  assert contents(folder) == {"x/a.avi": b"whole"}


def test_a_folder_that_is_not_there_is_left_to_the_reader(tmp_path):
  assert unpack(tmp_path / "nothing") == tmp_path / "nothing"
  assert list(tmp_path.iterdir()) == []


def test_a_class_archive_beside_its_folder_is_not_unpacked_again(folder):
  (folder / "golf.rar").write_bytes(archive({f"golf/{GOLF}": clip(GOLF)}))
  (folder / "golf").mkdir()
  (folder / "golf" / "cut.avi").write_bytes(b"made by the user")
  unpack(folder)
  assert not (folder / "unpacked").exists()
  (folder / "golf" / "cut.avi").unlink()
  unpack(folder)
  assert list(contents(folder)) == [f"golf/golf/{GOLF}"]


@pytest.mark.parametrize(
  "by_hand",
  [
    # unrar x hmdb51_org.rar, and the same in a folder
    {"golf.rar": "golf.rar", "shoot_bow.rar": "shoot_bow.rar"},
    # the classes as well, in place or under another folder
    {f"golf/{GOLF}": GOLF, f"shoot_bow/{BOW}": BOW},
    {f"videos/golf/{GOLF}": GOLF, f"videos/shoot_bow/{BOW}": BOW},
    # unrar e: all in one folder
    {f"videos/{GOLF}": GOLF, f"videos/{BOW}": BOW},
  ],
)
def test_no_clip_is_unpacked_beside_its_own_file(folder, by_hand):
  inner = {
    "golf.rar": archive({f"golf/{GOLF}": clip(GOLF)}),
    "shoot_bow.rar": archive({f"shoot_bow/{BOW}": clip(BOW)}),
  }
  (folder / "hmdb51_org.rar").write_bytes(archive(inner))
  for path, name in by_hand.items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(inner.get(name) or clip(name))
  for _ in range(2):
    unpack(folder)
    clips = [path.name for path in folder.rglob("*.avi")]
    assert sorted(clips) == sorted([BOW, GOLF])


def test_what_the_user_unpacked_is_left_out_and_the_rest_is_unpacked(folder):
  (folder / "x.rar").write_bytes(archive({"a.avi": b"1", "b.avi": b"2"}))
  (folder / "mine").mkdir()
  (folder / "mine" / "a.avi").write_bytes(b"1")
  unpack(folder)
  assert contents(folder) == {"x/b.avi": b"2"}
  (folder / "mine" / "a.avi").unlink()
  unpack(folder)
  assert contents(folder) == {"x/a.avi": b"1", "x/b.avi": b"2"}


def test_frames_of_a_class_are_not_taken_for_its_clips(folder):
  (folder / "hmdb51_org.rar").write_bytes(official(5))
  (folder / "frames" / "golf").mkdir(parents=True)
  (folder / "frames" / "golf" / "00001.jpg").write_bytes(b"")
  unpack(folder)
  assert len(contents(folder)) == 2


def test_files_of_one_name_in_two_classes_are_not_taken_for_one_another(folder):
  (folder / "x.rar").write_bytes(archive({"p/1.avi": b"p", "q/1.avi": b"q"}))
  (folder / "p").mkdir()
  (folder / "p" / "1.avi").write_bytes(b"p")
  unpack(folder)
  assert contents(folder) == {"x/q/1.avi": b"q"}


def test_a_folder_of_the_users_own_under_unpacked_is_never_replaced(folder):
  (folder / "x.rar").write_bytes(archive({"a.avi": b"1"}))
  own = folder / "unpacked" / "x" / "mine.avi"
  own.parent.mkdir(parents=True)
  own.write_bytes(b"mine")
  unpack(folder)
  assert contents(folder) == {"x/mine.avi": b"mine"}


def test_two_archives_that_would_share_a_folder_are_refused(folder):
  (folder / "x.rar").write_bytes(archive({"a.avi": b"1"}))
  (folder / "x.zip").write_bytes(zip_of({"a.avi": b"1"}))
  refuse(folder, "x.rar", "x.zip", "both", "Rename")


@pytest.mark.parametrize("version", [3, 5])
def test_a_damaged_byte_is_noticed_by_the_checksum(folder, version):
  data = bytearray(official(version))
  data[data.index(clip(BOW)) + 1000] ^= 1
  (folder / "hmdb51_org.rar").write_bytes(data)
  refuse(folder, "hmdb51_org.rar/shoot_bow.rar", "CRC", "Download it again")


@pytest.mark.parametrize(
  ("name", "make"),
  [
    ("x.zip", lambda files: zip_of(files, zipfile.ZIP_STORED)),
    ("x.tgz", lambda files: tar_of(files, "w:gz")),
  ],
)
def test_a_damaged_byte_in_other_formats_is_noticed_as_well(folder, name, make):
  data = bytearray(make({"a.avi": clip(BOW)}))
  data[len(data) // 2] ^= 1
  (folder / name).write_bytes(data)
  refuse(folder, name, "damaged or incomplete")


@pytest.mark.parametrize("version", [3, 5])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_rar_cut_short_is_refused(folder, version, share):
  data = official(version)
  (folder / "hmdb51_org.rar").write_bytes(data[: int(len(data) * share)])
  refuse(folder, "hmdb51_org.rar", "Download it again")


@pytest.mark.parametrize("length", [600, 1536, 2048])
def test_a_tar_cut_short_is_refused_even_between_members(folder, length):
  data = tar_of({"a.avi": b"1" * 500, "b.avi": b"2" * 500})
  (folder / "x.tar").write_bytes(data[:length])
  refuse(folder, "x.tar", "damaged or incomplete")


@pytest.mark.parametrize(
  "name",
  ["../out.avi", "a/../../out.avi", "/out.avi", "C:/out.avi", "c:out.avi", "..\\out.avi", "\\out"],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_member_that_would_leave_the_folder_is_refused(folder, name, nested):
  data = archive([Member("good.avi", b"1"), Member(name, b"2")])
  (folder / "x.rar").write_bytes(archive({"inner.rar": data}) if nested else data)
  refuse(folder, "x.rar", repr(name), "outside of its folder")
  assert not list(folder.parent.rglob("out*"))


def test_links_are_refused(folder):
  (folder / "x.rar").write_bytes(archive([Member("a.avi", link="/etc/passwd")]))
  refuse(folder, "'a.avi' is a link")
  (folder / "x.rar").unlink()
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w") as file:
    info = tarfile.TarInfo("b.avi")
    info.type, info.linkname = tarfile.SYMTYPE, "../../x"
    file.addfile(info)
  (folder / "x.tar").write_bytes(out.getvalue())
  refuse(folder, "'b.avi' is a link")
  (folder / "x.tar").unlink()
  info = zipfile.ZipInfo("c.avi")
  info.external_attr = 0o120777 << 16
  with zipfile.ZipFile(folder / "x.zip", "w") as file:
    file.writestr(info, "/etc/passwd")
  refuse(folder, "'c.avi' is a link")


def test_a_member_without_a_name_is_refused(folder):
  data = bytearray(zip_of({"a.avi": b"1", "b.avi": b"2"}))
  # The library ends a name at its first zero byte.
  data[data.index(b"a.avi", data.index(b"PK\x01\x02"))] = 0
  data[data.index(b"a.avi")] = 0
  (folder / "x.zip").write_bytes(data)
  refuse(folder, "x.zip: found a file named ''", "Download it again")


def test_a_name_that_comes_twice_is_refused(folder):
  (folder / "x.rar").write_bytes(archive([Member("a.avi", b"1"), Member("./a.avi", b"2")]))
  refuse(folder, "two members")


@pytest.mark.parametrize(
  ("data", "what"),
  [
    (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    (b"\n  <HTML><head>", "a web page"),
    (b"", "an empty file"),
    (b"version https://git-lfs", "begins b'version '"),
  ],
)
def test_a_file_that_is_no_archive_is_refused_with_what_it_is(folder, data, what):
  (folder / "hmdb51_org.rar").write_bytes(data)
  refuse(folder, "hmdb51_org.rar is not an archive", what, "download it again")


@pytest.mark.parametrize("nested", [False, True])
def test_a_missing_extractor_is_reported_before_anything_is_written(folder, nested, monkeypatch):
  def none_installed(**_):
    raise rarfile.RarCannotExec("Cannot find working tool")

  monkeypatch.setattr(rarfile, "tool_setup", none_installed)
  data = archive([Member("a.avi", b"stored"), Member("b.avi", b"squeezed", method=3)])
  (folder / "x.rar").write_bytes(archive({"inner.rar": data}) if nested else data)
  refuse(folder, "x.rar", "no extractor", "apt install unar", "brew install unar")
  assert not (folder / "unpacked").exists()


def test_stored_members_need_no_extractor(folder, monkeypatch):
  monkeypatch.setattr(rarfile, "tool_setup", None)
  (folder / "hmdb51_org.rar").write_bytes(official(5))
  unpack(folder)
  assert len(contents(folder)) == 2


def pretend_extractor(monkeypatch, output: bytes) -> None:
  """An extractor that prints the given output, the members of an archive in their order."""
  code = f"import sys; sys.stdout.buffer.write({output!r})"
  setup = types.SimpleNamespace(open_cmdline=lambda *_: [sys.executable, "-c", code])
  monkeypatch.setattr(rarfile, "tool_setup", lambda **_: setup)


SQUEEZED = {
  "one.avi": b"1" * 3000,
  "class.rar": archive({"two.avi": b"2"}),
  "there.avi": b"3" * 10,
  "last.avi": b"4" * 5,
}


def test_compressed_members_come_out_of_one_run_each_under_its_name(folder, monkeypatch):
  pretend_extractor(monkeypatch, b"".join(SQUEEZED.values()))
  (folder / "x.rar").write_bytes(archive([Member(*item, method=3) for item in SQUEEZED.items()]))
  (folder / "there.avi").write_bytes(SQUEEZED["there.avi"])
  unpack(folder)
  assert contents(folder) == {
    "x/one.avi": SQUEEZED["one.avi"],
    "x/class/two.avi": b"2",
    "x/last.avi": SQUEEZED["last.avi"],
  }


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda output: output[:-1], "1 bytes too few"),
    (lambda output: output.replace(b"4" * 5, b"44044"), "CRC-32"),
    (lambda output: b"cannot open", "bytes too few"),
  ],
)
def test_a_failure_of_the_extractor_is_reported(folder, monkeypatch, change, message):
  pretend_extractor(monkeypatch, change(b"".join(SQUEEZED.values())))
  (folder / "x.rar").write_bytes(archive([Member(*item, method=3) for item in SQUEEZED.items()]))
  refuse(folder, "x.rar", message, "apt install unar")


def test_encrypted_archives_are_refused(folder):
  path = folder / "x.rar"
  path.write_bytes(archive([Member("a.avi", b"1", encrypted=True)]))
  refuse(folder, "x.rar is encrypted")
  path.write_bytes(archive({}, locked=True))
  refuse(folder, "x.rar is encrypted")
  data = bytearray(zip_of({"a.avi": b"1"}))
  # The flag of encryption in the entry of the central directory.
  data[data.index(b"PK\x01\x02") + 8] |= 1
  path.write_bytes(data)
  refuse(folder, "x.rar is encrypted")


def test_a_missing_volume_is_named(folder):
  first = folder / "x.part1.rar"
  first.write_bytes(archive({"a.avi": b"1"}, more_volumes=True))
  refuse(folder, "x.part1.rar", "another volume", "x.part2.rar")
  first.rename(folder / "x.part2.rar")
  refuse(folder, "x.part2.rar is a later volume", "Put x.part1.rar")


def test_too_little_space_is_reported_before_anything_is_written(folder, monkeypatch):
  (folder / "hmdb51_org.rar").write_bytes(official(5))
  size = len(clip(GOLF)) + len(clip(BOW))
  monkeypatch.setattr(failures.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=size))
  # One class's archive is on the disk meanwhile, on top of the clips.
  refuse(folder, "hmdb51_org.rar needs 1.0 MB", "has 0.6 MB free", "Make room")


def test_a_disk_that_fills_up_meanwhile_is_reported_and_the_part_is_removed(folder, monkeypatch):
  (folder / "x.rar").write_bytes(archive({"a.avi": clip(BOW)}))

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(unpacking, "_copy", full)
  refuse(folder, "x.rar needs 0.3 MB", "free")


def test_a_disk_that_is_full_from_the_start_is_reported(folder, monkeypatch):
  (folder / "x.rar").write_bytes(archive({"a.avi": b"1"}))
  mkdir = pathlib.Path.mkdir

  def full(path, *arguments, **options):
    if path.name == "unpacked":
      raise OSError(errno.ENOSPC, "No space left on device")
    mkdir(path, *arguments, **options)

  monkeypatch.setattr(pathlib.Path, "mkdir", full)
  refuse(folder, "x.rar cannot be unpacked", f"the disk of {folder} is full")


def test_a_real_disk_that_is_full_keeps_what_is_whole_and_goes_on_after_room_is_made(tmp_path):
  disk = tmp_path / "disk"
  with small_file_system(disk, "2500k") as resize:
    for name in ("a", "b"):
      (disk / f"{name}.rar").write_bytes(archive({f"{name}.avi": bytes(700_000)}))
    with pytest.raises(archives.ArchiveError, match=r"b\.rar needs 0\.7 MB.*Make room"):
      unpack(disk)
    assert (disk / "unpacked" / "a" / "a.avi").stat().st_size == 700_000
    assert not list(disk.rglob("*.part"))
    before = (disk / "unpacked" / "a" / "a.avi").stat().st_ino
    resize("8m")
    unpack(disk)
    assert (disk / "unpacked" / "b" / "b.avi").stat().st_size == 700_000
    assert (disk / "unpacked" / "a" / "a.avi").stat().st_ino == before


def test_a_folder_without_permissions_is_named():
  with tempfile.TemporaryDirectory() as text:
    closed = pathlib.Path(text)
    (closed / "x.rar").write_bytes(archive({"a.avi": b"1"}))
    closed.chmod(0o555)
    with without_permissions():
      refuse(closed, "x.rar cannot be unpacked into", "Permission denied", "writable")
    closed.chmod(0o755)


def test_a_folder_that_cannot_be_written_is_named(folder):
  (folder / "x.rar").write_bytes(archive({"a.avi": b"1"}))
  (folder / "unpacked").write_text("")
  refuse(folder, "x.rar cannot be unpacked into", str(folder / "unpacked"), "writable")


def test_archives_in_archives_without_end_are_refused(folder):
  data = archive({"a.avi": b"1"})
  for depth in range(5):
    data = archive({f"{depth}.rar": data})
  (folder / "x.rar").write_bytes(data)
  refuse(folder, "archives deep")


MAKERS = {
  ".rar": archive,
  ".zip": zip_of,
  ".tar": tar_of,
  ".tar.gz": lambda files: tar_of(files, "w:gz"),
}


@pytest.mark.parametrize("suffix", MAKERS)
@pytest.mark.parametrize("stem", ["..", ".", "", "....", "a/..", "a/b/.."])
@pytest.mark.parametrize("inner", ["evil.avi", "../evil.avi", "data/evil.avi"])
def test_an_archive_within_one_is_unpacked_below_its_own_folder_whatever_its_name(
  folder, suffix, stem, inner
):
  """A nested archive `...rar` has the stem `..`, which names the folder above."""
  name = f"{stem}{suffix}"
  (folder / "x.zip").write_bytes(zip_of({name: MAKERS[suffix]({inner: b"1"})}))
  if inner.startswith(".."):
    refuse(folder, "outside of its folder")
    assert tree(folder.parent).keys() == {"data/x.zip"}
    return
  unpack(folder)
  above = name.rpartition("/")[0]
  assert contents(folder) == {(pathlib.PurePath("x") / above / "unnamed" / inner).as_posix(): b"1"}
  assert tree(folder.parent).keys() == {
    "data/x.zip",
    "data/unpacked/x.note",
    *(f"data/unpacked/{path}" for path in contents(folder)),
  }


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("golf.rar", "golf"),
    ("golf.part1.rar", "golf"),
    ("UCF101.tar.gz", "UCF101"),
    ("Vol. 1 (a).zip", "Vol. 1 (a)"),
    (".hidden.rar", ".hidden"),
    ("...rar", "unnamed"),
    ("..rar", "unnamed"),
    (".rar", "unnamed"),
    ("...part1.rar", "unnamed"),
    ("a...rar", "a"),
    ("..a.tgz", "..a"),
    ("..\\..\\a.rar", ".._.._a"),
    ("C:a.rar", "C_a"),
    ("C:\\.zip", "C__"),
    ("a/b.rar", "a_b"),
    # Readers pass over unfinished work, and a note has the place of its archive's folder.
    ("x.part.rar", "x.part_"),
    ("x.note.rar", "x.note_"),
  ],
)
def test_the_folder_of_an_archive_is_directly_below_its_parent(name, expected):
  assert names.folder_name(name) == expected
  for kind in (pathlib.PurePosixPath, pathlib.PureWindowsPath):
    parent = kind("/data/unpacked")
    assert (parent / names.folder_name(name)).parent == parent
    assert (parent / names.folder_name(name)).name not in ("", ".", "..")


def test_archives_named_like_unfinished_work_or_a_note_are_unpacked_beside_the_others(folder):
  for name in ("x", "x.part", "x.note"):
    (folder / f"{name}.rar").write_bytes(archive({f"{name}.avi": name.encode()}))
  unpack(folder)
  unpack(folder)
  assert contents(folder) == {
    "x/x.avi": b"x",
    "x.note_/x.note.avi": b"x.note",
    "x.part_/x.part.avi": b"x.part",
  }
  assert len(listing.files_below(folder)) == 3 + 3 + 3


def test_the_bar_counts_the_bytes_of_the_contents(folder, capsys):
  compressed = zip_of({"golf.rar": archive({GOLF: clip(GOLF)}), "a.txt": b"1"})
  (folder / "x.zip").write_bytes(compressed)
  archives.unpacked(folder)
  output = capsys.readouterr().err
  assert "x.zip: 100%" in output
  assert "309k/309k" in output


def test_threads_that_unpack_one_folder_do_it_once(folder):
  (folder / "hmdb51_org.rar").write_bytes(official(5))
  raised = []

  def work():
    try:
      unpack(folder)
    except Exception as error:
      raised.append(error)

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert raised == []
  assert len(contents(folder)) == 2


def test_the_note_says_which_file_was_unpacked(folder):
  path = folder / "x.rar"
  path.write_bytes(archive({"a.avi": b"1"}))
  unpack(folder)
  note = json.loads((folder / "unpacked" / "x.note").read_text())
  assert note["archive"] == [["x.rar", path.stat().st_size, path.stat().st_mtime_ns]]


def test_unpacking_needs_no_tensorflow():
  code = (
    "import sys; from hybrid_video.datasets import archives, mirrors;"
    "assert 'tensorflow' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], cwd=DATA.parents[2], check=True)
