"""What a run started from: its model for a config, its classes for the report, and the record of both."""

from conftest import made_experiment
import pytest
from test_class_identity import description, started, trained_model

from configs import transfer
from hybrid_video import experiment, export, origins, weights
from hybrid_video.optimizers import OptimizerSettings
from hybrid_video.settings import SettingError


def chosen(source, options="made_actions", **model):
  config = transfer.get_config(options)
  config.init_from = str(source)
  config.model.update(model)
  return experiment.from_config(config, origins.model_of)


def test_the_model_is_that_of_the_run_and_its_options_too(finished, tmp_path):
  config, workdir, _ = finished
  ours = chosen(workdir)
  assert ours.model == experiment.from_config(config).model
  # Pixels are normalized as that model's are; an option of one's own comes first.
  assert ours.mean == experiment.from_config(config).mean
  assert chosen(workdir, dropout=0.3).model.options["dropout"] == 0.3
  # An exported file says it too.
  export.run(workdir)
  assert chosen(workdir / "model.safetensors").model == ours.model


def test_a_run_that_goes_on_has_its_model_though_its_start_is_gone(finished, tmp_path):
  _, workdir, _ = finished
  with pytest.raises(ValueError, match="gone"):
    origins.model_of(str(tmp_path / "gone"), tmp_path)
  assert origins.model_of(str(tmp_path / "gone"), workdir) == origins.model_of(str(workdir))


def test_the_model_is_that_of_published_weights_and_the_classifier_of_a_pretraining_run():
  assert chosen("videomae_base/kinetics400").model.name == "videomae_base"
  assert chosen("videomae_base/pretraining").model.name == "videomae_base"


def test_a_config_without_a_start_and_weights_without_a_name_say_what_to_do(tmp_path):
  with pytest.raises(SettingError, match=r"model\.name is not set: .* --config\.init_from"):
    experiment.from_config(transfer.get_config(), origins.model_of)
  path = weights.save(trained_model(), tmp_path / "plain.safetensors")
  with pytest.raises(SettingError, match="model=NAME"):
    chosen(path)
  assert chosen(path, "folder,model=r2plus1d_18").model.name == "r2plus1d_18"


@pytest.mark.parametrize("dataset", transfer.DATASETS)
def test_every_data_set_has_a_config_with_the_head_first_and_a_smaller_rate_for_the_rest(dataset):
  of = chosen("r2plus1d_18/kinetics400", dataset)
  assert of.dataset == dataset
  assert 0 < of.optimizer.head_first_epochs < of.epochs
  assert of.optimizer.part_rates.cnn < of.optimizer.part_rates.head
  assert (of.made_look == "textured") == (dataset == "made_actions")
  with pytest.raises(SettingError, match="Did you mean hmdb51"):
    transfer.get_config("hmdb15")


def test_another_model_than_the_runs_is_refused_with_the_flags_of_the_runs(finished):
  _, workdir, _ = finished
  described = description(
    model="hybrid", init_from=str(workdir), replace_head=False, dataset="hmdb51"
  )
  with pytest.raises(weights.PortingError) as error:
    started(described)
  for words in ("--config.model.cnn_blocks=2", "--config.model.self_heads=", "model=NAME"):
    assert words in str(error.value)


def test_no_head_is_trained_alone_on_what_the_weights_have_nothing_for(tmp_path):
  path = weights.save(trained_model(), tmp_path / "cnn.safetensors")
  values = {"init_from": str(path), "epochs": 4.0, "init_classes": ""}
  of_head = OptimizerSettings(head_first_epochs=2.0)
  with pytest.raises(weights.PortingError, match=r"nothing for attention of hybrid.*random values"):
    started(description(model="hybrid", **values, optimizer=of_head))
  started(description(model="hybrid", **values))
  started(description(**values, optimizer=of_head))


def test_what_a_run_started_from_is_known_from_its_folder_alone(finished, tmp_path):
  _, source, _ = finished
  names = origins.description_of(str(source)).class_names
  textured = made_experiment(init_from=str(source), made_look="textured")
  origin = origins.of(textured)
  assert origin == origins.Origin(str(source), "made_actions (plain, seed 0)", names)
  origins.record(tmp_path, origin)
  (tmp_path / "checkpoints").mkdir()
  for place in (tmp_path, tmp_path / "checkpoints" / "3"):
    assert origins.recorded(place) == origin
  described = origin.described(textured, names)
  assert described["shared"] == {name: [name] for name in names} and not described["same_data"]
  assert "8 of 8 classes are also among its 8, which blurs" in origins.in_words(described, 8)
  # The same data again is no transfer, and other classes are none of its.
  same = origin.described(made_experiment(), names)
  assert same["same_data"] and same["shared"] == {}
  assert origins.in_words(same, 8).endswith("the same data set.")
  other = origin.described(textured, ("kick", "wave"))
  assert "none of the 2 classes is among its 8" in origins.in_words(other, 2)
  # A run from random values takes an earlier one's note away.
  origins.record(tmp_path, origins.of(made_experiment()))
  assert origins.recorded(tmp_path) is None and list(tmp_path.iterdir()) == [
    tmp_path / "checkpoints"
  ]


def test_published_weights_bring_their_classes_and_nameless_ones_none(tmp_path):
  origin = origins.of(made_experiment(init_from="r2plus1d_18/kinetics400"))
  assert (origin.data, len(origin.class_names)) == ("kinetics400", 400)
  assert origin.described(made_experiment(), ("pushup", "kick"))["shared"] == {
    "pushup": ["push up"]
  }
  path = weights.save(trained_model(), tmp_path / "plain.safetensors")
  nameless = origins.of(made_experiment(init_from=str(path)))
  assert nameless.class_names == ()
  assert "without class names" in origins.in_words(nameless.described(made_experiment(), ("a",)), 1)


def test_a_record_that_cannot_be_read_costs_a_line_alone(tmp_path, logged):
  for text in ("{", "[]", '{"source": "a"}'):
    (tmp_path / origins.FILE).write_text(text)
    assert origins.recorded(tmp_path) is None
  assert logged.text.count("will not say what the run started from") == 3
