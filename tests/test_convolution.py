import itertools
import types

from flax import nnx
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video.models import convolution, layers, target, video_resnet
from hybrid_video.models.convolution import folded, two_dimensional, winograd

CONVOLUTIONS = [
  ((1, 3, 3), (1, 1, 1), (0, 1, 1)),
  ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
  ((1, 7, 7), (1, 2, 2), (0, 3, 3)),
  ((3, 1, 1), (1, 1, 1), (1, 0, 0)),
  ((3, 1, 1), (2, 1, 1), (1, 0, 0)),
  ((1, 1, 1), (2, 2, 2), (0, 0, 0)),
  ((1, 1, 1), (1, 1, 1), (0, 0, 0)),
  ((3, 3, 3), (1, 2, 2), (1, 1, 1)),
  ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
]
SIZES = [(7, 9, 11), (1, 5, 5), (3, 1, 2), (4, 8, 16)]


def _devices(platform, count=1):
  return [types.SimpleNamespace(platform=platform)] * count


def _with_gradients(x, kernel, strides, padding, lowering):
  """The output, and the gradients of a sum that weighs all its positions differently."""

  def loss(x, kernel):
    y = convolution.unfold(convolution.convolve(x, kernel, strides, padding, lowering))
    return jnp.sum(jnp.sin(y)), y

  (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel)
  return tuple(np.asarray(array) for array in (y, *gradients))


def _random(size, kernel, dtype):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, *size, 3)).astype(dtype)
  return x, (rng.standard_normal((*kernel, 3, 5)) / np.sqrt(np.prod(kernel) * 3)).astype(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "strides", "padding"), CONVOLUTIONS)
def test_every_lowering_of_a_convolution_is_the_same_function(
  kernel, strides, padding, size, monkeypatch
):
  # Few enough at a time that every loop has several rounds.
  monkeypatch.setattr(winograd, "_TILES_AT_ONCE", 12)
  monkeypatch.setattr(winograd, "_TILES_AT_ONCE_BACKWARD", 8)
  monkeypatch.setattr(winograd, "_PIXELS_AT_ONCE", 20)
  monkeypatch.setattr(two_dimensional, "_PIXELS_AT_ONCE", 60)
  with jax.enable_x64(True):
    wide = _random(size, kernel, np.float64)
    expected = _with_gradients(*wide, strides, padding, convolution.DIRECT)
    _, *others = convolution.lowerings(wide[1], strides, padding)
    assert others
    for lowering in others:
      for ours, plain in zip(
        _with_gradients(*wide, strides, padding, lowering), expected, strict=True
      ):
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-11, err_msg=lowering)
  if size != SIZES[0]:
    return
  # Rounding does not depend on what is left over at the edges.
  narrow = _random(size, kernel, np.float32)
  for lowering in others:
    for ours, plain in zip(
      _with_gradients(*narrow, strides, padding, lowering), expected, strict=True
    ):
      assert ours.dtype == jnp.float32
      error = np.abs(ours - plain).max()
      assert error < 5e-6 * max(1.0, np.abs(plain).max()), lowering


@pytest.mark.parametrize(
  ("kernel", "padding", "size"),
  [((1, 3, 3), (0, 1, 1), (2, 14, 14)), ((3, 1, 1), (1, 0, 0), (8, 7, 7))],
)
def test_winograds_rounding_at_the_networks_own_widths_is_that_of_float32(kernel, padding, size):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((1, *size, 144))
  w = rng.standard_normal((*kernel, 144, 64)) / np.sqrt(np.prod(kernel) * 144)
  errors = {}
  with jax.enable_x64(True):
    exact = _with_gradients(x, w, (1, 1, 1), padding, convolution.DIRECT)
  x, w = x.astype(np.float32), w.astype(np.float32)
  for lowering in (convolution.DIRECT, convolution.WINOGRAD):
    rounded = _with_gradients(x, w, (1, 1, 1), padding, lowering)
    errors[lowering] = [
      np.sqrt(np.mean((a - b) ** 2) / np.mean(np.square(b)))
      for a, b in zip(rounded, exact, strict=True)
    ]
  assert max(errors[convolution.WINOGRAD]) < 1e-6
  assert all(
    ours < 4 * direct
    for ours, direct in zip(errors[convolution.WINOGRAD], errors[convolution.DIRECT], strict=True)
  )


