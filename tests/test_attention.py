import re
import types

from flax import nnx
import jax
from jax._src.cudnn import fused_attention_stablehlo
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video import models
from hybrid_video.models import attention, blockwise_attention, headwise_attention, target
from hybrid_video.models.attention import (
  BLOCKWISE,
  FUSED,
  HEADWISE,
  PLAIN,
  RECOMPUTED,
  attend,
)


def _inputs(queries: int, keys: int, *, heads: int = 2, channels: int = 8, batch: int = 3):
  rng = np.random.default_rng(queries + keys)
  sizes = (queries, keys, keys)
  return [rng.standard_normal((batch, size, heads, channels)) for size in sizes]


def _expected(query, key, value, visible=None):
  """Equation 1 of arXiv:1706.03762 in float64, head by head."""
  out = np.empty(query.shape)
  for clip, head in np.ndindex(len(query), query.shape[2]):
    scores = query[clip, :, head] @ key[clip, :, head].T / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    if visible is not None:
      weights = weights * visible[clip]
    out[clip, :, head] = weights @ value[clip, :, head] / weights.sum(1, keepdims=True)
  return out


def _float32(arrays):
  return [jnp.asarray(array, jnp.float32) for array in arrays]


VISIBLE = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], bool)
# Every way to the result that runs anywhere; the fused kernel needs its GPU.
WAYS = [{"form": form} for form in (None, PLAIN, RECOMPUTED, HEADWISE, BLOCKWISE)]
WAYS.append({"dropout": lambda weights: weights})


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way.get("form", "dropout")))
@pytest.mark.parametrize("visible", [None, VISIBLE], ids=["all", "masked"])
def test_every_form_is_the_formula(visible, way):
  inputs = _inputs(4, 5)
  out = jax.jit(lambda *a: attend(*a, visible if visible is None else jnp.asarray(visible), **way))(
    *_float32(inputs)
  )
  np.testing.assert_allclose(out, _expected(*inputs, visible), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way.get("form", "dropout")))
def test_every_form_has_the_same_gradients_and_none_for_hidden_keys(way):
  query, key, value = _float32(_inputs(4, 5))
  key = 3 * key

  def gradients(**way):
    def loss(*inputs):
      return jnp.square(attend(*inputs, jnp.asarray(VISIBLE), **way)).sum()

    return [np.asarray(g) for g in jax.jit(jax.grad(loss, (0, 1, 2)))(query, key, value)]

  of_form = gradients(**way)
  for gradient, expected in zip(of_form, gradients(form=PLAIN), strict=True):
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
  assert all((gradient[~VISIBLE] == 0).all() for gradient in of_form[1:])
  assert (np.abs(of_form[2][VISIBLE]).max((1, 2)) > 0).all()


@pytest.mark.parametrize("form", [BLOCKWISE, HEADWISE])
@pytest.mark.parametrize("visible", [None, VISIBLE], ids=["all", "masked"])
@pytest.mark.parametrize("queries", [1, 7, 8])
def test_blocks_of_queries_have_the_outputs_and_gradients_of_all_at_once(
  queries, visible, form, monkeypatch
):
  # Two or three queries a block; the last one is not full.
  monkeypatch.setattr(blockwise_attention, "_SCORES_AT_ONCE", 3 * 5)
  monkeypatch.setattr(headwise_attention, "_LANES", 3)
  monkeypatch.setattr(headwise_attention, "_SCORES_AT_ONCE", 1)
  visible = None if visible is None else jnp.asarray(visible)

  def outputs_and_gradients(**way):
    def loss(*inputs):
      out = attend(*inputs, visible, **way)
      return jnp.sin(out).sum(), out

    with jax.enable_x64(True):
      inputs = [jnp.asarray(array, jnp.float64) for array in _inputs(queries, 5)]
      (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs)
      return [np.asarray(array) for array in (out, *gradients)]

  formula = outputs_and_gradients(dropout=lambda weights: weights)
  for blocks, plain in zip(outputs_and_gradients(form=form), formula, strict=True):
    assert blocks.dtype == np.float64
    np.testing.assert_allclose(blocks, plain, rtol=1e-12, atol=1e-13)


def _float32_scores_saved(form):
  """How many float32 arrays of the scores' size the backward pass reads from the forward pass."""

  def forward(*inputs):
    return jax.vjp(lambda *a: attend(*a, form=form), *inputs)[1]

  saved = jax.tree.leaves(jax.eval_shape(forward, *_shapes(40, 72)))
  return sum(leaf.dtype == jnp.float32 and leaf.size >= 40 * 72 for leaf in saved)


def test_only_the_plain_form_saves_scores_for_the_backward_pass():
  assert _float32_scores_saved(PLAIN) > 0
  assert _float32_scores_saved(RECOMPUTED) == _float32_scores_saved(HEADWISE) == 0
  assert _float32_scores_saved(BLOCKWISE) == 0


