"""Special functions against JAX's derivative of each primitive, and what JAX refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax import lax

from bpresearch.chainrule.primitives import Equation, NoPrimitiveRuleError, table
from bpresearch.chainrule.rules.lax import special  # noqa: F401

LINE = [-4.2, -0.7, 0.0, 1e-9, 0.4, 2.6, 9.0]
UNARY = {
    lax.lgamma: [-0.5, 0.3, 1.0, 60.0], lax.digamma: [0.3, 1.0, 60.0], lax.erf: LINE, lax.erfc: LINE,
    lax.erf_inv: [-0.99, -0.2, 0.0, 0.7], lax.bessel_i0e: LINE, lax.bessel_i1e: [*LINE, -1e-20, 1e-17],
}  # fmt: skip


def rule_in_last(f, *args):
    """The equation of f(*args), of whose operands only the last is differentiated, and its rule."""
    (eqn,) = jax.make_jaxpr(f)(*args).eqns
    wanted = (False,) * (len(args) - 1) + (True,)
    return Equation(eqn.primitive, eqn.params, args, (f(*args),), wanted), table.rules[eqn.primitive.name]


@pytest.mark.parametrize("f", UNARY, ids=lambda f: f.__name__)
def test_function_of_one_number(f, assert_equations_right):
    # JAX 0.12 computes exp(-x^2) in two parts, to the last digit
    assert_equations_right(f, jnp.asarray(UNARY[f]), names=f.__name__, tolerance=1e-13)


@pytest.mark.parametrize("f", [lax.lgamma, lax.erfc, lax.bessel_i1e], ids=lambda f: f.__name__)
def test_bfloat16_stays_bfloat16(f, assert_equations_right):
    assert_equations_right(f, jnp.asarray([0.3, 0.6], jnp.bfloat16), tolerance=0.05)


@pytest.mark.parametrize("x", [-1.0, 1.0])
def test_the_inverse_error_function_is_infinitely_steep_at_its_ends(x):
    e, rule = rule_in_last(lax.erf_inv, jnp.asarray(x))
    assert rule.backward(e, jnp.asarray(1.0))[0] == np.inf


@pytest.mark.parametrize("f", [lax.igamma, lax.igammac], ids=lambda f: f.__name__)
def test_incomplete_gamma_functions_in_both_operands(f, assert_equations_right):
    a, x = jnp.asarray([0.3, 1.0, 2.5, 8.0]), jnp.asarray([0.1, 2.0, 2.5, 1.0])
    assert_equations_right(f, a, x, names=f.__name__)
    assert_equations_right(f, jnp.asarray(2.5), x, names=f.__name__)


@settings(max_examples=10)
@given(arrays(float, 3, elements=st.floats(0.1, 20)), arrays(float, 3, elements=st.floats(0.1, 20)))
def test_incomplete_gamma_function_at_any_place(assert_equations_right, a, x):
    assert_equations_right(lax.igamma, jnp.asarray(a), jnp.asarray(x), tolerance=1e-10)


@pytest.mark.parametrize(
    "f, args",
    [
        (lax.polygamma, (jnp.asarray([0.0, 1.0, 2.0]), jnp.asarray([0.4, 1.5, 9.0]))),
        (lax.betainc, (jnp.asarray([0.5, 2.0]), jnp.asarray([1.5, 0.7]), jnp.asarray([0.2, 0.9]))),
    ],
    ids=["polygamma", "betainc"],
)
def test_functions_with_a_derivative_in_their_last_operand_only(f, args):
    args = tuple(x.astype(float) for x in args)
    e, rule = rule_in_last(f, *args)
    bar = jnp.linspace(0.5, 2.0, args[-1].size)
    expected = jax.vjp(lambda x: f(*args[:-1], x), args[-1])[1](bar)[0]
    np.testing.assert_allclose(rule.backward(e, bar)[-1], expected, rtol=1e-13)
    np.testing.assert_allclose(rule.tangent(e, *[None] * (len(args) - 1), bar), expected, rtol=1e-13)
    with pytest.raises(NoPrimitiveRuleError, match="no derivative"):
        rule.tangent(e, bar, *[None] * (len(args) - 1))


@pytest.mark.parametrize("name", ["zeta", "igamma_grad_a"])
def test_functions_that_jax_does_not_differentiate_are_refused(name):
    assert name in table.refused
