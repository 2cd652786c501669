"""Record files stored by Apache Beam, on the machines of whichever runner its options name.

In: the record files that `builder.build` wants stored. Out: the same files, byte for byte, as
`builder.store_here` writes, since a worker runs the same code, a record file at a time. Here are only
the way to the workers and back, and the bar.

TFDS's own writer for Beam is not used: it orders records by a hash, cuts files by their bytes, and knows
no index. Apache Beam (the extra `beam`) is imported when there is something to store.

Workers need this package installed, and videos and records under the paths that they have here: on a
shared file system, or records on one such as gs://.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import socket
import threading
from typing import Any
import uuid

from etils import epath
import tqdm

from hybrid_video import errors, files
from hybrid_video.datasets import builder, listing, record_files
from hybrid_video.datasets import records as stored
from hybrid_video.datasets.file_identity import Content
from hybrid_video.datasets.record_files import Decoder, Result, Shard, Source
from hybrid_video.datasets.stored_before import Place
from hybrid_video.settings import SettingError

SETTING = "--config.beam_pipeline_options"
# From one look at what is stored to the next.
_LOOK_SECONDS = 5.0


class BeamError(errors.UserError):
  """A pipeline that did not end well; the message has the runner's reason."""


class UnseenVideoError(errors.UserError):
  """A worker's machine does not see a video that the machine that started the pipeline sees."""


def pipeline_options(text: str) -> Any:
  """Beam's `PipelineOptions`, written as for TFDS's own flag `--beam_pipeline_options`.

  Args:
    text: Beam's flags without their dashes, by commas: `runner=DirectRunner,direct_num_workers=2`.

  Raises:
    MissingExtraError: Beam is not installed.
    SettingError: a flag that is not written so, or a value that Beam refuses.
  """
  beam = _beam()
  parts = text.split(",")
  for part in parts:
    if not part or part != part.strip() or part.startswith("-"):
      raise SettingError(
        f"{SETTING} is {text!r}, with {part!r} between commas: expected Beam's flags without dashes "
        "and spaces, such as runner=DirectRunner,direct_num_workers=2."
      )
  flags = beam.options.pipeline_options.PipelineOptions([f"--{part}" for part in parts])
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      flags.get_all_options()
  except SystemExit as error:
    # What argparse does with a value of another type, after a page about all flags.
    reason = (said.getvalue().strip().splitlines() or ["refused"])[-1].partition("error: ")[2]
    raise SettingError(f"{SETTING} is {text!r}: {reason}. Change it.") from error
  return flags


def storing(options: Any, runner: Any = None) -> builder.StoreShards:
  """What `builder.build` takes to have record files stored by Beam.

  Each worker decodes in one process of its own unless the build asks for more: runners have their own
  settings for the number of workers.

  Args:
    options: Beam's `PipelineOptions`, None for its defaults, or a text as `pipeline_options` takes it.
    runner: Beam's runner or its name; None is the one that the options name.

  Returns:
    A `builder.StoreShards`, which raises `MissingExtraError` without Beam, `SettingError` for a text
    that cannot be read, and `BeamError` where the pipeline fails.
  """

  def store_shards(
    shards: Sequence[Shard],
    listed: listing.Listing,
    decoder: Decoder,
  ) -> Generator[Shard, None, None]:
    chosen = pipeline_options(options) if isinstance(options, str) else options or _no_options()
    # What stands in the pipeline's description has to be small.
    common = dataclasses.replace(listed, videos=(), unlisted=(), ignored=())
    decoder = dataclasses.replace(decoder, workers=decoder.workers or 1)
    store = functools.partial(_store_shard, listed=common, decoder=decoder)
    sources = builder.sources_of(shards, decoder.scale)
    with _orders(shards, sources) as orders, _progress(shards, listed):
      _run(store, orders, chosen, runner)
    for shard in shards:
      if not epath.Path(shard.path).exists():
        raise BeamError(
          f"{shard.path}: a worker has stored this file, and it is not here. Set "
          "--config.records_dir to a folder that all workers share with this machine."
        )
      yield shard

  return store_shards


def _beam() -> Any:
  return errors.require("apache_beam", "beam", f"Storing records by {SETTING}")


def _no_options() -> Any:
  # Without arguments Beam takes this process's command line for its own.
  return _beam().options.pipeline_options.PipelineOptions([])


# The way to the workers.


@contextlib.contextmanager
def _orders(shards: Sequence[Shard], sources: Mapping[str, Sequence[Source]]) -> Iterator[str]:
  """A file that lists record files and their videos, a JSON object a line; it goes at the end.

  A pipeline holds its elements in its description, and runners limit that: Dataflow to 10 MB, where a
  list of Kinetics' size takes 50.
  """
  folder = epath.Path(shards[0].path).parent
  # Under a name that a later build clears away if this process is killed.
  path = folder / f"beam-{uuid.uuid4().hex}{files.PART}"
  try:
    path.write_bytes(b"".join(_line(shard, sources[shard.path]) for shard in shards))
    yield _from_anywhere(os.fspath(path))
  finally:
    with contextlib.suppress(*builder.FILE_ERRORS):
      path.unlink(missing_ok=True)


def _from_anywhere(path: str) -> str:
  # A worker has another working directory.
  return os.fspath(pathlib.Path(path).absolute()) if stored.is_local(path) else path


