"""Reductions: sums, extrema with ties, products with zeros, and any associative operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jax import lax

import bpresearch.chainrule.rules.lax.reductions  # noqa: F401  (fills the table)
from bpresearch.chainrule.primitives import Equation, table

X = np.random.default_rng(0).normal(size=(3, 4, 2))
TIES = np.round(X)
ZEROS = np.where(np.abs(X) < 0.4, 0.0, X)
AXES = [(1,), (0, 2), ()]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize(
    "x", [X, X + 1j * X[::-1], X.astype(jnp.bfloat16)], ids=["real", "complex", "bfloat16"]
)
def test_sums_have_jax_s_derivative(assert_equations_right, axes, x):
    tolerance = 1e-12 if x.itemsize > 2 else 2e-2
    assert_equations_right(lambda x: lax.reduce_sum(x, axes), x, names="reduce_sum", tolerance=tolerance)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("x", [TIES, np.full((3, 4, 2), np.inf)], ids=["ties", "all infinite"])
def test_extrema_share_ties_as_jax(assert_equations_right, axes, x):
    assert_equations_right(lambda x: lax.reduce_max(x, axes), x, names="reduce_max")
    assert_equations_right(lambda x: lax.reduce_min(x, axes), x, names="reduce_min")


def test_a_row_with_nan_has_nan_as_in_jax(assert_equations_right):
    x = np.array([[1.0, np.nan, 2.0], [3.0, 3.0, 1.0]])
    assert_equations_right(lambda x: lax.reduce_max(x, (1,)), x, names="reduce_max")


@pytest.mark.parametrize("axes", [(1,), (0, 2)])
@pytest.mark.parametrize("x", [ZEROS, X + 1j], ids=["zeros", "complex"])
def test_products_have_jax_s_derivative(assert_equations_right, axes, x):
    assert_equations_right(lambda x: lax.reduce_prod(x, axes), x, names="reduce_prod")


@given(n=st.integers(0, 9), zeros=st.integers(0, 2))
@hypothesis_settings(max_examples=3)
def test_products_of_any_length(assert_equations_right, n, zeros):
    x = np.where(np.arange(n) < zeros, 0.0, np.arange(1.0, n + 1))
    assert_equations_right(lambda x: lax.reduce_prod(x, (0,)), x, names="reduce_prod")


def test_second_derivatives_of_a_product_are_exact_at_zeros():
    """d^2 y / dx_i dx_j is the product of the others."""
    x = jnp.array([0.0, 2.0, 0.0, 3.0])
    (eqn,) = jax.make_jaxpr(lambda x: lax.reduce_prod(x, (0,)))(x).jaxpr.eqns

    def x_bar(x):
        e = Equation(eqn.primitive, eqn.params, (x,), (jnp.prod(x),), (True,))
        return table.rules["reduce_prod"].backward(e, jnp.ones(()))

    others = [[np.prod(np.delete(x, [i, j])) if i != j else 0.0 for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(jax.jacfwd(x_bar)(x), others)


def logaddexp_and_product(a, b):
    (a, p), (b, q) = a, b
    return jnp.logaddexp(a, b), p * q


REDUCERS = {
    "sum from one": (lambda a, b: a + b, 1.0, lambda x: 1.0 + jnp.sum(x, 1)),
    "product from two": (lambda a, b: a * b, 2.0, lambda x: 2.0 * jnp.prod(x, 1)),
    "probability of any": (lambda a, b: a + b - a * b, 0.5, lambda x: 1 - 0.5 * jnp.prod(1 - x, 1)),
    "hypotenuse": (lambda a, b: jnp.sqrt(a * a + b * b), 0.5, lambda x: jnp.sqrt(0.25 + jnp.sum(x * x, 1))),
}


@pytest.mark.parametrize("operation, start, meaning", REDUCERS.values(), ids=REDUCERS)
@pytest.mark.parametrize("n", [5])
def test_any_reduction_has_the_derivative_of_what_it_means(operation, start, meaning, n):
    x = jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, (2, n, 3)))
    f = lambda x, v: lax.reduce(x, v, operation, (1,))  # noqa: E731
    e, y = evaluated(f, x, jnp.float64(start))
    expected, pull = jax.vjp(meaning, x)
    np.testing.assert_allclose(y, expected)
    y_bar, x_dot = jnp.cos(y), jnp.sin(3 * x)
    x_bar, v_bar = jax.jit(lambda y_bar: table.rules["reduce"].backward(e, y_bar))(y_bar)
    np.testing.assert_allclose(x_bar, pull(y_bar)[0], rtol=1e-12)
    (y_dot,) = jax.jit(lambda x_dot: table.rules["reduce"].tangent(e, x_dot, None))(x_dot)
    np.testing.assert_allclose(y_dot, jax.jvp(meaning, (x,), (x_dot,))[1], rtol=1e-12)
    step = 1e-6
    moved = jnp.vdot(y_bar, f(x, start + step) - f(x, start - step)) / (2 * step)
    np.testing.assert_allclose(v_bar, moved, rtol=1e-7)


def test_a_reduction_of_two_arrays_over_two_axes():
    a, p = X, np.abs(X)
    f = lambda a, p: lax.reduce((a, p), (-jnp.inf, 1.0), logaddexp_and_product, (2, 0))  # noqa: E731
    meaning = lambda a, p: (jax.nn.logsumexp(a, (0, 2)), jnp.prod(p, (0, 2)))  # noqa: E731
    e, *ys = evaluated(f, a, p)
    bars = [jnp.cos(y) for y in ys]
    found = jax.jit(lambda *bars: table.rules["reduce"].backward(e, *bars))(*bars)
    for bar, expected in zip(found, jax.vjp(meaning, a, p)[1](tuple(bars)), strict=False):
        np.testing.assert_allclose(bar, expected, rtol=1e-12)


def evaluated(f, *args):
    """The one equation of f, evaluated, and its results. Its operands are the arguments, then literals."""
    (eqn,) = jax.make_jaxpr(f)(*args).jaxpr.eqns
    literals = [jnp.asarray(v.val) for v in eqn.invars if hasattr(v, "val")]
    e = Equation(eqn.primitive, eqn.params, (*map(jnp.asarray, args), *literals))
    outs = e.bind(*e.ins)
    return Equation(
        eqn.primitive, eqn.params, e.ins, outs, (True,) * len(args) + (False,) * len(literals)
    ), *outs


def test_logical_reductions_are_constant():
    assert {"reduce_and", "reduce_or", "reduce_xor"} <= table.constants.keys()
