"""Shapes: primitives that only move elements, repeat them, or leave some out. All are linear.

The transpose puts each cotangent back where its element came from, and adds up those of its copies.
"""

import itertools

import jax.numpy as jnp
import numpy as np
from jax import lax

from bpresearch.chainrule.primitives import constant, linear, primitive

constant("iota", why="it has no operands")


@linear("reshape")
def reshape(e, y_bar):
    """y has the elements of x in another shape.      x_bar is y_bar in the shape of x"""
    (x, *_), order = e.ins, e.params["dimensions"]
    if order is None:
        return lax.reshape(y_bar, x.shape)
    turned = lax.reshape(y_bar, [x.shape[axis] for axis in order])
    return lax.transpose(turned, np.argsort(order))


@linear("squeeze")
def squeeze(e, y_bar):
    """y = x without axes of length one.      x_bar is y_bar in the shape of x"""
    return lax.reshape(y_bar, e.ins[0].shape)


@linear("transpose")
def transpose(e, y_bar):
    """y's axis i is x's axis p(i).      x_bar's axis p(i) is y_bar's axis i"""
    return lax.transpose(y_bar, np.argsort(e.params["permutation"]))


@linear("rev")
def reverse(e, y_bar):
    """y[i] = x[n - 1 - i].      x_bar[i] = y_bar[n - 1 - i]"""
    return lax.rev(y_bar, e.params["dimensions"])


@linear("broadcast_in_dim")
def broadcast(e, y_bar):
    """y[i, j] = x[i], or x[0].      x_bar[i] = sum_j y_bar[i, j]"""
    x, axes = e.ins[0], e.params["broadcast_dimensions"]
    matched = {axis for axis, n in zip(axes, x.shape, strict=True) if n == y_bar.shape[axis]}
    return lax.reshape(lax.reduce_sum(y_bar, [i for i in range(y_bar.ndim) if i not in matched]), x.shape)


@linear("tile")
def tile(e, y_bar):
    """y[r n + i] = x[i] for each repetition r.      x_bar[i] = sum_r y_bar[r n + i]"""
    x, repeats = e.ins[0], e.params["reps"]
    apart = [*itertools.chain.from_iterable(zip(repeats, x.shape, strict=True))]
    return lax.reduce_sum(lax.reshape(y_bar, apart), range(0, 2 * x.ndim, 2))


@linear("split")
def split(e, *y_bars):
    """y_1, y_2, ... = x cut along an axis.      x_bar = y_bar_1, y_bar_2, ... one after another"""
    return lax.concatenate(y_bars, e.params["axis"])


@linear("unstack")
def unstack(e, *y_bars):
    """y_i = x[i].      x_bar[i] = y_bar_i"""
    return jnp.stack(y_bars, e.params["axis"])


@linear("slice")
def strided_slice(e, y_bar):
    """y[i] = x[start + s i].      x_bar[start + s i] = y_bar[i], elsewhere 0"""
    x, starts = e.ins[0], e.params["start_indices"]
    strides = e.params["strides"] or (1,) * x.ndim
    around = [
        (start, n - start - (max((m - 1) * s + 1, 0)), s - 1)
        for n, m, start, s in zip(x.shape, y_bar.shape, starts, strides, strict=True)
    ]
    return lax.pad(y_bar, np.zeros((), y_bar.dtype), around)


@primitive("pad")
class PadRule:
    """y[low + (gap + 1) i] = x[i], elsewhere v; where low or high is negative, elements are left out.

    x_bar[i] = y_bar[low + (gap + 1) i],      v_bar = sum of y_bar elsewhere
    """

    def backward(e, y_bar):
        x, _ = e.ins
        config = e.params["padding_config"]
        # What was left out comes back as zeros; then x's own elements are every (gap + 1)-th.
        inside = lax.pad(y_bar, np.zeros((), y_bar.dtype), [(-low, -high, 0) for low, high, _ in config])
        x_bar = lax.slice(inside, (0,) * x.ndim, inside.shape, [gap + 1 for *_, gap in config])
        v_bar = jnp.sum(y_bar) - jnp.sum(x_bar) if e.wanted[1] else None
        return x_bar if e.wanted[0] else None, v_bar

    def tangent(e, x_dot, v_dot):
        x, v = e.ins
        return e.bind(
            jnp.zeros_like(x) if x_dot is None else x_dot, jnp.zeros_like(v) if v_dot is None else v_dot
        )


@primitive("concatenate")
class ConcatenateRule:
    """y = x_1, x_2, ... one after another along an axis.      x_bar_i is its part of y_bar"""

    def backward(e, y_bar):
        axis = e.params["dimension"]
        ends = np.cumsum([x.shape[axis] for x in e.ins])
        return tuple(
            lax.slice_in_dim(y_bar, end - x.shape[axis], end, axis=axis) if wanted else None
            for x, end, wanted in zip(e.ins, ends, e.wanted, strict=True)
        )

    def tangent(e, *dots):
        return of_all(e, dots)


@primitive("stack")
class StackRule:
    """y[i] = x_i along a new axis.      x_bar_i = y_bar[i]"""

    def backward(e, y_bar):
        axis = e.params["axis"]
        return tuple(
            lax.index_in_dim(y_bar, i, axis, keepdims=False) if wanted else None
            for i, wanted in enumerate(e.wanted)
        )

    def tangent(e, *dots):
        return of_all(e, dots)


def of_all(e, dots):
    """The map itself at the tangents of all operands."""
    return e.bind(*(jnp.zeros_like(x) if dot is None else dot for x, dot in zip(e.ins, dots, strict=True)))
