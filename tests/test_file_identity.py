"""Records are of the files' contents: what has changed is decoded again, and only that."""

import os
import pathlib

import av
from conftest import moving_square
import numpy as np
import pytest
from test_builder import SMALL, build, decoded, few_videos, listed, names_of, path_of, two_a_file

from hybrid_video.datasets import builder, file_identity, listing, made_actions, records
from hybrid_video.decoding import storing

__all__ = ["decoded", "listed", "two_a_file"]


def _content(path: pathlib.Path, whole: bool = False) -> file_identity.Content:
  return file_identity.contents_of([path], whole=whole)[0]


def _frames(of: records.Records) -> dict[str, list[bytes]]:
  counts = dict(enumerate(of.num_frames.tolist()))
  return {str(of.names[i]): of.read_frames(i, np.arange(count)) for i, count in counts.items()}


def _keep_time(path: pathlib.Path, data: bytes) -> None:
  status = path.stat()
  path.write_bytes(data)
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_two_files_that_are_exchanged_are_seen_and_not_decoded(listed, tmp_path, decoded):
  one, other = path_of(listed, 2), path_of(listed, 3)
  # Equal in size and time.
  made_actions.write_avi(other, moving_square(60)[::-1][:20], 25)
  made_actions.write_avi(one, moving_square(60)[:20], 25)
  size = max(path.stat().st_size for path in (one, other))
  for path in (one, other):
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    os.utime(path, ns=(10**18, 10**18))
  before = _frames(build(listed, tmp_path / "records"))
  first, second = one.read_bytes(), other.read_bytes()
  _keep_time(one, second)
  _keep_time(other, first)
  decoded.clear()
  after = _frames(build(few_videos(listed.folder), tmp_path / "records"))
  assert decoded == []
  names = names_of(listed)
  assert after[names[2]] == before[names[3]] != before[names[2]] == after[names[3]]


@pytest.mark.parametrize("longer", [False, True], ids=["at its size", "longer"])
def test_a_file_that_is_replaced_in_place_is_decoded_again_and_no_other(
  listed, tmp_path, decoded, two_a_file, longer
):
  longest = int(build(listed, tmp_path / "records").num_frames.argmax())
  path = path_of(listed, longest)
  size = path.stat().st_size
  made_actions.write_avi(path, moving_square(30 if longer else 3)[::-1], 25)
  if not longer:
    _keep_time(path, path.read_bytes()[:size].ljust(size, b"\0"))
  decoded.clear()
  again = build(few_videos(listed.folder), tmp_path / "records")
  assert decoded == [path.name]
  fresh = build(few_videos(listed.folder), tmp_path / "fresh")
  assert _frames(again) == _frames(fresh)


def test_a_file_of_another_time_and_the_same_bytes_is_not_decoded_again(listed, tmp_path, decoded):
  build(listed, tmp_path)
  for i in (1, 6):
    os.utime(path_of(listed, i), ns=(10**18, 10**18))
  decoded.clear()
  again = build(listed, tmp_path)
  assert decoded == []
  # The new time is noted, so that the next start need not read the file.
  assert again.file_modified[[1, 6]].tolist() == [10**18] * 2


def _write_uncompressed(path: pathlib.Path) -> None:
  """A video of 40 frames of 12 kB each."""
  with av.open(str(path), "w", format="avi") as container:
    stream = container.add_stream("rawvideo", rate=25)
    stream.width = stream.height = 64
    stream.pix_fmt = "bgr24"
    for picture in moving_square(40):
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
      container.mux(stream.encode(frame.reformat(format="bgr24")))


def _change_the_middle(path: pathlib.Path) -> None:
  """Other pixels, far from both ends."""
  data = bytearray(path.read_bytes())
  middle = len(data) // 2
  data[middle : middle + 3000] = bytes([99]) * 3000
  path.write_bytes(data)


