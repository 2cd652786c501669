"""Whether a model is right as often as it says: expected calibration error, reliability curve.

Source of both: Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017,
sections 2 and 3: M bins of equal width, bin m holding confidences in ((m - 1) / M, m / M].
"""

import dataclasses

import numpy as np

from hybrid_video.analysis import accuracy

BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
  """Confidences in bins; bins without a video are left out.

  Attributes:
    low, high: limits of each bin, `[M]`.
    videos: in each bin, int64 `[M]`.
    confidence: mean of the bin's highest scores, `[M]`.
    accuracy: share of the bin's videos that are right, `[M]`.
    error: the expected calibration error: the mean distance of confidence and accuracy, each bin
      weighted by its videos.
  """

  low: np.ndarray
  high: np.ndarray
  videos: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray
  error: float


def reliability(scores: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
  """How well the highest scores say how often they are right.

  Args:
    scores: distributions over classes `[N, K]`.
    labels: class ids `[N]`.
    bins: of equal width between 0 and 1.
  """
  confidence = np.clip(scores.max(-1).astype(np.float64), 0, 1)
  right = accuracy.is_right(scores, labels)
  edges = np.linspace(0, 1, bins + 1)
  in_bin = np.searchsorted(edges[1:-1], confidence)
  counts = np.bincount(in_bin, minlength=bins)
  used = np.flatnonzero(counts)
  confidences = np.bincount(in_bin, confidence, minlength=bins)[used] / counts[used]
  accuracies = np.bincount(in_bin, right, minlength=bins)[used] / counts[used]
  error = float(np.sum(counts[used] * np.abs(confidences - accuracies)) / len(labels))
  return Reliability(edges[used], edges[used + 1], counts[used], confidences, accuracies, error)
