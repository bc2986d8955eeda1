"""Elementwise rules against JAX: broadcasting, kinks, special points, complex numbers, types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax import lax

from bpresearch.chainrule.primitives import Equation, table
from bpresearch.chainrule.rules.lax import elementwise  # noqa: F401

LINE = [-7.3, -1.4, -0.6, 1e-9, 0.2, 1.0, 3.1]
POSITIVE = [1e-9, 0.03, 0.9, 1.0, 4.2, 77.0]
INSIDE = [-0.98, -0.3, -1e-9, 0.0, 0.5, 0.999]

UNARY = {
    lax.neg: LINE, lax.square: LINE, lax.sqrt: POSITIVE, lax.rsqrt: POSITIVE, lax.cbrt: POSITIVE,
    lax.exp: LINE, lax.exp2: LINE, lax.expm1: LINE, lax.log: POSITIVE, lax.log1p: POSITIVE,
    lax.logistic: LINE, lax.sin: LINE, lax.cos: LINE, lax.tan: LINE, lax.asin: INSIDE, lax.acos: INSIDE,
    lax.atan: LINE, lax.sinh: LINE, lax.cosh: LINE, lax.tanh: LINE, lax.asinh: LINE, lax.acosh: [1.02, 40],
    lax.atanh: INSIDE, lax.abs: LINE, lax.sign: LINE,
}  # fmt: skip
SPECIAL = {
    lax.abs: [0.0, -0.0], lax.sign: [0.0], lax.expm1: [0.0, -45.0], lax.log1p: [1e-20],
    lax.logistic: [800.0, -800.0], lax.tanh: [400.0, 0.0], lax.exp: [-np.inf, 0.0], lax.log: [np.inf, 1.0],
    lax.atan: [np.inf, 0.0], lax.asinh: [-1e5, 0.0], lax.square: [0.0], lax.sqrt: [np.inf, 1.0],
}  # fmt: skip
UNARY |= {getattr(lax, name): LINE for name in ("log2", "one_minus_square") if hasattr(lax, name)}
UNARY |= {f: POSITIVE for f in UNARY if f.__name__ == "log2"}
BINARY = (lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min, lax.pow, lax.atan2)
COMPLEX = [0.3 + 0.4j, -1.7 + 0.2j, -0.5 - 2.5j, 2.1 - 0.7j]


def of(table):
    return pytest.mark.parametrize("f", table, ids=lambda f: f.__name__)


def slope(f, x):
    """The cotangent of x, by the rule, for the cotangent 1."""
    (eqn,) = jax.make_jaxpr(f)(x).eqns
    e = Equation(eqn.primitive, eqn.params, (x,), (f(x),), (True,))
    bars = table.rules[eqn.primitive.name].backward(e, jnp.ones_like(x))
    return bars[0] if isinstance(bars, tuple) else bars


@of(UNARY)
def test_function_of_one_number(f, assert_equations_right):
    assert_equations_right(f, jnp.asarray(UNARY[f]))


@of([lax.exp2, lax.rsqrt, lax.cbrt, lax.log1p, lax.asin, lax.tanh, lax.logistic, lax.abs])
def test_bfloat16_stays_bfloat16(f, assert_equations_right):
    assert_equations_right(f, jnp.asarray([0.3, 0.6, 0.8], jnp.bfloat16), tolerance=0.05)


@of([f for f in UNARY if f not in (lax.cbrt, lax.sign, lax.acosh)])
def test_function_of_a_complex_number(f, assert_equations_right):
    assert_equations_right(f, jnp.asarray(COMPLEX))


@pytest.mark.parametrize("f", [lax.sign, lax.acosh])
@pytest.mark.parametrize("z", COMPLEX)
def test_complex_derivatives_that_jax_had_wrong_agree_with_differences(f, z):
    """y_dot in the directions 1 and i, from the transpose: re(x_bar x_dot) = re(y_bar y_dot)."""
    for x_dot in (1.0, 1j):
        y_dot = (f(jnp.asarray(z + 1e-6 * x_dot)) - f(jnp.asarray(z - 1e-6 * x_dot))) / 2e-6
        np.testing.assert_allclose((slope(f, jnp.asarray(z)) * x_dot).real, y_dot.real, atol=1e-8)


def test_the_tangent_of_a_complex_sign_is_the_transpose_of_its_cotangent():
    rule, x = table.rules["sign"], jnp.asarray(COMPLEX)
    e = Equation(lax.sign_p, {}, (x,), (lax.sign(x),), (True,))
    x_dot, y_bar = x[::-1] * 1j, x**2
    there, back = (y_bar * rule.tangent(e, x_dot)).real, (rule.backward(e, y_bar) * x_dot).real
    np.testing.assert_allclose(there, back, rtol=1e-14)


@of(SPECIAL)
def test_special_points(f, assert_equations_right):
    assert_equations_right(f, jnp.asarray(SPECIAL[f]))


@pytest.mark.parametrize("z", [0j, 1e-200j])
def test_absolute_value_of_a_complex_number_at_and_near_zero(z, assert_equations_right):
    assert_equations_right(lax.abs, jnp.asarray(z))


@pytest.mark.parametrize(
    "f, x",
    [(lax.sqrt, 0.0), (lax.cbrt, 0.0), (lax.log, 0.0), (lax.log, -0.0), (lax.log1p, -1.0), (lax.asin, 1.0)],
)
def test_infinite_slopes_have_the_sign_of_jax(f, x):
    x = jnp.asarray(x)
    assert slope(f, x) == jax.grad(f)(x)
    assert abs(slope(f, x)) == np.inf


@of(BINARY)
@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((), (2, 3)), ((2, 3), ())], ids=str)
def test_function_of_two_numbers(f, shapes, assert_equations_right):
    a, b = (np.random.default_rng(i).uniform(0.5, 2.5, shape) for i, shape in enumerate(shapes))
    assert_equations_right(f, jnp.asarray(a), jnp.asarray(b), names=f.__name__)


@of([lax.add, lax.sub, lax.mul, lax.div, lax.pow])
def test_function_of_two_complex_numbers(f, assert_equations_right):
    assert_equations_right(f, jnp.asarray(COMPLEX), jnp.asarray(COMPLEX[::-1]), names=f.__name__)


@of([lax.add, lax.sub, lax.mul, lax.div, lax.max, lax.min])
def test_axes_of_length_one_are_summed_over(f, assert_equations_right):
    """JAX's new versions broadcast them within the primitive."""
    a, b = jnp.asarray([[0.5], [2.0]]), jnp.asarray([[1.0, 2.0, 3.0]])
    e = Equation(
        jax.make_jaxpr(f)(b, b).eqns[0].primitive, {}, (a, b), (f(*jnp.broadcast_arrays(a, b)),), (True, True)
    )
    if f is lax.mul:
        e.params["out_dtype"] = None
    found = table.rules[f.__name__].backward(e, jnp.ones((2, 3)))
    expected = jax.vjp(lambda a, b: f(*jnp.broadcast_arrays(a, b)), a, b)[1](jnp.ones((2, 3)))
    for bar, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(bar, right, rtol=1e-14)


