"""Class identity: ids and names travel together, from a file's head to a model's, whatever the order."""

import dataclasses
import hashlib
import json

from conftest import made_experiment, run_training
import numpy as np
import pytest
import safetensors.numpy

from hybrid_video import (
  checkpoint_description,
  checkpoints,
  class_identity,
  evaluate,
  experiment,
  initialization,
  loading,
  models,
  weights,
)
from hybrid_video.datasets import preparation
from hybrid_video.experiment import ModelSettings
from hybrid_video.settings import SettingError
from hybrid_video.tasks import registry
from hybrid_video.weights import PortingError, sources

# Not in alphabetical order, as a numbered list may have them.
THEIRS = ("wave", "shoot_bow", "golf", "hurling (sport)", "brush hair")
OURS = ("brush_hair", "golf", "Hurling sport", "shoot bow", "wave")
IN_OURS = (4, 2, 3, 1, 0)


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ("shoot_bow", "Shoot bow"),
    ("passing American football (in game)", "passing_american_football_in_game"),
    ("massaging person's head", "massaging person’s head"),
    ("cafe\u0301", "café"),
    ("  re-\ttry ", "re try"),
  ],
)
def test_one_class_may_be_written_in_several_ways(one, other):
  assert class_identity.normalized(one) == class_identity.normalized(other)


def test_classes_are_matched_one_to_one_and_case_counts_where_it_must():
  assert class_identity.ids_in(THEIRS, OURS) == IN_OURS
  assert class_identity.ids_in(("a", "b"), ("b", "c", "a")) == (1, None, 0)
  # Written the same comes first; what is left has to be the only one of its form on either side.
  assert class_identity.ids_in(("Wave", "wave"), ("wave", "Wave")) == (1, 0)
  assert class_identity.ids_in(("Wave", "wave"), ("WAVE", "golf")) == (None, None)
  assert class_identity.ids_in(("wave", "golf"), ("WAVE", "Wave")) == (None, None)
  assert class_identity.ids_in(("Wave", "golf"), ("WAVE", "golf")) == (0, 1)


def test_differences_are_said_in_a_few_words():
  assert class_identity.differences(THEIRS, THEIRS) == ""
  assert class_identity.differences(("shoot_bow",), ("Shoot bow",)) == ""
  moved = class_identity.differences(("a", "b", "c"), ("c", "a", "b"))
  assert moved.startswith("the same 3 classes in another order: c has id 2 there and 0 here")
  names = tuple(f"class {i}" for i in range(51))
  other = class_identity.differences(names, (*names[:49], "new\n"))
  assert other == (
    "51 classes there and 50 here: 49 in common, 2 there alone (class 49, class 50), 1 here alone "
    "(new\\n)"
  )


@pytest.mark.parametrize(("name", "count"), [("kinetics400", 400), ("ssv2", 174)])
def test_published_lists_come_with_the_package_in_the_order_of_their_ids(name, count):
  names = sources.class_names(name)
  assert len(names) == len({class_identity.normalized(name) for name in names}) == count
  assert list(names) == sorted(names)
  assert set(sources.CLASS_LISTS) == {"kinetics400", "ssv2"}


def test_published_weights_have_as_many_classes_as_their_list():
  for source in sources.SOURCES.values():
    if source.classes:
      assert len(sources.class_names(source.classes)) == source.num_classes
  without = {name for name, source in sources.SOURCES.items() if not source.classes}
  assert without == {
    "r2plus1d_34/ig65m_clip8",
    "r2plus1d_34/ig65m_clip32",
    "videomae_base/pretraining",
    "videomae_large/pretraining",
  }
  # Ids that torchvision's, VideoMAE's and VMZ's users know.
  kinetics, ssv2 = sources.class_names("kinetics400"), sources.class_names("ssv2")
  assert [kinetics[i] for i in (0, 5, 36, 161, 399)] == [
    "abseiling",
    "archery",
    "brushing hair",
    "hurling (sport)",
    "zumba",
  ]
  assert [ssv2[i] for i in (0, 103, 173)] == [
    "Approaching something with your camera",
    "Putting something and something on the table",
    "Wiping something off of something",
  ]


