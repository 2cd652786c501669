"""VideoMAE's files as the original code, Hugging Face's releases and mmaction2 name them."""

from flax import nnx
from golden import videomae as golden
from golden.videomae import TINY, TINY_DECODER, as_original, flat, hugging_face
import jax
import numpy as np
import pytest

from hybrid_video import models
from hybrid_video.models import videomae, videomae_pretraining
from hybrid_video.models.model_error import ModelError
from hybrid_video.weights import PortingError, matching, porting, videomae_names


def _rng() -> np.random.Generator:
  return np.random.default_rng(0)


def _model(kind: str, **options) -> nnx.Module:
  if kind == "pretraining":
    return videomae_pretraining.VideoMAEForPreTraining(
      **{**TINY, **TINY_DECODER, **options}, rng=_rng()
    )
  pool = videomae.FIRST if kind == "first_token" else videomae.MEAN
  return videomae.VideoMAE(5, **{**TINY, "pool": pool, **options}, rng=_rng())


def _port(state_dict, model, *, replace_head: bool = False) -> porting.Ported:
  _, params, batch_stats = models.split(model)
  match = matching.match(
    model, params, batch_stats, state_dict, replace_head=replace_head, source="the file"
  )
  return porting.port(
    state_dict, match.table, params, batch_stats, fresh=match.fresh, optional=match.optional
  )


@pytest.mark.parametrize("kind", ["classifier", "first_token", "pretraining"])
def test_the_originals_names_andhugging_faces_give_the_same_parameters_and_lead_back(kind):
  theirs = hugging_face(kind)
  original = as_original(theirs, kind)
  prefix = "encoder." if kind == "pretraining" else ""
  assert original[f"{prefix}blocks.1.attn.qkv.weight"].shape == (144, 48)
  assert f"{prefix}patch_embed.proj.bias" in original
  model = _model(kind)
  a, b = (_port(state_dict, model) for state_dict in (original, theirs))
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
  assert (a.unused, a.fresh, b.unused, b.fresh) == ((), (), (), ())
  assert a.loaded == b.loaded == len(flat(model))
  for names, state_dict in (
    (videomae_names.ORIGINAL, original),
    (videomae_names.HUGGING_FACE, theirs),
  ):
    written = porting.unport(a.params, {}, golden.table(kind, names, model))
    assert written.keys() == state_dict.keys()
    for key, array in state_dict.items():
      np.testing.assert_array_equal(written[key], array, err_msg=key)


@pytest.mark.parametrize("source", ["original", "hugging_face"])
def test_a_classifier_takes_a_pretrained_encoder_and_says_what_it_left(source):
  theirs = hugging_face("pretraining")
  state_dict = as_original(theirs, "pretraining") if source == "original" else theirs
  model = videomae.VideoMAE(7, **TINY, rng=_rng())
  ported = _port(state_dict, model)
  assert ported.fresh == ("head",)
  assert ported.loaded == sum(path[0] == "attention" for path in flat(model))
  norm = "encoder.norm" if source == "original" else "videomae.layernorm"
  assert {f"{norm}.weight", "mask_token", "decoder.head.bias"} <= set(ported.unused)
  assert len(ported.unused) == 2 + 2 + (13 if source == "original" else 15) + 4
  # With a classifier besides, what the file is for is not clear.
  both = {**state_dict, "head.weight": np.zeros((7, 48)), "head.bias": np.zeros(7)}
  with pytest.raises(
    PortingError, match="a pretraining file's keys, and the file has a classifier"
  ):
    _port(both, model)


def test_unknown_missing_and_misshapen_keys_are_all_named_at_once():
  state_dict = as_original(hugging_face("classifier"), "classifier")
  del state_dict["fc_norm.bias"]
  state_dict["blocks.0.attn.k_bias"] = np.zeros(48, np.float32)
  state_dict["head.weight"] = state_dict["head.weight"][None]
  with pytest.raises(PortingError, match=r"1 unknown: blocks\.0\.attn\.k_bias") as error:
    _port(state_dict, _model("classifier"))
  assert "1 missing: fc_norm.bias" in str(error.value)
  assert "head.weight: found (1, 5, 48) where (5, 48) is expected" in str(error.value)
  assert "with a VideoMAE classifier as the original code names it" in str(error.value)
  with pytest.raises(PortingError, match="a fine-tuned classifier's keys"):
    _port(as_original(hugging_face("classifier"), "classifier"), _model("pretraining"))


def test_a_block_with_a_gap_before_it_is_missing():
  state_dict = {k: v for k, v in hugging_face("classifier").items() if ".layer.0." not in k}
  with pytest.raises(PortingError, match=r"15 missing: .*layer\.0\..* and 7 more"):
    _port(state_dict, _model("classifier"))


def test_a_file_of_another_depth_is_refused():
  with pytest.raises(PortingError, match=r"15 unknown: .*layer\.1\..* and 7 more"):
    _port(hugging_face("classifier"), _model("classifier", depth=1))


