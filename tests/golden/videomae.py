"""Our VideoMAE with the weights that Hugging Face's ran with, and how far their outputs lie apart."""

import json
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from golden import reference_weights
from golden.comparison import relative_error
from hybrid_video import models
from hybrid_video.models import videomae, videomae_pretraining
from hybrid_video.weights import porting, videomae_names

GOLDEN = pathlib.Path(__file__).parent / "videomae.npz"
SMALL_CLIP = {"frames": 4, "image_size": 32}
TINY = {**SMALL_CLIP, "width": 48, "depth": 2, "heads": 3}
TINY_DECODER = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
# Hugging Face takes the blocks' epsilon from its configuration, and PyTorch's default elsewhere.
REFERENCES = {
  "tiny": (TINY, TINY_DECODER, 1e-12),
  "small": (
    {"size": "small", "frames": 16, "image_size": 64, "depth": 3},
    {"decoder_depth": 2},
    1e-6,
  ),
}


def flat(model: nnx.Module) -> dict[tuple[str, ...], jax.Array]:
  leaves = jax.tree.leaves_with_path(models.split(model)[1])
  return {tuple(part.key for part in path): leaf for path, leaf in leaves}


def table(kind: str, names: videomae_names.Names, model: nnx.Module) -> porting.Table:
  """The names of a model's weights."""
  blocks = len(model.decoder.blocks) if kind == "pretraining" else 0
  depth = len(model.attention.blocks)
  return videomae_names.table(kind, names, depth=depth, decoder_depth=blocks)


def filled(model: nnx.Module, kind: str, state_dict: dict[str, np.ndarray]) -> nnx.Module:
  """The model with exactly these parameters, named as Hugging Face does, in evaluation mode."""
  graphdef, params, _ = models.split(model)
  names = table(kind, videomae_names.HUGGING_FACE, model)
  model = nnx.merge(graphdef, porting.port(state_dict, names, params, {}).params)
  model.eval()
  return model


def indices(mask: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """The visible tokens `[B, V]` and the masked ones `[B, M]` of a mask, bool `[B, N]`."""
  rows = [jnp.array([np.flatnonzero(row == hidden) for row in mask]) for hidden in (False, True)]
  return rows[0], rows[1]


def reference(name: str, kind: str) -> tuple[nnx.Module, dict[str, np.ndarray]]:
  """Our model with the reference's weights, and the reference's outputs."""
  with np.load(GOLDEN) as golden:
    stored = dict(golden)
  options, decoder_options, epsilon = REFERENCES[name]
  state_dict = reference_weights.state_dict(json.loads(str(stored[f"{name}_{kind}_shapes"])))
  if kind == "classifier":
    model = videomae.VideoMAE(
      5, **options, layer_norm_epsilon=epsilon, head_norm_epsilon=1e-5, rng=np.random.default_rng(0)
    )
  else:
    model = videomae_pretraining.VideoMAEForPreTraining(
      **options,
      **decoder_options,
      layer_norm_epsilon=epsilon,
      decoder_norm_epsilon=1e-5,
      rng=np.random.default_rng(0),
    )
  outputs = {key[len(name) + 1 :]: v for key, v in stored.items() if key.startswith(name)}
  return filled(model, kind, state_dict), outputs


def reference_clips(name: str) -> jax.Array:
  options = REFERENCES[name][0]
  size = options["image_size"]
  return jnp.asarray(reference_weights.clips((2, options["frames"], size, size, 3)))


def classifier_errors(name: str) -> dict[str, float]:
  """Relative errors of the `logits` of a configuration in `REFERENCES`."""
  model, expected = reference(name, "classifier")
  logits = jax.jit(lambda clips: model(clips))(reference_clips(name))
  return {"logits": relative_error(logits, expected["logits"])}


def pretraining_errors(name: str) -> dict[str, float]:
  """Relative errors of `predictions`, their `norms` and the `loss` under the same mask."""
  model, expected = reference(name, "pretraining")
  visible, masked = indices(expected["mask"])
  clips = reference_clips(name)

  @jax.jit
  def run(clips: jax.Array, visible: jax.Array, masked: jax.Array) -> tuple[jax.Array, jax.Array]:
    predictions = model(clips, visible, masked)
    # The reference undoes ImageNet's normalization.
    pixels = clips * jnp.array(videomae.IMAGENET_STD) + jnp.array(videomae.IMAGENET_MEAN)
    targets = videomae_pretraining.patch_targets(pixels, masked)
    return predictions, videomae_pretraining.clip_losses(predictions, targets).mean()

  predictions, loss = run(clips, visible, masked)
  norms = jnp.linalg.norm(predictions, axis=-1)
  return {
    "predictions": relative_error(
      predictions[:, :: int(expected["step"])], expected["predictions"]
    ),
    "norms": relative_error(norms, expected["norms"]),
    "loss": relative_error(loss, expected["loss"]),
  }
