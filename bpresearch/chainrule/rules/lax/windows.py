"""Windows that move over an array: the sum, the extremum, or any operation of what each of them sees.

The window for position t starts at s t - low in x. The elements of x are d apart, those of the window r:

    seen[k, t] = x[(s t + r k - low) / d],   outside of x and in its gaps a neutral value
"""

import itertools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from bpresearch.chainrule.primitives import NoPrimitiveRuleError, linear, primitive, refused
from bpresearch.chainrule.rules.lax.contractions import spread, transposed_padding
from bpresearch.chainrule.rules.lax.reductions import combined, pull_back, push_forward

FEW = 64
"""Windows of up to so many elements are taken apart: XLA fuses that, and is slow at scattering by windows."""


class Windows:
    """What each element of the window of an equation sees as the window moves, and the way back."""

    def __init__(self, e):
        p = e.params
        self.size, self.moved = e.ins[0].shape, e.outs[0].shape
        self.strides, self.dilation = p["window_strides"], p["base_dilation"]
        self.around = [(low, high, d - 1) for (low, high), d in zip(p["padding"], self.dilation, strict=True)]
        elements = zip(p["window_dimensions"], p["window_dilation"], strict=True)
        self.offsets = list(itertools.product(*(range(0, w * r, r) for w, r in elements)))
        if 0 in self.moved:  # windows larger than x: there are none, and one element sees that as well as all
            self.offsets = self.offsets[:1]

    def seen(self, x, outside):
        """seen[k, t] for each k, in row-major order."""
        x = lax.pad(x, outside, self.around)
        return [lax.slice(x, k, self.limits(k), self.strides) for k in self.offsets]

    def put_back(self, parts):
        """The transpose of `seen`: each element of x adds up what saw it."""
        padded = [
            spread(n, d) + low + high
            for n, d, (low, high, _) in zip(self.size, self.dilation, self.around, strict=True)
        ]
        total, zero = 0, np.zeros((), parts[0].dtype)
        for part, k in zip(parts, self.offsets, strict=True):
            places = zip(k, padded, self.limits(k), self.strides, strict=True)
            total = total + lax.pad(part, zero, [(o, n - end, s - 1) for o, n, end, s in places])
        inside = lax.pad(total, zero, [(-low, -high, 0) for low, high, _ in self.around])
        return lax.slice(inside, (0,) * inside.ndim, inside.shape, self.dilation)

    def limits(self, k):
        """Where in x what element k sees ends."""
        return [o + (m - 1) * s + 1 if m else o for o, m, s in zip(k, self.moved, self.strides, strict=True)]


@linear("reduce_window_sum")
def reduce_window_sum(e, y_bar):
    """y[t] = sum_k seen[k, t].      x_bar[i] = sum of y_bar[t] over k, t with i = (s t + r k - low) / d"""
    (x,), p = e.ins, e.params
    plain = {1} == {*p["base_dilation"], *p["window_dilation"]}
    if plain and p["window_dimensions"] == p["window_strides"]:
        return one_window_each(x, y_bar, p["window_strides"], p["padding"])
    around = transposed_padding(
        x.shape, p["window_dimensions"], y_bar.shape,
        p["window_strides"], p["padding"], p["base_dilation"], p["window_dilation"],
    )  # fmt: skip
    config = [(low, high, s - 1) for (low, high), s in zip(around, p["window_strides"], strict=True)]
    zero = np.zeros((), y_bar.dtype)
    return lax.reduce_window(
        lax.pad(y_bar, zero, config), zero, lax.add, p["window_dimensions"], p["base_dilation"], "VALID",
        window_dilation=p["window_dilation"],
    )  # fmt: skip


def one_window_each(x, y_bar, strides, padding):
    """x_bar[i] = y_bar[(i + low) // s], where no windows overlap."""
    apart = [*itertools.chain.from_iterable(zip(y_bar.shape, strides, strict=True))]
    copies = lax.broadcast_in_dim(y_bar, apart, range(0, 2 * x.ndim, 2))
    copies = lax.reshape(copies, [m * s for m, s in zip(y_bar.shape, strides, strict=True)])
    inside = zip(x.shape, copies.shape, padding, strict=True)
    return lax.pad(copies, np.zeros((), y_bar.dtype), [(-low, n + low - m, 0) for n, m, (low, _) in inside])


