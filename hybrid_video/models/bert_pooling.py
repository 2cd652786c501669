"""Late temporal modelling: a transformer's CLS token pools a CNN's features over time.

In: normalized clips `[B, T, H, W, 3]`, or their spatially averaged features `[B, T', D]`. Out:
logits `[B, classes]`, or the pooled features `[B, D]`.

Source: Kalfaoglu et al. 2020 (arXiv:2008.01232): BERT in place of the mean over time.
"""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hybrid_video.models import relevance, rematerialization
from hybrid_video.models.attention import attend
from hybrid_video.models.layers import Array, DType, Linear, normal, resampled, xavier_uniform
from hybrid_video.models.model_error import ModelError
from hybrid_video.models.video_resnet import FULL_WIDTH, Numerics, Trunk

LEARNED_STD = 0.02
DEFAULT_FRAMES = 16


def draw_visible_keys(key: Array, shape: tuple[int, ...], key_keep: float) -> Array:
  """Which tokens may be attended to in one training step: bool `[B, T']`, chance `key_keep` each.

  The CLS token is not among them: in `BertPooling.attend` it is always visible.
  """
  return jax.random.bernoulli(key, key_keep, shape)


class LayerNorm(nnx.Module):
  """`scale (x - mean) / (std + 1e-6) + bias` over the last axis, in float32.

  Unlike in the usual layer, the standard deviation is the unbiased one and epsilon is added to it,
  not to the variance: the form of the BERT code that the paper builds on.
  """

  def __init__(self, features: int, *, dtype: DType = jnp.float32):
    self.scale = nnx.Param(np.ones((features,), np.float32))
    self.bias = nnx.Param(np.zeros((features,), np.float32))
    self.dtype = dtype

  def __call__(self, x: Array) -> Array:
    """Normalizes `[..., D]`, D at least 2."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    std = wide.std(-1, keepdims=True, ddof=1)
    y = self.scale[...] * centred / (std + 1e-6) + self.bias[...]
    return y.astype(self.dtype)


class SelfAttention(nnx.Module):
  """Multi-head attention of tokens `[B, N, D]` to each other, every projection with a bias."""

  def __init__(
    self, width: int, heads: int, *, dropout: float, dtype: DType, rng: np.random.Generator
  ):
    shared: dict[str, Any] = {"dtype": dtype, "rng": rng}
    self.to_q = Linear(width, width, **shared)
    self.to_k = Linear(width, width, **shared)
    self.to_v = Linear(width, width, **shared)
    self.to_out = Linear(width, width, **shared)
    self.dropout = nnx.Dropout(dropout)
    self.heads = heads

  def __call__(self, x: Array, visible: Array | None = None, rngs: nnx.Rngs | None = None) -> Array:
    """`[B, N, D]` to `[B, N, D]`; a key outside `visible`, bool `[B, N]`, has no weight."""
    query, key, value = (
      y.reshape(*y.shape[:2], self.heads, -1) for y in (self.to_q(x), self.to_k(x), self.to_v(x))
    )
    dropping = self.dropout.rate > 0 and not self.dropout.deterministic
    dropout = functools.partial(self.dropout, rngs=rngs) if dropping else None
    out = attend(query, key, value, visible, dropout=dropout)
    return self.to_out(out.reshape(*out.shape[:2], -1))


class BertPooling(nnx.Module):
  """One pre-norm transformer block over [CLS, tokens]; its output for CLS is the pooled feature.

  In training each token is hidden from attention with the chance 1 - `key_keep`, the same ones from
  all heads and queries; the CLS token never is. There is no loss on hidden tokens.

  Args:
    width: channels of a token, a multiple of `heads`.
    max_tokens: positions that are learned, besides that of the CLS token.
    heads: attention heads.
    multiplier: the feed-forward's widening.
    dropout: rate after the positions, on the attention's shares, after attention, within and after
      the feed-forward, and after the block.
    key_keep: chance that a token is visible in a training step.
    dtype: of the arithmetic; parameters are float32, norms and softmax run in it.
    rng: source of the initial values.

  Raises:
    ModelError: counts or chances out of range; the message says which.

  Source: section 3 of arXiv:2008.01232; mask, norm and initial values as in its published code.
  """

  def __init__(
    self,
    width: int,
    max_tokens: int,
    *,
    heads: int = 8,
    multiplier: int = 4,
    dropout: float = 0.1,
    key_keep: float = 0.8,
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    if heads < 1 or width % heads:
      raise ModelError(
        f"{width} channels do not divide evenly among {heads} attention heads: choose heads that "
        "divide the width."
      )
    if max_tokens < 1:
      raise ModelError(f"max_tokens={max_tokens}: BERT pooling needs at least 1 token.")
    if not 0.0 < key_keep <= 1.0:
      raise ModelError(
        f"key_keep={key_keep} is not a chance above 0 and up to 1; 1 turns masking off."
      )
    self.cls = nnx.Param(LEARNED_STD * normal(rng, (1, width)))
    self.positions = nnx.Param(LEARNED_STD * normal(rng, (1 + max_tokens, width)))
    self.norm1 = LayerNorm(width, dtype=dtype)
    self.self_attention = SelfAttention(width, heads, dropout=dropout, dtype=dtype, rng=rng)
    self.norm2 = LayerNorm(width, dtype=dtype)
    self.expand = Linear(width, multiplier * width, dtype=dtype, rng=rng)
    self.contract = Linear(multiplier * width, width, dtype=dtype, rng=rng)
    self.dropout = nnx.Dropout(dropout)
    self.max_tokens = max_tokens
    self.key_keep = key_keep
    self.dtype = dtype
    self.deterministic = False

  def __call__(self, tokens: Array, rngs: nnx.Rngs | None = None) -> Array:
    """Tokens `[B, T', D]` in the order of time to pooled features `[B, D]`.

    Raises:
      ModelError: another width, or training without a dropout key.
    """
    visible = None
    if not self.deterministic and self.key_keep < 1.0:
      if rngs is None:
        raise ModelError(
          "BERT pooling in training masks keys at random and was given no rngs: pass "
          "rngs=nnx.Rngs(dropout=key), or call model.eval() first."
        )
      visible = draw_visible_keys(rngs.dropout(), tokens.shape[:2], self.key_keep)
    return self.attend(tokens, visible, rngs)[:, 0]

  def attend(self, tokens: Array, visible: Array | None, rngs: nnx.Rngs | None = None) -> Array:
    """The block's output for [CLS, tokens], `[B, 1 + T', D]`, under an explicit mask.

    Args:
      tokens: `[B, T', D]`; their positions are the learned ones, or lie between these where there are
        more or fewer than `max_tokens`.
      visible: bool `[B, T']`, false where no query may attend; None to see all.
      rngs: source of dropout's keys, in training.

    Raises:
      ModelError: another width.
    """
    batch, count, channels = tokens.shape
    width = self.cls[...].shape[-1]
    if channels != width:
      raise ModelError(f"BERT pooling got tokens of {channels} channels and was built for {width}.")
    cls = jnp.broadcast_to(self.cls[...].astype(self.dtype), (batch, 1, width))
    x = jnp.concatenate([cls, tokens.astype(self.dtype)], axis=1)
    of_cls, of_tokens = self.positions[:1], resampled(self.positions[1:], count)
    positions = jnp.concatenate([of_cls, of_tokens]).astype(self.dtype)
    x = self.dropout(x + positions, rngs=rngs)
    if visible is not None:
      visible = jnp.concatenate([jnp.ones((batch, 1), bool), visible], axis=1)
    x = x + self.dropout(self.self_attention(self.norm1(x), visible, rngs), rngs=rngs)
    hidden = jax.nn.gelu(self.expand(self.norm2(x)), approximate=True)
    x = x + self.dropout(self.contract(self.dropout(hidden, rngs=rngs)), rngs=rngs)
    return self.dropout(x, rngs=rngs)


class BertClassifier(nnx.Module):
  """A video ResNet's trunk, the mean over space, BERT pooling over time, dropout, a linear head.

  Args:
    num_classes: width of the logits.
    architecture, blocks, width: of the trunk, see `video_resnet.Trunk`.
    frames: frames of a clip; they fix the number of positions that are learned. None is 16.
    dropout: rate before the head; 0.8 is the published one.
    heads, multiplier, attention_dropout, key_keep: see `BertPooling`.
    remat, freeze_statistics: of the trunk, see `video_resnet.Numerics`.
    dtype: of the arithmetic; parameters and statistics stay float32.
    rng: source of the initial values.

  Raises:
    ModelError: options that do not fit together; the message says which.
  """

  def __init__(
    self,
    num_classes: int,
    *,
    architecture: str = "r2plus1d_18",
    blocks: int | None = None,
    width: int = FULL_WIDTH,
    frames: int | None = None,
    dropout: float = 0.8,
    heads: int = 8,
    multiplier: int = 4,
    attention_dropout: float = 0.1,
    key_keep: float = 0.8,
    remat: str = rematerialization.NONE,
    freeze_statistics: bool = False,
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    frames = DEFAULT_FRAMES if frames is None else frames
    if frames < 1:
      raise ModelError(f"frames={frames}: a clip has at least 1 frame.")
    numerics = Numerics(dtype, remat, freeze_statistics)
    self.cnn = Trunk(architecture, blocks=blocks, width=width, numerics=numerics, rng=rng)
    self.attention = BertPooling(
      self.cnn.out_channels,
      self.cnn.frames_out(frames),
      heads=heads,
      multiplier=multiplier,
      dropout=attention_dropout,
      key_keep=key_keep,
      dtype=dtype,
      rng=rng,
    )
    self.dropout = nnx.Dropout(dropout)
    self.head = Linear(self.cnn.out_channels, num_classes, rng=rng)
    self.head.kernel[...] = xavier_uniform(rng, (self.cnn.out_channels, num_classes))
    self.head.bias[...] = np.zeros((num_classes,), np.float32)
    self.frames = frames

  def __call__(self, clips: Array, rngs: nnx.Rngs | None = None) -> Array:
    """Clips `[B, T, H, W, 3]` (normalized) to float32 logits `[B, classes]`.

    Clips of another length than `frames` take positions between the learned ones.
    """
    return self.from_features(self.cnn(clips), rngs)

  def from_features(self, features: Array, rngs: nnx.Rngs | None = None) -> Array:
    """The trunk's feature map `[B, T', H', W', C]` to float32 logits `[B, classes]`."""
    tokens = features.astype(jnp.float32).mean((2, 3))
    pooled = self.attention(tokens, rngs).astype(jnp.float32)
    return self.head(self.dropout(pooled, rngs=rngs))

  def maps(self, clips: Array, classes: Array | None) -> tuple[relevance.Map, ...]:
    """Where it looks in clips, for `classes` `[B]`, in evaluation mode; see `attribution.maps`.

    The second map is over time alone: what the CLS token, which the head reads, reads of each token.
    """
    seen = relevance.explain(self.from_features, self.cnn(clips), classes)
    of_cls = seen.weights[0][:, :, 0]
    over_time = relevance.Map(
      of_cls,
      ("heads", "CLS token and time"),
      "attention over time",
      "the weights by which the CLS token attends to itself (first) and to each moment",
      "Kalfaoglu et al. 2020, arXiv:2008.01232",
    )
    return relevance.grad_cam(seen), over_time
