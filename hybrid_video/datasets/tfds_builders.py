"""Stored records by TFDS's names: `tfds.builder("hmdb51", data_dir=RECORDS_DIR)`, `tfds.load(...)`.

In: a folder of records that `builder` has written, or writes at `download_and_prepare`. Out: TFDS's
own kinds of data sets, sequential (`as_dataset`) and with random access (`as_data_source`).

A builder has the data set's name; `ucf101`, a name that TFDS has itself, is `hybrid_video_ucf101`
here. A config is a stored scale, such as `128x171-q75`. Where several lists or sets of files are
stored at one scale, it is the folder's full name, such as `128x171-q75-ab12cd34ef56`. Without a config,
it is the only one that is stored.

Its splits are `videos`, every video once, and the official lists as `split1_train`, `split1_test`,
`split1_unused`, `split2_train` and so on (and `split1_validation` where a data set has such a
list of its own), which are selections from the same records. All of them can
be sliced and added as usual: `split1_train[:10%]+split1_test`.

Importing this registers the builders and does not import TensorFlow.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
import re
from typing import Any

from etils import epath
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants
from tensorflow_datasets.core.data_sources import base as data_sources

from hybrid_video import errors
from hybrid_video.datasets import tfds_splits
from hybrid_video.decoding.storing import StoredScale

_SCALE = re.compile(
  r"(?P<height>\d+)(?:x(?P<width>\d+)(?P<stretch>stretched)?|short)-q(?P<jpeg_quality>\d+)"
)
_FOLDER = re.compile(rf"(?P<scale>{_SCALE.pattern})-[0-9a-f]{{12}}")


class ConfigError(errors.UserError):
  """A config that names nothing, or several stored sets."""


class NotStoredError(errors.UserError):
  """Records that are read and have not been stored; the message says how to store them."""


class StoredVideosBuilder(tfds.core.DatasetBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Reads one data set's records.

  Attributes:
    DATASET: the data set's name, one of `hybrid_video.datasets.READERS`.
  """

  DATASET = ""
  MANUAL_DOWNLOAD_INSTRUCTIONS = "The folder of the videos and their lists, or of their archives."

  def __init__(
    self,
    *,
    data_dir: os.PathLike | str | None = None,
    config: str | tfds.core.BuilderConfig | None = None,
    version: str | None = None,
    file_format: str | None = None,
  ):
    """Looks up what is stored.

    Args:
      data_dir: folder of all records; None is TFDS's own.
      config: a stored scale's name or the full name of a folder; None is the only one stored.
      version: of the records' layout; there is one.
      file_format: not used, `tfds.data_source` gives it. Records have random access as they are.

    Raises:
      ConfigError: there is no such config, or several stored sets would do.
    """
    from hybrid_video.datasets import builder

    root = epath.Path(data_dir or constants.DATA_DIR).expanduser()
    name = config.name if isinstance(config, tfds.core.BuilderConfig) else config
    stored = _stored_sets(root / self.DATASET, builder.VERSION)
    name, self._folder_name = _choose(name, stored, root / self.DATASET)
    super().__init__(
      data_dir=os.fspath(root),
      config=tfds.core.BuilderConfig(name, version=builder.VERSION),
      version=version,
    )
    self._original_state = {"data_dir": data_dir, "config": config, "version": version}

  # TFDS reads a config that the class does not list from its files alone, without this class.
  builder_configs = type("_AnyConfig", (dict,), {"__contains__": lambda *_: True})()

  def _create_builder_config(
    self, builder_config: tfds.core.BuilderConfig, version: str | None
  ) -> tfds.core.BuilderConfig:
    return builder_config

  def _build_data_dir(self, data_dir: str) -> tuple[str, str]:
    folder = self._folder_name or self.builder_config.name
    return data_dir, os.path.join(data_dir, self.DATASET, folder, str(self.version))

  def _info(self) -> "StoredVideosInfo":
    return StoredVideosInfo(builder=self)

  @functools.cached_property
  def records(self) -> Any:
    """The `records.Records` of the videos.

    Raises:
      NotStoredError: nothing is stored.
      RecordsError: an index is missing or damaged.
    """
    from hybrid_video.datasets import builder
    from hybrid_video.datasets import records as stored

    self._check_stored()
    pattern = f"{self.DATASET}-{builder.SPLIT}.tfrecord-?????-of-?????"
    shards = {}
    for path in sorted(map(os.fspath, self.data_path.glob(pattern))):
      index = stored.read_shard_index(path)
      if index is None:
        raise stored.RecordsError(
          f"{path}: its index is missing or damaged. {self._advice(self._scale)}"
        )
      shards[path] = index
    return stored.merge(
      shards,
      dataset=self.DATASET,
      folder=self.data_dir,
      class_names=self.info.features["label"].names,
      missing=self.info.metadata["missing"],
      unlisted=self.info.metadata["unlisted"],
      ignored=self.info.metadata.get("ignored", ()),
      jpeg_quality=self._scale.jpeg_quality,
    )

  @property
  def _scale(self) -> StoredScale:
    match = _SCALE.match(self.builder_config.name)
    assert match
    found = match.groupdict()
    # A name such as `128short-q75` has no width.
    height, width, quality = (int(found[k] or 0) for k in ("height", "width", "jpeg_quality"))
    return StoredScale(height, width, quality, stretch=found["stretch"] is not None)

  def _advice(self, scale: StoredScale) -> str:
    return (
      f"To store it: python main.py --mode=inspect --config=configs/videos.py:{self.DATASET} "
      f"--config.data_dir=FOLDER --config.records_dir={self.data_dir_root} "
      f"--config.stored.height={scale.height} --config.stored.width={scale.width} "
      f"--config.stored.jpeg_quality={scale.jpeg_quality} --workdir=RUN"
    )

  def _check_stored(self) -> None:
    if not self._folder_name:
      raise NotStoredError(
        f"{self.DATASET} is not stored at the scale {self.builder_config.name} in "
        f"{self.data_dir_root}. {self._advice(self._scale)}. Or give download_and_prepare the folder "
        "of the videos: download_config=tfds.download.DownloadConfig(manual_dir=FOLDER)."
      )

  def download_and_prepare(
    self,
    *,
    download_dir: os.PathLike | str | None = None,
    download_config: Any = None,
    file_format: Any = None,
    permissions: Any = None,
  ) -> None:
    """Stores the videos of a folder, unless they are stored.

    Args:
      download_dir: not used.
      download_config: its `manual_dir` is the folder of the videos and their lists. With
        `beam_options` or a `beam_runner`, Apache Beam stores them, see `beam_build`.
      file_format: not used, records are TFRecord files.
      permissions: not used.

    Raises:
      NotStoredError: nothing is stored and no folder is named.
      UserError: the folder cannot be used, see `hybrid_video.datasets.read` and `builder.build`.
    """
    if self._folder_name:
      return
    self._download_and_prepare(None, download_config)

  def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
    from hybrid_video import datasets
    from hybrid_video.datasets import builder

    if download_config is None or not download_config.manual_dir:
      self._check_stored()
    store_shards: builder.StoreShards = builder.store_here
    if (download_config.beam_options, download_config.beam_runner) != (None, None):
      from hybrid_video.datasets import beam_build

      store_shards = beam_build.storing(download_config.beam_options, download_config.beam_runner)
    listed = datasets.read(self.DATASET, pathlib.Path(download_config.manual_dir).absolute())
    stored = builder.build(listed, self._data_dir_root, self._scale, store_shards=store_shards)
    folder = epath.Path(stored.folder)
    self._folder_name = folder.parent.name
    self._data_dir = os.fspath(folder)
    self.info.read_from_directory(self._data_dir)

  def as_dataset(self, split: Any = None, **options: Any) -> Any:
    """A `tf.data.Dataset` of examples, see TFDS; videos in the order of storage.

    `shuffle_files` shuffles single videos. As every video is read by itself, the parts of
    `tfds.ReadConfig` that interleave files have no effect.

    Raises:
      NotStoredError: nothing is stored.
    """
    self._check_stored()
    return super().as_dataset(split, **options)

  def _as_dataset(
    self,
    split: Any,
    decoders: Any = None,
    read_config: tfds.ReadConfig | None = None,
    shuffle_files: bool = False,
  ) -> Any:
    import tensorflow as tf

    features, read_config = self.info.features, read_config or tfds.ReadConfig()
    if isinstance(decoders, tfds.decode.PartialDecoding):
      features, decoders = decoders.extract_features(features), decoders.decoders
    names = np.array(self.info.splits.example_names) if read_config.add_tfds_id else None

    def read(video_id: tf.Tensor) -> dict[str, Any]:
      example = features.deserialize_example(self.records.record(video_id), decoders=decoders)
      if names is not None:
        example["tfds_id"] = tf.gather(tf.constant(names), video_id)
      return example

    video_ids = self.info.splits.video_ids(split)
    data = tf.data.Dataset.from_tensor_slices(video_ids)
    if context := read_config.input_context:
      data = data.shard(context.num_input_pipelines, context.input_pipeline_id)
    if shuffle_files:
      again = read_config.shuffle_reshuffle_each_iteration
      data = data.shuffle(max(len(video_ids), 1), read_config.shuffle_seed, again)
    if read_config.repeat_filenames:
      data = data.repeat()
    data = data.map(read, num_parallel_calls=read_config.num_parallel_calls_for_decode)
    return data.with_options(read_config.options)

  def _should_cache_ds(self, **_: Any) -> bool:
    # TFDS would keep decoded videos in memory, by a rule for the size of the files: it is a fifteenth.
    return False

  def as_data_source(
    self,
    split: Any = None,
    *,
    decoders: Any = None,
    deserialize_method: Any = tfds.decode.DeserializeMethod.DESERIALIZE_AND_DECODE,
    file_format: Any = None,
  ) -> Any:
    """Random access to examples; see TFDS, which has it for other file formats only.

    Args:
      split: a split, or a list or dict of splits; None is a dict of all.
      decoders: as `as_dataset`.
      deserialize_method: whether to decode. `DESERIALIZE_NO_DECODE` gives a `tf.train.Example`, whose
        feature `video` has the frames as JPEG.
      file_format: not used.

    Returns:
      A sequence of examples for each split, which can be pickled.

    Raises:
      NotStoredError: nothing is stored.
    """
    self._check_stored()
    if split is None:
      split = {name: name for name in self.info.splits}

    def source(split: Any) -> VideoSource:
      source = VideoSource(self.info, split, decoders, deserialize_method)
      source.data_source = _SerializedVideos(self.records, self.info.splits.video_ids(split))
      return source

    if isinstance(split, Mapping):
      return {name: source(one) for name, one in split.items()}
    return [source(one) for one in split] if isinstance(split, list | tuple) else source(split)


