"""Sorting against JAX: cotangents go back to where the elements came from, at ties as well."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax import lax

from bpresearch.chainrule.primitives import Equation, table
from bpresearch.chainrule.rules.lax import sorting  # noqa: F401

X = np.random.default_rng(0).permutation(12).reshape(3, 4) / 4.0


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "complex128"])
def test_one_array(axis, dtype, assert_equations_right):
    assert_equations_right(lambda x: lax.sort(x, dimension=axis), jnp.asarray(X, dtype), names="sort")


@pytest.mark.parametrize("keys", [1, 2, 3])
def test_several_arrays_by_some_of_them(keys, assert_equations_right):
    x, y, z = jnp.floor(jnp.asarray(X)), jnp.floor(jnp.asarray(X[::-1])), jnp.asarray(X.T.reshape(3, 4))
    assert_equations_right(lambda *xs: lax.sort(xs, num_keys=keys), x, y, z, names="sort")


def test_payload_of_integer_keys(assert_equations_right):
    keys = jnp.asarray([2, 0, 1, 0])
    assert_equations_right(lambda x: lax.sort((keys, x), num_keys=1)[1], jnp.arange(4.0), names="sort")


@settings(max_examples=10)
@given(arrays(float, 6, elements=st.integers(-1, 1).map(float)))
def test_ties_keep_their_order(assert_equations_right, x):
    assert_equations_right(lax.sort, jnp.asarray(x), names="sort")


def test_forward_keeps_the_permutation_for_backward():
    """So that nothing is sorted twice; results of which nobody asks the derivative are left out."""
    rule, x, y = table.rules["sort"], jnp.asarray([3.0, 1.0, 2.0]), jnp.asarray([10.0, 20.0, 30.0])
    (eqn,) = jax.make_jaxpr(lambda x, y: lax.sort((x, y), num_keys=1))(x, y).eqns
    e = Equation(eqn.primitive, eqn.params, (x, y), wanted=(True, True))
    outs, kept = rule.forward(e)
    np.testing.assert_array_equal(outs[1], [20.0, 30.0, 10.0])
    e = Equation(eqn.primitive, eqn.params, (x, y), outs, (True, True), kept=kept)
    backward = jax.make_jaxpr(lambda bar: rule.backward(e, None, bar)[1])(y)
    assert "sort" not in {eqn.primitive.name for eqn in backward.eqns}
    x_bar, y_bar = rule.backward(e, None, jnp.asarray([1.0, 2.0, 3.0]))
    assert x_bar is None
    np.testing.assert_array_equal(y_bar, [3.0, 1.0, 2.0])
    outs, (x_dot, y_dot) = rule.pushforward(e, None, y)
    assert x_dot is None
    np.testing.assert_array_equal(y_dot, [20.0, 30.0, 10.0])


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("k", [1, 3])
def test_largest_elements(axis, k, assert_equations_right):
    assert_equations_right(lambda x: lax.top_k(x, k, axis=axis), jnp.asarray(X), names="top_k")


def test_largest_of_equal_elements_in_bfloat16(assert_equations_right):
    assert_equations_right(
        lambda x: lax.top_k(x, 2), jnp.asarray([1.0, 2.0, 2.0, 2.0], jnp.bfloat16), names="top_k"
    )


@pytest.mark.parametrize("f", [lax.approx_max_k, lax.approx_min_k], ids=lambda f: f.__name__)
@pytest.mark.parametrize("axis", [0, -1])
def test_approximately_largest_elements(f, axis, assert_equations_right):
    x = jnp.asarray(X, jnp.float32)
    assert_equations_right(lambda x: f(x, 2, reduction_dimension=axis), x, names="approx_top_k")


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_places_are_constant(name):
    assert name in table.constants