def test_an_unknown_form_is_refused_with_the_known_ones():
  inputs = _float32(_inputs(4, 5))
  with pytest.raises(ValueError, match=r"no form 'flash': take one of plain, fused, recomputed"):
    attend(*inputs, form="flash")
  with pytest.raises(ValueError, match=r"under a mask has no form 'fused': .* plain, recomputed"):
    attend(*inputs, jnp.asarray(VISIBLE), form=FUSED)


def test_dropout_is_applied_to_the_weights_before_the_values():
  inputs = _float32(_inputs(4, 5))
  seen = []

  def drop_the_last_key(weights):
    seen.append(weights)
    return weights.at[..., -1].set(0.0)

  out = attend(*inputs, dropout=drop_the_last_key)
  assert seen[0].shape == (3, 2, 4, 5) and seen[0].dtype == jnp.float32
  np.testing.assert_allclose(seen[0].sum(-1), 1.0, rtol=1e-6)
  lost = seen[0][..., -1].transpose(0, 2, 1)[..., None] * inputs[2][:, -1:]
  np.testing.assert_allclose(out, attend(*inputs) - lost, rtol=1e-5, atol=1e-6)


def test_the_softmax_of_bfloat16_inputs_is_float32s():
  # In bfloat16, 600 weights of 1/600 would sum to anything but 1.
  query, key = (jnp.zeros((1, n, 1, 8), jnp.bfloat16) for n in (1, 600))
  for dropout in (None, lambda weights: weights):
    out = attend(query, key, jnp.ones_like(key), dropout=dropout)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), 1.0, rtol=4e-3)
  inputs = [jnp.asarray(array, jnp.bfloat16) for array in _inputs(6, 40)]
  wide = [np.asarray(array, np.float64) for array in inputs]
  error = np.abs(np.asarray(attend(*inputs), np.float64) - _expected(*wide)).max()
  assert error < 0.01


@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (5, 8), (6, 7), (6, 8)])
def test_filling_up_to_even_lengths_changes_neither_output_nor_gradients(
  queries, keys, monkeypatch
):
  inputs = _float32(_inputs(queries, keys))
  probe = jnp.asarray(np.random.default_rng(1).standard_normal(inputs[0].shape), jnp.float32)
  theirs, lengths = jax.nn.dot_product_attention, []

  def in_place_of_cudnn(query, key, value, *, implementation, **given):
    lengths.extend([query.shape[1], key.shape[1]])
    return theirs(query, key, value, implementation="xla", **given)

  def both(form):
    def output_and_gradients(*inputs):
      out, back = jax.vjp(lambda *a: attend(*a, form=form), *inputs)
      return [out, *back(probe)]

    return jax.jit(output_and_gradients)(*inputs)

  plain = both(PLAIN)
  monkeypatch.setattr(jax.nn, "dot_product_attention", in_place_of_cudnn)
  filled = both(FUSED)
  assert lengths == [queries + queries % 2, keys + keys % 2]
  for ours, expected in zip(filled, plain, strict=True):
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def _shapes(queries, keys, channels=64, dtype=jnp.bfloat16, heads=8):
  return [
    jax.ShapeDtypeStruct((2, length, heads, channels), dtype) for length in (queries, keys, keys)
  ]


def _device(platform, version="", capability=""):
  client = types.SimpleNamespace(platform_version=version)
  return types.SimpleNamespace(platform=platform, client=client, compute_capability=capability)


HOPPER = [_device("gpu", "PJRT C API\ncuda 12080", "9.0")]
TURING = [_device("gpu", "PJRT C API\ncuda 12080", "7.5")]
ROCM = [_device("gpu", "PJRT C API\nrocm 60300", "gfx942")]
CPU, TPU = [_device("cpu")], [_device("tpu", "libtpu")]


@pytest.mark.parametrize(
  ("shapes", "expected"),
  [
    (_shapes(256, 98, heads=1), FUSED),
    (_shapes(257, 257), FUSED),
    (_shapes(1568, 1568), FUSED),
    (_shapes(256, 98, dtype=jnp.float16), FUSED),
    (_shapes(256, 98, dtype=jnp.float32), PLAIN),
    (_shapes(256, 98, channels=12), PLAIN),
    (_shapes(256, 300, channels=136), PLAIN),
    (_shapes(3, 3), PLAIN),
  ],
)
def test_the_fused_kernel_is_chosen_only_where_it_runs_and_pays_off(shapes, expected):
  query, key, _ = shapes
  assert attention.choose(query, key, HOPPER, masked=False) == expected
  for devices in (TURING, ROCM, HOPPER + TURING, []):
    assert attention.choose(query, key, devices, masked=False) == PLAIN
  assert attention.choose(query, key, HOPPER, masked=True) == PLAIN


