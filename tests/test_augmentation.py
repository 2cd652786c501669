"""Augmentation against Pillow, NumPy and the counts that its probabilities promise."""

import colorsys
import functools
import math
import re

from conftest import REAL_CLIPS
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance, ImageOps
import pytest
from video_writing import decoded

from hybrid_video import augmentation, sharding
from hybrid_video.augmentation import colour, erasing, mixing, randaugment
from hybrid_video.settings import SettingError

CLASSES = 7
ALL_ON = {
  "label_smoothing": 0.1,
  "mixup": 0.8,
  "cutmix": 1.0,
  "brightness": 0.4,
  "contrast": 0.4,
  "saturation": 0.4,
  "hue": 0.1,
  "randaugment_layers": 4,
  "erasing": 0.5,
}


def _normalize(clips):
  return clips.astype(jnp.float32) / 255.0 - 0.5


@pytest.fixture(scope="module")
def frames():
  """Real frames, higher than wide, some of one colour or few levels, and noise: `[T, H, W, 3]`."""
  real = []
  for path in sorted(REAL_CLIPS.glob("*.avi")):
    real += decoded(path, 112, 96, stretch=True).frames[0:40:20]
  noise = np.random.default_rng(0).integers(0, 256, (1, 112, 96, 3), np.uint8)
  flat = np.full((1, 112, 96, 3), (0, 77, 255), np.uint8)
  return np.concatenate([real, noise, noise // 3 + 40, flat, noise // 128 * 9])


@pytest.fixture(scope="module")
def apply():
  """RandAugment of one layer, compiled once for all operations."""
  names = list(randaugment.OPERATIONS)
  compiled = jax.jit(randaugment.apply)

  def one(clip, name, share, sign):
    arguments = jnp.array([names.index(name)]), jnp.array([share]), jnp.array([float(sign)])
    return np.asarray(compiled(clip, *arguments))

  return one


def _affine(numbers, picture):
  return picture.transform(
    picture.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR, fillcolor=(128,) * 3
  )


# At 0.7 of the largest magnitude, timm's "increasing" set by its own names and ranges.
REFERENCES = {
  "AutoContrast": lambda picture, sign: ImageOps.autocontrast(picture),
  "Equalize": lambda picture, sign: ImageOps.equalize(picture),
  "Invert": lambda picture, sign: ImageOps.invert(picture),
  "Rotate": lambda picture, sign: picture.rotate(
    sign * 21, Image.Resampling.BILINEAR, fillcolor=(128,) * 3
  ),
  "Posterize": lambda picture, sign: ImageOps.posterize(picture, 2),
  "Solarize": lambda picture, sign: ImageOps.solarize(picture, 77),
  "SolarizeAdd": lambda picture, sign: picture.point(
    [min(255, i + 77) if i < 128 else i for i in range(256)] * 3
  ),
  "Color": lambda picture, sign: ImageEnhance.Color(picture).enhance(1 + sign * 0.63),
  "Contrast": lambda picture, sign: ImageEnhance.Contrast(picture).enhance(1 + sign * 0.63),
  "Brightness": lambda picture, sign: ImageEnhance.Brightness(picture).enhance(1 + sign * 0.63),
  "Sharpness": lambda picture, sign: ImageEnhance.Sharpness(picture).enhance(1 + sign * 0.63),
  "ShearX": lambda picture, sign: _affine((1, sign * 0.21, 0, 0, 1, 0), picture),
  "ShearY": lambda picture, sign: _affine((1, 0, 0, sign * 0.21, 1, 0), picture),
  "TranslateX": lambda picture, sign: _affine(
    (1, 0, sign * 0.315 * picture.width, 0, 1, 0), picture
  ),
  "TranslateY": lambda picture, sign: _affine(
    (1, 0, 0, 0, 1, sign * 0.315 * picture.height), picture
  ),
}
WHOLE_NUMBERS = {"Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"}


def test_randaugment_has_the_fifteen_operations_of_the_increasing_set():
  assert list(randaugment.OPERATIONS) == list(REFERENCES)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", list(REFERENCES))
def test_an_operation_is_what_pillow_makes_of_each_frame(name, sign, frames, apply):
  expected = np.stack(
    [np.asarray(REFERENCES[name](Image.fromarray(frame), sign)) for frame in frames]
  )
  result = apply(frames, name, 0.7, sign)
  assert result.dtype == np.uint8
  differences = np.abs(result.astype(int) - expected)
  assert differences.max() <= (name not in WHOLE_NUMBERS)
  assert (differences > 0).mean() < 0.02
  assert (expected != frames).any()


@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0, 1.9, 3.0])
@pytest.mark.parametrize(
  ("adjust", "reference"),
  [
    (colour.adjust_brightness, ImageEnhance.Brightness),
    (colour.adjust_contrast, ImageEnhance.Contrast),
    (colour.adjust_saturation, ImageEnhance.Color),
    (colour.adjust_sharpness, ImageEnhance.Sharpness),
  ],
)
def test_adjustments_are_pillows_at_any_factor(adjust, reference, factor, frames):
  expected = [np.asarray(reference(Image.fromarray(f)).enhance(factor)) for f in frames]
  result = np.asarray(adjust(frames, factor)).astype(int)
  assert np.abs(result - expected).max() <= 1
  assert (result != expected).mean() < 1e-3


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterizing_keeps_the_highest_bits(bits, frames):
  expected = [np.asarray(ImageOps.posterize(Image.fromarray(f), bits)) for f in frames]
  np.testing.assert_array_equal(colour.posterize(frames, bits), expected)


