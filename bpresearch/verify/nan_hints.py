"""What to do about an operation that makes NaN or Inf, by what it is and what it was given."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from bpresearch.chainrule.primitives import Equation, Value, is_floating
from bpresearch.verify.nan_search import CLOSED, INF

GUARD = (
    "guard the argument, not the result: with safe = jnp.where(x > 0, x, 1.0), "
    "jnp.where(x > 0, {f}(safe), 0.0) has a finite derivative; jnp.where around {f}(x) alone has not, "
    "because what it throws away still has the derivative 0 * inf = NaN"
)

POWER = "guard the argument, not the result: jnp.where(x > 0, jnp.where(x > 0, x, 1.0) ** p, 0.0)"

OF_DERIVATIVES = {
    "sqrt": "the derivative of sqrt is infinite at 0{of}. Add a small number inside the root, or "
    + GUARD.format(f="jnp.sqrt"),
    "rsqrt": "the derivative of 1/sqrt is infinite at 0{of}. Add a small number inside the root, or "
    + GUARD.format(f="jax.lax.rsqrt"),
    "cbrt": "the derivative of the cube root is infinite at 0: " + GUARD.format(f="jnp.cbrt"),
    "log": "the derivative of log is infinite at 0: " + GUARD.format(f="jnp.log"),
    "log1p": "the derivative of log1p is infinite at -1: " + GUARD.format(f="jnp.log1p"),
    "pow": "the derivative of x ** p is p * x ** (p - 1) with respect to x, infinite at 0 for p < 1, and "
    "x ** p * log(x) with respect to p: keep x away from 0, hold p constant by jax.lax.stop_gradient, or "
    + POWER,
    "integer_pow": "a negative power and its derivative are infinite at 0: " + POWER,
    "div": "the derivative of a / b is infinite at b = 0, or overflows near it: guard the divisor inside, "
    "a / jnp.where(b == 0, 1.0, b), not the quotient",
    "atan2": "the angle of (0, 0) has no derivative, 0 / 0: give arctan2 a point that is not the origin, "
    "by jnp.where on both arguments, and choose the result outside",
    "acos": "the derivative of arccos is infinite at -1 and 1: clip the argument to a little less than 1",
    "asin": "the derivative of arcsin is infinite at -1 and 1: clip the argument to a little less than 1",
    "acosh": "the derivative of arccosh is infinite at 1: keep the argument a little above 1",
    "atanh": "the derivative of arctanh is infinite at -1 and 1: clip the argument to a little less than 1",
    "erf_inv": "the derivative of erf_inv is infinite at -1 and 1: clip the argument to a little less than 1",
    "eigh": "the derivative of eigenvectors divides by differences of eigenvalues, and two are equal: "
    "break the tie, or use the eigenvalues alone",
    "svd": "the derivative of singular vectors divides by differences of singular values, and two are equal, "
    "or one is 0: break the tie, or use the singular values alone",
    "cholesky": "the derivative of cholesky needs the inverse of its factor: add a small multiple of the "
    "identity to the matrix",
    "exp": "exp overflows: subtract the maximum first, as jax.nn.logsumexp and jax.nn.softmax do",
}

OF_VALUES = {
    "log": "log(0) is -inf and log of a negative number NaN: " + GUARD.format(f="jnp.log"),
    "log1p": "log1p(-1) is -inf and below it NaN: " + GUARD.format(f="jnp.log1p"),
    "sqrt": "the root of a negative number is NaN: " + GUARD.format(f="jnp.sqrt"),
    "rsqrt": "1/sqrt is infinite at 0 and NaN below: add a small number inside the root, or "
    + GUARD.format(f="jax.lax.rsqrt"),
    "exp": "exp overflows: subtract the maximum first, as jax.nn.logsumexp and jax.nn.softmax do, or clip",
    "exp2": "exp2 overflows: subtract the maximum first, or clip",
    "expm1": "expm1 overflows: clip its argument",
    "pow": "a negative number to a power that is no integer is NaN, and 0 to a negative power infinite: "
    + POWER,
    "integer_pow": "0 to a negative power is infinite: " + POWER,
    "cholesky": "the matrix is not positive definite: make it symmetric and add a small multiple of the "
    "identity",
    "acos": "arccos is defined from -1 to 1: clip its argument",
    "asin": "arcsin is defined from -1 to 1: clip its argument",
    "acosh": "arccosh is defined from 1 on: keep its argument there",
    "atanh": "arctanh is finite between -1 and 1 only: clip its argument",
    "erf_inv": "erf_inv is finite between -1 and 1 only: clip its argument",
    "triangular_solve": "the matrix is singular: its diagonal holds a 0",
    "lu": "the matrix is singular, or nearly",
    "eigh": "the matrix has no eigenvalues that could be computed: look at its entries",
}


class Derivatives:
    """Which operation of the forward pass an equation of the backward pass is the derivative of.

    JAX gives every equation that it makes while it differentiates the record of where the equation comes from
    that is differentiated.
    """

    def __init__(self, jaxpr: Jaxpr | None = None):
        self._by_source: dict[Any, tuple[str, str]] = {}
        for eqn, producers in _equations(jaxpr) if jaxpr is not None else ():
            name = eqn.primitive.name
            if eqn.source_info.traceback and name != "convert_element_type":
                self._by_source.setdefault(eqn.source_info.traceback, (name, ", ".join(producers)))

    def of(self, e: Equation) -> tuple[str, str]:
        """The operation, and those that made its operands; both "" where it is the derivative of none."""
        known = self._by_source.get(e.source.traceback, ("", "")) if e.source else ("", "")
        return ("", "") if known[0].startswith("custom_") else known


def _equations(jaxpr: Jaxpr) -> Iterator[tuple[JaxprEqn, list[str]]]:
    makers = {v: str(eqn.params.get("name", eqn.primitive.name)) for eqn in jaxpr.eqns for v in eqn.outvars}
    for eqn in jaxpr.eqns:
        yield eqn, [makers[v] for v in eqn.invars if not hasattr(v, "val") and v in makers]
        for inner in jaxprs_in_params(eqn.params):
            yield from _equations(inner)


def hint(
    e: Equation, made: str, derivative_of: str, producers: str, sources: Iterable[str], backward: bool
) -> str:
    """What to do.

    Args:
        e: the equation, with its operands' values.
        made: "NaN" or "Inf".
        derivative_of, producers: as `Derivatives.of` gives them.
        sources: which of NaN and Inf its operands hold.
        backward: whether that is on the way back.
    """
    if derivative_of in OF_DERIVATIVES:
        of = {"reduce_sum": " (the norm of a zero vector, say)", "_var": " (the deviation of equal values)"}
        return OF_DERIVATIVES[derivative_of].format(of=of.get(producers.split(", ")[0], ""))
    name = e.name
    if name in CLOSED:
        return f"{name} was not opened: look at the function in it by itself, on one block of its operands"
    if name in ("sub", "add", "add_any") and INF in sources:
        return (
            "inf - inf is NaN: a row that is masked everywhere by -inf, say. Mask by a large finite number, "
            "or give such rows something to attend to and choose another result for them by jnp.where"
        )
    if name == "mul" and INF in sources:
        return "0 * inf is NaN: choose by jnp.where on the argument in the place of a product with a mask"
    if name == "div":
        unseen = (
            ". If the line has no division, this is of the derivative of what it calls, of a root at 0 say: "
            "guard that argument"
        )
        return _division(e, sources) + unseen * backward
    if name in OF_VALUES and not (name == "integer_pow" and e.params["y"] > 0):
        return OF_VALUES[name]
    if made == INF or any(_near_largest(x) for x in e.ins):
        largest = max((float(jnp.finfo(y.dtype).max) for y in e.outs if is_floating(y)), default=np.inf)
        return f"the result is larger than its type holds ({largest:.2g}): scale or clip what goes in"
    return ""


def _division(e: Equation, sources: Iterable[str]) -> str:
    if INF in sources:
        return "inf / inf is NaN: find where the divisor and the dividend overflow"
    zero = np.any(np.asarray(e.ins[1]) == 0)
    if not zero:
        return "the quotient is larger than its type holds: add a small number to the divisor"
    return "division by 0: guard the divisor, a / jnp.where(b == 0, 1.0, b), not the quotient"


def _near_largest(x: Value) -> bool:
    return is_floating(x) and bool(np.any(np.abs(np.asarray(x)) > float(jnp.finfo(x.dtype).max) ** 0.5))
