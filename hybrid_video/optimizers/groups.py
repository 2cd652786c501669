"""Groups of parameters by their names: what is trained, what decays, and at which rate.

In: parameters (nested dicts of arrays, or of their shapes) and settings. Out: trees like them, of
bools and of factors on the learning rate.
"""

import dataclasses
from typing import Any

import jax

from hybrid_video import errors
from hybrid_video.optimizers.settings import OptimizerError, OptimizerSettings

Tree = dict[str, Any]

_LEARNED = {
  "positions": "positions",
  "latents": "latents",
  "cls": "tokens",
  "mask_token": "tokens",
}


def _name(path: Any) -> str:
  return "/".join(key.key for key in path)


def _is_in(name: str, part: str) -> bool:
  return name == part or name.startswith(part + "/")


def trained(params: Any, freeze: tuple[str, ...]) -> Any:
  """Which parameters are trained: a tree of bools like `params`.

  Args:
    params: nested dicts of arrays or of their shapes.
    freeze: the beginnings of the paths of those that are not.

  Raises:
    OptimizerError: a part that the model does not have (the message has the nearest), or nothing is
      left to train.
  """
  used: set[str] = set()

  def is_trained(path: Any, _: Any) -> bool:
    matching = [part for part in freeze if _is_in(_name(path), part)]
    used.update(matching)
    return not matching

  labels = jax.tree_util.tree_map_with_path(is_trained, params)
  for part in freeze:
    if part not in used:
      names = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
      starts = {"/".join(n.split("/")[:d]) for n in names for d in range(1, n.count("/") + 2)}
      near = errors.nearest(part, starts, count=1, cutoff=0.0)
      raise OptimizerError(
        f"--config.optimizer.freeze names {part!r}, a part that the model does not have.{near}"
      )
  if freeze and not any(jax.tree.leaves(labels)):
    raise OptimizerError(
      f"--config.optimizer.freeze is {freeze}, all of the model: nothing is left to train. Its parts: "
      f"{', '.join(params)}."
    )
  return labels


def kind(name: str) -> str | None:
  """Which of the kinds that `no_decay` names a parameter is; None for a kernel.

  Args:
    name: its path, such as "cnn/stem/norm/scale".
  """
  *above, last = name.split("/")
  if last == "scale" or (above and above[-1].startswith("norm")):
    return "norms"
  if last == "bias" or last.endswith("_bias"):
    return "biases"
  return _LEARNED.get(last)


def decays(params: Tree, no_decay: tuple[str, ...]) -> Any:
  """Which parameters weight decay is for: a tree of bools like `params`."""
  return jax.tree_util.tree_map_with_path(lambda path, _: kind(_name(path)) not in no_decay, params)


def layers(params: Tree) -> list[tuple[str, ...]]:
  """A model's layers in the order in which a clip meets them.

  They are VideoMAE's patch embedding and each of its blocks, as in its reference; of a CNN the stem
  and each stage; of the hybrid's attention each block, the first with the latents and the CLS token;
  and BERT pooling as one. What belongs to none of them (a head, a last norm, a decoder) is above all.

  Returns:
    The beginnings of the paths of each layer's parameters; the first of them is its name.
  """
  cnn, attention = params.get("cnn", {}), params.get("attention", {})
  stages = ("stem", *(f"layer{stage}" for stage in range(1, 5)))
  found = [(f"cnn/{stage}",) for stage in stages if stage in cnn]
  return found + (_attention_layers(attention) if attention else [])


def _attention_layers(attention: Tree) -> list[tuple[str, ...]]:
  if "blocks" in attention:
    blocks = [(f"attention/blocks/{i}",) for i in range(len(attention["blocks"]))]
    return [("attention/patch_embed",), *blocks]
  cross, own = attention.get("cross", {}), attention.get("self_attention", {})
  if "0" not in cross and "0" not in own:
    return [("attention",)]
  groups = max(len(cross), 1)
  of_group = len(own) // groups
  names = []
  for group in range(groups):
    names += [f"attention/cross/{group}"] if cross else []
    numbers = range(group * of_group, (group + 1) * of_group)
    names += [f"attention/self_attention/{i}" for i in numbers]
  first, *others = names
  return [(first, "attention/latents", "attention/cls"), *((name,) for name in others)]


@dataclasses.dataclass(frozen=True)
class Group:
  """Parameters of one learning rate.

  Attributes:
    name: of a layer, where rates differ by layer, or of a part of the model.
    factor: on the learning rate.
  """

  name: str
  factor: float


def rate_groups(settings: OptimizerSettings, params: Tree) -> Any:
  """The group that each parameter is in: a tree of `Group` like `params`.

  A layer i of n + 1 (0 to n) has the factor layer_decay ** (n + 1 - i), whatever is above them 1, as
  in VideoMAE's reference; the factor of the part comes on top. That of a part that the model does not
  have, such as a recipe's for attention, does nothing; see `part_rates_in_words`.

  Raises:
    OptimizerError: a decay by layer for a model without layers.
  """
  by_part = dataclasses.asdict(settings.part_rates)
  found = layers(params) if settings.layer_decay != 1 else []
  if settings.layer_decay != 1 and not found:
    raise OptimizerError(
      f"{settings.path('layer_decay')} is {settings.layer_decay:g}, and the model has no layers that "
      f"are known. Its parts: {', '.join(params)}. Set it to 1."
    )

  def group(path: Any, _: Any) -> Group:
    name = _name(path)
    part = name.partition("/")[0]
    of_part = by_part.get(part, 1.0)
    for i, starts in enumerate(found):
      if any(_is_in(name, start) for start in starts):
        return Group(starts[0], of_part * settings.layer_decay ** (len(found) - i))
    return Group(part, of_part)

  return jax.tree_util.tree_map_with_path(group, params)


def part_rates_in_words(settings: OptimizerSettings, params: Tree) -> list[str]:
  """A sentence for each part whose factor on the learning rate is not 1, whether it is there or not."""
  return [
    f"{part}: {factor:g} times the learning rate"
    if part in params
    else f"{settings.part_rates.path(part)} is {factor:g} and does nothing: the model has no such part"
    for part, factor in dataclasses.asdict(settings.part_rates).items()
    if factor != 1
  ]


def rates(settings: OptimizerSettings, params: Tree) -> dict[str, float]:
  """Factors on the learning rate by group, for reports; 0 for what is not trained.

  Groups are the layers where there is a decay by layer, and the parts of the model otherwise.

  Args:
    settings: of the optimizer.
    params: nested dicts of arrays or of their shapes.

  Returns:
    In the order in which a clip meets them; empty where everything has the learning rate itself.

  Raises:
    OptimizerError: as `rate_groups` and `trained`.
  """
  groups = jax.tree.leaves(rate_groups(settings, params))
  labels = jax.tree.leaves(trained(params, settings.freeze))
  factors: dict[str, float] = {}
  for group, is_trained in zip(groups, labels, strict=True):
    factors[group.name] = max(factors.get(group.name, 0.0), group.factor * is_trained)
  order = [starts[0] for starts in layers(params)]
  parts = ["cnn", "attention", "decoder", "head"]
  names = sorted(factors, key=lambda n: (order + parts).index(n) if n in order + parts else 0)
  if set(factors.values()) == {1.0}:
    return {}
  return {name: factors[name] for name in names}