@pytest.mark.parametrize(("name", "share"), [("Posterize", 0.0), ("Solarize", 0.0)])
def test_no_magnitude_of_posterize_keeps_four_bits_and_of_solarize_everything(
  name, share, frames, apply
):
  expected = frames & 0xF0 if name == "Posterize" else frames
  np.testing.assert_array_equal(apply(frames, name, share, 1), expected)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.07, 0.25, 0.5])
def test_hues_turn_as_in_colorsys(turn):
  rng = np.random.default_rng(0)
  colours = rng.integers(0, 256, (2000, 3), np.uint8)
  colours[:200, 1] = colours[:200, 0]  # ties and greys
  colours[100:200, 2] = colours[100:200, 0]
  expected = []
  for levels in colours / 255:
    hue, saturation, value = colorsys.rgb_to_hsv(*levels)
    expected.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
  result = np.asarray(colour.adjust_hue(colours.reshape(1, 50, 40, 3), turn)).reshape(-1, 3)
  assert np.abs(result - 255 * np.array(expected)).max() < 0.501


def test_a_third_of_the_circle_moves_every_channel_on():
  clip = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8)
  np.testing.assert_array_equal(colour.adjust_hue(clip, 1 / 3), clip[..., [2, 0, 1]])


def test_layers_follow_one_another_and_undrawn_ones_do_nothing(frames):
  names = list(randaugment.OPERATIONS)
  indices = jnp.array([names.index("SolarizeAdd"), -1, names.index("Invert")])
  result = randaugment.apply(frames, indices, jnp.full(3, 0.7), jnp.ones(3))
  added = np.where(frames < 128, np.minimum(frames.astype(int) + 77, 255), frames)
  np.testing.assert_array_equal(result, 255 - added)


def _off_by(count, trials, probability):
  return abs(count - trials * probability) / math.sqrt(trials * probability * (1 - probability))


def test_operations_magnitudes_and_signs_are_drawn_as_often_as_they_should_be():
  clips, layers = 4000, 4
  keys = jax.random.split(jax.random.key(0), clips)
  draw = functools.partial(randaugment.draw, layers=layers, magnitude=7.0, std=0.5, probability=0.5)
  indices, shares, signs = (np.asarray(drawn).ravel() for drawn in jax.vmap(draw)(keys))
  trials = clips * layers
  assert _off_by((indices >= 0).sum(), trials, 0.5) < 4
  for index in range(15):
    assert _off_by((indices == index).sum(), trials, 0.5 / 15) < 4
  assert _off_by((signs > 0).sum(), trials, 0.5) < 4
  assert set(np.unique(signs)) == {-1, 1}
  assert abs(shares.mean() - 0.7) < 4 * 0.05 / math.sqrt(trials)
  assert abs(shares.std() - 0.05) < 4 * 0.05 / math.sqrt(2 * trials)
  _, strong, _ = jax.vmap(functools.partial(draw, magnitude=10.0))(keys)
  assert float(strong.max()) == 1.0


@functools.cache
def _compiled(settings, devices):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  made = augmentation.make_augment(settings, mesh=mesh, normalize=_normalize, num_classes=CLASSES)
  return made and jax.jit(made), mesh


def _augment(settings, devices=1):
  return _compiled(augmentation.AugmentationSettings(**settings), devices)


