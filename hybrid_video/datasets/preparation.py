"""An experiment's data, ready to read: fetched, unpacked, made, decoded and stored if need be.

In: an experiment and a work directory. Out: the index of its stored videos, `Records`.
"""

import logging
import pathlib

from hybrid_video import datasets, errors
from hybrid_video.datasets import beam_build, builder, made_actions, mirrors
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

  def within(path: str) -> str:
    return path.replace("{workdir}", str(workdir))

  if not experiment.data_dir:
    raise DataFolderError(
      "No data folder is named: set --config.data_dir to the folder of the videos and their lists, "
      "or of the official archives."
    )
  # The same path for whoever decodes, as broken videos are told by theirs.
  folder = pathlib.Path(within(experiment.data_dir)).expanduser().absolute()
  dataset = experiment.dataset
  if dataset == "made_actions" and made_actions.make(
    folder, experiment.made_films, experiment.seed
  ):
    videos = experiment.made_films * len(made_actions.ACTIONS)
    log.info("Made %d videos in %s", videos, folder)
  if experiment.download:
    mirrors_file = within(experiment.mirrors)
    mirrors.fetch(dataset, folder, pathlib.Path(mirrors_file) if mirrors_file else None)
  listing = datasets.read(
    dataset, folder, test_share=experiment.test_share, replace_prefix=experiment.replace_prefix
  )
  beam_options = experiment.beam_pipeline_options
  return builder.build(
    listing,
    within(experiment.records_dir),
    experiment.stored,
    allow_missing=experiment.allow_missing,
    missing_allowed=experiment.missing_allowed,
    limits=experiment.decoding,
    hash_whole_files=experiment.hash_whole_files,
    store_shards=beam_build.storing(beam_options) if beam_options else builder.store_here,
  )
