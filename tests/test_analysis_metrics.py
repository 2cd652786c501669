"""Predictions to metrics: against scikit-learn, ties, damaged and old files, names that attack."""

import json

from analysis_files import make, write
import numpy as np
import pytest
from sklearn import calibration as sklearn_calibration
from sklearn import metrics as sklearn_metrics

from hybrid_video.analysis import accuracy, aggregation, calibration, predictions, summary
from hybrid_video.analysis.predictions import Predictions, PredictionsError


def softmax(logits):
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 5, 9])
def test_accuracies_are_those_of_scikit_learn(classes):
  rng = np.random.default_rng(classes)
  scores, labels = softmax(rng.standard_normal((200, classes))), rng.integers(0, classes, 200)
  best, ids = scores.argmax(-1), np.arange(classes)
  assert accuracy.top_k(scores, labels, 1) == sklearn_metrics.accuracy_score(labels, best)
  for k in range(1, classes):
    given = scores[:, 1] if classes == 2 else scores
    expected = sklearn_metrics.top_k_accuracy_score(labels, given, k=k, labels=ids)
    assert accuracy.top_k(scores, labels, k) == expected
    assert accuracy.is_right(scores, labels, k).mean() == expected
  assert accuracy.top_k(scores, labels, classes) == 1
  mean, empty = accuracy.mean_class(scores, labels, [*map(str, ids)])
  assert mean == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, best))
  assert empty == []
  expected = sklearn_metrics.confusion_matrix(labels, best)
  np.testing.assert_array_equal(accuracy.confusion(scores, labels), expected)


def test_a_class_without_videos_is_named_and_not_averaged():
  labels = np.array([0, 0, 2, 2])
  scores = np.eye(4)[[0, 1, 2, 2]]
  mean, empty = accuracy.mean_class(scores, labels, "abcd")
  assert mean == pytest.approx((0.5 + 1) / 2)
  assert empty == ["b", "d"]
  assert [row["accuracy"] for row in accuracy.by_class(scores, labels, "abcd")] == [
    0.5,
    None,
    1.0,
    None,
  ]
  (pair,) = accuracy.confused_pairs(accuracy.confusion(scores, labels), "abcd")
  assert pair == {"true": "a", "predicted": "b", "videos": 1, "share": 0.5}


@pytest.mark.parametrize("classes", [2, 6])
def test_a_constant_output_is_never_right(classes):
  scores, labels = np.full((12, classes), 1 / classes), np.arange(12) % classes
  assert accuracy.top_k(scores, labels, 1) == 0
  assert np.trace(accuracy.confusion(scores, labels)) == 0
  assert accuracy.mean_class(scores, labels, [*map(str, range(classes))])[0] == 0


def test_aggregations_are_what_they_are_called():
  rng = np.random.default_rng(0)
  rows = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 7])
  logits = rng.standard_normal((len(rows), 5)).astype(np.float32) * 3
  shares = softmax(logits)
  scores = {
    name: aggregation.video_scores(name, shares, logits, rows, 6)
    for name in aggregation.AGGREGATIONS
  }
  for video in range(6):
    own = rows == video
    np.testing.assert_allclose(scores["mean_probabilities"][video], shares[own].mean(0), rtol=1e-5)
    np.testing.assert_allclose(
      scores["mean_logits"][video], softmax(logits[own].mean(0)), rtol=1e-5
    )
    votes = np.bincount(shares[own].argmax(-1), minlength=5)
    order = sorted(range(5), key=lambda c: (votes[c], shares[own][:, c].mean()), reverse=True)
    assert np.argsort(-scores["majority_vote"][video]).tolist() == order
  for of_videos in scores.values():
    np.testing.assert_allclose(of_videos.sum(-1), 1, rtol=1e-5)


def test_equal_votes_go_by_mean_probability_and_no_probability_beats_a_vote():
  rows = np.zeros(5, int)
  shares = np.array([[0.4, 0.3, 0.3]] * 2 + [[0.0, 1.0, 0.0]] * 2 + [[0.1, 0.2, 0.7]])
  (scores,) = aggregation.video_scores("majority_vote", shares, None, rows, 1)
  assert np.argsort(-scores).tolist() == [1, 0, 2]
  more = np.array([[0.34, 0.33, 0.33]] * 3 + [[0.0, 1.0, 0.0]] * 2)
  (scores,) = aggregation.video_scores("majority_vote", more, None, rows, 1)
  assert (
    scores.argmax() == 0
    and aggregation.video_scores("mean_probabilities", more, None, rows, 1).argmax()
  )
  # A constant model and one that is broken are never right.
  constant = aggregation.video_scores("majority_vote", np.full((5, 3), 1 / 3), None, rows, 1)
  assert not accuracy.is_right(constant, np.array([0])).any()
  broken = aggregation.video_scores("majority_vote", np.full((5, 3), np.nan), None, rows, 1)
  assert np.isnan(broken).all()


def test_calibration_is_the_published_sum_and_scikit_learns_curve():
  rng = np.random.default_rng(1)
  scores, labels = softmax(rng.standard_normal((500, 4)) * 2), rng.integers(0, 4, 500)
  found = calibration.reliability(scores, labels)
  confidence, right = scores.max(-1), scores.argmax(-1) == labels
  error = 0.0
  for m in range(1, 16):
    inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
    if inside.any():
      error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
  assert found.error == pytest.approx(error)
  true, stated = sklearn_calibration.calibration_curve(right, confidence, n_bins=15)
  np.testing.assert_allclose(found.accuracy, true)
  np.testing.assert_allclose(found.confidence, stated)
  assert found.videos.sum() == 500
  assert calibration.reliability(np.eye(3), np.arange(3)).error == 0


