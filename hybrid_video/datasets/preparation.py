"""An experiment's data, ready to read: fetched, unpacked, made, decoded and stored if need be.

In: an experiment and a work directory. Out: the index of its stored videos, `Records`. Of several
processes, one for each disk does it, and the others read what it has done.
"""

import logging
import os
import pathlib

from hybrid_video import datasets, errors, hosts, paths
from hybrid_video.datasets import beam_build, builder, listing, made_actions, made_events, mirrors
from hybrid_video.datasets.records import Records
from hybrid_video.experiment import Experiment

log = logging.getLogger("hybrid_video")


class DataFolderError(errors.UserError):
  """A data folder that is not named."""


def load_records(experiment: Experiment, workdir: pathlib.Path) -> Records:
  """The stored videos of an experiment's data set, stored first if need be.

  Args:
    experiment: which data set, where, and at which size.
    workdir: what "{workdir}" stands for in the experiment's paths.

  Raises:
    UserError: the data cannot be used; the message names the file and says what to do.
  """
  if not experiment.data_dir:
    raise DataFolderError(
      "No data folder is named: set --config.data_dir to the folder of the videos and their lists, "
      "or of the official archives."
    )
  # The same path for whoever decodes, as broken videos are told by theirs.
  decoded = "videos are decoded, and archives unpacked, from local files"
  folder = paths.local(
    paths.within(experiment.data_dir, workdir), experiment.path("data_dir"), decoded
  )
  mirrors_file = paths.within(experiment.mirrors, workdir)
  more_videos = paths.within(experiment.more_videos, workdir)
  listed = hosts.in_turn(
    folder,
    lambda: _listing(experiment, folder, mirrors_file, more_videos),
    "the videos are made ready",
  )
  beam_options = experiment.beam_pipeline_options
  # "" is the builder's default.
  records_dir = paths.within(experiment.records_dir, workdir)
  if records_dir:
    records_dir = os.fspath(paths.resolve(records_dir, experiment.path("records_dir")))

  def store() -> Records:
    return builder.build(
      listed,
      records_dir,
      experiment.stored,
      allow_missing=experiment.allow_missing,
      missing_allowed=experiment.missing_allowed,
      limits=experiment.decoding,
      hash_whole_files=experiment.hash_whole_files,
      store_shards=beam_build.storing(beam_options) if beam_options else builder.store_here,
    )

  return hosts.in_turn(builder.records_root(records_dir), store, "the records are stored")


def _listing(
  experiment: Experiment, folder: pathlib.Path, mirrors_file: str, more_videos: str
) -> listing.Listing:
  """The videos of a data set, made or fetched first if need be."""
  dataset = experiment.dataset
  films, seed, look = experiment.made_films, experiment.made_seed, experiment.made_look
  if dataset == "made_actions" and made_actions.make(folder, films, seed, look=look):
    log.info("Made %d videos in %s", films * len(made_actions.ACTIONS), folder)
  if dataset == "made_events" and made_events.make(
    folder, films, experiment.made_gap_seconds, seed, look=look
  ):
    log.info("Made %d videos in %s", films * len(made_events.CLASSES), folder)
  if experiment.download:
    own = paths.resolve(mirrors_file, experiment.path("mirrors")) if mirrors_file else None
    mirrors.fetch(dataset, folder, own)
  return datasets.read_for(experiment, folder, more_videos)
