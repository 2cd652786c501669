"""Names of a Perceiver's weights: those of the PyPI package perceiver-pytorch against ours.

In: the counts of a Perceiver. Out: the table of the model "hybrid", without its CNN.

Source: the state dicts of perceiver-pytorch 0.8.8 and 0.11.0, which name a group's parts differently.
"""

from collections.abc import Iterable

from hybrid_video.weights import porting
from hybrid_video.weights.porting import Path, Row, Table

# A group's cross attention, its feed-forward and its self attention blocks.
PARTS_BY_NAME = ("cross_attn", "cross_ff", "self_attns")
PARTS_BY_NUMBER = ("0", "1", "2")


def _attention(path: Path, key: str) -> list[Row]:
  return [
    *porting.norm((*path, "norm"), f"{key}.norm"),
    *porting.linear((*path, "attention", "to_q"), f"{key}.fn.to_q", bias=False),
    *porting.linear((*path, "attention", "to_kv"), f"{key}.fn.to_kv", bias=False),
    *porting.linear((*path, "attention", "to_out"), f"{key}.fn.to_out"),
  ]


def _feed_forward(path: Path, key: str) -> list[Row]:
  path = (*path, "feed_forward")
  return [
    *porting.norm((*path, "norm"), f"{key}.norm"),
    *porting.linear((*path, "expand"), f"{key}.fn.net.0"),
    *porting.linear((*path, "contract"), f"{key}.fn.net.2"),
  ]


def table(keys: Iterable[str], *, cross_blocks: int, self_per_group: int, tied: bool) -> Table:
  """The names of a `Perceiver` with its classifier head.

  Args:
    keys: of the file, which show the release that wrote it.
    cross_blocks: the reference's `depth`, at least 1.
    self_per_group: its `self_per_cross_attn`.
    tied: its `weight_tie_layers`; our model has `tie_groups` to match.

  Returns:
    The table of a model with `cross_blocks`, `cross_blocks x self_per_group` self blocks,
    `pool="mean"` and no CLS token. Of a tied one, all groups after the first share their rows' paths.
  """
  by_number = any(key.startswith("layers.0.0.") for key in keys)
  cross, cross_ff, self_attention = PARTS_BY_NUMBER if by_number else PARTS_BY_NAME
  rows = [
    Row(("attention", "latents"), ("latents",)),
    *porting.norm(("head", "norm"), "to_logits.1"),
    *porting.linear(("head", "linear"), "to_logits.2"),
  ]
  for group in range(cross_blocks):
    own = min(group, 1) if tied else group
    path, key = ("attention", "cross", str(own)), f"layers.{group}"
    rows += _attention(path, f"{key}.{cross}")
    rows += porting.norm((*path, "norm_tokens"), f"{key}.{cross}.norm_context")
    rows += _feed_forward(path, f"{key}.{cross_ff}")
    for block in range(self_per_group):
      path = ("attention", "self_attention", str(own * self_per_group + block))
      rows += _attention(path, f"{key}.{self_attention}.{block}.0")
      rows += _feed_forward(path, f"{key}.{self_attention}.{block}.1")
  return Table(
    f"a Perceiver of {cross_blocks} groups with {self_per_group} self attention blocks each",
    tuple(rows),
    advice="Give the model the counts that the weights were made with.",
    shared_advice=(
      "The model's groups after the first share their weights and the file's do not: build it with "
      "tie_groups=False."
    ),
  )
