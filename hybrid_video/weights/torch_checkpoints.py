"""Which of the things in a PyTorch checkpoint are its weights.

In: a pickle's machine. Out: descriptions of tensors by key. What stands beside them, such as the
arguments, the optimizer and the epoch of a training, is left where it is.
"""

from collections.abc import Iterable, Mapping
import logging
from typing import Any

from hybrid_video.weights.torch_pickle import Machine
from hybrid_video.weights.torch_tensors import ADVICE, Foreign, Tensor, described, short
from hybrid_video.weights.weights_errors import WeightsFileError

log = logging.getLogger("hybrid_video")

# The names under which trainings save a model, and those under which they save its moving average.
WRAPPERS = (
  *("state_dict", "model_state_dict", "model_state", "model", "module"),
  *("net", "network", "net_state_dict", "network_state_dict"),
)
AVERAGES = (
  *("model_ema", "ema", "ema_model", "model_ema_state_dict"),
  *("state_dict_ema", "ema_state_dict"),
)
_DEPTH = 3
_SHOWN = 8


def state_dict(machine: Machine, budget: int) -> dict[str, Tensor]:
  """The tensors of the state dict in a pickle.

  It is the object itself, or lies under one of `WRAPPERS`, or, where none of those has any, under one
  of `AVERAGES`, at most three deep.

  Args:
    machine: at the pickle's beginning.
    budget: bytes that the tensors may fill together.

  Raises:
    WeightsFileError: the pickle is damaged; it holds no state dict, or more than one that is not an
      average; among the weights stands something foreign; or they repeat a small storage too often.
  """
  tree = machine.load()
  if not isinstance(tree, dict):
    raise WeightsFileError(
      f"it holds one {described(tree)}, a state dict expected.{not_run(machine)} {ADVICE}"
    )
  weights = _find(tree, _DEPTH)
  if weights is None:
    raise WeightsFileError(_without_tensors(tree, machine))
  tensors = _only_tensors(weights)
  if (total := sum(tensor.nbytes for tensor in tensors.values())) > budget:
    raise WeightsFileError(
      f"its tensors would fill {short(total)} bytes, more than the {budget} that a file of its "
      "size is allowed: they repeat the elements of small storages. Re-save them as copies."
    )
  return tensors


def not_run(machine: Machine) -> str:
  """A sentence on what a pickle asked for that is no tensor, after a space; "" where it is nothing."""
  if not machine.foreign:
    return ""
  names = [short(name)[1:-1] for name in list(machine.foreign)[:_SHOWN]]
  more = len(machine.foreign) - len(names)
  rest = f" and {more} more" if more else ""
  return f" It asks for {', '.join(names)}{rest}: refused, and nothing of it was run."


def _find(tree: Mapping[Any, Any], depth: int) -> Mapping[Any, Any] | None:
  """The dictionary with the weights in `tree`, looking through at most `depth` wrappers."""
  if depth:
    models, averages = (_under(tree, names, depth) for names in (WRAPPERS, AVERAGES))
    for candidates in (models, averages):
      if len(candidates) > 1:
        raise WeightsFileError(
          f"it holds {len(candidates)} state dicts, under {' and '.join(candidates)}, and which is "
          "meant is not clear. Re-save the one you want alone."
        )
      if candidates:
        ((wrapper, weights),) = candidates.items()
        if averages:
          rest = [name for name in averages if name != wrapper]
          log.info(
            "Of the weights in the checkpoint those under %s are taken%s",
            wrapper,
            f", not those under {' and '.join(rest)}" if rest else ", a moving average",
          )
        return weights
  return tree if any(isinstance(value, Tensor) for value in tree.values()) else None


def _under(
  tree: Mapping[Any, Any], names: Iterable[str], depth: int
) -> dict[str, Mapping[Any, Any]]:
  state_dicts = {}
  for name in names:
    inner = tree.get(name)
    if isinstance(inner, dict) and (weights := _find(inner, depth - 1)) is not None:
      state_dicts[name] = weights
  return state_dicts


def _only_tensors(tree: Mapping[Any, Any]) -> dict[str, Tensor]:
  tensors, rest = {}, []
  for key, value in tree.items():
    if isinstance(value, Foreign):
      raise WeightsFileError(
        f"among its weights stands {_shown(key)}, a thing of {described(value)} and no tensor: "
        f"refused, and nothing of it was run. {ADVICE}"
      )
    if not isinstance(value, Tensor):
      rest.append(_shown(key))
    elif isinstance(key, str):
      tensors[key] = value
    else:
      raise WeightsFileError(f"a tensor has the key {_shown(key)}, a string expected. {ADVICE}")
  if rest:
    log.info("Beside the weights, and left out: %s", ", ".join(rest[:_SHOWN]))
  return tensors


def _shown(key: Any) -> str:
  return described(key) if isinstance(key, Foreign) else short(key)


def _without_tensors(tree: Mapping[Any, Any], machine: Machine) -> str:
  names = ", ".join((*WRAPPERS, *AVERAGES))
  whole = [
    f" Under {name} lies an object of {described(tree[name])} that was pickled whole: re-save its "
    "state_dict()."
    for name in (*WRAPPERS, *AVERAGES)
    if isinstance(tree.get(name), Foreign)
  ]
  keys = ", ".join(_shown(key) for key in list(tree)[:_SHOWN])
  return (
    f"it holds no tensors, nor a dictionary of tensors under {names}; its keys: [{keys}]."
    f"{''.join(whole)}{not_run(machine)} Re-save the state dict alone. {ADVICE}"
  )