def _stored_sets(folder: epath.Path, version: str) -> dict[str, str]:
  """What is stored of a data set: names of folders to the names of their scales."""
  names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
  return {
    name: match["scale"]
    for name in names
    if (match := _FOLDER.fullmatch(name))
    and (folder / name / version / constants.DATASET_INFO_FILENAME).exists()
  }


def _choose(
  config: str | None, stored: Mapping[str, str], folder: epath.Path
) -> tuple[str, str | None]:
  """The config's name and the name of its folder, None where nothing is stored at this scale."""
  if config is not None and config in stored:
    return config, config
  fitting = [name for name, scale in stored.items() if config in (None, scale)]
  scales = list(stored.values())
  choices = [scale if scales.count(scale) == 1 else name for name, scale in stored.items()]
  if len(fitting) > 1:
    what = "are stored" if config is None else f"are stored at the scale {config}"
    raise ConfigError(
      f"{folder}: several sets {what}. Name one of these configs: {', '.join(choices)}."
    )
  if fitting:
    return config or stored[fitting[0]], fitting[0]
  config = config or StoredScale().name
  if not _SCALE.fullmatch(config):
    known = f"Stored are: {', '.join(choices)}." if choices else "Nothing is stored there."
    raise ConfigError(
      f"{folder}: there is no config {config!r}.{errors.nearest(config, choices)} {known} A config is "
      "a scale, such as 128x171-q75 (height x width, JPEG quality) or 128short-q75."
    )
  return config, None


