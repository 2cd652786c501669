"""Published files into our models, strictly, and back."""

import collections
import contextlib
import functools
import io
import json
import pathlib
import re

from conftest import run_training, small_demo
from flax import nnx
from golden import reference_weights
import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import demo
from hybrid_video import (
  checkpoints,
  errors,
  experiment,
  export,
  models,
  optimizers,
  sharding,
  steps,
  weights,
)
from hybrid_video import state as training_state
from hybrid_video.models import rematerialization
from hybrid_video.report import results
from hybrid_video.tasks import classification
from hybrid_video.weights import own_names, porting, sources, video_resnet_names

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
  return weights.save(model, tmp_path_factory.mktemp("weights") / "narrow.safetensors")


def _trees(model: nnx.Module) -> tuple[dict, dict]:
  _, params, batch_stats = models.split(model)
  return params, batch_stats


def _hybrid(num_classes: int = 5, seed: int = 0, **options):
  sizes = {
    "cnn_width": 4,
    "latents": 4,
    "width": 16,
    "cnn_blocks": 4,
    "self_heads": 2,
    "head_dim": 8,
  }
  return models.create("hybrid", num_classes=num_classes, seed=seed, **{**sizes, **options})


def _bert(num_classes: int = 5, seed: int = 0, **options):
  sizes = {"width": 4, "blocks": 4, "frames": 8, "heads": 2}
  return models.create(
    "r2plus1d_18_bert", num_classes=num_classes, seed=seed, **{**sizes, **options}
  )


def _assert_parts(model: nnx.Module, **wanted: nnx.Module) -> None:
  """That each part of a model equals that part of another, to the bit."""
  for part, other in wanted.items():
    theirs = _leaves(other)
    parts = {target: leaf for target, leaf in _leaves(model).items() if target[1][0] == part}
    assert parts
    for target, leaf in parts.items():
      np.testing.assert_array_equal(leaf, theirs[target], err_msg=str(target))


def _spoiled(path: pathlib.Path, folder: pathlib.Path, change) -> pathlib.Path:
  state_dict = safetensors.numpy.load_file(path)
  change(state_dict)
  safetensors.numpy.save_file(state_dict, folder / "spoiled.safetensors")
  return folder / "spoiled.safetensors"