@of([lax.max, lax.min])
def test_equal_numbers_have_half_of_the_derivative_each(f, assert_equations_right):
    assert_equations_right(
        f, jnp.asarray([1.0, 2.0, -0.0, np.inf]), jnp.asarray([1.0, 3.0, 0.0, np.inf]), names=f.__name__
    )


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, -1, -2])
def test_fixed_integer_power(exponent, assert_equations_right):
    x = jnp.asarray([-1.5, 0.3, 2.0] + ([0.0] if exponent > 0 else []))
    assert_equations_right(lambda x: lax.integer_pow(x, exponent), x)
    assert_equations_right(lambda x: lax.integer_pow(x, exponent), x + 0.5j)


def test_power_at_zero(assert_equations_right):
    """JAX: zero in the exponent, and NaN in the base at 0^0 with a real exponent."""
    a, b = jnp.asarray([0.0, 0.0, 0.0, 0.0, -2.0, 3.0]), jnp.asarray([0.0, 1.0, 2.0, 0.5 + 1, 3.0, 0.0])
    assert_equations_right(lax.pow, a, b, names="pow")


def test_power_with_integer_exponents(assert_equations_right):
    a, n = jnp.asarray([0.0, 0.0, 0.0, -2.0, 3.0, 1.5]), jnp.asarray([0, 1, 2, 3, 0, -2])
    assert_equations_right(lax.pow, a, n, names="pow")
    assert_equations_right(lax.pow, a[3:], jnp.asarray(2), names="pow")
    assert_equations_right(lax.pow, a.astype(jnp.bfloat16)[3:], n[3:], names="pow", tolerance=0.05)


