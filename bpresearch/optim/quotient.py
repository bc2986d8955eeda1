"""The chain rule's quotient taken literally as an update: the cost over the product of derivatives.

If a change of the parameters is to bring the cost c to zero and the derivatives g tell how c changes, then
each parameter by itself would have to change by -c / g: Newton's root-finding on c. For many parameters at
once, c + g . delta = 0 has many solutions; the shortest one is -c g / ||g||^2, the step of Polyak (1969)
for a minimum of zero.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike, PyTree

SCOPES = ("element", "layer", "global")


def quotient_update(
    learning_rate: ArrayLike = 1.0, *, scope: str = "element", damping: ArrayLike = 0.0
) -> optax.GradientTransformationExtraArgs:
    """w <- w - lr c g / (n^2 + damping): the step to where the tangent of the cost is zero.

    n is |g| for each element alone ("element": w <- w - lr c / g), the norm of the gradient of the layer
    that the element belongs to ("layer"), or of the whole gradient ("global"). In one dimension, with
    lr = 1 and no damping, all three are Newton's root-finding on c; global is `optax.polyak_sgd` without a
    largest learning rate. Where n is zero nothing moves. The update diverges near points with c > 0 and a
    small gradient, such as minima above zero; damping bounds it by lr c / (2 sqrt(damping)).

    >>> quotient = quotient_update()
    >>> updates, _ = quotient.update(jnp.array(6.0), quotient.init(0.0), value=9.0)  # c = w^2 at w = 3
    >>> float(updates)
    -1.5

    Args:
        learning_rate: alpha; 1 goes all the way to the tangent's zero.
        scope: "element", "layer" or "global".
        damping: added to the squared norm, in the units of the squared gradient; at least 0.

    Returns:
        A transformation whose `update` takes the cost as `value=`.

    Raises:
        ValueError: the scope is none of the three.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is not one of {', '.join(SCOPES)}")

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree = None, *, value: ArrayLike, **extra: Any
    ) -> tuple[PyTree, optax.OptState]:
        del params, extra
        squares = jax.tree.map(lambda g: g * g, updates)
        totals: dict[jax.tree_util.KeyPath, jax.Array] = {}
        for path, square in jax.tree.leaves_with_path(squares):
            key = _place(scope, path)
            totals[key] = square if scope == "element" else totals.get(key, 0) + jnp.sum(square)

        def step(path: jax.tree_util.KeyPath, g: PyTree) -> jax.Array:
            total = totals[_place(scope, path)] + damping
            safe = jnp.where(total > 0, total, 1)
            return jnp.where(total > 0, -(g / safe) * (value * learning_rate), 0).astype(g.dtype)

        return jax.tree.map_with_path(step, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _place(scope: str, path: jax.tree_util.KeyPath) -> jax.tree_util.KeyPath:
    """What a leaf shares its norm with: itself, its layer (the dict that it is in), or everything."""
    return {"element": path, "layer": path[:-1], "global": ()}[scope]


def quotient_element(
    learning_rate: ArrayLike, damping: ArrayLike = 0.0
) -> optax.GradientTransformationExtraArgs:
    """The quotient update of each parameter by itself: w <- w - lr c g / (g^2 + damping).

    >>> optimizer, g = bp.optim.quotient_element(1.0), jnp.array([1.0, 4.0])
    >>> update, _ = optimizer.update(g, optimizer.init(g), value=2.0)
    >>> print(update)  # -c / g
    [-2.  -0.5]
    """
    return quotient_update(learning_rate, scope="element", damping=damping)


def quotient_layer(
    learning_rate: ArrayLike, damping: ArrayLike = 0.0
) -> optax.GradientTransformationExtraArgs:
    """The shortest step of each layer by itself to where the cost's tangent is zero.

    >>> optimizer, g = bp.optim.quotient_layer(1.0), jnp.array([3.0, 4.0])
    >>> update, _ = optimizer.update(g, optimizer.init(g), value=25.0)
    >>> print(update)  # -c g / |g|^2
    [-3. -4.]
    """
    return quotient_update(learning_rate, scope="layer", damping=damping)


def quotient_global(
    learning_rate: ArrayLike, damping: ArrayLike = 0.0
) -> optax.GradientTransformationExtraArgs:
    """The shortest step to where the cost's tangent is zero: Polyak's, for a minimum of zero.

    >>> optimizer, g = bp.optim.quotient_global(1.0), {"a": jnp.array(3.0), "b": jnp.array(4.0)}
    >>> update, _ = optimizer.update(g, optimizer.init(g), value=25.0)
    >>> print(update["a"], update["b"])
    -3.0 -4.0
    """
    return quotient_update(learning_rate, scope="global", damping=damping)