def _run(settings, clips, devices=1, seed=0):
  augment, mesh = _augment(settings, devices)
  labels = np.arange(len(clips), dtype=np.int32) % CLASSES
  batch = sharding.put_batch({"clips": clips, "labels": labels}, mesh)
  clips, targets = augment(batch["clips"], batch["labels"], jax.random.key(seed))
  return np.asarray(clips), None if targets is None else np.asarray(targets)


@pytest.fixture(scope="module")
def still(frames):
  """Eight clips that do not move, each of another frame: `[8, T, H, W, 3]`."""
  return np.repeat(frames[:8, None, ::3, ::3], 3, axis=1)


def test_every_frame_of_a_clip_is_treated_alike(still):
  settings = {k: v for k, v in ALL_ON.items() if k != "erasing"}
  for seed in range(3):
    result, _ = _run(settings, still, seed=seed)
    np.testing.assert_array_equal(result, np.repeat(result[:, :1], 3, axis=1))
    assert (result != _normalize(still)).mean() > 0.2


def test_clips_of_one_batch_are_treated_differently(still):
  same = np.repeat(still[:1], 8, axis=0)
  result, _ = _run({"brightness": 0.4, "hue": 0.1}, same)
  assert len({row.tobytes() for row in result}) == 8


def test_the_number_of_devices_changes_nothing(still):
  one, one_targets = _run(ALL_ON, still)
  for devices in (2, 4):
    result, targets = _run(ALL_ON, still, devices)
    np.testing.assert_allclose(result, one, atol=1e-6)
    np.testing.assert_allclose(targets, one_targets, atol=1e-6)


def test_a_clip_depends_on_its_row_and_on_no_other_clip(still):
  settings = {k: v for k, v in ALL_ON.items() if k not in ("mixup", "cutmix")}
  result, _ = _run(settings, still)
  other = still.copy()
  other[[0, 1, 2, 4, 5, 6, 7]] = 0
  np.testing.assert_array_equal(_run(settings, other)[0][3], result[3])


def test_the_same_key_draws_the_same_and_another_key_something_else(still):
  first, first_targets = _run(ALL_ON, still, seed=1)
  again, again_targets = _run(ALL_ON, still, seed=1)
  np.testing.assert_array_equal(again, first)
  np.testing.assert_array_equal(again_targets, first_targets)
  assert (_run(ALL_ON, still, seed=2)[0] != first).mean() > 0.2


def test_no_device_gathers_the_batch(still):
  augment, mesh = _augment(ALL_ON, 4)
  labels = np.zeros(len(still), np.int32)
  batch = sharding.put_batch({"clips": still, "labels": labels}, mesh)
  compiled = augment.lower(batch["clips"], batch["labels"], jax.random.key(0)).compile()
  # Partners are passed on between pairs of devices; clips go nowhere else.
  assert re.findall(r"(?:all-gather|all-to-all|all-reduce)[-\w]*\(", compiled.as_text()) == []
  assert compiled.output_shardings[0].is_equivalent_to(sharding.batch_sharding(mesh), 5)


def test_by_default_nothing_is_done():
  assert _augment({})[0] is None
  # Settings without effect are no reason for a function either.
  silent = {"mixup": 0.8, "mix_probability": 0.0, "hue": 0.1, "jitter_probability": 0.0}
  assert _augment(silent)[0] is None


def test_smoothing_alone_only_normalizes_clips(still):
  result, targets = _run({"label_smoothing": 0.14}, still)
  np.testing.assert_allclose(result, still / 255.0 - 0.5, atol=1e-6)
  expected = np.full((8, CLASSES), 0.02)
  expected[np.arange(8), np.arange(8) % CLASSES] = 0.88
  np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_labels_stay_hard_when_only_clips_change(still):
  assert _run({"hue": 0.1}, still)[1] is None


def test_mixup_mixes_clips_and_labels_by_the_same_share(still):
  shares = []
  for seed in range(4):
    result, targets = _run({"mixup": 0.8}, still[:6], seed=seed)
    clips = still[:6] / 255.0 - 0.5
    own = targets[0, 0]
    np.testing.assert_allclose(result, own * clips + (1 - own) * clips[::-1], atol=1e-6)
    hard = np.eye(CLASSES)[:6]
    np.testing.assert_allclose(targets, own * hard + (1 - own) * hard[::-1], atol=1e-6)
    shares.append(own)
  assert len(set(shares)) == 4 and min(shares) >= 0 and max(shares) <= 1