def test_product_in_a_wider_type(assert_equations_right):
    a, b = jnp.asarray([1.5, -0.25], jnp.float32), jnp.asarray([0.5, 3.0], jnp.float32)
    wide = lambda a, b: lax.mul_p.bind(a, b, out_dtype=jnp.dtype("float64"))  # noqa: E731
    try:
        wide(a, b)
    except Exception as missing:
        pytest.skip(f"this JAX has no such product: {missing}")
    assert_equations_right(wide, a, b, names="mul", tolerance=1e-6)


def test_remainder_beyond_several_multiples(assert_equations_right):
    a, b = jnp.asarray([7.5, -7.5, 7.5, 0.3]), jnp.asarray([2.0, 2.0, -2.0, 4.0])
    assert_equations_right(lax.rem, a, b, names="rem")


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (2.0, 1.0)])
def test_clamp_at_and_beyond_its_bounds(low, high, assert_equations_right):
    x = jnp.asarray([-3.0, -1.0, 0.0, 0.4, 1.0, 5.0])
    assert_equations_right(lax.clamp, jnp.full(6, low), x, jnp.full(6, high), names="clamp")


def test_bounds_for_all_elements_get_the_sum_of_their_cotangents():
    """JAX refuses to differentiate with respect to them."""
    low, x, high = jnp.asarray(-1.0), jnp.asarray([-3.0, -2.0, 0.4, 5.0]), jnp.asarray(1.0)
    y_bar = jnp.arange(1.0, 5.0)
    e = Equation(lax.clamp_p, {}, (low, x, high), (lax.clamp(low, x, high),), (True, True, True))
    low_bar, x_bar, high_bar = table.rules["clamp"].backward(e, y_bar)
    assert (low_bar, high_bar) == (3.0, 4.0)
    np.testing.assert_array_equal(x_bar, [0.0, 0.0, 3.0, 0.0])
    np.testing.assert_array_equal(
        table.rules["clamp"].tangent(e, jnp.asarray(7.0), None, None), [7.0, 7.0, 0.0, 0.0]
    )


def test_selection(assert_equations_right):
    x, y, z = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.asarray([[5.0, 6.0], [7.0, 8.0]]), jnp.ones((2, 2))
    assert_equations_right(lax.select, x > 1, x, y, names="select_n")
    assert_equations_right(lax.select_n, jnp.asarray([[0, 1], [2, 1]]), x, y, z, names="select_n")
    assert_equations_right(lax.select_n, jnp.asarray(True), x, y, names="select_n")


@pytest.mark.skipif(not hasattr(lax, "polynomial"), reason="this JAX has no polynomials")
@pytest.mark.parametrize("count", [2, 4, 12])
def test_polynomial_in_its_coefficients_as_well(count, assert_equations_right):
    x = jnp.asarray([[0.3, -1.2, 0.0]])
    coefficients = [
        jnp.asarray(np.random.default_rng(k).normal(size=(1, 3) if k % 2 else ())) for k in range(count)
    ]
    assert_equations_right(lambda x, *c: lax.polynomial(x, c), x, *coefficients, names="polynomial")


def test_what_rounding_moves_keeps_its_derivative():
    e = Equation(lax.nextafter_p, {}, (jnp.ones(2), jnp.full(2, 3.0)), (jnp.ones(2),), (True, True))
    x_bar, towards_bar = table.rules["nextafter"].backward(e, jnp.asarray([5.0, 6.0]))
    np.testing.assert_array_equal(x_bar, [5.0, 6.0])
    assert towards_bar is None


@settings(max_examples=10)
@given(arrays(float, 3, elements=st.floats(-30, 30)), arrays(float, 3, elements=st.floats(-30, 30)))
@pytest.mark.parametrize("f", [lax.mul, lax.max, lax.atan2], ids=lambda f: f.__name__)
def test_two_numbers_of_any_kind(f, assert_equations_right, a, b):
    if f is lax.atan2:
        b = np.where(np.hypot(a, b) < 1e-3, 1.0, b)
    assert_equations_right(f, jnp.asarray(a), jnp.asarray(b))


@settings(max_examples=10)
@given(arrays(float, 3, elements=st.floats(-5, 5)))
@pytest.mark.parametrize("f", [lax.tanh, lax.expm1, lax.abs, lax.sin], ids=lambda f: f.__name__)
def test_one_number_of_any_kind(f, assert_equations_right, x):
    assert_equations_right(f, jnp.asarray(x))


@pytest.mark.parametrize(
    "name", ["floor", "round", "lt", "is_finite", "and", "shift_left", "population_count", "mulhi"]
)
def test_steps_and_integers_are_constant(name):
    assert name in table.constants
