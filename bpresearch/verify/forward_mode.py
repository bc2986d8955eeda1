"""Forward mode: the derivative along a direction, pushed through the primitive operations by `jax.jvp`.

    D f(t)[d] = <grad f(t), d>

It starts from the arguments where the backward pass starts from the result, and transposes nothing, so it
shares no code with a reverse rule, hand-written or JAX's own. Exact to rounding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpresearch.verify.directions import Directions, along
from bpresearch.verify.precision import Seed


def forward_mode(
    function: Callable[[list[Array]], Array],
    point: list[Array],
    gradient: list[Array],
    directions: Directions,
    seed: Seed = 0,
) -> dict[str, Float[Array, "directions"]]:
    """Derivatives of a scalar function of a list of arrays in each of the directions.

    Returns:
        `estimate` = D f(point)[d], its `uncertainty`, and `predicted` = <gradient, d>.
    """

    def one(d, leaf, number):
        _, estimate = jax.jvp(function, (point,), (d,))
        return {"estimate": estimate} | prediction(gradient, d, estimate)

    return along(directions, point, seed, one)


def prediction(gradient: list[Array], d: list[Array], estimate: Float[Array, ""]) -> dict[str, Array]:
    """<gradient, d> as `predicted`, and the `uncertainty` of an estimate that is exact to rounding."""
    terms = [(jnp.sum(g * e), jnp.sum(jnp.abs(g * e))) for g, e in zip(gradient, d, strict=True)]
    predicted, size = (sum(parts) for parts in zip(*terms, strict=True))
    return {"predicted": predicted, "uncertainty": jnp.finfo(estimate.dtype).eps * (size + jnp.abs(estimate))}
