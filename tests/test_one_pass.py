"""A whole video in one pass: windows that latents read together, in evaluation and prediction alike."""

from conftest import run_training, small_demo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video import configuration, experiment, loading, predict, scoring, sharding
from hybrid_video.analysis.predictions import Predictions, PredictionsError
from hybrid_video.datasets import preparation
from hybrid_video.sampling import plans
from hybrid_video.settings import SettingError
from hybrid_video.tasks import registry
import input_pipeline


@pytest.fixture(scope="module")
def run(made_folder, finished, tmp_path_factory):
  """A run whose videos have several windows each, tested in one pass."""
  _, workdir, _ = finished
  config = small_demo(made_folder, workdir / "records")
  config.evaluate_shuffled = False
  config.evaluation.aggregation = "whole_video"
  config.evaluation.clips = 3
  # Batches that no video's windows fill.
  config.eval_batch_size = 4
  folder = tmp_path_factory.mktemp("one_pass")
  return folder, experiment.from_config(config), run_training(config, folder)


def test_an_evaluation_reads_each_video_as_a_whole(run):
  folder, chosen, outcome = run
  assert "cross attention reads the tokens of all of them together" in outcome["protocol"]
  predictions = Predictions.read(folder)
  trained = loading.load(folder)
  records = preparation.load_records(chosen, folder)
  ids = [records.names.tolist().index(name) for name in predictions.names.tolist()]
  views = plans.evaluation_views(records, np.array(ids), chosen.evaluation)
  batches = list(input_pipeline.evaluation_batches(records, views, chosen.evaluation, batch_size=4))
  clips = np.concatenate([batch["clips"] for batch in batches])[: len(views)]
  normalized = trained.preprocess.normalize(clips)
  for video in range(len(ids)):
    reading = trained.model.nothing_read(1)
    for clip in np.flatnonzero(views.rows == video):
      reading = trained.model.read(reading, normalized[clip][None])
    expected = jax.nn.softmax(trained.model.answer(reading)[0])
    np.testing.assert_allclose(predictions.scores()[video], expected, atol=1e-4)
  assert outcome["test"]["video_top1"] == pytest.approx(
    np.mean(predictions.scores().argmax(1) == predictions.labels)
  )
  # A view's answer is of those before it too, so nothing else can be made of them.
  assert list(outcome["analysis"]["by_aggregation"]) == ["whole_video"]
  with pytest.raises(PredictionsError, match="expected one of whole_video"):
    predictions.scores("mean_probabilities")


def test_a_prediction_is_the_evaluations(run, made_folder):
  folder, _, _ = run
  tested = Predictions.read(folder)
  names = tested.names.tolist()[:3]
  files = [next(made_folder.rglob(f"{name}*")) for name in names]
  predictor = predict.Predictor(loading.read(folder), batch_size=2)
  for row, prediction in enumerate(predictor.predict(files)):
    np.testing.assert_allclose(prediction.probabilities, tested.scores()[row], atol=0.03)


def test_batches_are_cut_anywhere(run):
  folder, chosen, _ = run
  saved = loading.read(folder)
  task = registry.create(chosen, len(saved.description.class_names), sharding.make_mesh())
  rng = np.random.default_rng(0)
  clips = rng.integers(0, 256, (8, 8, 24, 24, 3), np.uint8)
  begins = np.array([True, False, False, False, True, False, True, True])

  def logits(size):
    batches = [
      {
        "clips": clips[i : i + size],
        "clip_indices": np.zeros(size, np.int32),
        "begins": begins[i : i + size],
      }
      for i in range(0, 8, size)
    ]
    scorer = scoring.Scorer(task, sharding.make_mesh())
    return np.concatenate(
      [o["logits"] for o in scorer.outputs(saved.params, saved.batch_stats, batches)]
    )

  whole = logits(8)
  np.testing.assert_allclose(logits(4), whole, atol=1e-4)
  assert float(jnp.abs(whole[1] - whole[0]).max()) > 0


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"model.name": "r2plus1d_18", "model.cnn_blocks": None}, "r2plus1d_18 does not"),
    ({"model.cross_blocks": 2, "model.self_blocks": 2}, "with one cross attention block"),
    ({"evaluation.crops": 3}, "by one crop. Set it to 1"),
  ],
)
def test_what_cannot_be_read_in_one_pass_is_refused(changed, message):
  config = configuration.default_config()
  config.model.name = "hybrid"
  config.evaluation.aggregation = "whole_video"
  config.update_from_flattened_dict(changed)
  with pytest.raises(SettingError, match=message):
    experiment.from_config(config)