def description(classes=OURS, model="r2plus1d_18", **chosen):
  """A narrow model of some classes, as a run describes it."""
  options = {"r2plus1d_18": {"width": 4}}.get(model) or {"cnn_width": 4, "latents": 4, "width": 16}
  settings = ModelSettings.resolve({"name": model}, options)
  values = {**made_experiment().to_json(), **chosen, "model": settings}
  return checkpoints.Description(experiment.Experiment.from_mapping(values), tuple(classes))


def started(described):
  """A training's first parameters."""
  from hybrid_video import sharding

  task = registry.create(described.experiment, len(described.class_names), sharding.make_mesh())
  params, _ = initialization.variables(task, described)
  return params, task.initial_variables()[0]


def head(params):
  """Kernel and bias."""
  linear = params["head"].get("linear", params["head"])
  return np.asarray(linear["kernel"]), np.asarray(linear["bias"])


def trained_model(classes=THEIRS, model="r2plus1d_18"):
  """A model with a head whose every class has other values."""
  built = loading.build(description(classes, model))
  linear = getattr(built.head, "linear", built.head)
  linear.kernel[...] = 2 * linear.kernel[...]
  linear.bias[...] = np.arange(len(classes), dtype=np.float32)
  return built


@pytest.fixture(params=["r2plus1d_18", "hybrid"])
def plain_file(request, tmp_path):
  """(model, file, head) of weights that say nothing of their classes."""
  model = trained_model(model=request.param)
  path = weights.save(model, tmp_path / "plain.safetensors")
  return request.param, path, head(models.split(model)[1])


def check_reordered(described, expected, ids=IN_OURS):
  params, fresh = started(described)
  for mine, theirs in zip(head(params), expected, strict=True):
    np.testing.assert_array_equal(mine, theirs[..., list(ids)])
  assert not np.array_equal(head(params)[0], head(fresh)[0])


def check_fresh(described):
  params, fresh = started(described)
  for mine, initial in zip(head(params), head(fresh), strict=True):
    np.testing.assert_array_equal(mine, initial)
  stem = params["cnn"]["stem"]["conv"]["spatial"]["kernel"]
  assert stem.any()


def test_a_head_of_unknown_classes_is_not_kept_however_many_they_are(plain_file, logged):
  model, path, _ = plain_file
  check_fresh(description(OURS, model, init_from=str(path)))
  assert "The head starts fresh" in logged.text and "--config.init_classes" in logged.text
  with pytest.raises(PortingError, match=r"proves nothing.*init_classes.*replace_head=True"):
    started(description(OURS, model, init_from=str(path), replace_head=False))


def test_a_file_of_names_puts_the_head_into_the_models_order(plain_file, tmp_path, logged):
  model, path, expected = plain_file
  names = tmp_path / "names.txt"
  names.write_text("".join(f"{name}\r\n" for name in THEIRS), newline="")
  chosen = {"init_from": str(path), "init_classes": str(names), "replace_head": False}
  check_reordered(description(OURS, model, **chosen), expected)
  assert "Head reordered: 5 classes in another order" in logged.text
  check_reordered(description(("golf", "wave"), model, **chosen), expected, (2, 0))
  assert "Head cut: 2 of the 5 classes" in logged.text
  with pytest.raises(PortingError, match=r"1 of 2 names in common.*missing there: kick"):
    started(description(("golf", "kick"), model, **chosen))
  check_fresh(description(("golf", "kick"), model, **{**chosen, "replace_head": True}))
  assert "1 of 2 names in common with its 5 classes" in logged.text


