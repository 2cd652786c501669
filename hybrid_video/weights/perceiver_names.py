"""Names of a Perceiver's weights: those of the PyPI package perceiver-pytorch against ours.

In: a state dict as NumPy arrays. Out: the same values by their paths in the parameters of the model
"hybrid", without its CNN, transposed where our layout asks for it.

Source: the state dicts of perceiver-pytorch 0.8.8 and 0.11.0, which name a group's parts differently.
"""

from collections.abc import Iterator, Mapping
import difflib

import numpy as np

Path = tuple[str, ...]

# Our path below a block, by the reference's key below the same block.
ATTENTION: dict[str, Path] = {
  "norm.weight": ("norm", "scale"),
  "norm.bias": ("norm", "bias"),
  "fn.to_q.weight": ("attention", "to_q", "kernel"),
  "fn.to_kv.weight": ("attention", "to_kv", "kernel"),
  "fn.to_out.weight": ("attention", "to_out", "kernel"),
  "fn.to_out.bias": ("attention", "to_out", "bias"),
}
CROSS_ATTENTION: dict[str, Path] = {
  **ATTENTION,
  "norm_context.weight": ("norm_tokens", "scale"),
  "norm_context.bias": ("norm_tokens", "bias"),
}
FEED_FORWARD: dict[str, Path] = {
  "norm.weight": ("feed_forward", "norm", "scale"),
  "norm.bias": ("feed_forward", "norm", "bias"),
  "fn.net.0.weight": ("feed_forward", "expand", "kernel"),
  "fn.net.0.bias": ("feed_forward", "expand", "bias"),
  "fn.net.2.weight": ("feed_forward", "contract", "kernel"),
  "fn.net.2.bias": ("feed_forward", "contract", "bias"),
}
OUTSIDE_GROUPS: dict[str, Path] = {
  "latents": ("attention", "latents"),
  "to_logits.1.weight": ("head", "norm", "scale"),
  "to_logits.1.bias": ("head", "norm", "bias"),
  "to_logits.2.weight": ("head", "linear", "kernel"),
  "to_logits.2.bias": ("head", "linear", "bias"),
}
# A group's cross attention, its feed-forward and its self attention blocks.
PARTS_BY_NAME = ("cross_attn", "cross_ff", "self_attns")
PARTS_BY_NUMBER = ("0", "1", "2")


def _names(
  parts: tuple[str, str, str], *, cross_blocks: int, self_per_group: int, tied: bool
) -> Iterator[tuple[str, Path]]:
  """Every key with its path; of a tied model, the same path for each of its keys."""
  yield from OUTSIDE_GROUPS.items()
  cross, cross_ff, self_attention = parts
  for group in range(cross_blocks):
    own = min(group, 1) if tied else group
    place: Path = ("attention", "cross", str(own))
    prefixes = [
      (f"{cross}.", place, CROSS_ATTENTION),
      (f"{cross_ff}.", place, FEED_FORWARD),
    ]
    for block in range(self_per_group):
      place = ("attention", "self_attention", str(own * self_per_group + block))
      prefixes += [
        (f"{self_attention}.{block}.0.", place, ATTENTION),
        (f"{self_attention}.{block}.1.", place, FEED_FORWARD),
      ]
    for prefix, place, table in prefixes:
      for key, path in table.items():
        yield f"layers.{group}.{prefix}{key}", (*place, *path)


def to_paths(
  state_dict: Mapping[str, np.ndarray], *, cross_blocks: int, self_per_group: int, tied: bool
) -> dict[Path, np.ndarray]:
  """A `Perceiver`'s weights by their paths in our parameters, `attention` and `head`.

  Args:
    state_dict: arrays by the reference's key, of one with its classifier head.
    cross_blocks: the reference's `depth`, at least 1.
    self_per_group: its `self_per_cross_attn`.
    tied: its `weight_tie_layers`; our model has `tie_groups` to match.

  Returns:
    Arrays by path, kernels `[in, out]`: of a model with `cross_blocks`, `cross_blocks x
    self_per_group` self blocks, `pool="mean"` and no CLS token.

  Raises:
    ValueError: keys that are missing or unknown, or groups that should share weights and do not;
      the message names them.
  """
  by_number = any(key.startswith("layers.0.0.") for key in state_dict)
  names = dict(
    _names(
      PARTS_BY_NUMBER if by_number else PARTS_BY_NAME,
      cross_blocks=cross_blocks,
      self_per_group=self_per_group,
      tied=tied,
    )
  )
  missing = [key for key in names if key not in state_dict]
  unknown = [key for key in state_dict if key not in names]
  if missing or unknown:
    raise ValueError(
      f"The weights are not those of a Perceiver of {cross_blocks} groups with {self_per_group} "
      f"self attention blocks each: {_some(missing)} missing, {_some(unknown)} unknown"
      f"{_nearest(unknown, missing)}. Give the counts that the weights were made with."
    )
  paths: dict[Path, np.ndarray] = {}
  for key, path in names.items():
    value = state_dict[key].T if path[-1] == "kernel" else state_dict[key]
    if path in paths and not np.array_equal(paths[path], value):
      raise ValueError(
        f"{key!r} differs from its value in group 1, but the groups after the first are said to "
        "share their weights: load them with tied=False, into a model with tie_groups=False."
      )
    paths[path] = value
  return paths


def _some(keys: list[str], shown: int = 3) -> str:
  listed = ", ".join(map(repr, keys[:shown]))
  return f"{len(keys)} keys ({listed}{', ...' if len(keys) > shown else ''})" if keys else "no key"


def _nearest(unknown: list[str], missing: list[str]) -> str:
  close = difflib.get_close_matches(unknown[0], missing, n=1) if unknown else []
  return f"; perhaps {unknown[0]!r} stands for {close[0]!r}" if close else ""
