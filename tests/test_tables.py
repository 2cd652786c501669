"""Lists in text files: what is read of lines, rows, and lists of videos with any usual header."""

import pytest

from hybrid_video.datasets import listing, tables


class _Finder:
  """A folder with a file `clip` and the videos `there.mp4` and `video.mp4`."""

  def is_file(self, text, start):
    return text == "clip"

  def leads_to_file(self, text, start):
    return text in ("clip", "there", "video")


FINDER = _Finder()


def _write(folder, text):
  path = folder / "list.csv"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return path


def _read(folder, text):
  rows = tables.read_videos(_write(folder, text), FINDER)
  return [(row.path, row.label) for row in rows]


def test_a_list_may_begin_with_a_byte_order_mark_and_hold_rare_line_separators(tmp_path):
  path = tmp_path / "list.txt"
  path.write_bytes("\ufeffone\r\n\r\ntwo\u2028half\r\n".encode())
  assert list(tables.read_lines(path)) == [(1, "one"), (3, "two\u2028half")]


def test_a_list_in_another_encoding_is_named(tmp_path):
  path = tmp_path / "list.txt"
  path.write_bytes("café".encode("latin-1"))
  with pytest.raises(listing.ListingError, match=r"list\.txt: byte 3 is not UTF-8"):
    list(tables.read_lines(path))


def test_a_list_that_cannot_be_read_is_named(tmp_path):
  (tmp_path / "list.txt").mkdir()
  with pytest.raises(listing.ListingError, match=r"list\.txt: the list cannot be read \(Is a dir"):
    list(tables.read_lines(tmp_path / "list.txt"))


def test_rows_keep_quoted_commas_and_their_line_numbers(tmp_path):
  path = tmp_path / "list.csv"
  path.write_text('path,label\n\n"a, b.avi", "say ""hi"""\n')
  assert list(tables.read_rows(path)) == [(1, ["path", "label"]), (3, ["a, b.avi", 'say "hi"'])]


def test_quotes_that_do_not_match_are_named_with_their_line(tmp_path):
  path = tmp_path / "list.csv"
  path.write_text('path,label\n"a".avi,run\n')
  with pytest.raises(listing.ListingError, match=r"list\.csv, line 2: not a line of CSV"):
    list(tables.read_rows(path))


@pytest.mark.parametrize(
  "header",
  [
    "path,label",
    "video_path,label",
    "Video Path,Class",
    "filename,action",
    "FILE-NAME,class_name",
    "name,y",
    "video_id,target",
    "clip_name,category",
    "id,classid",
    "file,labels",
  ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_header_of_any_usual_names_is_no_video(tmp_path, header, delimiter):
  text = f"{header}\na.mp4,run\nb.mp4,walk\n".replace(",", delimiter)
  assert _read(tmp_path, text) == [("a.mp4", "run"), ("b.mp4", "walk")]


def test_a_header_may_be_split_at_spaces_and_paths_below_it_hold_some(tmp_path):
  assert _read(tmp_path, "path label\na b.mp4 0\nc.mp4 1\n") == [("a b.mp4", "0"), ("c.mp4", "1")]


def test_byte_order_mark_windows_line_ends_and_quotes_do_not_matter(tmp_path):
  text = '\ufefflabel;path\r\n"run; fast";"a; b.mp4"\r\n\r\n'.encode()
  assert _read(tmp_path, text) == [("a; b.mp4", "run; fast")]


@pytest.mark.parametrize(
  "line", ["a.mp4,run", "a.mp4;run", "a.mp4\trun", "a.mp4 run", '"a.mp4",run']
)
def test_a_line_without_a_header_has_any_delimiter(tmp_path, line):
  assert _read(tmp_path, f"{line}\nb, c; d.mp4 run\n") == [("a.mp4", "run"), ("b, c; d.mp4", "run")]


def test_row_numbers_that_pandas_writes_are_no_path(tmp_path):
  assert _read(tmp_path, ",video,label\n0,a.mp4,run\n1,b.mp4,walk\n")[1] == ("b.mp4", "walk")


def test_numbers_that_pandas_writes_with_a_point_are_whole(tmp_path):
  assert _read(tmp_path, "video,label\na.mp4,0.0\nb.mp4,10.0\n")[1] == ("b.mp4", "10")
  assert _read(tmp_path, "video,label\na.mp4,0.0\nb.mp4,1.5\n")[0] == ("a.mp4", "0.0")


def test_a_first_line_whose_video_is_there_is_no_header(tmp_path):
  assert _read(tmp_path, "clip action\nthere run\n") == [("clip", "action"), ("there", "run")]


def test_a_header_is_one_also_where_a_video_has_its_name_without_suffix(tmp_path):
  assert _read(tmp_path, "video,label\nthere,run\n") == [("there", "run")]


def test_a_first_line_without_a_video_is_no_header_if_its_label_is_like_others(tmp_path):
  assert _read(tmp_path, "gone 3\nthere 4\n")[0] == ("gone", "3")
  assert _read(tmp_path, "gone,run\nthere,walk\nvideo,run\n")[0] == ("gone", "run")


def test_of_several_columns_for_the_path_the_one_that_says_so_counts(tmp_path):
  assert _read(tmp_path, "id,path,label\n7,a.mp4,run\n") == [("a.mp4", "run")]


def test_other_columns_are_read_by_their_meaning(tmp_path):
  path = _write(tmp_path, "video,Subset,subject,class,duration\na.mp4,val,anna,run,3\n")
  (row,) = tables.read_videos(path, FINDER)
  assert (row.split, row.group, row.source) == ("val", "anna", f"{path}, line 2")


@pytest.mark.parametrize("header", ["path,label,class_name", "path,class_name,class_id"])
def test_names_and_numbers_side_by_side_are_told_apart(tmp_path, header):
  values = {"path": "a.mp4", "label": "3", "class_id": "3", "class_name": "run"}
  line = ",".join(values[column] for column in header.split(","))
  (row,) = tables.read_videos(_write(tmp_path, f"{header}\n{line}\n"), FINDER)
  assert (row.label, row.class_id) == ("run", "3")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("path,label,grup\na.mp4,run,1\n", r"no column is called 'grup'\. Did you mean group\?"),
    ("path,labl\na.mp4,run\nb.mp4,run\n", "found 'path,labl', which is no video and looks like a"),
    ("datei,klasse\na.mp4,run\nb.mp4,run\n", r"line 1: found 'datei,klasse'.*Expected a header"),
    ("datei klasse\na 0\nb 1\n", "line 1: found 'datei,klasse'"),
    ("path,split\na.mp4,train\n", "the header path,split has no column `label`"),
    ("path,label,class\na.mp4,run,walk\n", "one with the class's name and one with its number"),
    ("path,label,list,split\na.mp4,run,a,b\n", "several columns give the split"),
    ("path,label\na.mp4,\n", "line 2: found 'a.mp4,', where the video or its label is empty"),
    ("path,label\na.mp4\n", "line 2: found 1 fields, expected 2"),
    ("a.mp4\n", "line 1: found 'a.mp4', expected a header"),
    ("path,label\n", "lists no video"),
    ("", "lists no video"),
  ],
)
def test_an_unusable_list_is_refused_by_what_was_found(tmp_path, text, message):
  with pytest.raises(listing.ListingError, match=message) as error:
    _read(tmp_path, text)
  assert str(tmp_path / "list.csv") in str(error.value)


def test_a_field_longer_than_any_path_is_no_crash(tmp_path):
  assert _read(tmp_path, f"{'x' * 200_000} 0\n")[0][1] == "0"
