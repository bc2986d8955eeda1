"""Functions between layers that only move, select or average values."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def flatten(x: Shaped[Array, "batch *features"]) -> Shaped[Array, "batch flat"]:
    """All axes but the first in one, in row-major order.

    >>> bp.models.flatten(jnp.ones((2, 3, 4))).shape
    (2, 12)
    """
    return x.reshape(x.shape[0], -1)


def add_channel(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape 1"]:
    """Feature vectors as signals with one channel.

    >>> bp.models.add_channel(jnp.ones((2, 5))).shape
    (2, 5, 1)
    """
    return x[..., None]


def steps(x: Shaped[Array, "batch time *features"]) -> Shaped[Array, "batch time flat"]:
    """A sequence along the first axis of each example: a signal's points, an image's rows.

    >>> bp.models.steps(jnp.ones((2, 8, 6, 1))).shape
    (2, 8, 6)
    """
    return x.reshape(*x.shape[:2], -1)


def positions(x: Shaped[Array, "batch *space channels"]) -> Shaped[Array, "batch positions channels"]:
    """All places of an image or signal as a sequence, in row-major order.

    >>> bp.models.positions(jnp.ones((2, 8, 6, 3))).shape
    (2, 48, 3)
    """
    return x.reshape(x.shape[0], -1, x.shape[-1])


def swap(x: Shaped[Array, "*batch rows columns"]) -> Shaped[Array, "*batch columns rows"]:
    """The last two axes exchanged.

    >>> bp.models.swap(jnp.ones((2, 8, 3))).shape
    (2, 3, 8)
    """
    return jnp.matrix_transpose(x)


def last(x: Shaped[Array, "batch time *features"]) -> Shaped[Array, "batch *features"]:
    """The last step of a sequence.

    >>> print(bp.models.last(jnp.arange(6.0).reshape(2, 3)))
    [2. 5.]
    """
    return x[:, -1]


def average(x: Float[Array, "batch *space channels"]) -> Float[Array, "batch channels"]:
    """The mean over all places (global average pooling, Lin et al. 2014).

    >>> print(bp.models.average(jnp.array([[[1.0], [2.0], [6.0]]])))
    [[3.]]
    """
    return jnp.mean(x, axis=range(1, x.ndim - 1))
