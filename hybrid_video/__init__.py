"""Video classification in JAX: R(2+1)D convolutions, Perceiver attention, and their hybrid.

The data's way: `datasets` (video files to stored records), `sampling` (which clips), `decoding`
(pixels), `tasks`, `state` and `steps` (training), `scoring` (clips to videos), `report`. Each mode is
a file: `train`, `evaluate`, `predict`, `export`, `inspection`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from hybrid_video.loading import load as load

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
  # Decoding processes import this package and need neither JAX nor a model.
  if name == "load":
    from hybrid_video.loading import load

    return load
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