def test_a_change_in_the_middle_is_seen_by_its_time(listed, tmp_path, decoded):
  path = path_of(listed, 4)
  _write_uncompressed(path)
  os.utime(path, ns=(10**18, 10**18))
  listed = few_videos(listed.folder)
  before = build(listed, tmp_path)
  ends = _content(path).digest
  _change_the_middle(path)
  assert _content(path).digest == ends
  decoded.clear()
  again = build(few_videos(listed.folder), tmp_path)
  # One folder, one record file, one video.
  assert again.folder == before.folder
  assert decoded == [path.name]
  assert again.file_digest[4] != before.file_digest[4]
  assert build(few_videos(listed.folder), tmp_path).file_digest[4] == again.file_digest[4]


def test_a_change_in_the_middle_at_the_same_time_is_seen_by_all_bytes(listed, tmp_path, decoded):
  path = path_of(listed, 4)
  _write_uncompressed(path)
  listed = few_videos(listed.folder)
  build(listed, tmp_path, hash_whole_files=True)
  time = path.stat().st_mtime_ns
  _change_the_middle(path)
  os.utime(path, ns=(time, time))
  decoded.clear()
  build(few_videos(listed.folder), tmp_path, hash_whole_files=True)
  assert decoded == [path.name]


def test_files_under_other_names_and_labels_are_not_decoded_again(tmp_path, decoded):
  folder = tmp_path / "data"
  videos = []
  for i in range(4):
    path = folder / f"{i}.avi"
    folder.mkdir(exist_ok=True)
    made_actions.write_avi(path, moving_square(3 + i), 25)
    videos.append(listing.Video(path.name, f"class{i % 2}", str(i), (1,), path))
  before = build(listing.make("folder", folder, videos), tmp_path / "records")
  decoded.clear()
  renamed = []
  for i, video in enumerate(videos):
    path = folder / f"new{i}.avi"
    video.path.rename(path)
    renamed.append(listing.Video(path.name, f"other{i % 3}", str(i), (2,), path))
  made_actions.write_avi(folder / "one_more.avi", moving_square(9), 25)
  renamed.append(listing.Video("one_more.avi", "other0", "9", (1,), folder / "one_more.avi"))
  again = build(listing.make("folder", folder, renamed), tmp_path / "records")
  assert decoded == ["one_more.avi"]
  assert again.class_names == ("other0", "other1", "other2")
  assert _frames(again)["new2.avi"] == _frames(before)["2.avi"]
  assert again.labels[again.names.tolist().index("new2.avi")] == 2


def test_a_stored_video_that_is_damaged_is_decoded_again(tmp_path, decoded, listed):
  before = build(listed, tmp_path)
  shard = pathlib.Path(before.shards[0])
  data = bytearray(shard.read_bytes())
  data[int(before.offset[3]) + int(before.length[3]) // 2] ^= 1
  shard.write_bytes(data)
  made_actions.write_avi(path_of(listed, 9), moving_square(33), 25)
  decoded.clear()
  again = build(few_videos(listed.folder), tmp_path)
  assert sorted(decoded) == sorted([path_of(listed, 3).name, path_of(listed, 9).name])
  assert again.num_frames[3] == before.num_frames[3]


def test_a_file_that_has_gone_since_it_was_listed_is_an_error(listed, tmp_path):
  path_of(listed, 0).unlink()
  with pytest.raises(file_identity.ContentError, match=r"cannot be read .*run the same command"):
    builder.build(listed, str(tmp_path), SMALL)


def test_a_digest_is_of_every_byte(tmp_path):
  (tmp_path / "a").write_bytes(bytes(300_000))
  (tmp_path / "b").write_bytes(bytes(150_000) + b"\1" + bytes(149_999))
  a, b = (tmp_path / name for name in "ab")
  assert _content(a).digest == _content(b).digest
  assert storing.file_digest(a) != storing.file_digest(b)
  assert _content(a, whole=True).digest != _content(b, whole=True).digest