class StoredVideosInfo(tfds.core.DatasetInfo):
  """TFDS's description of a data set, with the official lists among its splits."""

  def __init__(self, builder: StoredVideosBuilder):
    """Describes what the builder reads."""
    super().__init__(builder=builder)
    self._of = builder

  def __reduce__(self) -> tuple:
    return _info_of, (self._of,)

  def initialize_from_bucket(self) -> None:
    """Does not ask TFDS's servers: they do not have these data sets."""

  @functools.cached_property
  def _lists(self) -> tfds_splits.OfficialLists:
    return tfds_splits.OfficialLists(self._of.records)

  @property
  def splits(self) -> tfds.core.SplitDict:
    """The whole set and its official lists; empty where nothing is stored."""
    return self._lists if self._of._folder_name else super().splits

  @property
  def config_name(self) -> str:
    """As the builder was asked for it."""
    return self._of.builder_config_name

  @property
  def dataset_size(self) -> Any:
    """Bytes of the record files; lists are in the same files."""
    return next((split.num_bytes for split in self.splits.values()), super().dataset_size)


def _info_of(builder: StoredVideosBuilder) -> StoredVideosInfo:
  return builder.info


class VideoSource(data_sources.BaseDataSource):
  """The decoded examples of a split, by index; one (`[i]`) or several (`__getitems__`)."""

  def _deserialize(self, record: bytes) -> Any:
    example = super()._deserialize(record)
    if isinstance(example, dict) and isinstance(example.get("video"), list):
      # Without TensorFlow, TFDS gives a list of frames.
      example["video"] = np.stack(example["video"])
    return example


