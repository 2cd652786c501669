"""What a model costs: multiply-accumulates, counted in the program that JAX traces of it.

In: a function and the shapes of its arguments. Out: a whole number, the same on every backend.
"""

from collections.abc import Callable
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from hybrid_video import models
from hybrid_video.models import target


def multiply_accumulates(function: Callable[..., Any], *arguments: Any) -> int:
  """Multiply-accumulates of all convolutions and matrix products of one call.

  Products with the zeros of padding count, as in torchvision's figures; elementwise work, norms and
  softmax do not.

  Args:
    function: what `jax.make_jaxpr` can trace.
    *arguments: arrays or `jax.ShapeDtypeStruct`s.
  """
  # In the plain forms: others have fewer products, or hide them in a kernel.
  with target.traced_for([]):
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name, parameters = equation.primitive.name, equation.params
    shapes = [variable.aval.shape for variable in equation.invars]
    if name == "conv_general_dilated":
      # Kernel extent and channels a group read for every value given out.
      numbers = parameters["dimension_numbers"]
      kernel = shapes[1]
      taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
      total += math.prod(equation.outvars[0].aval.shape) * taps
    elif name == "dot_general":
      (contracted, _), _ = parameters["dimension_numbers"]
      total += math.prod(equation.outvars[0].aval.shape) * math.prod(
        shapes[0][axis] for axis in contracted
      )
    else:
      # The body of a scan runs as often as it is long.
      times = parameters["length"] if name == "scan" else 1
      total += times * sum(_count(inner) for inner in _inner(parameters))
  return total


def _inner(parameters: dict[str, Any]) -> list[Any]:
  """The programs within an equation: of a jit, a custom derivative, a rematerialization."""
  programs = []
  for value in parameters.values():
    for item in value if isinstance(value, list | tuple) else (value,):
      if hasattr(item, "eqns"):
        programs.append(item)
      elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
        programs.append(item.jaxpr)
  return programs


def of_model(name: str, clip: tuple[int, int, int], num_classes: int, **options: Any) -> int:
  """Multiply-accumulates of one clip's forward pass.

  Args:
    name: one of `models.MODELS`.
    clip: frames, height and width.
    num_classes: width of the logits.
    **options: the model's own.

  Raises:
    ModelError: an unknown name or option, or options that do not fit together.
  """
  with models.shapes_only():
    model = nnx.eval_shape(lambda: models.create(name, num_classes=num_classes, **options))
  model.eval()
  graphdef, params, batch_stats = models.split(model)
  clips = jax.ShapeDtypeStruct((1, *clip, 3), jnp.float32)

  def forward(params: Any, batch_stats: Any, clips: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, params, batch_stats)(clips)

  return multiply_accumulates(forward, params, batch_stats, clips)
