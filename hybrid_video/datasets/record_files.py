"""One record file: which videos it is to hold, where their frames come from, and how it is written.

In: videos, and their files' contents. Out: a TFRecord file and its index (`records.ShardIndex`). The same
code runs on this machine and on Apache Beam's workers.
"""

from collections.abc import Generator, Iterator, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from hybrid_video import files
from hybrid_video.datasets import listing, tfds_metadata
from hybrid_video.datasets import records as stored
from hybrid_video.datasets.file_identity import Content
from hybrid_video.datasets.stored_before import Place
from hybrid_video.decoding import worker_pool
from hybrid_video.decoding.storing import DecodingLimits, StoredScale, StoredVideo

Result = StoredVideo | str
# A video's file, and where its frames are stored already, None where they are not.
Source = tuple[pathlib.Path, Place | None]


@dataclasses.dataclass(frozen=True)
class Shard:
  """A record file.

  Attributes:
    path: on any file system that TensorFlow and `etils.epath` know.
    videos: those that it is to hold, each with a path.
    contents: of their files.
    digest: tells them from others.
  """

  path: str
  videos: Sequence[listing.Video]
  contents: Sequence[Content]
  digest: str


@dataclasses.dataclass(frozen=True)
class Decoder:
  """How videos are decoded: the scale, the number of processes and the limits of each."""

  scale: StoredScale
  workers: int | None = None
  limits: DecodingLimits | None = None

  def decode(self, paths: Sequence[pathlib.Path]) -> Generator[StoredVideo | str, None, None]:
    """The videos of files in order, each decoded or the reason why not."""
    results = worker_pool.store_videos(paths, self.scale, self.workers, limits=self.limits)
    with contextlib.closing(results):
      for _, result in results:
        yield result


def results(sources: Sequence[Source], decoder: Decoder) -> Generator[Result, None, None]:
  """The videos of files in order, each from where it is stored, or decoded, or why it cannot be."""
  with contextlib.closing(
    decoder.decode([path for path, place in sources if not place])
  ) as decoded:
    for path, place in sources:
      if place is None:
        yield next(decoded)
      else:
        # What is damaged there is decoded again.
        yield place.read() or next(decoder.decode([path]))


def write_shard(
  shard: Shard, results: Iterator[StoredVideo | str], listed: listing.Listing
) -> None:
  """Writes one record file and then its index.

  Args:
    shard: the record file.
    results: its videos in order, each decoded or the reason why not; others may follow.
    listed: the listing that it is a part of.
  """
  described = tfds_metadata.features(listed)
  index = stored.ShardIndex()
  class_ids = {name: class_id for class_id, name in enumerate(listed.class_names)}
  # Two runs may build at once: both write the same file, each under a name of its own.
  with files.whole_file(shard.path) as part, tf.io.TFRecordWriter(os.fspath(part)) as writer:
    for video, content in zip(shard.videos, shard.contents, strict=True):
      result = next(results)
      if isinstance(result, str):
        index.broken[video.name] = result
        continue
      known = {
        "label": class_ids[video.label],
        "tags": json.dumps(dict(video.tags)),
        "split_codes": list(video.codes),
        "fps": result.fps,
      }
      name, group = listing.text(video.name), listing.text(video.group)
      example = {"name": name, "group": group, "video": result.frames, **known}
      serialized = _serialize(example, described)
      writer.write(serialized)
      known["labels"] = known.pop("label")
      index.add(
        serialized,
        result.frames,
        names=name,
        groups=group,
        shown_height=result.shown_size[0],
        shown_width=result.shown_size[1],
        notes=json.dumps(dict(result.notes)),
        file_size=content.size,
        file_modified=content.modified,
        file_ends=content.digest,
        file_digest=result.file_digest,
        **known,
      )
  index.write(shard.path, shard.digest)


def _serialize(example: dict[str, Any], described: tfds.features.FeaturesDict) -> bytes:
  encoded = described.serialize_example(described.encode_example(example))
  # Otherwise the order of features differs from process to process.
  return tf.train.Example.FromString(encoded).SerializeToString(deterministic=True)