def test_the_users_word_keeps_the_ids_as_they_are(plain_file, logged):
  model, path, expected = plain_file
  chosen = {"init_from": str(path), "init_classes": "same"}
  check_reordered(description(OURS, model, **chosen), expected, range(5))
  assert "The head is kept" in logged.text
  with pytest.raises(PortingError, match=r"for 5 classes, and --config.init_classes=same names 2"):
    started(description(("golf", "wave"), model, **chosen))


@pytest.mark.parametrize("shape", [(), (3,), (4, 5)])
def test_a_bias_that_does_not_belong_to_its_kernel_is_listed(tmp_path, shape):
  path = weights.save(trained_model(), tmp_path / "plain.safetensors")
  state_dict = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file({**state_dict, "fc.bias": np.zeros(shape, np.float32)}, path)
  names = tmp_path / "names.txt"
  names.write_text("\n".join(THEIRS))
  with pytest.raises(PortingError, match=r"1 of another shape: fc\.bias"):
    started(description(init_from=str(path), init_classes=str(names)))


def test_numbers_in_place_of_names_are_told_from_other_classes(tmp_path):
  path = weights.save(trained_model(), tmp_path / "plain.safetensors")
  names = tmp_path / "names.txt"
  names.write_text("\n".join(THEIRS))
  chosen = {"init_from": str(path), "init_classes": str(names), "replace_head": False}
  with pytest.raises(PortingError, match=r"0 of 5 names.*names are numbers.*init_classes=same"):
    started(description(("0", "1", "2", "3", "4"), **chosen))


def test_names_without_weights_are_a_mistake():
  with pytest.raises(
    SettingError, match=r"init_classes is 'ssv2' and --config.init_from is not se"
  ):
    made_experiment(init_classes="ssv2")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("wave\n\ngolf\n", "line 2: found a blank line"),
    ("wave\ngolf\nwave\n", "line 3: wave stands on line 1 already"),
    ("wave\ngolf\n", "for 5 classes, and .* names 2"),
    (b"\xff\xfe", "not UTF-8"),
    (None, "init_classes is .*names.txt: expected kinetics400, ssv2, same"),
  ],
)
def test_names_that_cannot_be_used_are_named_with_their_line(tmp_path, text, message):
  path = weights.save(trained_model(), tmp_path / "plain.safetensors")
  names = tmp_path / "names.txt"
  if text is not None:
    names.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(ValueError, match=message):
    started(description(init_from=str(path), init_classes=str(names)))


def test_an_exported_file_and_a_checkpoint_bring_their_names(tmp_path):
  described = description(THEIRS)
  model = trained_model()
  _, params, batch_stats = models.split(model)
  metadata = {loading.METADATA_KEY: json.dumps(described.to_json())}
  exported = weights.save(model, tmp_path / "model.safetensors", metadata)
  check_reordered(description(init_from=str(exported)), head(params))
  state = {"params": params, "batch_stats": batch_stats, "step": np.int32(1), "opt_state": {}}
  state |= {"skipped": np.int32(0), "ema": {}}
  with checkpoints.Checkpoints(tmp_path / "run", described, keep=1) as saved:
    saved.save(1, state, {})
  check_reordered(description(init_from=str(tmp_path / "run")), head(params))


def test_names_beside_a_file_of_hugging_face_are_its_classes(tmp_path):
  model = trained_model()
  path = weights.save(model, tmp_path / "model.safetensors")
  config = tmp_path / "config.json"
  config.write_text(json.dumps({"id2label": dict(enumerate(THEIRS))}))
  check_reordered(description(init_from=str(path)), head(models.split(model)[1]))
  for text in ('{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}', '{"id2label": [1]}', "[", "{}"):
    config.write_text(text)
    check_fresh(description(init_from=str(path)))


