"""The hybrid: an R(2+1)D trunk gives tokens, Perceiver attention reads them, a head classifies.

In: normalized clips `[B, T, H, W, 3]`. Out: logits `[B, classes]`.
"""

from collections.abc import Sequence
import math
from typing import Any

from flax import nnx
import jax.numpy as jnp
import numpy as np

from hybrid_video.models import perceiver, relevance, rematerialization
from hybrid_video.models.layers import Array, DType, LayerNorm, Linear, normal
from hybrid_video.models.model_error import ModelError
from hybrid_video.models.patches import Patches
from hybrid_video.models.video_resnet import Numerics, Trunk

POOLS = ("cls", "mean")


def _check_blocks(
  token_width: int, cross_blocks: int, self_blocks: int, width: int, use_cls: bool
) -> None:
  if cross_blocks < 0 or self_blocks < 0 or cross_blocks + self_blocks == 0:
    raise ModelError(
      f"{cross_blocks} cross and {self_blocks} self attention blocks: at least one is needed; "
      "for none use the model 'r2plus1d_18'."
    )
  if cross_blocks and self_blocks % cross_blocks:
    raise ModelError(
      f"{self_blocks} self attention blocks do not divide evenly among {cross_blocks} cross "
      "attention blocks."
    )
  if use_cls and not self_blocks:
    raise ModelError("A CLS token needs a self attention block; use pool='mean'.")
  if not cross_blocks and width != token_width:
    raise ModelError(
      f"Without cross attention the blocks work on the tokens' own {token_width} channels: set "
      f"the attention width to {token_width} instead of {width}."
    )


