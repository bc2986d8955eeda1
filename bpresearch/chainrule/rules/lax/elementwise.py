"""Elementwise functions: arithmetic, powers, exponentials, trigonometry, choices between numbers.

One line is one function: its primitive, then its partial derivatives. Where the derivative needs no product,
or depends on a parameter, a class takes the place of the line.
"""

import math

import jax.numpy as jnp
from jax import lax

from bpresearch.chainrule.primitives import (
    Equation,
    Value,
    constant,
    elementwise,
    fit,
    is_floating,
    linear,
    primitive,
    total,
)

# --------------------------------------------------------------------------------------------- arithmetic


@primitive("add", "add_any")
class Add:
    """y = a + b:  a_bar = y_bar,  b_bar = y_bar"""

    def backward(e, y_bar):
        return tuple(fit(y_bar, x) if wanted else None for x, wanted in zip(e.ins, e.wanted, strict=True))

    def tangent(e, *dots):
        return total([dot for dot in dots if dot is not None], e.outs[0])


@primitive("sub")
class Sub:
    """y = a - b:  a_bar = y_bar,  b_bar = -y_bar"""

    def backward(e, y_bar):
        a, b = e.ins
        return fit(y_bar, a) if e.wanted[0] else None, -fit(y_bar, b) if e.wanted[1] else None

    def tangent(e, a_dot, b_dot):
        if a_dot is None:
            return total([-b_dot], e.outs[0])
        return total([a_dot if b_dot is None else a_dot - b_dot], e.outs[0])


@primitive("mul")
class Mul:
    """y = a b:  a_bar = b y_bar,  b_bar = a y_bar.   With `out_dtype`, y is of a wider type than a and b."""

    def backward(e, y_bar):
        a, b = _as_result(e, *e.ins)
        return (
            fit(y_bar * b, e.ins[0]) if e.wanted[0] else None,
            fit(y_bar * a, e.ins[1]) if e.wanted[1] else None,
        )

    def tangent(e, *dots):
        (a, b), (a_dot, b_dot) = _as_result(e, *e.ins), _as_result(e, *dots)
        terms = [a_dot * b] if a_dot is not None else []
        terms += [a * b_dot] if b_dot is not None else []
        return total(terms, e.outs[0])


def _as_result(e: Equation, *factors: Value | None) -> list[Value | None]:
    """Factors of a product in the dtype of the product."""
    wide = e.params.get("out_dtype")
    return [x if x is None or wide is None else lax.convert_element_type(x, wide) for x in factors]


@primitive("div")
class Div:
    """y = a / b:  a_bar = y_bar / b,  b_bar = -(y_bar / b) y"""

    def backward(e, y_bar):
        (a, b), (y,) = e.ins, e.outs
        share = y_bar / b
        return fit(share, a) if e.wanted[0] else None, fit(-share * y, b) if e.wanted[1] else None

    def tangent(e, a_dot, b_dot):
        (_, b), (y,) = e.ins, e.outs
        terms = [a_dot / b] if a_dot is not None else []
        terms += [-y * (b_dot / b)] if b_dot is not None else []
        return total(terms, y)


@linear("neg")
def negative(e, y_bar):
    """y = -x:  x_bar = -y_bar"""
    return -y_bar


elementwise(
    "rem",
    lambda a, b, y: lax.full_like(y, 1),
    lambda a, b, y: -lax.sign(a / b) * lax.floor(lax.abs(a / b)),
    doc="y = a - b trunc(a / b). At the jumps, trunc is constant.",
)
elementwise("nextafter", lambda a, b, y: lax.full_like(y, 1), None, doc="a, moved by rounding towards b.")

# -------------------------------------------------------------------------------------------------- powers


@primitive("integer_pow")
class IntegerPow:
    """y = x^n with a fixed integer n:  x_bar = n x^(n-1) y_bar"""

    def backward(e, y_bar):
        (x,), n = e.ins, e.params["y"]
        if n == 0:
            return None
        return y_bar if n == 1 else y_bar * (n * (x if n == 2 else lax.integer_pow(x, n - 1)))

    def tangent(e, x_dot):
        return IntegerPow.backward(e, x_dot)


def slope_of_power(a: Value, b: Value, y: Value) -> Value:
    """d(a^b)/da = b a^(b-1); for an integer b = 0 it is zero at a = 0 as well."""
    if is_floating(b):
        return b * lax.pow(a, b - 1)
    n = lax.convert_element_type(b, y.dtype)
    lowered = lax.pow(a, jnp.where(b == 0, jnp.ones_like(n), n) - 1)
    return n * lowered


