"""The input pipeline's peers: the same stored clips read by TFDS with tf.data, and by grain.

In: the index of records. Out: endless batches of random clips, uint8 `[B, 16, 112, 112, 3]`, as a
user of each library writes them. `input_throughput.py` measures them beside our pipeline.

- TFDS: `as_dataset` of the stored set with decoding skipped, so that only the 16 frames of a clip are
  decoded, cropped within the decoder (a whole video is read for it: TFRecords are sequential).
- tf.data: the same from the record files themselves, parsed without TFDS.
- grain: the same JPEG frames in an array_record file, a frame a record, so that a clip reads its 16
  frames alone; decoded one by one with libjpeg-turbo, in threads of one process or in a process a core.
- grain, our decoding: the same, decoded as our pipeline does it, one JPEG a clip. What remains is the
  difference of the readers.
"""

from collections.abc import Callable, Iterator
import importlib
import importlib.util
import pathlib
from typing import Any

import numpy as np
import simplejpeg

Batches = Iterator[np.ndarray]


class _RandomClip:
  """A grain transformation: a number to a random clip of the video that is its remainder."""

  def __init__(self, records: Any, path: str, frames: int, seconds: float, crop: int, joined: bool):
    self._num_frames, self._fps, self._first = records.num_frames, records.fps, records.first_frame
    self._size = (int(records.height[0]), int(records.width[0]))
    self._path, self._frames, self._seconds, self._crop = path, frames, seconds, crop
    self._joined = joined
    module = importlib.import_module("array_record.python.array_record_data_source")
    self._source = module.ArrayRecordDataSource(path)

  def __call__(self, number: int, rng: np.random.Generator) -> np.ndarray:
    video_id = number % len(self._num_frames)
    count = self._num_frames[video_id]
    length = min(count, round(self._seconds * self._fps[video_id]))
    start = int(rng.integers(count - length + 1))
    indices = np.linspace(start, start + length - 1, self._frames).astype(int)
    first = int(self._first[video_id])
    jpegs = [self._source[first + int(i)] for i in indices]
    top, left = (int(rng.integers(side - self._crop + 1)) for side in self._size)
    down, right = slice(top, top + self._crop), slice(left, left + self._crop)
    if self._joined:
      return np.ascontiguousarray(self._decode_joined(jpegs)[:, down, right])
    clip = np.empty((self._frames, self._crop, self._crop, 3), np.uint8)
    for frame, jpeg in zip(clip, jpegs, strict=True):
      frame[:] = simplejpeg.decode_jpeg(jpeg, fastupsample=True)[down, right]
    return clip

  def _decode_joined(self, jpegs: list[bytes]) -> np.ndarray:
    from hybrid_video.decoding import jpeg_stripes

    header = jpeg_stripes.parse(jpegs[0])
    scans = [jpeg_stripes.scan_of(jpeg, header) for jpeg in jpegs]
    pixels = simplejpeg.decode_jpeg(jpeg_stripes.join(header, scans), fastupsample=True)
    return pixels.reshape(self._frames, header.rows, header.width, 3)


def write_array_record(records: Any, folder: str) -> str:
  """Every stored frame as a record of an array_record file; gives its path."""
  module = importlib.import_module("array_record.python.array_record_module")
  path = str(pathlib.Path(folder) / "frames.array_record")
  # One record a group, since access is random; JPEGs do not compress.
  writer = module.ArrayRecordWriter(path, "group_size:1,uncompressed")
  for video_id in range(len(records)):
    for frame in records.read_frames(video_id, np.arange(records.num_frames[video_id])):
      writer.write(frame)
  writer.close()
  return path


def has_grain() -> bool:
  """Whether grain is installed."""
  return importlib.util.find_spec("grain") is not None


def grain_batches(
  records: Any,
  path: str,
  *,
  frames: int,
  seconds: float,
  crop: int,
  batch_size: int,
  joined: bool,
  threads: int = 1,
  processes: int = 0,
) -> Batches:
  """Batches read by grain, in threads, or in processes if there are any.

  Args:
    records: the index of the stored videos.
    path: their frames, of `write_array_record`.
    frames: of a clip.
    seconds: its length.
    crop: side of its frames.
    batch_size: clips of a batch.
    joined: whether a clip is decoded as one JPEG, as our pipeline does it.
    threads: that read, in each process.
    processes: that make batches; 0 is this process.
  """
  grain = importlib.import_module("grain")
  flags = importlib.import_module("absl.flags").FLAGS
  if not flags.is_parsed():
    flags(["grain"])  # Its processes are started by flags of its own.
  clip = _RandomClip(records, path, frames, seconds, crop, joined)
  # So many rounds of the videos that shuffling takes no time: shuffling eight is slow in grain.
  data = grain.MapDataset.range(len(records) * 1024).seed(0).shuffle().repeat().random_map(clip)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * batch_size)
  batches = data.to_iter_dataset(options).batch(batch_size)
  if processes:
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=2)
    )
  return iter(batches)


def tfds_batches(records: Any, **clip: Any) -> Batches:
  """Batches of TFDS's own data set, decoding of whole videos skipped."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(records.folder)
  data = builder.as_dataset(
    split="videos",
    shuffle_files=True,
    decoders={"video": tfds.decode.SkipDecoding()},
    read_config=tfds.ReadConfig(try_autocache=False),
  )
  return _batches(data, records, **clip)


def tf_data_batches(records: Any, **clip: Any) -> Batches:
  """Batches of tf.data alone, the record files parsed without TFDS."""
  import tensorflow as tf

  described = {
    "fps": tf.io.FixedLenFeature((), tf.float32),
    "video": tf.io.FixedLenSequenceFeature((), tf.string, allow_missing=True),
  }
  data = tf.data.TFRecordDataset([str(path) for path in records.shards])
  return _batches(
    data, records, parse=lambda record: tf.io.parse_single_example(record, described), **clip
  )


def _batches(
  data: Any,
  records: Any,
  *,
  frames: int,
  seconds: float,
  crop: int,
  batch_size: int,
  parse: Callable[[Any], Any] = lambda example: example,
) -> Batches:
  """Random clips of a tf.data data set of whole videos: only their own frames are decoded."""
  import tensorflow as tf

  height, width = int(records.height[0]), int(records.width[0])

  def clip(stored: Any) -> tf.Tensor:
    example = parse(stored)
    count = tf.shape(example["video"])[0]
    fps = tf.cast(example["fps"], tf.float64)
    length = tf.minimum(count, tf.cast(tf.round(seconds * fps), tf.int32))
    start = tf.random.uniform((), 0, count - length + 1, tf.int32)
    jpegs = tf.gather(example["video"], start + tf.range(frames) * (length - 1) // (frames - 1))
    top = tf.random.uniform((), 0, height - crop + 1, tf.int32)
    left = tf.random.uniform((), 0, width - crop + 1, tf.int32)
    window = tf.stack([top, left, crop, crop])
    return tf.stack(
      [
        tf.io.decode_and_crop_jpeg(jpeg, window, channels=3, fancy_upscaling=False)
        for jpeg in tf.unstack(jpegs, frames)
      ]
    )

  data = data.repeat().shuffle(64)
  data = data.map(clip, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
  data = data.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
  return data.as_numpy_iterator()