def test_a_file_gives_back_what_it_holds_and_every_number_its_protocol(tmp_path):
  path = write(tmp_path / "run", make(videos=40, groups=10))
  found = Predictions.read(tmp_path / "run")
  assert found.path == str(path)
  np.testing.assert_array_equal(found.scores(), found.probabilities)
  result = summary.summarize(found, resamples=200)
  assert json.loads(json.dumps(result, allow_nan=False)) == result
  assert "split 1" in result["protocol"] and "mean of its views' softmax" in result["protocol"]
  assert all(number["words"] for number in result["numbers"].values())
  top1 = result["numbers"]["video_top1"]
  assert top1["low"] <= top1["value"] <= top1["high"]
  right = (found.probabilities.argmax(-1) == found.labels).sum()
  for parts in (result["per_class"], result["by_length"], *result["by_tag"].values()):
    assert sum(part["videos"] for part in parts) == 40
    assert sum(part["right"] for part in parts) == right
  assert "majority" not in found.describe("mean_logits")
  assert "votes" in summary.summarize(found, "majority_vote", resamples=9)["protocol"]


def test_bins_of_length_hold_every_video_once():
  made = make(videos=9)
  right = np.ones(9, bool)
  seconds = np.array([1.0, 1, 2, 2, 3, 3, 4, 4, 4])
  found = Predictions(path="x", **{**made, "seconds": seconds, "protocol": {}})
  assert sum(part["videos"] for part in accuracy.by_length(found, right)) == 9
  parts = accuracy.by_length(found, right, (1, 2, 4))
  assert [part["videos"] for part in parts] == [2, 7]
  same = Predictions(path="x", **{**made, "seconds": np.full(9, 2.0), "protocol": {}})
  assert accuracy.by_length(same, right) == [
    {"from": 2.0, "to": 2.0, "videos": 9, "right": 9, "accuracy": 1.0}
  ]


def test_files_of_earlier_versions_give_what_they_can(tmp_path):
  arrays = make(videos=20)
  for name in ("view_logits", "groups", "seconds", "tags", "tag_names", "identities", "protocol"):
    del arrays[name]
  write(tmp_path, arrays)
  old = Predictions.read(tmp_path / "predictions.npz")
  result = summary.summarize(old)
  assert "low" not in result["numbers"]["video_top1"] and result["by_tag"] == {}
  assert set(result["by_aggregation"]) == {"mean_probabilities", "majority_vote"}
  with pytest.raises(PredictionsError, match=r"no view_logits, which averaged logits needs.*again"):
    old.scores("mean_logits")
  with pytest.raises(PredictionsError, match="no tags"):
    accuracy.by_tag(old, np.ones(20, bool))
  with pytest.raises(PredictionsError, match="Did you mean mean_logits"):
    old.scores("mean_logit")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"labels": None}, "found no labels"),
    ({"labels": np.full(20, 7)}, "a label is outside 0 to 3"),
    ({"names": np.array(["a"] * 20)}, "a name twice"),
    ({"names": np.array(["a"])}, "labels is"),
    ({"view_videos": np.zeros(40, int)}, "each with one or more"),
    ({"probabilities": np.full((20, 4), np.nan)}, "not finite"),
    ({"probabilities": np.full((20, 4), 0.5)}, "add up to 1"),
    ({"view_logits": np.full((40, 4), np.inf)}, "not finite"),
    ({"view_logits": np.zeros((3, 4))}, "view_logits is"),
    ({"protocol": np.array("[]")}, "its protocol is not"),
    ({"protocol": np.array("{" * 10**5)}, "its protocol is not"),
    ({"groups": np.array([{}] * 20, object)}, "cannot be read"),
  ],
)
def test_damaged_and_hostile_files_are_named(tmp_path, changes, message):
  arrays = {k: v for k, v in (make(videos=20) | changes).items() if v is not None}
  np.savez(tmp_path / "predictions.npz", **arrays)
  with pytest.raises(PredictionsError, match=message) as caught:
    Predictions.read(tmp_path)
  assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("cut", [0, 10, 500, -30])
def test_cut_files_are_named(tmp_path, cut):
  path = write(tmp_path, make(videos=20))
  path.write_bytes(path.read_bytes()[:cut])
  with pytest.raises(PredictionsError, match=r"predictions\.npz"):
    Predictions.read(path)


def test_files_that_are_none_are_named(tmp_path):
  with pytest.raises(PredictionsError, match="there is no such file"):
    Predictions.read(tmp_path)
  with (tmp_path / "predictions.npz").open("wb") as file:
    np.save(file, np.zeros(3))
  with pytest.raises(PredictionsError, match="one array"):
    Predictions.read(tmp_path)


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "<b>", "\u202e", "ナ", "\udcff"])
def test_names_come_back_and_messages_are_printable(tmp_path, name):
  arrays = make(videos=12)
  arrays["names"] = np.array([f"{name}{i}" for i in range(12)])
  arrays["class_names"] = np.array([name, "b", "c", "d"])
  write(tmp_path, arrays)
  found = Predictions.read(tmp_path)
  assert found.names[3] == f"{name}3" and found.class_names[0] == name
  assert summary.summarize(found, resamples=9)["per_class"][0]["class"] == name
  arrays["protocol"] = np.array(json.dumps({**json.loads(str(arrays["protocol"])), "views": name}))
  other = Predictions.read(write(tmp_path / "other", arrays))
  with pytest.raises(predictions.ProtocolError) as caught:
    predictions.check_same_protocol([found, other])
  assert str(caught.value).isprintable()