class AttentionStack(nnx.Module):
  """`cross_blocks` groups of one cross attention and an equal share of the self attention.

  With cross attention, learned latents (normal, std `latent_std`) read the tokens and their Fourier
  positions; without, the tokens themselves go through the self blocks, without positions. A CLS
  token, if there is one, is put in front of the others before the first self block and stays there.
  With `tie_groups` the first group has its own weights and all later ones share a second set.
  """

  def __init__(
    self,
    token_width: int,
    *,
    cross_blocks: int,
    self_blocks: int,
    latents: int,
    width: int,
    cross_heads: int,
    self_heads: int,
    head_dim: int,
    multiplier: int,
    bands: int,
    max_freq: float | tuple[float, float, float] | None,
    time_cells: int = 0,
    dropout: float,
    use_cls: bool,
    tie_groups: bool = False,
    latent_std: float = 0.02,
    dtype: DType,
    rng: np.random.Generator,
  ):
    _check_blocks(token_width, cross_blocks, self_blocks, width, use_cls)
    shared: dict[str, Any] = {
      "head_dim": head_dim,
      "multiplier": multiplier,
      "dropout": dropout,
      "dtype": dtype,
    }
    self.groups = max(cross_blocks, 1)
    self.group_sets = min(self.groups, 2) if tie_groups else self.groups
    self.self_per_group = self_blocks // self.groups
    context_width = token_width + perceiver.fourier_channels(bands)
    if cross_blocks:
      self.latents = nnx.Param(np.float32(latent_std) * normal(rng, (latents, width)))
    if use_cls:
      self.cls = nnx.Param(np.float32(latent_std) * normal(rng, (1, width)))
    self.cross: Any = nnx.Dict()
    for i in range(self.group_sets if cross_blocks else 0):
      self.cross[str(i)] = perceiver.CrossBlock(
        width, context_width, heads=cross_heads, rng=rng, **shared
      )
    self.self_attention: Any = nnx.Dict()
    for i in range(self.group_sets * self.self_per_group):
      self.self_attention[str(i)] = perceiver.SelfBlock(width, heads=self_heads, rng=rng, **shared)
    self.use_cls = use_cls
    self.bands = bands
    self.max_freq = max_freq
    self.time_cells = time_cells
    self.dtype = dtype

  def __call__(self, features: Array, rngs: nnx.Rngs | None = None) -> Array:
    """A feature map `[B, T', H', W', C]` to `[B, N, D]`, the CLS token first if there is one."""
    batch, *sizes, channels = features.shape
    tokens = features.reshape(batch, -1, channels)
    if len(self.cross):
      return self.attend(tokens, jnp.asarray(self.positions(tuple(sizes))), rngs)
    return self.attend(tokens, None, rngs)

  def positions(self, sizes: tuple[int, ...]) -> np.ndarray:
    """Fourier positions of a feature map's cells `[T' H' W', P]`, see `perceiver.fourier_positions`."""
    return perceiver.fourier_positions(sizes, self.bands, self.max_freq, self.time_cells)

  def attend(self, tokens: Array, positions: Array | None, rngs: nnx.Rngs | None = None) -> Array:
    """Tokens `[B, M, C]` with their positions `[M, P]` or `[B, M, P]`, in any order, to `[B, N, D]`."""
    batch = tokens.shape[0]
    if positions is None:
      x = tokens
    else:
      tokens = self._with_positions(tokens, positions)
      x = self._for_each_clip(self.latents[...], batch)
    for group in range(self.groups):
      group_set = min(group, self.group_sets - 1)
      if len(self.cross):
        x = self.cross[str(group_set)](x, tokens, rngs)
      x = self._after_cross(x, group, rngs)
    return x

  def _with_positions(self, tokens: Array, positions: Array) -> Array:
    spread = jnp.broadcast_to(positions, (len(tokens), *positions.shape[-2:])).astype(self.dtype)
    return jnp.concatenate([tokens, spread], axis=-1)

  def _after_cross(self, x: Array, group: int, rngs: nnx.Rngs | None = None) -> Array:
    """What follows a group's cross attention: the CLS token, if it is the first, and self attention."""
    if group == 0 and self.use_cls:
      x = jnp.concatenate([self._for_each_clip(self.cls[...], len(x)), x], axis=1)
    first = min(group, self.group_sets - 1) * self.self_per_group
    for i in range(self.self_per_group):
      x = self.self_attention[str(first + i)](x, rngs)
    return x

  def nothing_read(self, batch: int) -> perceiver.Reading:
    """What latents have read of videos before their first part.

    Raises:
      ModelError: there is not exactly one cross attention: each further one would read all of a video again.
    """
    if len(self.cross) != 1 or self.groups != 1:
      raise ModelError(
        f"A video is read in one pass by one cross attention, and this model has {self.groups * bool(len(self.cross))}: "
        "average windows, or choose cross_blocks=1."
      )
    return self.cross["0"].attention.nothing_read(self._for_each_clip(self.latents[...], batch))

  def read(self, so_far: perceiver.Reading, features: Array) -> perceiver.Reading:
    """Latents read one part more of each video, its feature map `[B, T', H', W', C]`."""
    batch, *sizes, channels = features.shape
    positions = jnp.asarray(self.positions(tuple(sizes)))
    tokens = self._with_positions(features.reshape(batch, -1, channels), positions)
    return self.cross["0"].read(so_far, self._for_each_clip(self.latents[...], batch), tokens)

  def after_reading(self, reading: perceiver.Reading) -> Array:
    """What `attend` gives for the tokens of all parts, `[B, N, D]`."""
    latents = self._for_each_clip(self.latents[...], len(reading.total))
    return self._after_cross(self.cross["0"].after_reading(latents, reading), 0)

  def flow(self, shares: Sequence[Array], tokens: int, mixed: relevance.Mixed) -> Array:
    """How much of each output comes from each token, by the way that `attend` takes.

    Args:
      shares: of each attention in order, `[B, N, M]`: what its queries take of its keys.
      tokens: M, how many there are.
      mixed: joins what passes an attention by and what goes through it.

    Returns:
      float32 `[B, N, M + 1]`, in the order of what `attend` gives. The last column is what comes from no token
      but from learned values: latents and the CLS token.
    """
    batch, left = len(shares[0]), iter(shares)
    of_tokens = relevance.from_themselves(batch, tokens)
    x = of_tokens
    if len(self.cross):
      x = relevance.from_learned_values(batch, len(self.latents[...]), tokens)
    for group in range(self.groups):
      if len(self.cross):
        x = mixed(x, next(left) @ of_tokens)
      if group == 0 and self.use_cls:
        x = jnp.concatenate([relevance.from_learned_values(batch, 1, tokens), x], axis=1)
      for _ in range(self.self_per_group):
        x = mixed(x, next(left) @ x)
    return x

  def cross_weights(
    self, weights: Sequence[Array], grid: tuple[int, ...]
  ) -> tuple[relevance.Map, ...]:
    """The weights `[B, heads, latents, T', H', W']` of each cross attention, of all in order."""
    if not len(self.cross):
      return ()
    of_cross = weights[:: 1 + self.self_per_group]
    return tuple(
      relevance.Map(
        of_block.reshape(*of_block.shape[:3], *grid),
        ("heads", "latents", *relevance.SPACE_TIME),
        f"cross attention {i}",
        f"the weights by which each latent reads the feature map in cross attention {i}",
        "Jaegle et al. 2021, arXiv:2103.03206",
      )
      for i, of_block in enumerate(of_cross, 1)
    )

  def _for_each_clip(self, learned: Array, batch: int) -> Array:
    return jnp.broadcast_to(learned.astype(self.dtype), (batch, *learned.shape))


