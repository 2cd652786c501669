"""The small models that published recipes are run on, by PyTorch and by ours: names, shapes and losses.

Both sides import this: `xp` is `torch` for the one and `jax.numpy` for the other. The VideoMAE is one in small,
under the names of the original code and ours; what a recipe does to a parameter follows from its name.
"""

from typing import Any

import numpy as np

from golden import optimizer_cases

BATCH, TOKENS, VISIBLE, PATCH, WIDTH, DEPTH, CLASSES = 6, 5, 2, 7, 4, 2, 5


def _linear(ours: str, theirs: str, fan_in: int, fan_out: int, bias: bool = True) -> dict:
  rows = {f"{ours}/kernel": (f"{theirs}.weight", (fan_in, fan_out))}
  return {**rows, **({f"{ours}/bias": (f"{theirs}.bias", (fan_out,))} if bias else {})}


def _norm(ours: str, theirs: str) -> dict:
  return {
    f"{ours}/scale": (f"{theirs}.weight", (WIDTH,)),
    f"{ours}/bias": (f"{theirs}.bias", (WIDTH,)),
  }


def _block(ours: str, theirs: str) -> dict:
  return {
    **_norm(f"{ours}/norm1", f"{theirs}.norm1"),
    **_linear(f"{ours}/attn/qkv", f"{theirs}.attn.qkv", WIDTH, 3 * WIDTH, bias=False),
    f"{ours}/attn/q_bias": (f"{theirs}.attn.q_bias", (WIDTH,)),
    f"{ours}/attn/v_bias": (f"{theirs}.attn.v_bias", (WIDTH,)),
    **_linear(f"{ours}/attn/proj", f"{theirs}.attn.proj", WIDTH, WIDTH),
    **_norm(f"{ours}/norm2", f"{theirs}.norm2"),
    **_linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.fc1", WIDTH, 2 * WIDTH),
    **_linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.fc2", 2 * WIDTH, WIDTH),
  }


def _encoder(trunk: str) -> dict:
  rows = _linear("attention/patch_embed", f"{trunk}patch_embed.proj", PATCH, WIDTH)
  for i in range(DEPTH):
    rows |= _block(f"attention/blocks/{i}", f"{trunk}blocks.{i}")
  return rows


# By our path: the original code's name, and the shape as ours has it.
CLASSIFIER = {
  **_encoder(""),
  **_norm("head/norm", "fc_norm"),
  **_linear("head/linear", "head", WIDTH, CLASSES),
}
PRETRAINING = {
  **_encoder("encoder."),
  **_norm("attention/norm", "encoder.norm"),
  **_linear("decoder/embed", "encoder_to_decoder", WIDTH, WIDTH, bias=False),
  "decoder/mask_token": ("mask_token", (1, 1, WIDTH)),
  **_block("decoder/blocks/0", "decoder.blocks.0"),
  **_norm("decoder/norm", "decoder.norm"),
  **_linear("decoder/head", "decoder.head", WIDTH, PATCH),
}
# The recipes for other networks give every parameter the same; this one has names of all our kinds.
PLAIN = {path: (path, shape) for path, shape in optimizer_cases.SHAPES.items()}
# By recipe: the model, and steps of an epoch.
MODELS = {
  "masked_pretraining": (PRETRAINING, 1),
  "videomae_fine_tuning": (CLASSIFIER, 2),
  "torchvision": (PLAIN, 2),
  "ig65m": (PLAIN, 2),
  "bert": (PLAIN, 1),
}
# Clips a step where the rate follows from them, other than the recipe's.
BATCH_SIZES = {"masked_pretraining": 96, "videomae_fine_tuning": 128}


def batches(recipe: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Inputs of every step, `[steps, B, ...]` in float64, and labels `[steps, B]`."""
  rng = np.random.default_rng(3)
  is_plain = MODELS[recipe][0] is PLAIN
  shape = (steps, BATCH, 4) if is_plain else (steps, BATCH, TOKENS, PATCH)
  return rng.standard_normal(shape), optimizer_cases.labels(rng, shape[:2])


def losses(xp: Any, recipe: str, params: dict[str, Any], inputs: Any, targets: Any) -> Any:
  """The loss of each row, `[B]`.

  Args:
    xp: the library.
    recipe: one of `MODELS`.
    params: by our paths.
    inputs: `[B, 4]`, or patches `[B, TOKENS, PATCH]`.
    targets: labels as shares, `[B, CLASSES]`; pretraining does not read them.
  """
  model, _ = MODELS[recipe]
  if model is PLAIN:
    return optimizer_cases.run_model(xp, params, xp.zeros(6), inputs, targets)[0]
  places = xp.asarray(np.sin(np.arange(TOKENS * WIDTH)).reshape(TOKENS, WIDTH))
  seen = TOKENS if model is CLASSIFIER else VISIBLE
  x = _affine(params, "attention/patch_embed", inputs[:, :seen]) + places[:seen]
  for i in range(DEPTH):
    x = _through(xp, params, f"attention/blocks/{i}", x)
  if model is CLASSIFIER:
    logits = _affine(params, "head/linear", _normed(xp, params, "head/norm", x.mean(1)))
    return xp.log(xp.exp(logits).sum(-1)) - (logits * targets).sum(-1)
  x = _normed(xp, params, "attention/norm", x) @ params["decoder/embed/kernel"] + places[:seen]
  queries = xp.zeros_like(inputs[:, seen:, :WIDTH]) + params["decoder/mask_token"] + places[seen:]
  x = _through(xp, params, "decoder/blocks/0", xp.concatenate([x, queries], 1))
  x = _normed(xp, params, "decoder/norm", x[:, seen:])
  return ((_affine(params, "decoder/head", x) - inputs[:, seen:]) ** 2).mean(-1).mean(-1)


def _affine(params: dict[str, Any], name: str, x: Any) -> Any:
  return x @ params[f"{name}/kernel"] + params[f"{name}/bias"]


def _normed(xp: Any, params: dict[str, Any], name: str, x: Any) -> Any:
  x = x - x.mean(-1)[..., None]
  x = x / xp.sqrt((x**2).mean(-1)[..., None] + 1e-6)
  return x * params[f"{name}/scale"] + params[f"{name}/bias"]


def _through(xp: Any, params: dict[str, Any], name: str, x: Any) -> Any:
  projected = _normed(xp, params, f"{name}/norm1", x) @ params[f"{name}/attn/qkv/kernel"]
  query = projected[..., :WIDTH] + params[f"{name}/attn/q_bias"]
  key = projected[..., WIDTH : 2 * WIDTH]
  value = projected[..., 2 * WIDTH :] + params[f"{name}/attn/v_bias"]
  shares = xp.exp(query @ key.mT / WIDTH**0.5)
  read = (shares / shares.sum(-1)[..., None]) @ value
  x = x + _affine(params, f"{name}/attn/proj", read)
  inner = xp.tanh(_affine(params, f"{name}/mlp/fc1", _normed(xp, params, f"{name}/norm2", x)))
  return x + _affine(params, f"{name}/mlp/fc2", inner)
