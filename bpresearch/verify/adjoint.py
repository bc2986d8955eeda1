"""The adjoint identity: a backward pass is the transpose of the forward-mode derivative.

    <y_bar, J v> = <J^T y_bar, v>      for every direction v and every cotangent y_bar.

J v is computed forward (`jax.jvp`) from the function's primitive operations, so hand-written reverse rules
have no part in it. Both sides are exact to rounding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpresearch.verify.directions import along_each_leaf


def adjoint_identity(
    function: Callable[[list[Array]], Array], point: list[Array], gradient: list[Array], count: int = 2
) -> dict[str, Float[Array, "directions"]]:
    """Both sides of the identity in `count` random directions of each leaf of a point.

    Args:
        function: the scalar <y_bar, f(point)>, whose forward-mode derivative along v is <y_bar, J v>.
        point: where.
        gradient: J^T y_bar as the backward pass in question gives it.
        count: directions for each leaf.

    Returns:
        `estimate` = <y_bar, J v>, its `uncertainty`, and `predicted` = <gradient, v>.
    """

    def one(direction):
        _, estimate = jax.jvp(function, (point,), (direction,))
        parts = [jnp.sum(jnp.abs(g * d)) for g, d in zip(gradient, direction, strict=True)]
        predicted = sum(jnp.sum(g * d) for g, d in zip(gradient, direction, strict=True))
        uncertainty = jnp.finfo(estimate.dtype).eps * (sum(parts) + jnp.abs(estimate))
        return {"estimate": estimate, "uncertainty": uncertainty, "predicted": predicted}

    return jax.lax.map(one, along_each_leaf(point, count))
