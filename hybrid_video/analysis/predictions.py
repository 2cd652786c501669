"""`predictions.npz` of a run, read and checked.

In: the file that an evaluation leaves. Out: `Predictions`, from which every metric is computed. Files of
earlier versions, which lack some arrays, are read too; what needs these arrays says so.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import io
import json
import os
from typing import Any
import zipfile
import zlib

from etils import epath
import numpy as np

from hybrid_video import errors
from hybrid_video.analysis import aggregation as aggregations

# What has to be the same in runs that stand in one table; `split` may differ between runs of one row.
COMPARED = ("dataset", "split", "list", "views", "aggregation", "selection")
_AGAIN = "Write the file again with --mode=evaluate."
_NEEDED = (
  "names", "class_names", "labels", "probabilities", "view_probabilities", "view_videos",
)  # fmt: skip
_OPTIONAL = ("view_logits", "groups", "seconds", "tags", "tag_names", "identities", "protocol")
# Sums of float32 probabilities over some hundred classes.
_SUM_TOLERANCE = 1e-3


class PredictionsError(errors.UserError):
  """Predictions that cannot be used for what is asked; the message names the file."""


class ProtocolError(PredictionsError):
  """Runs that cannot stand in one table; the message names them and how they differ."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """What a model said of the videos of one list, with what is known of them.

  V videos, C views, K classes.

  Attributes:
    path: of the file, for messages.
    names: of the videos, text `[V]`.
    class_names: by class id.
    labels: class ids, int64 `[V]`.
    probabilities: the videos' scores as the run itself aggregated them, float `[V, K]`.
    view_probabilities: float `[C, K]`.
    view_videos: each view's row among the videos, int64 `[C]`.
    view_logits: float32 `[C, K]`, or None.
    groups: videos of one group are not independent of each other, text `[V]`, or None.
    seconds: lengths of the videos, float64 `[V]`, or None.
    tag_names: such as "camera", empty where the data set has none.
    tags: text `[V, T]`, "" where a video has none; or None.
    identities: digests of name, class and file of each video, text `[V]`, or None.
    protocol: what `report.results.write_predictions` says of the run: dataset, split, list, views,
      aggregation, selection, seed, words; empty for files of earlier versions.
  """

  path: str
  names: np.ndarray
  class_names: tuple[str, ...]
  labels: np.ndarray
  probabilities: np.ndarray
  view_probabilities: np.ndarray
  view_videos: np.ndarray
  view_logits: np.ndarray | None = None
  groups: np.ndarray | None = None
  seconds: np.ndarray | None = None
  tag_names: tuple[str, ...] = ()
  tags: np.ndarray | None = None
  identities: np.ndarray | None = None
  protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.names)

  @classmethod
  def read(cls, path: os.PathLike | str) -> "Predictions":
    """Reads a file, or the `predictions.npz` of a work directory.

    Raises:
      PredictionsError: there is no such file, it is damaged, has no classes (of pretraining), or
        its arrays do not fit together or are not finite.
    """
    place = epath.Path(path)
    if not os.fspath(path).endswith(".npz"):
      place = place / "predictions.npz"
    shown = errors.printable(place)
    arrays = _load(place, shown)
    missing = [name for name in _NEEDED if name not in arrays]
    if missing:
      raise PredictionsError(
        f"{shown}: found no {', '.join(missing)}, expected the predictions of a classifier. {_AGAIN}"
      )
    protocol = _protocol(arrays.pop("protocol", None), shown)
    chosen: dict[str, Any] = {
      name: arrays[name] for name in (*_NEEDED, *_OPTIONAL) if name in arrays
    }
    for name in ("class_names", "tag_names"):
      if name in chosen:
        chosen[name] = tuple(map(str, chosen[name].tolist()))
    made = cls(path=os.fspath(place), protocol=protocol, **chosen)
    if problem := _problem(made):
      raise PredictionsError(f"{shown}: {problem}. The file is damaged or was changed. {_AGAIN}")
    return made

  @property
  def aggregation(self) -> str:
    """How the run itself made videos' scores of views' scores."""
    return self.protocol.get("aggregation", aggregations.MEAN_PROBABILITIES)

  def scores(self, aggregation: str | None = None) -> np.ndarray:
    """A distribution over classes for each video, float32 `[V, K]`, see `aggregation.video_scores`.

    Args:
      aggregation: "mean_probabilities", "mean_logits" or "majority_vote"; None is the run's own.

    Raises:
      PredictionsError: there is no such aggregation, or the file lacks what it needs.
    """
    chosen = self.aggregation if aggregation is None else aggregation
    # What each view said of those before it too is no answer of its own.
    own = self.aggregation == aggregations.WHOLE_VIDEO
    known = (aggregations.WHOLE_VIDEO,) if own else aggregations.AGGREGATIONS
    if chosen not in known:
      raise PredictionsError(
        f"There is no aggregation {chosen!r}: expected one of {', '.join(known)}."
        f"{errors.nearest(chosen, known)}"
      )
    if chosen == aggregations.MEAN_LOGITS:
      self.need("view_logits", "averaged logits")
    return aggregations.video_scores(
      chosen, self.view_probabilities, self.view_logits, self.view_videos, len(self)
    )

  def need(self, name: str, purpose: str) -> np.ndarray:
    """An array that files of earlier versions lack.

    Raises:
      PredictionsError: it is not there.
    """
    value = getattr(self, name)
    if value is None:
      raise PredictionsError(
        f"{errors.printable(self.path)}: found no {name}, which {purpose} needs; an earlier version "
        f"wrote this file. {_AGAIN}"
      )
    return value

  def describe(self, aggregation: str | None = None) -> str:
    """In words, what was evaluated and how: the protocol that belongs to every number."""
    chosen = self.aggregation if aggregation is None else aggregation
    score = f"a video's score is {aggregations.WORDS[chosen]}"
    if not self.protocol:
      return f"{len(self)} videos; {score}; an earlier version's file, which says nothing else"
    of = self.protocol
    return (
      f"the {of['list']} list of {of['dataset']}, split {of['split']}, {len(self)} videos; "
      f"{of['views']}; {score}; {of['selection']}"
    )


def check_same_protocol(
  runs: Sequence[Predictions], may_differ: Collection[str] = (), purpose: str = "one table"
) -> None:
  """Checks that runs differ in nothing but what they are compared for.

  Args:
    runs: one or more.
    may_differ: of `COMPARED`, what a comparison is about.
    purpose: what they are wanted for.

  Raises:
    ProtocolError: protocols, splits, data sets or classes differ; names the files and both values.
  """
  for other in runs[1:]:
    first, second = errors.printable(runs[0].path), errors.printable(other.path)
    both = f"{first} and {second} cannot stand in {purpose}"
    if runs[0].class_names != other.class_names:
      raise ProtocolError(f"{both}: they have other classes. Compare runs of one data set.")
    for name in COMPARED:
      if name in may_differ:
        continue
      one, two = (run.protocol.get(name, "unknown") for run in (runs[0], other))
      if one != two:
        raise ProtocolError(
          f"{both}: {name} is {_quoted(one)} there and {_quoted(two)} here. Evaluate both in the "
          "same way with --mode=evaluate."
        )


def _quoted(value: Any) -> str:
  return f"'{errors.printable(str(value))}'"


def _load(place: epath.Path, shown: str) -> dict[str, np.ndarray]:
  try:
    archive = np.load(io.BytesIO(place.read_bytes()), allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
      raise ValueError("one array, and no archive of several")
    with archive:
      wanted = [name for name in archive.files if name in (*_NEEDED, *_OPTIONAL)]
      return {name: archive[name] for name in wanted}
  except FileNotFoundError as error:
    raise PredictionsError(
      f"{shown}: there is no such file. An evaluated run has one; name its work directory."
    ) from error
  except (OSError, ValueError, EOFError, KeyError, OverflowError, MemoryError) as error:
    raise PredictionsError(f"{shown}: cannot be read ({_reason(error)}). {_AGAIN}") from error
  except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, SyntaxError) as error:
    raise PredictionsError(f"{shown}: is damaged ({_reason(error)}). {_AGAIN}") from error


def _reason(error: Exception) -> str:
  return errors.printable(str(error).partition("\n")[0]) or type(error).__name__


def _protocol(array: np.ndarray | None, shown: str) -> Mapping[str, Any]:
  if array is None:
    return {}
  try:
    value = json.loads(str(array[()]))
  except (ValueError, RecursionError):
    value = None
  texts = ("dataset", "list", "views", "selection", "aggregation")
  if (
    not isinstance(value, dict)
    or not all(isinstance(value.get(name), str) for name in texts)
    or not isinstance(value.get("split"), int)
    or value["aggregation"] not in (*aggregations.AGGREGATIONS, aggregations.WHOLE_VIDEO)
  ):
    raise PredictionsError(
      f"{shown}: its protocol is not one that this version wrote: expected JSON with "
      f"{', '.join(texts)} and split. {_AGAIN}"
    )
  return value


def _problem(found: Predictions) -> str:
  """What does not fit together, "" where all does."""
  videos, views, classes = len(found.names), len(found.view_videos), len(found.class_names)
  expected: dict[str, tuple[str, tuple[int, ...]]] = {
    "names": ("U", (videos,)),
    "labels": ("iu", (videos,)),
    "view_videos": ("iu", (views,)),
    "probabilities": ("f", (videos, classes)),
    "view_probabilities": ("f", (views, classes)),
    "view_logits": ("f", (views, classes)),
    "groups": ("U", (videos,)),
    "seconds": ("f", (videos,)),
    "tags": ("U", (videos, len(found.tag_names))),
    "identities": ("U", (videos,)),
  }
  for name, (kind, shape) in expected.items():
    array = getattr(found, name)
    if array is None:
      continue
    if array.shape != shape or array.dtype.kind not in kind:
      return f"{name} is {array.dtype} {array.shape}, expected {shape}"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
      return f"{name} has numbers that are not finite"
  if not videos or not classes:
    return "there is no video or no class"
  for name, texts in (("names", found.names.tolist()), ("class_names", found.class_names)):
    if len({*texts}) < len(texts):
      return f"{name} has a name twice"
  if not np.isin(found.labels, np.arange(classes)).all():
    return f"a label is outside 0 to {classes - 1}"
  if not np.array_equal(np.unique(found.view_videos), np.arange(videos)):
    return "the views are not those of the videos, each with one or more"
  for name in ("probabilities", "view_probabilities"):
    array = getattr(found, name)
    if array.min() < 0 or np.abs(array.sum(-1, dtype=np.float64) - 1).max() > _SUM_TOLERANCE:
      return f"{name} are no probabilities that add up to 1"
  return ""