def test_the_points_of_a_transform_give_exact_polynomial_products():
  """Mixing with A', G and B' filters exactly: checked on every pair of unit impulses."""
  for transform in (winograd.ROWS, winograd.COLUMNS):
    for position, tap in itertools.product(range(transform.products), range(3)):
      signal, kernel = np.eye(transform.products)[position], np.eye(3)[tap]
      filtered = transform.output @ ((transform.kernel @ kernel) * (transform.input @ signal))
      expected = np.correlate(signal, kernel, "valid")
      np.testing.assert_allclose(filtered, expected, atol=1e-13)


def _fused_with_gradients(x, spatial, temporal, scale, shift, fused):
  def loss(*arguments):
    if fused:
      y = convolution.fused(*arguments)
    else:
      x, spatial, temporal, scale, shift = arguments
      between = convolution.convolve(x, spatial, (1, 1, 1), (0, 1, 1), convolution.DIRECT)
      between = jax.nn.relu(between * scale + shift)
      y = convolution.convolve(between, temporal, (1, 1, 1), (1, 0, 0), convolution.DIRECT)
    return jnp.sum(jnp.sin(y)), y

  step = jax.jit(jax.value_and_grad(loss, range(5), has_aux=True))
  (_, y), gradients = step(x, spatial, temporal, scale, shift)
  return tuple(np.asarray(array) for array in (y, *gradients))


# From one row of tiles at a time to all clips at once: the numbers that divide a size differently.
@pytest.mark.parametrize(
  ("size", "tiles"),
  [
    (SIZES[0], (3, 40, 10_000)),
    pytest.param(SIZES[1], (3, 12, 40), marks=pytest.mark.slow),
    pytest.param(SIZES[2], (3, 40), marks=pytest.mark.slow),
    (SIZES[3], (3, 40, 10_000)),
  ],
)
def test_two_convolutions_at_once_are_the_two_one_after_the_other(size, tiles, monkeypatch):
  rng = np.random.default_rng(0)
  shapes = ((4, *size, 3), (1, 3, 3, 3, 5), (3, 1, 1, 5, 4), (5,), (5,))
  arguments = [rng.standard_normal(shape) / 3 for shape in shapes]
  with jax.enable_x64(True):
    expected = _fused_with_gradients(*arguments, fused=False)
    for count in tiles:
      monkeypatch.setattr(winograd, "_TILES_AT_ONCE", count)
      for ours, plain in zip(_fused_with_gradients(*arguments, fused=True), expected, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-10, err_msg=str(count))


@pytest.mark.slow
def test_in_evaluation_a_cpu_computes_two_convolutions_at_once_and_the_features_are_the_same(
  monkeypatch,
):
  monkeypatch.setattr(convolution, "_LEAST_CHANNELS", 1)
  fused, calls = convolution.fused, []
  monkeypatch.setattr(convolution, "fused", lambda *a: calls.append(a[1].shape) or fused(*a))
  rng = np.random.default_rng(0)
  features = {}
  with jax.enable_x64(True):
    numerics = video_resnet.Numerics(jnp.float64)
    trunk = video_resnet.Trunk(blocks=3, width=4, numerics=numerics, rng=rng)
    for _, node in nnx.iter_graph(trunk):
      if isinstance(node, layers.BatchNorm):
        for value in (node.scale, node.bias, node.mean, node.var):
          value[...] = jnp.asarray(rng.uniform(0.5, 1.5, value.shape))
    clips = rng.standard_normal((2, 5, 26, 18, 3))
    with target.traced_for(_devices("cpu")):
      trunk.train()
      trunk(clips)
      assert not calls
    trunk.eval()
    for backend in ("cpu", "gpu", "tpu"):
      with target.traced_for(_devices(backend)):
        features[backend] = trunk(clips)
  # Four in the first stage and the one without a stride in the second's first block.
  assert [shape[-2:] for shape in calls] == [(4, 9)] * 4 + [(8, 14)]
  np.testing.assert_allclose(features["cpu"], features["tpu"], rtol=1e-9)
  np.testing.assert_allclose(features["gpu"], features["tpu"], rtol=1e-9)


