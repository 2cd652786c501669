"""A linear probe and nearest neighbours: against scikit-learn's own, and on features that tell classes apart."""

import types

import numpy as np
import pytest
from sklearn import linear_model, neighbors, preprocessing

from hybrid_video import probing
from hybrid_video.analysis import probe
from hybrid_video.datasets.folder import UNLABELLED


def _features(rng, labels, apart):
  return apart * np.eye(8)[labels] + rng.normal(size=(len(labels), 8)) + 5


def test_a_probe_is_a_logistic_regression_on_standardized_features():
  rng = np.random.default_rng(0)
  labels, tested = rng.integers(0, 4, 120), rng.integers(0, 4, 80)
  x, y = _features(rng, labels, 2.0), _features(rng, tested, 2.0)
  scaler = preprocessing.StandardScaler().fit(x)
  reference = linear_model.LogisticRegression(max_iter=1000).fit(scaler.transform(x), labels)
  expected = reference.score(scaler.transform(y), tested)
  assert probe.linear(x, labels, y, tested) == pytest.approx(expected)
  assert 0.5 < expected < 1
  # Features without classes are worth chance, far apart ones everything.
  noise = probe.linear(_features(rng, labels, 0.0), labels, _features(rng, tested, 0.0), tested)
  assert noise < 0.5
  assert (
    probe.linear(_features(rng, labels, 20.0), labels, _features(rng, tested, 20.0), tested) == 1
  )


def test_one_class_needs_no_classifier():
  x = np.zeros((3, 2))
  assert probe.linear(x, np.array([1, 1, 1]), x, np.array([1, 0, 1])) == pytest.approx(2 / 3)


def test_neighbours_are_the_nearest_by_cosine():
  rng = np.random.default_rng(1)
  features, of = rng.normal(size=(50, 6)) + 3, rng.normal(size=(7, 6)) + 3
  centre = features.mean(0)
  search = neighbors.NearestNeighbors(n_neighbors=4, metric="cosine").fit(features - centre)
  expected = search.kneighbors(of - centre, return_distance=False)
  np.testing.assert_array_equal(probe.neighbours(features, of, 4), expected)


def _by_label(variables, videos, check=None):
  """Features that tell which videos were asked for."""
  return np.stack([videos, videos % 2], axis=1).astype(np.float32)


def test_videos_without_a_class_are_left_out_of_the_probe():
  records = types.SimpleNamespace(
    labels=np.array([0, 1, 0, 1, 2, 2]), class_names=("a", "b", UNLABELLED)
  )
  experiment = types.SimpleNamespace(task="pretraining", seed=0)
  made = probing.Probe.of(_by_label, records, experiment, np.arange(6))
  assert sorted(made.trained) == [0, 1, 2, 3]
  assert made.accuracy({}, np.array([0, 3, 5])) == 1.0
  # Without two classes there is nothing to tell apart.
  assert probing.Probe.of(_by_label, records, experiment, np.array([0, 4, 5])) is None
