"""Published files into our models, strictly, and back."""

import functools
import json
import pathlib

from flax import nnx
from golden import reference_weights
import jax
import numpy as np
import pytest
import safetensors.numpy
from test_train import small_demo

from configs import defaults, demo
from hybrid_video import checkpoints, models, optimizers, steps, train, weights
from hybrid_video.report import results
from hybrid_video.weights import porting, sources, torch_files

GOLDEN = pathlib.Path(__file__).parent / "golden"


def _leaves(model: nnx.Module) -> dict:
  _, params, batch_stats = models.split(model)
  return {key: np.asarray(leaf) for key, leaf in porting.leaves(params, batch_stats).items()}


def _narrow(name: str = "r2plus1d_18", num_classes: int = 5, seed: int = 0, **options):
  return models.create(name, num_classes=num_classes, seed=seed, width=4, **options)


@pytest.fixture(scope="module")
def narrow_file(tmp_path_factory) -> pathlib.Path:
  """A narrow R(2+1)D-18 of five classes under torchvision's names."""
  model = _narrow(seed=7)
  rng = np.random.default_rng(0)
  *_, batch_stats = models.split(model)
  nnx.update(model, jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), batch_stats))
  return weights.save_torchvision(model, tmp_path_factory.mktemp("weights") / "narrow.safetensors")


def _spoiled(path: pathlib.Path, folder: pathlib.Path, change) -> pathlib.Path:
  state_dict = safetensors.numpy.load_file(path)
  change(state_dict)
  safetensors.numpy.save_file(state_dict, folder / "spoiled.safetensors")
  return folder / "spoiled.safetensors"


@pytest.mark.parametrize("name", ["r2plus1d_18", "r3d_18", "mc3_18", "r2plus1d_34"])
def test_a_network_written_and_read_again_is_the_same(name, tmp_path):
  model, other = _narrow(name, seed=1), _narrow(name, seed=2)
  path = weights.save_torchvision(model, tmp_path / "model.safetensors")
  ported = weights.load_pretrained(other, path)
  assert ported.fresh == ()
  assert all(key.endswith("num_batches_tracked") for key in ported.unused)
  for key, leaf in _leaves(model).items():
    np.testing.assert_array_equal(_leaves(other)[key], leaf)
  assert not list(tmp_path.glob("*.part"))