def _line(shard: Shard, sources: Sequence[Source]) -> bytes:
  videos = [
    {**vars(video), "path": os.fspath(video.path.absolute()), "tags": dict(video.tags)}
    for video in shard.videos
    if video.path
  ]
  contents = [vars(content) for content in shard.contents]
  # Where frames are stored already: a record file and the row in its index.
  places = [place and [_from_anywhere(place.path), place.row] for _, place in sources]
  order = {
    **vars(shard),
    "path": _from_anywhere(shard.path),
    "videos": videos,
    "contents": contents,
    "places": places,
  }
  # As ASCII, with file names that are not UTF-8 as lone surrogates.
  return json.dumps(order).encode() + b"\n"


def _read_lines(path: str) -> list[bytes]:
  return epath.Path(path).read_bytes().splitlines()


def _shard_of(line: bytes) -> tuple[Shard, list[Place | None]]:
  order = json.loads(line)
  stored_at = order.pop("places")
  indices = {path: stored.read_shard_index(path) for path, _ in filter(None, stored_at)}
  places = [
    Place(place[0], index, place[1]) if place and (index := indices[place[0]]) is not None else None
    for place in stored_at
  ]
  videos = []
  for known in order["videos"]:
    path, codes = pathlib.Path(known["path"]), tuple(known["codes"])
    videos.append(listing.Video(**{**known, "path": path, "codes": codes}))
  contents = [Content(**known) for known in order["contents"]]
  return Shard(**{**order, "videos": videos, "contents": contents}), places


def _run(store: functools.partial, orders: str, options: Any, runner: Any) -> None:
  """Runs the pipeline to its end.

  Raises:
    BeamError: the runner refuses it, a worker fails, or it is stopped elsewhere.
  """
  beam = _beam()
  try:
    pipeline = beam.Pipeline(runner=runner, options=options)
    lines = pipeline | beam.Create([orders]) | "Read" >> beam.FlatMap(_read_lines)
    # Without it, the one worker that has read the lines would store them all.
    _ = lines | "Spread" >> beam.Reshuffle() | "Store" >> beam.Map(store)
    state = _ended(pipeline.run())
  except Exception as error:
    raise BeamError(_failed(_reason(error))) from error
  if state != beam.runners.runner.PipelineState.DONE:
    raise BeamError(_failed(f"it ended as {state}"))


def _ended(result: Any) -> str:
  """The state in which a running pipeline ends; after Ctrl-C, it is not left running elsewhere."""
  try:
    return result.wait_until_finish()
  except BaseException:
    with contextlib.suppress(Exception):
      result.cancel()
    raise


def _failed(reason: str) -> str:
  return (
    f"Apache Beam's pipeline failed: {reason}. What is whole stays; the same command continues from "
    "there."
  )


def _reason(error: Exception) -> str:
  """The line that says why; a worker's exception may come as the text of its traceback."""
  line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
  return re.sub(r" \[while running '[^']*'\]$", "", line).rstrip(".")


@contextlib.contextmanager
def _progress(shards: Sequence[Shard], listed: listing.Listing) -> Iterator[None]:
  """A bar that counts the videos of record files that are there, whoever writes them."""
  folder = epath.Path(shards[0].path).parent
  total = sum(video.path is not None for video in listed.videos)
  todo = sum(len(shard.videos) for shard in shards)
  before = _names_in(folder)
  waiting = {os.path.basename(shard.path): len(shard.videos) for shard in shards}
  waiting = {name: videos for name, videos in waiting.items() if name not in before}
  ended = threading.Event()

  def look(progress: tqdm.tqdm) -> None:
    while not ended.wait(_LOOK_SECONDS):
      with contextlib.suppress(*builder.FILE_ERRORS):
        for name in waiting.keys() & _names_in(folder):
          progress.update(waiting.pop(name))

  with tqdm.tqdm(
    total=total, initial=total - todo, unit=" videos", desc="Decoding videos", dynamic_ncols=True
  ) as progress:
    thread = threading.Thread(target=look, args=(progress,), daemon=True)
    thread.start()
    try:
      yield
    finally:
      ended.set()
      thread.join()
    progress.update(total - progress.n)


def _names_in(folder: epath.Path) -> set[str]:
  return {path.name for path in folder.iterdir()}


# On a worker.


def _store_shard(line: bytes, *, listed: listing.Listing, decoder: Decoder) -> None:
  """Decodes the videos of one record file and writes it; a second trial writes it again.

  Raises:
    UnseenVideoError: a video's file is not there.
  """
  shard, places = _shard_of(line)
  paths = [video.path for video in shard.videos if video.path]
  for path in paths:
    if not path.exists():
      # It would count as broken, and with it all others that this machine does not see.
      raise UnseenVideoError(
        f"{errors.printable(path)}: the worker on {socket.gethostname()} does not see this video. "
        "All workers need the videos under the same path; if it was removed, start again"
      )
  part = dataclasses.replace(listed, videos=tuple(shard.videos))
  sources = list(zip(paths, places, strict=True))
  with contextlib.closing(record_files.results(sources, decoder)) as results:
    record_files.write_shard(shard, _counted(results), part)


def _counted(results: Iterable[Result]) -> Iterator[Result]:
  """Counts videos where the runner shows its metrics."""
  counter = _beam().metrics.Metrics.counter
  for result in results:
    counter("hybrid_video", "broken" if isinstance(result, str) else "stored").inc()
    yield result
