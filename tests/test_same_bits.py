"""What a program skips, and that what it does not skip has the same bits whoever uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.same_bits import Branch, blank, whole


@pytest.mark.parametrize("alone", [True, False])
def test_what_is_needed_of_a_healthy_run_is_computed(alone):
    for needed, healthy in ((True, True), (False, True), (False, False)):
        value = jax.jit(lambda n, h: Branch(alone)(n, h, lambda: {"x": jnp.ones(2)}))(
            needed, jnp.array(healthy)
        )
        np.testing.assert_array_equal(value["x"], np.full(2, 1.0 if needed else np.nan))


def test_a_run_that_has_diverged_is_skipped_where_it_is_alone():
    """Among others both sides are computed anyway, and what it computes is not looked at."""
    lost = jnp.array(False)
    branches = [Branch(alone)(True, lost, lambda: jnp.float32(3)) for alone in (True, False)]
    np.testing.assert_array_equal(branches, [np.nan, 3])
    kept = Branch(True)(True, lost, lambda: jnp.float32(3), otherwise=lambda: jnp.float32(5))
    assert kept == 5


def test_only_alone_a_program_asks_whether_a_run_has_diverged(equations):
    def conditions(alone):
        program = jax.make_jaxpr(lambda n, h: Branch(alone)(n, h, lambda: jnp.float32(3)))(
            True, jnp.array(True)
        )
        return sum(e.primitive.name == "cond" for e in equations(program.jaxpr))

    assert (conditions(True), conditions(False)) == (2, 1)


def test_blanks_have_the_form_of_what_they_stand_for(users_ranks):
    def values():
        numbers = {"n": jnp.zeros((), jnp.int32), "x": jnp.zeros((2, 1), jnp.bfloat16)}
        return numbers | {"key": jax.random.split(jax.random.key(1), 3), "b": jnp.zeros(2, bool)}

    shapes = jax.eval_shape(values)
    blanks = blank(shapes)
    for name, shape in shapes.items():
        assert (blanks[name].shape, blanks[name].dtype) == (shape.shape, shape.dtype)
    assert not blanks["b"].any() and blanks["n"] == 0 and jnp.isnan(blanks["x"]).all()


def test_a_whole_is_one_for_all_its_uses():
    """A barrier in the compiled program, which no fusion goes through."""
    used_twice = jax.jit(lambda x: (lambda y: (y["a"] + 1, y["a"] * 2))(whole({"a": jnp.sin(x)})))
    text = used_twice.lower(jnp.ones(3)).as_text()
    assert text.count("optimization_barrier") == 1
    np.testing.assert_array_equal(used_twice(jnp.ones(3))[1], 2 * jnp.sin(jnp.ones(3)))