def _choose(
  channels,
  out,
  kernel,
  *,
  size=(16, 56, 56),
  strides=(1, 1, 1),
  platform="cpu",
  count=1,
  dtype=jnp.float32,
):
  x = jax.ShapeDtypeStruct((2, *size, channels), dtype)
  w = jax.ShapeDtypeStruct((*kernel, channels, out), dtype)
  padding = tuple(k // 2 for k in kernel)
  with target.traced_for(_devices(platform, count)):
    return convolution.choose(x, w, strides, padding, platform)


def test_the_lowering_follows_from_backend_and_shape():
  spatial, temporal = (1, 3, 3), (3, 1, 1)
  assert _choose(64, 144, spatial) == convolution.WINOGRAD
  assert _choose(144, 64, temporal) == convolution.WINOGRAD
  assert _choose(64, 144, spatial, dtype=jnp.bfloat16) == convolution.TWO_DIMENSIONAL
  # Few tiles for the kernels; two frames, of which none is saved.
  assert _choose(512, 1152, spatial, size=(1, 7, 7)) == convolution.TWO_DIMENSIONAL
  assert _choose(144, 64, temporal, size=(2, 56, 56)) == convolution.TWO_DIMENSIONAL
  assert _choose(8, 18, spatial) == convolution.TWO_DIMENSIONAL
  assert _choose(3, 45, (1, 7, 7), strides=(1, 2, 2), platform="tpu") == convolution.FOLDED
  assert _choose(64, 230, spatial, strides=(1, 2, 2), platform="tpu") == convolution.DIRECT
  assert _choose(64, 230, spatial, strides=(1, 2, 2)) == convolution.TWO_DIMENSIONAL
  assert _choose(64, 128, (1, 1, 1), strides=(2, 2, 2)) == convolution.POINTWISE
  assert _choose(64, 64, (3, 3, 3)) == convolution.STACKED
  assert _choose(64, 64, (3, 3, 3), platform="tpu") == convolution.DIRECT
  for kernel in (spatial, temporal, (1, 1, 1)):
    assert _choose(64, 144, kernel, platform="gpu") == convolution.TWO_DIMENSIONAL
  assert _choose(64, 144, (3, 3, 3), platform="gpu") == convolution.STACKED
  stem = {"kernel": (1, 7, 7), "strides": (1, 2, 2), "platform": "gpu"}
  assert _choose(3, 48, **stem) == convolution.SPACE_TO_DEPTH
  assert _choose(64, 48, **stem) == convolution.TWO_DIMENSIONAL
  assert _choose(64, 144, spatial, count=2) == convolution.TWO_DIMENSIONAL


def test_a_form_that_a_convolution_does_not_have_is_refused_with_those_it_has():
  x, w = _random((4, 5, 6), (3, 3, 3), np.float32)
  with pytest.raises(ValueError, match=r"no form 'winograd': take one of direct"):
    convolution.convolve(x, w, (1, 1, 1), (1, 1, 1), convolution.WINOGRAD)


def _trunk_with_gradients(devices, architecture, blocks, size, frozen, remat="none"):
  numerics = video_resnet.Numerics(jnp.float64, remat=remat, freeze_statistics=frozen)
  trunk = video_resnet.Trunk(
    architecture, blocks=blocks, width=4, numerics=numerics, rng=np.random.default_rng(0)
  )
  graphdef, params, rest = nnx.split(trunk, nnx.Param, ...)
  params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
  clips = np.random.default_rng(1).standard_normal((2, *size, 3))

  def loss(params, clips):
    model = nnx.merge(graphdef, params, jax.tree.map(jnp.array, rest))
    features = model(clips)
    statistics = nnx.state(model, nnx.BatchStat)
    return jnp.sum(jnp.sin(features)), (features, statistics)

  with target.traced_for(devices):
    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (features, statistics)), gradients = step(params, clips)
  return jax.tree.map(np.asarray, (features, statistics, gradients))


