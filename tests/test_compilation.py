import jax
import numpy as np

from hybrid_video import compilation


def test_programs_are_counted_once_each_and_only_while_counting():
  double, triple = jax.jit(lambda x: 2 * x), jax.jit(lambda x: 3 * x)
  x = np.ones(3, np.float32)
  double(x)
  with compilation.counted() as compiled:
    double(x)
    assert (compiled.programs, compiled.seconds) == (0, 0.0)
    triple(x)
    triple(x)
    triple(np.ones(4, np.float32))
  assert compiled.programs == 2
  assert compiled.from_cache == 0
  before = compiled.seconds
  assert 0 < before < 60
  triple(np.ones(5, np.float32))
  assert (compiled.programs, compiled.seconds) == (2, before)


def test_counting_ends_with_the_block_that_fails():
  counting = compilation.counted()
  try:
    with counting as compiled:
      raise KeyError
  except KeyError:
    pass
  jax.jit(lambda x: x - 7)(np.ones(3, np.float32))
  assert compiled.programs == 0