def test_the_written_names_and_shapes_are_torchvisions(tmp_path):
  model = nnx.eval_shape(lambda: models.create("r2plus1d_18", num_classes=400))
  _, params, batch_stats = models.split(model)
  zeros = [
    jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree)
    for tree in (params, batch_stats)
  ]
  from hybrid_video.weights import video_resnet_names

  found = porting.unport(*zeros, video_resnet_names.places("r2plus1d_18"))
  assert len(found) == 224
  assert found["stem.0.weight"].shape == (45, 3, 1, 7, 7)
  assert found["layer2.0.conv2.0.3.weight"].shape == (128, 230, 3, 1, 1)
  assert found["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1, 1)
  assert found["layer4.1.conv1.0.1.running_var"].shape == (1152,)
  assert found["fc.weight"].shape == (400, 512)
  assert found["stem.1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize(
  ("name", "options", "cut"),
  [
    ("hybrid", {"cnn_width": 4, "latents": 4, "width": 16, "cnn_blocks": 8}, 0),
    ("hybrid", {"cnn_width": 4, "latents": 4, "width": 16, "cnn_blocks": 4}, 4),
    ("r2plus1d_18_bert", {"width": 4}, 0),
  ],
)
def test_a_trunk_takes_what_it_has_and_says_what_stays_fresh(narrow_file, name, options, cut):
  model = models.create(name, num_classes=3, **options)
  before = _leaves(model)
  ported = weights.load_pretrained(model, narrow_file)
  after = _leaves(model)
  reference = _narrow()
  weights.load_pretrained(reference, narrow_file)
  wanted = _leaves(reference)
  assert ported.fresh == ("attention", "head")
  for key, leaf in after.items():
    np.testing.assert_array_equal(leaf, wanted[key] if key[1][0] == "cnn" else before[key])
  assert {"fc.weight", "fc.bias"} <= set(ported.unused)
  assert any(key.startswith("layer4.1") for key in ported.unused) or not cut


def test_a_head_of_other_classes_is_replaced_only_when_asked(narrow_file):
  model = _narrow(num_classes=9)
  before = _leaves(model)
  with pytest.raises(porting.PortingError, match=r"5 classes.*replace_head=True"):
    weights.load_pretrained(model, narrow_file)
  for key, leaf in _leaves(model).items():
    np.testing.assert_array_equal(leaf, before[key])
  ported = weights.load_pretrained(model, narrow_file, replace_head=True)
  assert ported.fresh == ("head",)
  np.testing.assert_array_equal(
    _leaves(model)["params", ("head", "kernel")], before["params", ("head", "kernel")]
  )


def test_all_mismatches_are_listed_at_once_and_nothing_is_loaded(narrow_file, tmp_path):
  def change(state_dict):
    del state_dict["layer1.0.conv1.1.bias"]
    del state_dict["layer3.1.conv2.0.3.weight"]
    state_dict["layer2.0.conv1.0.1.weight"] = np.zeros(3, np.float32)
    state_dict["layer9.weight"] = np.zeros(2, np.float32)

  model = _narrow()
  before = _leaves(model)
  with pytest.raises(porting.PortingError, match="4 mismatches") as error:
    weights.load_pretrained(model, _spoiled(narrow_file, tmp_path, change))
  message = str(error.value)
  assert "spoiled.safetensors" in message
  assert "layer1.0.conv1.1.bias is missing" in message
  assert "layer3.1.conv2.0.3.weight is missing" in message
  assert "layer2.0.conv1.0.1.weight: found (3,)" in message
  assert "layer9.weight (2,)" in message
  for key, leaf in _leaves(model).items():
    np.testing.assert_array_equal(leaf, before[key])


@pytest.mark.parametrize("theirs", ["r3d_18", "mc3_18", "r2plus1d_34"])
def test_another_architectures_file_is_named(theirs, tmp_path):
  path = weights.save_torchvision(_narrow(theirs), tmp_path / "theirs.safetensors")
  with pytest.raises(porting.PortingError, match=f"looks like the weights of {theirs}"):
    weights.load_pretrained(_narrow(), path)


def test_files_of_no_known_network_and_models_without_names_are_refused(tmp_path):
  safetensors.numpy.save_file({"w": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
  with pytest.raises(porting.PortingError, match="no network that is known"):
    weights.load_pretrained(_narrow(), tmp_path / "w.safetensors")
  hybrid = models.create("hybrid", num_classes=2, cnn_width=4, latents=4, width=16)
  with pytest.raises(porting.PortingError, match="no names for a Hybrid"):
    weights.save_torchvision(hybrid, tmp_path / "hybrid.safetensors")
  with pytest.raises(porting.PortingError, match="only a whole network"):
    weights.save_torchvision(_narrow(blocks=3), tmp_path / "cut.safetensors")
  (tmp_path / "cut.pth").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-4])
  with pytest.raises(torch_files.TorchFileError, match=r"cut\.pth"):
    weights.load_pretrained(_narrow(), tmp_path / "cut.pth")


def _golden_file(tmp_path, shapes_of: str, name: str = "videomae.npz") -> pathlib.Path:
  shapes = json.loads(str(np.load(GOLDEN / name)[shapes_of]))
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(reference_weights.state_dict(shapes), path)
  return path


def _videomae(kind, **options):
  sizes = {"frames": 4, "image_size": 32, "width": 48, "depth": 2, "heads": 4}
  if kind == "classifier":
    return models.create("videomae_small", **{"num_classes": 6, **sizes, **options})
  return models.VideoMAEForPreTraining(
    **sizes, decoder_width=24, decoder_depth=1, decoder_heads=2, rng=np.random.default_rng(0)
  )


def test_hugging_faces_videomae_loads_and_every_leaf_is_filled(tmp_path):
  path = _golden_file(tmp_path, "tiny_classifier_shapes")
  shapes = json.loads(str(np.load(GOLDEN / "videomae.npz")["tiny_classifier_shapes"]))
  classes = shapes["classifier.weight"][0]
  model = _videomae("classifier", num_classes=classes, **_tiny(shapes))
  ported = weights.load_pretrained(model, path)
  assert ported.loaded == len(_leaves(model))
  other = _videomae("classifier", num_classes=classes + 1, **_tiny(shapes))
  with pytest.raises(porting.PortingError, match="mismatches"):
    weights.load_pretrained(other, path)
  assert weights.load_pretrained(other, path, replace_head=True).fresh == ("head",)


def _tiny(shapes) -> dict:
  width = shapes["videomae.embeddings.patch_embeddings.projection.weight"][0]
  depth = len({k.split(".")[3] for k in shapes if k.startswith("videomae.encoder.layer.")})
  return {"width": width, "depth": depth}


def test_a_pretrained_encoder_loads_into_a_classifier_and_its_decoder_is_left(tmp_path):
  path = _golden_file(tmp_path, "tiny_pretraining_shapes")
  shapes = json.loads(str(np.load(GOLDEN / "videomae.npz")["tiny_pretraining_shapes"]))
  model = _videomae("classifier", **_tiny(shapes))
  ported = weights.load_pretrained(model, path)
  assert ported.fresh == ("head",)
  assert any(key.startswith("decoder.") for key in ported.unused)
  with pytest.raises(porting.PortingError, match="the model is another"):
    weights.load_pretrained(_narrow(), path)


def test_rematerialised_blocks_give_the_same_gradients_and_statistics():
  def results(remat):
    network = steps.make_network(
      functools.partial(models.create, "r2plus1d_18", num_classes=3, width=4, remat=remat),
      (0.5,) * 3,
      (0.2,) * 3,
    )
    settings = optimizers.OptimizerSettings(name="sgd", learning_rate=0.1, schedule="constant")
    optimizer = optimizers.make_optimizer(settings)
    batch = {
      "clips": np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8),
      "labels": np.array([0, 2]),
      "flips": np.array([False, True]),
    }
    step = jax.jit(functools.partial(steps.train_step, network=network, optimizer=optimizer))
    start = steps.init_state(network, optimizer)
    state, _ = step(start, batch, np.float32(0.1), np.uint32(0))
    return jax.tree.leaves((state["params"], state["batch_stats"]))

  for a, b in zip(results(False), results(True), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_frozen_statistics_stay_and_serve_in_training_too():
  model = _narrow(freeze_statistics=True)
  model.train()
  graphdef, params, batch_stats = models.split(model)

  @jax.jit
  def run(clips):
    merged = nnx.merge(graphdef, params, batch_stats)
    return merged(clips), models.split(merged)[2]

  clips = reference_weights.clips((2, 4, 32, 32, 3))
  logits, after = run(clips)
  for a, b in zip(jax.tree.leaves(batch_stats), jax.tree.leaves(after), strict=True):
    np.testing.assert_array_equal(a, b)
  alone, _ = run(clips[:1])
  np.testing.assert_allclose(alone[0], logits[0], rtol=1e-4, atol=1e-6)


def test_a_part_that_is_frozen_by_name_does_not_move_and_a_typo_is_named():
  params = {
    "cnn": {"stem": {"w": np.ones(2)}, "layer1": {"w": np.ones(2)}},
    "head": {"w": np.ones(2)},
  }

  def update(freeze):
    settings = optimizers.OptimizerSettings(
      name="adamw", weight_decay=0.1, schedule="constant", freeze=freeze
    )
    optimizer = optimizers.make_optimizer(settings)
    gradients = jax.tree.map(np.ones_like, params)
    return optimizer.update(gradients, optimizer.init(params), params)[0]

  updates = update(("cnn/stem", "head"))
  assert not updates["cnn"]["stem"]["w"].any()
  assert not updates["head"]["w"].any()
  assert updates["cnn"]["layer1"]["w"].all()
  with pytest.raises(ValueError, match=r"no part 'cnn/steam'.*'cnn/stem'"):
    update(("cnn/steam",))


def test_a_run_starts_from_weights_trains_the_rest_and_never_goes_back(
  made_folder, tmp_path, narrow_file
):
  config = small_demo(made_folder, tmp_path / "records")
  config.model.cnn_blocks = 2
  config.epochs = 1.0
  config.init_from = str(narrow_file)
  config.optimizer.freeze = ("cnn",)
  config.optimizer.warmup_epochs = 0.0
  config.model.freeze_statistics = True
  first = train.run(config, tmp_path / "run")
  network = train.make_network(config, 8)
  settings = optimizers.OptimizerSettings(**config.optimizer)
  optimizer = optimizers.make_optimizer(settings)
  fresh = steps.init_state(network, optimizer)
  identity = train.checkpoint_identity(config, first["classes"])
  state = checkpoints.Checkpoints(tmp_path / "run", identity, 1).restore(fresh)
  wanted = _narrow()
  weights.load_pretrained(wanted, narrow_file)
  stem = ("cnn", "stem", "conv", "spatial", "kernel")
  np.testing.assert_array_equal(
    state["params"]["cnn"]["stem"]["conv"]["spatial"]["kernel"], _leaves(wanted)["params", stem]
  )
  assert not np.array_equal(
    state["params"]["attention"]["latents"], fresh["params"]["attention"]["latents"]
  )
  # The same command again evaluates; the file is not loaded over what was trained.
  assert train.run(config, tmp_path / "run")["params_digest"] == first["params_digest"]


def test_weights_that_cannot_be_found_stop_a_run_before_training(made_folder, tmp_path):
  config = small_demo(made_folder, tmp_path / "records")
  config.init_from = "r2plus1d_18/kinetics"
  with pytest.raises(ValueError, match="r2plus1d_18/kinetics400"):
    train.run(config, tmp_path / "run")
  assert demo.get_config().init_from == ""


def test_a_trained_checkpoint_is_exported_for_pytorch(made_folder, tmp_path):
  config = small_demo(made_folder, tmp_path / "records")
  config.model = defaults.model("r2plus1d_18", width=4)
  config.epochs = 0.5
  config.optimizer.warmup_epochs = 0.0
  trained = train.run(config, tmp_path / "run")
  exported = train.run(config, tmp_path / "run", mode="export")
  model = _narrow(num_classes=8)
  weights.load_pretrained(model, exported["exported"])
  _, params, _ = models.split(model)
  assert results.params_digest(params) == trained["params_digest"]
  hybrid = small_demo(made_folder, tmp_path / "records")
  with pytest.raises(checkpoints.CheckpointError, match="Train first"):
    train.run(hybrid, tmp_path / "other", mode="export")


def test_every_known_source_is_of_a_model_that_can_be_made():
  assert {source.model for source in sources.SOURCES.values()} <= set(models.MODELS)


@pytest.mark.parametrize(("num_classes", "fresh"), [(7, ("cnn",)), (9, ("cnn", "head"))])
def test_a_perceivers_head_is_replaced_only_where_it_does_not_fit(tmp_path, num_classes, fresh):
  shapes = json.loads(str(np.load(GOLDEN / "perceiver.npz")["depth1_self1_own/shapes"]))
  path = tmp_path / "perceiver.safetensors"
  safetensors.numpy.save_file(reference_weights.state_dict(shapes), path)
  (channels,) = shapes["layers.0.cross_attn.norm_context.weight"]
  model = models.create(
    "hybrid",
    num_classes=num_classes,
    cnn_blocks=1,
    cnn_width=channels - 3 * (2 * 4 + 1),
    latents=6,
    width=16,
    self_heads=2,
    head_dim=8,
    bands=4,
    pool="mean",
  )
  assert weights.load_pretrained(model, path, replace_head=True).fresh == fresh
