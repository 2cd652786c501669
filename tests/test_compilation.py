import jax
import numpy as np

from hybrid_video import compilation


def test_programs_are_counted_once_each_and_only_while_counting():
  double, triple = jax.jit(lambda x: 2 * x), jax.jit(lambda x: 3 * x)
  x = np.ones(3, np.float32)
  double(x)
  with compilation.counted() as found:
    double(x)
    assert (found.programs, found.seconds) == (0, 0.0)
    triple(x)
    triple(x)
    triple(np.ones(4, np.float32))
  assert found.programs == 2
  assert found.from_cache == 0
  before = found.seconds
  assert 0 < before < 60
  triple(np.ones(5, np.float32))
  assert (found.programs, found.seconds) == (2, before)


def test_counting_ends_with_the_block_that_fails():
  counting = compilation.counted()
  try:
    with counting as found:
      raise KeyError
  except KeyError:
    pass
  jax.jit(lambda x: x - 7)(np.ones(3, np.float32))
  assert found.programs == 0
