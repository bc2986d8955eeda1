"""Cumulative operations against JAX: in both directions, at ties, zeros and infinities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax import lax

from bpresearch.chainrule.primitives import Equation, table
from bpresearch.chainrule.rules.lax import cumulative  # noqa: F401

ALL = (lax.cumsum, lax.cumprod, lax.cummax, lax.cummin, lax.cumlogsumexp)
every = pytest.mark.parametrize("f", ALL, ids=lambda f: f.__name__)


@every
@pytest.mark.parametrize(
    "shape, axis, reverse", [((2,), 0, False), ((6, 2), 0, True), ((2, 7), 1, False)], ids=str
)
def test_along_an_axis(f, shape, axis, reverse, assert_equations_right):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    assert_equations_right(lambda x: f(x, axis=axis, reverse=reverse), x, names=f.__name__)


@settings(max_examples=10)
@given(arrays(float, 5, elements=st.integers(-1, 1).map(float)))
@pytest.mark.parametrize("f", [lax.cumprod, lax.cummax, lax.cummin], ids=lambda f: f.__name__)
def test_zeros_and_ties(f, assert_equations_right, x):
    assert_equations_right(f, jnp.asarray(x), names=f.__name__)


@pytest.mark.parametrize("f", [lax.cumsum, lax.cummax, lax.cumlogsumexp], ids=lambda f: f.__name__)
def test_bfloat16_stays_bfloat16(f, assert_equations_right):
    assert_equations_right(f, jnp.asarray([0.5, -1.5, 2.0], jnp.bfloat16), tolerance=0.05)


@pytest.mark.parametrize("f", [lax.cumsum, lax.cumprod, lax.cumlogsumexp], ids=lambda f: f.__name__)
def test_complex_numbers(f, assert_equations_right):
    assert_equations_right(
        f, jnp.asarray([0.5 + 1j, -1.5j, 0.7, 0.2 - 0.3j]), names=f.__name__, tolerance=1e-11
    )


@every
def test_forward_and_forward_mode_take_the_same_tree(f):
    """The rule's own results are those of the primitive, alone and together with their tangents."""
    x, params = jnp.asarray([0.5, -1.2, 2.0, 0.1, 1.5]), {"axis": 0, "reverse": True}
    rule, e = table.rules[f.__name__], Equation(getattr(lax, f"{f.__name__}_p"), params, (x,), (), (True,))
    results = [rule.forward(e)[0], rule.pushforward(e, x)[0]] if hasattr(rule, "forward") else [e.bind(x)]
    for (y,) in results:
        np.testing.assert_allclose(y, f(x, reverse=True), rtol=1e-14)


@pytest.mark.parametrize("length", [0, 1])
def test_nothing_to_combine(length):
    x = jnp.ones((3, length))
    e = Equation(lax.cumprod_p, {"axis": 1, "reverse": False}, (x,), (x,), (True,))
    assert table.rules["cumprod"].backward(e, x).shape == x.shape


def test_what_has_no_mass_has_no_derivative():
    """Elements with weight zero, e^(-inf): JAX has NaN."""
    x = jnp.asarray([-jnp.inf, -jnp.inf, 0.0, 1.0])
    e = Equation(lax.cumlogsumexp_p, {"axis": 0, "reverse": False}, (x,), (lax.cumlogsumexp(x),), (True,))
    x_bar = table.rules["cumlogsumexp"].backward(e, jnp.asarray([0.0, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(x_bar, [0.0, 0.0, 1 + 1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-14)


@pytest.mark.parametrize("f", [lax.cumprod, lax.cumlogsumexp], ids=lambda f: f.__name__)
def test_backward_can_be_differentiated_again(f):
    """The Hessian of a weighted sum, by JAX from the rule's own operations, is the one of JAX."""
    x, w = jnp.asarray([0.5, -1.2, 2.0]), jnp.asarray([1.0, -2.0, 0.5])

    def x_bar(x):
        params = {"axis": 0, "reverse": False}
        e = Equation(getattr(lax, f"{f.__name__}_p"), params, (x,), (f(x),), (True,))
        bars = table.rules[f.__name__].backward(e, w)
        return bars[0] if isinstance(bars, tuple) else bars

    hessian = jax.jit(lambda x: (jax.jacobian(x_bar)(x), jax.hessian(lambda x: w @ f(x))(x)))
    np.testing.assert_allclose(*hessian(x), atol=1e-13)
