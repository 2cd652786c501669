"""Which of a file's streams is the video, and that nothing beside the file is ever read."""

import contextlib
from fractions import Fraction
import os
import pathlib
import socket
import threading
import time

import av
from av.stream import Disposition
from conftest import moving_square
import numpy as np
import pytest
from video_writing import decoded, ffmpeg, numbered, numbers, write_h264

from hybrid_video.datasets import made_actions
from hybrid_video.decoding import containers, storing, video_reader, worker_pool

PICTURES = numbered(30)


def _write_streams(path: pathlib.Path, streams: list[dict], form: str | None = None) -> None:
  """Writes several video streams; of each: size, times of its frames, codec, and how it is marked."""
  with av.open(str(path), "w", format=form) as container:
    opened = []
    for wanted in streams:
      stream = container.add_stream(wanted.get("codec", "libx264"), rate=10)
      stream.height, stream.width = wanted.get("size", (48, 80))
      stream.pix_fmt = wanted.get("pix_fmt", "yuv420p")
      stream.disposition = wanted.get("disposition", Disposition(0))
      stream.time_base = stream.codec_context.time_base = Fraction(1, 10)
      stream.metadata.update(wanted.get("metadata", {}))
      opened.append(stream)
    for stream, wanted in zip(opened, streams, strict=True):
      for i in wanted.get("times", range(30)):
        height, width = wanted.get("size", (48, 80))
        # Another stream's pictures are all the last one.
        picture = PICTURES[i] if wanted.get("main") else PICTURES[-1]
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(width, height)
        frame.pts, frame.time_base = i, Fraction(1, 10)
        container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
      container.mux(stream.encode(None))


MAIN = {"main": True}
DEFAULT = Disposition.default


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("main_first", [True, False])
@pytest.mark.parametrize(
  "other",
  [
    {"codec": "mjpeg", "pix_fmt": "yuvj420p", "times": [0]},
    {"codec": "mjpeg", "pix_fmt": "yuvj420p", "times": [0], "size": (480, 640)},
    {"codec": "mjpeg", "pix_fmt": "yuvj420p", "times": [0, 10, 20], "size": (480, 640)},
    {"size": (24, 40), "disposition": DEFAULT},
    {"size": (96, 160), "metadata": {"title": "Depth Map", "handler_name": "Depth Map"}},
    {"size": (96, 160), "metadata": {"title": "thumbnails", "handler_name": "thumbnails"}},
    {"size": (96, 160), "codec": "ffv1", "pix_fmt": "gray"},
    {"size": (96, 160), "disposition": Disposition.still_image},
    {"size": (96, 160), "disposition": Disposition.timed_thumbnails | Disposition.attached_pic},
  ],
  ids=[
    "a thumbnail",
    "a large cover",
    "a picture a second",
    "a preview",
    "a depth map by name",
    "thumbnails by name",
    "a grey map",
    "a still image",
    "thumbnails by flag",
  ],
)
def test_the_main_stream_is_the_video_and_the_choice_is_said(tmp_path, other, main_first, suffix):
  path = tmp_path / f"x{suffix}"
  _write_streams(path, [MAIN, other] if main_first else [other, MAIN])
  with av.open(str(path)) as container:
    written = container.streams.video[1 if main_first else 0]
    wanted = other.get("disposition", Disposition(0))
    if wanted & containers._BESIDE and not written.disposition & wanted:
      pytest.skip("the container does not hold this mark")
  video = decoded(path, 48)
  assert numbers(video.frames) == list(range(30))
  assert f"stream {0 if main_first else 1} " in video.notes["stream"]


def test_of_two_cameras_the_default_one_is_taken(tmp_path):
  for default in (0, 1):
    path = tmp_path / f"{default}.mkv"
    streams = [{"size": (48, 80)}, {"size": (56, 80)}]
    streams[default] |= {"disposition": DEFAULT, "main": True}
    _write_streams(path, streams)
    assert numbers(decoded(path, 48).frames) == list(range(30))


def test_a_cover_alone_is_no_video(tmp_path):
  write_h264(tmp_path / "0.mp4", PICTURES[:1], range(1), 10)
  sound = ("-f", "lavfi", "-i", "sine=d=0.2", "-i", tmp_path / "0.mp4", "-map", "0", "-map", "1")
  ffmpeg(*sound, "-c:v", "mjpeg", "-disposition:v", "attached_pic", tmp_path / "x.m4a")
  with pytest.raises(video_reader.VideoError, match="no video stream"):
    decoded(tmp_path / "x.m4a", 48)


# What hostile files ask for.


