"""What the modes need of an input pipeline; `input_pipeline.py` at the project's root is one.

The modes are handed a pipeline rather than importing it, so that nothing in the package depends on a
file outside of it.
"""

from collections.abc import Generator, Iterator
from typing import Any, Protocol

import numpy as np

from hybrid_video.sampling.clip_settings import ClipSettings, EvaluationSettings
from hybrid_video.sampling.plans import Views

Batch = dict[str, np.ndarray]


class Pipeline(Protocol):
  """Stored records to batches of clips; a module with these functions."""

  def training_batches(
    self,
    records: Any,
    video_ids: np.ndarray,
    settings: ClipSettings,
    *,
    batch_size: int,
    first_step: int,
    steps: int,
    seed: int,
    offset: int = 0,
    service: str = "",
  ) -> Generator[Batch, None, None]:
    """Batches with `clips`, `labels`, `video_ids` and `mirrored` for each training step."""
    ...

  def evaluation_batches(
    self, records: Any, views: Views, settings: EvaluationSettings, *, batch_size: int
  ) -> Iterator[Batch]:
    """Batches with `clips`, `labels` and `mask`; every view once, in order."""
    ...
