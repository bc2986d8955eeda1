"""Weight decay as a term of the loss: functions of the parameters that both engines add and differentiate."""

import jax
import jax.numpy as jnp

from bpresearch.functional import Params

Weight = float | int | jax.Array


def l2_penalty(params: Params, weight: Weight = 1.0, only: tuple[str, ...] | None = None) -> jax.Array:
    """weight / 2 times the sum of the squared parameters, so that each one's derivative is `weight` times it.

    Args:
        params: the model's parameters.
        weight: the strength of the decay, 1 by default.
        only: the last names of the parameters that decay, such as `("kernel",)`; all by default.

    >>> layer = nnx.Linear(2, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    >>> penalty = partial(bp.models.l2_penalty, weight=0.1, only=("kernel",))
    >>> x, y = jnp.ones((1, 2)), jnp.full((1, 1), 2.0)  # already fitted: the penalty is all that is left
    >>> loss, grads = bp.chainrule.value_and_grad(layer, optax.squared_error, x, y, penalty=penalty)
    >>> print(loss, grads["kernel"][:, 0], grads["bias"])
    0.1 [0.1 0.1] [0.]
    """
    return _weighted_sum(decaying(params, only), weight, lambda leaf: leaf**2 / 2)


def l1_penalty(params: Params, weight: Weight = 1.0, only: tuple[str, ...] | None = None) -> jax.Array:
    """`weight` times the sum of the parameters' absolute values; the arguments are those of `l2_penalty`.

    The derivative of each is `weight` times its sign, and 0 at 0 (Tibshirani 1996).

    >>> print(bp.models.l1_penalty({"kernel": jnp.array([-1.0, 2.0])}, weight=0.1).round(3))
    0.3
    """
    # Of jnp.abs, autodiff's derivative at 0 is 1, and a weight of 0 would not stay there.
    return _weighted_sum(decaying(params, only), weight, lambda leaf: leaf * jnp.sign(leaf))


def decaying(params: Params, only: tuple[str, ...] | None) -> list[tuple[jax.tree_util.KeyPath, jax.Array]]:
    """Path and array of each parameter whose last name is in `only`; all of them for None."""
    leaves = jax.tree.leaves_with_path(params)
    return [(path, leaf) for path, leaf in leaves if only is None or path[-1].key in only]


def _weighted_sum(leaves, weight, function):
    return jnp.asarray(weight * sum((jnp.sum(function(leaf)) for _, leaf in leaves), start=0.0))