@contextlib.contextmanager
def _watched(folder: pathlib.Path):
  """A file that notices being opened, and a server that notices being asked; gives their names."""
  bait = folder / "bait.avi"
  os.mkfifo(bait)
  noticed: list[str] = []
  ended = threading.Event()

  def watch() -> None:
    while not ended.is_set():
      # A pipe opens for writing only while somebody reads.
      with contextlib.suppress(OSError):
        os.close(os.open(bait, os.O_WRONLY | os.O_NONBLOCK))
        noticed.append("the file")
      time.sleep(0.001)

  with socket.create_server(("127.0.0.1", 0)) as server:
    server.settimeout(0.01)

    def listen() -> None:
      while not ended.is_set():
        with contextlib.suppress(TimeoutError):
          connection, _ = server.accept()
          connection.close()
          noticed.append("the server")

    threads = [threading.Thread(target=watch), threading.Thread(target=listen)]
    for thread in threads:
      thread.start()
    try:
      yield bait, f"http://127.0.0.1:{server.getsockname()[1]}/x.ts", noticed
    finally:
      ended.set()
      for thread in threads:
        thread.join()


def _files_that_name_others(bait: pathlib.Path, url: str) -> dict[str, str]:
  return {
    "concat": f"ffconcat version 1.0\nfile {bait.name}\nfile {bait}\nfile {url}\n",
    "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{bait}\n#EXTINF:1,\n{url}\n",
    "hls_key": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n"
    f'#EXT-X-KEY:METHOD=AES-128,URI="{bait}"\n#EXTINF:1,\n{url}\n',
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4">'
    f'<Representation id="0" bandwidth="1"><BaseURL>{url}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "asx": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
    "reference": f"[Reference]\nRef1={url}\n",
    "smil": f'<smil><body><video src="{url}"/></body></smil>',
    "avisynth": f'AviSource("{bait}")\n',
    "image": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{bait}"/></svg>',
  }


def test_files_that_name_others_are_refused_and_nothing_else_is_read(tmp_path):
  with _watched(tmp_path) as (bait, url, noticed):
    paths = []
    for name, text in _files_that_name_others(bait, url).items():
      for suffix in (".avi", ".txt"):
        paths.append(tmp_path / f"{name}{suffix}")
        paths[-1].write_text(text)
    results = list(worker_pool.store_videos(paths, storing.StoredScale(24, 32), 2))
    # The watchers work.
    assert noticed == []
    socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))).close()
    os.close(os.open(bait, os.O_RDONLY | os.O_NONBLOCK))
    time.sleep(0.1)
  assert "the server" in noticed
  for path, (_, result) in zip(paths, results, strict=True):
    assert isinstance(result, str) and result.startswith(f"{path}: "), result


def test_an_mp4_whose_pictures_lie_in_another_file_reads_no_other(tmp_path):
  write_h264(tmp_path / "x.mp4", moving_square(5), range(5), 25)
  data = bytearray((tmp_path / "x.mp4").read_bytes())
  with _watched(tmp_path) as (bait, _, noticed):
    # A data reference by name in place of "in this file" (ISO/IEC 14496-12, 8.7.2).
    at = data.index(b"url \0\0\0\1")
    name = str(bait).encode() + b"\0"
    entry = b"url \0\0\0\0" + name
    data[at - 4 : at + 8] = (len(entry) + 4).to_bytes(4, "big") + entry
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
      start = data.index(box) - 4
      size = int.from_bytes(data[start : start + 4], "big") + len(name)
      data[start : start + 4] = size.to_bytes(4, "big")
    (tmp_path / "x.mp4").write_bytes(data)
    with contextlib.suppress(video_reader.VideoError):
      assert len(decoded(tmp_path / "x.mp4", 24).frames) == 5
    time.sleep(0.05)
  assert noticed == []


def test_formats_that_may_be_opened_are_known_to_ffmpeg_and_follow_no_names():
  known = {name for names in av.formats_available for name in names.split(",")}
  assert set(containers.FORMATS) <= known
  follow = {"concat", "hls", "dash", "image2", "sdp", "rtsp", "rtp", "avs", "imf", "svg_pipe"}
  assert not follow & set(containers.FORMATS)


def test_a_pipe_or_device_is_no_file(tmp_path):
  os.mkfifo(tmp_path / "x.avi")
  with pytest.raises(video_reader.VideoError, match="a pipe or device"):
    decoded(tmp_path / "x.avi", 24)


def test_a_header_of_huge_frames_is_refused_before_memory_is_taken(tmp_path):
  made_actions.write_avi(tmp_path / "x.avi", moving_square(3), 25)
  data = bytearray((tmp_path / "x.avi").read_bytes())
  for at in (data.index(b"avih") + 8 + 32, data.index(b"strf") + 12):
    data[at : at + 8] = np.array([60_000, 60_000], "<u4").tobytes()
  (tmp_path / "x.avi").write_bytes(data)
  [(_, result)] = worker_pool.store_videos([tmp_path / "x.avi"], storing.StoredScale(24, 32), 1)
  # Either the size in the frames themselves counts, or it is refused; memory is never asked for.
  assert "memory" not in str(result)
