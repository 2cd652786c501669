"""What features without labels are worth: a linear classifier on them, and the nearest videos.

In: features `[V, D]` of videos that a model was pretrained without the labels of. Out: the share of other videos
that a linear classifier recognizes by theirs; for each of these the nearest of the first.
"""

import warnings

import numpy as np

WORDS = "share of videos that a logistic regression on frozen features recognizes, fitted to the training list's"
_ITERATIONS = 1000


def linear(
  features: np.ndarray, labels: np.ndarray, tested: np.ndarray, tested_labels: np.ndarray
) -> float:
  """A linear probe's accuracy: logistic regression on standardized features, scikit-learn's own strength.

  Args:
    features, labels: of the training list, `[V, D]` and `[V]`.
    tested, tested_labels: of the list that is judged by.

  Returns:
    A fraction; that of the one class where the training list has no second.
  """
  # A second to import, which a run spends before its first step otherwise.
  from sklearn import exceptions, linear_model, pipeline, preprocessing

  if len(np.unique(labels)) < 2:
    return float(np.mean(tested_labels == labels[0]))
  probe = pipeline.make_pipeline(
    preprocessing.StandardScaler(), linear_model.LogisticRegression(max_iter=_ITERATIONS)
  )
  with warnings.catch_warnings():
    # As good as it is after so many steps.
    warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
    probe.fit(features, labels)
  return float(probe.score(tested, tested_labels))


def neighbours(features: np.ndarray, of: np.ndarray, count: int) -> np.ndarray:
  """For each of the features `of` `[N, D]` the rows of the `count` nearest by cosine, the nearest first."""

  def unit(x: np.ndarray) -> np.ndarray:
    x = x - features.mean(0)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

  likeness = unit(of) @ unit(features).T
  return np.argsort(-likeness, axis=1, kind="stable")[:, :count]
