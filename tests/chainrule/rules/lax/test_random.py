"""The derivative of a draw of the gamma distribution, and constants for all other draws."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpresearch.chainrule.primitives import Equation, table
from bpresearch.chainrule.rules.lax import random  # noqa: F401

SHAPES = ((0.4, 1.0), (2.5, 20.0))
"""Parameters of gamma distributions."""


@cache
def draw(shapes, log_space, dtype="float64"):
    """The equation of a draw with these parameters, evaluated."""
    a = jnp.asarray(shapes, dtype)
    sample = jax.random.loggamma if log_space else jax.random.gamma
    closed = jax.make_jaxpr(lambda a: sample(jax.random.key(3), a))(a)
    while all(eqn.primitive.name != "random_gamma" for eqn in closed.eqns):
        (inner,) = [eqn for eqn in closed.eqns if "jaxpr" in eqn.params]
        closed = inner.params["jaxpr"]
    (eqn,) = [eqn for eqn in closed.eqns if eqn.primitive.name == "random_gamma"]
    assert eqn.params["log_space"] == log_space
    e = Equation(eqn.primitive, eqn.params, (jax.random.key(3), a), wanted=(False, True))
    return Equation(eqn.primitive, eqn.params, e.ins, e.bind(*e.ins), e.wanted)


@pytest.mark.parametrize("log_space", [False, True])
def test_a_draw_moves_as_in_jax(log_space):
    e, rule = draw(SHAPES, log_space), table.rules["random_gamma"]
    y_bar = jnp.asarray([[1.0, -2.0], [0.5, 3.0]])
    expected = jax.vjp(lambda a: e.bind(e.ins[0], a)[0], e.ins[1])[1](y_bar)[0]
    key_bar, a_bar = rule.backward(e, y_bar)
    assert key_bar is None
    np.testing.assert_allclose(a_bar, expected, rtol=1e-13)
    np.testing.assert_allclose(rule.tangent(e, None, y_bar), expected, rtol=1e-13)


def test_a_draw_stays_at_its_quantile():
    """P(a, y) = u:  P(a + h, y + h dy/da) - P(a, y) is of second order in h."""
    e, h = draw(SHAPES, False), 1e-5
    slope = table.rules["random_gamma"].tangent(e, None, jnp.ones((2, 2)))
    (_, a), (y,) = e.ins, e.outs
    up, down = (lax.igamma(a + s * h, y + s * h * slope) for s in (1, -1))
    np.testing.assert_allclose((up - down) / (2 * h), 0.0, atol=1e-9)


def test_the_logarithm_of_a_vanishing_draw_has_a_finite_derivative():
    e = draw((1e-4,), True, "float32")
    assert lax.exp(e.outs[0])[0] == 0
    assert np.isfinite(table.rules["random_gamma"].tangent(e, None, jnp.ones(1, jnp.float32)))


@pytest.mark.parametrize("name", ["random_bits", "random_split", "random_wrap", "threefry2x32"])
def test_other_draws_are_constant(name):
    assert name in table.constants
