"""Indexing: slices and elements taken from, or written to, places that are computed.

Indices have no derivative. What reads has a transpose that adds up what was read from each place; what writes
has one that reads. Out of bounds, `clip` moves a window inside, `fill_or_drop` reads zero and does not write,
in both directions alike.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from bpresearch.chainrule.primitives import NoPrimitiveRuleError, linear, primitive


@linear("dynamic_slice")
def dynamic_slice(e, y_bar):
    """y[i] = x[start + i].      x_bar[start + i] = y_bar[i], elsewhere 0"""
    x, *starts = e.ins
    return lax.dynamic_update_slice(jnp.zeros_like(x), y_bar, starts)


@primitive("dynamic_update_slice")
class DynamicUpdateSliceRule:
    """y = x with y[start + i] = u[i].      x_bar = y_bar with 0 there,   u_bar[i] = y_bar[start + i]"""

    def backward(e, y_bar):
        _, u, *starts = e.ins
        x_bar = lax.dynamic_update_slice(y_bar, jnp.zeros_like(u), starts) if e.wanted[0] else None
        u_bar = lax.dynamic_slice(y_bar, starts, u.shape) if e.wanted[1] else None
        return x_bar, u_bar, *(None for _ in starts)

    def tangent(e, x_dot, u_dot, *others):
        x, u, *starts = e.ins
        return e.bind(zero_for_none(x_dot, x), zero_for_none(u_dot, u), *starts)


@primitive("gather")
class GatherRule:
    """y[k, j] = x[i_k + j], a window for each index i_k; out of bounds x, or the value to fill in.

    x_bar[n] = sum of y_bar[k, j] over all k, j with i_k + j = n
    """

    def backward(e, y_bar):
        (x, indices), numbers = e.ins, e.params["dimension_numbers"]
        x_bar = lax.scatter_add(
            jnp.zeros_like(x), indices, y_bar,
            lax.ScatterDimensionNumbers(
                update_window_dims=numbers.offset_dims,
                inserted_window_dims=numbers.collapsed_slice_dims,
                scatter_dims_to_operand_dims=numbers.start_index_map,
                operand_batching_dims=numbers.operand_batching_dims,
                scatter_indices_batching_dims=numbers.start_indices_batching_dims,
            ),
            **as_promised(e),
        )  # fmt: skip
        return x_bar, None

    def tangent(e, x_dot, _):
        return lax.gather(  # what is filled in does not move
            x_dot, e.ins[1], e.params["dimension_numbers"], e.params["slice_sizes"],
            fill_value=0, **as_promised(e),
        )  # fmt: skip


@primitive("scatter")
class ScatterRule:
    """y = x with y[i_k] = u_k; of several with the same index one remains.

    x_bar = y_bar with 0 at the indices,      u_bar_k = y_bar[i_k] where u_k remained, else 0
    """

    def backward(e, y_bar):
        x, indices, u = e.ins
        if e.params["update_jaxpr"] is not None:
            raise NoPrimitiveRuleError(f"x.at[...].apply(f) at {e.place} has no derivative, as in JAX")
        x_bar = e.bind(y_bar, indices, jnp.zeros_like(u))[0] if e.wanted[0] else None
        u_bar = read(e, y_bar) if e.wanted[2] else None
        if e.wanted[2] and not distinct(e):
            # Numbers in the place of updates tell which remained.
            one_each = [1 if axis in windows(e) else n for axis, n in enumerate(u.shape)]
            number = jnp.arange(1, math.prod(one_each) + 1).reshape(one_each)
            number = number + jnp.zeros_like(u, number.dtype)
            remained = read(e, e.bind(jnp.zeros_like(x, number.dtype), indices, number)[0])
            u_bar = jnp.where(number == remained, u_bar, 0)
        return x_bar, None, u_bar

    def tangent(e, x_dot, _, u_dot):
        x, indices, u = e.ins
        if e.params["update_jaxpr"] is not None:
            raise NoPrimitiveRuleError(f"x.at[...].apply(f) at {e.place} has no derivative, as in JAX")
        return e.bind(zero_for_none(x_dot, x), indices, zero_for_none(u_dot, u))


@primitive("scatter-add", "scatter-sub")
class ScatterAddRule:
    """y[n] = x[n] +- sum of u_k over all k with i_k = n.      x_bar = y_bar,   u_bar_k = +- y_bar[i_k]"""

    def backward(e, y_bar):
        u_bar = read(e, y_bar) if e.wanted[2] else None
        if u_bar is not None and e.primitive.name == "scatter-sub":
            u_bar = -u_bar
        return y_bar, None, u_bar

    def tangent(e, x_dot, _, u_dot):
        x, indices, _ = e.ins
        return x_dot if u_dot is None else e.bind(zero_for_none(x_dot, x), indices, u_dot)


@primitive("scatter-mul")
class ScatterMulRule:
    """y[n] = x[n] prod of u_k over all k with i_k = n

    x_bar[n] = y_bar[n] prod of these u_k,      u_bar_k = y_bar[i_k] x[i_k] prod of the others

    JAX refuses u_bar where indices may repeat; here it is right there, too, also where some u_k are zero.
    """

    def backward(e, y_bar):
        x, indices, u = e.ins
        x_bar = e.bind(y_bar, indices, u)[0] if e.wanted[0] else None
        u_bar = read(e, y_bar * x) * product_of_others(e) if e.wanted[2] else None
        return x_bar, None, u_bar

    def tangent(e, x_dot, _, u_dot):
        x, indices, u = e.ins
        y_dot = 0 if x_dot is None else e.bind(x_dot, indices, u)[0]
        if u_dot is not None:
            y_dot = y_dot + x * written(e, lax.scatter_add, jnp.zeros_like(x), u_dot * product_of_others(e))
        return y_dot


@primitive("scatter-max", "scatter-min")
class ScatterExtremumRule:
    """y[n] = max, or min, of x[n] and all u_k with i_k = n.

    All that equal y[n] share its cotangent equally:

        x_bar[n] = y_bar[n] / (number of them) where x[n] = y[n],      u_bar_k likewise where u_k = y[i_k]
    """

    def backward(e, y_bar):
        x_share, u_share = shares(e)
        return y_bar * x_share, None, read(e, y_bar) * u_share if e.wanted[2] else None

    def tangent(e, x_dot, _, u_dot):
        x_share, u_share = shares(e)
        y_dot = 0 if x_dot is None else x_dot * x_share
        if u_dot is not None:
            y_dot = y_dot + written(e, lax.scatter_add, jnp.zeros_like(e.ins[0]), u_dot * u_share)
        return y_dot


def shares(e):
    """What each element of x, and of u, has of the largest or smallest."""
    (x, _, u), (y,) = e.ins, e.outs
    hit = (u == read(e, y)).astype(u.dtype)
    hits = written(e, lax.scatter_add, jnp.zeros_like(x), hit)
    number = hits + (x == y)  # at least one, but for nan
    x_share = jnp.where(hits == 0, 1, (x == y) / number)
    return x_share.astype(x.dtype), hit / read(e, jnp.maximum(number, 1), fill=1)


def product_of_others(e):
    """For each u_k the product of all u_l with l != k and i_l = i_k, without dividing by zero."""
    x, _, u = e.ins
    if distinct(e):
        return jnp.ones_like(u)
    zero = u == 0
    zeros = read(e, written(e, lax.scatter_add, jnp.zeros_like(x), zero.astype(u.dtype)))
    some = jnp.where(zero, 1, u)
    product = read(e, written(e, lax.scatter_mul, jnp.ones_like(x), some)) / some
    return jnp.where(zeros == zero, product, 0)  # no zero among the others


def read(e, y, fill=0):
    """The gather that reads where a scatter writes: y[i_k]."""
    numbers = e.params["dimension_numbers"]
    whole = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    lengths = iter(e.ins[2].shape[axis] for axis in windows(e))
    return lax.gather(
        y, e.ins[1],
        lax.GatherDimensionNumbers(
            offset_dims=numbers.update_window_dims,
            collapsed_slice_dims=numbers.inserted_window_dims,
            start_index_map=numbers.scatter_dims_to_operand_dims,
            operand_batching_dims=numbers.operand_batching_dims,
            start_indices_batching_dims=numbers.scatter_indices_batching_dims,
        ),
        [1 if axis in whole else next(lengths) for axis in range(y.ndim)],
        fill_value=fill, **as_promised(e),
    )  # fmt: skip


def written(e, scatter, x, u):
    """x with the updates u at the indices of the equation."""
    return scatter(x, e.ins[1], u, e.params["dimension_numbers"], **as_promised(e))


def as_promised(e):
    """What the user said of the indices."""
    return {name: e.params[name] for name in ("indices_are_sorted", "unique_indices", "mode")}


def windows(e):
    """The axes of the updates that run over a window."""
    return e.params["dimension_numbers"].update_window_dims


def distinct(e):
    """Whether no index occurs twice: as promised, or because there is only one."""
    shape = e.ins[2].shape
    indices = np.prod([n for axis, n in enumerate(shape) if axis not in windows(e)], dtype=int)
    return e.params["unique_indices"] or indices <= 1


def zero_for_none(dot, x):
    """A tangent, zeros where it is None."""
    return jnp.zeros_like(x) if dot is None else dot
