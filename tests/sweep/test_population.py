"""How programs are compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.sweep.population import compile_with_fewer_copies


def test_sums_are_not_cut_into_parts():
    program = jax.jit(partial(jnp.sum, axis=0)).lower(jnp.ones((100, 25)))
    assert "reduce-window" in program.compile().as_text()  # else the option is no longer needed
    assert "reduce-window" not in compile_with_fewer_copies(program).as_text()


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_long_sums_are_exact(axis):
    x = np.random.default_rng(0).uniform(0.5, 1, (1000, 1000)).astype(np.float32)
    compiled = compile_with_fewer_copies(jax.jit(partial(jnp.sum, axis=axis)).lower(x))
    np.testing.assert_allclose(compiled(x), x.astype(np.float64).sum(axis), rtol=1e-6)


class Strict(jax.stages.Lowered):
    """A program whose compiler knows some options only."""

    def __init__(self, known, error="INVALID_ARGUMENT: No such compile option: '{}'"):
        self.known, self.error, self.used = known, error, None

    def compile(self, options):
        for name in options:
            if name not in self.known:
                raise jax.errors.JaxRuntimeError(self.error.format(name))
        self.used = tuple(options)
        return jax.jit(jnp.sum).lower(jnp.ones(3)).compile()


@pytest.mark.parametrize("known", [(), ("xla_disable_hlo_passes",)])
def test_options_that_the_compiler_does_not_know_are_left_out(known):
    program = Strict(known)
    compile_with_fewer_copies(program)
    assert program.used == known


def test_other_errors_of_the_compiler_are_raised():
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        compile_with_fewer_copies(Strict((), error="out of memory"))
