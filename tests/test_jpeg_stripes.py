"""Frames laid one below the other decode as they do alone."""

import io

import numpy as np
from PIL import Image
import pytest
import simplejpeg

from hybrid_video.decoding import jpeg_stripes


def _encoded(height, width, count, *, subsampling=2, quality=90, seed=0, **options):
  rng = np.random.default_rng(seed)
  frames = []
  for _ in range(count):
    # Colours that change from block to block, so that a neighbour's would show.
    coarse = rng.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), np.uint8)
    picture = coarse.repeat(6, 0).repeat(6, 1)[:height, :width]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=subsampling, **options)
    frames.append(file.getvalue())
  return frames


def _stripe(frames):
  header = jpeg_stripes.parse(frames[0])
  scans = [jpeg_stripes.scan_of(frame, header) for frame in frames]
  after = jpeg_stripes.separators(len(frames))
  joined = b"".join(part for pair in zip(scans, after, strict=True) for part in pair)
  return header, header.stripe(len(frames)) + joined


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (38, 50), (33, 47), (128, 171), (1, 1)])
def test_every_frame_of_a_stripe_decodes_as_it_does_alone(height, width, subsampling):
  # More than eight frames: the restart markers repeat.
  frames = _encoded(height, width, 19, subsampling=subsampling)
  header, stripe = _stripe(frames)
  block = 16 if subsampling == 2 else 8
  assert (header.height, header.width) == (height, width)
  assert header.rows == -(-height // block) * block
  rows = simplejpeg.decode_jpeg(stripe, fastupsample=True)
  assert rows.shape == (19 * header.rows, width, 3)
  cut = rows.reshape(19, header.rows, width, 3)[:, :height]
  alone = [simplejpeg.decode_jpeg(frame, fastupsample=True) for frame in frames]
  np.testing.assert_array_equal(cut, alone)


def test_another_decoder_reads_a_stripe_too():
  frames = _encoded(32, 48, 5, subsampling=0)
  _, stripe = _stripe(frames)
  with Image.open(io.BytesIO(stripe)) as picture:
    assert picture.size == (48, 160)
    rows = np.asarray(picture)
  for i, frame in enumerate(frames):
    with Image.open(io.BytesIO(frame)) as alone:
      np.testing.assert_array_equal(rows[32 * i : 32 * (i + 1)], np.asarray(alone))


def test_interpolated_chroma_would_mix_neighbouring_frames():
  frames = _encoded(32, 48, 5)
  _, stripe = _stripe(frames)
  alone = np.stack([simplejpeg.decode_jpeg(frame) for frame in frames])
  mixed = simplejpeg.decode_jpeg(stripe).reshape(alone.shape)
  differ = (mixed != alone).any((0, 2, 3))
  assert differ[[0, -1]].all()
  assert not differ[2:-2].any()


def test_a_stripe_is_not_higher_than_decoders_take():
  header = jpeg_stripes.parse(_encoded(128, 16, 1)[0])
  most = jpeg_stripes.MAX_ROWS // 128
  header.stripe(most)
  with pytest.raises(jpeg_stripes.JpegError, match=f"{most + 1} frames of 128 pixels"):
    header.stripe(most + 1)


def test_frames_of_other_headers_or_without_an_end_are_refused():
  frame, better = _encoded(32, 48, 1)[0], _encoded(32, 48, 1, quality=80)[0]
  header = jpeg_stripes.parse(frame)
  with pytest.raises(jpeg_stripes.JpegError, match="headers differ"):
    jpeg_stripes.scan_of(better, header)
  with pytest.raises(jpeg_stripes.JpegError, match="FFD9"):
    jpeg_stripes.scan_of(frame[:-2], header)


def test_anything_but_a_baseline_jpeg_is_refused():
  frame = _encoded(32, 48, 1)[0]
  png = io.BytesIO()
  Image.new("RGB", (4, 4)).save(png, "PNG")
  progressive = _encoded(32, 48, 1, progressive=True)[0]
  restarts = _encoded(32, 48, 1, restart_marker_rows=1)[0]
  for data, message in (
    (b"", "FFD8"),
    (png.getvalue(), "FFD8"),
    (progressive, "baseline"),
    (restarts, "restart intervals"),
  ):
    with pytest.raises(jpeg_stripes.JpegError, match=message):
      jpeg_stripes.parse(data)
  scan_at = jpeg_stripes.parse(frame).scan_at
  for end in range(scan_at):
    with pytest.raises(jpeg_stripes.JpegError):
      jpeg_stripes.parse(frame[:end])
