"""The adjoint identity: a backward pass is the transpose of the forward-mode derivative.

    <y_bar, J v> = <J^T y_bar, v>      for every direction v and every cotangent y_bar.

J v is computed forward (`jax.jvp`) from the function's primitive operations, so hand-written reverse rules
have no part in it. Each direction v comes with a cotangent y_bar of its own: what is checked is the linear
map, not one gradient. Both sides are exact to rounding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpresearch.verify.directions import Directions, along
from bpresearch.verify.forward_mode import prediction
from bpresearch.verify.precision import Seed, random_signs


def adjoint_identity(
    function: Callable[[list[Array]], list[Array]],
    backward: Callable[[list[Array], list[Array]], list[Array]],
    point: list[Array],
    directions: Directions,
    seed: Seed = 0,
) -> dict[str, Float[Array, "directions"]]:
    """Both sides of the identity in each of the directions, with a new random y_bar for each.

    Args:
        function: point -> outputs, with a forward-mode derivative that can be relied on.
        backward: (point, y_bar) -> J^T y_bar, the backward pass in question.
        point: where.
        directions: v.
        seed: of directions and cotangents.

    Returns:
        `estimate` = <y_bar, J v>, its `uncertainty`, and `predicted` = <J^T y_bar, v>.
    """
    outputs = jax.eval_shape(function, point)

    def one(v, leaf, number):
        seeds = [number + jnp.uint32(1_000_003 * (i + 1)) for i in range(len(outputs))]
        y_bar = [random_signs(o.shape, s).astype(o.dtype) for o, s in zip(outputs, seeds, strict=True)]
        _, tangents = jax.jvp(function, (point,), (v,))
        estimate = jnp.sum(jnp.stack([jnp.sum(u * t) for u, t in zip(y_bar, tangents, strict=True)]))
        return {"estimate": estimate} | prediction(backward(point, y_bar), v, estimate)

    return along(directions, point, seed, one)
