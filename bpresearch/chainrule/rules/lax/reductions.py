"""Reductions: sums, products, extrema, and any associative operation over whole axes."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun

from bpresearch.chainrule import engine, tangents
from bpresearch.chainrule.primitives import constant, linear, primitive

constant("reduce_and", "reduce_or", "reduce_xor", why="logical values and integers have no derivative")


@linear("reduce_sum")
def reduce_sum(e, y_bar):
    """y = sum_i x[i].      x_bar[i] = y_bar"""
    return spread(e, y_bar)


@primitive("reduce_max", "reduce_min")
class ReduceExtremumRule:
    """y = max_i x[i], or min.      x_bar[i] = y_bar / (number of j with x[j] = y) where x[i] = y, else 0"""

    def backward(e, y_bar):
        among = largest(e)
        return among * spread(e, y_bar / lax.reduce_sum(among, e.params["axes"]))

    def tangent(e, x_dot):
        among, axes = largest(e), e.params["axes"]
        return lax.reduce_sum(among * x_dot, axes) / lax.reduce_sum(among, axes)


def largest(e):
    """1 where x[i] is the largest, or smallest, else 0."""
    (x,), (y,) = e.ins, e.outs
    return (x == spread(e, y)).astype(x.dtype)


@primitive("reduce_prod")
class ReduceProductRule:
    """y = prod_i x[i].      x_bar[i] = y_bar prod of x[j] over all j != i"""

    def backward(e, y_bar):
        return product_of_others(e) * spread(e, y_bar)

    def tangent(e, x_dot):
        return lax.reduce_sum(product_of_others(e) * x_dot, e.params["axes"])


def product_of_others(e):
    """For each element the product of the others along the reduced axes, without dividing."""
    (x,), axes = e.ins, e.params["axes"]
    first = range(len(axes))
    front = jnp.moveaxis(x, axes, first)
    flat = front.reshape(-1 if x.size else 0, *front.shape[len(axes) :])
    return jnp.moveaxis(cofactors(flat).reshape(front.shape), first, axes)


def cofactors(x):
    """c[i] = prod of x[j] over all j != i, along the first axis: i's partner in a pair times all other pairs.

    These are 3 n products in log2(n) steps. The derivative of this is exact as well where some x[j] are zero.
    """
    n = len(x)
    if n <= 1:
        return jnp.ones_like(x)
    half = n // 2
    left, right, odd = x[:half], x[half : 2 * half], x[2 * half :]
    rest = cofactors(jnp.concatenate([left * right, odd]))
    return jnp.concatenate([rest[:half] * right, rest[:half] * left, rest[half:]])


def spread(e, y):
    """The value of a reduction in the place of each element that it came from."""
    x, axes = e.ins[0], e.params["axes"]
    return lax.broadcast_in_dim(y, x.shape, [axis for axis in range(x.ndim) if axis not in axes])


def pull_back(f, e, bars):
    """Cotangents of an equation's operands where its results are f(*ins), by the rules of f's primitives."""
    closed = jax.make_jaxpr(f)(*e.ins)
    _, tape = engine.forward(closed.jaxpr, closed.consts, e.ins, e.wanted)
    return engine.backward(closed.jaxpr, tape, bars, e.wanted)


def push_forward(f, e, dots):
    """Tangents of an equation's results where they are f(*ins), by the rules of f's primitives."""
    closed = jax.make_jaxpr(f)(*e.ins)
    return tangents.walk(closed.jaxpr, closed.consts, e.ins, dots)[1]


@primitive("reduce")
class ReduceRule:
    """y = v o x[1] o x[2] o ... for any associative operation o, of one or several arrays at once.

    The derivative is that of combining pairs, then pairs of pairs, and so on, by the rules for o's equations.
    JAX refuses a derivative along v, and takes v to be neutral.
    """

    def backward(e, *bars):
        return pull_back(lambda *ins: reduced(e, *ins), e, bars)

    def tangent(e, *dots):
        return push_forward(lambda *ins: reduced(e, *ins), e, dots)


def reduced(e, *ins):
    """The results of a reduction by its definition."""
    axes = e.params["dimensions"]
    arrays, starts = ins[: len(ins) // 2], ins[len(ins) // 2 :]
    fronts = [jnp.moveaxis(x, axes, range(len(axes))) for x in arrays]
    rows = [front.reshape(-1, *front.shape[len(axes) :]) for front in fronts]
    return combined(jaxpr_as_fun(e.params["jaxpr"]), starts, rows)


def combined(operation, starts, rows):
    """v o x[1] o x[2] o ... along the first axis, for a function of single numbers: neighbours first."""
    shape = rows[0].shape[1:]
    for _ in range(len(shape)):
        operation = jax.vmap(operation)
    pairwise = jax.vmap(operation)
    while (n := len(rows[0])) > 1:
        even = n - n % 2
        pairs = pairwise(*(x[0:even:2] for x in rows), *(x[1:even:2] for x in rows))
        rows = [jnp.concatenate([pair, x[even:]]) for pair, x in zip(pairs, rows, strict=True)]
    starts = [jnp.zeros_like(x, shape=shape) + v for v, x in zip(starts, rows, strict=True)]
    return operation(*starts, *(x[0] for x in rows)) if n else starts