def test_an_unknown_kind_is_refused():
  with pytest.raises(ValueError, match="none of classifier, pretraining"):
    videomae_names.table("finetuned", videomae_names.ORIGINAL, depth=1)


def _assert_same(a: porting.Ported, b: porting.Ported) -> None:
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
  assert (a.fresh, a.loaded) == (b.fresh, b.loaded)


@pytest.mark.parametrize("kind", ["classifier", "first_token", "pretraining"])
def test_biases_of_keys_are_left_out_and_said(kind, logged):
  theirs, model = hugging_face(kind), _model(kind)
  ported = _port(golden.as_transformers_5(theirs), model)
  _assert_same(ported, _port(theirs, model))
  assert ported.unused
  assert all(key.endswith(".attention.attention.key.bias") for key in ported.unused)
  assert f"{len(ported.unused)} biases of attention keys: they change no output" in logged.text


def test_later_releases_without_biases_of_keys_load_too(logged):
  renamed = golden.as_transformers_5(hugging_face("classifier"))
  without = {key: array for key, array in renamed.items() if not key.endswith(".key.bias")}
  assert _port(without, _model("classifier")).unused == ()
  zeros = {key: 0 * array if key.endswith("key.bias") else array for key, array in renamed.items()}
  _port(zeros, _model("classifier"))
  assert "biases" not in logged.text


def test_a_bias_of_the_keys_changes_no_logits():
  # What the table says: the same number is added to all that a softmax is taken over.
  rng = np.random.default_rng(0)
  query, key, bias = rng.normal(size=(5, 8)), rng.normal(size=(7, 8)), 3 * rng.normal(size=8)
  with jax.enable_x64(True):
    plain, biased = (jax.nn.softmax(query @ keys.T) for keys in (key, key + bias))
    np.testing.assert_allclose(plain, biased, rtol=1e-10)


@pytest.mark.parametrize("kind", ["classifier", "first_token"])
def test_mmaction2s_names_give_the_same_and_its_positions_are_checked(kind):
  original, model = as_original(hugging_face(kind), kind), _model(kind)
  theirs = golden.as_mmaction(original)
  assert "backbone.blocks.1.mlp.layers.0.0.weight" in theirs
  ported = _port(theirs, model)
  _assert_same(ported, _port(original, model))
  assert ported.unused == ("backbone.pos_embed",)
  theirs["backbone.pos_embed"] = theirs["backbone.pos_embed"] + 0.1
  with pytest.raises(PortingError, match=r"positions, backbone\.pos_embed, are learned"):
    _port(theirs, model)


@pytest.mark.parametrize("source", ["original", "hugging_face", "mmaction"])
@pytest.mark.parametrize(("theirs", "ours"), [("mean", "first"), ("first", "mean")])
def test_a_classifier_of_another_token_names_the_option_to_set(source, theirs, ours):
  kinds = {"mean": "classifier", "first": "first_token"}
  state_dict = hugging_face(kinds[theirs])
  if source != "hugging_face":
    state_dict = as_original(state_dict, "classifier")
  if source == "mmaction":
    state_dict = golden.as_mmaction(state_dict)
  with pytest.raises(PortingError, match=rf"--config\.model\.pool={theirs}\)") as error:
    _port(state_dict, _model(kinds[ours]))
  assert "nothing was loaded" in str(error.value)


def test_a_model_of_the_first_token_takes_a_pretrained_encoder_with_its_norm():
  theirs = hugging_face("pretraining")
  model = _model("first_token")
  ported = _port(theirs, model)
  assert ported.fresh == ("head",)
  scale = ported.params["attention"]["norm"]["scale"]
  np.testing.assert_array_equal(scale, theirs["videomae.layernorm.weight"])


@pytest.mark.parametrize(("name", "source"), [("head", "original"), ("classifier", "hugging_face")])
def test_a_head_in_a_sequential_or_taken_off(name, source, logged):
  theirs, model = hugging_face("classifier"), _model("classifier")
  if source == "original":
    theirs = as_original(theirs, "classifier")
  inside = {key.replace(f"{name}.", f"{name}.1."): array for key, array in theirs.items()}
  assert f"{name}.1.weight" in inside
  _assert_same(_port(inside, model), _port(theirs, model))
  without = {key: array for key, array in theirs.items() if not key.startswith(f"{name}.")}
  ported = _port(without, model)
  assert ported.fresh == ("head",)
  assert "no head: the model's stays as initialized" in logged.text
  more = {**inside, f"{name}.3.weight": np.zeros((5, 5), np.float32)}
  with pytest.raises(PortingError, match=r"more than one linear map.*replace_head=True"):
    _port(more, model)
  assert _port(more, model, replace_head=True).fresh == ("head",)


def test_a_pool_that_does_not_exist_is_refused():
  with pytest.raises(ModelError, match="pool='cls' of a VideoMAE is none of mean, first"):
    videomae.VideoMAE(3, **TINY, pool="cls", rng=_rng())