def slope_of_exponent(a: Value, b: Value, y: Value) -> Value:
    """d(a^b)/db = log(a) a^b, and zero at a = 0."""
    return lax.log(jnp.where(a == 0, jnp.ones_like(a), a)) * y


elementwise("pow", slope_of_power, slope_of_exponent, doc="NaN in a at 0^0 with a real exponent, as in JAX.")
elementwise("square", lambda x, y: 2 * x)
elementwise("one_minus_square", lambda x, y: -2 * x)
elementwise("sqrt", lambda x, y: 0.5 / y, doc="Infinite at 0.")
elementwise("rsqrt", lambda x, y: -0.5 * (y / x))
elementwise("cbrt", lambda x, y: 1 / (3 * y * y), doc="Infinite at 0.")


@primitive("polynomial")
class Polynomial:
    """y = sum_k c_k x^k:  x_bar = sum_k k c_k x^(k-1) y_bar,  c_k_bar = x^k y_bar"""

    def backward(e, y_bar):
        x, *coefficients = e.ins
        x_bar = fit(y_bar * horner(x, derived(coefficients)), x) if e.wanted[0] else None
        bars, power_bar = [], y_bar
        for k, c in enumerate(coefficients):
            power_bar = power_bar * x if k else y_bar  # x^k y_bar
            bars.append(fit(power_bar, c) if e.wanted[1 + k] else None)
        return x_bar, *bars

    def tangent(e, x_dot, *dots):
        x, *coefficients = e.ins
        terms = [x_dot * horner(x, derived(coefficients))] if x_dot is not None else []
        if any(dot is not None for dot in dots):
            terms.append(
                horner(
                    x,
                    [jnp.zeros_like(c) if d is None else d for c, d in zip(coefficients, dots, strict=True)],
                )
            )
        return total(terms, e.outs[0])


def derived(coefficients: list[Value]) -> list[Value]:
    """The coefficients of a polynomial's derivative."""
    return [k * c for k, c in enumerate(coefficients)][1:] or [jnp.zeros_like(coefficients[0])]


def horner(x: Value, coefficients: list[Value]) -> Value:
    """c_0 + x (c_1 + x (c_2 + ...))"""
    value = coefficients[-1]
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value


# ------------------------------------------------------------------------------ exponentials and logarithms

elementwise("exp", lambda x, y: y)
elementwise("exp2", lambda x, y: math.log(2) * y)
elementwise("expm1", lambda x, y: lax.exp(x), doc="y + 1 has lost its digits where x is very negative.")
elementwise("log", lambda x, y: 1 / x, doc="Infinite at 0, with the sign of zero.")
elementwise("log2", lambda x, y: 1 / (math.log(2) * x))
elementwise("log1p", lambda x, y: 1 / (1 + x))
elementwise("logistic", lambda x, y: y * (1 - y))

# ------------------------------------------------------------------- trigonometric and hyperbolic functions

elementwise("sin", lambda x, y: lax.cos(x))
elementwise("cos", lambda x, y: -lax.sin(x))
elementwise("tan", lambda x, y: 1 + y * y)
elementwise("asin", lambda x, y: lax.rsqrt((1 + x) * (1 - x)), doc="Infinite at -1 and 1.")
elementwise("acos", lambda x, y: -lax.rsqrt((1 + x) * (1 - x)), doc="Infinite at -1 and 1.")
elementwise("atan", lambda x, y: 1 / (1 + x * x))
elementwise(
    "atan2",
    lambda a, b, y: b / (a * a + b * b),
    lambda a, b, y: -a / (a * a + b * b),
    doc="NaN at the origin, where no direction is the right one.",
)
elementwise("sinh", lambda x, y: lax.cosh(x))
elementwise("cosh", lambda x, y: lax.sinh(x))
elementwise("tanh", lambda x, y: (1 + y) * (1 - y))
elementwise("asinh", lambda x, y: lax.rsqrt(1 + x * x))
elementwise(
    "acosh",
    lambda x, y: lax.rsqrt(x - 1) * lax.rsqrt(x + 1),
    doc="One root of the product has the other sign where the real part is negative; JAX 0.10 errs there.",
)
elementwise("atanh", lambda x, y: 1 / ((1 + x) * (1 - x)))

# ------------------------------------------------------------------------- absolute value, sign, and choices


