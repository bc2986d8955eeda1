"""What newer JAX has as objects and older JAX as other primitives: the derivatives are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch import chainrule


def agree(f, *args, tolerance=1e-12):
    """Cotangents and tangents of f by the rules, against JAX's."""
    y, pullback = chainrule.vjp(f, *args)
    expected_y, expected = jax.vjp(f, *args)
    for found, right in zip(pullback(jnp.cos(y)), expected(jnp.cos(expected_y)), strict=True):
        np.testing.assert_allclose(found, right, rtol=tolerance)
    dots = tuple(map(jnp.sin, args))
    np.testing.assert_allclose(chainrule.jvp(f, args, dots)[1], jax.jvp(f, args, dots)[1], rtol=tolerance)


def test_ldexp():
    agree(lambda x: jnp.ldexp(jnp.sin(x), jnp.asarray([1, -2, 0])), jnp.asarray([0.3, -0.7, 2.0]))


def test_frexp():
    agree(lambda x: jnp.frexp(x * x)[0], jnp.asarray([0.3, -0.7, 5.0]))


def test_searchsorted_has_integer_results():
    knots = jnp.linspace(0.0, 1.0, 4)
    agree(lambda x: x * jnp.searchsorted(knots, x), jnp.asarray([0.1, 0.5, 0.9]))


def square_root(a, with_parameter):
    """x with x^2 = a: by the implicit function theorem, whatever the solver does."""

    def solve(f, guess):
        return jax.lax.fori_loop(0, 30, lambda _, x: x - f(x) / (2 * x), guess)

    return jax.lax.custom_root(
        lambda x: x**2 - with_parameter(a), jnp.ones_like(a), solve, lambda g, y: y / g(1.0)
    )


@pytest.mark.parametrize("with_parameter", [lambda a: a, jnp.sin])
def test_custom_root(with_parameter):
    agree(lambda a: square_root(a, with_parameter), jnp.asarray(0.7), tolerance=1e-10)


def test_the_derivative_of_a_root_is_that_of_its_formula():
    a = jnp.asarray(0.7)
    np.testing.assert_allclose(
        chainrule.grad(lambda a: square_root(a, lambda a: a))(a), 0.5 / jnp.sqrt(a), rtol=1e-12
    )
