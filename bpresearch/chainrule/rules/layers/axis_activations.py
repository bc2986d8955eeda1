"""Activations along an axis, whose elements depend on each other: softmax and its kin.

Options are those of the functions: `axis` (an integer, several, or None for all), and `where`, a mask whose
other elements take no part.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jax import lax

from bpresearch.chainrule.registry import rule


@rule(nnx.softmax)
class SoftmaxRule:
    """y = e^x / sum(e^x) along the axis.      x_bar = y (y_bar - sum(y_bar y))

    The Jacobian is diag(y) - y y^T (Bridle 1990). Elements outside the mask have y = 0, and x_bar = 0.
    """

    def forward(function, x, **options):
        y = nnx.softmax(x, **options)
        return y, y

    def backward(function, y, y_bar, axis=-1, where=None):
        return {}, y * (y_bar - jnp.sum(y * y_bar, axis, keepdims=True))


@rule(nnx.log_softmax)
class LogSoftmaxRule:
    """y = x - log(sum(e^x)) along the axis.      x_bar = y_bar - e^y sum(y_bar)

    Elements outside the mask have y = -inf, whatever x is: their y_bar is left out, and their x_bar is 0.
    """

    def forward(function, x, **options):
        y = nnx.log_softmax(x, **options)
        return y, y

    def backward(function, y, y_bar, axis=-1, where=None):
        if where is not None:
            y_bar = jnp.where(where, y_bar, 0)
        return {}, y_bar - jnp.exp(y) * jnp.sum(y_bar, axis, keepdims=True)


@rule(nnx.glu)
class GLURule:
    """y = u s, the halves of x = (u, v), s = sigmoid(v)      (Dauphin et al. 2017)

    x_bar = (y_bar s, y_bar u s (1 - s))
    """

    def forward(function, x, *, axis=-1):
        return nnx.glu(x, axis), x

    def backward(function, x, y_bar, axis=-1):
        u, v = jnp.split(x, 2, axis)
        s = nnx.sigmoid(v)
        u_bar = y_bar * s
        return {}, jnp.concatenate([u_bar, u_bar * u * (1 - s)], axis)


@rule(nnx.standardize)
class StandardizeRule:
    """y = (x - mean) r,   r = 1 / sqrt(var + eps), along the axis.

    x_bar = r (y_bar - mean(y_bar) - y mean(y_bar y)), derived as in `normalization`. With a mask, mean and
    var are those of the elements inside it, all are standardised, and the two means become sums over all
    elements, divided by the number inside the mask and given to those inside alone.

    A `mean` that is given is a constant, and -mean(y_bar) falls away; so does the last term for a given
    `variance`. With a given mean m, var = mean(x^2) - m^2 ("fast") has the derivative 2 x / n by x, and x r
    stands in the place of the first y of the last term; var = mean((x - m)^2) ("stable") has 2 (x - m) / n,
    and y stays. Where "fast" finds var below zero and takes 0 instead, the last term falls away.
    """

    def forward(function, x, **options):
        return nnx.standardize(x, **options), (
            x,
            *_moments(x, **{name: value for name, value in options.items() if name != "epsilon"}),
        )

    def backward(
        function, residuals, y_bar, axis=-1, mean=None, variance=None, epsilon=1e-5, where=None, **options
    ):
        x, centre, var = residuals
        r = lax.rsqrt(var + epsilon)
        y = (x - centre) * r
        if where is None:
            share = 1 / math.prod(x.shape[a] for a in _axes(axis, x.ndim))
        else:
            inside = jnp.broadcast_to(where, x.shape)
            share = jnp.where(where, 1 / jnp.sum(inside, axis, dtype=x.dtype, keepdims=True), 0)
        x_bar = y_bar
        if mean is None:
            x_bar = x_bar - share * jnp.sum(y_bar, axis, keepdims=True)
        if variance is None:
            slope = x * r if mean is not None and options.get("algorithm", "fast") == "fast" else y
            along_y = jnp.where(var > 0, jnp.sum(y_bar * y, axis, keepdims=True), 0)
            x_bar = x_bar - share * slope * along_y
        return {}, r * x_bar


def _moments(x, axis=-1, mean=None, variance=None, where=None, algorithm="fast"):
    """The mean and the variance that `nnx.standardize` takes."""
    if mean is None:
        mean = jnp.mean(x, axis, keepdims=True, where=where)
    if variance is None:
        fast = algorithm == "fast"
        variance = jnp.mean(jnp.square(x if fast else x - mean), axis, keepdims=True, where=where)
        variance = jnp.maximum(0, variance - jnp.square(mean)) if fast else variance
    return mean, variance


def _axes(axis, rank):
    return range(rank) if axis is None else (axis,) if isinstance(axis, int) else axis
