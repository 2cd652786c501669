"""The TFDS builder: a folder in HMDB51's layout to stored records, each video once.

In: AVI files and split files (`layout.read_folder`). Out: TFDS records, one a video, with its
frames as JPEG at the training scale and the codes of the three official splits, from which lists
are selected when they are read (`hybrid_video.datasets.records`).
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import io
import os
from typing import Any, ClassVar

from absl import logging
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from hybrid_video.datasets import records, video_files
from hybrid_video.datasets.hmdb51 import layout

_SHOWN = 5


class MissingVideosError(ValueError):
  """Listed videos that are not there or cannot be decoded, without leave to go on."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Holds back what TFDS tells of downloads there are none of and of its own deprecations."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


def describe(names: list[str]) -> str:
  """The first few of a list of names, and how many more there are."""
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return ", ".join(names[:_SHOWN]) + more


@dataclasses.dataclass(eq=False)
class Hmdb51Config(tfds.core.BuilderConfig):
  """Where the videos are and how their frames are stored.

  Attributes:
    clips: what `layout.read_folder` found.
    scale: size and quality of the stored frames.
    allow_missing: whether to build although listed videos are missing or broken.
    workers: decoding processes; the default is one a core.
  """

  clips: tuple[layout.Clip, ...] = dataclasses.field(default=(), repr=False)
  scale: video_files.StoredScale = dataclasses.field(default_factory=video_files.StoredScale)
  allow_missing: bool = False
  workers: int | None = None


def make_config(
  folder: os.PathLike | str,
  scale: video_files.StoredScale,
  *,
  allow_missing: bool = False,
  workers: int | None = None,
) -> Hmdb51Config:
  """Reads a folder into a builder configuration, whose name follows from what is in the folder.

  The name holds a digest of the lists and of the files' names and sizes, so that records made from
  other files are never taken for these.

  Raises:
    layout.LayoutError: the folder is not in HMDB51's layout.
  """
  clips = tuple(layout.read_folder(folder))
  digest = hashlib.sha256()
  for clip in clips:
    size = clip.path.stat().st_size if clip.path else None
    digest.update(repr((clip.name, clip.action, clip.codes, size)).encode())
  return Hmdb51Config(
    name=f"{scale.name}-{digest.hexdigest()[:12]}",
    description=f"Frames of {scale.height}x{scale.width} pixels, JPEG quality {scale.jpeg_quality}",
    clips=clips,
    scale=scale,
    allow_missing=allow_missing,
    workers=workers,
  )


class Builder(tfds.core.GeneratorBasedBuilder):
  """HMDB51: 6766 clips of 51 actions, with three official splits.

  Made with a configuration from `make_config`; the folder decides the classes, so a smaller set in
  the same layout works too.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar[dict[str, str]] = {
    "1.0.0": "Frames as JPEG, each video stored once, codes of the three splits."
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Unpack hmdb51_org.rar (and the RAR of each class in it) and test_train_splits.rar into one "
    "folder, in class folders or flat."
  )
  builder_config: Hmdb51Config

  def __init__(self, *, config: Hmdb51Config, data_dir: os.PathLike | str):
    """Opens the records of a configuration, which `download_and_prepare` makes if need be.

    Args:
      config: from `make_config`.
      data_dir: the folder of all TFDS records.
    """
    with _quiet():
      super().__init__(config=config, data_dir=data_dir)

  def download_and_prepare(self, **kwargs: Any) -> None:
    """Decodes and stores everything, unless it is stored already."""
    with _quiet():
      super().download_and_prepare(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    scale = self.builder_config.scale
    actions = sorted({clip.action for clip in self.builder_config.clips})
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "name": tfds.features.Text(),
          "label": tfds.features.ClassLabel(names=actions),
          "film": tfds.features.Text(),
          "tags": {tag: tfds.features.Text() for tag in layout.TAGS},
          "split_codes": tfds.features.Tensor(shape=(layout.NUM_SPLITS,), dtype=np.int64),
          "fps": tfds.features.Scalar(dtype=np.float32),
          "num_frames": tfds.features.Scalar(dtype=np.int64),
          "video": tfds.features.Video(
            shape=(None, scale.height, scale.width, 3), encoding_format="jpeg"
          ),
        }
      ),
      supervised_keys=("video", "label"),
      homepage="https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/",
      metadata=tfds.core.MetadataDict(missing=[], broken={}),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager
    clips = self.builder_config.clips
    missing = [clip.name for clip in clips if clip.path is None]
    if missing and not self.builder_config.allow_missing:
      raise MissingVideosError(
        f"{len(missing)} of the {len(clips)} listed videos are missing: {describe(missing)}. "
        "Complete the folder, or set --config.allow_missing=True to go on without them."
      )
    self.info.metadata["missing"] = missing
    return {records.SPLIT: self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    config = self.builder_config
    there = [clip for clip in config.clips if clip.path is not None]
    broken: dict[str, str] = {}
    paths = [clip.path for clip in there if clip.path is not None]
    stored = video_files.store_videos(paths, config.scale, config.workers)
    progress = tqdm.tqdm(
      zip(there, stored, strict=True), total=len(there), unit=" videos", desc="Decoding videos"
    )
    for key, (clip, (_, video)) in enumerate(progress):
      if isinstance(video, str):
        broken[clip.name] = video
        continue
      yield (
        key,
        {
          "name": clip.name,
          "label": clip.action,
          "film": clip.film,
          "tags": clip.tags,
          "split_codes": list(clip.codes),
          "fps": video.fps,
          "num_frames": len(video.frames),
          "video": video.frames,
        },
      )
    if broken and not config.allow_missing:
      reasons = "\n  ".join(list(broken.values())[:_SHOWN])
      raise MissingVideosError(
        f"{len(broken)} of {len(there)} video files cannot be used:\n  {reasons}\nMend them, or set "
        "--config.allow_missing=True to go on without them."
      )
    self.info.metadata["broken"] = broken