class Head(nnx.Module):
  """Pooling (the CLS token, or the mean over all tokens), LayerNorm, linear classifier."""

  def __init__(self, width: int, num_classes: int, *, rng: np.random.Generator):
    self.norm = LayerNorm(width)
    self.linear = Linear(width, num_classes, rng=rng)

  def __call__(self, pooled: Array) -> Array:
    """`[B, D]` to float32 logits `[B, classes]`."""
    return self.linear(self.norm(pooled))


class Hybrid(nnx.Module):
  """R(2+1)D-18 cut after `cnn_blocks`, Perceiver attention over its feature map, a head.

  Args:
    num_classes: width of the logits.
    cnn: architecture of the trunk, see `video_resnet.ARCHITECTURES`.
    cnn_blocks: residual blocks of the trunk that are used, from the first: 1 to 8; 0 is no trunk, but
      patches of pixels as tokens, which makes it a Perceiver.
    cnn_width: channels of the first stage; 64 is the published network.
    patch: frames, rows and columns of a patch, where there is no trunk.
    remat, freeze_statistics: of the trunk, see `video_resnet.Numerics`.
    cross_blocks: cross attention blocks; each begins a group.
    self_blocks: self attention blocks in all, shared evenly among the groups.
    pool: "cls" or "mean". The mean is over latents, and over the CLS token where `use_cls`.
    use_cls: whether a CLS token takes part; by default only if the pool reads it.
    latents: number of learned latents.
    width: channels of a latent.
    cross_heads, self_heads, head_dim: attention heads, and channels of one.
    multiplier: the feed-forward's widening.
    bands, max_freq: see `perceiver.fourier_positions`.
    time_cells: moments of the feature map that positions in time span, whatever the clip's length, so that
      a position means a time and a longer clip goes on beyond; 0 spans each clip, so that it means a share
      of the clip.
    tie_groups: whether the groups after the first share one set of weights, which makes a
      difference from three groups on.
    latent_std: standard deviation of the initial latents and CLS token. The source study has 1, which
      drowns what they read: 2 % of the first logits' spread tell clips apart, and 63 % with 0.02.
    dropout: rate after every attention and feed-forward.
    dtype: of the arithmetic; parameters and statistics stay float32.
    rng: source of the initial values.

  Raises:
    ModelError: counts or options that do not fit together; the message says which.
  """

  def __init__(
    self,
    num_classes: int,
    *,
    cnn: str = "r2plus1d_18",
    cnn_blocks: int = 8,
    cnn_width: int = 64,
    patch: tuple[int, int, int] = (2, 8, 8),
    remat: str = rematerialization.NONE,
    freeze_statistics: bool = False,
    cross_blocks: int = 1,
    self_blocks: int = 1,
    pool: str = "cls",
    use_cls: bool | None = None,
    latents: int = 256,
    width: int = 512,
    cross_heads: int = 1,
    self_heads: int = 8,
    head_dim: int = 64,
    multiplier: int = 4,
    bands: int = 6,
    max_freq: float | tuple[float, float, float] | None = 10.0,
    time_cells: int = 0,
    tie_groups: bool = False,
    latent_std: float = 0.02,
    dropout: float = 0.0,
    dtype: DType = jnp.float32,
    rng: np.random.Generator,
  ):
    if pool not in POOLS:
      raise ModelError(f"pool={pool!r} is none of {', '.join(POOLS)}.")
    use_cls = pool == "cls" if use_cls is None else use_cls
    if pool == "cls" and not use_cls:
      raise ModelError("pool='cls' reads the CLS token, so use_cls cannot be False.")
    numerics = Numerics(dtype, remat, freeze_statistics)
    self.cnn: Trunk | Patches
    if cnn_blocks:
      self.cnn = Trunk(cnn, blocks=cnn_blocks, width=cnn_width, numerics=numerics, rng=rng)
    else:
      self.cnn = Patches(patch, dtype=dtype)
    self.attention = AttentionStack(
      self.cnn.out_channels,
      cross_blocks=cross_blocks,
      self_blocks=self_blocks,
      latents=latents,
      width=width,
      cross_heads=cross_heads,
      self_heads=self_heads,
      head_dim=head_dim,
      multiplier=multiplier,
      bands=bands,
      max_freq=max_freq,
      time_cells=time_cells,
      dropout=dropout,
      use_cls=use_cls,
      tie_groups=tie_groups,
      latent_std=latent_std,
      dtype=dtype,
      rng=rng,
    )
    self.head = Head(width, num_classes, rng=rng)
    self.pool = pool

  def __call__(self, clips: Array, rngs: nnx.Rngs | None = None) -> Array:
    """Clips `[B, T, H, W, 3]` (normalized) to float32 logits `[B, classes]`."""
    return self.from_features(self.cnn(clips), rngs)

  def from_features(self, features: Array, rngs: nnx.Rngs | None = None) -> Array:
    """The trunk's feature map `[B, T', H', W', C]` to float32 logits `[B, classes]`."""
    return self.classify(self.attention(features, rngs))

  def nothing_read(self, batch: int) -> perceiver.Reading:
    """Where the reading of so many videos begins; see `AttentionStack.nothing_read`."""
    return self.attention.nothing_read(batch)

  def read(self, so_far: perceiver.Reading, clips: Array) -> perceiver.Reading:
    """Latents read one clip more of each video, `[B, T, H, W, 3]`; memory is that of a clip, however long it gets."""
    return self.attention.read(so_far, self.cnn(clips))

  def answer(self, reading: perceiver.Reading) -> Array:
    """Float32 logits `[B, classes]` for all that was read, in evaluation mode."""
    return self.classify(self.attention.after_reading(reading))

  def classify(self, x: Array) -> Array:
    """What the attention gives, `[B, N, D]`, to float32 logits `[B, classes]`."""
    x = x.astype(jnp.float32)
    return self.head(self._pooled(x))

  def _pooled(self, x: Array) -> Array:
    return x[:, 0] if self.pool == "cls" else x.mean(1)

  def maps(self, clips: Array, classes: Array | None) -> tuple[relevance.Map, ...]:
    """Where it looks in clips, for `classes` `[B]`, in evaluation mode; see `attribution.maps`.

    After the maps over tokens come the weights of each cross attention block,
    `[B, heads, latents, T', H', W']`.
    """
    seen = relevance.explain(self.from_features, self.cnn(clips), classes)
    grid = seen.inputs.shape[1:4]
    flows = (
      self._pooled(self.attention.flow(shares, math.prod(grid), mixed))
      for shares, mixed in (seen.shares(), seen.shares_for_the_class())
    )
    rollout, for_the_class = (relevance.of_tokens(flow, grid) for flow in flows)
    return (
      relevance.rollout(rollout),
      relevance.for_the_class(for_the_class),
      *self.attention.cross_weights(seen.weights, grid),
    )