@pytest.mark.parametrize(
  "name", ["r2plus1d_18", "r3d_18", "mc3_18", "r2plus1d_34", "r2plus1d_18_hara"]
)
def test_a_network_written_and_read_again_is_the_same(name, tmp_path):
  model, other = _narrow(name, seed=1), _narrow(name, seed=2)
  path = weights.save(model, tmp_path / "model.safetensors")
  ported = weights.load_pretrained(other, path)
  assert ported.fresh == ()
  assert all(key.endswith("num_batches_tracked") for key in ported.unused)
  for key, leaf in _leaves(model).items():
    np.testing.assert_array_equal(_leaves(other)[key], leaf)
  assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_written_names_and_shapes_are_torchvisions(tmp_path):
  model = nnx.eval_shape(lambda: models.create("r2plus1d_18", num_classes=400))
  _, params, batch_stats = models.split(model)
  zeros = [
    jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree)
    for tree in (params, batch_stats)
  ]
  written = porting.unport(*zeros, video_resnet_names.table("r2plus1d_18"))
  assert len(written) == 224
  assert written["stem.0.weight"].shape == (45, 3, 1, 7, 7)
  assert written["layer2.0.conv2.0.3.weight"].shape == (128, 230, 3, 1, 1)
  assert written["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1, 1)
  assert written["layer4.1.conv1.0.1.running_var"].shape == (1152,)
  assert written["fc.weight"].shape == (400, 512)
  assert written["stem.1.num_batches_tracked"].dtype == np.int64


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


def test_the_names_of_3d_resnets_pytorch_are_written_and_read_with_any_head(tmp_path):
  path = weights.save(_narrow("r2plus1d_18_hara", seed=1), tmp_path / "model.safetensors")
  names = set(safetensors.numpy.load_file(path))
  assert len(names) == 2 + 37 * 5 + 37
  assert {"conv1_s.weight", "bn1_t.running_var", "layer2.0.conv2_t.weight", "fc.bias"} <= names
  assert {"layer2.0.bn1_s.num_batches_tracked", "layer4.0.downsample.1.weight"} <= names

  def change(state_dict):
    _renamed("^", "module.")(state_dict)
    del state_dict["module.fc.weight"], state_dict["module.fc.bias"]

  model = _narrow("r2plus1d_18_hara", num_classes=9, seed=2)
  assert weights.load_pretrained(model, _spoiled(path, tmp_path, change)).fresh == ("head",)
  _assert_parts(model, cnn=_narrow("r2plus1d_18_hara", seed=1))
  hybrid = _hybrid(cnn="r2plus1d_18_hara")
  assert weights.load_pretrained(hybrid, path).fresh == ("attention", "head")


def test_what_stands_outside_of_a_wrapped_network_is_unused(narrow_file, tmp_path):
  def change(state_dict):
    _renamed("^", "model._orig_mod.")(state_dict)
    state_dict["train_acc.tp"] = np.zeros(5, np.int64)

  model, expected = _narrow(seed=2), _narrow(seed=3)
  ported = weights.load_pretrained(model, _spoiled(narrow_file, tmp_path, change))
  weights.load_pretrained(expected, narrow_file)
  assert "train_acc.tp" in ported.unused
  assert ported.loaded == len(_leaves(model))
  _assert_parts(model, cnn=expected, head=expected)


def _renamed(pattern: str, replacement: str):
  """A change of a state dict that renames its keys."""

  def change(state_dict):
    for key in list(state_dict):
      state_dict[re.sub(pattern, replacement, key)] = state_dict.pop(key)

  return change


@pytest.mark.parametrize("inside", ["fc.1.", "fc.0.", "fc.0.1."])
def test_a_head_in_a_sequential_is_the_head(inside, narrow_file, tmp_path):
  model, expected = _narrow(seed=2), _narrow(seed=3)
  path = _spoiled(narrow_file, tmp_path, _renamed(r"^fc\.", inside))
  assert weights.load_pretrained(model, path).fresh == ()
  weights.load_pretrained(expected, narrow_file)
  _assert_parts(model, cnn=expected, head=expected)
  with pytest.raises(porting.PortingError, match=r"5 classes, the model's 32 for 9.*replace_head"):
    weights.load_pretrained(_narrow(num_classes=9), path)


def test_a_head_of_several_maps_is_replaced_only_when_asked(narrow_file, tmp_path, logged):
  def change(state_dict):
    _renamed(r"^fc\.", "fc.3.")(state_dict)
    state_dict["fc.0.weight"] = np.zeros((4, 4), np.float32)

  path = _spoiled(narrow_file, tmp_path, change)
  with pytest.raises(porting.PortingError, match=r"more than one linear map.*fc\.0\.weight"):
    weights.load_pretrained(_narrow(), path)
  ported = weights.load_pretrained(_narrow(), path, replace_head=True)
  assert ported.fresh == ("head",)
  assert {"fc.0.weight", "fc.3.weight", "fc.3.bias"} <= set(ported.unused)
  assert "a head of another form" in logged.text
  # A trunk takes none in any case.
  assert "fc.0.weight" in weights.load_pretrained(_hybrid(), path).unused


@pytest.mark.parametrize("is_sequential", [False, True])
def test_a_network_without_its_head_fills_the_trunk(is_sequential, narrow_file, tmp_path, logged):
  parts = ["stem", "layer1", "layer2", "layer3", "layer4"]

  def change(state_dict):
    del state_dict["fc.weight"], state_dict["fc.bias"]
    if is_sequential:
      _renamed(r"^(\w+)", lambda match: str(parts.index(match[1])))(state_dict)

  path = _spoiled(narrow_file, tmp_path, change)
  assert ("0.0.weight" in safetensors.numpy.load_file(path)) == is_sequential
  model, expected = _narrow(seed=2), _narrow(seed=3)
  ported = weights.load_pretrained(model, path)
  assert ported.fresh == ("head",)
  assert "has no head: the model's stays as initialized" in logged.text
  weights.load_pretrained(expected, narrow_file)
  _assert_parts(model, cnn=expected, head=_narrow(seed=2))
  hybrid = _hybrid()
  assert weights.load_pretrained(hybrid, path).fresh == ("attention", "head")
  _assert_parts(hybrid, cnn=_cut_like(hybrid, expected))


def test_a_sequential_of_all_parts_is_the_whole_network(narrow_file, tmp_path):
  parts = ["stem", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
  change = _renamed(r"^(\w+)", lambda match: str(parts.index(match[1])))
  model, expected = _narrow(seed=2), _narrow(seed=3)
  assert weights.load_pretrained(model, _spoiled(narrow_file, tmp_path, change)).fresh == ()
  weights.load_pretrained(expected, narrow_file)
  _assert_parts(model, cnn=expected, head=expected)


def _cut_like(model: nnx.Module, whole: nnx.Module) -> nnx.Module:
  cut = _narrow(blocks=len(model.cnn.blocks()))
  weights.load_trees(cut, *_trees(whole), source="whole", replace_head=True)
  return cut


def test_a_resnet_of_mmaction2_is_refused_as_another_network(tmp_path):
  keys = ("conv1.conv.conv_s.weight", "layer1.0.conv1.conv.conv_s.weight", "layer1.0.conv1.bn.bias")
  arrays = {f"backbone.{key}": np.zeros(3, np.float32) for key in keys}
  arrays["cls_head.fc_cls.weight"] = np.zeros((5, 3), np.float32)
  safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
  with pytest.raises(porting.PortingError, match="an mmaction2 ResNet: its stem"):
    weights.load_pretrained(_narrow("r2plus1d_34"), tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32_and_whole_numbers_are_refused(dtype, narrow_file, tmp_path):
  def change(state_dict):
    for key, array in state_dict.items():
      if np.issubdtype(array.dtype, np.floating):
        state_dict[key] = array.astype(dtype)

  model, expected = _narrow(seed=2), _narrow(seed=3)
  weights.load_pretrained(model, _spoiled(narrow_file, tmp_path, change))
  weights.load_pretrained(expected, narrow_file)
  ours = _leaves(model)
  for key, leaf in _leaves(expected).items():
    assert ours[key].dtype == np.float32
    np.testing.assert_array_equal(ours[key], leaf.astype(dtype).astype(np.float32))

  def quantize(state_dict):
    state_dict["fc.weight"] = state_dict["fc.weight"].astype(np.int8)

  with pytest.raises(porting.PortingError, match=r"no floating-point numbers: fc\.weight: int8"):
    weights.load_pretrained(model, _spoiled(narrow_file, tmp_path, quantize))


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
  assert "nothing was loaded" in message
  assert "2 missing: layer1.0.conv1.1.bias, layer3.1.conv2.0.3.weight" in message
  assert "layer2.0.conv1.0.1.weight: found (3,)" in message
  assert "layer9.weight (2,)" in message
  for key, leaf in _leaves(model).items():
    np.testing.assert_array_equal(leaf, before[key])


@pytest.mark.parametrize("theirs", ["r3d_18", "mc3_18", "r2plus1d_34", "r2plus1d_18_hara"])
def test_another_architectures_file_is_named(theirs, tmp_path):
  path = weights.save(_narrow(theirs), tmp_path / "theirs.safetensors")
  with pytest.raises(porting.PortingError, match=f"looks like the weights of {theirs}"):
    weights.load_pretrained(_narrow(), path)


def test_files_of_no_known_network_and_damaged_ones_are_refused(tmp_path):
  safetensors.numpy.save_file({"w": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
  with pytest.raises(porting.PortingError, match="no network that is known"):
    weights.load_pretrained(_narrow(), tmp_path / "w.safetensors")
  (tmp_path / "cut.pth").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-4])
  with pytest.raises(weights.WeightsFileError, match=r"cut\.pth: "):
    weights.load_pretrained(_narrow(), tmp_path / "cut.pth")
  for error in (porting.PortingError, weights.WeightsFileError, sources.SourceError):
    assert issubclass(error, errors.UserError)


def test_only_a_whole_network_that_torchvision_has_gets_torchvisions_names():
  table = video_resnet_names.table("r2plus1d_18")
  _, *trees = models.split(_narrow(blocks=3))
  with pytest.raises(porting.PortingError, match="only a whole network"):
    porting.unport(*trees, table)
  params, batch_stats = _trees(_narrow())
  attention = _trees(_hybrid())[0]["attention"]
  with pytest.raises(porting.PortingError, match=r"no name for .* arrays of the model: attention"):
    porting.unport({**params, "attention": attention}, batch_stats, table)


def _golden_file(tmp_path, shapes_of: str, name: str = "videomae.npz") -> pathlib.Path:
  shapes = json.loads(str(np.load(GOLDEN / name)[shapes_of]))
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(reference_weights.state_dict(shapes), path)
  return path


def _videomae(kind, **options):
  sizes = {"frames": 4, "image_size": 32, "width": 48, "depth": 2, "heads": 4}
  if kind == "classifier":
    return models.create("videomae_small", **{"num_classes": 6, **sizes, **options})
  decoder = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
  return models.create("videomae_small_pretraining", **sizes, **decoder, **options)


def test_hugging_faces_videomae_loads_and_every_leaf_is_filled(tmp_path):
  path = _golden_file(tmp_path, "tiny_classifier_shapes")
  shapes = json.loads(str(np.load(GOLDEN / "videomae.npz")["tiny_classifier_shapes"]))
  classes = shapes["classifier.weight"][0]
  model = _videomae("classifier", num_classes=classes, **_tiny(shapes))
  ported = weights.load_pretrained(model, path)
  assert ported.loaded == len(_leaves(model))
  other = _videomae("classifier", num_classes=classes + 1, **_tiny(shapes))
  message = rf"{classes} classes, the model's 48 for {classes + 1}.*replace_head=True"
  with pytest.raises(porting.PortingError, match=message):
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


@pytest.mark.slow
def test_rematerialized_blocks_give_the_same_gradients_and_statistics():
  def results(remat):
    build = functools.partial(models.create, "r2plus1d_18", num_classes=3, width=4, remat=remat)
    task = classification.make(build, (0.5,) * 3, (0.2,) * 3)
    settings = optimizers.OptimizerSettings(name="sgd", learning_rate=0.1, schedule="constant")
    optimizer = optimizers.make_optimizer(settings)
    batch = {
      "clips": np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8),
      "labels": np.array([0, 2]),
      "mirrored": np.array([False, True]),
    }
    step = jax.jit(functools.partial(steps.train_step, task=task, optimizer=optimizer))
    mesh = sharding.make_mesh(jax.devices()[:1])
    start = training_state.create(optimizer, mesh, *task.initial_variables())
    state, _ = step(start, batch, np.float32(0.1), np.uint32(0))
    return jax.tree.leaves((state["params"], state["batch_stats"]))

  plain = results("none")
  for remat in ("blocks", "convolutions_saved"):
    for a, b in zip(plain, results(remat), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_unknown_policy_is_refused_with_the_nearest():
  with pytest.raises(
    models.ModelError, match=r"remat=block is none of none, blocks, conv.* mean blocks"
  ):
    models.create("r2plus1d_18", num_classes=3, width=4, remat="block")


def test_a_policy_keeps_the_results_of_convolutions_and_less_than_none_does():
  def kept(remat):
    model = models.create("r2plus1d_18", num_classes=3, width=4, blocks=1, remat=remat)
    graphdef, params, batch_stats = models.split(model)

    def loss(params):
      return nnx.merge(graphdef, params, batch_stats)(np.ones((1, 4, 16, 16, 3), np.float32)).sum()

    with contextlib.redirect_stdout(io.StringIO()) as told:
      jax.ad_checkpoint.print_saved_residuals(loss, params)
    maps = re.findall(r"f32\[1,4,8,8,(\d+)\]", told.getvalue())
    return collections.Counter(int(channels) for channels in maps)

  none, blocks, some = (kept(remat) for remat in rematerialization.POLICIES)
  # Both halves of two (2+1)D convolutions in the block; what lies between blocks is 4 channels wide.
  assert some[9] == 2 < none[9] and blocks[9] == 0
  assert blocks[4] < some[4] < none[4]


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
  with pytest.raises(ValueError, match=r"'cnn/steam', a part that .* not have.*cnn/stem"):
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
  first = run_training(config, tmp_path / "run")
  trained = checkpoints.read(tmp_path / "run").params
  fresh, _ = _trees(
    models.create(
      "hybrid",
      num_classes=8,
      seed=config.seed,
      **experiment.from_config(config).model_options,
    )
  )
  wanted = _narrow()
  weights.load_pretrained(wanted, narrow_file)
  stem = ("cnn", "stem", "conv", "spatial", "kernel")
  np.testing.assert_array_equal(
    trained["cnn"]["stem"]["conv"]["spatial"]["kernel"], _leaves(wanted)["params", stem]
  )
  assert not np.array_equal(trained["attention"]["latents"], fresh["attention"]["latents"])
  # The same command again evaluates; the file is not loaded over what was trained.
  assert run_training(config, tmp_path / "run")["params_digest"] == first["params_digest"]


def test_weights_that_are_unavailable_stop_a_run_before_training(made_folder, tmp_path):
  config = small_demo(made_folder, tmp_path / "records")
  config.init_from = "r2plus1d_18/kinetics"
  with pytest.raises(sources.SourceError, match="r2plus1d_18/kinetics400"):
    run_training(config, tmp_path / "run")
  assert demo.get_config().init_from == ""


def test_a_trained_checkpoint_is_exported_for_pytorch(made_folder, tmp_path):
  config = small_demo(made_folder, tmp_path / "records")
  for option in ("cnn_blocks", "cnn_width", "latents"):
    config.model[option] = None
  config.model.name, config.model.width = "r2plus1d_18", 4
  config.epochs = 0.5
  config.optimizer.warmup_epochs = 0.0
  trained = run_training(config, tmp_path / "run")
  exported = export.run(tmp_path / "run")
  assert "layer1.0.conv1.0.0.weight" in safetensors.numpy.load_file(exported)
  model = _narrow(num_classes=8)
  weights.load_pretrained(model, exported)
  _, params, _ = models.split(model)
  assert results.params_digest(params) == trained["params_digest"]
  with pytest.raises(checkpoints.CheckpointError, match="Train first"):
    export.run(tmp_path / "other")


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


@pytest.mark.parametrize(
  "build",
  [
    _hybrid,
    _bert,
    functools.partial(_narrow, blocks=3),
    functools.partial(_narrow, "r2plus1d_34", blocks=5),
    functools.partial(_narrow, "mc3_18", blocks=3),
    functools.partial(_narrow, "r3d_18", blocks=1),
    functools.partial(_videomae, "classifier"),
    functools.partial(_videomae, "pretraining"),
  ],
  ids=["hybrid", "bert", "cut", "cut 34", "cut mc3", "cut r3d", "videomae", "pretraining"],
)
def test_every_model_is_written_under_its_own_names_and_read_again(build, tmp_path):
  model, other = build(seed=1), build(seed=2)
  path = weights.save(model, tmp_path / "model.safetensors", {"classes": '["a", "\u00e4"]'})
  assert weights.read_metadata(path) == {"classes": '["a", "\u00e4"]'}
  ported = weights.load_pretrained(other, path)
  assert (ported.fresh, ported.unused, ported.loaded) == ((), (), len(_leaves(model)))
  for target, leaf in _leaves(model).items():
    np.testing.assert_array_equal(_leaves(other)[target], leaf)
  # From the trees of a checkpoint it is the same.
  third = build(seed=3)
  assert weights.load_trees(third, *_trees(model), source="a checkpoint").loaded == ported.loaded
  for target, leaf in _leaves(model).items():
    np.testing.assert_array_equal(_leaves(third)[target], leaf)


def test_our_own_names_are_the_paths_joined_with_dots(tmp_path):
  arrays = safetensors.numpy.load_file(weights.save(_hybrid(), tmp_path / "model.safetensors"))
  shapes = {key: array.shape for key, array in arrays.items()}
  assert shapes["cnn.stem.conv.spatial.kernel"] == (1, 7, 7, 3, 3)
  assert shapes["cnn.layer2.0.downsample.norm.var"] == (8,)
  assert shapes["attention.latents"] == (4, 16)
  assert shapes["attention.cross.0.attention.to_q.kernel"] == (16, 8)
  assert shapes["attention.self_attention.0.feed_forward.norm.scale"] == (16,)
  assert shapes["head.linear.kernel"] == (16, 5)
  assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def _documented_names() -> list[str]:
  """The names in docs/models.md as regular expressions."""
  page = (pathlib.Path(__file__).parent.parent / "docs" / "models.md").read_text()
  table = page.partition("## Names in exported files")[2].partition("\n## ")[0]
  names = [line.split("|")[2].strip(" `") for line in table.splitlines() if line.startswith("| ")]

  def expand(braces: re.Match) -> str:
    return f"({braces[1].replace(',', '|')})" if "," in braces[1] else r"\d+"

  # Below the heading and the rule.
  return [re.sub(r"\{(.*?)\}", expand, name.replace(".", r"\.")) for name in names[1:]]


def test_the_documented_names_are_those_of_the_models_exactly():
  built = [
    _hybrid(self_blocks=2),
    _hybrid(cnn="r3d_18"),
    _bert(),
    _narrow(blocks=3),
    _narrow("mc3_18", blocks=3),
    _videomae("classifier"),
    _videomae("pretraining"),
  ]
  keys = {own_names.key_of(path) for model in built for _, path in _leaves(model)}
  patterns = _documented_names()
  matches = {key: [name for name in patterns if re.fullmatch(name, key)] for key in keys}
  assert {key: names for key, names in matches.items() if len(names) != 1} == {}
  assert {name for names in matches.values() for name in names} == set(patterns)


def test_a_path_in_two_collections_has_no_name():
  with pytest.raises(ValueError, match="one path"):
    own_names.table([("params", ("cnn", "mean")), ("batch_stats", ("cnn", "mean"))])


@pytest.mark.parametrize("replace_head", [False, True])
def test_a_bare_trunk_of_ours_goes_into_another_model(replace_head):
  source, model = _narrow(blocks=4, seed=1), _hybrid(seed=2)
  ported = weights.load_trees(model, *_trees(source), source="run", replace_head=replace_head)
  assert ported.fresh == ("attention", "head")
  assert set(ported.unused) == {"head.kernel", "head.bias"}
  _assert_parts(model, cnn=source, attention=_hybrid(seed=2), head=_hybrid(seed=2))


def test_a_longer_trunk_of_ours_is_cut_and_a_shorter_one_is_refused():
  source, model = _narrow(seed=1), _hybrid(cnn_blocks=2, seed=2)
  ported = weights.load_trees(model, *_trees(source), source="run")
  assert any(key.startswith("cnn.layer4.1.") for key in ported.unused)
  _assert_parts(model, cnn=source, head=_hybrid(cnn_blocks=2, seed=2))
  before = _leaves(longer := _hybrid(cnn_blocks=8, width=32))
  with pytest.raises(porting.PortingError, match=r"missing: cnn\.layer3\.") as error:
    weights.load_trees(longer, *_trees(_hybrid(width=32)), source="run")
  assert "nothing was loaded" in str(error.value)
  for target, leaf in _leaves(longer).items():
    np.testing.assert_array_equal(leaf, before[target])


@pytest.mark.parametrize(
  "source", [_bert, functools.partial(_hybrid, latents=6)], ids=["bert", "other"]
)
def test_another_attention_is_left_out_with_its_head_only_when_asked(source, logged):
  theirs, model = source(seed=1), _hybrid(seed=2)
  with pytest.raises(porting.PortingError, match=r"To take the trunk alone .*replace_head=True"):
    weights.load_trees(model, *_trees(theirs), source="run")
  _assert_parts(model, cnn=_hybrid(seed=2), attention=_hybrid(seed=2), head=_hybrid(seed=2))
  ported = weights.load_trees(model, *_trees(theirs), source="run", replace_head=True)
  assert ported.fresh == ("attention", "head")
  assert "run has another attention than the model: only its trunk is taken" in logged.text
  _assert_parts(model, cnn=theirs, attention=_hybrid(seed=2), head=_hybrid(seed=2))


def test_a_head_of_other_classes_alone_is_replaced_in_our_own_models(tmp_path):
  path = weights.save(_hybrid(seed=1), tmp_path / "model.safetensors")
  model = _hybrid(num_classes=9, seed=2)
  message = "16 channels for 5 classes, the model's 16 for 9.*replace_head=True"
  with pytest.raises(porting.PortingError, match=message):
    weights.load_pretrained(model, path)
  ported = weights.load_pretrained(model, path, replace_head=True)
  assert ported.fresh == ("head",)
  _assert_parts(
    model, cnn=_hybrid(seed=1), attention=_hybrid(seed=1), head=_hybrid(num_classes=9, seed=2)
  )


@pytest.mark.parametrize(("num_classes", "replace_head"), [(6, False), (9, True)])
def test_a_classifier_takes_the_encoder_of_our_own_pretraining(num_classes, replace_head):
  source = _videomae("pretraining", seed=1)
  model = _videomae("classifier", num_classes=num_classes, seed=2)
  ported = weights.load_trees(model, *_trees(source), source="run", replace_head=replace_head)
  assert ported.fresh == ("head",)
  assert {"attention.norm.scale", "decoder.mask_token"} <= set(ported.unused)
  assert all(key.startswith(("attention.norm.", "decoder.")) for key in ported.unused)
  _assert_parts(
    model, attention=source, head=_videomae("classifier", num_classes=num_classes, seed=2)
  )
  with pytest.raises(porting.PortingError, match="unknown: head"):
    weights.load_trees(source, *_trees(model), source="run")


def test_models_of_ours_that_share_no_trunk_are_refused():
  videomae = _videomae("classifier")
  with pytest.raises(
    porting.PortingError, match="run has no video ResNet in it, and the model has"
  ):
    weights.load_trees(_hybrid(), *_trees(videomae), source="run", replace_head=True)
  with pytest.raises(porting.PortingError, match="the model has no video ResNet in it"):
    weights.load_trees(videomae, *_trees(_hybrid()), source="run", replace_head=True)
  for theirs in ("r3d_18", "mc3_18", "r2plus1d_34"):
    with pytest.raises(porting.PortingError, match=f"looks like the weights of {theirs}"):
      weights.load_trees(_hybrid(), *_trees(_narrow(theirs)), source="run", replace_head=True)


def test_a_misspelt_name_of_ours_is_named_with_the_nearest():
  params, batch_stats = _trees(_hybrid())
  params["head"]["linear"]["kernels"] = params["head"]["linear"].pop("kernel")
  params["cnn"]["layer9"] = {"kernel": np.zeros(3)}
  with pytest.raises(porting.PortingError, match="3 mismatches") as error:
    weights.load_trees(_hybrid(), params, batch_stats, source="run")
  assert "1 missing: head.linear.kernel" in str(error.value)
  assert "head.linear.kernels (16, 5) Did you mean head.linear.kernel?" in str(error.value)
  assert "cnn.layer9.kernel (3,)" in str(error.value)


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
  path = weights.save(_hybrid(seed=1), tmp_path / "model.safetensors")
  before = path.read_bytes()
  monkeypatch.setattr(
    type(path), "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
  )
  with pytest.raises(
    weights.WeightsFileError, match=r"model\.safetensors could not be written: full"
  ):
    weights.save(_hybrid(seed=2), path)
  assert path.read_bytes() == before
  assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_perceivers_weights_for_what_the_model_does_not_have_are_refused(tmp_path):
  shapes = json.loads(str(np.load(GOLDEN / "perceiver.npz")["depth1_self1_own/shapes"]))
  path = tmp_path / "perceiver.safetensors"
  safetensors.numpy.save_file(reference_weights.state_dict(shapes), path)
  model = models.create(
    "hybrid",
    num_classes=7,
    cnn_blocks=1,
    cnn_width=16,
    cross_blocks=0,
    width=16,
    self_heads=2,
    head_dim=8,
    pool="mean",
  )
  with pytest.raises(porting.PortingError, match="that the model has nothing for: latents"):
    weights.load_pretrained(model, path)
