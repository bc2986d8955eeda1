"""Special functions: gamma and beta functions and their relatives, error functions, Bessel functions.

Formulas: NIST Digital Library of Mathematical Functions (https://dlmf.nist.gov), by the numbers given. Where
JAX has no derivative in an operand, there is none here: an error names the operand.
"""

import math

import jax.numpy as jnp
from jax import lax

from bpresearch.chainrule.primitives import NoPrimitiveRuleError, Value, elementwise, refused

# -------------------------------------------------------------------------------------------- gamma and beta


def without_derivative(name: str, operand: str):
    """A partial derivative that raises: there is none in this operand, in JAX neither."""

    def partial(*values: Value) -> Value:
        raise NoPrimitiveRuleError(f"{name} has no derivative with respect to {operand}, in JAX neither")

    return partial


def gamma_density(a: Value, x: Value) -> Value:
    """x^(a-1) e^(-x) / Gamma(a), the derivative in x of the regularized incomplete gamma function (8.8.13)"""
    return lax.exp((a - 1) * lax.log(x) - x - lax.lgamma(a))


def beta_density(a: Value, b: Value, x: Value) -> Value:
    """x^(a-1) (1-x)^(b-1) / B(a, b), the derivative in x of the incomplete beta function (8.17)"""
    log_beta = lax.lgamma(a) + lax.lgamma(b) - lax.lgamma(a + b)
    return lax.exp((a - 1) * lax.log(x) + (b - 1) * lax.log1p(-x) - log_beta)


elementwise("lgamma", lambda x, y: lax.digamma(x), doc="5.2.2")
elementwise("digamma", lambda x, y: lax.polygamma(lax.full_like(x, 1), x), doc="5.15.1")
elementwise(
    "polygamma",
    without_derivative("polygamma(m, x)", "the order m"),
    lambda m, x, y: lax.polygamma(m + 1, x),
    doc="5.15.1",
)
elementwise(
    "igamma",
    lambda a, x, y: lax.igamma_grad_a(a, x),
    lambda a, x, y: gamma_density(a, x),
    doc="P(a, x). The derivative in a is a series or a continued fraction of its own, another primitive.",
)
elementwise(
    "igammac",
    lambda a, x, y: -lax.igamma_grad_a(a, x),
    lambda a, x, y: -gamma_density(a, x),
    doc="Q(a, x) = 1 - P(a, x)",
)
elementwise(
    "regularized_incomplete_beta",
    without_derivative("regularized_incomplete_beta(a, b, x)", "a"),
    without_derivative("regularized_incomplete_beta(a, b, x)", "b"),
    lambda a, b, x, y: beta_density(a, b, x),
    doc="I_x(a, b)",
)
refused("zeta", "igamma_grad_a", why="JAX has no derivative of it")

# ------------------------------------------------------------------------------------------- error functions

elementwise("erf", lambda x, y: 2 / math.sqrt(math.pi) * lax.exp(-x * x), doc="7.2.1")
elementwise("erfc", lambda x, y: -2 / math.sqrt(math.pi) * lax.exp(-x * x), doc="erfc = 1 - erf")
elementwise("erf_inv", lambda x, y: math.sqrt(math.pi) / 2 * lax.exp(y * y), doc="Infinite at -1 and 1.")

# ------------------------------------------------------------------------------------------ Bessel functions


def slope_of_i1e(x: Value, y: Value) -> Value:
    """I_0(x) e^(-|x|) - (sign(x) + 1/x) y, and 1/2 at zero (10.29.2; the factor e^(-|x|) gives the sign)"""
    tiny = lax.abs(x) <= float(jnp.finfo(x.dtype).eps)
    away = lax.select(tiny, lax.full_like(x, 1), x)
    return lax.select(tiny, lax.full_like(x, 0.5), lax.bessel_i0e(away) - y * (lax.sign(away) + 1 / away))


elementwise("bessel_i0e", lambda x, y: lax.bessel_i1e(x) - lax.sign(x) * y, doc="I_0(x) e^(-|x|), 10.29.3")
elementwise("bessel_i1e", slope_of_i1e, doc="I_1(x) e^(-|x|)")
