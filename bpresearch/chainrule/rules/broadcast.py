"""Adjoints of what arrays do on their way into a formula: broadcasting, and sums along axes."""

import jax.numpy as jnp


def cotangent(bar, x):
    """The cotangent of x from that of x broadcast in a formula: summed over the copies, in the dtype of x.

    None if x is None or not floating point: integers, masks and absent inputs have no derivative.
    """
    if x is None or not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        return None
    extra = bar.ndim - jnp.ndim(x)
    spread = tuple(extra + i for i, n in enumerate(jnp.shape(x)) if n == 1 and bar.shape[extra + i] > 1)
    summed = jnp.sum(bar, axis=(*range(extra), *spread), keepdims=True) if extra or spread else bar
    return jnp.broadcast_to(summed.reshape(summed.shape[extra:]), jnp.shape(x)).astype(x.dtype)


def no_derivative(x):
    """The cotangent of an input that a formula does not depend on smoothly: zeros; None for integers."""
    floating = x is not None and jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    return jnp.zeros_like(x) if floating else None


def along(bar, axis, ndim):
    """The cotangent of a sum, with the axes that were summed (all for None) put back with length one."""
    return jnp.expand_dims(bar, tuple(range(ndim)) if axis is None else axis)


def spread(bar, axis, where, ndim):
    """The adjoint of `jnp.sum(x, axis, where=where)`, x of `ndim` axes: every element gets `bar`.

    Elements outside `where` get 0; the result broadcasts against x.
    """
    bar = along(bar, axis, ndim)
    return bar if where is None else jnp.where(where, bar, 0)
