import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_video import compilation, sharding


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


def _of_three(function):
  program = compilation.Program(jax.jit(function), jax.ShapeDtypeStruct((3,), jnp.float32))
  program.start()
  return program


@pytest.mark.parametrize("is_started", [True, False])
def test_a_function_is_compiled_once_at_its_first_call_or_before(is_started):
  shape = jax.ShapeDtypeStruct((3,), jnp.float32)
  with compilation.counted() as compiled:
    double = compilation.Program(jax.jit(lambda x: 2 * x), shape)
    assert compiled.programs == 0
    if is_started:
      double.start()
    np.testing.assert_array_equal(double(np.ones(3, np.float32)), [2, 2, 2])
    np.testing.assert_array_equal(double(np.zeros(3, np.float32)), [0, 0, 0])
  assert compiled.programs == 1


def test_what_the_compiler_raises_is_raised_by_the_call(monkeypatch):
  monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self: 1 / 0)
  double = _of_three(lambda x: 2 * x)
  with pytest.raises(ZeroDivisionError):
    double(np.ones(3, np.float32))


def test_what_is_wrong_in_tracing_is_raised_at_once():
  with pytest.raises(KeyError):
    _of_three(lambda x: {}[0])


def test_arguments_of_another_shape_are_refused():
  with pytest.raises(TypeError, match=r"float32\[4\]"):
    _of_three(lambda x: 2 * x)(np.ones(4, np.float32))


def test_options_of_a_tpus_compiler_are_for_tpus():
  assert compilation.options(sharding.make_mesh()) is None


def test_options_that_the_compiler_does_not_know_are_left_out_and_named(caplog):
  mesh = sharding.make_mesh()
  known = {"xla_llvm_disable_expensive_passes": True}
  assert compilation._known(known, mesh) == known
  assert not caplog.records
  assert compilation._known(known | {"xla_cpu_gone_for_long": False}, mesh) is None
  (record,) = caplog.records
  assert "xla_cpu_gone_for_long" in record.getMessage()
  assert "fewer than 8 clips a chip are slower" in record.getMessage()
