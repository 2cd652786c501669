import re

from flax import nnx
from golden.comparison import relative_error
from golden.perceiver import (
  FEATURES,
  GOLDEN,
  GROUPS,
  Reader,
  case,
  errors,
  filled,
  ported,
  state_dict,
)
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video import models
from hybrid_video.models import perceiver
from hybrid_video.weights import PortingError, perceiver_names, porting


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("groups", "self_per_group"), GROUPS)
def test_latents_and_logits_are_those_of_the_reference(groups, self_per_group, tied):
  assert max(errors(groups, self_per_group, tied).values()) < 1e-5


def test_the_modules_one_by_one_give_the_references_latents():
  state = state_dict(1, 1, False)
  model = filled(1, 1, False)
  positions = np.broadcast_to(perceiver.fourier_positions((2, 3, 4), 4, 10.0), (2, 24, 27))
  tokens = jnp.asarray(np.concatenate([FEATURES.reshape(2, 24, 5), positions], axis=-1))
  latents = jnp.broadcast_to(jnp.asarray(state["latents"]), (2, 6, 16))
  latents = model.attention.cross["0"](latents, tokens)
  latents = model.attention.self_attention["0"](latents)
  assert relative_error(latents, GOLDEN[f"{case(1, 1, False)}/latents"]) < 1e-5


def test_tied_groups_have_the_parameters_of_two_groups_and_do_the_work_of_all():
  def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(models.split(model)[1]))

  assert count(Reader(4, 2, True)) == count(Reader(2, 2, False)) == count(Reader(2, 2, True))
  assert count(Reader(1, 2, True)) == count(Reader(1, 2, False)) < count(Reader(2, 2, True))
  # The same initial values, run through the second group once, twice and three times.
  outputs = [Reader(n, 1, True).attention(jnp.asarray(FEATURES)) for n in (2, 3, 4)]
  assert not np.allclose(outputs[0], outputs[1], atol=1e-3)
  assert not np.allclose(outputs[1], outputs[2], atol=1e-3)


def test_a_hybrid_built_by_name_can_tie_its_groups():
  options = {"cnn_blocks": 1, "cnn_width": 4, "latents": 4, "width": 16, "cross_blocks": 3}
  model = nnx.eval_shape(
    lambda: models.create("hybrid", num_classes=3, self_blocks=6, tie_groups=True, **options)
  )
  attention = models.split(model)[1]["attention"]
  assert sorted(attention["cross"]) == ["0", "1"]
  assert sorted(attention["self_attention"]) == ["0", "1", "2", "3"]


def test_the_keys_of_the_older_release_lead_to_the_same_paths():
  state = state_dict(2, 2, False)
  older = {
    key.replace(".cross_attn.", ".0.")
    .replace(".cross_ff.", ".1.")
    .replace(".self_attns.", ".2."): v
    for key, v in state.items()
  }
  assert set(older) != set(state)
  model = Reader(2, 2, False)
  new, old = (ported(s, 2, 2, False, model).params for s in (state, older))
  jax.tree.map(np.testing.assert_array_equal, new, old)


@pytest.mark.parametrize("tied", [False, True])
def test_the_table_leads_back_to_the_references_state_dict(tied):
  state = state_dict(3, 2, tied)
  table = perceiver_names.table(state, cross_blocks=3, self_per_group=2, tied=tied)
  params = ported(state, 3, 2, tied, Reader(3, 2, tied)).params
  written = porting.unport(params, {}, table)
  assert written.keys() == state.keys()
  for key, array in state.items():
    np.testing.assert_array_equal(written[key], array, err_msg=key)


def _refusal(state: dict, groups: int = 3, tied: bool = False) -> str:
  with pytest.raises(PortingError) as error:
    ported(state, groups, 1, tied, Reader(groups, 1, tied))
  return str(error.value)


def test_weights_that_do_not_fit_are_refused_by_key():
  state = state_dict(3, 1, False)
  without = {key: value for key, value in state.items() if key != "to_logits.2.bias"}
  message = _refusal(without)
  assert "1 missing: to_logits.2.bias" in message and "unknown" not in message
  message = _refusal({**state, "mask_token": np.zeros(3)})
  assert "1 unknown: mask_token (3,)" in message and "missing" not in message
  message = _refusal({**without, "to_logit.2.bias": state["to_logits.2.bias"]})
  assert "1 unknown: to_logit.2.bias (7,) Did you mean to_logits.2.bias?" in message
  message = _refusal(state, groups=2)
  assert re.search(r"2 groups with 1 self .*\n  26 unknown: .*layers\.2\.", message)
  assert "the counts that the weights were made with" in message
  message = _refusal(state, tied=True)
  assert re.search(r"26 that should be the same and differ: .*layers\.2\.cross_attn", message)
  assert "tie_groups=False" in message


def test_every_axis_can_have_its_own_highest_frequency():
  sizes, bands = (2, 1, 5), 3
  positions = perceiver.fourier_positions(sizes, bands, (4.0, 6.0, 12.0)).reshape(10, 3, 7)
  for axis, max_freq in enumerate((4.0, 6.0, 12.0)):
    alone = perceiver.fourier_positions(sizes, bands, max_freq).reshape(10, 3, 7)
    np.testing.assert_array_equal(positions[:, axis], alone[:, axis])
  own = perceiver.fourier_positions(sizes, bands, None)
  np.testing.assert_array_equal(own, perceiver.fourier_positions(sizes, bands, (2.0, 2.0, 5.0)))
  assert not np.allclose(own, perceiver.fourier_positions(sizes, bands, 10.0))


def test_the_grids_own_frequencies_reach_the_attention():
  outputs = [
    Reader(1, 1, False, max_freq=max_freq).attention(jnp.asarray(FEATURES))
    for max_freq in (None, (2.0, 3.0, 4.0), 10.0)
  ]
  np.testing.assert_array_equal(outputs[0], outputs[1])
  assert not np.allclose(outputs[0], outputs[2], atol=1e-3)


def test_frequencies_for_another_number_of_axes_are_refused():
  with pytest.raises(ValueError, match="2 values for a grid of 3 axes"):
    perceiver.fourier_positions((2, 3, 4), 4, (1.0, 2.0))
