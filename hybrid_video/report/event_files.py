"""TensorBoard's event files, brought back to a step: what a resumed run writes again is taken out.

In: a folder of event files and the step that a run goes on from. Out: the same files without the
scalars of later steps; everything else in them stays as it is, byte for byte.
"""

import os

from etils import epath
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.compat.proto import event_pb2

from hybrid_video import files

_NAME = ".tfevents."
# Beside its data, a record has its length and two checksums.
_FRAME_BYTES = 8 + 4 + 4


def drop_scalars_after(folder: os.PathLike | str, step: int) -> None:
  """Takes the scalars of later steps out of all event files of a folder.

  A last record that is half written goes too. A file is replaced whole or not at all, and only if
  there is something to take out.

  Args:
    folder: need not exist.
    step: the last one that stays.

  Raises:
    OSError: a file cannot be read or written.
  """
  place = epath.Path(folder)
  for path in sorted(place.iterdir()) if place.exists() else ():
    if _NAME not in path.name:
      continue
    if path.name.endswith(files.PART):
      # Left by a process that was killed here; TensorBoard would read it.
      path.unlink(missing_ok=True)
    else:
      _drop(path, step)


def _drop(path: epath.Path, step: int) -> None:
  data = path.read_bytes()
  kept, offset = [], 0
  for record in event_file_loader.RawEventFileLoader(os.fspath(path)).Load():
    end = offset + len(record) + _FRAME_BYTES
    event = event_pb2.Event.FromString(record)
    if event.step <= step or not _has_scalars_alone(event):
      kept.append(data[offset:end])
    offset = end
  left = b"".join(kept)
  if left != data:
    with files.whole_file(path) as part:
      part.write_bytes(left)


def _has_scalars_alone(event: event_pb2.Event) -> bool:
  plugins = {value.metadata.plugin_data.plugin_name for value in event.summary.value}
  return plugins == {"scalars"}