@pytest.mark.parametrize("masked", [False, True])
def test_a_tpu_computes_scores_again_and_many_of_them_a_block_of_one_head_at_a_time(masked):
  def form_of(*shapes, **options):
    query, key, _ = _shapes(*shapes, **options)
    return attention.choose(query, key, TPU, masked=masked)

  assert form_of(256, 98, heads=1) == form_of(257, 257) == RECOMPUTED
  assert form_of(392, 392) == form_of(1568, 1568, heads=12) == HEADWISE
  assert form_of(256, 6272, heads=1) == HEADWISE
  assert form_of(3, 3) == PLAIN


@pytest.mark.parametrize("masked", [False, True])
def test_a_cpu_takes_many_scores_in_blocks_unless_its_devices_share_a_batch(masked):
  def form_of(queries, keys, devices):
    query, key, _ = _shapes(queries, keys)
    return attention.choose(query, key, devices, masked=masked)

  assert form_of(1568, 1568, CPU) == form_of(256, 6272, CPU) == BLOCKWISE
  assert form_of(1568, 1568, 2 * CPU) == form_of(160, 160, CPU) == form_of(1568, 8, CPU) == PLAIN


def test_a_form_is_chosen_for_this_machines_own_devices():
  query, key, _ = _shapes(256, 98)
  assert attention.choose(query, key, jax.local_devices(), masked=False) == PLAIN


@pytest.fixture
def hopper(monkeypatch):
  """Traces as on an NVIDIA GPU."""
  # JAX asks the library for its version at trace time; it is not installed here.
  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
  with target.traced_for(HOPPER):
    yield


def _cuda_program(function, *shapes):
  return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def _kernels(program):
  return re.findall(r"custom_call @__cudnn\$(\w+)\(", program)


@pytest.mark.parametrize(("queries", "keys"), [(256, 98), (257, 257), (256, 147), (1568, 1568)])
def test_on_a_gpu_training_runs_both_fused_kernels_and_writes_no_scores(hopper, queries, keys):
  def loss(*inputs):
    return attend(*inputs).astype(jnp.float32).sum()

  program = _cuda_program(jax.grad(loss, (0, 1, 2)), *_shapes(queries, keys))
  assert _kernels(program) == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
  rows = "|".join({str(queries), str(queries + queries % 2)})
  columns = "|".join({str(keys), str(keys + keys % 2)})
  assert not re.search(rf"tensor<[\dx]*({rows})x({columns})x(f32|bf16)>", program)


MODELS = [
  ("hybrid", {"cnn_blocks": 8, "cnn_width": 4, "latents": 128, "width": 64}, 2),
  ("videomae_small", {"frames": 16, "image_size": 64, "depth": 2}, 2),
  ("r2plus1d_18_bert", {"blocks": 2, "width": 8, "frames": 4}, 0),
]


@pytest.mark.parametrize(("name", "options", "fused"), MODELS)
def test_every_model_trains_on_a_gpu_with_the_fused_kernel_where_it_pays_off(
  hopper, name, options, fused
):
  size = options.get("image_size", 112)
  model = models.create(name, num_classes=3, dtype="bfloat16", **options)
  graphdef, params, batch_stats = models.split(model)

  def loss(params, clips, key):
    merged = nnx.merge(graphdef, params, batch_stats)
    return merged(clips, rngs=nnx.Rngs(dropout=key)).sum()

  frames = options.get("frames", 16)
  clips = jax.ShapeDtypeStruct((2, frames, size, size, 3), jnp.float32)
  program = _cuda_program(jax.grad(loss), params, clips, jax.random.key(0))
  assert _kernels(program).count("fmhaSoftmax") == fused
  assert _kernels(program).count("fmhaSoftmaxBackward") == fused


def test_a_trace_for_no_device_shows_every_product(hopper):
  def products():
    program = jax.make_jaxpr(lambda *inputs: attend(*inputs))(*_shapes(256, 98))
    return str(program).count("dot_general")

  assert products() == 0
  with target.traced_for([]):
    assert products() == 2
  assert products() == 0


def test_a_block_of_a_tpu_is_a_multiple_of_its_lanes_and_of_the_clips_of_one_device(monkeypatch):
  def rows(clips, queries, keys):
    query = jax.ShapeDtypeStruct((clips, queries, 1, 64), jnp.bfloat16)
    return [block.stop - block.start for block in headwise_attention._blocks(query, keys)]

  monkeypatch.setattr(target, "device_count", lambda: 4)
  assert rows(64, 1568, 1568) == [512, 512, 512, 32]
  assert rows(64, 256, 6272) == [128, 128]
  assert rows(4096, 200, 6272) == [128, 72]
  assert rows(2, 40, 72) == [40]