def test_cutmix_labels_are_shares_of_pixels():
  # Each clip has its own level, so that every pixel shows where it comes from.
  clips = np.broadcast_to(
    np.arange(6, dtype=np.uint8)[:, None, None, None, None] * 40, (6, 2, 25, 33, 3)
  )
  boxes = 0
  for seed in range(12):
    result, targets = _run({"cutmix": 1.0}, clips, seed=seed)
    plain = np.asarray(_normalize(clips))
    own = np.isclose(result, plain, atol=1e-5)
    assert (own | np.isclose(result, plain[::-1], atol=1e-5)).all()
    for row in range(6):
      assert targets[row, row] == pytest.approx(own[row].mean(), abs=1e-6)
      assert targets[row, 5 - row] == pytest.approx(1 - own[row].mean(), abs=1e-6)
    inside = ~own[0, 0, :, :, 0]
    if inside.any():
      boxes += 1
      rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
      assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
      assert (own == own[:1, :1, :, :, :1]).all()
  assert boxes > 6


def test_mixed_and_smoothed_labels_add_up_to_one(still):
  for seed in range(4):
    _, targets = _run(ALL_ON, still, seed=seed)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    assert targets.min() >= 0.1 / CLASSES - 1e-6


def _weights(draws, size=(12, 16), **settings):
  settings = {"mixup": 0.0, "cutmix": 0.0, "probability": 1.0, "switch": 0.5, **settings}
  draw = functools.partial(mixing.draw_weights, height=size[0], width=size[1], **settings)
  return np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), draws)))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_mixups_share_has_the_moments_of_its_beta_distribution(alpha):
  shares = _weights(4000, size=(1, 1), mixup=alpha).ravel()
  variance = 1 / (4 * (2 * alpha + 1))
  assert abs(shares.mean() - 0.5) < 4 * math.sqrt(variance / 4000)
  squares = (shares - 0.5) ** 2
  assert abs(squares.mean() - variance) < 4 * squares.std() / math.sqrt(4000)


def test_cutmix_keeps_what_a_numpy_draw_of_clipped_boxes_keeps():
  rng = np.random.default_rng(1)
  expected = []
  for _ in range(4000):
    side = math.sqrt(1 - rng.beta(1, 1))
    tall, wide = int(40 * side) // 2, int(56 * side) // 2
    y, x = rng.integers(40), rng.integers(56)
    rows = min(y + tall, 40) - max(y - tall, 0)
    columns = min(x + wide, 56) - max(x - wide, 0)
    expected.append(1 - rows * columns / (40 * 56))
  result = _weights(4000, size=(40, 56), cutmix=1.0).mean((1, 2))
  error = math.hypot(np.std(expected), result.std()) / math.sqrt(4000)
  assert abs(result.mean() - np.mean(expected)) < 4 * error


def test_mixing_and_its_kind_happen_as_often_as_they_should():
  weights = _weights(4000, mixup=0.8, cutmix=0.8, probability=0.6, switch=0.25)
  # Within a mixed batch, MixUp's share lies between 0 and 1 everywhere.
  mixup = ((weights > 0) & (weights < 1)).all((1, 2))
  assert _off_by(mixup.sum(), 4000, 0.6 * 0.75) < 4
  unmixed = (weights == 1).all((1, 2))
  # A box of no pixel leaves a batch unmixed too: at 12 x 16, one of less than 2 x 2.
  boxed = ~mixup & ~unmixed
  assert boxed.sum() > 0.6 * 0.25 * 4000 * 0.8
  assert _off_by(boxed.sum() + unmixed.sum(), 4000, 0.4 + 0.6 * 0.25) < 4


def _boxes(area, aspect, count=4000):
  draw = functools.partial(erasing.draw_box, height=100, width=120, area=area, aspect=aspect)
  return [np.asarray(v) for v in jax.vmap(draw)(jax.random.split(jax.random.key(3), count))]


def test_erased_boxes_have_the_areas_and_aspects_asked_for():
  # Ranges in which every box fits, so that nothing is drawn again.
  top, left, tall, wide = _boxes((0.05, 0.2), (0.5, 2.0))
  area, aspect = tall * wide / 12000, np.log(tall / wide)
  assert abs(area.mean() - 0.125) < 4 * 0.15 / math.sqrt(12 * 4000) + 1e-3
  assert 0.045 < area.min() < 0.055 and 0.195 < area.max() < 0.205
  span = 2 * math.log(2)
  assert abs(aspect.mean()) < 4 * span / math.sqrt(12 * 4000)
  assert abs(aspect.std() - span / math.sqrt(12)) < 0.02
  assert top.min() == 0 and left.min() == 0
  assert (top + tall).max() == 100 and (left + wide).max() == 120


