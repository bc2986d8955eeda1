"""Complex step: a derivative from one evaluation at a complex point, without cancellation.

For an analytic function that is real on the real line, f(t + i h d) = f(t) + i h f'(t; d) - h^2 ..., so

    f'(t; d) = Im f(t + i h d) / h + O(h^2),

and since nothing is subtracted, h can be 1e-20: the result is exact to rounding (Squire and Trapp 1998).

Functions that are not analytic (|x|, a comparison of complex numbers, a cast to real) give wrong values
without complaint. They betray themselves off the imaginary axis: for an analytic function the quotient
(f(t + h z d) - f(t)) / (h z) is the same in every direction z of the complex plane. Where it differs at
z = (1 + i) / sqrt(2), the uncertainty is infinite.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from bpresearch.verify.directions import Directions, along
from bpresearch.verify.forward_mode import prediction
from bpresearch.verify.plain import holding_constants
from bpresearch.verify.precision import Seed

TINY, SMALL = 1e-20, 1e-7


def complex_step(
    function: Callable[[list[Array]], Array],
    point: list[Array],
    gradient: list[Array],
    directions: Directions,
    seed: Seed = 0,
) -> dict[str, Float[Array, "directions"]]:
    """Derivatives of a scalar function of a list of float64 arrays in each of the directions.

    Returns:
        `estimate`, its `uncertainty` (infinite where the function is not analytic) and
        `predicted` = <gradient, d>.
    """
    function = holding_constants(function, point)
    here = function(point)
    slanted = (1 + 1j) / jnp.sqrt(2.0)

    def one(d, leaf, number):
        def at(step):
            return function([x + step * e for x, e in zip(point, d, strict=True)])

        estimate = jnp.imag(at(1j * TINY)) / TINY
        quotient = (at(SMALL * slanted) - here) / (SMALL * slanted)
        rounding = jnp.finfo(here.dtype).eps * jnp.abs(here) / SMALL
        off = jnp.maximum(jnp.abs(jnp.imag(quotient)), jnp.abs(jnp.real(quotient) - estimate))
        analytic = off <= 100 * rounding + 1e-4 * jnp.abs(quotient)
        predicted = prediction(gradient, d, estimate)
        uncertainty = jnp.where(analytic, predicted["uncertainty"], jnp.inf)
        return predicted | {"estimate": estimate, "uncertainty": uncertainty}

    return along(directions, point, seed, one)
