"""What wrappers put before a network's keys, in every combination."""

import itertools

import numpy as np
import pytest

from hybrid_video.weights import WeightsFileError, key_prefixes

# The first keys of networks of every family.
NETWORKS = {
  "torchvision": ("stem.0.weight", "layer1.0.conv1.0.0.weight", "fc.bias"),
  "cut": ("layer1.0.conv1.0.0.weight", "layer1.0.conv1.1.running_mean"),
  "videomae": ("patch_embed.proj.weight", "blocks.0.attn.q_bias", "head.weight"),
  "pretraining": ("mask_token", "encoder.patch_embed.proj.weight", "decoder.blocks.0.norm1.bias"),
  "hugging_face": ("videomae.embeddings.patch_embeddings.projection.weight", "classifier.bias"),
  "perceiver": ("latents", "layers.0.0.norm.weight", "to_logits.1.bias"),
  "own": ("cnn.stem.conv.spatial.kernel", "attention.latents", "head.linear.kernel"),
}
WRAPPERS = ("module", "_orig_mod", "model", "net", "backbone", "r2plus1d")


def arrays(*keys: str) -> dict[str, np.ndarray]:
  return {key: np.full(1, i, np.float32) for i, key in enumerate(keys)}


def wrapped(prefix: str, *keys: str) -> dict[str, np.ndarray]:
  return arrays(*(prefix + key for key in keys))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_wrappers_come_off_in_any_order(network, depth):
  keys = NETWORKS[network]
  for names in itertools.permutations(WRAPPERS, depth):
    prefix = "".join(f"{name}." for name in names)
    plain, outside = key_prefixes.split(wrapped(prefix, *keys))
    assert outside == ()
    assert list(plain) == list(keys), prefix
    assert [float(array[0]) for array in plain.values()] == list(range(len(keys)))


def test_compiled_and_sharded_parts_inside_a_network_come_off_too():
  keys = (
    "module.stem._orig_mod.0.weight",
    "module.layer1.0._checkpoint_wrapped_module.conv1.1.bias",
    "module._fsdp_wrapped_module.fc.bias",
  )
  assert list(key_prefixes.split(arrays(*keys))[0]) == [
    "stem.0.weight",
    "layer1.0.conv1.1.bias",
    "fc.bias",
  ]


@pytest.mark.parametrize(
  "outside",
  [
    ("train_acc.tp", "train_acc.fp", "val_loss.mean_value"),
    ("n_averaged",),
    ("criterion.weight", "teacher.projector.weight"),
  ],
)
def test_what_stands_outside_of_a_known_network_is_listed_and_logged(outside, logged):
  network = wrapped("model.", *NETWORKS["torchvision"])
  plain, unused = key_prefixes.split({**network, **arrays(*outside)})
  assert tuple(plain) == NETWORKS["torchvision"]
  assert unused == outside
  assert outside[0] in logged.text and "below model." in logged.text


def test_a_moving_average_beside_a_network_is_left_and_two_networks_are_refused(logged):
  network = wrapped("model.", *NETWORKS["torchvision"])
  average = wrapped("model_ema.module.", "stem.0.weight")
  plain, unused = key_prefixes.split({**average, **network})
  assert tuple(plain) == NETWORKS["torchvision"]
  assert unused == ("model_ema.module.stem.0.weight",)
  assert "model_ema.module.stem.0.weight" in logged.text
  assert list(key_prefixes.split(average)[0]) == ["stem.0.weight"]
  streams = {**wrapped("rgb.", "stem.0.weight"), **wrapped("flow.", "stem.0.weight")}
  with pytest.raises(WeightsFileError, match=r"2 networks, under flow\., rgb\."):
    key_prefixes.split(streams)


def test_two_keys_that_are_one_without_their_wrappers_are_refused():
  with pytest.raises(WeightsFileError, match=r"two of its keys are 'stem\.0\.weight' without"):
    key_prefixes.split(arrays("stem.0.weight", "_orig_mod.stem.0.weight"))


def test_an_unknown_network_loses_the_wrappers_that_all_its_keys_share():
  plain, outside = key_prefixes.split(arrays("module._orig_mod.net.a", "_orig_mod.module.net.b.c"))
  assert (list(plain), outside) == (["a", "b.c"], ())
  for keys in (["module.a", "fc.b"], ["model.", "model.a"], ["slow.a", "slow.b"]):
    assert list(key_prefixes.split(arrays(*keys))[0]) == keys


def test_keys_are_searched_only_so_deep():
  deep = "a." * 50 + "stem.0.weight"
  assert list(key_prefixes.split(arrays(deep))[0]) == [deep]