@primitive("abs")
class Abs:
    """y = |x|:  x_bar = sign(x) y_bar, with sign 1 at zero.

    Of a complex number:  y_dot = re(conj(x) x_dot) / |x|,  x_bar = conj(x) / |x| y_bar, and 0 at zero.
    """

    def backward(e, y_bar):
        (x,), (y,) = e.ins, e.outs
        if not jnp.iscomplexobj(x):
            return lax.select(x >= 0, y_bar, -y_bar)
        scale = y_bar / nonzero(y)
        return lax.complex(lax.real(x) * scale, -lax.imag(x) * scale)

    def tangent(e, x_dot):
        (x,), (y,) = e.ins, e.outs
        if not jnp.iscomplexobj(x):
            return lax.select(x >= 0, x_dot, -x_dot)
        return (lax.real(x) * lax.real(x_dot) + lax.imag(x) * lax.imag(x_dot)) / nonzero(y)


@primitive("sign")
class Sign:
    """y = x / |x|. Of a real number it has derivative zero, at the jump as well.

    A complex number turns its direction:  y_dot = i y im(conj(y) x_dot) / |x|, and 0 at zero, so
    x_bar = i conj(y) im(y y_bar) / |x|.   (JAX 0.10 says zero.)
    """

    def backward(e, y_bar):
        (x,), (y,) = e.ins, e.outs
        return turned(lax.conj(y), lax.imag(y * y_bar) / nonzero(lax.abs(x))) if jnp.iscomplexobj(x) else None

    def tangent(e, x_dot):
        (x,), (y,) = e.ins, e.outs
        return turned(y, lax.imag(lax.conj(y) * x_dot) / nonzero(lax.abs(x))) if jnp.iscomplexobj(x) else None


def nonzero(r: Value) -> Value:
    """r, with 1 in the place of 0: a divisor where the dividend is zero as well."""
    return lax.select(r == 0, lax.full_like(r, 1), r)


def turned(z: Value, angle: Value) -> Value:
    """i z angle"""
    return lax.complex(-lax.imag(z) * angle, lax.real(z) * angle)


def share(a: Value, b: Value, y: Value) -> Value:
    """1 where a > b, 1/2 where they are equal, 0 elsewhere (and at NaN), in the dtype of y."""
    return 0.5 * ((a > b).astype(y.dtype) + (a >= b).astype(y.dtype))


elementwise(
    "max",
    lambda a, b, y: share(a, b, y),
    lambda a, b, y: share(b, a, y),
    doc="Where both are equal, each has half of the derivative.",
)
elementwise(
    "min",
    lambda a, b, y: share(b, a, y),
    lambda a, b, y: share(a, b, y),
    doc="Where both are equal, each has half of the derivative.",
)


@primitive("clamp")
class Clamp:
    """y = min(max(x, low), high):  y_bar to the operand that y is. At a bound itself x has no derivative."""

    def backward(e, y_bar):
        none = jnp.zeros_like(y_bar)
        return tuple(
            fit(lax.select(jnp.broadcast_to(chosen, y_bar.shape), y_bar, none), x) if wanted else None
            for chosen, x, wanted in zip(clamped_by(*e.ins), e.ins, e.wanted, strict=True)
        )

    def tangent(e, *dots):
        (y,) = e.outs
        terms = [
            jnp.where(chosen, dot, jnp.zeros_like(dot))
            for chosen, dot in zip(clamped_by(*e.ins), dots, strict=True)
            if dot is not None
        ]
        return total(terms, y)


def clamped_by(low: Value, x: Value, high: Value) -> tuple[Value, Value, Value]:
    """Where y is the lower bound, x, the upper bound."""
    return (low > x) & (low < high), (x > low) & (x < high), high < x


@primitive("select_n")
class Select:
    """y = cases[which]:  y_bar to the case that was selected, zero to the others."""

    def backward(e, y_bar):
        which, *cases = e.ins
        none = jnp.zeros_like(y_bar)
        return None, *(
            lax.select_n(which, *(y_bar if j == i else none for j in range(len(cases)))) if wanted else None
            for i, wanted in enumerate(e.wanted[1:])
        )

    def tangent(e, _, *dots):
        which = e.ins[0]
        none = jnp.zeros_like(next(dot for dot in dots if dot is not None))
        return lax.select_n(which, *(none if dot is None else dot for dot in dots))


# ------------------------------------------------------------------------------------------------ constants

constant("floor", "ceil", "round", why="piecewise constant")
constant(
    "eq",
    "ne",
    "ge",
    "gt",
    "le",
    "lt",
    "eq_to",
    "le_to",
    "lt_to",
    "is_finite",
    why="its result is true or false",
)
constant("and", "or", "xor", "not", "clz", "population_count", why="of bits")
constant("shift_left", "shift_right_arithmetic", "shift_right_logical", "mulhi", why="of integers")