@dataclasses.dataclass(frozen=True)
class _SerializedVideos:
  """The serialized examples of some videos, by index.

  Attributes:
    records: the index of the records.
    video_ids: the videos, int64 `[N]`.
  """

  records: Any
  video_ids: np.ndarray

  def __len__(self) -> int:
    return len(self.video_ids)

  def __getitem__(self, i: int) -> bytes:
    return self.records.read_record(int(self.video_ids[i]))

  def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
    return [self[i] for i in indices]


class Hmdb51(StoredVideosBuilder):
  """HMDB51 with its official lists."""

  name = DATASET = "hmdb51"


class Hmdb51Layout(StoredVideosBuilder):
  """Videos with lists in HMDB51's form."""

  name = DATASET = "hmdb51_layout"


class MadeActions(StoredVideosBuilder):
  """Made videos of actions that differ in motion alone."""

  name = DATASET = "made_actions"


class MadeEvents(StoredVideosBuilder):
  """Made videos of two events in either order."""

  name = DATASET = "made_events"


class Ucf101(StoredVideosBuilder):
  """UCF101 with its official lists; TFDS's own builder has the name ucf101."""

  name, DATASET = "hybrid_video_ucf101", "ucf101"


class Kinetics(StoredVideosBuilder):
  """Videos with lists in Kinetics' forms."""

  name = DATASET = "kinetics"


class Folder(StoredVideosBuilder):
  """Videos in a folder for each class."""

  name = DATASET = "folder"
