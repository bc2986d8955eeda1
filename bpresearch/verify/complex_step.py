"""Complex step: a derivative from one evaluation at a complex point, without cancellation.

For an analytic function that is real on the real line, f(t + i h d) = f(t) + i h f'(t; d) - h^2 ..., so

    f'(t; d) = Im f(t + i h d) / h + O(h^2),

and since nothing is subtracted, h can be 1e-20: the result is exact to rounding (Squire and Trapp 1998).

Functions that are not analytic (|x|, a comparison of complex numbers, a cast to real) give wrong values
without complaint. They betray themselves off the imaginary axis: for an analytic function the quotient
(f(t + h z d) - f(t)) / (h z) is the same in every direction z of the complex plane. What it differs by at
z = (1 + i) / sqrt(2) is the uncertainty.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpresearch.verify.directions import along_each_leaf

TINY, SMALL = 1e-20, 1e-7


def complex_step(
    function: Callable[[list[Array]], Array], point: list[Array], gradient: list[Array], count: int = 2
) -> dict[str, Float[Array, "directions"]]:
    """Derivatives of a scalar function in `count` random directions of each leaf of a float64 point.

    Returns:
        `estimate`, its `uncertainty` and `predicted` = <gradient, d>; `count` values for each leaf in turn.
    """
    here = function(point)
    slanted = (1 + 1j) / jnp.sqrt(2.0)

    def at(direction, step):
        return function([leaf + step * d for leaf, d in zip(point, direction, strict=True)])

    def one(direction):
        estimate = jnp.imag(at(direction, 1j * TINY)) / TINY
        quotient = (at(direction, SMALL * slanted) - here) / (SMALL * slanted)
        rounding = jnp.finfo(here.dtype).eps * jnp.abs(here) / SMALL
        off = jnp.maximum(jnp.abs(jnp.imag(quotient)), jnp.abs(jnp.real(quotient) - estimate))
        analytic = off <= 100 * rounding + 1e-4 * jnp.abs(quotient)
        predicted = sum(jnp.sum(g * d) for g, d in zip(gradient, direction, strict=True))
        uncertainty = jnp.where(analytic, jnp.finfo(here.dtype).eps * jnp.abs(estimate), jnp.inf)
        return {"estimate": estimate, "uncertainty": uncertainty, "predicted": predicted}

    return jax.lax.map(one, along_each_leaf(point, count))