@primitive("reduce_window_max", "reduce_window_min")
class ReduceWindowExtremumRule:
    """y[t] = max_k seen[k, t], or min.      x_bar[i] = sum of y_bar[t] over the windows that i won

    Of equal elements the first of the window, in row-major order, wins, as in JAX.
    """

    def backward(e, y_bar):
        if not few(e):
            return scattered(e.ins[0], y_bar, selection(e), e.params)
        windows = Windows(e)
        # Both are computed once, not for each element of the window.
        winner, y_bar = lax.optimization_barrier((winners(e, windows), y_bar))
        return windows.put_back([jnp.where(winner == k, y_bar, 0) for k in range(len(windows.offsets))])

    def tangent(e, x_dot):
        if not few(e):
            p = {"select_prim": selection(e), **e.params}
            return lax.select_and_gather_add_p.bind(x_dot, e.ins[0], **p)
        windows = Windows(e)
        winner = winners(e, windows)
        dots = windows.seen(x_dot, np.zeros((), x_dot.dtype))
        return sum(jnp.where(winner == k, dot, 0) for k, dot in enumerate(dots))


def winners(e, windows):
    """For each window the number of the element that wins.

    The elements are compared with each other and not with y, which a compiled program may have computed from
    other roundings of the same x.
    """
    largest = e.primitive.name == "reduce_window_max"
    best, *others = windows.seen(e.ins[0], np.array(-np.inf if largest else np.inf, e.ins[0].dtype))
    winner = jnp.zeros_like(best, jnp.int32)
    for k, element in enumerate(others, start=1):
        better = element > best if largest else element < best
        best, winner = jnp.where(better, element, best), jnp.where(better, k, winner)
    return winner


def few(e):
    """Whether the window has few elements, or is one that JAX does not scatter to."""
    p = e.params
    return math.prod(p["window_dimensions"]) <= FEW or any(r != 1 for r in p["window_dilation"])


def selection(e):
    """The comparison by which one element is preferred to a later one."""
    return lax.ge_p if e.primitive.name == "reduce_window_max" else lax.le_p


def scattered(x, y_bar, select, p):
    """x_bar by XLA's SelectAndScatter, which knows no dilation of x: infinities fill the gaps."""
    gaps = [(0, 0, d - 1) for d in p["base_dilation"]]
    outside = np.array(-np.inf if select is lax.ge_p else np.inf, x.dtype)
    x_bar = lax.select_and_scatter_add_p.bind(
        y_bar, lax.pad(x, outside, gaps), select_prim=select,
        window_dimensions=p["window_dimensions"], window_strides=p["window_strides"], padding=p["padding"],
    )  # fmt: skip
    return lax.slice(x_bar, (0,) * x.ndim, x_bar.shape, p["base_dilation"])


@linear("select_and_gather_add")
def select_and_gather_add(e, y_bar):
    """y[t] = the element of v at the place of the element of x that wins window t.

    v_bar[i] = sum of y_bar[t] over the windows that i won
    """
    x, p = e.ins[1], e.params
    if any(r != 1 for r in p["window_dilation"]):
        raise NoPrimitiveRuleError(
            f"select_and_gather_add at {e.place} has no backward for dilated windows, as in JAX"
        )
    return scattered(x, y_bar, p["select_prim"], p)


@linear("select_and_scatter_add")
def select_and_scatter_add(e, y_bar):
    """y[i] = sum of v[t] over the windows t of x that i wins.

    v_bar[t] = the element of y_bar at the place of the element of x that wins window t
    """
    ones = (1,) * y_bar.ndim
    p = {**e.params, "base_dilation": ones, "window_dilation": ones}
    return lax.select_and_gather_add_p.bind(y_bar, e.ins[1], **p)


refused("select_and_scatter", why="JAX has no derivative of it either")


@primitive("reduce_window")
class ReduceWindowRule:
    """y[t] = v o seen[0, t] o seen[1, t] o ... for any associative operation o, of one or several arrays.

    Outside of x a window sees v. The derivative is that of the windows taken apart and combined, by the rules
    for o's equations. JAX has the tangent only, and none along v.
    """

    def backward(e, *bars):
        return pull_back(lambda *ins: windowed(e, *ins), e, bars)

    def tangent(e, *dots):
        return push_forward(lambda *ins: windowed(e, *ins), e, dots)


def windowed(e, *ins):
    """The results by their definition."""
    windows, arrays, starts = Windows(e), ins[: len(ins) // 2], ins[len(ins) // 2 :]
    operation = jaxpr_as_fun(ClosedJaxpr(e.params["jaxpr"], e.params["consts"]))
    rows = [jnp.stack(windows.seen(x, v)) for x, v in zip(arrays, starts, strict=True)]
    return combined(operation, starts, rows)