def test_published_weights_bring_the_names_of_their_list(tmp_path, monkeypatch):
  model = trained_model()
  folder = tmp_path / "cache"
  folder.mkdir()
  path = weights.save(model, tmp_path / "made.safetensors")
  digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
  path.rename(folder / f"made-{digest}.safetensors")
  monkeypatch.setenv(sources.CACHE_VARIABLE, str(folder))
  made = sources.Source(
    name="r2plus1d_18/made",
    url=f"https://127.0.0.1:1/made-{digest}.safetensors",
    sha256_prefix=digest,
    model="r2plus1d_18",
    num_classes=len(THEIRS),
    classes="made",
    frames=8,
    licence="none",
    origin="here",
  )
  monkeypatch.setitem(sources.SOURCES, made.name, made)
  monkeypatch.setattr(sources, "class_names", {"made": THEIRS}.__getitem__)
  expected = head(models.split(model)[1])
  for source in (made.name, made.url):
    check_reordered(description(init_from=source), expected)


def test_evaluation_gives_a_data_set_the_ids_of_the_checkpoint(made_records, logged):
  names = made_records.class_names
  turned = checkpoints.Description(made_experiment(), names[::-1])
  records = evaluate.with_class_ids_of(turned, made_records)
  assert records.class_names == names[::-1]
  assert [records.class_names[i] for i in records.labels] == [names[i] for i in made_records.labels]
  assert f"the checkpoint's {len(names)} classes in another order" in logged.text
  other = checkpoints.Description(made_experiment(), ("kick", *names[1:]))
  assert evaluate.with_class_ids_of(other, made_records) is made_records
  with pytest.raises(checkpoints.CheckpointError, match=r"1 there alone \(kick\), 1 here alone"):
    checkpoint_description.check_same_model(
      other, checkpoints.Description(made_experiment(), names), "the run"
    )


@pytest.fixture
def turned_classes(monkeypatch):
  """Every data set has its classes in the opposite order, as a numbered list may have them."""
  load = preparation.load_records

  def turned(chosen, workdir):
    records = load(chosen, workdir)
    last = len(records.class_names) - 1
    return dataclasses.replace(
      records, labels=last - records.labels, class_names=records.class_names[::-1]
    )

  monkeypatch.setattr(preparation, "load_records", turned)


def probabilities(workdir):
  """The test videos' probabilities by class name, in the videos' order."""
  with np.load(workdir / "predictions.npz") as saved:
    return dict(zip(saved["class_names"].tolist(), saved["probabilities"].T, strict=True))


def test_a_run_on_classes_in_another_order_starts_with_the_answers_of_the_first(
  finished, turned_classes, tmp_path, logged
):
  config, workdir, outcome = finished
  other = config.copy_and_resolve_references()
  other.init_from, other.replace_head = str(workdir), False
  other.optimizer.learning_rate = other.optimizer.warmup_epochs = 0.0
  other.epochs, other.evaluate_shuffled = 0.1, False
  other.model.freeze_statistics = True
  started = run_training(other, tmp_path)
  assert f"Head reordered: {len(outcome['classes'])} classes" in logged.text
  assert started["classes"] == outcome["classes"][::-1]
  assert started["test"]["video_top1"] == outcome["test"]["video_top1"]
  before, after = probabilities(workdir), probabilities(tmp_path)
  for name, shares in before.items():
    np.testing.assert_allclose(after[name], shares, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_is_evaluated_on_its_classes_in_another_order_and_not_resumed(
  finished, turned_classes, tmp_path
):
  import input_pipeline

  config, workdir, outcome = finished
  evaluated = evaluate.run(None, tmp_path, input_pipeline, checkpoint=workdir)
  assert evaluated["classes"] == outcome["classes"]
  assert evaluated["test"]["video_top1"] == outcome["test"]["video_top1"]
  assert probabilities(tmp_path).keys() == probabilities(workdir).keys()
  with pytest.raises(
    checkpoints.CheckpointError, match=r"classes in another order: .* has id 7 there"
  ):
    run_training(config, workdir)
