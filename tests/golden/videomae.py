"""Our VideoMAE with the weights that Hugging Face's ran with, and how far their outputs lie apart."""

import json
import pathlib
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from golden import reference_weights
from golden.comparison import relative_error
from hybrid_video import models
from hybrid_video.models import masking, videomae, videomae_pretraining
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
  depth = len(model.attention.blocks)
  if kind == "pretraining":
    blocks = len(model.decoder.blocks)
    return videomae_names.table(kind, names, depth=depth, decoder_depth=blocks)
  return videomae_names.table("classifier", names, depth=depth, pool=model.pool)


def filled(model: nnx.Module, kind: str, state_dict: dict[str, np.ndarray]) -> nnx.Module:
  """The model with exactly these parameters, named as Hugging Face does, in evaluation mode."""
  graphdef, params, _ = models.split(model)
  names = table(kind, videomae_names.HUGGING_FACE, model)
  model = nnx.merge(graphdef, porting.port(state_dict, names, params, {}).params)
  model.eval()
  return model


def hugging_face(kind: str) -> dict[str, np.ndarray]:
  """A tiny state dict with Hugging Face's keys: "classifier", "first_token" or "pretraining"."""
  with np.load(GOLDEN) as stored:
    return reference_weights.state_dict(json.loads(str(stored[f"tiny_{kind}_shapes"])))


def as_original(state_dict: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
  """Renames Hugging Face's keys to the original code's, by the table of its conversion script."""
  trunk = "encoder." if kind == "pretraining" else ""
  substitutions = [
    (r"^videomae\.embeddings\.patch_embeddings\.projection", f"{trunk}patch_embed.proj"),
    (r"^videomae\.encoder\.layer", f"{trunk}blocks"),
    (r"^videomae\.layernorm", f"{trunk}norm"),
    (r"^decoder\.decoder_layers", "decoder.blocks"),
    (r"^classifier", "head"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"attention\.attention\.(q|v)_bias", r"attn.\1_bias"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"attention\.attention\.query", "attn.qkv"),
  ]
  renamed = {}
  for key, array in state_dict.items():
    if key.endswith((".key.weight", ".value.weight")):
      continue
    if key.endswith(".query.weight"):
      array = np.vstack(
        [state_dict[key.replace("query", part)] for part in ("query", "key", "value")]
      )
    for pattern, replacement in substitutions:
      key = re.sub(pattern, replacement, key)
    renamed[key] = array
  return renamed


def as_transformers_5(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Renames Hugging Face's keys to those of transformers 5, whose first releases biased the keys."""
  renamed = {}
  for key, array in state_dict.items():
    renamed[key.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias")] = array
    if key.endswith(".q_bias"):
      bias = key.replace(".q_bias", ".key.bias")
      renamed[bias] = reference_weights.value(bias, array.shape)
  return renamed


def as_mmaction(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Renames the original code's keys of a classifier to mmaction2's, which saves positions too."""
  renamed = {}
  for key, array in state_dict.items():
    for old, new in (
      ("patch_embed.proj", "patch_embed.projection"),
      ("mlp.fc1", "mlp.layers.0.0"),
      ("mlp.fc2", "mlp.layers.1"),
    ):
      key = key.replace(old, new)
    head, _, rest = key.partition(".")
    renamed[f"cls_head.fc_cls.{rest}" if head == "head" else f"backbone.{key}"] = array
  tokens = int(np.prod(videomae.token_grid(TINY["frames"], TINY["image_size"], TINY["image_size"])))
  positions = videomae.sinusoid_positions(tokens, TINY["width"])
  return {**renamed, "backbone.pos_embed": positions[None]}


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
  if kind == "pretraining":
    model = videomae_pretraining.VideoMAEForPreTraining(
      **options,
      **decoder_options,
      layer_norm_epsilon=epsilon,
      decoder_norm_epsilon=1e-5,
      rng=np.random.default_rng(0),
    )
  else:
    model = videomae.VideoMAE(
      5,
      **options,
      pool=videomae.FIRST if kind == "first_token" else videomae.MEAN,
      layer_norm_epsilon=epsilon,
      head_norm_epsilon=1e-5,
      rng=np.random.default_rng(0),
    )
  outputs = {key[len(name) + 1 :]: v for key, v in stored.items() if key.startswith(name)}
  return filled(model, kind, state_dict), outputs


def reference_clips(name: str) -> jax.Array:
  options = REFERENCES[name][0]
  size = options["image_size"]
  return jnp.asarray(reference_weights.clips((2, options["frames"], size, size, 3)))


def classifier_errors(name: str, kind: str = "classifier") -> dict[str, float]:
  """Relative errors of the `logits` of a configuration in `REFERENCES`.

  Args:
    name: of the configuration.
    kind: "classifier", of the mean token, or "first_token".
  """
  model, expected = reference(name, kind)
  logits = jax.jit(lambda clips: model(clips))(reference_clips(name))
  key = "logits" if kind == "classifier" else f"{kind}_logits"
  return {"logits": relative_error(logits, expected[key])}


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
    targets = masking.patch_targets(pixels, masked)
    return predictions, masking.clip_losses(predictions, targets).mean()

  predictions, loss = run(clips, visible, masked)
  norms = jnp.linalg.norm(predictions, axis=-1)
  return {
    "predictions": relative_error(
      predictions[:, :: int(expected["step"])], expected["predictions"]
    ),
    "norms": relative_error(norms, expected["norms"]),
    "loss": relative_error(loss, expected["loss"]),
  }