@pytest.mark.parametrize(
  ("backend", "architecture", "blocks", "size", "frozen", "remat"),
  [
    ("tpu", "r2plus1d_18", 3, (4, 17, 22), False, "none"),  # odd rows
    (
      "tpu",
      "r2plus1d_18",
      3,
      (4, 20, 18),
      False,
      "convolutions_saved",
    ),  # an odd number of columns after the stem
    ("tpu", "r2plus1d_18", 2, (4, 20, 17), True, "none"),  # ends within the fold
    ("tpu", "r3d_18", 3, (4, 12, 14), False, "none"),
    ("tpu", "mc3_18", 3, (4, 12, 13), False, "none"),
    ("tpu", "r2plus1d_34", 4, (5, 12, 20), False, "none"),  # a stage of three blocks, odd frames
    ("gpu", "r2plus1d_18", 3, (4, 17, 22), False, "blocks"),
    ("gpu", "r2plus1d_18", 1, (2, 8, 7), True, "none"),
    ("gpu", "r2plus1d_18_hara", 2, (4, 16, 18), False, "none"),
    ("gpu", "mc3_18", 3, (4, 12, 13), False, "none"),
  ],
)
def test_a_trunk_computes_on_every_backend_what_the_plain_one_does(
  backend, architecture, blocks, size, frozen, remat
):
  with jax.enable_x64(True):
    arguments = (architecture, blocks, size, frozen, remat)
    plain = _trunk_with_gradients([], *arguments)
    chosen = _trunk_with_gradients(_devices(backend), *arguments)
  for (path, expected), actual in zip(
    jax.tree.leaves_with_path(plain), jax.tree.leaves(chosen), strict=True
  ):
    name = jax.tree_util.keystr(path)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * scale, err_msg=name)


def _convolutions(jaxpr):
  """The shapes of all convolutions' inputs and kernels, within inner programs too."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "conv_general_dilated":
      yield equation.invars[0].aval.shape, equation.invars[1].aval.shape
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from _convolutions(inner)


@pytest.mark.parametrize("training", [True, False])
def test_on_a_gpu_all_convolutions_are_2_d_over_channels_in_eights(training):
  trunk = video_resnet.Trunk(
    numerics=video_resnet.Numerics(jnp.bfloat16), rng=np.random.default_rng(0)
  )
  if not training:
    trunk.eval()
  graphdef, params, rest = nnx.split(trunk, nnx.Param, ...)

  def total(params, clips):
    return nnx.merge(graphdef, params, jax.tree.map(jnp.array, rest))(clips).sum()

  clips = jax.ShapeDtypeStruct((1, 4, 32, 32, 3), jnp.bfloat16)
  with target.traced_for(_devices("gpu")):
    traced = jax.make_jaxpr(jax.grad(total) if training else total)(params, clips)
  found = list(_convolutions(traced.jaxpr))
  # 17 pairs of halves and 3 shortcuts; in training, two gradients of each but the stem's first.
  assert len(found) == (37 * 3 - 1 if training else 37)
  for shapes in found:
    assert [len(shape) for shape in shapes] == [4, 4]
  for _, kernel in found[:37]:
    assert kernel[2] % 8 == kernel[3] % 8 == 0


def test_on_a_tpu_the_fold_holds_from_the_stem_to_the_first_stride():
  trunk = video_resnet.Trunk(blocks=3, width=4, rng=np.random.default_rng(0))
  trunk.eval()
  kinds = []

  def forward(clips):
    x = trunk.stem(clips)
    kinds.append(type(x))
    for _, block in trunk.blocks():
      x = block(x)
      kinds.append(type(x))

  with target.traced_for(_devices("tpu")):
    jax.eval_shape(forward, jnp.zeros((1, 2, 16, 16, 3)))
  assert kinds[:3] == [folded.Folded] * 3
  assert not issubclass(kinds[3], folded.Folded)


def test_a_convolution_that_the_fold_does_not_cover_is_refused():
  x = folded.stem(jnp.ones((1, 2, 8, 8, 3)), jnp.ones((1, 3, 3, 3, 4)))
  with pytest.raises(ValueError, match=r"by \(1, 5, 5\).*unfold it first"):
    convolution.convolve(x, jnp.ones((1, 5, 5, 4, 4)), (1, 1, 1), (0, 2, 2))