def test_a_box_that_never_fits_erases_nothing():
  _, _, tall, wide = _boxes((1.0, 1.0), (1.0, 1.0), count=20)
  assert not tall.any() and not wide.any()


def test_erasing_hits_the_asked_share_of_clips_with_one_box_in_all_frames():
  clip = jnp.ones((4, 20, 24, 3))
  erase = functools.partial(
    erasing.erase, clip, probability=0.25, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3), noise=True
  )
  result = np.asarray(jax.vmap(erase)(jax.random.split(jax.random.key(0), 1000)))
  changed = result != 1
  hit = changed.any((1, 2, 3, 4))
  assert _off_by(hit.sum(), 1000, 0.25) < 4
  boxes = changed[hit]
  assert (boxes == boxes[:, :1, :, :, :1]).all()
  for box in boxes[:, 0, :, :, 0]:
    rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
    assert box.sum() == len(rows) * len(columns)
  noise = result[changed]
  assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
  # Fresh noise in every frame.
  assert (result[hit][:, 0] != result[hit][:, 1]).any((1, 2, 3)).all()


def test_erasing_without_noise_leaves_the_mean_colour(still):
  result, _ = _run({"erasing": 1.0, "erasing_noise": False}, still)
  plain = _normalize(still)
  erased = ~np.isclose(result, plain, atol=1e-5)
  assert (result[erased] == 0).all()
  assert erased.any((1, 2, 3, 4)).all()


def test_jitter_draws_factors_within_its_strengths():
  clip = np.full((1, 4, 4, 3), 100, np.uint8)
  settings = augmentation.AugmentationSettings(brightness=0.4, jitter_probability=0.8)
  jitter = jax.vmap(functools.partial(augmentation.jitter, clip, settings=settings))
  levels = np.asarray(jitter(jax.random.split(jax.random.key(0), 2000)))[:, 0, 0, 0, 0]
  assert 60 <= levels.min() < 62 and 138 < levels.max() <= 140
  # Truncation takes half a level on average; one level of 81 comes from factors of about 1.
  untouched = 0.2 + 0.8 / 81
  assert _off_by((levels == 100).sum(), 2000, untouched) < 4
  moved = levels[levels != 100]
  assert abs(moved.mean() - 99.5) < 4 * moved.std() / math.sqrt(len(moved))


def test_jitter_applies_its_adjustments_in_random_order(monkeypatch):
  monkeypatch.setattr(colour, "adjust_brightness", lambda clip, factor: clip + jnp.uint8(1))
  monkeypatch.setattr(colour, "adjust_contrast", lambda clip, factor: clip * jnp.uint8(2))
  settings = augmentation.AugmentationSettings(brightness=0.4, contrast=0.4)
  clip = jnp.full((1, 1, 1, 3), 10, jnp.uint8)
  jitter = jax.vmap(functools.partial(augmentation.jitter, clip, settings=settings))
  levels = np.asarray(jitter(jax.random.split(jax.random.key(0), 400)))[:, 0, 0, 0, 0]
  assert set(levels) == {21, 22}
  assert _off_by((levels == 21).sum(), 400, 0.5) < 4


def test_no_strength_leaves_a_clip_as_it_is(still):
  result, _ = _run({"erasing": 1e-9, "hue": 1e-9, "contrast": 1e-9}, still)
  np.testing.assert_allclose(result, _normalize(still), atol=1.01 / 255)


@pytest.mark.parametrize(
  ("name", "value", "expected"),
  [
    ("label_smoothing", 1.5, "a finite number of 0 or more up to 1"),
    ("mixup", -0.1, "a finite number of 0 or more"),
    ("cutmix", math.inf, "a finite number of 0 or more"),
    ("mix_switch", math.nan, "a finite number of 0 or more up to 1"),
    ("hue", 0.6, "a finite number of 0 or more up to 0.5"),
    ("randaugment_magnitude", 11.0, "a finite number of 0 or more up to 10"),
    ("randaugment_layers", 1.5, "whole"),
    ("erasing_min_area", 0.5, "erasing_max_area, 0.333"),
    ("erasing_min_area", 0.0, "a finite number above 0 up to 1"),
    ("erasing_aspect", 0.0, "a finite number above 0 up to 1"),
  ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(name, value, expected):
  with pytest.raises(SettingError) as error:
    augmentation.AugmentationSettings(**{name: value})
  assert f"--config.augmentation.{name} is {value:g}: expected " in str(error.value)
  assert expected in str(error.value)
