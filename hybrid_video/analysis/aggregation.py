"""Scores of views to scores of videos: averaged probabilities, averaged logits, majority vote.

In: what a model says of each view. Out: a distribution over classes for each video. Training,
evaluation, prediction and later analysis all come here; NumPy is all it needs.
"""

import numpy as np

MEAN_PROBABILITIES, MEAN_LOGITS, MAJORITY_VOTE = AGGREGATIONS = (
  "mean_probabilities",
  "mean_logits",
  "majority_vote",
)
# Views are read one after the other by one model, whose last answer is of all of them.
WHOLE_VIDEO = "whole_video"
# What a video's score is, in words that follow "a video's score is".
WORDS = {
  MEAN_PROBABILITIES: "the mean of its views' softmax",
  MEAN_LOGITS: "the softmax of the mean of its views' logits",
  MAJORITY_VOTE: "the share of its views' votes, each for its most probable class; mean "
  "probabilities decide between equal ones",
  WHOLE_VIDEO: "that of one pass over its windows: cross attention reads the tokens of all of them together",
}


def video_means(of_views: np.ndarray, rows: np.ndarray, videos: int) -> np.ndarray:
  """The mean over each video's views, float32 `[V, classes]`.

  Args:
    of_views: scores of views, `[C, classes]`.
    rows: for each view, its video's row, `[C]`.
    videos: how many videos; each has a view.
  """
  means = np.zeros((videos, of_views.shape[1]), np.float32)
  np.add.at(means, rows, of_views)
  means /= np.bincount(rows, minlength=videos)[:, None]
  return means


def video_scores(
  aggregation: str,
  probabilities: np.ndarray,
  logits: np.ndarray | None,
  rows: np.ndarray,
  videos: int,
) -> np.ndarray:
  """A distribution over classes for each video, float32 `[V, classes]`.

  By majority vote, a video's score is its votes plus half a vote that is spread by the mean
  probabilities, over all of these: so the order is that of votes, equal numbers of votes are
  decided by the mean probability, and the scores of a video add up to 1. A view whose best classes
  are equal splits its vote.

  Args:
    aggregation: one of `AGGREGATIONS`, or `WHOLE_VIDEO`: then the last view's score is its video's.
    probabilities: of views, `[C, classes]`.
    logits: of views, `[C, classes]`; read by "mean_logits" alone.
    rows: for each view, its video's row, `[C]`.
    videos: how many videos; each has a view.

  Raises:
    ValueError: logits are needed and there are none.
  """
  if aggregation == MEAN_LOGITS:
    if logits is None:
      raise ValueError("mean_logits needs the views' logits.")
    means = video_means(np.asarray(logits, np.float32), rows, videos)
    powers = np.exp(means - means.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
  if aggregation == WHOLE_VIDEO:
    last = np.zeros(videos, np.int64)
    np.maximum.at(last, rows, np.arange(len(rows)))
    return np.asarray(probabilities[last], np.float32)
  means = video_means(probabilities, rows, videos)
  if aggregation == MEAN_PROBABILITIES:
    return means
  best = (probabilities == probabilities.max(-1, keepdims=True)).astype(np.float64)
  # Where nothing is a number, there is no best class: the score stays no number either.
  with np.errstate(invalid="ignore"):
    best /= best.sum(-1, keepdims=True)
  votes = np.zeros(means.shape, np.float64)
  np.add.at(votes, rows, best)
  votes += means / 2
  return (votes / (np.bincount(rows, minlength=videos)[:, None] + 0.5)).astype(np.float32)
